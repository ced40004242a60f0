//! The plainest store: blocks in RAM, lost when the process ends.

use std::sync::Arc;

use super::{BlockMeta, BlockStore, StoreError, check_order};
use crate::block::Block;

/// Keeps blocks in RAM. Good for tests, for short streams and as the oracle of other stores; bad
/// for long streams, since a token of a small model takes 12 to 29 KB.
#[derive(Clone, Debug, Default)]
pub struct RamStore {
    blocks: Vec<Arc<Block>>,
    metas: Vec<BlockMeta>,
}

impl RamStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn block(&self, order: usize) -> Result<&Arc<Block>, StoreError> {
        let n_blocks = self.blocks.len();
        self.blocks.get(order).ok_or(StoreError::NoSuchBlock { order, n_blocks })
    }
}

impl BlockStore for RamStore {
    fn append(&mut self, block: Arc<Block>) -> Result<(), StoreError> {
        check_order(&self.metas, &block)?;
        self.metas.push(BlockMeta::from(block.as_ref()));
        self.blocks.push(block);
        Ok(())
    }

    fn set_embedding(&mut self, order: usize, embedding: &[f32]) -> Result<(), StoreError> {
        self.block(order)?.fill_embedding(embedding.to_vec());
        Ok(())
    }

    fn get(&self, order: usize) -> Result<Arc<Block>, StoreError> {
        self.block(order).cloned()
    }

    fn metas(&self) -> &[BlockMeta] {
        &self.metas
    }

    fn branch(&self) -> Result<Box<dyn BlockStore>, StoreError> {
        Ok(Box::new(self.clone()))
    }
}
