//! The weights of a model, repacked for the kernels.
//!
//! Loading checks every tensor's name, type and shape against the configuration before anything is
//! packed. Queries and keys of `llama` files are stored with neighbouring rotary pairs; their rows
//! are put back into halves here, so that one convention holds from here on.

use std::cell::RefCell;

use everstream_kernels::{Arena, PackedMatrix, Pool, WeightType, dequantize};

use crate::config::{ModelConfig, RopePairs};
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
}

/// One transformer layer.
#[derive(Debug)]
pub(crate) struct LayerWeights {
    /// `[embedding_dim]`
    pub(crate) attention_norm: Vec<f32>,
    /// `[n_heads * head_dim, embedding_dim]`
    pub(crate) q: PackedMatrix,
    /// `[n_kv_heads * head_dim, embedding_dim]`
    pub(crate) k: PackedMatrix,
    /// `[n_kv_heads * head_dim, embedding_dim]`
    pub(crate) v: PackedMatrix,
    /// Biases of q, k and v.
    pub(crate) bias: Option<[Vec<f32>; 3]>,
    /// Norms of each head of q and of k: `[head_dim]`.
    pub(crate) qk_norm: Option<[Vec<f32>; 2]>,
    /// `[embedding_dim, n_heads * head_dim]`
    pub(crate) attention_out: PackedMatrix,
    /// Norms of what attention and what the feed-forward network adds: `[embedding_dim]`.
    pub(crate) post_norms: Option<[Vec<f32>; 2]>,
    /// `[embedding_dim]`
    pub(crate) ffn_norm: Vec<f32>,
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
        let source = Source { gguf, config, pool, arithmetic, arena: RefCell::default() };
        let (dim, vocab) = (config.embedding_dim, config.vocab_size);
        let embedding = source.tensor("token_embd.weight", &[dim, vocab])?;
        let output = if config.tied_embeddings { "token_embd.weight" } else { "output.weight" };
        Ok(Self {
            embedding: embedding.clone(),
            embedding_type: source.weight_type(embedding)?,
            layers: (0..config.n_layers).map(|l| source.layer(l)).collect::<Result<_, _>>()?,
            output_norm: source.vector("output_norm.weight", dim, RopePairs::Halves)?,
            output: source.matrix(output, dim, vocab, RopePairs::Halves)?,
        })
    }
}

const QK_NORMS: [&str; 2] = ["attn_q_norm", "attn_k_norm"];
const POST_NORMS: [&str; 2] = ["post_attention_norm", "post_ffw_norm"];

/// Refuses a file with a tensor that the forward pass does not read, a bias for instance: without
/// it the model would answer, and answer something else.
fn refuse_unknown_tensors(gguf: &GgufFile, config: &ModelConfig) -> Result<(), LoadError> {
    let is_known = |name: &str| match name.strip_prefix("blk.").and_then(|n| n.split_once('.')) {
        None => matches!(name, "token_embd.weight" | "output_norm.weight" | "output.weight"),
        Some((layer, part)) => {
            let is_layer = layer.parse::<usize>().is_ok_and(|l| l < config.n_layers);
            is_layer
                && match part {
                    "attn_q.bias" | "attn_k.bias" | "attn_v.bias" => config.has_qkv_bias,
                    _ => part.strip_suffix(".weight").is_some_and(|part| {
                        let attention = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output"];
                        let ffn = ["ffn_norm", "ffn_gate", "ffn_up", "ffn_down"];
                        attention.contains(&part)
                            || ffn.contains(&part)
                            || config.has_qk_norm && QK_NORMS.contains(&part)
                            || config.has_post_norms && POST_NORMS.contains(&part)
                    }),
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
        let matrix = |part: &str, cols, rows, pairs| {
            self.matrix(&name(&format!("{part}.weight")), cols, rows, pairs)
        };
        let bias = |part: &str, len, pairs| self.vector(&name(&format!("{part}.bias")), len, pairs);
        let plain = RopePairs::Halves;
        let norm = |part: &str, len| self.vector(&name(&format!("{part}.weight")), len, plain);
        let norms = |has: bool, parts: [&str; 2], len| {
            let [first, second] = parts;
            has.then(|| Ok([norm(first, len)?, norm(second, len)?])).transpose()
        };
        Ok(LayerWeights {
            attention_norm: norm("attn_norm", dim)?,
            q: matrix("attn_q", dim, q_dim, pairs)?,
            k: matrix("attn_k", dim, kv_dim, pairs)?,
            v: matrix("attn_v", dim, kv_dim, plain)?,
            bias: if c.has_qkv_bias {
                Some([
                    bias("attn_q", q_dim, pairs)?,
                    bias("attn_k", kv_dim, pairs)?,
                    bias("attn_v", kv_dim, plain)?,
                ])
            } else {
                None
            },
            qk_norm: norms(c.has_qk_norm, QK_NORMS, c.head_dim)?,
            attention_out: matrix("attn_output", q_dim, dim, plain)?,
            post_norms: norms(c.has_post_norms, POST_NORMS, dim)?,
            ffn_norm: norm("ffn_norm", dim)?,
            gate: matrix("ffn_gate", dim, c.ffn_dim, plain)?,
            up: matrix("ffn_up", dim, c.ffn_dim, plain)?,
            down: matrix("ffn_down", c.ffn_dim, dim, plain)?,
        })
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

    fn matrix(
        &self,
        name: &str,
        cols: usize,
        rows: usize,
        pairs: RopePairs,
    ) -> Result<PackedMatrix, LoadError> {
        let info = self.tensor(name, &[cols, rows])?;
        let ty = self.weight_type(info)?;
        let data = self.gguf.tensor_data(info);
        let (row_bytes, config) = (info.bytes() / rows, self.config);
        let row = |i: usize| &data[file_row(config, i, pairs) * row_bytes..][..row_bytes];
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
