//! What every store must keep, as tests over any store; and a store that fails when it is told to.

use std::sync::Arc;

use everstream_kv_cache::TokenPos;

use super::{BlockMeta, BlockStore, BlockText, RamStore, StoreError};
use crate::block::{Block, BlockId};
use crate::testing::{new_block, session};

fn block(range: std::ops::Range<u64>) -> Arc<Block> {
    let text = format!("tokens {range:?}");
    Arc::new(Block::new(session(), new_block(range, &text)).unwrap())
}

fn ids(store: &dyn BlockStore) -> Vec<BlockId> {
    store.metas().iter().map(|meta| meta.id).collect()
}

/// Runs every test of the contract on stores that `make` gives, empty.
pub(crate) fn run(make: &dyn Fn() -> Box<dyn BlockStore>) {
    gives_back_what_was_appended(make());
    refuses_what_is_out_of_order(make());
    keeps_the_first_embedding(make());
    forgets(make());
    branches_go_their_own_way(make());
}

fn gives_back_what_was_appended(mut store: Box<dyn BlockStore>) {
    assert!(store.metas().is_empty());
    let blocks = [block(4..20), block(20..36), block(40..50)];
    for block in &blocks {
        store.append(block.clone()).unwrap();
    }
    assert_eq!(store.metas(), blocks.each_ref().map(|b| BlockMeta::from(b.as_ref())));
    for (order, block) in blocks.iter().enumerate() {
        let found = store.get(order).unwrap();
        assert_eq!(found.id(), block.id());
        assert_eq!(found.range(), block.range());
        assert_eq!(found.tokens(), block.tokens());
        assert_eq!(found.text(), block.text());
        assert_eq!(found.kv(), block.kv());
        assert_eq!(found.session(), block.session());
        let text = BlockText { tokens: block.tokens().to_vec(), text: block.text().to_owned() };
        assert_eq!(store.text(order).unwrap(), text);
        assert_eq!(store.embedding(order).unwrap(), None);
    }
    store.sync().unwrap();
    let missing = store.get(3).unwrap_err();
    assert!(matches!(missing, StoreError::NoSuchBlock { order: 3, n_blocks: 3 }));
}

fn refuses_what_is_out_of_order(mut store: Box<dyn BlockStore>) {
    store.append(block(16..32)).unwrap();
    for range in [16..32, 0..16, 31..40] {
        let error = store.append(block(range)).unwrap_err();
        assert!(matches!(error, StoreError::OutOfOrder { end: 32, .. }));
        assert_eq!(store.metas().len(), 1);
    }
    store.append(block(32..40)).unwrap();
    assert_eq!(store.metas()[1].range, TokenPos(32)..TokenPos(40));
}

fn keeps_the_first_embedding(mut store: Box<dyn BlockStore>) {
    store.append(block(0..16)).unwrap();
    store.set_embedding(0, &[1.0, 2.0]).unwrap();
    store.set_embedding(0, &[3.0, 4.0]).unwrap();
    assert_eq!(store.embedding(0).unwrap(), Some(vec![1.0, 2.0]));
    store.sync().unwrap();
    assert_eq!(store.embedding(0).unwrap(), Some(vec![1.0, 2.0]));
    assert!(matches!(
        store.set_embedding(1, &[1.0, 2.0]),
        Err(StoreError::NoSuchBlock { order: 1, n_blocks: 1 })
    ));
}

fn forgets(mut store: Box<dyn BlockStore>) {
    for range in [0..16, 16..32, 32..48] {
        store.append(block(range)).unwrap();
    }
    store.set_embedding(1, &[1.0]).unwrap();
    let branch = store.branch().unwrap();
    store.forget(1).unwrap();
    let forgotten: Vec<bool> = store.metas().iter().map(|meta| meta.is_forgotten).collect();
    assert_eq!(forgotten, [false, true, false]);
    for gone in [
        store.get(1).map(drop),
        store.text(1).map(drop),
        store.embedding(1).map(drop),
        store.set_embedding(1, &[1.0]),
        store.forget(1),
    ] {
        assert!(matches!(gone, Err(StoreError::Forgotten { order: 1 })));
    }
    assert!(matches!(store.forget(3), Err(StoreError::NoSuchBlock { order: 3, n_blocks: 3 })));
    assert_eq!(store.get(2).unwrap().id(), block(32..48).id());
    assert_eq!(branch.metas()[1].id, block(16..32).id());
    assert!(!branch.metas()[1].is_forgotten);
    store.append(block(48..64)).unwrap();
    assert_eq!(store.get(3).unwrap().id(), block(48..64).id());
}

fn branches_go_their_own_way(mut store: Box<dyn BlockStore>) {
    store.append(block(0..16)).unwrap();
    let mut branch = store.branch().unwrap();
    assert_eq!(ids(branch.as_ref()), ids(store.as_ref()));
    branch.append(block(16..32)).unwrap();
    store.append(block(16..40)).unwrap();
    assert_eq!(branch.get(1).unwrap().range().end, TokenPos(32));
    assert_eq!(store.get(1).unwrap().range().end, TokenPos(40));
}

/// A store whose `n`-th write fails, once; nothing of that write arrives.
#[derive(Debug)]
pub(crate) struct FailingStore {
    inner: Box<dyn BlockStore>,
    writes_until_failure: Option<usize>,
}

impl FailingStore {
    pub(crate) fn new(inner: Box<dyn BlockStore>, nth_write: usize) -> Self {
        Self { inner, writes_until_failure: Some(nth_write) }
    }

    fn write(&mut self, order: usize) -> Result<(), StoreError> {
        match self.writes_until_failure {
            Some(0) => {
                self.writes_until_failure = None;
                let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
                Err(StoreError::Io { operation: "write", order, source })
            }
            Some(n) => {
                self.writes_until_failure = Some(n - 1);
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl BlockStore for FailingStore {
    fn append(&mut self, block: Arc<Block>) -> Result<(), StoreError> {
        self.write(self.inner.metas().len())?;
        self.inner.append(block)
    }

    fn set_embedding(&mut self, order: usize, embedding: &[f32]) -> Result<(), StoreError> {
        self.write(order)?;
        self.inner.set_embedding(order, embedding)
    }

    fn get(&self, order: usize) -> Result<Arc<Block>, StoreError> {
        self.inner.get(order)
    }

    fn text(&self, order: usize) -> Result<BlockText, StoreError> {
        self.inner.text(order)
    }

    fn embedding(&self, order: usize) -> Result<Option<Vec<f32>>, StoreError> {
        self.inner.embedding(order)
    }

    fn forget(&mut self, order: usize) -> Result<(), StoreError> {
        self.write(order)?;
        self.inner.forget(order)
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.inner.sync()
    }

    fn metas(&self) -> &[BlockMeta] {
        self.inner.metas()
    }

    fn branch(&self) -> Result<Box<dyn BlockStore>, StoreError> {
        self.inner.branch()
    }
}

fn ram() -> Box<dyn BlockStore> {
    Box::new(RamStore::new())
}

#[test]
fn the_ram_store_keeps_the_contract() {
    run(&ram);
}

#[test]
fn a_store_that_has_not_failed_yet_keeps_the_contract() {
    run(&|| Box::new(FailingStore::new(ram(), usize::MAX)));
}

#[test]
fn a_failed_write_changes_nothing_and_may_be_repeated() {
    for nth_write in 0..4 {
        let mut store = FailingStore::new(ram(), nth_write);
        let mut failures = 0;
        for (order, range) in [0..16, 16..32].into_iter().enumerate() {
            let block = block(range);
            if store.append(block.clone()).is_err() {
                failures += 1;
                assert_eq!(store.metas().len(), order);
                store.append(block).unwrap();
            }
            if store.set_embedding(order, &[1.0]).is_err() {
                failures += 1;
                assert_eq!(store.embedding(order).unwrap(), None);
                store.set_embedding(order, &[1.0]).unwrap();
            }
        }
        assert_eq!(failures, 1, "write {nth_write} was the only one to fail");
        assert_eq!(store.metas().len(), 2);
    }
}
