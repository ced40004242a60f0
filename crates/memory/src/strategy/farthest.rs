//! A control: the blocks farthest from the query.

use super::{Query, Strategy};
use crate::index::{Hit, IndexError};

/// Recalls what is least like the query. If this does as well as anything, relevance is not what
/// helps. Run it with an open gate.
#[derive(Clone, Copy, Debug, Default)]
pub struct Farthest;

impl Strategy for Farthest {
    fn name(&self) -> &'static str {
        "farthest"
    }

    /// Costs a search that sorts everything.
    fn rank(&self, query: &Query<'_>, n: usize, out: &mut Vec<Hit>) -> Result<(), IndexError> {
        query.index.search(query.embedding, query.index.len(), query.eligible, out)?;
        out.reverse();
        out.truncate(n);
        Ok(())
    }
}
