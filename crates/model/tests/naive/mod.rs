//! The forward pass and the cache again, from the formulas: plain loops in f64, every list written
//! out. It shares with the engine only the reading of files and of weights.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use everstream_kernels::dequantize;
use everstream_kv_cache::{KvSource, Place};
use everstream_model::{Architecture, GgufFile, ModelConfig, RopeScaling, SlidingWindow};

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
        x.iter_mut().for_each(|x| *x *= f64::from(c.embedding_scale));
        self.keys.push(Vec::new());
        self.values.push(Vec::new());
        let own = self.keys.len() - 1;
        for layer in 0..c.n_layers {
            let name = |part: &str| format!("blk.{layer}.{part}");
            let normed = self.norm(x.clone(), &name("attn_norm.weight"));
            let [q, k, v] = if self.weights.contains_key(&name("attn_qkv.weight")) {
                let qkv = self.linear(&normed, &name("attn_qkv"));
                let (q, kv) = qkv.split_at(c.q_dim());
                let (k, v) = kv.split_at(c.kv_dim());
                [q, k, v].map(<[f64]>::to_vec)
            } else {
                ["attn_q", "attn_k", "attn_v"].map(|part| self.linear(&normed, &name(part)))
            };
            let q = self.norm(q, &name("attn_q_norm.weight"));
            let k = self.norm(k, &name("attn_k_norm.weight"));
            self.keys[own].push(k.chunks(c.head_dim).map(<[f64]>::to_vec).collect());
            self.values[own].push(v.chunks(c.head_dim).map(<[f64]>::to_vec).collect());
            let heads = q.chunks(c.head_dim).enumerate();
            let mixed: Vec<f64> = heads.flat_map(|(h, q)| self.attend(layer, h, q, seen)).collect();
            let mixed = self.linear(&mixed, &name("attn_output"));
            self.add(&mut x, mixed, &name("post_attention_norm.weight"));
            let normed = self.norm(x.clone(), &name("ffn_norm.weight"));
            let up = self.linear(&normed, &name("ffn_up"));
            let (gate, up) = if self.weights.contains_key(&name("ffn_gate.weight")) {
                (self.linear(&normed, &name("ffn_gate")), up)
            } else {
                (up[..c.ffn_dim].to_vec(), up[c.ffn_dim..].to_vec())
            };
            let hidden: Vec<f64> =
                gate.iter().zip(&up).map(|(g, u)| activation(&c, *g) * u).collect();
            let hidden = self.linear(&hidden, &name("ffn_down"));
            self.add(&mut x, hidden, &name("post_ffw_norm.weight"));
        }
        let normed = self.norm(x, "output_norm.weight");
        let mut logits =
            self.linear(&normed, if c.tied_embeddings { "token_embd" } else { "output" });
        for logit in &mut logits {
            *logit /= f64::from(c.logit_divisor);
            *logit = capped(*logit, c.logit_cap);
        }
        logits
    }

    /// Softmax attention of one query head.
    fn attend(&self, layer: usize, head: usize, q: &[f64], seen: &[Seen]) -> Vec<f64> {
        let c = &self.config;
        let kv_head = head / (c.n_heads / c.n_kv_heads);
        let window = c.sliding_window.filter(|_| c.is_sliding(layer)).map(|w| w.window_tokens);
        let is_seen = |s: &&Seen| window.is_none_or(|w| s.query_pos - s.key_pos < w);
        let seen: Vec<Seen> = seen.iter().filter(is_seen).copied().collect();
        let score = |s: &Seen| {
            let k = self.rotated(&self.keys[s.token][layer][kv_head], s.key_pos, layer);
            let q = self.rotated(q, s.query_pos, layer);
            capped(dot(&q, &k) * f64::from(c.attention_scale), c.attention_cap)
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

    /// Turns pair `i` by `position` times its frequency.
    fn rotated(&self, x: &[f64], position: usize, layer: usize) -> Vec<f64> {
        let mut out = x.to_vec();
        if !self.config.has_rope(layer) {
            return out;
        }
        for i in 0..self.config.rope_dim / 2 {
            let (frequency, magnitude) = self.frequency(i, layer);
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (a, b) = self.pair(i);
            out[a] = (x[a] * cos - x[b] * sin) * magnitude;
            out[b] = (x[b] * cos + x[a] * sin) * magnitude;
        }
        out
    }

    /// `base^(-2i / dim)`, scaled, and what is rotated is multiplied by.
    fn frequency(&self, i: usize, layer: usize) -> (f64, f64) {
        let c = &self.config;
        let plain = |base: f32| {
            let exponent = -2.0 * i as f64 / c.rope_dim as f64;
            // Models are trained with frequencies in f32.
            f64::from(f64::from(base).powf(exponent) as f32)
        };
        let own_base = |w: &SlidingWindow| c.is_sliding(layer) && w.rope_base != c.rope_base;
        if let Some(window) = c.sliding_window.filter(own_base) {
            return (plain(window.rope_base), 1.0);
        }
        let of_file = |name: &str| plain(c.rope_base) / self.weights[name][i];
        match c.rope_scaling {
            RopeScaling::None => (plain(c.rope_base), 1.0),
            RopeScaling::Linear(factor) => (plain(c.rope_base) / f64::from(factor), 1.0),
            RopeScaling::Factors => (of_file("rope_freqs.weight"), 1.0),
            RopeScaling::LongRope { magnitude } => {
                (of_file("rope_factors_short.weight"), f64::from(magnitude))
            }
            RopeScaling::Yarn(yarn) => {
                let divisor = yarn.divisors(c.rope_base, c.rope_dim / 2)[i];
                (plain(c.rope_base) / f64::from(divisor), f64::from(yarn.magnitude()))
            }
        }
    }

    /// Which two components of a head, in the order of the file, turn together.
    fn pair(&self, i: usize) -> (usize, usize) {
        use Architecture::{Granite, Llama, SmolLm3};
        match self.config.architecture {
            Llama | Granite | SmolLm3 => (2 * i, 2 * i + 1),
            _ => (i, i + self.config.rope_dim / 2),
        }
    }

    /// The norm of `x`, or of each of its parts that is as long as the weight; `x` itself where the
    /// family has no such norm.
    fn norm(&self, x: Vec<f64>, weight: &str) -> Vec<f64> {
        let Some(weight) = self.weights.get(weight) else { return x };
        let part = |x: &[f64]| -> Vec<f64> {
            let mean = dot(x, x) / x.len() as f64;
            let scale = 1.0 / (mean + f64::from(self.config.norm_eps)).sqrt();
            x.iter().zip(weight).map(|(x, w)| x * scale * w).collect()
        };
        x.chunks(weight.len()).flat_map(part).collect()
    }

    /// Adds what a half of a layer gives to the residual stream.
    fn add(&self, x: &mut [f64], delta: Vec<f64>, norm: &str) {
        let scale = f64::from(self.config.residual_scale);
        let delta: Vec<f64> = self.norm(delta, norm).iter().map(|d| d * scale).collect();
        add(x, &delta);
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

fn capped(x: f64, cap: Option<f32>) -> f64 {
    cap.map(f64::from).map_or(x, |cap| cap * (x / cap).tanh())
}

/// What the gate of the feed-forward network goes through.
fn activation(config: &ModelConfig, x: f64) -> f64 {
    if !matches!(config.architecture, Architecture::Gemma2 | Architecture::Gemma3) {
        return x / (1.0 + (-x).exp());
    }
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    0.5 * x * (1.0 + inner.tanh())
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
            // Rotated pairs are put into halves; what is not rotated stays where it is.
            k.iter_mut().zip(key).for_each(|(to, from)| *to = *from as f32);
            let rotated = model.config.rope_dim;
            for i in 0..rotated / 2 {
                let (a, b) = model.pair(i);
                (k[i], k[i + rotated / 2]) = (key[a] as f32, key[b] as f32);
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
