//! Reads documents: text that is not part of a conversation.

use std::ops::ControlFlow;

use sha2::{Digest, Sha256};

use crate::saved::Event;
use crate::session::{QUERY_TOKENS, within};
use crate::{DocumentContext, Observer, Origin, Policy, Session, SessionError};

/// How far a document was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DocumentProgress {
    /// Of its name and its text.
    pub(crate) digest: [u8; 32],
    pub(crate) n_read: u64,
}

impl DocumentProgress {
    fn digest(origin: &Origin, text: &str) -> [u8; 32] {
        let mut hash = Sha256::new();
        let name = origin.source.as_ref().map_or("", |source| &*source.file);
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update(text);
        hash.finalize().into()
    }
}

impl Session {
    /// Reads text as it is, without template: a document, a log. `progress` hears how many tokens
    /// of the text have been read, and of how many; it may stop the reading.
    ///
    /// # Errors
    ///
    /// [`SessionError`]; what was read before it stays read.
    pub fn ingest(
        &mut self,
        text: &str,
        origin: Origin,
        progress: &mut dyn FnMut(&Self, usize, usize) -> ControlFlow<()>,
    ) -> Result<usize, SessionError> {
        self.ingest_observed(text, origin, None, progress)
    }

    /// As [`Session::ingest`], showing the prediction after every token to `observer`. What is
    /// predicted is predicted from the window, so paragraphs are not read apart here.
    ///
    /// # Errors
    ///
    /// As [`Session::ingest`].
    pub fn ingest_observed(
        &mut self,
        text: &str,
        mut origin: Origin,
        mut observer: Option<&mut Observer<'_>>,
        progress: &mut dyn FnMut(&Self, usize, usize) -> ControlFlow<()>,
    ) -> Result<usize, SessionError> {
        self.end_document()?;
        let tokens = self.encode(text)?;
        let n_read =
            self.ingest_tokens(&tokens, 0, false, &mut origin, observer.take(), progress)?;
        self.end_turn()?;
        Ok(n_read)
    }

    /// As [`Session::ingest`], but what was read of this document before is not read again: a
    /// session that was stopped while it read goes on there. `progress` hears of all tokens.
    ///
    /// # Errors
    ///
    /// As [`Session::ingest`].
    pub fn ingest_rest(
        &mut self,
        text: &str,
        mut origin: Origin,
        progress: &mut dyn FnMut(&Self, usize, usize) -> ControlFlow<()>,
    ) -> Result<usize, SessionError> {
        let tokens = self.encode(text)?;
        let digest = DocumentProgress::digest(&origin, text);
        let at = match self.documents.iter().position(|document| document.digest == digest) {
            Some(at) => at,
            None => self.documents.len(),
        };
        let n_before = self.documents.get(at).map_or(0, |document| document.n_read as usize);
        let Some(read) = tokens.get(..n_before).filter(|read| read.len() < tokens.len()) else {
            // It may have been stopped between the last token and the end of the turn.
            if self.reading == Some(at) {
                self.end_turn()?;
            }
            return Ok(0);
        };
        read.iter().for_each(|&id| origin.move_past(self.model.tokenizer().token_bytes(id)));
        if self.reading.is_some_and(|reading| reading != at) {
            self.end_turn()?;
        }
        let goes_on = self.reading.is_some();
        self.begin_document(digest)?;
        let n_read = self.ingest_tokens(&tokens, n_before, goes_on, &mut origin, None, progress)?;
        self.end_turn()?;
        Ok(n_read - n_before)
    }

    /// Ends a document that reading stopped in: what comes now is not part of it.
    pub(crate) fn end_document(&mut self) -> Result<(), SessionError> {
        if self.reading.is_some() { self.end_turn() } else { Ok(()) }
    }

    /// What is read from now until the turn ends is part of this document.
    pub(crate) fn begin_document(&mut self, digest: [u8; 32]) -> Result<(), SessionError> {
        self.log(|| Event::Document(digest))?;
        let known = self.documents.iter().position(|document| document.digest == digest);
        self.reading = Some(known.unwrap_or(self.documents.len()));
        if known.is_none() {
            self.documents.push(DocumentProgress { digest, n_read: 0 });
        }
        Ok(())
    }

    /// Reads tokens from number `n_read` on; returns how many have been read then. A text that
    /// `goes_on` is read as if it had never been stopped: nothing came in between.
    fn ingest_tokens(
        &mut self,
        tokens: &[u32],
        mut n_read: usize,
        goes_on: bool,
        origin: &mut Origin,
        mut observer: Option<&mut Observer<'_>>,
        progress: &mut dyn FnMut(&Self, usize, usize) -> ControlFlow<()>,
    ) -> Result<usize, SessionError> {
        self.check_dense(tokens.len() - n_read)?;
        let mut starts = Vec::new();
        if self.reads_apart() && observer.is_none() {
            if self.sections().recalled > 0 {
                // It would be seen.
                self.log(|| Event::EndRecall)?;
                self.end_recall();
            }
            starts = self.paragraph_starts(tokens);
            starts.retain(|&start| start > n_read || start == n_read && goes_on);
            if !goes_on {
                starts.insert(0, n_read);
            }
        }
        let mut read = Ok(());
        while read.is_ok() && n_read < tokens.len() {
            let n = self.next_chunk(tokens.len() - n_read);
            read = self.recall_for_chunk(&tokens[n_read..n_read + n]);
            // A recall may leave room for a shorter chunk.
            let n = self.next_chunk(n);
            let chunk = &tokens[n_read..n_read + n];
            if read.is_ok() {
                let starts = within(&starts, &(n_read..n_read + n));
                read = self.read_chunk(chunk, &starts, origin, observer.as_deref_mut());
            }
            if read.is_ok() {
                n_read += n;
                if progress(self, n_read, tokens.len()).is_break() {
                    break;
                }
            }
        }
        self.predict_after(read)?;
        Ok(n_read)
    }

    /// Whether paragraphs of documents do not see each other. `sink` does as `remember` does, for they
    /// are equal when nothing is recalled.
    fn reads_apart(&self) -> bool {
        matches!(self.config.policy, Policy::Sink | Policy::Remember)
            && self.config.document_context == DocumentContext::Paragraph
            && !self.config.recall.on_ingest
    }

    /// Which tokens begin a paragraph. Short paragraphs are joined, as blocks join them.
    fn paragraph_starts(&self, tokens: &[u32]) -> Vec<usize> {
        let least = self.config.recall.sizes.target() / 3;
        let lines = |text: &[u8]| text.iter().filter(|&&byte| byte == b'\n').count();
        let mut starts = vec![0];
        let (mut n_lines, mut first) = (0, 0);
        for (i, &id) in tokens.iter().enumerate() {
            let text = self.model.tokenizer().token_bytes(id);
            if text.trim_ascii().is_empty() {
                n_lines += lines(text);
                continue;
            }
            if n_lines >= 2 && i - first >= least {
                starts.push(i);
                first = i;
            }
            n_lines = lines(&text[text.trim_ascii_end().len()..]);
        }
        starts
    }

    /// Recalls what is relevant to text that is about to be read, if that is asked for.
    fn recall_for_chunk(&mut self, chunk: &[u32]) -> Result<(), SessionError> {
        if self.config.recall.on_ingest && self.recorder.is_some() {
            let query = self.text_of(&chunk[..chunk.len().min(QUERY_TOKENS)]);
            self.recall_beside_window(&query)?;
        }
        Ok(())
    }
}
