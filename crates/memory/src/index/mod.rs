//! Finds the blocks whose embeddings are near a query's.
//!
//! An index knows ids and vectors. Which block may be recalled at all (because it has left the
//! window, because it is not in the cache already) is the caller's filter, asked while searching
//! and not after it: filtering ten found blocks could leave none.

#[cfg(any(test, feature = "contract"))]
pub mod contract;
mod distance;
mod exact;
#[cfg(feature = "hnsw")]
mod hnsw;
mod sketch;
mod texts;

use std::fmt::Debug;
use std::num::NonZeroUsize;

use thiserror::Error;

use crate::block::BlockId;

pub use distance::Distance;
pub(crate) use distance::dot;
pub use exact::{ExactIndex, MakeExact, normalise};
#[cfg(feature = "hnsw")]
pub use hnsw::{HnswIndex, MakeHnsw};
pub use texts::{FoundText, TextSource};

/// Why an index did not do what it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IndexError {
    /// An index cannot hold vectors without components.
    #[error("an index needs vectors of at least one component")]
    ZeroDim,
    /// A vector has another dimension than the index.
    #[error("expected a vector of {expected} components, got {found}")]
    Dim {
        /// Dimension of the index.
        expected: usize,
        /// Dimension of the vector.
        found: usize,
    },
    /// The id was never added.
    #[error("block {id} is not in the index")]
    Unknown {
        /// The block.
        id: BlockId,
    },
    /// A server that holds the index failed.
    #[error("{what}")]
    Remote {
        /// What happened and what to do.
        what: String,
    },
    /// The graph of an approximate index failed.
    #[error("the approximate index failed: {what}")]
    Graph {
        /// What its library says.
        what: String,
    },
    /// The id was added before.
    #[error("block {id} is in the index already")]
    Duplicate {
        /// The block.
        id: BlockId,
    },
}

/// A block that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// The block.
    pub id: BlockId,
    /// Its distance from the query, as [`VectorIndex::distance`] measures it; positive infinity
    /// if it is not a number.
    pub distance: f32,
}

/// Holds one vector per block and searches them.
///
/// Callers may assume that a call which fails changed nothing. Approximate indexes may miss
/// blocks; what they return carries the same distances as [`ExactIndex`] to 1e-5. Implementers
/// pass the contract tests in `index/contract.rs`.
pub trait VectorIndex: Debug + Send + Sync {
    /// Adds the embedding of a block.
    ///
    /// # Errors
    ///
    /// [`IndexError::Dim`] or [`IndexError::Duplicate`].
    fn add(&mut self, id: BlockId, embedding: &[f32]) -> Result<(), IndexError>;

    /// Replaces `out` by the up to `n` blocks nearest to `query` among those that `filter` lets
    /// pass, nearest first, of equals the one added first.
    ///
    /// `filter` may be called for any id that was added, in any order, and more than once.
    ///
    /// # Errors
    ///
    /// [`IndexError::Dim`].
    fn search(
        &self,
        query: &[f32],
        n: usize,
        filter: &dyn Fn(BlockId) -> bool,
        out: &mut Vec<Hit>,
    ) -> Result<(), IndexError>;

    /// Replaces `out` by the vectors of `ids`, `[ids.len(), dim]`, at unit length if the distance
    /// is cosine.
    ///
    /// # Errors
    ///
    /// [`IndexError::Unknown`] for an id that was not added.
    fn vectors(&self, ids: &[BlockId], out: &mut Vec<f32>) -> Result<(), IndexError>;

    /// Forgets a block's vector, where it would lie on longer than this index: the caller's filter
    /// keeps it from being found. An unknown id is no error.
    ///
    /// # Errors
    ///
    /// [`IndexError::Remote`].
    fn remove(&mut self, _id: BlockId) -> Result<(), IndexError> {
        Ok(())
    }

    /// Number of vectors held.
    fn len(&self) -> usize;

    /// Whether it holds no vector.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Components of a vector.
    fn dim(&self) -> usize;

    /// How it measures.
    fn distance(&self) -> Distance;

    /// An index with the same vectors that goes its own way from here.
    ///
    /// # Errors
    ///
    /// If what lies below cannot be shared.
    fn branch(&self) -> Result<Box<dyn VectorIndex>, IndexError>;
}

/// Makes an empty index for a session: what a session's settings say of its index.
pub trait MakeIndex: Debug + Send + Sync {
    /// An index of vectors with `dim` components that may use so many threads.
    ///
    /// # Errors
    ///
    /// [`IndexError`], also if it is not of that dimension.
    fn make(&self, dim: usize, n_threads: NonZeroUsize)
    -> Result<Box<dyn VectorIndex>, IndexError>;
}
