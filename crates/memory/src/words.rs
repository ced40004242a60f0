//! Finds blocks by their words: BM25.
//!
//! What an embedding blurs, a name or a number, words find exactly.

use std::fmt;

use bm25::{Embedder, EmbedderBuilder, Scorer, Tokenizer};

use crate::block::BlockId;

/// Words of a block of 64 tokens, about: what block lengths are compared with.
const MEAN_WORDS: f32 = 45.0;

/// Blocks by their words.
///
/// Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009,
/// Foundations and Trends in Information Retrieval 3(4), section 3.3, with its usual constants
/// k1 = 1.2, b = 0.75. Through the crate `bm25`; how text is split into words is ours.
pub struct WordIndex {
    embedder: Embedder<u32, Words>,
    scorer: Scorer<usize, u32>,
    /// In the order of addition.
    ids: Vec<BlockId>,
}

impl fmt::Debug for WordIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WordIndex").field("n_blocks", &self.ids.len()).finish_non_exhaustive()
    }
}

impl Default for WordIndex {
    fn default() -> Self {
        let embedder = EmbedderBuilder::with_avgdl(MEAN_WORDS).build();
        Self { embedder, scorer: Scorer::new(), ids: Vec::new() }
    }
}

impl WordIndex {
    /// Adds a block. An empty text is found by nothing.
    pub fn add(&mut self, id: BlockId, text: &str) {
        self.scorer.upsert(&self.ids.len(), self.embedder.embed(text));
        self.ids.push(id);
    }

    /// Blocks added.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether no block was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The up to `n` blocks that fit the words of `query` best among those that `filter` lets pass,
    /// best first, of equals the one added first. Blocks without any of the words are not among
    /// them.
    #[must_use]
    pub fn search(&self, query: &str, n: usize, filter: &dyn Fn(BlockId) -> bool) -> Vec<BlockId> {
        let mut found = self.scorer.matches(&self.embedder.embed(query));
        found.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id)));
        found.iter().map(|block| self.ids[block.id]).filter(|&id| filter(id)).take(n).collect()
    }
}

/// Runs of letters and digits, in lower case.
#[derive(Debug, Default)]
struct Words;

impl Tokenizer for Words {
    fn tokenize(&self, text: &str) -> Vec<String> {
        let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        words.map(str::to_lowercase).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 5] = [
        "The key of the boathouse is under the third plank.",
        "Oda repaired the lamp, and the lamp shone again.",
        "The order number is QX-4711; keep it.",
        "",
        "A lamp costs four coins in the harbour, where the ferry lands at noon on Sundays.",
    ];

    fn index() -> WordIndex {
        let mut index = WordIndex::default();
        for (i, text) in TEXTS.iter().enumerate() {
            index.add(BlockId(i as u64 * 100), text);
        }
        index
    }

    /// The formula, word by word.
    fn naive(query: &str) -> Vec<BlockId> {
        let words = |text: &str| Words.tokenize(text);
        let mut scored: Vec<(f32, BlockId)> = Vec::new();
        for (i, text) in TEXTS.iter().enumerate() {
            let text = words(text);
            let mut score = 0.0;
            for word in words(query) {
                let n_with = TEXTS.iter().filter(|t| words(t).contains(&word)).count() as f32;
                let n = text.iter().filter(|w| **w == word).count() as f32;
                let idf = (1.0 + (TEXTS.len() as f32 - n_with + 0.5) / (n_with + 0.5)).ln();
                let length = 1.0 - 0.75 + 0.75 * text.len() as f32 / MEAN_WORDS;
                score += idf * n * 2.2 / (n + 1.2 * length);
            }
            if score > 0.0 {
                scored.push((score, BlockId(i as u64 * 100)));
            }
        }
        scored.sort_by(|a, b| b.0.total_cmp(&a.0));
        scored.into_iter().map(|(_, id)| id).collect()
    }

    #[test]
    fn it_ranks_by_the_formula() {
        let queries =
            ["lamp", "Where is the key?", "qx 4711", "the harbour lamp", "LAMP, lamp", "", "zzz"];
        for query in queries {
            assert_eq!(index().search(query, 9, &|_| true), naive(query), "{query:?}");
        }
        assert_eq!(naive("qx 4711"), [BlockId(200)]);
    }

    #[test]
    fn filters_come_before_the_count() {
        let found = index().search("the lamp", 1, &|id| id != BlockId(100));
        assert_eq!(found, [BlockId(400)]);
    }
}
