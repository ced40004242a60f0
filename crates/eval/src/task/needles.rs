//! Something small, hidden in much that is not asked for.

use super::{Reads, Task, TaskOptions, asked_at_end, share_contained};
use crate::rng::{Rng, for_stream};
use crate::{EvalError, Form, Question, Stream};

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
    /// As number, with several numbers for each keeper, all of which are asked for; source: Hsieh et al.,
    /// "RULER: What's the Real Context Size of Your Long-Context Language Models?", 2024, arXiv:2404.06654,
    /// there "multi-values".
    Multi,
}

pub(super) const PASSKEY: Needle = Needle { name: "passkey", kind: Kind::Passkey };
pub(super) const NUMBER: Needle = Needle { name: "number", kind: Kind::Number };
pub(super) const KV_RETRIEVAL: Needle = Needle { name: "kv-retrieval", kind: Kind::KeyValue };
pub(super) const MULTI_NEEDLE: Needle = Needle { name: "multi-needle", kind: Kind::Multi };

/// Questions about one stream at most: as many keepers have names.
const MOST_QUESTIONS: usize = 400;
/// Numbers that belong together in [`Kind::Multi`].
const N_TOGETHER: usize = 4;
/// Tokens of a piece of filler, about.
const FILLER_TOKENS: u64 = 25;
/// Tokens of what is hidden, about.
const NEEDLE_TOKENS: u64 = 40;
/// Tokens of a pair of identifiers, about.
const PAIR_TOKENS: u64 = 40;
const FILLER: &str =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

impl Task for Needle {
    fn name(&self) -> &'static str {
        self.name
    }

    fn reads(&self) -> Reads {
        Reads::Nothing
    }

    fn streams(&self, options: &TaskOptions) -> Result<Vec<Stream>, EvalError> {
        let distances = options.distances_or(&[4_000, 16_000])?;
        let n = distances.len();
        let of_each = |i: usize| options.limit / n + usize::from(i < options.limit % n);
        if of_each(0) > MOST_QUESTIONS {
            let most = MOST_QUESTIONS * n;
            return Err(EvalError::Setting(format!("--limit: at most {most} for {n} distances")));
        }
        let per_question = if matches!(self.kind, Kind::Multi) { N_TOGETHER } else { 1 };
        let least = (of_each(0) * per_question) as u64 * NEEDLE_TOKENS;
        if let Some(short) = distances.iter().find(|&&distance| distance < least) {
            return Err(EvalError::Setting(format!(
                "--distance {short} has no room for {} questions: use at least {least}, or a smaller --limit",
                of_each(0)
            )));
        }
        let streams = distances.iter().enumerate();
        Ok(streams
            .map(|(i, &distance)| {
                let mut rng = for_stream(options.seed, i);
                match self.kind {
                    Kind::Passkey => hidden(&mut rng, distance, of_each(i), 5),
                    Kind::Number => hidden(&mut rng, distance, of_each(i), 10),
                    Kind::KeyValue => pairs(&mut rng, distance, of_each(i)),
                    Kind::Multi => several(&mut rng, distance, of_each(i)),
                }
            })
            .collect())
    }

    fn score(&self, answer: &str, question: &Question) -> Vec<(&'static str, f64)> {
        vec![("accuracy", share_contained(answer, question))]
    }

    fn group_name(&self) -> &'static str {
        "tokens of the stream"
    }
}

/// Filler as long as `length`, in it one number for each question, at even depths; each is asked for by the
/// name of its keeper, so that one stream serves them all.
fn hidden(rng: &mut Rng, length: u64, n_questions: usize, n_digits: usize) -> Stream {
    let what = if n_digits > 5 { "number" } else { "pass key" };
    let mut needles = Vec::new();
    let mut questions = Vec::new();
    for number in 0..n_questions {
        let (digits, keeper) = (digits(rng, n_digits), keeper(number));
        needles.push((
            number,
            format!("The {what} of {keeper} is {digits}. Remember it. {digits} is the {what} of {keeper}.\n\n"),
        ));
        let question = format!("What is the {what} of {keeper}?");
        questions.push(Question {
            prompt: format!("{question} The {what} of {keeper} is"),
            form: Form::line(16),
            ..asked(length, number, question, vec![digits])
        });
    }
    in_filler(length, needles, questions)
}

/// As [`hidden`], with several numbers for each question; those of one question are far from each other.
fn several(rng: &mut Rng, length: u64, n_questions: usize) -> Stream {
    let mut needles = Vec::new();
    let ask = |number| {
        let question = format!("What are the {N_TOGETHER} magic numbers of {}?", keeper(number));
        Question {
            prompt: format!("{question} The magic numbers of {} are", keeper(number)),
            form: Form::line(48),
            ..asked(length, number, question, Vec::new())
        }
    };
    let mut questions: Vec<Question> = (0..n_questions).map(ask).collect();
    for _ in 0..N_TOGETHER {
        for (number, question) in questions.iter_mut().enumerate() {
            let digits = digits(rng, 5);
            needles.push((
                number,
                format!("One of the magic numbers of {} is {digits}.\n\n", keeper(number)),
            ));
            question.references.push(digits);
        }
    }
    in_filler(length, needles, questions)
}

/// A number that no model writes shorter: it does not begin with zero.
fn digits(rng: &mut Rng, n: usize) -> String {
    let first = char::from(b'0' + rng.u8(1..10));
    std::iter::once(first).chain((1..n).map(|_| char::from(b'0' + rng.u8(..10)))).collect()
}

/// What all questions of this file have in common.
fn asked(length: u64, number: usize, query: String, references: Vec<String>) -> Question {
    Question {
        id: format!("{length}/{number}"),
        group: length.to_string(),
        after: 0,
        prompt: String::new(),
        query,
        references,
        evidence: Vec::new(),
        form: Form::line(32),
    }
}

/// Filler as long as `length`, and at even depths the needles: the number of a question, and what is hidden.
fn in_filler(length: u64, needles: Vec<(usize, String)>, questions: Vec<Question>) -> Stream {
    let n_pieces = (length / FILLER_TOKENS).max(needles.len().max(1) as u64) as usize;
    let n_needles = needles.len();
    let mut stream = Stream { documents: Vec::new(), questions };
    let mut needles = needles.into_iter().enumerate().peekable();
    for piece in 0..n_pieces {
        let is_due = |(i, _): &(usize, _)| i * n_pieces <= piece * n_needles;
        while let Some((_, (question, text))) = needles.next_if(is_due) {
            stream.questions[question].evidence.push(stream.documents.len());
            stream.documents.push(text);
        }
        stream.documents.push(format!("{FILLER}\n\n"));
    }
    asked_at_end(stream)
}

/// Somebody with two names whom no other question of a stream is about.
fn keeper(number: usize) -> String {
    const NAMES: [&str; 20] = [
        "Aldric", "Beatrix", "Cosimo", "Delphine", "Evander", "Fiorella", "Gideon", "Hermia",
        "Isidor", "Jocasta", "Kasimir", "Leonie", "Magnus", "Ninette", "Octavia", "Phineas",
        "Rosamund", "Silvan", "Tabitha", "Ursula",
    ];
    let (first, round) = (number % NAMES.len(), number / NAMES.len());
    format!("{} {}", NAMES[first], NAMES[(first + round + 1) % NAMES.len()])
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
                prompt: format!("{question} \"{key}\": \""),
                evidence: vec![i],
                ..asked(length, n_asked, question, vec![value.clone()])
            });
            n_asked += 1;
        }
        stream.documents.push(format!("\"{key}\": \"{value}\"\n\n"));
    }
    asked_at_end(stream)
}
