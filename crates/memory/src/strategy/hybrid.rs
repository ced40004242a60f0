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
        let by_meaning: Vec<BlockId> = by_meaning.iter().map(|hit| hit.id).collect();
        let by_words = query.words.search(query.text, n_candidates, query.eligible);
        fuse(query, &[by_meaning, by_words], self.k, n, out)
    }
}

/// Replaces `out` by the up to `n` blocks that stand highest in all of `rankings` together, each of
/// them best first.
pub(super) fn fuse(
    query: &Query<'_>,
    rankings: &[Vec<BlockId>],
    k: f32,
    n: usize,
    out: &mut Vec<Hit>,
) -> Result<(), IndexError> {
    let mut ids: Vec<BlockId> = Vec::new();
    let mut scores: HashMap<BlockId, f32> = HashMap::new();
    for ranking in rankings {
        for (rank, &id) in ranking.iter().enumerate() {
            // The first has rank 0 here and 1 in the paper.
            let score = 1.0 / (k + 1.0 + rank as f32);
            *scores.entry(id).or_insert_with(|| {
                ids.push(id);
                0.0
            }) += score;
        }
    }
    // Stable: of equals the one of the earlier ranking.
    ids.sort_by(|a, b| scores[b].total_cmp(&scores[a]));
    ids.truncate(n);
    let mut vectors = Vec::new();
    query.index.vectors(&ids, &mut vectors)?;
    let distance = query.index.distance();
    let vectors = vectors.chunks_exact(query.index.dim());
    out.clear();
    out.extend(
        ids.iter()
            .zip(vectors)
            .map(|(&id, vector)| Hit { id, distance: distance.between(query.embedding, vector) }),
    );
    Ok(())
}
