//! The blocks that were read last, kept in RAM up to a size.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::block::Block;

/// Least recently used blocks leave first. A recall reads a handful of some hundred blocks that
/// fit, so looking through all of them is faster than keeping a map.
#[derive(Debug)]
pub(super) struct Hot {
    max_bytes: usize,
    bytes: usize,
    /// Most recently used last.
    blocks: VecDeque<(usize, Arc<Block>)>,
}

impl Hot {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, bytes: 0, blocks: VecDeque::new() }
    }

    pub(super) fn get(&mut self, order: usize) -> Option<Arc<Block>> {
        let at = self.blocks.iter().position(|(o, _)| *o == order)?;
        let entry = self.blocks.remove(at)?;
        let block = Arc::clone(&entry.1);
        self.blocks.push_back(entry);
        Some(block)
    }

    pub(super) fn put(&mut self, order: usize, block: Arc<Block>) {
        self.remove(order);
        self.bytes += block.kv().bytes();
        self.blocks.push_back((order, block));
        while self.bytes > self.max_bytes
            && let Some((_, block)) = self.blocks.pop_front()
        {
            self.bytes -= block.kv().bytes();
        }
    }

    pub(super) fn remove(&mut self, order: usize) {
        if let Some(at) = self.blocks.iter().position(|(o, _)| *o == order)
            && let Some((_, block)) = self.blocks.remove(at)
        {
            self.bytes -= block.kv().bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{new_block, session};

    #[test]
    fn what_was_not_used_for_longest_leaves() {
        let block = |start: u64| {
            Arc::new(Block::new(session(), new_block(start..start + 16, "text")).unwrap())
        };
        let bytes = block(0).kv().bytes();
        let mut hot = Hot::new(2 * bytes);
        hot.put(0, block(0));
        hot.put(1, block(16));
        assert_eq!(hot.get(0).unwrap().id(), block(0).id());
        hot.put(2, block(32));
        assert!(hot.get(1).is_none() && hot.get(0).is_some() && hot.get(2).is_some());
        hot.put(2, block(32));
        hot.remove(0);
        assert_eq!((hot.bytes, hot.blocks.len()), (bytes, 1));
        Hot::new(bytes - 1).put(0, block(0));
    }
}
