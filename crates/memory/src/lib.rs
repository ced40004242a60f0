//! What left the window: kept with its keys and values, found by meaning, handed back.
//!
//! A stream that never ends is read through a cache of fixed size, so almost all of it leaves.
//! This crate holds what left. It takes a stream in blocks of about 64 tokens, each with its text
//! and with the keys and values that the model computed for it, finds the blocks that matter for a
//! question, and hands them back so that the runtime can put them into the cache again without
//! running the model over them.
//!
//! ```text
//! tokens ─► BlockCutter ─► NewBlock ─► Memory::remember ─► BlockStore
//!                                         │ text waits, then in batches
//!                                         └─► Embedder ─► VectorIndex
//! question ─► Memory::recall ─► Strategy (proposes) ─► Gate ─► budget ─► Recall
//! ```
//!
//! # Which design, and why not the obvious one
//!
//! **Keys and values, not only text.** The obvious memory for a language model is text: embed
//! passages, find the nearest, paste them into the prompt. Each recall then costs a prefill of
//! what is pasted, every time. The keys and values were computed once, when the tokens were read,
//! with the true left context; kept, they cost a copy. Keys are kept *before* rotation, since a
//! rotated key fits one position and a recalled block returns at another: [`BlockKv`].
//!
//! **Blocks, not tokens and not pages.** A token alone cannot be found by meaning, and a block of
//! fixed length ends in the middle of a sentence, so that half of an answer is recalled. The
//! [`BlockCutter`] ends blocks where the text ends, near a target length. It is a function of the
//! tokens alone, and a block's [`BlockId`] of its content: a replayed stream writes the same
//! memory.
//!
//! **Indexed when complete, eligible when it leaves.** Indexing a block when it is evicted seems
//! thrifty, but then text that is in the cache's far end, or just outside of it, can be missing
//! from the index at the moment it is asked for. Here a block is stored and queued as soon as its
//! end is decided, and [`RecallRequest::evicted`] says what may come back. Of a block that
//! straddles the window's edge only the evicted part comes back, and [`RecalledBlock::part`] says
//! so: no token is ever in the cache twice.
//!
//! **A gate.** A nearest neighbour always exists. Whether it is near enough is the [`Gate`]'s
//! question; without one, retrieval has made a chat worse than no retrieval.
//!
//! **Embedding in the caller's time.** A background thread that embeds would fight decode for the
//! same cores and make what a recall finds depend on timing. Blocks are stored at once and wait to be
//! embedded until the caller has time ([`Memory::flush`]; the runtime calls it when a batch waits,
//! after an answer, and never in front of a decode step), or until a recall needs them.
//!
//! # Seams
//!
//! [`BlockStore`] (where blocks live), [`VectorIndex`] (who is near), [`Embedder`] (what a text
//! means) and [`Strategy`] (what to propose) are small traits; all but the embedder have contract
//! tests. [`RamStore`], [`ExactIndex`] and [`Nearest`] are the plainest implementations and the
//! oracles of any other.
//! The crate reads no clock and no environment, knows no network, and sees a key as numbers of a
//! given shape: it does not know which model made it.
//!
//! # Example
//!
//! ```
//! use std::{sync::Arc, time::SystemTime};
//! use everstream_kv_cache::TokenPos;
//! use everstream_memory::*;
//!
//! let shape = KvShape { n_layers: 1, n_kv_heads: 1, head_dim: 2 };
//! let index = ExactIndex::new(HashEmbedder.dim(), Distance::Cosine)?;
//! let config = MemoryConfig::new("harbour", shape);
//! let embedder = Arc::new(HashEmbedder);
//! let mut memory = Memory::new(config, Box::new(RamStore::new()), Box::new(index), embedder)?;
//!
//! for (i, text) in ["Oda keeps the lighthouse.", "The bread costs four coins."].iter().enumerate() {
//!     let start = TokenPos(4).after(16 * i);
//!     let zeros = [0.0; 16 * 2];
//!     memory.remember(NewBlock {
//!         range: start..start.after(16),
//!         tokens: vec![7; 16],
//!         text: text.to_string(),
//!         role: Role::Document,
//!         source: None,
//!         written_at: SystemTime::UNIX_EPOCH,
//!         kv: BlockKv::new(shape, 16, &zeros, &zeros, KvType::F16)?,
//!     })?;
//! }
//!
//! // The window now starts at token 30: the last two tokens of the second block are inside.
//! let request = RecallRequest::new("Does bread cost four coins?", TokenPos(4)..TokenPos(30));
//! let recall = memory.recall(&request)?;
//! assert_eq!(recall.blocks[0].block.text(), "The bread costs four coins.");
//! assert_eq!(recall.blocks[0].part, TokenPos(20)..TokenPos(30));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod block;
pub mod codec;
mod cutter;
mod distinct;
mod embed;
mod gate;
mod index;
mod key_clusters;
mod kv;
mod memory;
mod recall;
pub mod record;
mod store;
pub mod strategy;
#[cfg(test)]
mod testing;
mod words;

pub use block::{Block, BlockError, BlockId, NewBlock, Role, Source};
pub use cutter::{BlockCutter, BlockSizes, BlockSizesError};
pub use embed::{EmbedError, Embedder, HashEmbedder, MiniLm, MiniLmOptions};
pub use gate::Gate;
#[cfg(any(test, feature = "contract"))]
pub use index::contract;
pub use index::{
    Distance, ExactIndex, FoundText, Hit, IndexError, MakeExact, MakeIndex, TextSource,
    VectorIndex, normalise,
};
#[cfg(feature = "hnsw")]
pub use index::{HnswIndex, MakeHnsw};
pub use key_clusters::KeyClusters;
pub use kv::{BlockKv, KvRows, KvShape, KvType, Q8Rows};
pub use memory::{Found, Memory, MemoryConfig, MemoryError, MemoryStats};
pub use recall::{
    BlockFilter, Neighbours, NotRecalled, Recall, RecallOrder, RecallRequest, RecalledBlock,
    RecalledText,
};
pub use store::{
    BlockMeta, BlockStore, BlockText, Compacted, DEFAULT_SEGMENT_BYTES, Damage, DiskOptions,
    DiskStore, Keep, Maker, Overlay, RamStore, SessionFolder, StoreError, check_held, check_name,
    check_order, write_whole,
};
pub use strategy::{
    Attention, Candidates, Farthest, Fusion, Hybrid, MaxDistance, Mmr, ModelQueries, Nearest,
    Query, Random, Recent, Strategy,
};
pub use words::{WordHit, WordIndex, WordScores};
