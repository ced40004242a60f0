//! By meaning and by words.

use std::collections::HashMap;

use super::{Query, Strategy};
use crate::block::BlockId;
use crate::index::{Hit, IndexError};

/// Fuses the ranks of an embedding search and of BM25: a block that stands high in either comes
/// early, one that stands high in both first.
///
/// Source: Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and
/// individual Rank Learning Methods", 2009, SIGIR: `score = sum(1 / (k + rank))`, with their k = 60.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hybrid {
    /// The blocks of each ranking that are fused.
    pub n_candidates: usize,
    /// How little the first ranks stand out.
    pub k: f32,
}

impl Default for Hybrid {
    fn default() -> Self {
        Self { n_candidates: 20, k: 60.0 }
    }
}

impl Strategy for Hybrid {
    fn name(&self) -> &'static str {
        "hybrid"
    }

    fn needs_words(&self) -> bool {
        true
    }

    fn rank(&self, query: &Query<'_>, n: usize, out: &mut Vec<Hit>) -> Result<(), IndexError> {
        let n_candidates = self.n_candidates.max(n);
        let mut by_meaning = Vec::new();
        query.index.search(query.embedding, n_candidates, query.eligible, &mut by_meaning)?;
        let by_words = query.words.search(query.text, n_candidates, query.eligible);

        let mut scores: HashMap<BlockId, f32> = HashMap::new();
        let mut fused: Vec<Hit> = by_meaning.clone();
        for (rank, hit) in by_meaning.iter().enumerate() {
            *scores.entry(hit.id).or_default() += self.score(rank);
        }
        let mut vector = Vec::new();
        for (rank, &id) in by_words.iter().enumerate() {
            if !scores.contains_key(&id) {
                query.index.vectors(&[id], &mut vector)?;
                let distance = query.index.distance().between(query.embedding, &vector);
                fused.push(Hit { id, distance });
            }
            *scores.entry(id).or_default() += self.score(rank);
        }
        // Stable: of equals the nearer, then the one with the better words.
        fused.sort_by(|a, b| scores[&b.id].total_cmp(&scores[&a.id]));
        fused.truncate(n);
        out.clear();
        out.append(&mut fused);
        Ok(())
    }
}

impl Hybrid {
    /// What a place in one ranking counts; the first has rank 0 here and 1 in the paper.
    fn score(&self, rank: usize) -> f32 {
        1.0 / (self.k + 1.0 + rank as f32)
    }
}
