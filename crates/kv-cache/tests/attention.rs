//! Attention through a cache against the formula: keys rotated at their place in the list that
//! StreamingLLM's loop would hold, everything in f64. The two-query method must give the same.

#![expect(clippy::unwrap_used, reason = "a test stops where something unexpected happens")]

use std::ops::Range;
use std::sync::Arc;

use everstream_kernels::{Isa, Rope};
use everstream_kv_cache::{
    CacheConfig, EvictionPolicy, KvCache, KvSource, KvType, LayerKind, NeverEvict, Place,
    QueryHeads, RawKeys, SinkWindow, Timeline, TokenPos,
};

const LAYERS: usize = 2;
const KV_HEADS: usize = 2;
/// Query heads that share a KV head.
const GROUP: usize = 3;
const DIM: usize = 32;
/// By layer; the second may be a sliding one.
const BASES: [f32; LAYERS] = [10_000.0, 100.0];

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// A vector of the model: a function of whose it is.
fn vector(kind: u64, token: usize, layer: usize, head: usize) -> Vec<f32> {
    let place = [kind, token as u64, layer as u64, head as u64];
    let mut rng = Rng(place.iter().fold(7, |seed, x| seed * 1009 + x));
    (0..DIM).map(|_| (rng.next() >> 40) as f32 / (1 << 22) as f32 - 2.0).collect()
}

fn key(token: usize, layer: usize, head: usize) -> Vec<f32> {
    vector(1, token, layer, head)
}

fn value(token: usize, layer: usize, head: usize) -> Vec<f32> {
    vector(2, token, layer, head)
}

fn query(token: usize, layer: usize, head: usize) -> Vec<f32> {
    vector(3, token, layer, head)
}

/// Tokens of the stream that were stored when they were computed.
struct Stored(Range<usize>);

impl KvSource for Stored {
    fn n_tokens(&self) -> usize {
        self.0.len()
    }

    fn read(&self, layer: usize, kv_head: usize, keys: &mut [f32], values: &mut [f32]) {
        let rows = keys.chunks_exact_mut(DIM).zip(values.chunks_exact_mut(DIM));
        for (token, (k, v)) in self.0.clone().zip(rows) {
            k.copy_from_slice(&key(token, layer, kv_head));
            v.copy_from_slice(&value(token, layer, kv_head));
        }
    }
}

/// A cache, and the naive stream beside it.
struct Run {
    cache: KvCache,
    n_sink: usize,
    window: usize,
    n_tokens: usize,
    hidden_before: usize,
    recall: Option<(Place, usize, Vec<usize>)>,
    sliding_window: usize,
    tolerance: f64,
}

impl Run {
    /// Layer 1 sees the last `sliding_window` places only.
    fn new(
        policy: Arc<dyn EvictionPolicy>,
        (recall, chunk): (usize, usize),
        sliding_window: usize,
        kv_type: KvType,
    ) -> Self {
        let (n_sink, window) = (policy.n_sink(), policy.window_tokens());
        let cache = KvCache::new(&CacheConfig {
            kinds: vec![
                LayerKind { rope: Rope::new(BASES[0], DIM), window_tokens: None },
                LayerKind { rope: Rope::new(BASES[1], DIM), window_tokens: Some(sliding_window) },
            ],
            layers: vec![0, 1],
            n_kv_heads: KV_HEADS,
            group: GROUP,
            head_dim: DIM,
            policy,
            recall_tokens: recall,
            chunk_tokens: chunk,
            kv_type,
            raw_keys: RawKeys::Keep,
            clusters: None,
        });
        // Scores reach 10: f32 sums are off by 1e-6 of that, f16 keys by 5e-4 of a component.
        let tolerance = if kv_type == KvType::F32 { 2e-5 } else { 2e-2 };
        let (cache, recall) = (cache.unwrap(), None);
        Self {
            cache,
            n_sink,
            window,
            n_tokens: 0,
            hidden_before: 0,
            recall,
            sliding_window,
            tolerance,
        }
    }

    /// Tokens that the query at `t` sees, in the order of their positions; itself last.
    fn list(&self, t: usize) -> Vec<usize> {
        let hidden_before = if self.recall.is_some() { self.hidden_before.min(t) } else { 0 };
        let oldest = t.saturating_sub(self.window).max(hidden_before).max(self.n_sink);
        let mut list: Vec<usize> = (0..self.n_sink.min(t + 1)).chain(oldest..=t).collect();
        if let Some((place, at, tokens)) = &self.recall {
            let is_window = |i: usize| i >= self.n_sink;
            let before_turn = |i: usize, p: usize| *place == Place::Near && is_window(i) && p < *at;
            let n_before = (0..list.len()).filter(|&i| before_turn(i, list[i])).count();
            let place = self.n_sink + n_before;
            list.splice(place..place, tokens.iter().copied());
        }
        list
    }

    fn append(&mut self, n_tokens: usize) {
        self.append_ahead(n_tokens, n_tokens, n_tokens);
    }

    /// Appends `n_now` of `n_rows` rows that are computed together, then the others up to `n_right`: what
    /// stands ahead behind them is something else.
    fn append_ahead(&mut self, n_rows: usize, n_now: usize, n_right: usize) {
        self.cache.begin(n_rows, &[]).unwrap();
        let rows = self.cache.rows().to_vec();
        let (right, wrong) = rows.split_at(n_right);
        let ropes = BASES.map(|base| Rope::new(base, DIM));
        let rotate = |layer: usize, position: u64, x: &[f32], scale: f32| {
            let mut out = vec![0.0; DIM];
            ropes[layer].rotation(position).apply(x, scale, &mut out);
            out
        };
        for (layer, kv_head) in (0..LAYERS).flat_map(|l| (0..KV_HEADS).map(move |h| (l, h))) {
            let (_, heads) = self.cache.planned(layer);
            for row in wrong {
                let wrong = [7.5; DIM];
                heads[kv_head].write(row.slot, &wrong, &wrong, &wrong);
            }
            for row in right {
                let raw = key(row.token.0 as usize, layer, kv_head);
                let rotated = rotate(layer, row.window_pos.0, &raw, 1.0);
                let value = value(row.token.0 as usize, layer, kv_head);
                heads[kv_head].write(row.slot, &raw, &rotated, &value);
            }
            for row in right {
                let t = row.token.0 as usize;
                let forms = [row.window_pos, row.cache_pos].map(|position| {
                    let queries = (0..GROUP).map(|g| query(t, layer, kv_head * GROUP + g));
                    let scale = 1.0 / (DIM as f32).sqrt();
                    queries.flat_map(|q| rotate(layer, position.0, &q, scale)).collect::<Vec<_>>()
                });
                let mut out = vec![0.0; GROUP * DIM];
                let forms = [&forms[0][..], &forms[1][..]];
                let (_, heads) = self.cache.planned(layer);
                let spans = if layer == 1 { &row.sliding_spans } else { &row.spans };
                let queries = QueryHeads { first: 0, forms, is_alone: false };
                heads[kv_head].attend(
                    Isa::detect(),
                    spans,
                    None,
                    queries,
                    &mut Vec::new(),
                    &mut out,
                );
                for (g, out) in out.chunks_exact(DIM).enumerate() {
                    let expected = self.naive(t, layer, kv_head, kv_head * GROUP + g);
                    for (x, y) in out.iter().zip(&expected) {
                        let error = (f64::from(*x) - y).abs();
                        assert!(error < self.tolerance, "query {t}: {error:e}");
                    }
                }
            }
        }
        self.cache.commit(n_rows - n_now);
        (n_now..n_right).for_each(|_| assert!(self.cache.take_ahead()));
        self.n_tokens += n_right;
        assert_eq!(self.cache.next().0, self.n_tokens as u64);
    }

    fn append_all(&mut self, mut n_tokens: usize) {
        while n_tokens > 0 {
            let n = self.cache.timeline().next_chunk(n_tokens);
            self.append(n);
            n_tokens -= n;
        }
    }

    /// Softmax attention of one query head, from the formula.
    fn naive(&self, t: usize, layer: usize, kv_head: usize, head: usize) -> Vec<f64> {
        let list = self.list(t);
        let q = rotated(layer, &query(t, layer, head), list.len() - 1);
        let first = if layer == 1 { list.len().saturating_sub(self.sliding_window) } else { 0 };
        let scores: Vec<f64> = list
            .iter()
            .enumerate()
            .skip(first)
            .map(|(position, &token)| {
                let k = rotated(layer, &key(token, layer, kv_head), position);
                q.iter().zip(&k).map(|(q, k)| q * k).sum::<f64>() / (DIM as f64).sqrt()
            })
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        let mut out = vec![0.0; DIM];
        for (score, &token) in scores.iter().zip(&list[first..]) {
            for (out, v) in out.iter_mut().zip(value(token, layer, kv_head)) {
                *out += (score - max).exp() / total * f64::from(v);
            }
        }
        out
    }

    /// Recalls two runs of tokens from anywhere in the past.
    fn recall(&mut self, place: Place, rng: &mut Rng) {
        let capacity = self.cache.timeline().recall_tokens();
        let len = rng.below(capacity + 1).min(self.n_tokens);
        let first = rng.below(len + 1);
        let mut run = |len: usize| {
            let start = rng.below(self.n_tokens - len + 1);
            start..start + len
        };
        let parts = [Stored(run(first)), Stored(run(len - first))];
        self.cache.recall(place, &[&parts[0], &parts[1]]).unwrap();
        let tokens: Vec<usize> = parts.iter().flat_map(|p| p.0.clone()).collect();
        self.recall = (len > 0).then_some((place, self.n_tokens, tokens));
    }

    fn end_recall(&mut self) {
        self.cache.end_recall();
        (self.recall, self.hidden_before) = (None, 0);
    }

    /// The rows that are still held are those that were computed.
    fn check_raw(&self) {
        let held = self.cache.held();
        let n = held.end.since(held.start);
        let (mut keys, mut values) = (vec![0.0; n * DIM], vec![0.0; n * DIM]);
        self.cache.read_raw(&held, 1, 1, &mut keys, &mut values).unwrap();
        let rows = keys.chunks_exact(DIM).zip(values.chunks_exact(DIM));
        for (token, (k, v)) in (held.start.0 as usize..).zip(rows) {
            let near = |a: &[f32], b: Vec<f32>| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3);
            assert!(near(k, key(token, 1, 1)) && near(v, value(token, 1, 1)), "token {token}");
        }
    }
}

/// Components `(i, i + DIM / 2)` turned by `position * base^(-2i / DIM)`, with the base of the layer.
fn rotated(layer: usize, x: &[f32], position: usize) -> Vec<f64> {
    let half = DIM / 2;
    let turn = |i: usize| {
        let frequency = f64::from(BASES[layer]).powf(-2.0 * (i % half) as f64 / DIM as f64);
        let (sin, cos) = (position as f64 * frequency).sin_cos();
        let (x, other) = (f64::from(x[i]), f64::from(x[(i + half) % DIM]));
        if i < half { x * cos - other * sin } else { x * cos + other * sin }
    };
    (0..DIM).map(turn).collect()
}

fn random_run(policy: Arc<dyn EvictionPolicy>, seed: u64, kv_type: KvType) {
    let mut rng = Rng(seed);
    let sizes = (1 + rng.below(9), 1 + rng.below(7));
    let mut run = Run::new(policy, sizes, 1 + rng.below(24), kv_type);
    run.append_all(run.n_sink + 1);
    while run.n_tokens < 120 {
        match rng.below(8) {
            0 if run.recall.is_none() => run.recall(Place::Near, &mut rng),
            1 if run.recall.is_none() => run.recall(Place::Between, &mut rng),
            2 => run.end_recall(),
            3 if run.cache.sections().recalled > 0 => {
                let at = run.recall.as_ref().map_or(0, |recall| recall.1);
                run.hidden_before = rng.below(at + 1);
                run.cache.hide_before(TokenPos(run.hidden_before as u64));
            }
            4 | 5 => {
                let n_rows = run.cache.timeline().next_chunk(1 + rng.below(9));
                let n_right = 1 + rng.below(n_rows);
                run.append_ahead(n_rows, 1 + rng.below(n_right), n_right);
            }
            _ => run.append_all(1 + rng.below(9)),
        }
        run.check_raw();
    }
}

#[test]
fn random_streams_agree_with_the_formula() {
    for seed in 0..24 {
        let policy = SinkWindow { n_sink: seed % 5, window_tokens: 1 + seed * 7 % 23 };
        random_run(Arc::new(policy), seed as u64, KvType::F32);
        random_run(Arc::new(policy), seed as u64, KvType::F16);
    }
}

#[test]
fn random_dense_streams_agree_with_the_formula() {
    for seed in 0..6 {
        let policy = NeverEvict { n_sink: seed, max_tokens: 200 };
        random_run(Arc::new(policy), seed as u64, KvType::F32);
    }
}

#[test]
fn a_branch_leaves_the_original_alone() {
    let policy = SinkWindow { n_sink: 2, window_tokens: 9 };
    let mut run = Run::new(Arc::new(policy), (5, 4), 8, KvType::F32);
    run.append_all(30);
    run.recall(Place::Near, &mut Rng(3));
    let before = format!("{:?}", run.cache);
    let original = run.cache.clone();
    run.append_all(20);
    run.end_recall();
    assert!(format!("{original:?}") == before);
}

#[test]
fn a_hundred_thousand_tokens_in_the_same_slots() {
    let policy = Arc::new(SinkWindow { n_sink: 4, window_tokens: 508 });
    let mut timeline = Timeline::new(policy, 300, 256).unwrap();
    let mut rows = Vec::new();
    while timeline.next() < TokenPos(100_000) {
        timeline.plan(250, &[], &mut rows).unwrap();
        for row in &rows {
            assert!((row.slot.0 as usize) < 4 + 300 + 508 + 256, "{row:?}");
            assert!(row.spans.iter().all(|s| s.first + s.len <= timeline.n_slots()), "{row:?}");
        }
        timeline.advance(250);
    }
    assert_eq!(timeline.n_slots(), 4 + 300 + 508 + 256);
}

#[test]
fn memory_is_fixed_at_construction() {
    let policy = SinkWindow { n_sink: 2, window_tokens: 9 };
    let mut run = Run::new(Arc::new(policy), (5, 4), 8, KvType::F16);
    // 2 + 5 + 9 + 4 slots; keys lie in tiles of 16, so there are 32 of them. Sinks have no raw key.
    let per_head = ((32 + 20) * DIM * 2, 18 * DIM * 2);
    let bytes = (LAYERS * KV_HEADS * per_head.0, LAYERS * KV_HEADS * per_head.1);
    assert_eq!(run.cache.bytes(), bytes);
    for _ in 0..30 {
        run.append_all(50);
        run.recall(Place::Near, &mut Rng(3));
        run.append_all(50);
        run.end_recall();
    }
    assert_eq!(run.cache.bytes(), bytes);
}
