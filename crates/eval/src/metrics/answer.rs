//! Exact match and F1 over words, for short answers.

use super::{counts, n_common, stem};

/// What is taken out of two answers before they are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalisation {
    /// Case, ASCII punctuation, articles, and more than one space; as the evaluation script of SQuAD
    /// v2.0 (Rajpurkar, Jia and Liang, "Know What You Don't Know", 2018, arXiv:1806.03822). "mother-in-law" is
    /// one word. Two empty answers are equal: no answer is the right one to an unanswerable question.
    Squad,
    /// As SQuAD, but punctuation, underscores and four more quotation marks become spaces; as the
    /// evaluation script of TriviaQA (Joshi et al., 2017, arXiv:1705.03551). "mother-in-law" is three
    /// words. Nothing in common scores 0, also if both are empty.
    TriviaQa,
    /// As SQuAD, but "and" is taken out as well, F1 compares stems, exact match asks for the same words in
    /// any order and number, and nothing in common scores 0; as the evaluation script of LoCoMo (Maharana et
    /// al., 2024, arXiv:2402.17753).
    LoCoMo,
}

/// The words of an answer.
fn words(text: &str, normalisation: Normalisation) -> Vec<String> {
    let text = text.to_lowercase();
    let kept: String = match normalisation {
        Normalisation::Squad | Normalisation::LoCoMo => {
            text.chars().filter(|c| !c.is_ascii_punctuation()).collect()
        }
        Normalisation::TriviaQa => {
            let is_mark = |c: char| c.is_ascii_punctuation() || "‘’´`".contains(c);
            text.chars().map(|c| if is_mark(c) { ' ' } else { c }).collect()
        }
    };
    let articles: &[&str] = match normalisation {
        Normalisation::LoCoMo => &["a", "an", "the", "and"],
        _ => &["a", "an", "the"],
    };
    without(articles, &kept).split_whitespace().map(str::to_owned).collect()
}

/// A space in place of each of these words that stands between characters that are not of words.
fn without(words: &[&str], text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_of_word) {
        let (before, from) = rest.split_at(start);
        let (word, after) = from.split_at(from.find(|c| !is_of_word(c)).unwrap_or(from.len()));
        out.push_str(before);
        out.push_str(if words.contains(&word) { " " } else { word });
        rest = after;
    }
    out + rest
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric()
}

/// 1 if the answers are the same words in the same order, otherwise 0.
#[must_use]
pub fn exact_match(answer: &str, gold: &str, normalisation: Normalisation) -> f64 {
    let (mut answer, mut gold) = (words(answer, normalisation), words(gold, normalisation));
    if normalisation == Normalisation::LoCoMo {
        for words in [&mut answer, &mut gold] {
            words.sort_unstable();
            words.dedup();
        }
    }
    f64::from(answer == gold)
}

/// The harmonic mean of the share of the answer's words that are in `gold`, and of the share of
/// `gold`'s words that are in the answer; from 0 to 1.
#[must_use]
pub fn f1(answer: &str, gold: &str, normalisation: Normalisation) -> f64 {
    let (mut answer, mut gold) = (words(answer, normalisation), words(gold, normalisation));
    if normalisation == Normalisation::LoCoMo {
        for word in answer.iter_mut().chain(&mut gold) {
            *word = stem(word);
        }
    }
    if normalisation == Normalisation::Squad && (answer.is_empty() || gold.is_empty()) {
        return f64::from(answer == gold);
    }
    let n_common = n_common(&counts(&answer), &counts(&gold)) as f64;
    if n_common == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (n_common / answer.len() as f64, n_common / gold.len() as f64);
    2.0 * precision * recall / (precision + recall)
}

/// F1 of LoCoMo where several things are asked for: of each part of `gold` between commas, the F1 with the part of
/// the answer that fits it best; their mean.
#[must_use]
pub fn f1_of_lists(answer: &str, gold: &str) -> f64 {
    let best = |gold: &str| {
        let parts = answer.split(',');
        parts.map(|part| f1(part, gold, Normalisation::LoCoMo)).fold(0.0, f64::max)
    };
    gold.split(',').map(best).sum::<f64>() / gold.split(',').count() as f64
}
