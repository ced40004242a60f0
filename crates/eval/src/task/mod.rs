//! What is asked. A task is one file with one type here, and a line in [`by_name`].

mod facts;
mod needles;
mod squad;
mod triviaqa;

use std::path::PathBuf;

use crate::metrics::{Normalisation, exact_match, f1};
use crate::rng::for_stream;
use crate::{EvalError, Question, Stream};

/// The names of all tasks.
pub const ALL: [&str; 6] =
    ["squad", "triviaqa", "stream-eval", "passkey", "number", "kv-retrieval"];

/// The task of this name.
#[must_use]
pub fn by_name(name: &str) -> Option<Box<dyn Task>> {
    Some(match name {
        "squad" => Box::new(squad::Squad),
        "triviaqa" => Box::new(triviaqa::TriviaQa),
        "stream-eval" => Box::new(facts::StreamEval),
        "passkey" => Box::new(needles::PASSKEY),
        "number" => Box::new(needles::NUMBER),
        "kv-retrieval" => Box::new(needles::KV_RETRIEVAL),
        _ => return None,
    })
}

/// How a task's streams are made.
#[derive(Clone, Debug)]
pub struct TaskOptions {
    /// The file to read, for tasks that are not generated.
    pub data: Option<PathBuf>,
    /// Questions at most, over all streams.
    pub limit: usize,
    /// Other items that are read after those that questions are about.
    pub distractors: usize,
    /// For tasks that are generated: tokens between evidence and question, about, or of the whole stream.
    pub distances: Vec<u64>,
    /// What is drawn.
    pub seed: u64,
}

impl TaskOptions {
    /// The file.
    ///
    /// # Errors
    ///
    /// [`EvalError::Setting`] without one.
    fn data(&self) -> Result<&PathBuf, EvalError> {
        let message =
            || EvalError::Setting("this task reads a file: name it with --data".to_owned());
        self.data.as_ref().ok_or_else(message)
    }

    /// Streams of `items` in an order drawn by seed, each item in one stream: `asked` that questions are
    /// about, then the distractors; `make` is given those of one stream and how many questions are left.
    ///
    /// # Errors
    ///
    /// [`EvalError::Setting`] if there are too few items for one stream; `what` says what they are.
    fn draw<T>(
        &self,
        mut items: Vec<T>,
        asked: usize,
        what: &str,
        make: impl Fn(&[T], usize) -> Stream,
    ) -> Result<Vec<Stream>, EvalError> {
        for_stream(self.seed, 0).shuffle(&mut items);
        let n_items = self.distractors.saturating_add(asked);
        if items.len() < n_items {
            return Err(EvalError::Setting(format!(
                "{} has {} {what}, but a stream takes {n_items}: use fewer --distractors",
                self.data()?.display(),
                items.len()
            )));
        }
        let mut left = self.limit;
        let mut streams = Vec::new();
        for chosen in items.chunks_exact(n_items) {
            if left == 0 {
                break;
            }
            let stream = make(chosen, left);
            left -= stream.questions.len();
            streams.push(stream);
        }
        Ok(streams)
    }
}

/// Makes streams and scores answers.
pub trait Task: Send + Sync {
    /// The name on the command line and in results.
    fn name(&self) -> &'static str;

    /// The streams; the same options give the same streams.
    ///
    /// # Errors
    ///
    /// [`EvalError`] if the data cannot be read or is not of the task's format.
    fn streams(&self, options: &TaskOptions) -> Result<Vec<Stream>, EvalError>;

    /// The metrics of an answer by name, each from 0 to 1; always the same names in the same order.
    fn score(&self, answer: &str, question: &Question) -> Vec<(&'static str, f64)>;
}

/// Exact match and F1 against the reference that fits best; an unanswerable question wants no answer.
fn best_match(
    answer: &str,
    question: &Question,
    normalisation: Normalisation,
) -> Vec<(&'static str, f64)> {
    let none = [String::new()];
    let references = if question.references.is_empty() { &none[..] } else { &question.references };
    let best = |score: fn(&str, &str, Normalisation) -> f64| {
        references.iter().map(|gold| score(answer, gold, normalisation)).fold(0.0, f64::max)
    };
    vec![("f1", best(f1)), ("em", best(exact_match))]
}

/// 1 if the answer contains a reference as words of its own.
fn contains(answer: &str, question: &Question) -> Vec<(&'static str, f64)> {
    let words = |text: &str| -> Vec<String> {
        let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        words.map(str::to_lowercase).collect()
    };
    let answer = words(answer);
    let is_there = |reference: &String| {
        let reference = words(reference);
        !reference.is_empty() && answer.windows(reference.len()).any(|run| run == reference)
    };
    vec![("accuracy", f64::from(question.references.iter().any(is_there)))]
}
