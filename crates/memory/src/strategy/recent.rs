//! A control: the newest blocks, whatever is asked.

use std::collections::HashSet;

use super::{Query, Strategy};
use crate::block::BlockId;
use crate::index::{Hit, IndexError};

/// Recalls the blocks that left the window last: what a longer window would have held.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recent;

impl Strategy for Recent {
    fn name(&self) -> &'static str {
        "recent"
    }

    fn rank(&self, query: &Query<'_>, n: usize, out: &mut Vec<Hit>) -> Result<(), IndexError> {
        let newest = query.blocks.iter().rev().map(|meta| meta.id);
        let newest: Vec<BlockId> = newest.filter(|&id| (query.eligible)(id)).take(n).collect();
        let chosen: HashSet<BlockId> = newest.iter().copied().collect();
        query.index.search(query.embedding, n, &|id| chosen.contains(&id), out)?;
        let age = |hit: &Hit| newest.iter().position(|id| *id == hit.id);
        out.sort_by_key(age);
        Ok(())
    }
}
