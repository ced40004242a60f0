//! Reads the files of a sentence encoder as if they were hostile.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use serde::Deserialize;
use tokenizers::{Tokenizer, TruncationParams};

use super::EmbedError;

const MIB: u64 = 1 << 20;
/// The largest BERT encoder in use has 1.3 GB of f32 weights.
const MAX_WEIGHTS_BYTES: u64 = 2048 * MIB;
const MAX_TOKENIZER_BYTES: u64 = 64 * MIB;
const MAX_CONFIG_BYTES: u64 = MIB;

/// What all-MiniLM-L6-v2's `sentence_bert_config.json` says, for folders without that file.
const DEFAULT_MAX_PIECES: usize = 256;

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

    /// `config.json`, with the numbers checked that candle divides by or indexes with.
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
        tokenizer.with_padding(None).with_truncation(Some(truncation)).map_err(wrong)?;
        let found = tokenizer.get_vocab_size(true);
        if found > config.vocab_size {
            let expected = "at most the vocab_size of config.json";
            return Err(EmbedError::Setting { path, field: "vocab size", found, expected });
        }
        Ok(tokenizer)
    }

    /// The network. Its weights are read into RAM and not mapped: a file that changes underneath
    /// a map would be undefined behaviour, and 90 MB are read in a moment.
    pub(super) fn network(&self, config: &Config) -> Result<BertModel, EmbedError> {
        let path = self.dir.join("model.safetensors");
        let bytes = read(&path, MAX_WEIGHTS_BYTES)?;
        VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu)
            .and_then(|weights| BertModel::load(weights, config))
            .map_err(|source| EmbedError::Weights { path, source: Box::new(source) })
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
