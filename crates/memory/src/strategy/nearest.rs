//! The `n` blocks nearest to the query.

use super::{Query, Strategy};
use crate::index::{Hit, IndexError};

/// Recalls the blocks whose embeddings are nearest to the query's: what dense retrieval means
/// everywhere, and the baseline of every other strategy.
///
/// Source: Karpukhin et al., "Dense Passage Retrieval for Open-Domain Question Answering", 2020,
/// arXiv:2004.04906, section 3.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nearest;

impl Strategy for Nearest {
    fn name(&self) -> &'static str {
        "nearest"
    }

    fn rank(&self, query: &Query<'_>, n: usize, out: &mut Vec<Hit>) -> Result<(), IndexError> {
        query.index.search(query.embedding, n, query.eligible, out)
    }
}
