//! The network of a sentence encoder: BERT (Devlin et al., 2018, arXiv:1810.04805), in f32, on this
//! project's kernels.
//!
//! Rows of all texts of a batch stand behind each other, so nothing is padded; they meet in attention
//! only, where each sees its own text. A row's result depends on its text alone, bit for bit.

use everstream_kernels::{
    Activations, Attention, Isa, PackedMatrix, Pool, Product, QueryForm, Span, add_assign, attend,
    gelu, key_tiles_len, layer_norm, matmul, write_key,
};

/// A network.
pub(super) struct Bert {
    pub(super) isa: Isa,
    pub(super) pool: Pool,
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

/// Where a row stands.
#[derive(Clone, Copy)]
struct Row {
    text: usize,
    /// Its place in the text.
    place: usize,
}

/// What a thread needs while it attends.
#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    query: Vec<f32>,
}

impl Bert {
    pub(super) fn dim(&self) -> usize {
        self.norm.weight.len()
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
        let mut x = vec![0.0; rows.len() * dim];
        self.pool.for_each_chunk(&mut x, dim, |i, x| {
            let Row { text, place } = rows[i];
            x.copy_from_slice(&self.words[texts[text][place] as usize * dim..][..dim]);
            add_assign(x, &self.positions[place * dim..][..dim]);
            self.norm.apply(self.isa, x);
        });
        for layer in &self.layers {
            self.attention(layer, texts, &rows, &mut x);
            self.feed_forward(layer, &mut x);
        }
        let mut rest = &x[..];
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
    fn attention(&self, layer: &Layer, texts: &[&[u32]], rows: &[Row], x: &mut [f32]) {
        let (isa, pool, dim, n) = (self.isa, &self.pool, self.dim(), rows.len());
        let head_dim = dim / self.n_heads;
        let mut inputs = Activations::default();
        inputs.resize(n, dim).copy_from_slice(x);
        let [mut q, mut k, mut v] = [(); 3].map(|()| vec![0.0; n * dim]);
        matmul(
            isa,
            pool,
            &inputs,
            [
                Product { weights: &layer.query.weights, out: &mut q },
                Product { weights: &layer.key.weights, out: &mut k },
                Product { weights: &layer.value.weights, out: &mut v },
            ],
        );

        // Keys and values of each head of each text, with room for the longest text.
        let longest = texts.iter().map(|pieces| pieces.len()).max().unwrap_or(0);
        let keys_len = key_tiles_len(longest, head_dim);
        let head_len = keys_len + longest * head_dim;
        let first_rows: Vec<usize> = texts
            .iter()
            .scan(0, |next, pieces| Some(std::mem::replace(next, *next + pieces.len())))
            .collect();
        let mut heads = vec![0.0; texts.len() * self.n_heads * head_len];
        pool.for_each_chunk(&mut heads, head_len, |i, head| {
            let (text, at) = (i / self.n_heads, i % self.n_heads * head_dim);
            let (keys, values) = head.split_at_mut(keys_len);
            let mut key = vec![0.0; head_dim];
            for place in 0..texts[text].len() {
                let from = (first_rows[text] + place) * dim + at;
                key.copy_from_slice(&k[from..from + head_dim]);
                add_assign(&mut key, &layer.key.bias[at..at + head_dim]);
                write_key(keys, place, &key);
                let value = &mut values[place * head_dim..][..head_dim];
                value.copy_from_slice(&v[from..from + head_dim]);
                add_assign(value, &layer.value.bias[at..at + head_dim]);
            }
        });

        let scale = 1.0 / (head_dim as f32).sqrt();
        let mut mixed = Activations::default();
        let mut scratch: Vec<Scratch> = Vec::new();
        scratch.resize_with(pool.n_threads(), Scratch::default);
        pool.for_each_chunk_with(mixed.resize(n, dim), dim, &mut scratch, |scratch, i, out| {
            let Scratch { scores, query } = scratch;
            query.clear();
            let biased = q[i * dim..][..dim].iter().zip(&layer.query.bias);
            query.extend(biased.map(|(q, bias)| (q + bias) * scale));
            let text = rows[i].text;
            let len = texts[text].len();
            let spans = [Span { first: 0, len, form: QueryForm::Window }];
            let of_text = &heads[text * self.n_heads * head_len..];
            for (h, out) in out.chunks_exact_mut(head_dim).enumerate() {
                let (keys, values) = of_text[h * head_len..][..head_len].split_at(keys_len);
                let queries = [&query[h * head_dim..][..head_dim]; 2];
                let a = Attention {
                    keys,
                    values,
                    head_dim,
                    spans: &spans,
                    score_cap: None,
                    biases: None,
                    queries,
                };
                attend(isa, &a, scores, out);
            }
        });
        self.add(&layer.attention_out, &mixed, &layer.attention_norm, x);
    }

    /// `x = norm(x + outer(gelu(inner x)))`
    fn feed_forward(&self, layer: &Layer, x: &mut [f32]) {
        let (isa, pool) = (self.isa, &self.pool);
        let (dim, inner) = (self.dim(), layer.inner.bias.len());
        let n = x.len() / dim;
        let mut inputs = Activations::default();
        inputs.resize(n, dim).copy_from_slice(x);
        let mut products = vec![0.0; n * inner];
        let product = Product { weights: &layer.inner.weights, out: &mut products };
        matmul(isa, pool, &inputs, [product]);
        pool.for_each_chunk(inputs.resize(n, inner), inner, |row, out| {
            out.copy_from_slice(&products[row * inner..][..inner]);
            add_assign(out, &layer.inner.bias);
            gelu(isa, out);
        });
        self.add(&layer.outer, &inputs, &layer.norm, x);
    }

    /// `x = norm(x + linear(inputs))`
    fn add(&self, linear: &Linear, inputs: &Activations, norm: &Norm, x: &mut [f32]) {
        let dim = self.dim();
        let mut products = vec![0.0; x.len()];
        let product = Product { weights: &linear.weights, out: &mut products };
        matmul(self.isa, &self.pool, inputs, [product]);
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
