//! Reads documents: text that is not part of a conversation.

use std::ops::ControlFlow;

use everstream_model::Model;
use sha2::{Digest, Sha256};

use crate::saved::Event;
use crate::session::{QUERY_TOKENS, encode, within};
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

/// A document that is read chunk by chunk, by [`Session::ingest_next`].
#[derive(Debug)]
pub struct Ingest {
    tokens: Vec<u32>,
    n_read: usize,
    /// Tokens that had been read before.
    n_before: usize,
    starts: Vec<usize>,
    origin: Origin,
    digest: [u8; 32],
}

impl Ingest {
    /// A document that is to be read by a session of this model, encoded: what takes long of a long
    /// document, and needs no session.
    ///
    /// # Errors
    ///
    /// [`SessionError::MissingByte`].
    pub fn new(model: &Model, text: &str, origin: Origin) -> Result<Self, SessionError> {
        let (tokens, digest) = (encode(model, text)?, DocumentProgress::digest(&origin, text));
        Ok(Self { tokens, n_read: 0, n_before: 0, starts: Vec::new(), origin, digest })
    }

    /// Tokens of the document that have been read.
    #[must_use]
    pub fn n_read(&self) -> usize {
        self.n_read
    }

    /// Of these, those that had been read by an earlier [`Session::begin_ingest`].
    #[must_use]
    pub fn n_before(&self) -> usize {
        self.n_before
    }

    /// Tokens of the document.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    fn is_read(&self) -> bool {
        self.n_read == self.tokens.len()
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
        origin: Origin,
        mut observer: Option<&mut Observer<'_>>,
        progress: &mut dyn FnMut(&Self, usize, usize) -> ControlFlow<()>,
    ) -> Result<usize, SessionError> {
        self.end_document()?;
        let mut ingest = Ingest::new(&self.model, text, origin)?;
        let n_tokens = ingest.n_tokens();
        self.check_dense(n_tokens)?;
        if observer.is_none() {
            ingest.starts = self.document_starts(&ingest.tokens, 0, false)?;
        }
        let mut read = Ok(());
        while read.is_ok() && !ingest.is_read() {
            read = self.ingest_chunk(&mut ingest, observer.as_deref_mut());
            if read.is_ok() && progress(self, ingest.n_read, n_tokens).is_break() {
                break;
            }
        }
        self.predict_after(read)?;
        self.end_turn()?;
        Ok(ingest.n_read)
    }

    /// As [`Session::ingest`], but what was read of this document before is not read again: a
    /// session that was stopped while it read goes on there. `progress` hears of all tokens, and of the
    /// last ones when the document has ended.
    ///
    /// # Errors
    ///
    /// As [`Session::ingest`].
    pub fn ingest_rest(
        &mut self,
        text: &str,
        origin: Origin,
        progress: &mut dyn FnMut(&Self, usize, usize) -> ControlFlow<()>,
    ) -> Result<usize, SessionError> {
        let mut ingest = Ingest::new(&self.model, text, origin)?;
        self.begin_ingest(&mut ingest)?;
        while self.ingest_next(&mut ingest)? {
            if progress(self, ingest.n_read, ingest.n_tokens()).is_break() {
                self.stop_ingest()?;
                return Ok(ingest.n_read - ingest.n_before);
            }
        }
        if ingest.n_read > ingest.n_before {
            let _ = progress(self, ingest.n_read, ingest.n_tokens());
        }
        Ok(ingest.n_read - ingest.n_before)
    }

    /// Begins to read a document, as [`Session::ingest_rest`] does; it is to be read by
    /// [`Session::ingest_next`] before anything else is: for those who serve several streams and let
    /// none wait for another's long document.
    ///
    /// # Errors
    ///
    /// As [`Session::ingest`].
    pub fn begin_ingest(&mut self, ingest: &mut Ingest) -> Result<(), SessionError> {
        let digest = ingest.digest;
        let at = match self.documents.iter().position(|document| document.digest == digest) {
            Some(at) => at,
            None => self.documents.len(),
        };
        let n_before = self.documents.get(at).map_or(0, |document| document.n_read as usize);
        let n_before = n_before.min(ingest.n_tokens());
        (ingest.n_read, ingest.n_before) = (n_before, n_before);
        if ingest.is_read() {
            // It may have been stopped between the last token and the end of the turn.
            return if self.reading == Some(at) { self.end_turn() } else { Ok(()) };
        }
        for &id in &ingest.tokens[..n_before] {
            ingest.origin.move_past(self.model.tokenizer().token_bytes(id));
        }
        if self.reading.is_some_and(|reading| reading != at) {
            self.end_turn()?;
        }
        let goes_on = self.reading.is_some();
        self.begin_document(digest)?;
        self.check_dense(ingest.n_tokens() - n_before)?;
        ingest.starts = self.document_starts(&ingest.tokens, n_before, goes_on)?;
        Ok(())
    }

    /// Reads the next chunk of a document, and ends its turn when all of it was read. Returns whether
    /// there is more.
    ///
    /// # Errors
    ///
    /// As [`Session::ingest`].
    pub fn ingest_next(&mut self, ingest: &mut Ingest) -> Result<bool, SessionError> {
        if ingest.is_read() {
            return Ok(false);
        }
        let read = self.ingest_chunk(ingest, None);
        if read.is_err() || ingest.is_read() {
            self.predict_after(read)?;
            self.end_turn()?;
        }
        Ok(!ingest.is_read())
    }

    /// Ends a document where its reading stopped; [`Session::begin_ingest`] goes on there.
    ///
    /// # Errors
    ///
    /// As [`Session::ingest`].
    pub fn stop_ingest(&mut self) -> Result<(), SessionError> {
        self.predict()?;
        self.end_document()
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

    /// Which tokens of a document see nothing of the window before them, from number `n_read` on. A
    /// text that `goes_on` is read as if it had never been stopped: nothing came in between.
    fn document_starts(
        &mut self,
        tokens: &[u32],
        n_read: usize,
        goes_on: bool,
    ) -> Result<Vec<usize>, SessionError> {
        if !self.reads_apart() {
            return Ok(Vec::new());
        }
        if self.sections().recalled > 0 {
            // It would be seen.
            self.log(|| Event::EndRecall)?;
            self.end_recall();
        }
        let mut starts = self.paragraph_starts(tokens);
        starts.retain(|&start| start > n_read || start == n_read && goes_on);
        if !goes_on {
            starts.insert(0, n_read);
        }
        Ok(starts)
    }

    /// Reads one chunk of a document.
    fn ingest_chunk(
        &mut self,
        ingest: &mut Ingest,
        observer: Option<&mut Observer<'_>>,
    ) -> Result<(), SessionError> {
        let rest = &ingest.tokens[ingest.n_read..];
        let n = self.next_chunk(rest.len());
        self.recall_for_chunk(&rest[..n])?;
        // A recall may leave room for a shorter chunk.
        let n = self.next_chunk(n);
        let starts = within(&ingest.starts, &(ingest.n_read..ingest.n_read + n));
        self.read_chunk(&rest[..n], &starts, &mut ingest.origin, observer)?;
        ingest.n_read += n;
        Ok(())
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
