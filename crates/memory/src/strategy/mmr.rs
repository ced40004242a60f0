//! Relevant blocks that do not say the same thing.

use super::{Query, Strategy, greedy};
use crate::index::{Hit, IndexError};

/// Maximal marginal relevance: each choice weighs nearness to the query against nearness to what
/// was chosen before.
///
/// Source: Carbonell and Goldstein, "The Use of MMR, Diversity-Based Reranking for Reordering
/// Documents and Producing Summaries", 1998, SIGIR. Differs from the paper: similarity is the
/// negative distance of the index, whichever it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mmr {
    /// Weight of relevance, from 0 to 1; the rest is the weight of diversity.
    pub lambda: f32,
    /// The nearest blocks among which it chooses.
    pub n_candidates: usize,
}

impl Default for Mmr {
    /// Half and half among 20, as usual elsewhere; not measured here yet.
    fn default() -> Self {
        Self { lambda: 0.5, n_candidates: 20 }
    }
}

impl Strategy for Mmr {
    fn name(&self) -> &'static str {
        "mmr"
    }

    fn rank(&self, query: &Query<'_>, n: usize, out: &mut Vec<Hit>) -> Result<(), IndexError> {
        let gain = |from_query: f32, from_chosen: f32| {
            (1.0 - self.lambda) * from_chosen - self.lambda * from_query
        };
        greedy::choose(query, n, self.n_candidates, gain, out)
    }
}
