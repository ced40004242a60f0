//! The plainest store: blocks in RAM, lost when the process ends.

use std::sync::Arc;

use super::{BlockMeta, BlockStore, BlockText, StoreError, check_held, check_order};
use crate::block::Block;

/// Keeps blocks in RAM. Good for tests, for short streams and as the oracle of other stores; bad
/// for long streams, since a token of a small model takes 12 to 29 KB.
#[derive(Clone, Debug, Default)]
pub struct RamStore {
    /// `None` for what was forgotten.
    blocks: Vec<Option<Arc<Block>>>,
    metas: Vec<BlockMeta>,
}

impl RamStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn block(&self, order: usize) -> Result<&Arc<Block>, StoreError> {
        check_held(&self.metas, order)?;
        self.blocks[order].as_ref().ok_or(StoreError::Forgotten { order })
    }
}

impl BlockStore for RamStore {
    fn append(&mut self, block: Arc<Block>) -> Result<(), StoreError> {
        check_order(&self.metas, &block)?;
        self.metas.push(BlockMeta::from(block.as_ref()));
        self.blocks.push(Some(block));
        Ok(())
    }

    fn set_embedding(&mut self, order: usize, embedding: &[f32]) -> Result<(), StoreError> {
        self.block(order)?.fill_embedding(embedding.to_vec());
        Ok(())
    }

    fn get(&self, order: usize) -> Result<Arc<Block>, StoreError> {
        self.block(order).cloned()
    }

    fn text(&self, order: usize) -> Result<BlockText, StoreError> {
        let block = self.block(order)?;
        Ok(BlockText { tokens: block.tokens().to_vec(), text: block.text().to_owned() })
    }

    fn embedding(&self, order: usize) -> Result<Option<Vec<f32>>, StoreError> {
        Ok(self.block(order)?.embedding().map(<[f32]>::to_vec))
    }

    fn forget(&mut self, order: usize) -> Result<(), StoreError> {
        self.block(order)?;
        self.blocks[order] = None;
        self.metas[order].is_forgotten = true;
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn metas(&self) -> &[BlockMeta] {
        &self.metas
    }

    fn branch(&self) -> Result<Box<dyn BlockStore>, StoreError> {
        Ok(Box::new(self.clone()))
    }
}
