//! Keys and values of one stream in constant memory.

use std::ops::Range;
use std::sync::Arc;

use everstream_kernels::{Rope, Rotation};

use crate::clusters::Clusters;
use crate::{
    CacheError, ClusterConfig, Compute, EvictionPolicy, HeadBuffers, KvType, Place, RowPlan,
    Sections, Timeline, TimelineState, TokenPos, range_len,
};

/// Whether keys are kept before rotation as well: what a memory stores, and what a recall needs to
/// open and close positions in the window. They are a second copy of the window's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawKeys {
    /// Keep them for the recalled section and the window.
    Keep,
    /// Do without.
    Drop,
}

/// What layers of a model may differ in.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerKind {
    /// Rotary frequencies.
    pub rope: Rope,
    /// How many tokens a query sees at most, its own included and counted in places of the cache;
    /// `None` for all that the cache holds.
    pub window_tokens: Option<usize>,
}

/// Capacities and shape, fixed for the life of a cache.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// The kinds of layers there are; those with a window of their own have the same.
    pub kinds: Vec<LayerKind>,
    /// The kind of each layer of the model.
    pub layers: Vec<usize>,
    /// KV heads of a layer.
    pub n_kv_heads: usize,
    /// Query heads that share a KV head.
    pub group: usize,
    /// Components of a head.
    pub head_dim: usize,
    /// How far back a query looks.
    pub policy: Arc<dyn EvictionPolicy>,
    /// Capacity of the recalled section.
    pub recall_tokens: usize,
    /// Longest prefill chunk.
    pub chunk_tokens: usize,
    /// Storage type.
    pub kv_type: KvType,
    /// Whether un-rotated keys are kept.
    pub raw_keys: RawKeys,
    /// How what has left is summarised; `None` for not at all. It needs un-rotated keys.
    pub clusters: Option<ClusterConfig>,
}

/// Stored keys and values that can enter a cache again.
pub trait KvSource {
    /// Tokens it holds.
    fn n_tokens(&self) -> usize;

    /// Reads the keys **before rotation** and the values of one head of one layer, each
    /// `[n_tokens, head_dim]`.
    fn read(&self, layer: usize, kv_head: usize, keys: &mut [f32], values: &mut [f32]);
}

/// The cache of one stream. Its memory is fixed at construction; cloning it branches the stream.
#[derive(Clone, Debug)]
pub struct KvCache {
    timeline: Timeline,
    kinds: Vec<LayerKind>,
    /// `[n_layers]`
    kind_of: Vec<usize>,
    head_dim: usize,
    raw_keys: RawKeys,
    /// `[n_layers][n_kv_heads]`
    layers: Vec<Vec<HeadBuffers>>,
    clusters: Option<Clusters>,
    /// The rows that [`KvCache::begin`] or [`KvCache::begin_recalled`] planned and
    /// [`KvCache::commit`] has not taken.
    planned: Vec<RowPlan>,
    /// How many of them extend the stream: all, or none.
    n_appended: usize,
    /// The last of them before which everything is hidden.
    last_start: Option<TokenPos>,
    /// Rows that are filled beyond the end of the stream, for [`KvCache::take_ahead`].
    n_ahead: usize,
    /// Where the ring was written last; rows ahead that were never taken have replaced the oldest.
    written: TokenPos,
}

impl KvCache {
    /// An empty cache.
    ///
    /// # Errors
    ///
    /// [`CacheError::Config`] for capacities out of range.
    pub fn new(config: &CacheConfig) -> Result<Self, CacheError> {
        let policy = Arc::clone(&config.policy);
        let mut windows = config.kinds.iter().filter_map(|kind| kind.window_tokens);
        let sliding_window = windows.next();
        if let Some(value) = windows.find(|&other| Some(other) != sliding_window) {
            let (what, bound) = ("a second sliding window", "as wide as the first");
            return Err(CacheError::Config { what, value, bound });
        }
        let timeline = Timeline::new(policy, config.recall_tokens, config.chunk_tokens)?
            .with_sliding_window(sliding_window)
            .with_clusters(config.clusters);
        let n_slots = timeline.n_slots();
        let first_raw = match config.raw_keys {
            RawKeys::Keep => config.policy.n_sink(),
            RawKeys::Drop => n_slots,
        };
        let clusters = timeline.clusters();
        if let Some(clusters) = &clusters {
            clusters.check()?;
            if config.raw_keys == RawKeys::Drop {
                return Err(CacheError::NoRawKeys);
            }
        }
        let (first, n_clusters) = (config.policy.n_sink(), clusters.map_or(0, |c| c.n_clusters));
        let head = || {
            HeadBuffers::new(config.kv_type, n_slots, first_raw, config.head_dim)
                .with_clusters((first, n_clusters), config.group)
        };
        let layer = || (0..config.n_kv_heads).map(|_| head()).collect();
        Ok(Self {
            timeline,
            kinds: config.kinds.clone(),
            kind_of: config.layers.clone(),
            head_dim: config.head_dim,
            raw_keys: config.raw_keys,
            layers: config.layers.iter().map(|_| layer()).collect(),
            clusters: clusters.map(|clusters| {
                let n_heads = (config.layers.len(), config.n_kv_heads);
                Clusters::new(clusters, n_heads, config.head_dim, config.group)
            }),
            planned: Vec::with_capacity(config.chunk_tokens.min(4096)),
            n_appended: 0,
            last_start: None,
            n_ahead: 0,
            written: TokenPos(0),
        })
    }

    /// Positions and sections.
    #[must_use]
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Length of the stream.
    #[must_use]
    pub fn next(&self) -> TokenPos {
        self.timeline.next()
    }

    /// Tokens held, by section.
    #[must_use]
    pub fn sections(&self) -> Sections {
        self.timeline.sections()
    }

    /// Bytes of rotated keys and values, and of un-rotated keys.
    #[must_use]
    pub fn bytes(&self) -> (usize, usize) {
        let heads = self.layers.iter().flatten().map(HeadBuffers::bytes);
        heads.fold((0, 0), |sum, head| (sum.0 + head.0, sum.1 + head.1))
    }

    /// Whether [`KvCache::begin`] would take `n_tokens`; changes nothing.
    ///
    /// # Errors
    ///
    /// As [`KvCache::begin`].
    pub fn check(&self, n_tokens: usize) -> Result<(), CacheError> {
        let mut after = self.with_due_clusters();
        if after.is_move_due() {
            after.move_between();
        }
        after.check(n_tokens)
    }

    /// The positions once what has left is in clusters.
    fn with_due_clusters(&self) -> Timeline {
        let mut after = self.timeline.clone();
        if let Some(clusters) = &self.clusters {
            after.clustered(clusters.n_after(self.sections().clusters));
        }
        after
    }

    /// Adds to the clusters what has left: before [`KvCache::begin`], which may not be called while
    /// something is due.
    pub fn settle_clusters(&mut self, compute: &Compute<'_>) {
        if self.timeline.due_for_clusters().is_none() {
            return;
        }
        let after = self.with_due_clusters();
        let Some(clusters) = &mut self.clusters else { return };
        let (kinds, timelines) = ((&*self.kinds, &*self.kind_of), (&self.timeline, &after));
        clusters.add(compute, timelines, kinds, &mut self.layers);
        let has_moved = after.recalled_pos(0) != self.timeline.recalled_pos(0);
        self.timeline = after;
        if has_moved {
            self.rotate_recalled();
        }
    }

    /// Sees the queries of the planned rows, before rotation: `[n_rows, n_heads, head_dim]`.
    pub fn keep_queries(&mut self, layer: usize, queries: &[f32]) {
        if let Some(clusters) = self.clusters.as_mut().filter(|_| self.n_appended > 0) {
            clusters.keep_queries(layer, &self.planned, queries);
        }
    }

    /// Plans the next `n_tokens`, of which at most [`Timeline::next_chunk`] go at once; a recall
    /// that the window has passed moves to `between` first. From each of `starts` on, what the
    /// window holds before it is hidden: [`Timeline::plan`]. Until [`KvCache::commit`] the stream is
    /// as it was.
    ///
    /// # Errors
    ///
    /// [`CacheError::ChunkTooLong`] or [`CacheError::Full`].
    ///
    /// # Panics
    ///
    /// If clusters are not [settled](Self::settle_clusters).
    pub fn begin(&mut self, n_tokens: usize, starts: &[TokenPos]) -> Result<(), CacheError> {
        assert!(self.timeline.due_for_clusters().is_none(), "clusters were not settled");
        self.planned.clear();
        self.n_ahead = 0;
        if self.timeline.is_move_due() {
            let mut moved = self.timeline.clone();
            moved.move_between();
            moved.plan(n_tokens, starts, &mut self.planned)?;
            self.timeline = moved;
            self.rotate_recalled();
        } else {
            self.timeline.plan(n_tokens, starts, &mut self.planned)?;
        }
        self.n_appended = n_tokens;
        self.last_start = starts.last().copied();
        Ok(())
    }

    /// Plans rows of the recalled section to be computed again, behind the sinks and each other;
    /// [`KvCache::commit`] then leaves the stream as long as it was.
    ///
    /// # Errors
    ///
    /// [`CacheError::NotRecalled`], see [`Timeline::plan_recalled`].
    pub fn begin_recalled(&mut self, rows: &[usize]) -> Result<(), CacheError> {
        self.planned.clear();
        (self.n_appended, self.last_start, self.n_ahead) = (0, None, 0);
        self.timeline.plan_recalled(rows, &mut self.planned)
    }

    /// The planned rows, and the buffers of one layer to fill for them.
    pub fn planned(&mut self, layer: usize) -> (&[RowPlan], &mut [HeadBuffers]) {
        (&self.planned, &mut self.layers[layer])
    }

    /// The planned rows.
    #[must_use]
    pub fn rows(&self) -> &[RowPlan] {
        &self.planned
    }

    /// Takes the planned rows, of which all layers have been filled: those of
    /// [`KvCache::begin`] are the end of the stream now, but for the last `n_ahead` of them, which
    /// stand *ahead* of it.
    ///
    /// # Panics
    ///
    /// If fewer rows extend the stream, or they hide something, or there are clusters, which would
    /// see the queries of rows that may never be taken.
    pub fn commit(&mut self, n_ahead: usize) {
        assert!(n_ahead <= self.n_appended, "{n_ahead} of {} rows ahead", self.n_appended);
        assert!(n_ahead == 0 || (self.last_start.is_none() && self.clusters.is_none()));
        self.written = self.written.max(self.next().after(self.n_appended));
        self.timeline.advance(self.n_appended - n_ahead);
        if let Some(start) = self.last_start.take() {
            self.timeline.hide_before(start);
        }
        self.planned.clear();
        (self.n_appended, self.n_ahead) = (0, n_ahead);
    }

    /// Rows that stand ahead of the stream: none if anything but [`KvCache::take_ahead`] was done since
    /// [`KvCache::commit`], since what a row sees may be another thing now.
    #[must_use]
    pub fn n_ahead(&self) -> usize {
        self.n_ahead
    }

    /// Forgets them.
    pub fn drop_ahead(&mut self) {
        self.n_ahead = 0;
    }

    /// Takes the next of them: it is the end of the stream now. `false` if there is none.
    pub fn take_ahead(&mut self) -> bool {
        let Some(n_left) = self.n_ahead.checked_sub(1) else { return false };
        self.timeline.advance(1);
        self.n_ahead = n_left;
        true
    }

    /// Hides the tokens of the window before `token` until the next recall ends:
    /// [`Timeline::hide_before`].
    pub fn hide_before(&mut self, token: TokenPos) {
        self.n_ahead = 0;
        self.timeline.hide_before(token);
    }

    /// Reads un-rotated keys and values of tokens that are still held, for one head of one layer:
    /// each `[range, head_dim]`.
    ///
    /// # Errors
    ///
    /// [`CacheError::NoRawKeys`], [`CacheError::NotHeld`].
    ///
    /// # Panics
    ///
    /// If `keys` or `values` has another length.
    pub fn read_raw(
        &self,
        range: &Range<TokenPos>,
        layer: usize,
        kv_head: usize,
        keys: &mut [f32],
        values: &mut [f32],
    ) -> Result<(), CacheError> {
        if self.raw_keys == RawKeys::Drop {
            return Err(CacheError::NoRawKeys);
        }
        let held = self.held();
        if range.start < held.start || range.end > held.end || range.start > range.end {
            return Err(CacheError::NotHeld { range: range.clone(), held });
        }
        let len = range_len(range) * self.head_dim;
        assert_eq!((keys.len(), values.len()), (len, len), "room for tokens {range:?}");
        let head = &self.layers[layer][kv_head];
        let rows = keys.chunks_exact_mut(self.head_dim).zip(values.chunks_exact_mut(self.head_dim));
        for (i, (key, value)) in rows.enumerate() {
            head.read_raw(self.timeline.slot(range.start.after(i)), key, value);
        }
        Ok(())
    }

    /// Tokens whose rows are still in the ring, the oldest of them perhaps no longer visible.
    #[must_use]
    pub fn held(&self) -> Range<TokenPos> {
        let Range { start, end } = self.timeline.held();
        start.max(self.written.before(self.timeline.ring_slots())).min(end)..end
    }

    /// Puts stored keys and values into the recalled section, in the given order; nothing is
    /// computed again but their rotation.
    ///
    /// # Errors
    ///
    /// As [`Timeline::begin_recall`]; [`CacheError::NoRawKeys`] if this cache keeps none.
    pub fn recall(&mut self, place: Place, sources: &[&dyn KvSource]) -> Result<(), CacheError> {
        if self.raw_keys == RawKeys::Drop {
            return Err(CacheError::NoRawKeys);
        }
        self.n_ahead = 0;
        let n_tokens = sources.iter().map(|s| s.n_tokens()).sum();
        self.timeline.begin_recall(place, n_tokens)?;
        let dim = self.head_dim;
        let rotations = self.rotations((0..n_tokens).map(|i| self.timeline.recalled_pos(i).0));
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let mut key = vec![0.0; dim];
        for (layer, heads) in self.layers.iter_mut().enumerate() {
            let rotations = &rotations[self.kind_of[layer]];
            for (kv_head, head) in heads.iter_mut().enumerate() {
                let mut i = 0;
                for source in sources {
                    keys.resize(source.n_tokens() * dim, 0.0);
                    values.resize(source.n_tokens() * dim, 0.0);
                    source.read(layer, kv_head, &mut keys, &mut values);
                    for (raw, value) in keys.chunks_exact(dim).zip(values.chunks_exact(dim)) {
                        rotations[i].apply(raw, 1.0, &mut key);
                        head.write(self.timeline.recalled_slot(i), raw, &key, value);
                        i += 1;
                    }
                }
            }
        }
        Ok(())
    }

    /// Opens the recalled section `between` for tokens whose keys and values are all to be computed
    /// ([`KvCache::begin_recalled`]); until then its rows hold anything.
    ///
    /// # Errors
    ///
    /// As [`KvCache::recall`].
    pub fn open_recall(&mut self, n_tokens: usize) -> Result<(), CacheError> {
        if self.raw_keys == RawKeys::Drop {
            return Err(CacheError::NoRawKeys);
        }
        self.n_ahead = 0;
        self.timeline.begin_recall(Place::Between, n_tokens)
    }

    /// Makes what was recalled `between` stand right before the next token of the stream.
    pub fn move_near(&mut self) {
        self.n_ahead = 0;
        self.timeline.move_near();
        self.rotate_recalled();
    }

    /// Appends the numbers of all rows that a later query may see: what, with
    /// [`Timeline::state`], is needed to continue bit for bit.
    pub fn save_rows(&self, out: &mut Vec<u8>) {
        let slots = self.timeline.live_slots();
        for head in self.layers.iter().flatten() {
            slots.clone().for_each(|slot| head.save(slot, out));
        }
        if let Some(clusters) = &self.clusters {
            clusters.save(out);
        }
    }

    /// Continues from what was saved: a state, and the rows of [`save_rows`](Self::save_rows).
    /// This cache must be empty, and of the same configuration.
    ///
    /// # Errors
    ///
    /// [`CacheError::State`] if they do not fit this cache.
    pub fn restore(&mut self, state: &TimelineState, mut rows: &[u8]) -> Result<(), CacheError> {
        let mut timeline = self.timeline.clone();
        timeline.restore(state)?;
        let wrong = || CacheError::State { n_tokens: state.next.0 };
        for head in self.layers.iter_mut().flatten() {
            for slot in timeline.live_slots() {
                head.load(slot, &mut rows).ok_or_else(wrong)?;
            }
        }
        if let Some(clusters) = &mut self.clusters {
            let n_clusters = timeline.sections().clusters;
            let n_members = timeline.n_clustered();
            clusters.load(n_clusters, n_members, &mut self.layers, &mut rows).ok_or_else(wrong)?;
        }
        if !rows.is_empty() {
            return Err(wrong());
        }
        self.timeline = timeline;
        (self.n_ahead, self.written) = (0, state.next);
        Ok(())
    }

    /// Empties the recalled section and closes the gap that it opened, by rotating the older keys
    /// of the window once more.
    pub fn end_recall(&mut self) {
        self.n_ahead = 0;
        let moved = self.timeline.end_recall();
        let n_moved = moved.end.since(moved.start);
        let tokens = move || (0..n_moved).map(move |i| moved.start.after(i));
        let rotations = self.rotations(tokens().map(|t| self.timeline.window_pos(t).0));
        let timeline = self.timeline.clone();
        self.rotate_again(tokens().map(|t| timeline.slot(t)), &rotations);
    }

    fn rotate_recalled(&mut self) {
        let n = self.sections().recalled;
        let rotations = self.rotations((0..n).map(|i| self.timeline.recalled_pos(i).0));
        let timeline = self.timeline.clone();
        self.rotate_again((0..n).map(|i| timeline.recalled_slot(i)), &rotations);
    }

    fn rotate_again(
        &mut self,
        slots: impl Iterator<Item = crate::Slot> + Clone,
        rotations: &[Vec<Rotation>],
    ) {
        let mut scratch = vec![0.0; 2 * self.head_dim];
        for (layer, heads) in self.layers.iter_mut().enumerate() {
            let rotations = &rotations[self.kind_of[layer]];
            for head in heads {
                for (slot, rotation) in slots.clone().zip(rotations) {
                    head.rotate_again(slot, rotation, &mut scratch);
                }
            }
        }
    }

    /// The rotations at some positions, for each kind of layer.
    fn rotations(&self, positions: impl Iterator<Item = u64> + Clone) -> Vec<Vec<Rotation>> {
        let at = |kind: &LayerKind| positions.clone().map(|p| kind.rope.rotation(p)).collect();
        self.kinds.iter().map(at).collect()
    }
}
