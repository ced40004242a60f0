//! What is asked. A task is one file with one type here, and a line in [`by_name`].

mod books;
mod facts;
mod locomo;
mod longeval;
mod meetings;
mod needles;
mod news;
mod squad;
mod stories;
mod triviaqa;

use std::path::PathBuf;

use crate::metrics::{Normalisation, Rouge, exact_match, f1, rouge};
use crate::rng::for_stream;
use crate::{EvalError, Question, Stream};

/// The names of all tasks.
pub const ALL: [&str; 14] = [
    "ppl",
    "squad",
    "triviaqa",
    "multi-news",
    "writing-prompts",
    "fandom",
    "stream-eval",
    "passkey",
    "number",
    "kv-retrieval",
    "multi-needle",
    "longeval",
    "locomo",
    "qmsum",
];

/// The task of this name.
#[must_use]
pub fn by_name(name: &str) -> Option<Box<dyn Task>> {
    Some(match name {
        "ppl" => Box::new(books::Ppl),
        "squad" => Box::new(squad::Squad),
        "triviaqa" => Box::new(triviaqa::TriviaQa),
        "multi-news" => Box::new(news::MultiNews),
        "writing-prompts" => Box::new(stories::WRITING_PROMPTS),
        "fandom" => Box::new(stories::FANDOM),
        "stream-eval" => Box::new(facts::StreamEval),
        "passkey" => Box::new(needles::PASSKEY),
        "number" => Box::new(needles::NUMBER),
        "kv-retrieval" => Box::new(needles::KV_RETRIEVAL),
        "multi-needle" => Box::new(needles::MULTI_NEEDLE),
        "longeval" => Box::new(longeval::LongEval),
        "locomo" => Box::new(locomo::LoCoMo),
        "qmsum" => Box::new(meetings::QmSum),
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
    /// Other items that are read after those that questions are about; without it, as many as the task says.
    pub distractors: Option<usize>,
    /// Whether questions without an answer are asked as well, where the data has some.
    pub unanswerable: bool,
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

    /// The distances asked for, or these.
    ///
    /// # Errors
    ///
    /// [`EvalError::Setting`] if there are fewer questions than distances.
    fn distances_or(&self, default: &[u64]) -> Result<Vec<u64>, EvalError> {
        let distances = if self.distances.is_empty() { default } else { &self.distances };
        if self.limit < distances.len() {
            let n = distances.len();
            return Err(EvalError::Setting(format!(
                "--limit: at least {n}, one for each distance"
            )));
        }
        Ok(distances.to_vec())
    }

    /// Streams of `items` in an order drawn by seed, each item in one stream: those that questions are about,
    /// then the distractors; `make` is given those of one stream and how many questions it may ask. Each stream
    /// has its share of the limit, but one question for each item if that is more: many questions about
    /// few items say less.
    ///
    /// # Errors
    ///
    /// [`EvalError::Setting`] if there are too few items for one stream; `what` says what they are.
    fn draw<T>(
        &self,
        mut items: Vec<T>,
        draw: Draw,
        make: impl Fn(&[T], usize) -> Stream,
    ) -> Result<Vec<Stream>, EvalError> {
        for_stream(self.seed, 0).shuffle(&mut items);
        let n_items = self.distractors.unwrap_or(draw.distractors).saturating_add(draw.asked);
        if items.len() < n_items {
            let advice = match items.len() < draw.asked {
                true => "use a larger file",
                false => "use fewer --distractors",
            };
            return Err(EvalError::Setting(format!(
                "{} has {} {}, but a stream takes {n_items}: {advice}",
                self.data()?.display(),
                items.len(),
                draw.what
            )));
        }
        let share = self.limit.div_ceil(items.len() / n_items).max(draw.asked);
        let mut left = self.limit;
        let mut streams = Vec::new();
        for chosen in items.chunks_exact(n_items) {
            if left == 0 {
                break;
            }
            let stream = make(chosen, left.min(share));
            left -= stream.questions.len();
            streams.push(stream);
        }
        Ok(streams)
    }
}

/// What a stream takes of a file's items.
struct Draw {
    /// Items that questions are about.
    asked: usize,
    /// Items that come after them, unless something else is asked for.
    distractors: usize,
    /// What the items are, for messages.
    what: &'static str,
}

/// What makes a task's streams longer or shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// A file of items, of which some are distractors.
    Items,
    /// A file of streams.
    Streams,
    /// A file of long texts, read as far as the distance says.
    Texts,
    /// No file: distances.
    Nothing,
}

/// Makes streams and scores answers.
pub trait Task: Send + Sync {
    /// The name on the command line and in results.
    fn name(&self) -> &'static str;

    /// What of [`TaskOptions`] it reads, besides limit and seed.
    fn reads(&self) -> Reads;

    /// The streams; the same options give the same streams.
    ///
    /// # Errors
    ///
    /// [`EvalError`] if the data cannot be read or is not of the task's format.
    fn streams(&self, options: &TaskOptions) -> Result<Vec<Stream>, EvalError>;

    /// The metrics of an answer by name, each from 0 to 1; always the same names in the same order.
    fn score(&self, answer: &str, question: &Question) -> Vec<(&'static str, f64)>;

    /// What is said of all answers together, beside the means of their scores.
    fn totals(&self) -> &'static [Total] {
        &[]
    }

    /// What [`Question::group`] is.
    fn group_name(&self) -> &'static str {
        "group"
    }
}

/// A metric of many answers that is no mean of theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Total {
    /// `e` to the mean negative log likelihood of the references' tokens.
    Perplexity,
    /// Corpus BLEU against the first references.
    Bleu,
    /// Distinct runs of so many words among all of all answers.
    Distinct(usize),
    /// F1 and exact match if the least likely answers are withheld, as many as is best.
    NoAnswer,
}

/// The first streams, with as many questions as the limit allows.
fn up_to(mut limit: usize, streams: Vec<Stream>) -> Vec<Stream> {
    let mut kept = Vec::new();
    for mut stream in streams {
        stream.questions.truncate(limit);
        limit -= stream.questions.len();
        if !stream.questions.is_empty() {
            kept.push(stream);
        }
    }
    kept
}

/// All questions are asked at the end.
fn asked_at_end(mut stream: Stream) -> Stream {
    let end = stream.documents.len();
    stream.questions.iter_mut().for_each(|question| question.after = end);
    stream
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

/// F1 of ROUGE-1, -2, -L and -Lsum against the first reference.
fn rouge_scores(answer: &str, question: &Question) -> Vec<(&'static str, f64)> {
    let Rouge { rouge1, rouge2, rouge_l, rouge_lsum } =
        question.references.first().map_or(Rouge::default(), |gold| rouge(answer, gold));
    let named =
        [("rouge1", rouge1), ("rouge2", rouge2), ("rougeL", rouge_l), ("rougeLsum", rouge_lsum)];
    named.map(|(name, score)| (name, score.f1())).to_vec()
}

/// The share of the references, from 0 to 1, that the answer contains as words of their own.
fn share_contained(answer: &str, question: &Question) -> f64 {
    let words = |text: &str| -> Vec<String> {
        let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        words.map(str::to_lowercase).collect()
    };
    let answer = words(answer);
    let is_there = |reference: &&String| {
        let reference = words(reference);
        !reference.is_empty() && answer.windows(reference.len()).any(|run| run == reference)
    };
    let n_there = question.references.iter().filter(is_there).count();
    n_there as f64 / question.references.len().max(1) as f64
}

/// 1 if the answer contains a reference as words of its own.
fn contains(answer: &str, question: &Question) -> Vec<(&'static str, f64)> {
    vec![("accuracy", f64::from(share_contained(answer, question) > 0.0))]
}
