//! ROUGE, as `rouge-score` computes it with stemming.

use super::{counts, n_common, stem};

/// Of the units of two texts, what they share.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RougeScore {
    /// Of the text's units the share that is in the reference.
    pub precision: f64,
    /// Of the reference's units the share that is in the text.
    pub recall: f64,
}

impl RougeScore {
    fn new(n_common: usize, n_text: usize, n_reference: usize) -> Self {
        let share = |n: usize| if n == 0 { 0.0 } else { n_common as f64 / n as f64 };
        Self { precision: share(n_text), recall: share(n_reference) }
    }

    /// The harmonic mean of both, from 0 to 1.
    #[must_use]
    pub fn f1(self) -> f64 {
        match self.precision + self.recall {
            0.0 => 0.0,
            sum => 2.0 * self.precision * self.recall / sum,
        }
    }
}

/// The four scores of a text.
///
/// Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, ACL.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rouge {
    /// Words.
    pub rouge1: RougeScore,
    /// Pairs of words.
    pub rouge2: RougeScore,
    /// The longest common subsequence of both texts.
    pub rouge_l: RougeScore,
    /// For each line of the reference, the union of its longest common subsequences with the lines of the text.
    pub rouge_lsum: RougeScore,
}

/// Scores `text` as a summary for which somebody wrote `reference`.
#[must_use]
pub fn rouge(text: &str, reference: &str) -> Rouge {
    let lines = |text: &str| -> Vec<Vec<String>> {
        text.split('\n').filter(|line| !line.is_empty()).map(words).collect()
    };
    let (text_lines, reference_lines) = (lines(text), lines(reference));
    let (text, reference) = (words(text), words(reference));
    let n_grams = |n: usize| {
        let (a, b) = (counts(text.windows(n)), counts(reference.windows(n)));
        RougeScore::new(n_common(&a, &b), a.values().sum(), b.values().sum())
    };
    let n_common = common_subsequence(&reference, &text).len();
    Rouge {
        rouge1: n_grams(1),
        rouge2: n_grams(2),
        rouge_l: RougeScore::new(n_common, text.len(), reference.len()),
        rouge_lsum: by_lines(&text_lines, &reference_lines),
    }
}

/// Runs of ASCII letters and digits in lower case; those of more than three are stemmed.
fn words(text: &str) -> Vec<String> {
    let text = text.to_lowercase();
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(|word| if word.len() > 3 { stem(word) } else { word.to_owned() }).collect()
}

/// Where the words of a longest common subsequence stand in `a`; of several, the one that the scorer takes.
fn common_subsequence(a: &[String], b: &[String]) -> Vec<usize> {
    let mut longest = vec![vec![0_usize; b.len() + 1]; a.len() + 1];
    for (i, x) in a.iter().enumerate() {
        for (j, y) in b.iter().enumerate() {
            longest[i + 1][j + 1] =
                if x == y { longest[i][j] + 1 } else { longest[i + 1][j].max(longest[i][j + 1]) };
        }
    }
    let (mut i, mut j) = (a.len(), b.len());
    let mut places = Vec::new();
    while i > 0 && j > 0 {
        if a[i - 1] == b[j - 1] {
            (i, j) = (i - 1, j - 1);
            places.push(i);
        } else if longest[i][j - 1] > longest[i - 1][j] {
            j -= 1;
        } else {
            i -= 1;
        }
    }
    places.reverse();
    places
}

fn by_lines(text: &[Vec<String>], reference: &[Vec<String>]) -> RougeScore {
    let mut left = counts(text.iter().flatten());
    let mut left_of_reference = counts(reference.iter().flatten());
    let mut n_hits = 0;
    for line in reference {
        let mut places: Vec<usize> =
            text.iter().flat_map(|other| common_subsequence(line, other)).collect();
        places.sort_unstable();
        places.dedup();
        for place in places {
            // Each word counts as often as both texts have it.
            let counts = (left.get_mut(&line[place]), left_of_reference.get_mut(&line[place]));
            if let (Some(a @ 1..), Some(b @ 1..)) = counts {
                (*a, *b) = (*a - 1, *b - 1);
                n_hits += 1;
            }
        }
    }
    let n_words = |lines: &[Vec<String>]| lines.iter().map(Vec::len).sum();
    RougeScore::new(n_hits, n_words(text), n_words(reference))
}
