//! BLEU, as sacrebleu computes it.

use super::{counts, n_common};

/// The longest runs of words that are compared.
const MAX_ORDER: usize = 4;

/// Corpus BLEU with one reference a system: sums over all pairs, divided at the end.
///
/// Source: Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", 2002, ACL; with
/// the tokenisation `13a` and the smoothing `exp` of sacrebleu (Post, "A Call for Clarity in Reporting BLEU
/// Scores", 2018, arXiv:1804.08771).
#[derive(Clone, Debug, Default)]
pub struct Bleu {
    /// Runs of each length that the reference has as well.
    correct: [usize; MAX_ORDER],
    /// Runs of each length.
    total: [usize; MAX_ORDER],
    n_words: usize,
    n_reference_words: usize,
}

impl Bleu {
    /// Adds a pair of texts.
    pub fn add(&mut self, text: &str, reference: &str) {
        let (text, reference) = (words(text), words(reference));
        self.n_words += text.len();
        self.n_reference_words += reference.len();
        for n in 1..=MAX_ORDER {
            let found = counts(text.windows(n));
            self.correct[n - 1] += n_common(&found, &counts(reference.windows(n)));
            self.total[n - 1] += found.values().sum::<usize>();
        }
    }

    /// The counts, for sums over many pairs: runs that the reference has, runs, words, words of the reference.
    #[must_use]
    pub fn counts(&self) -> Vec<f64> {
        let counts = self.correct.iter().chain(&self.total);
        counts.chain([&self.n_words, &self.n_reference_words]).map(|&n| n as f64).collect()
    }

    /// The score of summed [`counts`](Self::counts), from 0 to 100.
    #[must_use]
    pub fn score_of(counts: &[f64]) -> f64 {
        let count = |i: usize| counts[i] as usize;
        let of_each = |first: usize| std::array::from_fn(|n| count(first + n));
        let (correct, total) = (of_each(0), of_each(MAX_ORDER));
        let (n_words, n_reference_words) = (count(2 * MAX_ORDER), count(2 * MAX_ORDER + 1));
        Self { correct, total, n_words, n_reference_words }.score()
    }

    /// The score of all pairs, from 0 to 100.
    #[must_use]
    pub fn score(&self) -> f64 {
        if self.correct.iter().all(|&n| n == 0) {
            return 0.0;
        }
        let mut smoothing = 1.0;
        let mut log_sum = 0.0;
        for (&correct, &total) in self.correct.iter().zip(&self.total) {
            if total == 0 {
                // As sacrebleu: no run of this length anywhere leaves a precision of zero.
                return 0.0;
            }
            let precision = if correct == 0 {
                smoothing *= 2.0;
                1.0 / (smoothing * total as f64)
            } else {
                correct as f64 / total as f64
            };
            log_sum += precision.ln();
        }
        let brevity = match self.n_words < self.n_reference_words {
            true => (1.0 - self.n_reference_words as f64 / self.n_words as f64).exp(),
            false => 1.0,
        };
        100.0 * brevity * (log_sum / MAX_ORDER as f64).exp()
    }
}

/// The tokenisation `13a` of mteval: punctuation apart, but not within numbers.
fn words(text: &str) -> Vec<String> {
    let mut text = text.trim_end().replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    for (entity, character) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
        text = text.replace(entity, character);
    }
    let text = around(&format!(" {text} "));
    let text = between(&text, |a, b| !a.is_ascii_digit() && is_point(b), true);
    let text = between(&text, |a, b| is_point(a) && !b.is_ascii_digit(), false);
    let text = dash(&text);
    text.split_whitespace().map(str::to_owned).collect()
}

fn is_point(c: char) -> bool {
    c == '.' || c == ','
}

/// Spaces around every mark but `'`, `,`, `-` and `.`.
fn around(text: &str) -> String {
    let mut out = String::with_capacity(2 * text.len());
    for c in text.chars() {
        if matches!(c, '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/') {
            out.extend([' ', c, ' ']);
        } else {
            out.push(c);
        }
    }
    out
}

/// Splits pairs of characters, from left to right and each character in at most one pair: a space
/// between them, and one behind (`true`) or before (`false`) both.
fn between(text: &str, is_pair: impl Fn(char, char) -> bool, behind: bool) -> String {
    let mut out = String::with_capacity(2 * text.len());
    let mut chars = text.chars().peekable();
    while let Some(a) = chars.next() {
        match chars.next_if(|&b| is_pair(a, b)) {
            Some(b) if behind => out.extend([a, ' ', b, ' ']),
            Some(b) => out.extend([' ', a, ' ', b]),
            None => out.push(a),
        }
    }
    out
}

/// A dash behind a digit stands apart.
fn dash(text: &str) -> String {
    let mut out = String::with_capacity(2 * text.len());
    let mut chars = text.chars().peekable();
    while let Some(a) = chars.next() {
        out.push(a);
        if a.is_ascii_digit() && chars.next_if_eq(&'-').is_some() {
            out.push_str(" - ");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_marks() {
        assert_eq!(
            words("1,000.5 x,y 10-12 (a)"),
            ["1,000.5", "x", ",", "y", "10", "-", "12", "(", "a", ")"]
        );
    }

    #[test]
    fn the_same_text_scores_100() {
        let mut bleu = Bleu::default();
        assert_eq!(bleu.score(), 0.0);
        bleu.add("the cat sat on the mat", "the cat sat on the mat");
        assert!((bleu.score() - 100.0).abs() < 1e-9);
    }
}
