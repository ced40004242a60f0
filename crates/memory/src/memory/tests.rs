use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::block::Role;
use crate::embed::{EmbedError, HashEmbedder};
use crate::index::{Distance, ExactIndex, IndexError};
use crate::kv::{BlockKv, KvType};
use crate::recall::RecallOrder;
use crate::store::contract::FailingStore;
use crate::store::{RamStore, StoreError};
use crate::strategy::{self, ModelQueries, Random};
use crate::testing::{SHAPE, new_block, positions};
use everstream_kv_cache::rng::SplitMix64;

fn config() -> MemoryConfig {
    MemoryConfig { gate: Gate::OPEN, embed_batch: 3, ..MemoryConfig::new("test", SHAPE) }
}

fn index() -> Box<dyn VectorIndex> {
    Box::new(ExactIndex::new(HashEmbedder.dim(), Distance::Cosine).unwrap())
}

fn memory_of(config: MemoryConfig) -> Memory {
    Memory::new(config, Box::new(RamStore::new()), index(), Arc::new(HashEmbedder)).unwrap()
}

const TEXTS: [&str; 5] = [
    "The lighthouse keeper is called Oda.",
    "Bread costs four coins in the harbour.",
    "The harbour master is called Ruben.",
    "A storm sank the ferry in March.",
    "Oda repaired the lamp of the lighthouse.",
];

/// Five blocks of 20 tokens, from token 4 on.
fn remember_texts(memory: &mut Memory) {
    for (i, text) in TEXTS.iter().enumerate() {
        let start = 4 + 20 * i as u64;
        memory.remember(new_block(start..start + 20, text)).unwrap();
    }
}

fn filled() -> Memory {
    let mut memory = memory_of(config());
    remember_texts(&mut memory);
    memory
}

fn request(query: &str, evicted_end: u64) -> RecallRequest<'_> {
    RecallRequest::new(query, positions(4..evicted_end))
}

fn parts(recall: &Recall) -> Vec<(u64, u64)> {
    recall.blocks.iter().map(|b| (b.part.start.0, b.part.end.0)).collect()
}

#[test]
fn the_most_relevant_block_comes_back_whole() {
    let mut memory = filled();
    let request = RecallRequest { max_blocks: 1, ..request("Who is the harbour master?", 104) };
    let recall = memory.recall(&request).unwrap();
    assert_eq!(parts(&recall), [(44, 64)]);
    let recalled = &recall.blocks[0];
    assert_eq!(recalled.block.text(), TEXTS[2]);
    assert_eq!((recalled.rows(), recalled.is_partial()), (0..20, false));
    assert_eq!(recalled.tokens(), recalled.block.tokens());
    assert_eq!(recall.n_tokens(), 20);
}

/// Recall through clusters of keys finds the same in a branch, and after a start with what is left.
#[test]
fn clusters_of_keys_are_those_of_the_blocks_that_are_held() {
    let strategy = strategy::by_name("attention-clusters").unwrap();
    let config = MemoryConfig { strategy, ..config() };
    let mut rng = SplitMix64::new(4);
    let blocks: Vec<NewBlock> = (0..140)
        .map(|i| {
            let new = new_block(4 + 20 * i..24 + 20 * i, TEXTS[i as usize % 5]);
            let keys: Vec<f32> =
                (0..SHAPE.components(20).unwrap()).map(|_| rng.signed_unit()).collect();
            let kv = BlockKv::new(SHAPE, 20, &keys, &keys, KvType::F32).unwrap();
            NewBlock { kv, ..new }
        })
        .collect();
    let mut layer = || (0..3 * 2).map(|_| rng.signed_unit()).collect::<Vec<f32>>();
    let queries = ModelQueries { n_heads: 1, head_dim: 2, layers: vec![layer(), layer()] };
    let remember = |which: &dyn Fn(usize) -> bool| {
        let mut memory = memory_of(config.clone());
        for (_, block) in blocks.iter().enumerate().filter(|(i, _)| which(*i)) {
            memory.remember(block.clone()).unwrap();
        }
        memory
    };
    let recall = |memory: &mut Memory| {
        let mut request = request("Who is it?", 2804);
        (request.queries, request.max_blocks, request.max_tokens) = (Some(&queries), 6, 1000);
        parts(&memory.recall(&request).unwrap())
    };
    let mut memory = remember(&|_| true);
    let found = recall(&mut memory);
    assert_eq!(found.len(), 6);
    assert_eq!(recall(&mut memory.branch().unwrap()), found);
    memory.forget(&positions(found[5].0..found[5].0 + 1)).unwrap();
    memory.forget(&positions(4..5)).unwrap();
    let mut left = remember(&|i| ![4, found[5].0].contains(&(4 + 20 * i as u64)));
    let found = recall(&mut memory);
    assert_eq!(recall(&mut left), found);
    assert_eq!(recall(&mut memory.branch().unwrap()), found);
    // Without a model's queries the nearest.
    let nearest = |memory: &mut Memory| {
        parts(&memory.recall(&request("Bread costs four coins", 2804)).unwrap())
    };
    let expected = nearest(&mut memory);
    memory.set_strategy(Arc::new(strategy::Nearest));
    assert_eq!(nearest(&mut memory), expected);
}

#[test]
fn order_is_as_asked() {
    let mut memory = filled();
    let mut request = RecallRequest { max_blocks: 2, ..request("lamp of the lighthouse", 104) };
    assert_eq!(parts(&memory.recall(&request).unwrap()), [(4, 24), (84, 104)]);
    request.query = "four coins in the harbour";
    assert_eq!(parts(&memory.recall(&request).unwrap()), [(44, 64), (24, 44)]);
    request.order = RecallOrder::Stream;
    assert_eq!(parts(&memory.recall(&request).unwrap()), [(24, 44), (44, 64)]);
}

#[test]
fn neighbours_come_along_as_far_as_they_fit() {
    let mut memory = filled();
    let mut check = |query, max_blocks, (neighbours, max_tokens), end, expected: &[(u64, u64)]| {
        let request = request(query, end);
        let neighbours = Neighbours::Blocks(neighbours);
        let request = RecallRequest { max_blocks, neighbours, max_tokens, ..request };
        let recall = memory.recall(&request).unwrap();
        assert_eq!(parts(&recall), expected, "{query} {neighbours:?}");
        assert!(recall.blocks.iter().all(|b| b.distance.is_finite()));
    };
    let master = "Who is the harbour master?";
    check(master, 1, (1, 300), 104, &[(24, 44), (44, 64), (64, 84)]);
    check(master, 1, (1, 59), 104, &[(24, 44), (44, 64)]);
    check(master, 1, (2, 80), 104, &[(4, 24), (24, 44), (44, 64), (64, 84)]);
    check(master, 1, (9, 300), 70, &[(4, 24), (24, 44), (44, 64), (64, 70)]);
    // Runs stay whole; the one with the best block comes last.
    let lamp = "lamp of the lighthouse";
    check(lamp, 2, (1, 300), 104, &[(4, 24), (24, 44), (64, 84), (84, 104)]);
    // Room for one neighbour: that of the best block.
    check(lamp, 2, (1, 60), 104, &[(4, 24), (64, 84), (84, 104)]);
    check(lamp, 2, (2, 300), 104, &[(4, 24), (24, 44), (44, 64), (64, 84), (84, 104)]);
}

#[test]
fn neighbours_are_of_the_same_source_and_touch() {
    let mut memory = memory_of(config());
    for (i, (text, file)) in TEXTS.iter().zip(["a", "a", "a", "b", "b"]).enumerate() {
        let start = 4 + 20 * i as u64;
        let mut block = new_block(start..start + 20, text);
        block.source = Some(crate::block::Source { file: Arc::from(file), line: 1 });
        memory.remember(block).unwrap();
    }
    let mut request = RecallRequest {
        max_blocks: 1,
        neighbours: Neighbours::Blocks(2),
        ..request("Who is the harbour master?", 104)
    };
    let recall = memory.recall(&request).unwrap();
    assert_eq!(parts(&recall), [(4, 24), (24, 44), (44, 64)]);
    request.exclude = vec![positions(40..44)];
    assert_eq!(parts(&memory.recall(&request).unwrap()), [(44, 64)]);
}

/// Blocks of one paragraph or turn come together: up to a blank line, another role, or a block that
/// is not eligible.
#[test]
fn a_paragraph_comes_as_a_whole() {
    let mut memory = memory_of(config());
    let texts = [
        ("The cook bakes bread.\n\n", Role::Document),
        ("Boats come at noon. ", Role::Document),
        ("The harbour master is Oda.\n", Role::Document),
        ("She has a dog.", Role::Document),
        ("\n\nThe lamp burns all night. ", Role::Document),
        ("It is red.", Role::Document),
        ("What burns?", Role::User),
    ];
    for (i, (text, role)) in texts.into_iter().enumerate() {
        let start = 4 + 20 * i as u64;
        let block = NewBlock { role, ..new_block(start..start + 20, text) };
        memory.remember(block).unwrap();
    }
    let mut check = |query, max_blocks, max_tokens, end, expected: &[(u64, u64)]| {
        let neighbours = Neighbours::Paragraph;
        let request = request(query, end);
        let request = RecallRequest { max_blocks, neighbours, max_tokens, ..request };
        assert_eq!(parts(&memory.recall(&request).unwrap()), expected, "{query}");
    };
    let master = "Who is the harbour master?";
    check(master, 1, 300, 144, &[(24, 44), (44, 64), (64, 84)]);
    check(master, 1, 45, 144, &[(24, 44), (44, 64)]);
    check(master, 1, 300, 70, &[(24, 44), (44, 64), (64, 70)]);
    check("The cook bakes bread", 1, 300, 144, &[(4, 24)]);
    check("The lamp burns all night", 1, 300, 144, &[(84, 104), (104, 124)]);
    check("The lamp burns all night", 1, 300, 110, &[(84, 104), (104, 110)]);
}

#[test]
fn only_what_has_left_the_window_comes_back() {
    let mut memory = filled();
    for (evicted_end, expected) in [
        (4, vec![]),
        (5, vec![(4, 5)]),
        (24, vec![(4, 24)]),
        (30, vec![(4, 24), (24, 30)]),
        (104, vec![(4, 24), (24, 44), (44, 64), (64, 84), (84, 104)]),
        (900, vec![(4, 24), (24, 44), (44, 64), (64, 84), (84, 104)]),
    ] {
        let request = RecallRequest {
            max_blocks: 9,
            order: RecallOrder::Stream,
            ..request("the harbour", evicted_end)
        };
        let recall = memory.recall(&request).unwrap();
        assert_eq!(parts(&recall), expected, "evicted up to {evicted_end}");
    }
    let straddling = memory.recall(&request("the harbour", 30)).unwrap();
    let partial = straddling.blocks.iter().find(|b| b.is_partial()).unwrap();
    assert_eq!(partial.rows(), 0..6);
    assert_eq!(partial.tokens(), (24..30).map(|pos| pos + 1000).collect::<Vec<u32>>());
}

#[test]
fn what_is_excluded_makes_room_for_the_next() {
    let mut memory = filled();
    let exclude = vec![positions(84..104), positions(4..14)];
    let request =
        RecallRequest { max_blocks: 1, exclude, ..request("lamp of the lighthouse", 104) };
    assert_eq!(parts(&memory.recall(&request).unwrap()), [(14, 24)]);
}

#[test]
fn what_does_not_fit_is_listed_and_not_cut() {
    let mut memory = filled();
    let mut request =
        RecallRequest { max_tokens: 39, max_blocks: 3, ..request("lamp of the lighthouse", 104) };
    let recall = memory.recall(&request).unwrap();
    assert_eq!(parts(&recall), [(84, 104)]);
    assert_eq!(recall.skipped.len(), 2);
    assert_eq!(recall.skipped[0].part, positions(4..24));
    assert!(recall.skipped[0].distance <= recall.skipped[1].distance);
    request.max_tokens = 0;
    let recall = memory.recall(&request).unwrap();
    assert_eq!((recall.blocks.len(), recall.skipped.len()), (0, 3));
}

#[test]
fn the_gate_turns_away_what_is_far() {
    let mut memory = filled();
    memory.set_gate(Gate { max_distance: Some(0.4) });
    let recall = memory.recall(&request("lamp of the lighthouse", 104)).unwrap();
    assert_eq!(parts(&recall), [(84, 104)]);
    assert_eq!(recall.gated.len(), 3);
    assert!(recall.gated.iter().all(|gated| gated.distance > 0.4));
    let recall = memory.recall(&request("quarterly tax forecast", 104)).unwrap();
    assert_eq!((recall.blocks.len(), recall.gated.len()), (0, 4));
}

#[test]
fn an_empty_question_or_memory_recalls_nothing() {
    let mut memory = filled();
    for query in ["", " \n\t"] {
        assert!(memory.recall(&request(query, 104)).unwrap().blocks.is_empty());
    }
    let nothing = RecallRequest { max_blocks: 0, ..request("harbour", 104) };
    assert!(memory.recall(&nothing).unwrap().blocks.is_empty());
    let mut empty = memory_of(config());
    assert!(empty.recall(&request("harbour", 104)).unwrap().blocks.is_empty());
    assert!(empty.search("harbour", 3, &BlockFilter::default()).unwrap().is_empty());
    let mut reversed = request("harbour", 104);
    reversed.evicted = TokenPos(9)..TokenPos(4);
    assert!(matches!(memory.recall(&reversed), Err(MemoryError::Range { start: 9, end: 4 })));
}

#[test]
fn people_search_without_gate_and_window() {
    let mut memory = filled();
    memory.set_gate(Gate { max_distance: Some(0.0) });
    let found = memory.search("the ferry", 2, &BlockFilter::default()).unwrap();
    assert_eq!(found[0].text.text, TEXTS[3]);
    assert_eq!(found.len(), 2);
    assert!(found[0].distance <= found[1].distance);
    assert_eq!(memory.search("the ferry", 99, &BlockFilter::default()).unwrap().len(), 5);
    let last = memory.block(4).unwrap();
    assert_eq!((last.id(), last.text()), (memory.metas()[4].id, TEXTS[4]));
    assert!(memory.block(5).is_err());
}

#[test]
fn strategies_can_be_exchanged() {
    let mut memory = filled();
    memory.set_strategy(Arc::new(Random { seed: 1 }));
    let request = RecallRequest { max_blocks: 5, ..request("lamp of the lighthouse", 104) };
    let drawn = memory.recall(&request).unwrap();
    assert_eq!(drawn.blocks.len(), 5);
    assert_eq!(parts(&memory.recall(&request).unwrap()), parts(&drawn));
}

#[test]
fn blocks_that_cannot_be_are_refused() {
    let mut memory = filled();
    let before = memory.stats();
    let mut other_shape = new_block(200..220, "text");
    let shape = KvShapeOf::with_layers(SHAPE.n_layers + 1);
    other_shape.kv = shape.kv(20);
    assert!(matches!(memory.remember(other_shape), Err(MemoryError::Shape { .. })));
    assert!(matches!(
        memory.remember(new_block(200..297, "text")),
        Err(MemoryError::BlockTooLong { n_tokens: 97, max: 96 })
    ));
    assert!(matches!(
        memory.remember(new_block(103..110, "text")),
        Err(MemoryError::Store(StoreError::OutOfOrder { start: 103, end: 104, .. }))
    ));
    assert_eq!(memory.stats(), before);
}

struct KvShapeOf(crate::kv::KvShape);

impl KvShapeOf {
    fn with_layers(n_layers: usize) -> Self {
        Self(crate::kv::KvShape { n_layers, ..SHAPE })
    }

    fn kv(&self, n_tokens: usize) -> crate::kv::BlockKv {
        let zeros = vec![0.0; self.0.components(n_tokens).unwrap()];
        crate::kv::BlockKv::new(self.0, n_tokens, &zeros, &zeros, crate::kv::KvType::F32).unwrap()
    }
}

#[test]
fn a_replayed_stream_writes_the_same_blocks() {
    let mut memory = filled();
    let (stats, ids) = (memory.stats(), memory.metas().to_vec());
    remember_texts(&mut memory);
    assert_eq!(memory.stats(), stats);
    assert_eq!(memory.metas(), ids);
    assert_eq!(filled().metas(), ids);
}

#[test]
fn settings_are_checked() {
    for name in ["", ".", "..", "a/b", "a\\b", "a b", "a\0", &"x".repeat(65)] {
        let config = MemoryConfig { session: name.to_owned(), ..config() };
        let made = Memory::new(config, Box::new(RamStore::new()), index(), Arc::new(HashEmbedder));
        assert!(
            matches!(made, Err(MemoryError::Store(StoreError::SessionName { .. }))),
            "{name:?}"
        );
    }
    let zero = MemoryConfig { embed_batch: 0, ..config() };
    let make = |config, index| {
        Memory::new(config, Box::new(RamStore::new()), index, Arc::new(HashEmbedder)).unwrap_err()
    };
    assert!(matches!(make(zero, index()), MemoryError::ZeroBatch));
    let narrow = Box::new(ExactIndex::new(3, Distance::Cosine).unwrap());
    assert!(matches!(make(config(), narrow), MemoryError::Dim { embedder: 64, index: 3 }));
    let mut used = index();
    used.add(BlockId(1), &[0.0; 64]).unwrap();
    assert!(matches!(make(config(), used), MemoryError::IndexNotEmpty { n_vectors: 1 }));
}

/// Counts its calls and texts, and fails while it is told to.
#[derive(Debug, Default)]
struct Watched {
    calls: AtomicUsize,
    texts: AtomicUsize,
    failures_left: AtomicUsize,
}

impl Embedder for Watched {
    fn name(&self) -> String {
        "test".to_owned()
    }

    fn dim(&self) -> usize {
        HashEmbedder.dim()
    }

    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let left = self.failures_left.load(Ordering::Relaxed);
        if left > 0 {
            self.failures_left.store(left - 1, Ordering::Relaxed);
            return Err(EmbedError::NotFinite { text: 0, n_texts: texts.len() });
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.texts.fetch_add(texts.len(), Ordering::Relaxed);
        HashEmbedder.embed(texts)
    }
}

fn watched_memory() -> (Memory, Arc<Watched>) {
    let watched = Arc::new(Watched::default());
    let store = Box::new(RamStore::new());
    (Memory::new(config(), store, index(), watched.clone()).unwrap(), watched)
}

#[test]
fn texts_wait_and_are_embedded_in_batches() {
    let (mut memory, watched) = watched_memory();
    remember_texts(&mut memory);
    assert_eq!(watched.calls.load(Ordering::Relaxed), 0);
    assert_eq!((memory.stats().n_pending, memory.stats().n_indexed), (5, 0));
    assert_eq!(memory.flush().unwrap(), 5);
    assert_eq!(watched.calls.load(Ordering::Relaxed), 2);
    assert_eq!(memory.flush().unwrap(), 0);
    assert_eq!(watched.texts.load(Ordering::Relaxed), 5);
    // Nothing has left the window, so the query is not embedded either.
    memory.recall(&request("harbour", 4)).unwrap();
    assert_eq!(watched.calls.load(Ordering::Relaxed), 2);
}

#[test]
fn a_failing_embedder_costs_no_block() {
    let (mut memory, watched) = watched_memory();
    for (i, text) in TEXTS.iter().take(3).enumerate() {
        memory.remember(new_block(i as u64 * 20..i as u64 * 20 + 20, text)).unwrap();
    }
    watched.failures_left.store(3, Ordering::Relaxed);
    memory.remember(new_block(60..80, TEXTS[3])).unwrap();
    let before = memory.stats();
    assert!(memory.flush().is_err());
    assert!(memory.recall(&request("storm", 80)).is_err());
    assert!(memory.search("storm", 1, &BlockFilter::default()).is_err());
    assert_eq!(memory.stats(), before);
    assert_eq!((before.n_blocks, before.n_pending), (4, 4));
    let recall = memory.recall(&request("storm in march", 80)).unwrap();
    assert_eq!(recall.blocks.last().unwrap().block.text(), TEXTS[3]);
}

#[derive(Debug)]
struct Liar(usize, usize);

impl Embedder for Liar {
    fn name(&self) -> String {
        "test".to_owned()
    }

    fn dim(&self) -> usize {
        HashEmbedder.dim()
    }

    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        Ok(vec![vec![0.0; self.1]; texts.len() + self.0 - 1])
    }
}

#[test]
fn an_embedder_that_breaks_its_promise_is_an_error() {
    for liar in [Liar(0, 64), Liar(2, 64), Liar(1, 63)] {
        let store = Box::new(RamStore::new());
        let mut memory = Memory::new(config(), store, index(), Arc::new(liar)).unwrap();
        memory.remember(new_block(0..20, "text")).unwrap();
        assert!(matches!(memory.flush(), Err(MemoryError::EmbedderOutput { .. })));
        assert_eq!((memory.stats().n_pending, memory.stats().n_indexed), (1, 0));
    }
}

/// Every write of the store fails once; repeating the call that failed repairs everything.
#[test]
fn a_failing_store_costs_no_block() {
    let expected = {
        let mut memory = filled();
        parts(&memory.recall(&request("Who is called Oda?", 104)).unwrap())
    };
    for nth_write in 0..10 {
        let store = Box::new(FailingStore::new(Box::new(RamStore::new()), nth_write));
        let mut memory = Memory::new(config(), store, index(), Arc::new(HashEmbedder)).unwrap();
        let mut failures = 0;
        for (i, text) in TEXTS.iter().enumerate() {
            let block = || new_block(4 + 20 * i as u64..24 + 20 * i as u64, text);
            let n_blocks = memory.stats().n_blocks;
            if memory.remember(block()).is_err() {
                failures += 1;
                assert_eq!(memory.stats().n_blocks, n_blocks);
                memory.remember(block()).unwrap();
            }
        }
        let request = request("Who is called Oda?", 104);
        let recall = memory.recall(&request).or_else(|_| {
            failures += 1;
            memory.recall(&request)
        });
        assert_eq!(parts(&recall.unwrap()), expected, "write {nth_write}");
        assert_eq!(failures, 1, "write {nth_write}");
        assert_eq!((memory.stats().n_indexed, memory.stats().n_pending), (5, 0));
    }
}

#[test]
fn a_memory_is_filled_from_a_store_that_has_blocks() {
    let mut first = filled();
    first.flush().unwrap();
    let reopened = first.branch().unwrap().store;
    let watched = Arc::new(Watched::default());
    let mut second = Memory::new(config(), reopened, index(), watched.clone()).unwrap();
    // The store has the embeddings too.
    assert_eq!(watched.texts.load(Ordering::Relaxed), 0);
    let request = request("Who is called Oda?", 104);
    let recall = second.recall(&request).unwrap();
    assert_eq!(parts(&recall), parts(&first.recall(&request).unwrap()));
    assert_eq!(second.stats().n_tokens, 100);

    let mut bare = RamStore::new();
    for (order, _) in TEXTS.iter().enumerate() {
        let block = new_block(4 + 20 * order as u64..24 + 20 * order as u64, TEXTS[order]);
        bare.append(Arc::new(Block::new(Arc::from("test"), block).unwrap())).unwrap();
    }
    let third = Memory::new(config(), Box::new(bare), index(), watched.clone()).unwrap();
    assert_eq!((third.stats().n_indexed, third.stats().n_pending), (5, 0));
    assert_eq!(watched.calls.load(Ordering::Relaxed), 3);
}

#[test]
fn branches_share_blocks_and_embeddings_and_go_their_own_way() {
    let (mut trunk, watched) = watched_memory();
    remember_texts(&mut trunk);
    let mut left = trunk.branch().unwrap();
    let mut right = trunk.branch().unwrap();
    left.flush().unwrap();
    let n_texts = watched.texts.load(Ordering::Relaxed);
    right.flush().unwrap();
    trunk.flush().unwrap();
    assert_eq!(watched.texts.load(Ordering::Relaxed), n_texts);
    left.remember(new_block(104..120, "Left found a red kite.")).unwrap();
    right.remember(new_block(104..130, "Right found a red kite.")).unwrap();
    let ends = |memory: &mut Memory| {
        let found = memory.search("red kite", 1, &BlockFilter::default()).unwrap();
        found[0].meta.range.end.0
    };
    assert_eq!((ends(&mut left), ends(&mut right)), (120, 130));
    assert_eq!(trunk.stats().n_blocks, 5);
    let shared = |memory: &Memory| memory.store.get(0).unwrap();
    assert!(Arc::ptr_eq(&shared(&left), &shared(&trunk)));
}

/// An index whose every third addition fails.
#[derive(Debug)]
struct FlakyIndex {
    inner: Box<dyn VectorIndex>,
    calls: usize,
}

impl VectorIndex for FlakyIndex {
    fn add(&mut self, id: BlockId, embedding: &[f32]) -> Result<(), IndexError> {
        self.calls += 1;
        if self.calls.is_multiple_of(3) {
            return Err(IndexError::Dim { expected: 64, found: 0 });
        }
        self.inner.add(id, embedding)
    }

    fn search(
        &self,
        query: &[f32],
        n: usize,
        filter: &dyn Fn(BlockId) -> bool,
        out: &mut Vec<Hit>,
    ) -> Result<(), IndexError> {
        self.inner.search(query, n, filter, out)
    }

    fn vectors(&self, ids: &[BlockId], out: &mut Vec<f32>) -> Result<(), IndexError> {
        self.inner.vectors(ids, out)
    }

    fn len(&self) -> usize {
        self.inner.len()
    }

    fn dim(&self) -> usize {
        self.inner.dim()
    }

    fn distance(&self) -> Distance {
        self.inner.distance()
    }

    fn branch(&self) -> Result<Box<dyn VectorIndex>, IndexError> {
        self.inner.branch()
    }
}

#[test]
fn a_failing_index_costs_no_block() {
    let flaky = Box::new(FlakyIndex { inner: index(), calls: 0 });
    let store = Box::new(RamStore::new());
    let config = MemoryConfig { embed_batch: 16, ..config() };
    let mut memory = Memory::new(config, store, flaky, Arc::new(HashEmbedder)).unwrap();
    remember_texts(&mut memory);
    assert!(memory.flush().is_err());
    assert_eq!((memory.stats().n_indexed, memory.stats().n_pending), (2, 3));
    assert!(memory.flush().is_err());
    assert_eq!(memory.flush().unwrap(), 1);
    assert_eq!(memory.recall(&request("Oda", 104)).unwrap().blocks.len(), 4);
}

/// The memory against a list that is searched from end to end.
#[test]
fn recalls_are_those_of_the_naive_memory() {
    let words = ["oda", "lamp", "ferry", "bread", "storm", "harbour", "kite", "march", "coin"];
    for seed in 0..150 {
        let mut rng = SplitMix64::new(seed);
        let mut memory = memory_of(MemoryConfig { embed_batch: 1 + rng.below(5), ..config() });
        let text = |rng: &mut SplitMix64| -> String {
            (0..1 + rng.below(5)).map(|_| words[rng.below(words.len())].to_owned() + " ").collect()
        };
        let mut all: Vec<(Range<u64>, String)> = Vec::new();
        let mut end = 4;
        for _ in 0..60 {
            if rng.below(3) > 0 {
                // Gaps are turns that were forgotten.
                let start = end + if rng.below(5) == 0 { rng.below(30) as u64 } else { 0 };
                end = start + 1 + rng.below(96) as u64;
                all.push((start..end, text(&mut rng)));
                let (range, text) = all.last().unwrap();
                memory.remember(new_block(range.clone(), text)).unwrap();
                continue;
            }
            let query = text(&mut rng);
            let hole = rng.below(end as usize) as u64;
            let request = RecallRequest {
                max_tokens: rng.below(400),
                max_blocks: rng.below(6),
                order: [RecallOrder::BestLast, RecallOrder::Stream][rng.below(2)],
                exclude: vec![positions(hole..hole + rng.below(200) as u64)],
                ..request(&query, 4 + rng.below(end as usize) as u64)
            };
            let recall = memory.recall(&request).unwrap();
            check_recall(&recall, &request);
            check_neighbours(&mut memory, &recall, &request);
            let mut expected = naive(&all, &request);
            if request.order == RecallOrder::BestLast {
                expected.reverse();
            } else {
                expected.sort();
            }
            assert_eq!(parts(&recall), expected, "seed {seed}");
        }
    }
}

fn check_recall(recall: &Recall, request: &RecallRequest<'_>) {
    assert!(recall.n_tokens() <= request.max_tokens);
    let n_proposed = recall.blocks.len() + recall.gated.len() + recall.skipped.len();
    assert!(n_proposed <= request.max_blocks);
    let mut parts = parts(recall);
    parts.sort_unstable();
    assert!(parts.windows(2).all(|pair| pair[0].1 <= pair[1].0));
}

/// With neighbours, all that came without them comes, and the limits hold.
fn check_neighbours(memory: &mut Memory, alone: &Recall, request: &RecallRequest<'_>) {
    for neighbours in [Neighbours::Blocks(2), Neighbours::Paragraph] {
        let request = RecallRequest { neighbours, ..request.clone() };
        let recall = memory.recall(&request).unwrap();
        assert!(recall.n_tokens() <= request.max_tokens);
        let found = parts(&recall);
        assert!(parts(alone).iter().all(|part| found.contains(part)));
        let mut sorted = found.clone();
        sorted.sort_unstable();
        assert!(sorted.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        if request.order == RecallOrder::Stream {
            assert_eq!(sorted, found);
        }
    }
}

fn naive(all: &[(Range<u64>, String)], request: &RecallRequest<'_>) -> Vec<(u64, u64)> {
    let embed = |text: &str| HashEmbedder.embed(&[text]).unwrap().swap_remove(0);
    // Texts of the same words are equally far, so distances must be rounded in one way.
    let distance = |text: &str| {
        let mut index = index();
        index.add(BlockId(0), &embed(text)).unwrap();
        let mut hits = Vec::new();
        index.search(&embed(request.query), 1, &|_| true, &mut hits).unwrap();
        hits[0].distance
    };
    let mut near: Vec<(f32, u64, u64, bool)> = all
        .iter()
        .filter_map(|(range, text)| {
            let block = Block::new(Arc::from("test"), new_block(range.clone(), text)).unwrap();
            let part = request.part_of(&BlockMeta::from(&block))?;
            let n_tokens = part.end.0 - part.start.0;
            let is_scrap = n_tokens < 8 && n_tokens < range.end - range.start;
            Some((distance(text), part.start.0, part.end.0, is_scrap))
        })
        .collect();
    near.sort_by(|a, b| a.0.total_cmp(&b.0));
    near.truncate(request.max_blocks + 2);
    near.sort_by_key(|(.., is_scrap)| *is_scrap);
    near.truncate(request.max_blocks);
    let mut left = request.max_tokens as u64;
    near.retain(|(_, start, end, _)| {
        let fits = end - start <= left;
        left -= if fits { end - start } else { 0 };
        fits
    });
    near.into_iter().map(|(_, start, end, _)| (start, end)).collect()
}

/// A block that was found for what the window shows of it does not take the place of another one.
#[test]
fn a_scrap_does_not_take_the_place_of_a_block() {
    let mut memory = filled();
    let query = "The harbour master counts the boats";
    let best = |memory: &mut Memory, evicted_end| {
        let request = RecallRequest { max_blocks: 1, ..request(query, evicted_end) };
        parts(&memory.recall(&request).unwrap())
    };
    let [(start, end)] = best(&mut memory, 900)[..] else { panic!("one block") };
    let [other] = best(&mut memory, start + 7)[..] else { panic!("one block") };
    assert!(other.1 <= start, "{other:?}");
    assert_eq!(best(&mut memory, start + 8), [(start, start + 8)]);
    assert!(end > start + 8);
}

/// Words are indexed when they are first needed, and for each branch by itself once it remembers.
#[test]
fn hybrid_sees_the_words_of_every_block_and_of_no_other() {
    let strategy = Arc::new(crate::strategy::Hybrid::default());
    let mut memory = memory_of(MemoryConfig { strategy, ..config() });
    remember_texts(&mut memory);
    let best = |memory: &mut Memory, query: &str| {
        let request = RecallRequest { max_blocks: 1, ..request(query, 1000) };
        memory.recall(&request).unwrap().blocks.pop().map(|b| b.block.text().to_owned())
    };
    assert_eq!(best(&mut memory, "ferry March").as_deref(), Some(TEXTS[3]));
    let mut branch = memory.branch().unwrap();
    branch.remember(new_block(104..124, "In March the ferry sailed again.")).unwrap();
    memory.remember(new_block(104..124, "Number QX 4711 is kept here.")).unwrap();
    let sailed = Some("In March the ferry sailed again.");
    assert_eq!(best(&mut branch, "ferry sailed in March").as_deref(), sailed);
    assert_eq!(best(&mut memory, "QX 4711").as_deref(), Some("Number QX 4711 is kept here."));
    memory.forget(&positions(64..84)).unwrap();
    assert_ne!(best(&mut memory, "ferry March").as_deref(), Some(TEXTS[3]));
    assert_eq!(memory.stats().n_blocks, 5);
    assert_eq!(memory.search("ferry", 9, &BlockFilter::default()).unwrap().len(), 5);
}
