//! By meaning, by words, and by what the model would look at.

use std::collections::HashMap;

use super::attention::by_votes;
use super::{Query, Strategy, hits_of};
use crate::block::BlockId;
use crate::index::{Hit, IndexError};

/// Fuses the ranks of an embedding search, of BM25 and of [`Attention`](super::Attention): as [`Hybrid`](super::Hybrid),
/// with a third opinion. Their errors differ: over 538 SQuAD questions about streams of 40 paragraphs
/// (Qwen2.5-Coder-0.5B, the half that settings are chosen on) the first block is of the right paragraph
/// for 87 % by embedding, 85 % by words, 84 % by attention, 88 % by the first two and 92 % by all three.
/// On the other half it is no better than the nearest: 87 % of 208 questions both.
///
/// Source: as `Hybrid`; `k` is smaller than there, which counts first ranks for more and gave 92
/// instead of 91 %.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fusion {
    /// The blocks of each ranking that are fused.
    pub n_candidates: usize,
    /// How little the first ranks stand out.
    pub k: f32,
}

/// The nearest blocks that the third ranking, by attention, looks at.
const N_ATTENTION: usize = 32;

impl Default for Fusion {
    fn default() -> Self {
        Self { n_candidates: 20, k: 10.0 }
    }
}

impl Strategy for Fusion {
    fn name(&self) -> &'static str {
        "fusion"
    }

    fn needs_words(&self) -> bool {
        true
    }

    fn needs_queries(&self) -> bool {
        true
    }

    fn rank(&self, query: &Query<'_>, n: usize, out: &mut Vec<Hit>) -> Result<(), IndexError> {
        let n_candidates = self.n_candidates.max(n);
        let n_nearest = N_ATTENTION.max(n_candidates);
        query.index.search(query.embedding, n_nearest, query.eligible, out)?;
        let first = |hits: &[Hit]| -> Vec<BlockId> {
            hits.iter().take(n_candidates).map(|hit| hit.id).collect()
        };
        let by_meaning = first(out);
        let by_words = query.words.best(n_candidates, query.eligible);
        let by_words = by_words.iter().map(|hit| hit.id).collect();
        let by_attention = match query.queries {
            Some(queries) => first(&by_votes(query, queries, out)),
            None => Vec::new(),
        };
        let mut ids = self.fused(&[by_meaning, by_words, by_attention]);
        ids.truncate(n);
        *out = hits_of(query, &ids)?;
        Ok(())
    }
}

impl Fusion {
    /// The blocks of all rankings, each of them best first, those that stand high in all of them first.
    fn fused(&self, rankings: &[Vec<BlockId>]) -> Vec<BlockId> {
        let mut ids: Vec<BlockId> = Vec::new();
        let mut scores: HashMap<BlockId, f32> = HashMap::new();
        for ranking in rankings {
            for (rank, &id) in ranking.iter().enumerate() {
                // The first has rank 0 here and 1 in the paper.
                let score = 1.0 / (self.k + 1.0 + rank as f32);
                *scores.entry(id).or_insert_with(|| {
                    ids.push(id);
                    0.0
                }) += score;
            }
        }
        // Stable: of equals the one of the earlier ranking.
        ids.sort_by(|a, b| scores[b].total_cmp(&scores[a]));
        ids
    }
}
