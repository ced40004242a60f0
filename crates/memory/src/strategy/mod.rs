//! Which of the blocks that may be recalled are worth recalling.
//!
//! A strategy ranks and does nothing else: the gate decides whether what it found is relevant
//! enough, the budget how much of it fits, the runtime where it goes. Adding one is a file with
//! one type here.

mod attention;
#[cfg(test)]
mod contract;
mod farthest;
mod fusion;
mod greedy;
mod hybrid;
mod max_distance;
mod mmr;
mod nearest;
mod random;
mod recent;

use std::fmt::Debug;
use std::sync::Arc;

use crate::block::{Block, BlockId};
use crate::index::{Hit, IndexError, VectorIndex};
use crate::key_clusters::KeyClusters;
use crate::store::BlockMeta;
use crate::words::WordScores;

pub use attention::{Attention, Candidates, ModelQueries};
pub use farthest::Farthest;
pub use fusion::Fusion;
pub use hybrid::Hybrid;
pub use max_distance::MaxDistance;
pub use mmr::Mmr;
pub use nearest::Nearest;
pub use random::Random;
pub use recent::Recent;

/// The names of all strategies, the controls last.
pub const ALL: [&str; 11] = [
    "nearest",
    "hybrid",
    "fusion",
    "attention",
    "attention-clusters",
    "attention-all",
    "mmr",
    "max-distance",
    "random",
    "farthest",
    "recent",
];

/// The strategy of this name, with its default settings.
#[must_use]
pub fn by_name(name: &str) -> Option<Arc<dyn Strategy>> {
    Some(match name {
        "nearest" => Arc::new(Nearest),
        "hybrid" => Arc::new(Hybrid::default()),
        "fusion" => Arc::new(Fusion::default()),
        "attention" => Arc::new(Attention::default()),
        "attention-clusters" => Arc::new(Attention { candidates: Candidates::InClusters(128) }),
        "attention-all" => Arc::new(Attention { candidates: Candidates::All }),
        "mmr" => Arc::new(Mmr::default()),
        "max-distance" => Arc::new(MaxDistance::default()),
        "random" => Arc::new(Random::default()),
        "farthest" => Arc::new(Farthest),
        "recent" => Arc::new(Recent),
        _ => return None,
    })
}

/// What a strategy may look at.
#[derive(Clone, Copy)]
pub struct Query<'a> {
    /// What is asked for.
    pub text: &'a str,
    /// Its embedding, of the index's dimension.
    pub embedding: &'a [f32],
    /// The blocks' embeddings.
    pub index: &'a dyn VectorIndex,
    /// What the blocks score by the words of `text`; nothing unless the strategy
    /// [needs](Strategy::needs_words) it.
    pub words: &'a WordScores<'a>,
    /// All blocks, in stream order.
    pub blocks: &'a [BlockMeta],
    /// Which of them may be recalled; `false` for ids that are not among `blocks`.
    pub eligible: &'a dyn Fn(BlockId) -> bool,
    /// The clusters of the blocks' keys; those of other blocks, or none, unless the strategy
    /// [needs](Strategy::needs_clusters) them.
    pub clusters: &'a KeyClusters,
    /// What the model asks for; `None` unless the strategy [needs](Strategy::needs_queries) it and
    /// there is a model.
    pub queries: Option<&'a ModelQueries>,
    /// A block with its keys, unless it cannot be read.
    pub block: &'a dyn Fn(BlockId) -> Option<Arc<Block>>,
    /// What a block says, unless it cannot be read.
    pub block_text: &'a dyn Fn(BlockId) -> Option<String>,
}

#[cfg(test)]
impl<'a> Query<'a> {
    /// One without a text, a model or blocks, for which all blocks are eligible: tests say what else there is.
    fn bare(
        embedding: &'a [f32],
        index: &'a dyn VectorIndex,
        words: &'a WordScores<'a>,
        clusters: &'a KeyClusters,
    ) -> Self {
        Self {
            text: "",
            embedding,
            index,
            words,
            blocks: &[],
            eligible: &|_| true,
            clusters,
            queries: None,
            block: &|_| None,
            block_text: &|_| None,
        }
    }
}

/// Ranks blocks for a query.
///
/// Callers may assume that the same query over the same blocks gives the same hits. Implementers
/// pass the contract tests in `strategy/contract.rs`.
pub trait Strategy: Debug + Send + Sync {
    /// The name on the command line and in result tables.
    fn name(&self) -> &'static str;

    /// Whether it looks at words. They are indexed for those who do.
    fn needs_words(&self) -> bool {
        false
    }

    /// Whether it looks at the model's queries. They are computed for those who do.
    fn needs_queries(&self) -> bool {
        false
    }

    /// Whether it looks at clusters of keys. They are made for those who do.
    fn needs_clusters(&self) -> bool {
        false
    }

    /// Replaces `out` by up to `n` distinct eligible blocks, most relevant first. Each carries its
    /// distance from the query, whatever it was ranked by: gate and reports need it.
    ///
    /// # Errors
    ///
    /// What the index says.
    fn rank(&self, query: &Query<'_>, n: usize, out: &mut Vec<Hit>) -> Result<(), IndexError>;
}

/// These blocks with their distances from the query, in this order.
fn hits_of(query: &Query<'_>, ids: &[BlockId]) -> Result<Vec<Hit>, IndexError> {
    let mut vectors = Vec::new();
    query.index.vectors(ids, &mut vectors)?;
    let distance = query.index.distance();
    let vectors = vectors.chunks_exact(query.index.dim());
    let distances = vectors.map(|vector| distance.between(query.embedding, vector));
    Ok(ids.iter().zip(distances).map(|(&id, distance)| Hit { id, distance }).collect())
}
