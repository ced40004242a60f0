//! Perplexity along a long text.

use super::{Reads, Task, TaskOptions, Total};
use crate::data::records;
use crate::rng::for_stream;
use crate::{EvalError, Form, Question, Stream};

/// A text in pieces; before some of them, as evenly as can be, it is measured how surprised the model is by the
/// next one. The groups are tenths of the text.
///
/// Source: the protocol of Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023,
/// arXiv:2309.17453, section 4.1, on pieces; `everstream perplexity` scores every token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ppl;

/// Bytes of a piece, about, and of a token of English text.
const PIECE_BYTES: usize = 2000;
const TOKEN_BYTES: u64 = 4;
/// Tokens that are read unless something else is asked for.
const N_TOKENS: u64 = 16_000;
/// Groups of a text.
const N_GROUPS: usize = 10;

impl Task for Ppl {
    fn name(&self) -> &'static str {
        "ppl"
    }

    fn reads(&self) -> Reads {
        Reads::Texts
    }

    fn streams(&self, options: &TaskOptions) -> Result<Vec<Stream>, EvalError> {
        let mut texts = texts(options)?;
        for_stream(options.seed, 0).shuffle(&mut texts);
        let n_tokens = options.distances.iter().max().copied().unwrap_or(N_TOKENS);
        let n_bytes = (n_tokens * TOKEN_BYTES) as usize;
        let n_least = if options.distances.is_empty() { PIECE_BYTES } else { n_bytes };
        let longest = texts.iter().map(String::len).max().unwrap_or(0);
        let text = texts.into_iter().find(|text| text.len() >= n_least).unwrap_or_default();
        let mut pieces = pieces(&text);
        if pieces.len() < 2 {
            return Err(EvalError::Setting(format!(
                "no text has as many tokens as are asked for, the longest about {}: use a shorter --distance, or another --data",
                longest as u64 / TOKEN_BYTES
            )));
        }
        let mut n_read = 0;
        pieces.retain(|piece| {
            let is_wanted = n_read < n_bytes;
            n_read += piece.len();
            is_wanted
        });
        // The first piece is read before anything is asked.
        let n_questions = options.limit.min(pieces.len() - 1);
        let questions = (0..n_questions).map(|i| {
            let after = 1 + i * (pieces.len() - 1) / n_questions;
            let tenth = after * N_GROUPS / pieces.len();
            let tokens = tenth as u64 * n_tokens / N_GROUPS as u64;
            Question {
                id: after.to_string(),
                group: tokens.to_string(),
                after,
                query: String::new(),
                prompt: String::new(),
                references: vec![pieces[after].clone()],
                evidence: Vec::new(),
                form: Form::scored(0),
            }
        });
        Ok(vec![Stream { questions: questions.collect(), documents: pieces.clone() }])
    }

    fn score(&self, _answer: &str, _question: &Question) -> Vec<(&'static str, f64)> {
        Vec::new()
    }

    fn totals(&self) -> &'static [Total] {
        &[Total::Perplexity]
    }

    fn group_name(&self) -> &'static str {
        "from token"
    }
}

/// The texts of JSON Lines with `text`, or the whole file.
fn texts(options: &TaskOptions) -> Result<Vec<String>, EvalError> {
    let path = options.data()?;
    match path.extension().is_some_and(|extension| extension == "txt" || extension == "md") {
        true => Ok(vec![fs_err::read_to_string(path)?]),
        false => records(path)?.iter().map(|r| Ok(r.text("text")?.to_owned())).collect(),
    }
}

/// Cut behind the first end of a line, or the first space, at which a piece is long enough.
fn pieces(text: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while rest.len() > PIECE_BYTES {
        let end = |least: usize, mark: char| -> Option<usize> {
            let least = rest.ceil_char_boundary(least);
            rest[least..].find(mark).map(|at| least + at + 1)
        };
        let line = end(PIECE_BYTES, '\n').filter(|&end| end <= 2 * PIECE_BYTES);
        let Some(end) = line.or_else(|| end(PIECE_BYTES, ' ')) else { break };
        let (piece, others) = rest.split_at(end);
        pieces.push(piece.to_owned());
        rest = others;
    }
    if !rest.trim().is_empty() {
        pieces.push(rest.to_owned());
    }
    pieces
}
