//! The shape of a model, read from the metadata of its file and checked.
//!
//! Everything that the forward pass, the cache and the tokenizer size their buffers by comes from
//! here, so nothing leaves this module that is zero, does not divide, or is absurdly large.

mod rope;
#[cfg(test)]
mod tests;

use std::fmt;

use everstream_kernels::Activation;

use crate::error::LoadError;
use crate::gguf::GgufFile;

pub(crate) use rope::{FACTORS, LONG_FACTORS, SHORT_FACTORS};
pub use rope::{RopeScaling, Yarn};

const MAX_LAYERS: u32 = 1024;
const MAX_HEADS: u32 = 1024;
const MAX_HEAD_DIM: u32 = 512;
const MAX_EMBEDDING_DIM: u32 = 1 << 16;
const MAX_FFN_DIM: u32 = 1 << 20;
const MAX_VOCAB: usize = 1 << 22;

/// A model family, as `general.architecture` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Architecture {
    /// Llama 2 and 3 and what is built like them: SmolLM2, TinyLlama, Mistral.
    Llama,
    /// Qwen 2 and 2.5: like Llama, with a bias on queries, keys and values.
    Qwen2,
    /// Qwen 3, dense: like Llama, with norms of queries and keys.
    Qwen3,
    /// Gemma 2: layers with a sliding window alternate with those that see everything; norms before
    /// and behind each half of a layer; soft caps.
    Gemma2,
    /// Gemma 3, text: five layers with a sliding window for each that sees everything, norms of
    /// queries and keys, no soft caps.
    Gemma3,
    /// Phi-3, Phi-4 and Phi-4-mini: like Llama, with matrices put together.
    Phi3,
    /// Granite 3, dense: like Llama, with four factors.
    Granite,
    /// OLMo 2: norms behind each half of a layer only, and of all queries and all keys.
    Olmo2,
    /// SmolLM3: like Llama, with every fourth layer free of positions.
    SmolLm3,
}

impl Architecture {
    const ALL: [Self; 9] = [
        Self::Llama,
        Self::Qwen2,
        Self::Qwen3,
        Self::Gemma2,
        Self::Gemma3,
        Self::Phi3,
        Self::Granite,
        Self::Olmo2,
        Self::SmolLm3,
    ];

    /// The names that GGUF files use, in the order of the variants.
    pub const NAMES: &'static [&'static str] =
        &["llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "granite", "olmo2", "smollm3"];

    /// The name in GGUF files, which is also the prefix of its metadata keys.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|architecture| architecture.name() == name)
    }

    /// Which elements of a head the rotary embedding turns together, in the layout of the file.
    #[must_use]
    pub fn rope_pairs(self) -> RopePairs {
        match self {
            Self::Llama | Self::Granite | Self::SmolLm3 => RopePairs::Adjacent,
            Self::Qwen2 | Self::Qwen3 | Self::Gemma2 | Self::Gemma3 | Self::Phi3 | Self::Olmo2 => {
                RopePairs::Halves
            }
        }
    }

    fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }

    fn norms(self) -> Norms {
        match self {
            Self::Gemma2 | Self::Gemma3 => Norms::Both,
            Self::Olmo2 => Norms::Behind,
            _ => Norms::Before,
        }
    }

    fn qk_norm(self) -> QkNorm {
        match self {
            Self::Qwen3 | Self::Gemma3 => QkNorm::Head,
            Self::Olmo2 => QkNorm::Row,
            _ => QkNorm::None,
        }
    }
}

/// Where the norms of a layer stand, for attention and the feed-forward network alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Norms {
    /// Before it.
    Before,
    /// Behind it, before its output is added to the residual stream.
    Behind,
    /// On both sides.
    Both,
}

/// What of queries and keys has a norm, before they are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QkNorm {
    /// Nothing.
    None,
    /// Each head.
    Head,
    /// All heads together.
    Row,
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Which two elements of a head form one pair of the rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopePairs {
    /// Elements `2 i` and `2 i + 1`. llama.cpp's converter permutes the rows of q and k of `llama`
    /// models into this order; the original checkpoints have [`Halves`](Self::Halves).
    Adjacent,
    /// Elements `i` and `i + rope_dim / 2`.
    Halves,
}

/// Layers that see the most recent tokens only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlidingWindow {
    /// How many, the query's own included.
    pub window_tokens: usize,
    /// Of so many layers the last sees everything; `None` if none does.
    pub period: Option<usize>,
    /// The base of the rotary frequencies in these layers.
    pub rope_base: f32,
}

/// The shape and the constants of a model.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// `general.name`, or the architecture if the file has none.
    pub name: String,
    /// Number of transformer layers.
    pub n_layers: usize,
    /// Query heads per layer; a multiple of `n_kv_heads`.
    pub n_heads: usize,
    /// Key and value heads per layer.
    pub n_kv_heads: usize,
    /// Elements per head, for queries, keys and values alike; even.
    pub head_dim: usize,
    /// Elements of the residual stream.
    pub embedding_dim: usize,
    /// Elements of the hidden layer of the feed-forward network.
    pub ffn_dim: usize,
    /// Number of tokens: rows of the embedding, length of the logits.
    pub vocab_size: usize,
    /// The longest context that the model was trained on, in tokens.
    pub context_length: usize,
    /// The base of the rotary frequencies: pair `i` turns by `rope_base^(-2 i / rope_dim)` per
    /// position.
    pub rope_base: f32,
    /// Elements of a head that are rotated, from its start; even, at most `head_dim`.
    pub rope_dim: usize,
    /// How the frequencies of layers that see everything differ from what the base says.
    pub rope_scaling: RopeScaling,
    /// Of so many layers the last does not rotate.
    pub no_rope_period: Option<usize>,
    /// Layers that see the most recent tokens only.
    pub sliding_window: Option<SlidingWindow>,
    /// Token embeddings are multiplied by it.
    pub embedding_scale: f32,
    /// Products of queries and keys are multiplied by it.
    pub attention_scale: f32,
    /// Scores of attention are soft-capped at it.
    pub attention_cap: Option<f32>,
    /// What a layer adds to the residual stream is multiplied by it.
    pub residual_scale: f32,
    /// Logits are divided by it.
    pub logit_divisor: f32,
    /// Logits are soft-capped at it.
    pub logit_cap: Option<f32>,
    /// What the gate of the feed-forward network goes through.
    pub activation: Activation,
    /// Added to the mean square before the root in RMSNorm.
    pub norm_eps: f32,
    /// Whether the output matrix is the token embedding (the file has no `output.weight`).
    pub tied_embeddings: bool,
    /// Whether queries, keys and values have a bias.
    pub has_qkv_bias: bool,
    /// What of queries and keys has a norm.
    pub qk_norm: QkNorm,
    /// Where the norms of a layer stand.
    pub norms: Norms,
}

impl ModelConfig {
    /// Reads and checks the configuration.
    ///
    /// # Errors
    ///
    /// [`LoadError`] naming key and value: missing, of a wrong type, out of range, or asking for
    /// something that is not computed (another architecture, rope scaling, experts).
    pub fn from_gguf(gguf: &GgufFile) -> Result<Self, LoadError> {
        let keys = Keys::new(gguf)?;
        refuse_unsupported(&keys)?;
        let n_layers = keys.size("block_count", MAX_LAYERS)?;
        let embedding_dim = keys.size("embedding_length", MAX_EMBEDDING_DIM)?;
        let (n_heads, n_kv_heads) = heads(&keys)?;
        let head_dim = head_dim(&keys, embedding_dim, n_heads)?;
        let architecture = keys.architecture;
        let rope_scaling = rope::scaling(&keys)?;
        // Early files of Gemma 2 leave out what is alike in all its models.
        let gemma2 = |value: f32| (architecture == Architecture::Gemma2).then_some(value);
        Ok(Self {
            architecture,
            name: gguf.find_str("general.name")?.unwrap_or(architecture.name()).to_owned(),
            n_layers,
            n_heads,
            n_kv_heads,
            head_dim,
            embedding_dim,
            ffn_dim: keys.size("feed_forward_length", MAX_FFN_DIM)?,
            vocab_size: vocab_size(gguf)?,
            context_length: rope::context_length(&keys, rope_scaling)?,
            rope_base: rope::base(&keys, "rope.freq_base")?,
            rope_dim: rope::dim(&keys, head_dim)?,
            rope_scaling,
            no_rope_period: (architecture == Architecture::SmolLm3).then_some(4),
            sliding_window: sliding_window(&keys)?,
            embedding_scale: match architecture.is_gemma() {
                true => (embedding_dim as f32).sqrt(),
                false => keys.factor("embedding_scale")?.unwrap_or(1.0),
            },
            attention_scale: match keys.factor("attention.scale")? {
                Some(scale) => scale,
                None => attention_scale(architecture, n_layers, embedding_dim / n_heads, head_dim),
            },
            attention_cap: keys.factor("attn_logit_softcapping")?.or(gemma2(50.0)),
            residual_scale: keys.factor("residual_scale")?.unwrap_or(1.0),
            logit_divisor: keys.factor("logit_scale")?.unwrap_or(1.0),
            logit_cap: keys.factor("final_logit_softcapping")?.or(gemma2(30.0)),
            activation: match architecture.is_gemma() {
                true => Activation::GeluTanh,
                false => Activation::Silu,
            },
            norm_eps: norm_eps(&keys)?,
            tied_embeddings: !gguf.has_tensor("output.weight"),
            has_qkv_bias: gguf.has_tensor("blk.0.attn_q.bias"),
            qk_norm: architecture.qk_norm(),
            norms: architecture.norms(),
        })
    }

    /// Elements of one token's keys in one layer, and of its values: `n_kv_heads * head_dim`.
    #[must_use]
    pub fn kv_dim(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Whether q, k and v are one matrix of the file, and gate and up another.
    pub(crate) fn has_joined_matrices(&self) -> bool {
        self.architecture == Architecture::Phi3
    }

    /// Whether a layer has a window of its own.
    #[must_use]
    pub fn is_sliding(&self, layer: usize) -> bool {
        let is_last = |period: usize| (layer + 1).is_multiple_of(period);
        self.sliding_window.is_some_and(|window| !window.period.is_some_and(is_last))
    }

    /// Whether a layer rotates queries and keys.
    #[must_use]
    pub fn has_rope(&self, layer: usize) -> bool {
        !self.no_rope_period.is_some_and(|period| (layer + 1).is_multiple_of(period))
    }

    /// Elements of one token's queries in one layer: `n_heads * head_dim`.
    #[must_use]
    pub fn q_dim(&self) -> usize {
        self.n_heads * self.head_dim
    }
}

/// The metadata keys of one architecture, which all begin with its name.
struct Keys<'a> {
    gguf: &'a GgufFile,
    architecture: Architecture,
}

impl<'a> Keys<'a> {
    fn new(gguf: &'a GgufFile) -> Result<Self, LoadError> {
        let found = gguf.get_str("general.architecture")?;
        let architecture =
            Architecture::from_name(found).ok_or_else(|| LoadError::UnsupportedArchitecture {
                path: gguf.path().to_owned(),
                found: found.to_owned(),
                supported: Architecture::NAMES,
            })?;
        Ok(Self { gguf, architecture })
    }

    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.architecture.name())
    }

    /// A size that must be present, from 1 to `max`.
    fn size(&self, suffix: &str, max: u32) -> Result<usize, LoadError> {
        let value = self.gguf.get_u32(&self.key(suffix))?;
        self.in_range(suffix, value, max)
    }

    /// A size that may be absent, from 1 to `max`.
    fn find_size(&self, suffix: &str, max: u32) -> Result<Option<usize>, LoadError> {
        let value = self.gguf.find_u32(&self.key(suffix))?;
        value.map(|value| self.in_range(suffix, value, max)).transpose()
    }

    fn in_range(&self, suffix: &str, value: u32, max: u32) -> Result<usize, LoadError> {
        if value == 0 || value > max {
            return Err(self.invalid(suffix, value, format!("from 1 to {max}")));
        }
        Ok(value as usize)
    }

    fn find_u32(&self, suffix: &str) -> Result<Option<u32>, LoadError> {
        self.gguf.find_u32(&self.key(suffix))
    }

    fn find_f32(&self, suffix: &str) -> Result<Option<f32>, LoadError> {
        self.gguf.find_f32(&self.key(suffix))
    }

    /// A factor that may be absent, or 0 where there is none.
    fn factor(&self, suffix: &str) -> Result<Option<f32>, LoadError> {
        match self.find_f32(suffix)? {
            Some(x) if !x.is_finite() || x < 0.0 => {
                Err(self.invalid(suffix, x, "a finite number above 0".to_owned()))
            }
            found => Ok(found.filter(|&x| x != 0.0)),
        }
    }

    fn invalid(&self, suffix: &str, value: impl fmt::Display, rule: String) -> LoadError {
        LoadError::InvalidValue {
            path: self.gguf.path().to_owned(),
            key: self.key(suffix),
            value: value.to_string(),
            rule,
        }
    }

    fn unsupported(&self, feature: &'static str, detail: String) -> LoadError {
        LoadError::UnsupportedFeature { path: self.gguf.path().to_owned(), feature, detail }
    }
}

fn heads(keys: &Keys<'_>) -> Result<(usize, usize), LoadError> {
    let n_heads = keys.size("attention.head_count", MAX_HEADS)?;
    let n_kv_heads = keys.find_size("attention.head_count_kv", MAX_HEADS)?.unwrap_or(n_heads);
    if !n_heads.is_multiple_of(n_kv_heads) {
        let rule = format!("a divisor of the {n_heads} query heads");
        return Err(keys.invalid("attention.head_count_kv", n_kv_heads, rule));
    }
    Ok((n_heads, n_kv_heads))
}

fn head_dim(keys: &Keys<'_>, embedding_dim: usize, n_heads: usize) -> Result<usize, LoadError> {
    let key_dim = keys.find_size("attention.key_length", MAX_HEAD_DIM)?;
    let head_dim = match key_dim {
        Some(given) => given,
        None if embedding_dim.is_multiple_of(n_heads) => embedding_dim / n_heads,
        None => {
            let rule = format!("a multiple of the {n_heads} heads");
            return Err(keys.invalid("embedding_length", embedding_dim, rule));
        }
    };
    if head_dim > MAX_HEAD_DIM as usize || !head_dim.is_multiple_of(2) {
        let suffix = if key_dim.is_some() { "attention.key_length" } else { "embedding_length" };
        let value = key_dim.unwrap_or(embedding_dim);
        let rule = format!("such that a head has an even size up to {MAX_HEAD_DIM}");
        return Err(keys.invalid(suffix, value, rule));
    }
    let value_dim = keys.find_size("attention.value_length", MAX_HEAD_DIM)?.unwrap_or(head_dim);
    if value_dim != head_dim {
        let rule = format!("the size of a key, {head_dim}");
        return Err(keys.invalid("attention.value_length", value_dim, rule));
    }
    Ok(head_dim)
}

/// The length of the token list, which must agree with the rows of the embedding matrix.
fn vocab_size(gguf: &GgufFile) -> Result<usize, LoadError> {
    const KEY: &str = "tokenizer.ggml.tokens";
    let n_tokens = gguf.find_arr_str(KEY)?.map(|tokens| tokens.len());
    let n_rows = gguf.tensors().get("token_embd.weight").map(|info| info.n_rows());
    let invalid = |value: usize, rule: String| LoadError::InvalidValue {
        path: gguf.path().to_owned(),
        key: KEY.to_owned(),
        value: format!("a list of {value}"),
        rule,
    };
    let size = match (n_tokens, n_rows) {
        (Some(n_tokens), Some(n_rows)) if n_tokens != n_rows => {
            let rule = format!("as long as `token_embd.weight` has rows, {n_rows}");
            return Err(invalid(n_tokens, rule));
        }
        (Some(size), _) | (None, Some(size)) => size,
        (None, None) => {
            let path = gguf.path().to_owned();
            return Err(LoadError::MissingKey { path, key: KEY.to_owned() });
        }
    };
    if size == 0 || size > MAX_VOCAB {
        return Err(invalid(size, format!("from 1 to {MAX_VOCAB} tokens long")));
    }
    Ok(size)
}

fn norm_eps(keys: &Keys<'_>) -> Result<f32, LoadError> {
    const SUFFIX: &str = "attention.layer_norm_rms_epsilon";
    let eps = keys.gguf.get_f32(&keys.key(SUFFIX))?;
    if !(eps > 0.0 && eps <= 0.1) {
        return Err(keys.invalid(SUFFIX, eps, "above 0 and at most 0.1".to_owned()));
    }
    Ok(eps)
}

/// Refuses what would silently change the result if it were ignored.
fn refuse_unsupported(keys: &Keys<'_>) -> Result<(), LoadError> {
    if let Some(n_experts) = keys.find_u32("expert_count")?.filter(|&n_experts| n_experts > 0) {
        let detail = format!("`{}` is {n_experts}", keys.key("expert_count"));
        return Err(keys.unsupported("a mixture of experts", detail));
    }
    let is_known = matches!(
        keys.architecture,
        Architecture::Gemma2 | Architecture::Gemma3 | Architecture::Phi3
    );
    if let Some(width) = keys.find_u32(SLIDING_WINDOW)?.filter(|&width| width > 0 && !is_known) {
        let detail = format!("`{}` is {width}", keys.key(SLIDING_WINDOW));
        return Err(keys.unsupported("sliding-window attention", detail));
    }
    Ok(())
}

const SLIDING_WINDOW: &str = "attention.sliding_window";

/// Which layers have a window of their own; files leave out what is alike in a whole family.
fn sliding_window(keys: &Keys<'_>) -> Result<Option<SlidingWindow>, LoadError> {
    let width = keys.find_u32(SLIDING_WINDOW)?;
    let (width, period, base) = match keys.architecture {
        Architecture::Gemma2 => (width.unwrap_or(4096), Some(2), "rope.freq_base"),
        Architecture::Gemma3 => {
            (keys.gguf.get_u32(&keys.key(SLIDING_WINDOW))?, Some(6), "rope.freq_base_swa")
        }
        Architecture::Phi3 => (width.unwrap_or(0), None, "rope.freq_base"),
        _ => return Ok(None),
    };
    let given = keys.find_size("attention.sliding_window_pattern", MAX_LAYERS)?;
    let rope_base = rope::base(keys, base)?;
    // Of Phi-4 the width is 0: no layer slides.
    Ok((width > 0).then(|| SlidingWindow {
        window_tokens: width as usize,
        period: period.map(|period| given.unwrap_or(period)),
        rope_base,
    }))
}

/// One over the root of the size of a head; of the 27B models of Gemma, of what a head would have if
/// all of them had the embedding between them.
fn attention_scale(
    architecture: Architecture,
    n_layers: usize,
    even_share: usize,
    head_dim: usize,
) -> f32 {
    let is_27b =
        matches!((architecture, n_layers), (Architecture::Gemma2, 46) | (Architecture::Gemma3, 62));
    let dim = if is_27b { even_share } else { head_dim };
    1.0 / (dim as f32).sqrt()
}
