//! Which of the blocks that may be recalled are worth recalling.
//!
//! A strategy ranks and does nothing else: the gate decides whether what it found is relevant
//! enough, the budget how much of it fits, the runtime where it goes. Adding one is a file with
//! one type here.

mod nearest;
mod random;

use std::fmt::Debug;

use crate::block::BlockId;
use crate::index::{Hit, IndexError, VectorIndex};
use crate::store::BlockMeta;

pub use nearest::Nearest;
pub use random::Random;

/// What a strategy may look at.
#[derive(Clone, Copy)]
pub struct Query<'a> {
    /// What is asked for.
    pub text: &'a str,
    /// Its embedding, of the index's dimension.
    pub embedding: &'a [f32],
    /// The blocks' embeddings.
    pub index: &'a dyn VectorIndex,
    /// All blocks, in stream order.
    pub blocks: &'a [BlockMeta],
    /// Which of them may be recalled; `false` for ids that are not among `blocks`.
    pub eligible: &'a dyn Fn(BlockId) -> bool,
}

/// Ranks blocks for a query.
///
/// Callers may assume that the same query over the same blocks gives the same hits.
pub trait Strategy: Debug + Send + Sync {
    /// The name on the command line and in result tables.
    fn name(&self) -> &'static str;

    /// Replaces `out` by up to `n` distinct eligible blocks, most relevant first. Each carries its
    /// distance from the query, whatever it was ranked by: gate and reports need it.
    ///
    /// # Errors
    ///
    /// What the index says.
    fn rank(&self, query: &Query<'_>, n: usize, out: &mut Vec<Hit>) -> Result<(), IndexError>;
}
