//! Settings, counts and errors of a memory.

use std::sync::Arc;

use thiserror::Error;

use crate::block::BlockError;
use crate::cutter::BlockSizes;
use crate::embed::EmbedError;
use crate::gate::Gate;
use crate::index::IndexError;
use crate::kv::KvShape;
use crate::store::{StoreError, check_name};
use crate::strategy::{Nearest, Strategy};

/// Why the memory did not do what it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// Blocks that wait for their embedding need room for one at least.
    #[error("embedding 0 blocks at a time: use 1 or more")]
    ZeroBatch,
    /// Embedder and index do not fit together.
    #[error("the embedder gives {embedder} components, but the index holds vectors of {index}")]
    Dim {
        /// Components of an embedding.
        embedder: usize,
        /// Components of the index's vectors.
        index: usize,
    },
    /// The memory fills the index from the store, so it must start empty.
    #[error("the index already holds {n_vectors} vectors, expected none")]
    IndexNotEmpty {
        /// Vectors found.
        n_vectors: usize,
    },
    /// A block has keys and values of another model.
    #[error(
        "expected keys and values of [{}, {}, tokens, {}], got [{}, {}, tokens, {}]",
        expected.n_layers, expected.n_kv_heads, expected.head_dim,
        found.n_layers, found.n_kv_heads, found.head_dim
    )]
    Shape {
        /// The memory's shape.
        expected: KvShape,
        /// The block's.
        found: KvShape,
    },
    /// A block is longer than the window is sure to hold.
    #[error("block of {n_tokens} tokens, expected at most {max}")]
    BlockTooLong {
        /// Its length.
        n_tokens: usize,
        /// The longest allowed.
        max: usize,
    },
    /// A range ends before it starts.
    #[error("evicted range {start}..{end} ends before it starts")]
    Range {
        /// First token.
        start: u64,
        /// One past the last token.
        end: u64,
    },
    /// The embedder broke its promise.
    #[error("expected {n_texts} embeddings of {dim} components, got {found_texts} of {found_dim}")]
    EmbedderOutput {
        /// Texts given to the embedder.
        n_texts: usize,
        /// Components expected.
        dim: usize,
        /// Embeddings received.
        found_texts: usize,
        /// Components of the first one that is wrong.
        found_dim: usize,
    },
    /// The block is not one.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The index failed.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The embedder failed.
    #[error(transparent)]
    Embed(#[from] EmbedError),
}

/// Settings of a [`Memory`](crate::Memory). How it measures distance is the index's business.
#[derive(Clone, Debug)]
pub struct MemoryConfig {
    /// Name of the session; part of every block's id.
    pub session: String,
    /// Shape of the model's keys and values per token.
    pub shape: KvShape,
    /// Tokens per block.
    pub sizes: BlockSizes,
    /// What is relevant enough.
    pub gate: Gate,
    /// Which blocks to propose.
    pub strategy: Arc<dyn Strategy>,
    /// Blocks that are embedded at once.
    pub embed_batch: usize,
}

impl MemoryConfig {
    /// Default block sizes and gate, the [`Nearest`] strategy, 16 blocks to a batch.
    #[must_use]
    pub fn new(session: &str, shape: KvShape) -> Self {
        Self {
            session: session.to_owned(),
            shape,
            sizes: BlockSizes::default(),
            gate: Gate::default(),
            strategy: Arc::new(Nearest),
            embed_batch: 16,
        }
    }

    pub(super) fn check(&self) -> Result<(), MemoryError> {
        check_name(&self.session)?;
        if self.embed_batch == 0 {
            return Err(MemoryError::ZeroBatch);
        }
        Ok(())
    }
}

/// Counts since the memory was made; a branch starts with its parent's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryStats {
    /// Blocks held.
    pub n_blocks: usize,
    /// Tokens in them.
    pub n_tokens: usize,
    /// Bytes of their keys and values.
    pub kv_bytes: usize,
    /// Blocks that can be found.
    pub n_indexed: usize,
    /// Blocks that wait for their embedding.
    pub n_pending: usize,
    /// Texts embedded by this memory, queries included.
    pub embedded_texts_total: u64,
    /// Recalls answered.
    pub recalls_total: u64,
    /// Blocks recalled.
    pub recalled_blocks_total: u64,
    /// Tokens recalled.
    pub recalled_tokens_total: u64,
    /// Blocks that the gate turned away.
    pub gated_blocks_total: u64,
    /// Blocks that did not fit.
    pub skipped_blocks_total: u64,
    /// Blocks that were damaged.
    pub unreadable_blocks_total: u64,
}
