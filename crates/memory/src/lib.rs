//! (essay)

mod block;
mod cutter;
mod embed;
mod gate;
mod index;
mod kv;
mod memory;
mod recall;
mod rng;
mod store;
mod strategy;
#[cfg(test)]
mod testing;

pub use block::{Block, BlockError, BlockId, NewBlock, Role, Source};
pub use cutter::{BlockCutter, BlockSizes, BlockSizesError};
pub use embed::{EmbedError, Embedder, HashEmbedder, MiniLm};
pub use gate::Gate;
pub use index::{Distance, ExactIndex, Hit, IndexError, VectorIndex};
pub use kv::{BlockKv, KvBuffer, KvRows, KvShape, KvType};
pub use memory::{Found, Memory, MemoryConfig, MemoryError, MemoryStats};
pub use recall::{NotRecalled, Recall, RecallOrder, RecallRequest, RecalledBlock};
pub use store::{BlockMeta, BlockStore, RamStore, StoreError, check_order};
pub use strategy::{Nearest, Query, Random, Strategy};
