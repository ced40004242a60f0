//! The network of a sentence encoder: BERT (Devlin et al., 2018, arXiv:1810.04805), in f32, on this
//! project's kernels.
//!
//! Rows of all texts of a batch stand behind each other, so nothing is padded; they meet in attention
//! only, where each sees its own text. A row's result depends on its text alone, bit for bit.

use std::sync::{Mutex, PoisonError};

use everstream_kernels::{
    Activations, Attention, Isa, PackedMatrix, Pool, Product, QueryForm, Span, add_assign, attend,
    gelu, key_tiles_len, layer_norm, matmul, write_key,
};

/// A network.
pub(super) struct Bert {
    pub(super) isa: Isa,
    pub(super) pool: Pool,
    /// Used by one caller at a time, the others wait: with buffers of its own for each batch, the system would take a
    /// quarter of the time to give out pages.
    pub(super) workspace: Mutex<Workspace>,
    pub(super) n_heads: usize,
    /// `[vocab_size, dim]`
    pub(super) words: Vec<f32>,
    /// `[max_pieces, dim]`, with the embedding of a first sentence added.
    pub(super) positions: Vec<f32>,
    pub(super) norm: Norm,
    pub(super) layers: Vec<Layer>,
}

/// One layer.
pub(super) struct Layer {
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) attention_out: Linear,
    pub(super) attention_norm: Norm,
    /// `[inner, dim]`
    pub(super) inner: Linear,
    /// `[dim, inner]`
    pub(super) outer: Linear,
    pub(super) norm: Norm,
}

/// A matrix `[out, in]` and what is added to its product.
pub(super) struct Linear {
    pub(super) weights: PackedMatrix,
    pub(super) bias: Vec<f32>,
}

/// Layer normalisation.
pub(super) struct Norm {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
    pub(super) eps: f32,
}

/// What lies between the steps of a pass; grows to the largest batch.
#[derive(Default)]
pub(super) struct Workspace {
    /// States: `[n_rows, dim]`.
    x: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// What belongs to each head of each text.
    heads: Vec<f32>,
    inputs: Activations,
    products: Vec<f32>,
    /// Of the inner layer, and what comes of it: as long as they are in each layer, so that nothing is
    /// zeroed again.
    inner_products: Vec<f32>,
    inner: Activations,
    /// Attention scores, for each thread.
    scores: Vec<Vec<f32>>,
}

/// Where a row stands.
#[derive(Clone, Copy)]
struct Row {
    text: usize,
    /// Its place in the text.
    place: usize,
}

impl Bert {
    pub(super) fn dim(&self) -> usize {
        self.norm.weight.len()
    }

    pub(super) fn vocab_size(&self) -> usize {
        self.words.len() / self.dim()
    }

    /// The mean over the last states of each text, `[texts.len(), dim]`. Pieces are below the size of
    /// the vocabulary, and each text has between one piece and as many as there are positions.
    pub(super) fn means(&self, texts: &[&[u32]]) -> Vec<Vec<f32>> {
        let dim = self.dim();
        let rows: Vec<Row> = texts
            .iter()
            .enumerate()
            .flat_map(|(text, pieces)| (0..pieces.len()).map(move |place| Row { text, place }))
            .collect();
        // What a panic left behind is overwritten before it is read.
        let ws = &mut *self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        ws.scores.resize_with(self.pool.n_threads(), Vec::new);
        ws.x.resize(rows.len() * dim, 0.0);
        self.pool.for_each_chunk(&mut ws.x, dim, |i, x| {
            let Row { text, place } = rows[i];
            x.copy_from_slice(&self.words[texts[text][place] as usize * dim..][..dim]);
            add_assign(x, &self.positions[place * dim..][..dim]);
            self.norm.apply(self.isa, x);
        });
        for layer in &self.layers {
            self.attention(layer, texts, &rows, ws);
            self.feed_forward(layer, ws);
        }
        let mut rest = &ws.x[..];
        let mean = |pieces: &&[u32]| {
            let (states, others) = rest.split_at(pieces.len() * dim);
            rest = others;
            let mut mean = vec![0.0; dim];
            states.chunks_exact(dim).for_each(|state| add_assign(&mut mean, state));
            mean.iter_mut().for_each(|c| *c /= pieces.len() as f32);
            mean
        };
        texts.iter().map(mean).collect()
    }

    /// `x = norm(x + out(attend(query x, key x, value x)))`
    fn attention(&self, layer: &Layer, texts: &[&[u32]], rows: &[Row], ws: &mut Workspace) {
        let (isa, pool, dim, n) = (self.isa, &self.pool, self.dim(), rows.len());
        let head_dim = dim / self.n_heads;
        let Workspace { x, q, k, v, heads, inputs, scores, .. } = &mut *ws;
        inputs.resize(n, dim).copy_from_slice(x);
        for out in [&mut *q, &mut *k, &mut *v] {
            out.resize(n * dim, 0.0);
        }
        matmul(
            isa,
            pool,
            inputs,
            [
                Product { weights: &layer.query.weights, out: q },
                Product { weights: &layer.key.weights, out: k },
                Product { weights: &layer.value.weights, out: v },
            ],
        );

        // For each head of each text, with room for the longest text: its keys, values, queries and what they
        // give. All rows of a text see the same, so they share a pass over keys as query heads do.
        let longest = texts.iter().map(|pieces| pieces.len()).max().unwrap_or(0);
        let keys_len = key_tiles_len(longest, head_dim);
        let rows_len = longest * head_dim;
        let head_len = keys_len + 3 * rows_len;
        let first_rows: Vec<usize> = texts
            .iter()
            .scan(0, |next, pieces| Some(std::mem::replace(next, *next + pieces.len())))
            .collect();
        let scale = 1.0 / (head_dim as f32).sqrt();
        heads.resize(texts.len() * self.n_heads * head_len, 0.0);
        pool.for_each_chunk_with(heads, head_len, scores, |scores, i, head| {
            let (text, at) = (i / self.n_heads, i % self.n_heads * head_dim);
            let len = texts[text].len();
            let [keys, values, queries, out] = parts(head, keys_len, rows_len);
            let [query_bias, key_bias, value_bias] = [&layer.query, &layer.key, &layer.value]
                .map(|linear| &linear.bias[at..at + head_dim]);
            for place in 0..len {
                let from = (first_rows[text] + place) * dim + at;
                let to = place * head_dim..(place + 1) * head_dim;
                let key = &mut out[..head_dim];
                sum(&k[from..from + head_dim], key_bias, key);
                write_key(keys, place, key);
                sum(&v[from..from + head_dim], value_bias, &mut values[to.clone()]);
                let query = &mut queries[to];
                sum(&q[from..from + head_dim], query_bias, query);
                query.iter_mut().for_each(|q| *q *= scale);
            }
            let queries = &queries[..len * head_dim];
            let a = Attention {
                keys,
                values,
                head_dim,
                spans: &[Span { first: 0, len, form: QueryForm::Window }],
                score_cap: None,
                biases: None,
                are_cold: false,
                queries: [queries, queries],
            };
            attend(isa, &a, scores, &mut out[..len * head_dim]);
        });
        let (heads, n_heads) = (&*heads, self.n_heads);
        pool.for_each_chunk(inputs.resize(n, dim), dim, |i, to| {
            let Row { text, place } = rows[i];
            let of_text = heads[text * n_heads * head_len..].chunks_exact(head_len);
            for (to, head) in to.chunks_exact_mut(head_dim).zip(of_text) {
                let from = head_len - rows_len + place * head_dim;
                to.copy_from_slice(&head[from..from + head_dim]);
            }
        });
        let (linear, norm) = (&layer.attention_out, &layer.attention_norm);
        self.add(linear, norm, &ws.inputs, &mut ws.x, &mut ws.products);
    }

    /// `x = norm(x + outer(gelu(inner x)))`
    fn feed_forward(&self, layer: &Layer, ws: &mut Workspace) {
        let (isa, pool) = (self.isa, &self.pool);
        let (dim, inner) = (self.dim(), layer.inner.bias.len());
        let Workspace { x, inputs, inner_products, inner: outputs, .. } = &mut *ws;
        let n = x.len() / dim;
        inputs.resize(n, dim).copy_from_slice(x);
        inner_products.resize(n * inner, 0.0);
        let product = Product { weights: &layer.inner.weights, out: inner_products };
        matmul(isa, pool, inputs, [product]);
        pool.for_each_chunk(outputs.resize(n, inner), inner, |row, out| {
            sum(&inner_products[row * inner..][..inner], &layer.inner.bias, out);
            gelu(isa, out);
        });
        self.add(&layer.outer, &layer.norm, &ws.inner, &mut ws.x, &mut ws.products);
    }

    /// `x = norm(x + linear(inputs))`
    fn add(
        &self,
        linear: &Linear,
        norm: &Norm,
        inputs: &Activations,
        x: &mut [f32],
        products: &mut Vec<f32>,
    ) {
        let dim = self.dim();
        products.resize(x.len(), 0.0);
        matmul(self.isa, &self.pool, inputs, [Product { weights: &linear.weights, out: products }]);
        self.pool.for_each_chunk(x, dim, |row, x| {
            add_assign(x, &products[row * dim..][..dim]);
            add_assign(x, &linear.bias);
            norm.apply(self.isa, x);
        });
    }
}

impl Norm {
    /// In place, one row.
    fn apply(&self, isa: Isa, x: &mut [f32]) {
        layer_norm(isa, x, &self.weight, &self.bias, self.eps);
    }
}

/// Keys, values, queries and outputs of a head.
fn parts(head: &mut [f32], keys_len: usize, rows_len: usize) -> [&mut [f32]; 4] {
    let (keys, rest) = head.split_at_mut(keys_len);
    let (values, rest) = rest.split_at_mut(rows_len);
    let (queries, out) = rest.split_at_mut(rows_len);
    [keys, values, queries, out]
}

/// `out = a + b`
fn sum(a: &[f32], b: &[f32], out: &mut [f32]) {
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        *out = a + b;
    }
}
