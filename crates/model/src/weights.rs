//! The weights of a model, repacked for the kernels.
//!
//! Loading checks every tensor's name, type and shape against the configuration before anything is
//! packed. Queries and keys of `llama` files are stored with neighbouring rotary pairs; their rows
//! are put back into halves here, so that one convention holds from here on.

use std::cell::RefCell;
use std::ops::Range;

use everstream_kernels::{Arena, PackedMatrix, Pool, WeightType, dequantize};

use crate::config::{
    FACTORS, LONG_FACTORS, ModelConfig, Norms, QkNorm, RopePairs, RopeScaling, SHORT_FACTORS,
};
use crate::error::LoadError;
use crate::gguf::{GgmlType, GgufFile, TensorInfo};
use crate::model::Arithmetic;

/// All weights but the token embedding, whose rows are read from the mapped file.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) embedding: TensorInfo,
    pub(crate) embedding_type: WeightType,
    pub(crate) layers: Vec<LayerWeights>,
    /// `[embedding_dim]`
    pub(crate) output_norm: Vec<f32>,
    /// `[vocab_size, embedding_dim]`
    pub(crate) output: PackedMatrix,
    /// What the file says that rotary frequencies are divided by: one for each pair.
    pub(crate) rope_divisors: Option<Vec<f32>>,
}

/// One transformer layer.
#[derive(Debug)]
pub(crate) struct LayerWeights {
    /// Norms before attention and before the feed-forward network: `[embedding_dim]`.
    pub(crate) norms_before: Option<[Vec<f32>; 2]>,
    /// `[n_heads * head_dim, embedding_dim]`
    pub(crate) q: PackedMatrix,
    /// `[n_kv_heads * head_dim, embedding_dim]`
    pub(crate) k: PackedMatrix,
    /// `[n_kv_heads * head_dim, embedding_dim]`
    pub(crate) v: PackedMatrix,
    /// Biases of q, k and v.
    pub(crate) bias: Option<[Vec<f32>; 3]>,
    /// Norms of q and of k: of each head, or of all together.
    pub(crate) qk_norm: Option<[Vec<f32>; 2]>,
    /// `[embedding_dim, n_heads * head_dim]`
    pub(crate) attention_out: PackedMatrix,
    /// Norms of what attention and what the feed-forward network adds: `[embedding_dim]`.
    pub(crate) norms_behind: Option<[Vec<f32>; 2]>,
    /// `[ffn_dim, embedding_dim]`
    pub(crate) gate: PackedMatrix,
    /// `[ffn_dim, embedding_dim]`
    pub(crate) up: PackedMatrix,
    /// `[embedding_dim, ffn_dim]`
    pub(crate) down: PackedMatrix,
}

impl LayerWeights {
    /// Its matrices.
    pub(crate) fn matrices(&self) -> [&PackedMatrix; 7] {
        [&self.q, &self.k, &self.v, &self.attention_out, &self.gate, &self.up, &self.down]
    }
}

impl Weights {
    /// Packs all weights of a file.
    pub(crate) fn load(
        gguf: &GgufFile,
        config: &ModelConfig,
        pool: &Pool,
        arithmetic: Arithmetic,
    ) -> Result<Self, LoadError> {
        gguf.require_supported_tensors()?;
        refuse_unknown_tensors(gguf, config)?;
        check_dimensions(gguf, config)?;
        let rope_divisors = match config.rope_scaling {
            RopeScaling::Factors => Some(FACTORS),
            RopeScaling::LongRope { .. } => Some(SHORT_FACTORS),
            _ => None,
        };
        let source = Source { gguf, config, pool, arithmetic, arena: RefCell::default() };
        let (dim, vocab) = (config.embedding_dim, config.vocab_size);
        let embedding = source.tensor("token_embd.weight", &[dim, vocab])?;
        let output = if config.tied_embeddings { "token_embd.weight" } else { "output.weight" };
        Ok(Self {
            embedding: embedding.clone(),
            embedding_type: source.weight_type(embedding)?,
            layers: (0..config.n_layers).map(|l| source.layer(l)).collect::<Result<_, _>>()?,
            output_norm: source.vector("output_norm.weight", dim, RopePairs::Halves)?,
            output: source.matrix(output, Rows::all(dim, vocab))?,
            rope_divisors: rope_divisors.map(|name| source.divisors(name)).transpose()?,
        })
    }
}

const QK_NORMS: [&str; 2] = ["attn_q_norm", "attn_k_norm"];
const NORMS_BEFORE: [&str; 2] = ["attn_norm", "ffn_norm"];
const NORMS_BEHIND: [&str; 2] = ["post_attention_norm", "post_ffw_norm"];

/// Refuses a file with a tensor that the forward pass does not read, a bias for instance: without
/// it the model would answer, and answer something else.
fn refuse_unknown_tensors(gguf: &GgufFile, config: &ModelConfig) -> Result<(), LoadError> {
    let is_known = |name: &str| match name.strip_prefix("blk.").and_then(|n| n.split_once('.')) {
        None => match name {
            "token_embd.weight" | "output_norm.weight" | "output.weight" => true,
            FACTORS => config.rope_scaling == RopeScaling::Factors,
            SHORT_FACTORS | LONG_FACTORS => {
                matches!(config.rope_scaling, RopeScaling::LongRope { .. })
            }
            _ => false,
        },
        Some((layer, part)) => {
            let is_layer = layer.parse::<usize>().is_ok_and(|l| l < config.n_layers);
            is_layer
                && match part {
                    "attn_q.bias" | "attn_k.bias" | "attn_v.bias" => config.has_qkv_bias,
                    _ => part.strip_suffix(".weight").is_some_and(|part| is_part(part, config)),
                }
        }
    };
    match gguf.tensors().keys().find(|name| !is_known(name)) {
        None => Ok(()),
        Some(name) => Err(LoadError::UnsupportedFeature {
            path: gguf.path().to_owned(),
            feature: "a tensor that this architecture does not have",
            detail: format!("`{}`", crate::error::shown(name)),
        }),
    }
}

/// Whether layers have a matrix or norm of this name.
fn is_part(part: &str, config: &ModelConfig) -> bool {
    let matrices: &[&str] = match config.has_joined_matrices() {
        true => &["attn_qkv", "attn_output", "ffn_up", "ffn_down"],
        false => &["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"],
    };
    matrices.contains(&part)
        || config.qk_norm != QkNorm::None && QK_NORMS.contains(&part)
        || config.norms != Norms::Behind && NORMS_BEFORE.contains(&part)
        || config.norms != Norms::Before && NORMS_BEHIND.contains(&part)
}

/// What the kernels need beyond a consistent configuration.
fn check_dimensions(gguf: &GgufFile, config: &ModelConfig) -> Result<(), LoadError> {
    let refuse = |feature, detail| {
        let path = gguf.path().to_owned();
        Err(LoadError::UnsupportedFeature { path, feature, detail })
    };
    for (what, size) in [
        ("head", config.head_dim),
        ("embedding", config.embedding_dim),
        ("feed-forward layer", config.ffn_dim),
    ] {
        if !size.is_multiple_of(16) {
            return refuse("a size that is no multiple of 16", format!("{what} of {size}"));
        }
    }
    let partial = config.rope_dim != config.head_dim;
    if partial && config.architecture.rope_pairs() == RopePairs::Adjacent {
        let detail = format!("{} of {} components", config.rope_dim, config.head_dim);
        return refuse("a partial rotary embedding of this architecture", detail);
    }
    Ok(())
}

/// Some of the rows of a tensor `[cols, of]`.
struct Rows {
    cols: usize,
    of: usize,
    rows: Range<usize>,
    pairs: RopePairs,
}

impl Rows {
    fn all(cols: usize, rows: usize) -> Self {
        Self { cols, of: rows, rows: 0..rows, pairs: RopePairs::Halves }
    }
}

/// A file with what is needed to read weights from it.
struct Source<'a> {
    gguf: &'a GgufFile,
    config: &'a ModelConfig,
    pool: &'a Pool,
    arithmetic: Arithmetic,
    arena: RefCell<Arena>,
}

impl<'a> Source<'a> {
    fn layer(&self, layer: usize) -> Result<LayerWeights, LoadError> {
        let c = self.config;
        let (dim, q_dim, kv_dim) = (c.embedding_dim, c.q_dim(), c.kv_dim());
        let pairs = c.architecture.rope_pairs();
        let name = |part: &str| format!("blk.{layer}.{part}");
        // `rows` of a matrix of the file that has `of` rows in all.
        let part = |part: &str, cols, rows: Range<usize>, of, pairs| {
            let name = name(&format!("{part}.weight"));
            self.matrix(&name, Rows { cols, of, rows, pairs })
        };
        let plain = RopePairs::Halves;
        let whole = |name: &str, cols, rows, pairs| part(name, cols, 0..rows, rows, pairs);
        let vector = |part: &str, len, pairs| self.vector(&name(part), len, pairs);
        let norm = |part: &str, len| vector(&format!("{part}.weight"), len, plain);
        let norms = |has: bool, [first, second]: [&str; 2], lens: [usize; 2]| {
            has.then(|| Ok([norm(first, lens[0])?, norm(second, lens[1])?])).transpose()
        };
        let qk_lens = match c.qk_norm {
            QkNorm::Row => [q_dim, kv_dim],
            QkNorm::Head | QkNorm::None => [c.head_dim; 2],
        };
        let ([q, k, v], [gate, up]) = if c.has_joined_matrices() {
            let (k, v, of) = (q_dim + kv_dim, q_dim + 2 * kv_dim, q_dim + 2 * kv_dim);
            let qkv = [0..q_dim, q_dim..k, k..v].map(|rows| part("attn_qkv", dim, rows, of, plain));
            let halves = [0..c.ffn_dim, c.ffn_dim..2 * c.ffn_dim];
            (qkv, halves.map(|rows| part("ffn_up", dim, rows, 2 * c.ffn_dim, plain)))
        } else {
            let qkv =
                [("attn_q", q_dim, pairs), ("attn_k", kv_dim, pairs), ("attn_v", kv_dim, plain)];
            let qkv = qkv.map(|(name, rows, pairs)| whole(name, dim, rows, pairs));
            (qkv, ["ffn_gate", "ffn_up"].map(|name| whole(name, dim, c.ffn_dim, plain)))
        };
        Ok(LayerWeights {
            norms_before: norms(c.norms != Norms::Behind, NORMS_BEFORE, [dim; 2])?,
            q: q?,
            k: k?,
            v: v?,
            bias: if c.has_qkv_bias {
                Some([
                    vector("attn_q.bias", q_dim, pairs)?,
                    vector("attn_k.bias", kv_dim, pairs)?,
                    vector("attn_v.bias", kv_dim, plain)?,
                ])
            } else {
                None
            },
            qk_norm: norms(c.qk_norm != QkNorm::None, QK_NORMS, qk_lens)?,
            attention_out: whole("attn_output", q_dim, dim, plain)?,
            norms_behind: norms(c.norms != Norms::Before, NORMS_BEHIND, [dim; 2])?,
            gate: gate?,
            up: up?,
            down: whole("ffn_down", c.ffn_dim, dim, plain)?,
        })
    }

    /// What rotary frequencies are divided by: one for each pair.
    fn divisors(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        let divisors = self.vector(name, self.config.rope_dim / 2, RopePairs::Halves)?;
        match divisors.iter().find(|&&d| !d.is_finite() || d <= 0.0) {
            None => Ok(divisors),
            Some(wrong) => Err(LoadError::InvalidValue {
                path: self.gguf.path().to_owned(),
                key: name.to_owned(),
                value: wrong.to_string(),
                rule: "finite numbers above 0".to_owned(),
            }),
        }
    }

    /// A tensor of the expected dimensions, contiguous one first.
    fn tensor(&self, name: &str, expected: &[usize]) -> Result<&'a TensorInfo, LoadError> {
        let info = self.gguf.tensor(name)?;
        if info.dims() != expected {
            return Err(LoadError::TensorShape {
                path: self.gguf.path().to_owned(),
                tensor: name.to_owned(),
                expected: expected.to_vec(),
                found: info.dims().to_vec(),
            });
        }
        Ok(info)
    }

    fn weight_type(&self, info: &TensorInfo) -> Result<WeightType, LoadError> {
        info.ty().weight_type().ok_or_else(|| LoadError::UnsupportedTensorType {
            path: self.gguf.path().to_owned(),
            tensor: info.name().to_owned(),
            ty: info.ty(),
            supported: GgmlType::SUPPORTED,
        })
    }

    fn matrix(&self, name: &str, part: Rows) -> Result<PackedMatrix, LoadError> {
        let Rows { cols, of, rows, pairs } = part;
        let info = self.tensor(name, &[cols, of])?;
        let ty = self.weight_type(info)?;
        let data = self.gguf.tensor_data(info);
        let (row_bytes, config) = (info.bytes() / of, self.config);
        let row = |i: usize| {
            let row = rows.start + file_row(config, i, pairs);
            &data[row * row_bytes..][..row_bytes]
        };
        let rows = rows.len();
        let mut arena = self.arena.borrow_mut();
        let memory = (&mut *arena, self.pool);
        let packed = match self.arithmetic {
            Arithmetic::Quantized => PackedMatrix::pack(ty, rows, cols, memory, row),
            Arithmetic::F32 => {
                let mut wide = vec![0.0; rows * cols];
                self.pool.for_each_chunk(&mut wide, cols, |i, out| dequantize(ty, row(i), out));
                let wide: Vec<u8> = wide.iter().flat_map(|w| w.to_le_bytes()).collect();
                let row = |i: usize| &wide[i * cols * 4..][..cols * 4];
                PackedMatrix::pack(WeightType::F32, rows, cols, memory, row)
            }
        };
        packed.map_err(|problem| LoadError::NoMemory {
            path: self.gguf.path().to_owned(),
            tensor: name.to_owned(),
            problem,
        })
    }

    fn vector(&self, name: &str, len: usize, pairs: RopePairs) -> Result<Vec<f32>, LoadError> {
        let info = self.tensor(name, &[len])?;
        let mut stored = vec![0.0; len];
        dequantize(self.weight_type(info)?, self.gguf.tensor_data(info), &mut stored);
        Ok((0..len).map(|i| stored[file_row(self.config, i, pairs)]).collect())
    }
}

/// Where the file has row `i` of a matrix whose output is rotated in halves.
fn file_row(config: &ModelConfig, i: usize, pairs: RopePairs) -> usize {
    match pairs {
        RopePairs::Halves => i,
        RopePairs::Adjacent => {
            let dim = config.head_dim;
            let (head, within) = (i / dim, i % dim);
            head * dim + 2 * (within % (dim / 2)) + within / (dim / 2)
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{GgufFile, Model, ModelOptions};

    /// Tensors that no code reads: of the right layer and not, before the known ones are missed.
    #[test]
    fn a_tensor_that_is_not_read_is_refused_by_name() {
        let file = include_bytes!("../tests/golden/tiny-llama.gguf");
        for (name, other) in [
            ("blk.1.attn_v.weight", "blk.1.attn_q.biases"),
            ("blk.1.ffn_up.weight", "blk.7.ffn_up.weight"),
            ("blk.0.ffn_norm.weight", "blk.0.post_norm.weight"),
            ("output_norm.weight", "output_norm.biases"),
        ] {
            let mut bytes = file.to_vec();
            let at = bytes.windows(name.len()).position(|w| w == name.as_bytes()).unwrap();
            bytes[at..at + name.len()].copy_from_slice(&other.as_bytes()[..name.len()]);
            let gguf = GgufFile::from_bytes(bytes, "patched").unwrap();
            let error = Model::from_gguf(gguf, ModelOptions::default()).unwrap_err().to_string();
            assert!(error.contains(&other[..name.len()]), "{error}");
        }
    }
}
