//! Reads the files of a sentence encoder as if they were hostile.

use std::path::{Path, PathBuf};

use everstream_kernels::{Arena, PackedMatrix, WeightType, dequantize};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use tokenizers::{PostProcessor, Tokenizer, TruncationParams};

use super::EmbedError;
use super::bert::{Bert, Layer, Linear, Norm};
use super::minilm::MiniLmOptions;

const MIB: u64 = 1 << 20;
/// The largest BERT encoder in use has 1.3 GB of f32 weights.
const MAX_WEIGHTS_BYTES: u64 = 2048 * MIB;
const MAX_TOKENIZER_BYTES: u64 = 64 * MIB;
const MAX_CONFIG_BYTES: u64 = MIB;

/// What all-MiniLM-L6-v2's `sentence_bert_config.json` says, for folders without that file.
const DEFAULT_MAX_PIECES: usize = 256;

/// `config.json`, as far as it decides what the network computes.
#[derive(Deserialize)]
pub(super) struct Config {
    pub(super) hidden_size: usize,
    pub(super) vocab_size: usize,
    #[serde(default)]
    pub(super) pad_token_id: usize,
    num_attention_heads: usize,
    num_hidden_layers: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    layer_norm_eps: f32,
    hidden_act: String,
    position_embedding_type: Option<String>,
}

#[derive(Deserialize)]
struct SentenceConfig {
    max_seq_length: usize,
}

#[derive(Deserialize)]
struct PoolingConfig {
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
}

/// The folder of a sentence encoder, as sentence-transformers lays it out.
pub(super) struct ModelFiles<'a> {
    dir: &'a Path,
}

impl<'a> ModelFiles<'a> {
    pub(super) fn new(dir: &'a Path) -> Self {
        Self { dir }
    }

    /// `config.json`, with the numbers checked that the network divides by or indexes with.
    pub(super) fn config(&self) -> Result<Config, EmbedError> {
        let path = self.dir.join("config.json");
        let config: Config = read_json(&path)?;
        let checks = [
            ("hidden_size", config.hidden_size, 1, 1 << 16),
            ("num_attention_heads", config.num_attention_heads, 1, config.hidden_size),
            ("num_hidden_layers", config.num_hidden_layers, 1, 1 << 10),
            ("intermediate_size", config.intermediate_size, 1, 1 << 18),
            ("max_position_embeddings", config.max_position_embeddings, 3, 1 << 20),
            ("type_vocab_size", config.type_vocab_size, 1, 1 << 10),
            ("vocab_size", config.vocab_size, 1, 1 << 24),
            ("pad_token_id", config.pad_token_id, 0, config.vocab_size.saturating_sub(1)),
        ];
        for (field, found, least, most) in checks {
            if !(least..=most).contains(&found) {
                let expected = "a size that a sentence encoder can have";
                return Err(EmbedError::Setting { path, field, found, expected });
            }
        }
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            let (field, found) = ("num_attention_heads", config.num_attention_heads);
            let expected = "a divisor of hidden_size";
            return Err(EmbedError::Setting { path, field, found, expected });
        }
        // Kernels take components sixteen at a time.
        for (field, found) in [
            ("hidden_size / num_attention_heads", config.hidden_size / config.num_attention_heads),
            ("intermediate_size", config.intermediate_size),
        ] {
            if !found.is_multiple_of(16) {
                return Err(EmbedError::Setting {
                    path,
                    field,
                    found,
                    expected: "a multiple of 16",
                });
            }
        }
        let positions = config.position_embedding_type.as_deref().unwrap_or("absolute");
        for (field, found, expected) in [
            ("hidden_act", config.hidden_act.as_str(), "gelu"),
            ("position_embedding_type", positions, "absolute"),
        ] {
            if found != expected {
                let found = found.to_owned();
                return Err(EmbedError::Unsupported { path, field, found, expected });
            }
        }
        Ok(config)
    }

    /// The longest sequence in word pieces, `[CLS]` and `[SEP]` included.
    pub(super) fn max_pieces(&self, config: &Config) -> Result<usize, EmbedError> {
        let path = self.dir.join("sentence_bert_config.json");
        let found = if path.exists() {
            read_json::<SentenceConfig>(&path)?.max_seq_length
        } else {
            DEFAULT_MAX_PIECES.min(config.max_position_embeddings)
        };
        if (3..=config.max_position_embeddings).contains(&found) {
            return Ok(found);
        }
        let expected = "at least 3 and at most max_position_embeddings";
        Err(EmbedError::Setting { path, field: "max_seq_length", found, expected })
    }

    /// Refuses a model that was trained with another pooling: its mean would look like an
    /// embedding and find nothing.
    pub(super) fn check_pooling(&self) -> Result<(), EmbedError> {
        let path = self.dir.join("1_Pooling").join("config.json");
        if !path.exists() || read_json::<PoolingConfig>(&path)?.pooling_mode_mean_tokens {
            return Ok(());
        }
        Err(EmbedError::Pooling { path })
    }

    /// The tokenizer, cutting texts at `max_pieces` and padding nothing.
    pub(super) fn tokenizer(
        &self,
        config: &Config,
        max_pieces: usize,
    ) -> Result<Tokenizer, EmbedError> {
        let path = self.dir.join("tokenizer.json");
        let bytes = read(&path, MAX_TOKENIZER_BYTES)?;
        let wrong = |source| EmbedError::Tokenizer { path: path.clone(), source };
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(wrong)?;
        // The file's own settings are those of the last training run (128 pieces, always padded).
        let truncation = TruncationParams { max_length: max_pieces, ..TruncationParams::default() };
        let n_added = tokenizer.get_post_processor().map_or(0, |p| p.added_tokens(false));
        if n_added >= max_pieces {
            let (field, found) = ("pieces added to each text", n_added);
            let expected = "fewer than max_seq_length";
            return Err(EmbedError::Setting { path, field, found, expected });
        }
        tokenizer.with_padding(None).with_truncation(Some(truncation)).map_err(wrong)?;
        let vocabulary = tokenizer.get_vocab(true);
        let found = vocabulary.into_values().max().map_or(0, |id| id as usize);
        if found >= config.vocab_size {
            let expected = "below the vocab_size of config.json";
            return Err(EmbedError::Setting { path, field: "largest id", found, expected });
        }
        Ok(tokenizer)
    }

    /// The network, for texts of up to `max_pieces`. Its weights are read into RAM and not mapped: a file
    /// that changes underneath a map would be undefined behaviour, and 90 MB are read in a moment.
    pub(super) fn network(
        &self,
        config: &Config,
        max_pieces: usize,
        options: MiniLmOptions,
    ) -> Result<Bert, EmbedError> {
        let path = self.dir.join("model.safetensors");
        let bytes = read(&path, MAX_WEIGHTS_BYTES)?;
        let tensors = SafeTensors::deserialize(&bytes)
            .map_err(|source| EmbedError::Weights { path: path.clone(), source })?;
        let n_threads = options.n_threads;
        let pool = everstream_kernels::Pool::new(n_threads)
            .map_err(|source| EmbedError::Threads { n_threads, source })?;
        let mut source = Source { path: &path, tensors, pool: &pool, arena: Arena::new() };
        let (dim, inner, eps) =
            (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let words =
            source.vector("embeddings.word_embeddings.weight", &[config.vocab_size, dim])?;
        let shape = [config.max_position_embeddings, dim];
        let mut positions = source.vector("embeddings.position_embeddings.weight", &shape)?;
        positions.truncate(max_pieces * dim);
        let shape = [config.type_vocab_size, dim];
        let types = source.vector("embeddings.token_type_embeddings.weight", &shape)?;
        for position in positions.chunks_exact_mut(dim) {
            everstream_kernels::add_assign(position, &types[..dim]);
        }
        let norm = source.norm("embeddings.LayerNorm", dim, eps)?;
        let mut layer = |layer: usize| {
            let name = |part: &str| format!("encoder.layer.{layer}.{part}");
            Ok(Layer {
                query: source.linear(&name("attention.self.query"), [dim, dim])?,
                key: source.linear(&name("attention.self.key"), [dim, dim])?,
                value: source.linear(&name("attention.self.value"), [dim, dim])?,
                attention_out: source.linear(&name("attention.output.dense"), [dim, dim])?,
                attention_norm: source.norm(&name("attention.output.LayerNorm"), dim, eps)?,
                inner: source.linear(&name("intermediate.dense"), [inner, dim])?,
                outer: source.linear(&name("output.dense"), [dim, inner])?,
                norm: source.norm(&name("output.LayerNorm"), dim, eps)?,
            })
        };
        let layers =
            (0..config.num_hidden_layers).map(&mut layer).collect::<Result<_, EmbedError>>()?;
        let (isa, n_heads) = (options.isa, config.num_attention_heads);
        let workspace = std::sync::Mutex::default();
        Ok(Bert { isa, n_heads, words, positions, norm, layers, pool, workspace })
    }
}

/// The weights of a file.
struct Source<'a> {
    path: &'a Path,
    tensors: SafeTensors<'a>,
    pool: &'a everstream_kernels::Pool,
    arena: Arena,
}

impl Source<'_> {
    /// The bytes of a tensor of this shape, and what they are.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<(WeightType, &[u8]), EmbedError> {
        let path = || self.path.to_owned();
        // As BERT alone names them, or as a part of a larger model.
        let tensor = self
            .tensors
            .tensor(name)
            .or_else(|missing| self.tensors.tensor(&format!("bert.{name}")).map_err(|_| missing));
        let tensor = tensor.map_err(|source| EmbedError::Weights { path: path(), source })?;
        let ty = match tensor.dtype() {
            Dtype::F32 => Some(WeightType::F32),
            Dtype::F16 => Some(WeightType::F16),
            Dtype::BF16 => Some(WeightType::BF16),
            _ => None,
        };
        match ty {
            Some(ty) if tensor.shape() == shape => Ok((ty, tensor.data())),
            _ => Err(EmbedError::Tensor {
                path: path(),
                name: name.to_owned(),
                found: tensor.shape().to_vec(),
                ty: tensor.dtype(),
                expected: shape.to_vec(),
            }),
        }
    }

    fn vector(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, EmbedError> {
        let (ty, bytes) = self.tensor(name, shape)?;
        let mut numbers = vec![0.0; shape.iter().product()];
        dequantize(ty, bytes, &mut numbers);
        Ok(numbers)
    }

    fn norm(&self, name: &str, dim: usize, eps: f32) -> Result<Norm, EmbedError> {
        let part = |part: &str| self.vector(&format!("{name}.{part}"), &[dim]);
        Ok(Norm { weight: part("weight")?, bias: part("bias")?, eps })
    }

    fn linear(&mut self, name: &str, [rows, cols]: [usize; 2]) -> Result<Linear, EmbedError> {
        let bias = self.vector(&format!("{name}.bias"), &[rows])?;
        let mut arena = std::mem::take(&mut self.arena);
        let (ty, bytes) = self.tensor(&format!("{name}.weight"), &[rows, cols])?;
        let row_bytes = bytes.len() / rows;
        let row = |i: usize| &bytes[i * row_bytes..][..row_bytes];
        let weights = PackedMatrix::pack(ty, rows, cols, (&mut arena, self.pool), row)
            .map_err(|source| EmbedError::Memory { path: self.path.to_owned(), source })?;
        self.arena = arena;
        Ok(Linear { weights, bias })
    }
}

fn read(path: &PathBuf, limit: u64) -> Result<Vec<u8>, EmbedError> {
    let bytes = fs_err::metadata(path)?.len();
    if bytes > limit {
        return Err(EmbedError::FileTooLarge { path: path.clone(), bytes, limit });
    }
    Ok(fs_err::read(path)?)
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &PathBuf) -> Result<T, EmbedError> {
    let bytes = read(path, MAX_CONFIG_BYTES)?;
    serde_json::from_slice(&bytes).map_err(|source| EmbedError::Json { path: path.clone(), source })
}
