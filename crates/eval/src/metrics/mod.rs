//! Scores of an answer against what was expected, as the field's public scorers compute them.
//!
//! They agree with `rouge-score`, `sacrebleu` and the published definitions of SQuAD's and TriviaQA's
//! scores on the golden file `tests/golden/metrics.json`.

mod answer;
mod bleu;
mod bootstrap;
mod distinct;
mod no_answer;
mod porter;
mod rouge;

pub use answer::{Normalisation, exact_match, f1, f1_of_lists};
pub use bleu::Bleu;
pub use bootstrap::{Interval, Statistic};
pub use distinct::distinct_n;
pub use no_answer::{Doubt, best_with_silence};
pub use porter::stem;
pub use rouge::{Rouge, RougeScore, rouge};

use std::collections::HashMap;
use std::hash::Hash;

/// How often each item occurs.
fn counts<T: Hash + Eq>(items: impl IntoIterator<Item = T>) -> HashMap<T, usize> {
    let mut counts = HashMap::new();
    for item in items {
        *counts.entry(item).or_default() += 1;
    }
    counts
}

/// How many items two collections share, counting repetitions.
fn n_common<T: Hash + Eq>(a: &HashMap<T, usize>, b: &HashMap<T, usize>) -> usize {
    a.iter().map(|(item, n)| n.min(b.get(item).unwrap_or(&0))).sum()
}
