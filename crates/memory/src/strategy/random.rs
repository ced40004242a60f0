//! A control: blocks drawn by lot.

use super::{Query, Strategy};
use crate::index::{Hit, IndexError};
use everstream_kv_cache::rng::SplitMix64;

/// Recalls blocks drawn by lot from all eligible ones. What it scores is what any strategy gets
/// for free; run it with an open gate, which would otherwise turn most of its draws away.
///
/// The draw depends on the seed and the query's text, not on earlier draws, so a question asked
/// again draws again what it drew.
#[derive(Clone, Copy, Debug, Default)]
pub struct Random {
    /// Another seed, another draw.
    pub seed: u64,
}

impl Random {
    fn rng(self, text: &str) -> SplitMix64 {
        let mut state = self.seed;
        for byte in text.bytes() {
            state = SplitMix64::new(state ^ u64::from(byte)).next_u64();
        }
        SplitMix64::new(state)
    }
}

impl Strategy for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    /// Costs a full search, since hits carry their distances.
    fn rank(&self, query: &Query<'_>, n: usize, out: &mut Vec<Hit>) -> Result<(), IndexError> {
        query.index.search(query.embedding, query.index.len(), query.eligible, out)?;
        // Fisher and Yates' shuffle, stopped after the draw.
        let mut rng = self.rng(query.text);
        for drawn in 0..n.min(out.len()) {
            let other = drawn + rng.below(out.len() - drawn);
            out.swap(drawn, other);
        }
        out.truncate(n);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::block::BlockId;
    use crate::index::{Distance, ExactIndex, VectorIndex};
    use crate::key_clusters::KeyClusters;
    use crate::words::WordIndex;

    fn draw(seed: u64, text: &str, n: usize) -> Vec<u64> {
        let mut index = ExactIndex::new(1, Distance::L2).unwrap();
        for id in 0..20 {
            index.add(BlockId(id), &[id as f32]).unwrap();
        }
        let words = WordIndex::default();
        let words = words.scores("");
        let clusters = KeyClusters::default();
        let query = Query {
            text,
            eligible: &|id| id.0 % 2 == 0,
            ..Query::bare(&[0.0], &index, &words, &clusters)
        };
        let mut out = Vec::new();
        Random { seed }.rank(&query, n, &mut out).unwrap();
        assert!(out.iter().all(|hit| hit.distance == (hit.id.0 * hit.id.0) as f32));
        out.iter().map(|hit| hit.id.0).collect()
    }

    #[test]
    fn draws_distinct_eligible_blocks() {
        for n in 0..13 {
            let drawn = draw(3, "query", n);
            assert_eq!(drawn.len(), n.min(10));
            assert!(drawn.iter().all(|id| id % 2 == 0));
            assert_eq!(drawn.iter().collect::<HashSet<_>>().len(), drawn.len());
        }
    }

    #[test]
    fn seed_and_query_decide() {
        assert_eq!(draw(3, "query", 5), draw(3, "query", 5));
        assert_ne!(draw(3, "query", 5), draw(4, "query", 5));
        assert_ne!(draw(3, "query", 5), draw(3, "other", 5));
    }

    #[test]
    fn every_block_is_drawn_sometimes() {
        let drawn: HashSet<u64> = (0..200).flat_map(|seed| draw(seed, "query", 1)).collect();
        assert_eq!(drawn.len(), 10);
    }
}
