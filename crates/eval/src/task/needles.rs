//! Something small, hidden in much that is not asked for.

use super::{Task, TaskOptions, contains};
use crate::rng::{Rng, for_stream};
use crate::{EvalError, Question, Stream};

/// Generated: filler as long as the distance, and in it, at even depths, what is asked for at its end: the
/// first question is about as far away as the distance says, the last one about the newest lines.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needle {
    name: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Source: Mohtashami and Jaggi, "Landmark Attention", 2023, arXiv:2305.16300.
    Passkey,
    /// As passkey, with ten digits; source: Zhang et al., "InfiniteBench", 2024, arXiv:2402.13718.
    Number,
    /// Pairs of random identifiers; source: Liu et al., "Lost in the Middle", 2023, arXiv:2307.03172.
    KeyValue,
}

pub(super) const PASSKEY: Needle = Needle { name: "passkey", kind: Kind::Passkey };
pub(super) const NUMBER: Needle = Needle { name: "number", kind: Kind::Number };
pub(super) const KV_RETRIEVAL: Needle = Needle { name: "kv-retrieval", kind: Kind::KeyValue };

/// Questions about one stream at most: as many keepers have names.
const MOST_QUESTIONS: usize = 400;
/// Tokens of a piece of filler, about.
const FILLER_TOKENS: u64 = 25;
/// Tokens of a pair of identifiers, about.
const PAIR_TOKENS: u64 = 40;
const FILLER: &str =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

impl Task for Needle {
    fn name(&self) -> &'static str {
        self.name
    }

    fn streams(&self, options: &TaskOptions) -> Result<Vec<Stream>, EvalError> {
        let mut distances = options.distances.clone();
        if distances.is_empty() {
            distances = vec![4_000, 16_000];
        }
        let n = distances.len();
        let of_each = |i: usize| options.limit / n + usize::from(i < options.limit % n);
        if of_each(0) > MOST_QUESTIONS {
            let most = MOST_QUESTIONS * n;
            return Err(EvalError::Setting(format!("--limit: at most {most} for {n} distances")));
        }
        let streams = distances.iter().enumerate();
        Ok(streams
            .map(|(i, &distance)| {
                let mut rng = for_stream(options.seed, i);
                match self.kind {
                    Kind::Passkey => hidden(&mut rng, distance, of_each(i), 5),
                    Kind::Number => hidden(&mut rng, distance, of_each(i), 10),
                    Kind::KeyValue => pairs(&mut rng, distance, of_each(i)),
                }
            })
            .collect())
    }

    fn score(&self, answer: &str, question: &Question) -> Vec<(&'static str, f64)> {
        contains(answer, question)
    }
}

/// Filler as long as `length`, in it one number for each question, at even depths; each is asked for by the
/// name of its keeper, so that one stream serves them all.
fn hidden(rng: &mut Rng, length: u64, n_questions: usize, n_digits: usize) -> Stream {
    let n_pieces = (length / FILLER_TOKENS).max(n_questions.max(1) as u64) as usize;
    let mut stream = Stream::default();
    let mut n_hidden = 0;
    for piece in 0..n_pieces {
        while n_hidden < n_questions && n_hidden * n_pieces <= piece * n_questions {
            let digits: String = (0..n_digits).map(|_| char::from(b'0' + rng.u8(..10))).collect();
            // What begins with zero is written without it by some models.
            let digits = format!("{}{}", rng.u8(1..10), &digits[1..]);
            let keeper = keeper(n_hidden);
            let what = if n_digits > 5 { "number" } else { "pass key" };
            let question = format!("What is the {what} of {keeper}?");
            stream.questions.push(Question {
                id: format!("{length}/{n_hidden}"),
                group: length.to_string(),
                after: 0,
                prompt: format!("{question} The {what} of {keeper} is"),
                query: question,
                references: vec![digits.clone()],
                evidence: vec![stream.documents.len()],
                max_tokens: 16,
            });
            stream.documents.push(format!(
                "The {what} of {keeper} is {digits}. Remember it. {digits} is the {what} of {keeper}.\n\n"
            ));
            n_hidden += 1;
        }
        stream.documents.push(format!("{FILLER}\n\n"));
    }
    finish(stream)
}

/// Somebody whom no other question of a stream is about.
fn keeper(number: usize) -> String {
    const NAMES: [&str; 20] = [
        "Aldric", "Beatrix", "Cosimo", "Delphine", "Evander", "Fiorella", "Gideon", "Hermia",
        "Isidor", "Jocasta", "Kasimir", "Leonie", "Magnus", "Ninette", "Octavia", "Phineas",
        "Rosamund", "Silvan", "Tabitha", "Ursula",
    ];
    let name = NAMES[number % NAMES.len()];
    match number / NAMES.len() {
        0 => name.to_owned(),
        n => format!("{name} {}", NAMES[(n + number) % NAMES.len()]),
    }
}

/// Pairs of identifiers as long as `length`; some keys are asked for.
fn pairs(rng: &mut Rng, length: u64, n_questions: usize) -> Stream {
    let n_pairs = (length / PAIR_TOKENS).max(n_questions as u64) as usize;
    let mut identifier = || {
        let digits: String =
            (0..16).map(|_| char::from_digit(rng.u32(..16), 16).unwrap_or('0')).collect();
        format!("{}-{}-{}-{}", &digits[..4], &digits[4..8], &digits[8..12], &digits[12..])
    };
    let mut stream = Stream::default();
    let mut n_asked = 0;
    for i in 0..n_pairs {
        let (key, value) = (identifier(), identifier());
        if n_asked < n_questions && n_asked * n_pairs <= i * n_questions {
            let question = format!("What is the value of the key {key}?");
            stream.questions.push(Question {
                id: format!("{length}/{n_asked}"),
                group: length.to_string(),
                after: 0,
                prompt: format!("{question} \"{key}\": \""),
                query: question,
                references: vec![value.clone()],
                evidence: vec![i],
                max_tokens: 32,
            });
            n_asked += 1;
        }
        stream.documents.push(format!("\"{key}\": \"{value}\"\n\n"));
    }
    finish(stream)
}

/// All questions are asked at the end.
fn finish(mut stream: Stream) -> Stream {
    let end = stream.documents.len();
    stream.questions.iter_mut().for_each(|question| question.after = end);
    stream
}
