//! How much a text repeats itself.

use std::collections::HashSet;

/// Distinct runs of `n` words among all runs of `n` words, over all texts together; from 0 to 1, and 0
/// if no text has `n` words. Words are what stands between white space.
///
/// Source: Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models", 2016,
/// arXiv:1510.03055, there distinct-1 and distinct-2.
#[must_use]
pub fn distinct_n<'a>(texts: impl IntoIterator<Item = &'a str>, n: usize) -> f64 {
    let (mut distinct, mut total) = (HashSet::new(), 0);
    for text in texts {
        let words: Vec<&str> = text.split_whitespace().collect();
        for run in words.windows(n.max(1)) {
            distinct.insert(run.to_vec());
            total += 1;
        }
    }
    if total == 0 { 0.0 } else { distinct.len() as f64 / f64::from(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_over_all_texts() {
        assert_eq!(distinct_n(["a b a b", "a  b"], 1), 2.0 / 6.0);
        assert_eq!(distinct_n(["a b a b", "a  b"], 2), 2.0 / 4.0);
        assert_eq!(distinct_n(["a b", ""], 3), 0.0);
    }
}
