//! The forward pass: from token ids to hidden states, through the caches of one or more streams.
//!
//! One function, [`Model::forward`], covers all supported families; what differs between them is
//! data in [`crate::ModelConfig`]. It takes a *batch*: a chunk of one stream, one token from each of
//! several streams, or any mixture. The result of a row does not depend on the other rows, bit for
//! bit, since every kernel sums each output in one fixed order.

use std::ops::Range;

use everstream_kernels::{
    Activations, Product, Rotation, add_assign, dequantize, gated, matmul, rms_norm,
    rms_norm_in_place, soft_cap,
};
use everstream_kv_cache::{CacheError, Compute, KvCache, QueryHeads, TokenPos};

use crate::model::Model;

/// Tokens of one stream and the cache that takes their keys and values.
#[derive(Debug)]
pub struct Sequence<'a> {
    tokens: &'a [u32],
    cache: &'a mut KvCache,
    /// Tokens that see nothing of the window before them.
    starts: &'a [TokenPos],
    /// Rows of the recalled section; `None` for the end of the stream.
    recalled: Option<&'a [usize]>,
    /// The last tokens that are computed ahead of the stream.
    n_ahead: usize,
}

impl<'a> Sequence<'a> {
    /// New tokens of a stream, at most
    /// [`Timeline::next_chunk`](everstream_kv_cache::Timeline::next_chunk).
    #[must_use]
    pub fn new(tokens: &'a [u32], cache: &'a mut KvCache) -> Self {
        Self { tokens, cache, starts: &[], recalled: None, n_ahead: 0 }
    }

    /// From each of `starts` on, what the window holds before it is hidden: see
    /// [`KvCache::begin`].
    #[must_use]
    pub fn with_starts(self, starts: &'a [TokenPos]) -> Self {
        Self { starts, ..self }
    }

    /// The last `n_ahead` tokens are a guess: they are computed, and stand ahead of the stream until
    /// [`KvCache::take_ahead`].
    ///
    /// # Panics
    ///
    /// [`Model::forward`] does if [`KvCache::commit`] does.
    #[must_use]
    pub fn with_ahead(self, n_ahead: usize) -> Self {
        Self { n_ahead, ..self }
    }

    /// Tokens that stand in rows of the recalled section, to be computed again: see
    /// [`KvCache::begin_recalled`].
    ///
    /// # Panics
    ///
    /// If there are more or fewer tokens than rows.
    #[must_use]
    pub fn recalled(tokens: &'a [u32], rows: &'a [usize], cache: &'a mut KvCache) -> Self {
        assert_eq!(tokens.len(), rows.len(), "one token for each row");
        Self { tokens, cache, starts: &[], recalled: Some(rows), n_ahead: 0 }
    }

    fn check(&self) -> Result<(), CacheError> {
        match self.recalled {
            Some(rows) => self.cache.timeline().plan_recalled(rows, &mut Vec::new()),
            None => self.cache.check(self.tokens.len()),
        }
    }

    fn begin(&mut self) -> Result<(), CacheError> {
        match self.recalled {
            Some(rows) => self.cache.begin_recalled(rows),
            None => self.cache.begin(self.tokens.len(), self.starts),
        }
    }
}

/// Why a batch was not computed; no cache has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// A cache cannot take the tokens.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A token that the model does not have.
    #[error("token {token} is outside the vocabulary of {vocab_size}")]
    UnknownToken {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
}

/// Buffers of a forward pass; they grow to the largest batch and are reused.
#[derive(Debug, Default)]
pub struct Workspace {
    /// The residual stream: `[n_rows, embedding_dim]`.
    x: Vec<f32>,
    /// Inputs of q, k, v, of gate and up, and of the output matrix: `[n_rows, embedding_dim]`.
    normed: Activations,
    /// `[n_rows, n_heads * head_dim]`, before rotation.
    q: Vec<f32>,
    /// `[n_rows, n_kv_heads * head_dim]`, before rotation.
    k: Vec<f32>,
    /// `[n_rows, n_kv_heads * head_dim]`
    v: Vec<f32>,
    /// The two rotated forms of the queries, scaled: as `q`.
    queries: [Vec<f32>; 2],
    /// Rotations of each row, for each kind of layer.
    rotations: Vec<RowRotations>,
    /// Output of attention: `[n_rows, n_heads * head_dim]`.
    mixed: Activations,
    /// `[n_rows, ffn_dim]`
    gate: Vec<f32>,
    /// `[n_rows, ffn_dim]`
    up: Vec<f32>,
    /// `[n_rows, ffn_dim]`
    hidden: Activations,
    /// What a layer adds to the residual stream: `[n_rows, embedding_dim]`.
    delta: Vec<f32>,
    /// Attention scores, for each thread.
    scores: Vec<Vec<f32>>,
    /// A rotated key, for each thread.
    key: Vec<Vec<f32>>,
    /// Input of the output matrix: as many rows as logits are asked for at once.
    last: Activations,
    logits: Vec<f32>,
    /// Of each layer the queries of the last batch, if somebody asked for them.
    kept_queries: Option<Vec<Vec<f32>>>,
}

/// Rotations of each row of a batch: at its position in the window, and at its place in the cache.
type RowRotations = [Vec<Rotation>; 2];

impl Model {
    /// Runs the tokens of `batch` through the model and puts them into their caches. Afterwards
    /// [`Model::logits`] gives the predictions of any of the rows, which are numbered through the
    /// batch.
    ///
    /// # Errors
    ///
    /// [`ForwardError`]; then nothing has changed.
    ///
    /// # Cost
    ///
    /// Reads every weight once per some hundred rows. Allocates only when a batch is larger than
    /// all before it.
    pub fn forward(
        &self,
        ws: &mut Workspace,
        batch: &mut [Sequence<'_>],
    ) -> Result<(), ForwardError> {
        let n_rows = self.begin(batch)?;
        let c = &self.config;
        let (dim, hd) = (c.embedding_dim, c.head_dim);
        let (isa, pool) = (self.isa, &self.pool);
        ws.prepare(self, n_rows);
        self.embed(batch, &mut ws.x);
        self.rotations(batch, &mut ws.rotations);

        for (layer, w) in self.weights.layers.iter().enumerate() {
            // Attention: x += O(attend(rope(Q(norm x)), rope(K(norm x)), V(norm x)))
            let [attention_norm, ffn_norm] = both(&w.norms_before);
            let [attention_norm_behind, ffn_norm_behind] = both(&w.norms_behind);
            self.norm(&ws.x, attention_norm, &mut ws.normed, n_rows);
            matmul(
                isa,
                pool,
                &ws.normed,
                [
                    Product { weights: &w.q, out: &mut ws.q },
                    Product { weights: &w.k, out: &mut ws.k },
                    Product { weights: &w.v, out: &mut ws.v },
                ],
            );
            if let Some(biases) = &w.bias {
                for (rows, bias) in [&mut ws.q, &mut ws.k, &mut ws.v].into_iter().zip(biases) {
                    pool.for_each_chunk(rows, bias.len(), |_, row| add_assign(row, bias));
                }
            }
            if let Some(norms) = &w.qk_norm {
                let dims = [c.q_dim(), c.kv_dim()];
                for ((rows, dim), norm) in [&mut ws.q, &mut ws.k].into_iter().zip(dims).zip(norms) {
                    pool.for_each_chunk(rows, dim, |_, row| {
                        rms_norm_in_place(isa, row, norm, c.norm_eps);
                    });
                }
            }
            ws.keep_queries(layer);
            self.keep_queries(ws, batch, layer);
            self.rotate_queries(ws, layer);
            self.append_keys(ws, batch, layer);
            self.attend(ws, batch, layer);
            ws.mixed.quantize(isa, pool);
            let out = Product { weights: &w.attention_out, out: &mut ws.delta };
            matmul(isa, pool, &ws.mixed, [out]);
            self.add(&mut ws.x, &mut ws.delta, attention_norm_behind);

            // Feed-forward: x += Down(activation(Gate(norm x)) * Up(norm x))
            self.norm(&ws.x, ffn_norm, &mut ws.normed, n_rows);
            matmul(
                isa,
                pool,
                &ws.normed,
                [
                    Product { weights: &w.gate, out: &mut ws.gate },
                    Product { weights: &w.up, out: &mut ws.up },
                ],
            );
            let (gate, up) = (&ws.gate, &ws.up);
            pool.for_each_chunk(ws.hidden.resize(n_rows, c.ffn_dim), c.ffn_dim, |row, out| {
                let at = row * c.ffn_dim..(row + 1) * c.ffn_dim;
                gated(isa, c.activation, &gate[at.clone()], &up[at], out);
            });
            ws.hidden.quantize(isa, pool);
            let out = Product { weights: &w.down, out: &mut ws.delta };
            matmul(isa, pool, &ws.hidden, [out]);
            self.add(&mut ws.x, &mut ws.delta, ffn_norm_behind);
        }

        debug_assert_eq!((ws.x.len(), ws.q.len()), (n_rows * dim, n_rows * c.n_heads * hd));
        for sequence in batch {
            sequence.cache.commit(sequence.n_ahead);
        }
        Ok(())
    }

    /// The logits of some rows of the last batch: `[rows.len(), vocab_size]`.
    ///
    /// # Panics
    ///
    /// If the last batch had fewer rows.
    pub fn logits<'w>(&self, ws: &'w mut Workspace, rows: Range<usize>) -> &'w [f32] {
        let (n, dim) = (rows.len(), self.config.embedding_dim);
        let x = &ws.x[rows.start * dim..rows.end * dim];
        self.norm(x, Some(&self.weights.output_norm), &mut ws.last, n);
        let len = n * self.config.vocab_size;
        if ws.logits.len() < len {
            ws.logits.resize(len, 0.0);
        }
        let logits = &mut ws.logits[..len];
        let out = Product { weights: &self.weights.output, out: logits };
        matmul(self.isa, &self.pool, &ws.last, [out]);
        scale(logits, 1.0 / self.config.logit_divisor);
        if let Some(cap) = self.config.logit_cap {
            soft_cap(self.isa, logits, cap);
        }
        logits
    }

    /// Checks that the model has all of these tokens.
    ///
    /// # Errors
    ///
    /// [`ForwardError::UnknownToken`] names the first that it has not.
    pub fn check_tokens(&self, tokens: &[u32]) -> Result<(), ForwardError> {
        let vocab_size = self.config.vocab_size;
        match tokens.iter().find(|&&t| t as usize >= vocab_size) {
            Some(&token) => Err(ForwardError::UnknownToken { token, vocab_size }),
            None => Ok(()),
        }
    }

    /// Checks the whole batch, then plans its rows. Returns how many there are.
    fn begin(&self, batch: &mut [Sequence<'_>]) -> Result<usize, ForwardError> {
        for sequence in &*batch {
            self.check_tokens(sequence.tokens)?;
            sequence.check()?;
        }
        let n_rows = batch.iter().map(|s| s.tokens.len()).sum();
        let compute = Compute {
            isa: self.isa,
            pool: &self.pool,
            attention_scale: self.config.attention_scale,
            score_cap: self.config.attention_cap,
        };
        for sequence in batch {
            sequence.cache.settle_clusters(&compute);
            sequence.begin()?;
        }
        Ok(n_rows)
    }

    /// Widens the embedding of each token, and scales it.
    fn embed(&self, batch: &[Sequence<'_>], x: &mut [f32]) {
        let info = &self.weights.embedding;
        let data = self.gguf.tensor_data(info);
        let row_bytes = info.bytes() / self.config.vocab_size;
        let tokens = batch.iter().flat_map(|s| s.tokens.iter());
        for (x, &token) in x.chunks_exact_mut(self.config.embedding_dim).zip(tokens) {
            let row = &data[token as usize * row_bytes..][..row_bytes];
            dequantize(self.weights.embedding_type, row, x);
            scale(x, self.config.embedding_scale);
        }
    }

    /// Cosines and sines of both positions of each row, shared by all layers of a kind.
    fn rotations(&self, batch: &[Sequence<'_>], rotations: &mut [RowRotations]) {
        for (kind, [window, cache]) in self.kinds.iter().zip(rotations) {
            for (i, row) in batch.iter().flat_map(|s| s.cache.rows()).enumerate() {
                kind.rope.at(row.window_pos.0, &mut window[i]);
                kind.rope.at(row.cache_pos.0, &mut cache[i]);
            }
        }
    }

    /// The rows of `x`, or their norm, in 8 bits.
    fn norm(&self, x: &[f32], weight: Option<&[f32]>, out: &mut Activations, n_rows: usize) {
        let dim = self.config.embedding_dim;
        self.pool.for_each_chunk(out.resize(n_rows, dim), dim, |row, out| {
            let x = &x[row * dim..][..dim];
            match weight {
                Some(weight) => rms_norm(self.isa, x, weight, self.config.norm_eps, out),
                None => out.copy_from_slice(x),
            }
        });
        out.quantize(self.isa, &self.pool);
    }

    /// Adds what a half of a layer gives, or its norm, to the residual stream.
    fn add(&self, x: &mut [f32], delta: &mut [f32], norm: Option<&[f32]>) {
        let (dim, eps) = (self.config.embedding_dim, self.config.norm_eps);
        if let Some(weight) = norm {
            self.pool.for_each_chunk(delta, dim, |_, row| {
                rms_norm_in_place(self.isa, row, weight, eps);
            });
        }
        scale(delta, self.config.residual_scale);
        self.pool.for_each_chunk(x, dim, |row, x| add_assign(x, &delta[row * dim..][..dim]));
    }

    /// Shows each cache the queries of its rows.
    fn keep_queries(&self, ws: &Workspace, batch: &mut [Sequence<'_>], layer: usize) {
        let mut q = &ws.q[..];
        for sequence in batch {
            let (these, rest) = q.split_at(sequence.tokens.len() * self.config.q_dim());
            sequence.cache.keep_queries(layer, these);
            q = rest;
        }
    }

    /// Rotates each query twice; the factor of the scores is applied on the way.
    fn rotate_queries(&self, ws: &mut Workspace, layer: usize) {
        let (hd, q_dim) = (self.config.head_dim, self.config.q_dim());
        let scale = self.config.attention_scale;
        let q = &ws.q;
        let rotations = &ws.rotations[self.kind_of[layer]];
        for (queries, rotations) in ws.queries.iter_mut().zip(rotations) {
            self.pool.for_each_chunk(queries, q_dim, |row, out| {
                let heads = q[row * q_dim..][..q_dim].chunks_exact(hd);
                for (out, head) in out.chunks_exact_mut(hd).zip(heads) {
                    rotations[row].apply(head, scale, out);
                }
            });
        }
    }

    /// Rotates each key once and stores it with its value.
    fn append_keys(&self, ws: &mut Workspace, batch: &mut [Sequence<'_>], layer: usize) {
        let (hd, kv_dim) = (self.config.head_dim, self.config.kv_dim());
        let [rotations, _] = &ws.rotations[self.kind_of[layer]];
        let mut first = 0;
        for sequence in batch {
            let (rows, heads) = sequence.cache.planned(layer);
            let (k, v) = (&ws.k, &ws.v);
            // A token alone is not worth a parallel region.
            let per_task = if rows.len() == 1 { heads.len() } else { 1 };
            self.pool.for_each_chunk_with(heads, per_task, &mut ws.key, |key, task, heads| {
                for (kv_head, head) in (task * per_task..).zip(heads) {
                    for (i, row) in rows.iter().enumerate() {
                        let at = (first + i) * kv_dim + kv_head * hd;
                        rotations[first + i].apply(&k[at..at + hd], 1.0, key);
                        head.write(row.slot, &k[at..at + hd], key, &v[at..at + hd]);
                    }
                }
            });
            first += rows.len();
        }
    }

    /// Attention of each row over what it sees. A few rows are divided by query head, many by
    /// KV head, so that a pass over the keys serves all heads that share them.
    fn attend(&self, ws: &mut Workspace, batch: &mut [Sequence<'_>], layer: usize) {
        let c = &self.config;
        let (hd, q_dim, group) = (c.head_dim, c.q_dim(), c.n_heads / c.n_kv_heads);
        let n_rows = ws.q.len() / q_dim;
        let many = n_rows * c.n_kv_heads >= self.pool.n_threads();
        let heads_per_task = if many { group } else { 1 };
        let (task_dim, tasks_per_row) = (heads_per_task * hd, c.n_heads / heads_per_task);
        let queries = &ws.queries;
        let is_sliding = self.kinds[self.kind_of[layer]].window_tokens.is_some();
        let mut out = ws.mixed.resize(n_rows, q_dim);
        let mut first = 0;
        for sequence in batch {
            let (rows, buffers) = sequence.cache.planned(layer);
            let (these, rest) = out.split_at_mut(rows.len() * q_dim);
            let buffers = &*buffers;
            self.pool.for_each_chunk_with(these, task_dim, &mut ws.scores, |scores, task, out| {
                let (row, head) = (task / tasks_per_row, task % tasks_per_row * heads_per_task);
                let at = (first + row) * q_dim + head * hd;
                let forms = [0, 1].map(|form: usize| &queries[form][at..at + task_dim]);
                let spans = if is_sliding { &rows[row].sliding_spans } else { &rows[row].spans };
                let heads = QueryHeads { first: head % group, forms, is_alone: rows.len() == 1 };
                buffers[head / group].attend(self.isa, spans, c.attention_cap, heads, scores, out);
            });
            first += rows.len();
            out = rest;
        }
    }
}

impl Workspace {
    /// Forgets the last batch, whose rows nobody may ask for any more.
    pub fn clear(&mut self) {
        self.normed.resize(0, 0);
    }

    /// Rows of the last batch.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.normed.n_rows()
    }

    /// Keeps the queries of the batches that follow, or no longer.
    pub fn set_keep_queries(&mut self, keep: bool) {
        self.kept_queries = keep.then(Vec::new);
    }

    /// The queries of the last batch, before rotation, of each layer `[n_rows, n_heads * head_dim]`;
    /// empty unless they were asked for.
    #[must_use]
    pub fn queries(&self) -> &[Vec<f32>] {
        self.kept_queries.as_deref().unwrap_or_default()
    }

    fn keep_queries(&mut self, layer: usize) {
        let Some(kept) = &mut self.kept_queries else { return };
        if kept.len() <= layer {
            kept.resize_with(layer + 1, Vec::new);
        }
        kept[layer].clone_from(&self.q);
    }

    /// Sizes the buffers for a batch.
    fn prepare(&mut self, model: &Model, n_rows: usize) {
        let c = &model.config;
        self.x.resize(n_rows * c.embedding_dim, 0.0);
        self.delta.resize(n_rows * c.embedding_dim, 0.0);
        self.q.resize(n_rows * c.q_dim(), 0.0);
        self.k.resize(n_rows * c.kv_dim(), 0.0);
        self.v.resize(n_rows * c.kv_dim(), 0.0);
        self.gate.resize(n_rows * c.ffn_dim, 0.0);
        self.up.resize(n_rows * c.ffn_dim, 0.0);
        self.rotations.resize_with(model.kinds.len(), Default::default);
        for form in 0..2 {
            self.queries[form].resize(n_rows * c.q_dim(), 0.0);
            for rotations in &mut self.rotations {
                if rotations[form].len() < n_rows {
                    rotations[form].resize_with(n_rows, Rotation::default);
                }
            }
        }
        let n_threads = model.pool.n_threads();
        self.scores.resize_with(n_threads, Vec::new);
        self.key.resize_with(n_threads, Vec::new);
        self.key.iter_mut().for_each(|key| key.resize(c.head_dim, 0.0));
    }
}

/// Both of two norms, where a family has them.
fn both(norms: &Option<[Vec<f32>; 2]>) -> [Option<&[f32]>; 2] {
    match norms {
        Some([first, second]) => [Some(first), Some(second)],
        None => [None, None],
    }
}

fn scale(x: &mut [f32], factor: f32) {
    if factor != 1.0 {
        x.iter_mut().for_each(|x| *x *= factor);
    }
}
