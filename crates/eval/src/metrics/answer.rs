//! Exact match and F1 over words, for short answers.

use super::{counts, n_common};

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
}

/// The words of an answer.
fn words(text: &str, normalisation: Normalisation) -> Vec<String> {
    let text = text.to_lowercase();
    let kept: String = match normalisation {
        Normalisation::Squad => text.chars().filter(|c| !c.is_ascii_punctuation()).collect(),
        Normalisation::TriviaQa => {
            let is_mark = |c: char| c.is_ascii_punctuation() || "‘’´`".contains(c);
            text.chars().map(|c| if is_mark(c) { ' ' } else { c }).collect()
        }
    };
    without_articles(&kept).split_whitespace().map(str::to_owned).collect()
}

/// A space in place of each "a", "an" and "the" that stands between characters that are not of words.
fn without_articles(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_of_word) {
        let (before, from) = rest.split_at(start);
        let (word, after) = from.split_at(from.find(|c| !is_of_word(c)).unwrap_or(from.len()));
        out.push_str(before);
        out.push_str(if matches!(word, "a" | "an" | "the") { " " } else { word });
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
    f64::from(words(answer, normalisation) == words(gold, normalisation))
}

/// The harmonic mean of the share of the answer's words that are in `gold`, and of the share of
/// `gold`'s words that are in the answer; from 0 to 1.
#[must_use]
pub fn f1(answer: &str, gold: &str, normalisation: Normalisation) -> f64 {
    let (answer, gold) = (words(answer, normalisation), words(gold, normalisation));
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
