//! Clusters: what left the window, summarised for each KV head by a few means of its keys.
//!
//! Tokens are added a *segment* at a time, at fixed places of the stream ([`Timeline::due_for_clusters`]),
//! so that neither the size of chunks nor an interruption changes anything. How much a cluster weighs in
//! attention is measured on the stream itself: `calibration`.

mod calibration;
mod means;

use std::fmt;
use std::ops::Range;

use everstream_kernels::{Isa, Pool, Rotation, key_tiles_len, write_key};

use self::calibration::{Calibration, N_QUERIES, Reference, SAMPLED_TOKENS};
pub use self::means::Means;
use crate::buffers::Number;
use crate::cache::LayerKind;
use crate::rng::SplitMix64;
use crate::{CacheError, HeadBuffers, RowPlan, Timeline, TokenPos, range_len};

/// Segments that begin clusters: text that is not all of one kind.
const N_BEGINNINGS: usize = 4;

/// Where clusters stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClusterPlace {
    /// Behind the sinks, all at one position.
    #[default]
    After,
    /// In place of the sinks, a position each.
    Sinks,
}

/// What stands for a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClusterForm {
    /// The mean of its keys and that of its values.
    #[default]
    Centroid,
    /// Key and value of the token whose key is nearest to the mean.
    Medoid,
}

/// What is added to the scores of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClusterBias {
    /// Nothing: it weighs as much as one token.
    None,
    /// The logarithm of its number of tokens: as much as if they all stood at its place.
    LogCount,
    /// That, and a number for each query head, so that all clusters together get as much attention as
    /// what they stand for would get where it stood.
    #[default]
    Calibrated,
}

impl ClusterPlace {
    /// All of them; files name one by its place here.
    pub const ALL: [Self; 2] = [Self::After, Self::Sinks];

    /// The name on the command line and in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::After => "after",
            Self::Sinks => "sinks",
        }
    }
}

impl ClusterForm {
    /// All of them; files name one by its place here.
    pub const ALL: [Self; 2] = [Self::Centroid, Self::Medoid];

    /// The name on the command line and in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Centroid => "centroid",
            Self::Medoid => "medoid",
        }
    }
}

impl ClusterBias {
    /// All of them; files name one by its place here.
    pub const ALL: [Self; 3] = [Self::None, Self::LogCount, Self::Calibrated];

    /// The name on the command line and in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::LogCount => "log-count",
            Self::Calibrated => "calibrated",
        }
    }
}

/// How what left is summarised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Clusters of each KV head.
    pub n_clusters: usize,
    /// Where they stand.
    pub place: ClusterPlace,
    /// What stands for them.
    pub form: ClusterForm,
    /// How much they weigh.
    pub bias: ClusterBias,
    /// A cluster is the mean of about so many of its newest members, and weighs no more than they;
    /// `u64::MAX` for all it ever had, so that nothing fades.
    pub n_members: u64,
    /// Tokens that are added at once: a multiple of 16.
    pub segment_tokens: usize,
    /// Tokens before a query that a model is trained to see; farther ones are not asked what attention
    /// they would get.
    pub reach_tokens: usize,
    /// What clusters begin with is drawn by it.
    pub seed: u64,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            n_clusters: 64,
            place: ClusterPlace::default(),
            form: ClusterForm::default(),
            bias: ClusterBias::default(),
            n_members: 64,
            segment_tokens: 256,
            reach_tokens: 8192,
            seed: 1,
        }
    }
}

impl fmt::Display for ClusterConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (place, form, bias) = (self.place.name(), self.form.name(), self.bias.name());
        write!(f, "{} clusters ({place}, {form}, {bias}, ", self.n_clusters)?;
        match self.n_members {
            u64::MAX => write!(f, "all members)"),
            n => write!(f, "{n} members)"),
        }
    }
}

impl ClusterConfig {
    /// The most clusters of a KV head.
    pub const MAX_CLUSTERS: usize = 1 << 16;

    /// Checks the sizes.
    ///
    /// # Errors
    ///
    /// [`CacheError::Config`].
    pub fn check(&self) -> Result<(), CacheError> {
        let (what, value) = ("the number of clusters", self.n_clusters);
        if value > Self::MAX_CLUSTERS {
            return Err(CacheError::Config { what, value, bound: "at most 65536" });
        }
        if self.n_members == 0 {
            let (what, bound) = ("the number of members", "at least 1");
            return Err(CacheError::Config { what, value: 0, bound });
        }
        let (what, value) = ("a segment", self.segment_tokens);
        if value == 0 || value > 1 << 29 || !value.is_multiple_of(16) {
            return Err(CacheError::Config { what, value, bound: "a multiple of 16" });
        }
        Ok(())
    }

    /// Bytes that clusters take beside their rows in a cache: counts, means and medoids, samples of what
    /// has left, and queries.
    #[must_use]
    pub fn bytes(
        &self,
        (n_layers, n_kv_heads): (usize, usize),
        group: usize,
        head_dim: usize,
    ) -> u64 {
        let [n_layers, n_kv_heads, group, dim, n_clusters] =
            [n_layers, n_kv_heads, group, head_dim, self.n_clusters].map(|n| n as u64);
        let n_rows = if self.form == ClusterForm::Medoid { 4 } else { 2 };
        let means = n_clusters * (8 + n_rows * 4 * dim);
        let calibration = match self.bias {
            ClusterBias::Calibrated => {
                SAMPLED_TOKENS as u64 * 4 * dim + 4 * group + N_QUERIES as u64 * group * dim * 4
            }
            _ => 0,
        };
        n_layers * n_kv_heads * (means + calibration)
    }
}

/// What adding to clusters is done with.
#[derive(Clone, Copy, Debug)]
pub struct Compute<'a> {
    /// Instruction set.
    pub isa: Isa,
    /// Threads.
    pub pool: &'a Pool,
    /// What products of queries and keys are multiplied with.
    pub attention_scale: f32,
    /// As [`Attention::score_cap`](everstream_kernels::Attention::score_cap).
    pub score_cap: Option<f32>,
}

/// Raw keys and values of one KV head, `[n_tokens, head_dim]`.
#[derive(Debug)]
pub struct Segment {
    keys: Vec<f32>,
    values: Vec<f32>,
    /// The keys in tiles.
    tiles: Vec<f32>,
}

impl Segment {
    /// Tokens with these keys and values.
    ///
    /// # Panics
    ///
    /// Unless both are as many whole rows of `head_dim` components, which are some.
    #[must_use]
    pub fn new(head_dim: usize, keys: Vec<f32>, values: Vec<f32>) -> Self {
        assert!(
            head_dim > 0 && keys.len().is_multiple_of(head_dim),
            "keys of {head_dim} components"
        );
        assert_eq!(keys.len(), values.len(), "keys and values");
        let n_tokens = keys.len() / head_dim;
        let mut tiles = vec![0.0; key_tiles_len(n_tokens, head_dim)];
        let rows = keys.chunks_exact(head_dim).enumerate();
        rows.for_each(|(i, key)| write_key(&mut tiles, i, key));
        Self { keys, values, tiles }
    }

    fn n_tokens(&self, head_dim: usize) -> usize {
        self.keys.len() / head_dim
    }

    fn rows(&self, head_dim: usize) -> impl Iterator<Item = (&[f32], &[f32])> {
        self.keys.chunks_exact(head_dim).zip(self.values.chunks_exact(head_dim))
    }
}

/// The clusters of a cache.
#[derive(Clone, Debug)]
pub(crate) struct Clusters {
    config: ClusterConfig,
    head_dim: usize,
    /// Query heads of a KV head.
    group: usize,
    /// `[n_layers][n_kv_heads]`
    heads: Vec<Vec<HeadClusters>>,
    /// Queries of the newest segment, before rotation: of each layer `[N_QUERIES, n_heads, head_dim]`.
    queries: Vec<Vec<f32>>,
}

/// Those of one KV head.
#[derive(Clone, Debug)]
struct HeadClusters {
    means: Means,
    calibration: Calibration,
}

/// What all heads of a kind of layer have in common when a segment is added.
struct Positions {
    /// Of clusters, by number.
    clusters: Vec<Rotation>,
    /// What attention is measured with.
    reference: Option<Reference>,
}

impl Clusters {
    pub(crate) fn new(
        config: ClusterConfig,
        (n_layers, n_kv_heads): (usize, usize),
        head_dim: usize,
        group: usize,
    ) -> Self {
        let calibration = match config.bias {
            ClusterBias::Calibrated => Calibration::new(group, head_dim),
            _ => Calibration::none(),
        };
        let means = Means::new(&config, head_dim);
        let head = HeadClusters { means, calibration };
        let n_queries = if config.bias == ClusterBias::Calibrated { N_QUERIES } else { 0 };
        let queries = vec![0.0; n_queries * n_kv_heads * group * head_dim];
        Self {
            config,
            head_dim,
            group,
            heads: vec![vec![head; n_kv_heads]; n_layers],
            queries: vec![queries; n_layers],
        }
    }

    /// Keeps those of a layer's queries that attention will be measured with: `[rows, n_heads,
    /// head_dim]`.
    pub(crate) fn keep_queries(&mut self, layer: usize, rows: &[RowPlan], queries: &[f32]) {
        let Some(len) = queries.len().checked_div(rows.len()) else { return };
        let step = (self.config.segment_tokens / N_QUERIES) as u64;
        let kept = &mut self.queries[layer];
        if kept.is_empty() {
            return;
        }
        for (row, queries) in rows.iter().zip(queries.chunks_exact(len)) {
            if row.token.0.is_multiple_of(step) {
                let at = (row.token.0 / step) as usize % N_QUERIES;
                kept[at * len..(at + 1) * len].copy_from_slice(queries);
            }
        }
    }

    /// Appends all numbers.
    pub(crate) fn save(&self, out: &mut Vec<u8>) {
        for head in self.heads.iter().flatten() {
            head.means.save(out);
            head.calibration.save(out);
        }
        self.queries.iter().for_each(|queries| Number::write_all(queries, out));
    }

    /// Reads what [`save`](Self::save) wrote of so many clusters with so many members, and weighs them;
    /// `None` if `bytes` end too early, or clusters have other members.
    pub(crate) fn load(
        &mut self,
        n_clusters: usize,
        n_members: u64,
        buffers: &mut [Vec<HeadBuffers>],
        bytes: &mut &[u8],
    ) -> Option<()> {
        for (head, buffers) in
            self.heads.iter_mut().zip(buffers).flat_map(|(h, b)| h.iter_mut().zip(b))
        {
            head.means.load(n_clusters, bytes)?;
            let sum = head.means.counts.iter().try_fold(0_u64, |sum, &n| sum.checked_add(n));
            if sum != Some(n_members) {
                return None;
            }
            head.calibration.load(bytes)?;
            head.weigh(&self.config, buffers);
        }
        for queries in &mut self.queries {
            Number::read_all(bytes, queries)?;
        }
        Some(())
    }

    /// Clusters that there are once another segment has been added.
    pub(crate) fn n_after(&self, n_clusters: usize) -> usize {
        let n_new = self.config.n_clusters.div_ceil(N_BEGINNINGS).min(self.config.segment_tokens);
        self.config.n_clusters.min(n_clusters + n_new)
    }

    /// Adds the tokens that are due. `before` is the timeline that they are due in, `after` the one
    /// they have been added to.
    pub(crate) fn add(
        &mut self,
        compute: &Compute<'_>,
        (before, after): (&Timeline, &Timeline),
        (kinds, kind_of): (&[LayerKind], &[usize]),
        buffers: &mut [Vec<HeadBuffers>],
    ) {
        let Some(tokens) = before.due_for_clusters() else { return };
        let number = (tokens.end.since(TokenPos(before.policy().n_sink() as u64))
            / self.config.segment_tokens) as u64;
        let positions: Vec<Positions> = kinds
            .iter()
            .map(|kind| Positions {
                clusters: (0..after.sections().clusters)
                    .map(|i| kind.rope.rotation(after.cluster_pos(i).0))
                    .collect(),
                reference: (self.config.bias == ClusterBias::Calibrated)
                    .then(|| Reference::new(&self.config, before, after, kind, number)),
            })
            .collect();
        let work = Work { config: self.config, head_dim: self.head_dim, after, tokens, number };
        let queries = &self.queries;
        let group = self.group;
        let mut tasks: Vec<_> = Vec::new();
        for (layer, (heads, buffers)) in self.heads.iter_mut().zip(buffers).enumerate() {
            for (kv_head, (head, buffers)) in heads.iter_mut().zip(buffers).enumerate() {
                tasks.push((layer, kv_head, head, buffers));
            }
        }
        compute.pool.for_each_chunk(&mut tasks, 1, |_, tasks| {
            for (layer, kv_head, head, buffers) in tasks {
                let positions = &positions[kind_of[*layer]];
                let seed = ((*layer as u64) << 32) + *kv_head as u64;
                work.add(compute.isa, positions, seed, head, buffers);
                if let Some(reference) = &positions.reference {
                    let queries =
                        Queries { of_layer: &queries[*layer], first_head: *kv_head * group, group };
                    head.calibration.sample(reference, buffers);
                    if calibration::is_measured(work.number, *layer) {
                        head.calibration.update(compute, reference, &queries, &head.means, buffers);
                    }
                }
                head.weigh(&work.config, buffers);
            }
        });
    }
}

/// Where the kept queries of one KV head lie.
struct Queries<'a> {
    /// `[N_QUERIES, n_heads, head_dim]`
    of_layer: &'a [f32],
    first_head: usize,
    group: usize,
}

impl Queries<'_> {
    /// One of the kept queries: `[group, head_dim]`.
    fn at(&self, kept: usize, head_dim: usize) -> &[f32] {
        let n_heads = self.of_layer.len() / (N_QUERIES * head_dim);
        &self.of_layer[(kept * n_heads + self.first_head) * head_dim..][..self.group * head_dim]
    }
}

/// One segment that is added.
struct Work<'a> {
    config: ClusterConfig,
    head_dim: usize,
    after: &'a Timeline,
    tokens: Range<TokenPos>,
    /// Of the segment, from 1.
    number: u64,
}

impl Work<'_> {
    fn add(
        &self,
        isa: Isa,
        positions: &Positions,
        seed: u64,
        head: &mut HeadClusters,
        buffers: &mut HeadBuffers,
    ) {
        let (dim, n_tokens) = (self.head_dim, range_len(&self.tokens));
        let (mut keys, mut values) = (vec![0.0; n_tokens * dim], vec![0.0; n_tokens * dim]);
        // The ring goes round once in between at most.
        let slot = |i: usize| self.after.slot(self.tokens.start.after(i));
        let is_torn = |i: &usize| slot(*i).0 != slot(i - 1).0 + 1;
        let until = (1..n_tokens).find(is_torn).unwrap_or(n_tokens);
        for rows in [0..until, until..n_tokens].into_iter().filter(|rows| !rows.is_empty()) {
            let (first, rows) = (slot(rows.start), rows.start * dim..rows.end * dim);
            buffers.read_raw_rows(isa, first, &mut keys[rows.clone()], &mut values[rows]);
        }
        let segment = Segment::new(dim, keys, values);
        let mut rng = SplitMix64::new(self.config.seed ^ seed ^ self.number.rotate_left(48));
        let n_new = positions.clusters.len() - head.means.counts.len();
        head.means.add(isa, &segment, n_new, &mut rng);
        let mut rotated = vec![0.0; dim];
        for (i, rotation) in positions.clusters.iter().enumerate() {
            let (key, value) = head.means.row(i);
            rotation.apply(key, 1.0, &mut rotated);
            buffers.write(self.after.cluster_slot(i), key, &rotated, value);
        }
    }
}

impl HeadClusters {
    /// Sets what is added to scores; a cluster of no tokens is not seen.
    fn weigh(&self, config: &ClusterConfig, buffers: &mut HeadBuffers) {
        let biases = buffers.cluster_biases_mut().chunks_exact_mut(config.n_clusters);
        for (query_head, biases) in biases.enumerate() {
            for (bias, count) in biases.iter_mut().zip(self.means.weights()) {
                let log_count = (count as f32).ln();
                *bias = match (count, config.bias) {
                    (0, _) => f32::NEG_INFINITY,
                    (_, ClusterBias::None) => 0.0,
                    (_, ClusterBias::LogCount) => log_count,
                    (_, ClusterBias::Calibrated) => {
                        log_count + self.calibration.offsets[query_head]
                    }
                };
            }
        }
    }
}
