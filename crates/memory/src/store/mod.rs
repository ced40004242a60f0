//! Where the blocks of one session live.
//!
//! A store keeps blocks in stream order and gives them back whole. It ranks nothing, and forgets
//! what it is told to. Small data about every block ([`BlockMeta`]) stays in RAM in any store, so
//! that filters need no disk; the bulk (text, keys and values) is read when it is asked for.

#[cfg(test)]
pub(crate) mod contract;
mod disk;
mod overlay;
mod ram;

use std::fmt::Debug;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use everstream_kv_cache::{TokenPos, range_len};
use thiserror::Error;

use crate::block::{Block, BlockId, Role, Source};

pub use disk::{
    Compacted, DEFAULT_SEGMENT_BYTES, Damage, DiskOptions, DiskStore, Keep, Maker, SessionFolder,
    check_name, write_whole,
};
pub use overlay::Overlay;
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
    /// The block was forgotten, or dropped to keep within a limit.
    #[error("block number {order} was forgotten")]
    Forgotten {
        /// The number asked for, from 0.
        order: usize,
    },
    /// What is stored of a block is not what was written.
    #[error(
        "tokens {}..{} are damaged in {} at byte {offset}: they cannot be recalled, all others can",
        tokens.start.0, tokens.end.0, path.display()
    )]
    Damaged {
        /// The block's range.
        tokens: Range<TokenPos>,
        /// The file.
        path: PathBuf,
        /// Where its record begins.
        offset: u64,
    },
    /// The memory was made by another model.
    #[error(
        "session {session:?} was made by {found} with another {difference}: use that model, or another --session"
    )]
    Maker {
        /// The session.
        session: String,
        /// The model that made it.
        found: String,
        /// What differs.
        difference: &'static str,
    },
    /// Nothing says what makes the keys and values that are to be stored.
    #[error(
        "session {session:?} holds no block yet, so its model must be named before one is stored"
    )]
    NoMaker {
        /// The session.
        session: String,
    },
    /// Files of another version.
    #[error("{}: format {found:?}, this version reads {expected:?}: use a newer everstream, or another --data-dir", path.display())]
    Format {
        /// The file that says so.
        path: PathBuf,
        /// Its format.
        found: String,
        /// The format of this version.
        expected: &'static str,
    },
    /// Another process works with the session.
    #[error("session {name:?} is in use by another process: end it, or use another --session")]
    Locked {
        /// The session.
        name: String,
    },
    /// There is no such session.
    #[error("no session {name:?} in {}: `everstream memory ls` lists them", data_dir.display())]
    NoSession {
        /// The session asked for.
        name: String,
        /// Where it was looked for.
        data_dir: PathBuf,
    },
    /// A session's name becomes the name of a folder.
    #[error(
        "session name {name:?}: use 1 to {} letters, digits, `.`, `_` and `-`, not starting with `.`",
        SessionFolder::MAX_NAME_BYTES
    )]
    SessionName {
        /// The name that was refused.
        name: String,
    },
    /// A limit that not even one segment fits into.
    #[error("a memory of at most {max_bytes} bytes: use at least {least}")]
    Limit {
        /// The limit asked for.
        max_bytes: u64,
        /// The least that works.
        least: u64,
    },
    /// A file failed; the message names its path.
    #[error("cannot use the session's files")]
    File(#[from] std::io::Error),
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
    /// Whether it was forgotten: then nothing else is left of it.
    pub is_forgotten: bool,
}

impl BlockMeta {
    /// Whether it has a token in `range`.
    #[must_use]
    pub fn overlaps(&self, range: &Range<TokenPos>) -> bool {
        self.range.start < range.end && range.start < self.range.end
    }

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
            is_forgotten: false,
        }
    }
}

/// What a block says, without its keys and values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockText {
    /// Token ids, one per position of the block's range.
    pub tokens: Vec<u32>,
    /// The tokens as text.
    pub text: String,
}

/// Keeps the blocks of one session, numbered from 0 in stream order.
///
/// Callers may assume that a call which fails changed nothing and may be repeated, and that what
/// was appended is given back bit for bit or not at all. Implementers pass the contract tests in
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

    /// The block number `order` with its keys and values.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSuchBlock`], [`StoreError::Forgotten`], [`StoreError::Damaged`]; others if
    /// it cannot be read.
    fn get(&self, order: usize) -> Result<Arc<Block>, StoreError>;

    /// What block number `order` says; reads no keys and values.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    fn text(&self, order: usize) -> Result<BlockText, StoreError>;

    /// The embedding of block number `order`, if it has one.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    fn embedding(&self, order: usize) -> Result<Option<Vec<f32>>, StoreError>;

    /// Forgets block number `order`: nothing of it is given back any more. Its number stays taken.
    ///
    /// # Errors
    ///
    /// [`StoreError::NoSuchBlock`]; others if that cannot be written.
    fn forget(&mut self, order: usize) -> Result<(), StoreError>;

    /// Waits until all that was stored would survive a power failure, as far as the store can.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    fn sync(&mut self) -> Result<(), StoreError>;

    /// One entry per block, in stream order: the entry's index is the block's number.
    fn metas(&self) -> &[BlockMeta];

    /// A store with the same blocks, shared and not copied, that goes its own way from here: what
    /// is appended to one is not seen by the other. What a store drops to keep a limit, its branches may
    /// not be able to read any more.
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

/// The check that every store makes before it touches block number `order`.
///
/// # Errors
///
/// [`StoreError::NoSuchBlock`] or [`StoreError::Forgotten`].
pub fn check_held(metas: &[BlockMeta], order: usize) -> Result<&BlockMeta, StoreError> {
    let n_blocks = metas.len();
    match metas.get(order) {
        None => Err(StoreError::NoSuchBlock { order, n_blocks }),
        Some(meta) if meta.is_forgotten => Err(StoreError::Forgotten { order }),
        Some(meta) => Ok(meta),
    }
}
