//! A branch of a store that cannot be written by two: the past is read from below, what is new
//! stays in RAM.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use super::{BlockMeta, BlockStore, BlockText, RamStore, StoreError, check_held, check_order};
use crate::block::Block;

/// Reads blocks that no longer change.
pub(super) trait Base: Debug + Send + Sync {
    fn get(&self, order: usize) -> Result<Arc<Block>, StoreError>;
    fn text(&self, order: usize) -> Result<BlockText, StoreError>;
    fn embedding(&self, order: usize) -> Result<Option<Vec<f32>>, StoreError>;
}

/// A store over the blocks of another one. What is appended to it or forgotten in it does not
/// reach the other, and is gone with it.
#[derive(Clone, Debug)]
pub struct Overlay {
    base: Arc<dyn Base>,
    n_base: usize,
    /// Embeddings that were missing below when the branch was made.
    embeddings: HashMap<usize, Vec<f32>>,
    own: RamStore,
    /// Of the blocks below, then of the own ones.
    metas: Vec<BlockMeta>,
}

impl Overlay {
    pub(super) fn new(base: Arc<dyn Base>, metas: Vec<BlockMeta>) -> Self {
        let (embeddings, own) = (HashMap::new(), RamStore::new());
        Self { base, n_base: metas.len(), embeddings, own, metas }
    }
}

impl BlockStore for Overlay {
    fn append(&mut self, block: Arc<Block>) -> Result<(), StoreError> {
        check_order(&self.metas, &block)?;
        let meta = BlockMeta::from(block.as_ref());
        self.own.append(block)?;
        self.metas.push(meta);
        Ok(())
    }

    fn set_embedding(&mut self, order: usize, embedding: &[f32]) -> Result<(), StoreError> {
        check_held(&self.metas, order)?;
        match order.checked_sub(self.n_base) {
            Some(own) => self.own.set_embedding(own, embedding),
            None => {
                if self.embedding(order)?.is_none() {
                    self.embeddings.insert(order, embedding.to_vec());
                }
                Ok(())
            }
        }
    }

    fn get(&self, order: usize) -> Result<Arc<Block>, StoreError> {
        check_held(&self.metas, order)?;
        match order.checked_sub(self.n_base) {
            Some(own) => self.own.get(own),
            None => self.base.get(order),
        }
    }

    fn text(&self, order: usize) -> Result<BlockText, StoreError> {
        check_held(&self.metas, order)?;
        match order.checked_sub(self.n_base) {
            Some(own) => self.own.text(own),
            None => self.base.text(order),
        }
    }

    fn embedding(&self, order: usize) -> Result<Option<Vec<f32>>, StoreError> {
        check_held(&self.metas, order)?;
        match order.checked_sub(self.n_base) {
            Some(own) => self.own.embedding(own),
            None => match self.embeddings.get(&order) {
                Some(embedding) => Ok(Some(embedding.clone())),
                None => self.base.embedding(order),
            },
        }
    }

    fn forget(&mut self, order: usize) -> Result<(), StoreError> {
        check_held(&self.metas, order)?;
        if let Some(own) = order.checked_sub(self.n_base) {
            self.own.forget(own)?;
        }
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
