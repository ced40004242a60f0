//! Relevant blocks that are as different as they can be.

use super::{Query, Strategy, greedy};
use crate::index::{Hit, IndexError};

/// Among the most relevant blocks picks those farthest from each other, starting from the nearest:
/// broad context, for summaries and stories.
///
/// Source: Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985, Theoretical
/// Computer Science 38: the order of farthest points, within a factor of two of the best cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxDistance {
    /// The nearest blocks among which it chooses.
    pub n_candidates: usize,
}

impl Default for MaxDistance {
    /// Among 20; not measured here yet.
    fn default() -> Self {
        Self { n_candidates: 20 }
    }
}

impl Strategy for MaxDistance {
    fn name(&self) -> &'static str {
        "max-distance"
    }

    fn rank(&self, query: &Query<'_>, n: usize, out: &mut Vec<Hit>) -> Result<(), IndexError> {
        greedy::choose(query, n, self.n_candidates, |_, from_chosen| from_chosen, out)
    }
}
