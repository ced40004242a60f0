//! The forward pass and the cache again, from the formulas: plain loops in f64, every list written
//! out. It shares with the engine only the reading of files and of weights.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use everstream_kernels::dequantize;
use everstream_kv_cache::{KvSource, Place};
use everstream_model::{Architecture, GgufFile, ModelConfig};

/// A key that a query sees.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// Whose key and value, counted through all tokens that the model has read.
    pub(crate) token: usize,
    /// Where the key is rotated.
    pub(crate) key_pos: usize,
    /// Where the query is rotated to meet it.
    pub(crate) query_pos: usize,
}

/// A model, and the keys and values of all that it has read.
pub(crate) struct Naive {
    config: ModelConfig,
    weights: BTreeMap<String, Vec<f64>>,
    /// By token, layer and KV head, before rotation, in the order of the file.
    keys: Vec<Vec<Vec<Vec<f64>>>>,
    /// By token, layer and KV head.
    values: Vec<Vec<Vec<Vec<f64>>>>,
}

impl Naive {
    pub(crate) fn open(path: &Path) -> Self {
        let gguf = GgufFile::open(path).unwrap();
        let config = ModelConfig::from_gguf(&gguf).unwrap();
        let names = gguf.tensors().keys();
        let weights = names.map(|name| (name.clone(), weights(&gguf, name))).collect();
        Self { config, weights, keys: Vec::new(), values: Vec::new() }
    }

    /// Reads a token that sees `seen`, itself included; returns the logits of the next.
    pub(crate) fn read(&mut self, id: u32, seen: &[Seen]) -> Vec<f64> {
        let c = self.config.clone();
        let embedding = &self.weights["token_embd.weight"];
        let mut x = embedding[id as usize * c.embedding_dim..][..c.embedding_dim].to_vec();
        let is_gemma = c.architecture == Architecture::Gemma3;
        if is_gemma {
            x.iter_mut().for_each(|x| *x *= (c.embedding_dim as f64).sqrt());
        }
        self.keys.push(Vec::new());
        self.values.push(Vec::new());
        let own = self.keys.len() - 1;
        for layer in 0..c.n_layers {
            let name = |part: &str| format!("blk.{layer}.{part}");
            let normed = self.norm(&x, &name("attn_norm.weight"));
            let [q, k, v] =
                ["attn_q", "attn_k", "attn_v"].map(|part| self.linear(&normed, &name(part)));
            let q = self.norm_of_heads(q, &name("attn_q_norm.weight"));
            let k = self.norm_of_heads(k, &name("attn_k_norm.weight"));
            self.keys[own].push(k.chunks(c.head_dim).map(<[f64]>::to_vec).collect());
            self.values[own].push(v.chunks(c.head_dim).map(<[f64]>::to_vec).collect());
            let heads = q.chunks(c.head_dim).enumerate();
            let mixed: Vec<f64> = heads.flat_map(|(h, q)| self.attend(layer, h, q, seen)).collect();
            let mixed = self.linear(&mixed, &name("attn_output"));
            add(&mut x, &self.norm_if_there(mixed, &name("post_attention_norm.weight")));
            let normed = self.norm(&x, &name("ffn_norm.weight"));
            let gate = self.linear(&normed, &name("ffn_gate"));
            let up = self.linear(&normed, &name("ffn_up"));
            let activation = |x: f64| match is_gemma {
                true => {
                    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                    0.5 * x * (1.0 + inner.tanh())
                }
                false => x / (1.0 + (-x).exp()),
            };
            let hidden: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| activation(*g) * u).collect();
            let hidden = self.linear(&hidden, &name("ffn_down"));
            add(&mut x, &self.norm_if_there(hidden, &name("post_ffw_norm.weight")));
        }
        let normed = self.norm(&x, "output_norm.weight");
        self.linear(&normed, if c.tied_embeddings { "token_embd" } else { "output" })
    }

    /// Softmax attention of one query head.
    fn attend(&self, layer: usize, head: usize, q: &[f64], seen: &[Seen]) -> Vec<f64> {
        let kv_head = head / (self.config.n_heads / self.config.n_kv_heads);
        // All layers but the last of each period have the window and the base of their own.
        let sliding = self.config.sliding_window.filter(|s| !(layer + 1).is_multiple_of(s.period));
        let base = sliding.map_or(self.config.rope_base, |s| s.rope_base);
        let is_seen = |s: &&Seen| sliding.is_none_or(|w| s.query_pos - s.key_pos < w.window_tokens);
        let seen: Vec<Seen> = seen.iter().filter(is_seen).copied().collect();
        let score = |s: &Seen| {
            let k = self.rotated(&self.keys[s.token][layer][kv_head], s.key_pos, base);
            let q = self.rotated(q, s.query_pos, base);
            dot(&q, &k) / (self.config.head_dim as f64).sqrt()
        };
        let scores: Vec<f64> = seen.iter().map(score).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        let mut out = vec![0.0; self.config.head_dim];
        for (score, s) in scores.iter().zip(&seen) {
            let weight = (score - max).exp() / total;
            let weighted: Vec<f64> =
                self.values[s.token][layer][kv_head].iter().map(|v| weight * v).collect();
            add(&mut out, &weighted);
        }
        out
    }

    /// Turns pair `i` by `position * base^(-2i / dim)`.
    fn rotated(&self, x: &[f64], position: usize, base: f32) -> Vec<f64> {
        let mut out = x.to_vec();
        for i in 0..self.config.rope_dim / 2 {
            let exponent = -2.0 * i as f64 / self.config.rope_dim as f64;
            // Models are trained with frequencies in f32.
            let frequency = f64::from(f64::from(base).powf(exponent) as f32);
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (a, b) = self.pair(i);
            out[a] = x[a] * cos - x[b] * sin;
            out[b] = x[b] * cos + x[a] * sin;
        }
        out
    }

    /// Which two components of a head, in the order of the file, turn together.
    fn pair(&self, i: usize) -> (usize, usize) {
        match self.config.architecture {
            Architecture::Llama => (2 * i, 2 * i + 1),
            _ => (i, i + self.config.rope_dim / 2),
        }
    }

    fn norm(&self, x: &[f64], weight: &str) -> Vec<f64> {
        let mean = dot(x, x) / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(self.config.norm_eps)).sqrt();
        x.iter().zip(&self.weights[weight]).map(|(x, w)| x * scale * w).collect()
    }

    fn norm_if_there(&self, x: Vec<f64>, weight: &str) -> Vec<f64> {
        if self.weights.contains_key(weight) { self.norm(&x, weight) } else { x }
    }

    fn norm_of_heads(&self, x: Vec<f64>, weight: &str) -> Vec<f64> {
        let heads = x.chunks(self.config.head_dim);
        heads.flat_map(|head| self.norm_if_there(head.to_vec(), weight)).collect()
    }

    /// The matrix `name.weight` times `x`, plus `name.bias` if there is one.
    fn linear(&self, x: &[f64], name: &str) -> Vec<f64> {
        let rows = self.weights[&format!("{name}.weight")].chunks(x.len());
        let mut out: Vec<f64> = rows.map(|row| dot(row, x)).collect();
        if let Some(bias) = self.weights.get(&format!("{name}.bias")) {
            add(&mut out, bias);
        }
        out
    }
}

fn weights(gguf: &GgufFile, name: &str) -> Vec<f64> {
    let info = gguf.tensor(name).unwrap();
    let ty = info.ty().weight_type().unwrap();
    let mut wide = vec![0.0; info.n_elements()];
    dequantize(ty, gguf.tensor_data(info), &mut wide);
    wide.into_iter().map(f64::from).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// Keys and values of some tokens as the naive run computed them, in the engine's order.
pub(crate) struct Stored<'a> {
    pub(crate) model: &'a Naive,
    pub(crate) tokens: Range<usize>,
}

impl KvSource for Stored<'_> {
    fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    fn read(&self, layer: usize, kv_head: usize, keys: &mut [f32], values: &mut [f32]) {
        let (dim, model) = (self.model.config.head_dim, self.model);
        let rows = keys.chunks_mut(dim).zip(values.chunks_mut(dim));
        for (token, (k, v)) in self.tokens.clone().zip(rows) {
            let (key, value) =
                (&model.keys[token][layer][kv_head], &model.values[token][layer][kv_head]);
            for i in 0..dim / 2 {
                let (a, b) = model.pair(i);
                (k[i], k[i + dim / 2]) = (key[a] as f32, key[b] as f32);
            }
            v.iter_mut().zip(value).for_each(|(to, from)| *to = *from as f32);
        }
    }
}

/// What happens to a stream.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Read(usize),
    Recall(Place, Vec<Range<usize>>),
    EndRecall,
}

/// What the query at `t` sees, in the order of StreamingLLM's loop: the place in that list is the
/// position, for keys and query alike. `recall` has the length that the stream had then.
fn visible(
    (n_sink, window): (usize, usize),
    t: usize,
    recall: Option<&(Place, usize, Vec<usize>)>,
) -> Vec<Seen> {
    let sinks = 0..n_sink.min(t + 1);
    let recent = n_sink.max(t.saturating_sub(window))..t + 1;
    let list: Vec<usize> = match recall {
        None => sinks.chain(recent).collect(),
        Some((Place::Between, _, recalled)) => {
            sinks.chain(recalled.iter().copied()).chain(recent).collect()
        }
        Some((Place::Near, at, recalled)) => {
            let (before, turn) = (recent.start..*at, recent.start.max(*at)..t + 1);
            sinks.chain(before).chain(recalled.iter().copied()).chain(turn).collect()
        }
    };
    let query_pos = list.len() - 1;
    let seen = |(key_pos, token)| Seen { token, key_pos, query_pos };
    list.into_iter().enumerate().map(seen).collect()
}

/// Runs a stream and returns the model that has read it, with the logits of all positions.
pub(crate) fn run(
    path: &Path,
    sizes: (usize, usize),
    tokens: &[u32],
    steps: &[Step],
) -> (Naive, Vec<Vec<f64>>) {
    let (mut model, mut logits, mut recall) = (Naive::open(path), Vec::new(), None);
    for step in steps {
        match step {
            Step::Read(n) => {
                for _ in 0..*n {
                    let t = logits.len();
                    logits.push(model.read(tokens[t], &visible(sizes, t, recall.as_ref())));
                }
            }
            Step::Recall(place, ranges) => {
                let recalled = ranges.iter().cloned().flatten().collect();
                recall = Some((*place, logits.len(), recalled));
            }
            Step::EndRecall => recall = None,
        }
    }
    (model, logits)
}
