//! Where the blocks of one session live.
//!
//! A store keeps blocks in stream order and gives them back whole. It ranks nothing and forgets
//! nothing. Small data about every block ([`BlockMeta`]) stays in RAM in any store, so that
//! filters need no disk; the bulk (text, keys and values) is read when it is asked for.

#[cfg(test)]
pub(crate) mod contract;
mod ram;

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use everstream_kv_cache::{TokenPos, range_len};
use thiserror::Error;

use crate::block::{Block, BlockId, Role, Source};

pub use ram::RamStore;

/// Why a store did not do what it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A block starts before the end of the last one.
    #[error("block {id} starts at token {start}, but the store already holds tokens up to {end}")]
    OutOfOrder {
        /// The block that was refused.
        id: BlockId,
        /// Where it starts.
        start: u64,
        /// End of the last stored block.
        end: u64,
    },
    /// There is no block of that number.
    #[error("no block number {order}: the store holds {n_blocks}")]
    NoSuchBlock {
        /// The number asked for, from 0.
        order: usize,
        /// Blocks held.
        n_blocks: usize,
    },
    /// Reading or writing failed below the store.
    #[error("cannot {operation} block number {order}")]
    Io {
        /// `read` or `write`.
        operation: &'static str,
        /// The block's number, from 0.
        order: usize,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What is known of a block without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockMeta {
    /// Its name.
    pub id: BlockId,
    /// Where in the stream.
    pub range: Range<TokenPos>,
    /// Who wrote it.
    pub role: Role,
    /// From which file, if from one.
    pub source: Option<Source>,
    /// When it entered the stream.
    pub written_at: SystemTime,
    /// Bytes of its keys and values.
    pub kv_bytes: usize,
}

impl BlockMeta {
    /// Number of tokens.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        range_len(&self.range)
    }
}

impl From<&Block> for BlockMeta {
    fn from(block: &Block) -> Self {
        Self {
            id: block.id(),
            range: block.range(),
            role: block.role(),
            source: block.source().cloned(),
            written_at: block.written_at(),
            kv_bytes: block.kv().bytes(),
        }
    }
}

/// Keeps the blocks of one session, numbered from 0 in stream order.
///
/// Callers may assume that a call which fails changed nothing and may be repeated, and that what
/// was appended is given back bit for bit. Implementers pass the contract tests in
/// `store/contract.rs`.
pub trait BlockStore: Debug + Send + Sync {
    /// Adds `block` behind all others; its number is the count of blocks before the call.
    ///
    /// # Errors
    ///
    /// [`StoreError::OutOfOrder`] if it starts before the end of the last block;
    /// [`StoreError::Io`] if it cannot be written.
    fn append(&mut self, block: Arc<Block>) -> Result<(), StoreError>;

    /// Adds the embedding of block number `order`'s text. A block that has one keeps it.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSuchBlock`]; [`StoreError::Io`] if it cannot be written.
    fn set_embedding(&mut self, order: usize, embedding: &[f32]) -> Result<(), StoreError>;

    /// The block number `order`.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSuchBlock`]; [`StoreError::Io`] if it cannot be read.
    fn get(&self, order: usize) -> Result<Arc<Block>, StoreError>;

    /// One entry per block, in stream order: the entry's index is the block's number.
    fn metas(&self) -> &[BlockMeta];

    /// A store with the same blocks, shared and not copied, that goes its own way from here: what
    /// is appended to one is not seen by the other.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`] if the storage below cannot be shared.
    fn branch(&self) -> Result<Box<dyn BlockStore>, StoreError>;
}

/// The check that every store makes before it appends.
///
/// # Errors
///
/// [`StoreError::OutOfOrder`] if `block` starts before the end of the last of `metas`.
pub fn check_order(metas: &[BlockMeta], block: &Block) -> Result<(), StoreError> {
    let start = block.range().start;
    match metas.last() {
        Some(last) if start < last.range.end => {
            Err(StoreError::OutOfOrder { id: block.id(), start: start.0, end: last.range.end.0 })
        }
        _ => Ok(()),
    }
}
