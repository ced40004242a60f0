//! Finds blocks by their words: BM25.
//!
//! What an embedding blurs, a name or a number, words find exactly.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use crate::block::BlockId;

/// Words of a block of 64 tokens, about: what block lengths are compared with.
const MEAN_WORDS: f32 = 45.0;
/// How soon more of the same word adds nothing.
const K1: f32 = 1.2;
/// How much a long block is held against it.
const B: f32 = 0.75;

/// A block that has words of a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WordHit {
    /// The block.
    pub id: BlockId,
    /// Its BM25 score, above zero: how many of the words, how often, and how rare they are.
    pub score: f32,
}

/// Blocks by their words: for each word the blocks that have it.
///
/// Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009,
/// Foundations and Trends in Information Retrieval 3(4), section 3.3, with its usual constants
/// k1 = 1.2, b = 0.75. A block of 64 tokens takes some 400 bytes.
#[derive(Clone, Debug, Default)]
pub struct WordIndex {
    postings: HashMap<Box<str>, Vec<Posting>>,
    /// In the order of addition.
    ids: Vec<BlockId>,
    orders: HashMap<BlockId, u32>,
}

/// A word in a block.
#[derive(Clone, Copy, Debug)]
struct Posting {
    /// The block's place in the order of addition.
    order: u32,
    /// What the block scores if the word is asked for, but for the word's rarity.
    weight: f32,
}

/// What each block scores for one query.
#[derive(Debug)]
pub struct WordScores<'a> {
    index: &'a WordIndex,
    /// The query's words, each once, and how rare they are; those that some block has.
    words: Vec<(String, f32)>,
    /// By order of addition.
    scores: Vec<f32>,
}

impl WordIndex {
    /// Adds a block. An empty text is found by nothing.
    ///
    /// # Panics
    ///
    /// If there are more than 2^32 blocks.
    pub fn add(&mut self, id: BlockId, text: &str) {
        let order = u32::try_from(self.ids.len()).expect("at most 2^32 blocks");
        self.ids.push(id);
        self.orders.insert(id, order);
        let words = words(text);
        let length = 1.0 - B + B * words.len() as f32 / MEAN_WORDS;
        let mut counts: HashMap<&str, f32> = HashMap::new();
        for word in &words {
            *counts.entry(word).or_default() += 1.0;
        }
        for (word, n) in counts {
            let posting = Posting { order, weight: n * (K1 + 1.0) / (n + K1 * length) };
            match self.postings.get_mut(word) {
                Some(postings) => postings.push(posting),
                None => drop(self.postings.insert(word.into(), vec![posting])),
            }
        }
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

    /// What the blocks score for the words of `query`; a word that stands there twice counts twice.
    #[must_use]
    pub fn scores(&self, query: &str) -> WordScores<'_> {
        let mut scores = vec![0.0; self.ids.len()];
        let mut known: Vec<(String, f32)> = Vec::new();
        for word in words(query) {
            let Some(postings) = self.postings.get(&*word) else { continue };
            let n_with = postings.len() as f32;
            let rarity = (1.0 + (self.ids.len() as f32 - n_with + 0.5) / (n_with + 0.5)).ln();
            for posting in postings {
                scores[posting.order as usize] += rarity * posting.weight;
            }
            if !known.iter().any(|(other, _)| *other == word) {
                known.push((word, rarity));
            }
        }
        WordScores { index: self, words: known, scores }
    }
}

impl WordScores<'_> {
    /// The score of a block; 0 if it has none of the words or was not added.
    #[must_use]
    pub fn of(&self, id: BlockId) -> f32 {
        self.index.orders.get(&id).map_or(0.0, |&order| self.scores[order as usize])
    }

    /// How much of the query one sentence or line of a text says, from 0 to 1: the share of the query's
    /// words, counted by their rarity, that stand together in the sentence which has most of them. Words
    /// that no block has count for nothing.
    #[must_use]
    pub fn said_in_one_sentence(&self, text: &str) -> f32 {
        let said = |sentence: &str| -> f32 {
            let sentence: HashSet<String> = words(sentence).into_iter().collect();
            self.words.iter().filter(|(word, _)| sentence.contains(word)).map(|word| word.1).sum()
        };
        let all: f32 = self.words.iter().map(|word| word.1).sum();
        let most = sentences(text).map(said).fold(0.0, f32::max);
        if all > 0.0 { most / all } else { 0.0 }
    }

    /// The up to `n` blocks that fit best among those that `filter` lets pass, best first, of
    /// equals the one added first. Blocks without any of the words are not among them.
    #[must_use]
    pub fn best(&self, n: usize, filter: &dyn Fn(BlockId) -> bool) -> Vec<WordHit> {
        let found = self.scores.iter().enumerate().filter(|(_, score)| **score > 0.0);
        // Positive floats stand in the order of their bits.
        let mut heap: BinaryHeap<(u32, Reverse<usize>)> =
            found.map(|(order, score)| (score.to_bits(), Reverse(order))).collect();
        let sorted = std::iter::from_fn(|| heap.pop());
        let hits = sorted.map(|(score, Reverse(order))| WordHit {
            id: self.index.ids[order],
            score: f32::from_bits(score),
        });
        hits.filter(|hit| filter(hit.id)).take(n).collect()
    }
}

/// Lines, cut where a sentence seems to end.
fn sentences(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.split('\n').flat_map(|line| line.split(". "));
    lines.flat_map(|part| part.split("? ")).flat_map(|part| part.split("! "))
}

/// Runs of letters and digits, in lower case.
fn words(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect()
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
            let index = index();
            let scores = index.scores(query);
            let found = scores.best(9, &|_| true);
            let (expected, ids) = (naive(query), found.iter().map(|hit| hit.id));
            assert_eq!(ids.collect::<Vec<_>>(), expected, "{query:?}");
            for hit in found {
                assert_eq!(scores.of(hit.id), hit.score);
            }
        }
        assert_eq!(naive("qx 4711"), [BlockId(200)]);
    }

    #[test]
    fn what_one_sentence_says_is_a_share_of_the_querys_rarity() {
        let index = index();
        let rarity = |n_with: f32| (1.0 + (5.0 - n_with + 0.5) / (n_with + 0.5)).ln();
        let (lamp, oda, ferry) = (rarity(2.0), rarity(1.0), rarity(1.0));
        let check = |query: &str, text: &str, expected: f32| {
            let found = index.scores(query).said_in_one_sentence(text);
            assert!((found - expected).abs() < 1e-6, "{query:?} {text:?}: {found} {expected}");
        };
        let all = lamp + oda + ferry;
        // No block has "zzz"; a word counts once, however often it is asked for.
        check("zzz Oda, lamp, lamp?", "a LAMP of oda's", 1.0);
        check("oda lamp ferry", "Oda has a lamp. The ferry has none.", (oda + lamp) / all);
        check("oda lamp ferry", "oda\nlamp! lamp\nferry? lamp-ferry", (lamp + ferry) / all);
        // No end of a sentence stands within a name or a number.
        check("4711 qx", "qx.v1.4711", 1.0);
        for (query, text) in [("oda", ""), ("", "oda"), ("zzz", "zzz"), ("oda", "lamp")] {
            check(query, text, 0.0);
        }
    }

    #[test]
    fn filters_come_before_the_count() {
        let index = index();
        let scores = index.scores("the lamp");
        assert_eq!(scores.best(1, &|id| id != BlockId(100))[0].id, BlockId(400));
        assert_eq!((scores.of(BlockId(300)), scores.of(BlockId(7))), (0.0, 0.0));
    }
}
