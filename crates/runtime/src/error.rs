//! What can go wrong in a session.

use everstream_kv_cache::CacheError;
use everstream_memory::MemoryError;
use everstream_model::{ForwardError, TemplateError};

/// Why a session did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// A setting is out of range.
    #[error("{what} is {value}, but must be {rule}")]
    Setting {
        /// Which setting.
        what: &'static str,
        /// Its value.
        value: usize,
        /// What it must be, and what to try.
        rule: String,
    },
    /// A sampling setting is out of range.
    #[error("{what} is {value}, but must be {rule}")]
    Sampling {
        /// Which setting.
        what: &'static str,
        /// Its value.
        value: f32,
        /// What it must be.
        rule: &'static str,
    },
    /// A policy that does not exist.
    #[error("unknown policy {name:?}: use dense, window, recompute, sink or remember")]
    UnknownPolicy {
        /// The name given.
        name: String,
    },
    /// Policy `remember` without something to embed text with.
    #[error(
        "policy remember needs a sentence encoder: run `everstream pull minilm`, or use --policy sink"
    )]
    NoEmbedder,
    /// A cache that the system has no memory for.
    #[error(
        "no memory for a cache of {:.1} GB: use fewer sinks, a smaller window, chunk or recalled context",
        *bytes as f64 / 1e9
    )]
    NoRoom {
        /// Its size.
        bytes: u64,
    },
    /// The forward pass gave nothing that could be a prediction.
    #[error("the model's prediction after {n_tokens} tokens is not a number: is the file damaged?")]
    NotFinite {
        /// Tokens read.
        n_tokens: u64,
    },
    /// Generation from an empty stream.
    #[error("there is nothing to continue: the prompt is empty")]
    EmptyStream,
    /// Text that the tokenizer's vocabulary cannot represent.
    #[error(
        "the text has a byte {byte:#04x} (near byte {at}) that this model's vocabulary lacks: remove it, or use another model"
    )]
    MissingByte {
        /// The byte.
        byte: u8,
        /// Where it is in the text.
        at: usize,
    },
    /// The forward pass refused.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// The cache refused.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The memory refused.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The model's chat template refused.
    #[error(transparent)]
    Template(#[from] TemplateError),
}
