//! Turns text into vectors whose distance says how near two texts are in meaning.
//!
//! The encoder runs on the CPU when the caller says so, between chunks or after an answer: on the
//! caller's thread and the workers of a pool of its own, which sleep in between. In the background it would
//! compete with decoding for the same cores.

mod bert;
mod hash;
mod minilm;
mod minilm_files;
#[cfg(test)]
mod minilm_tests;

use std::fmt::Debug;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use thiserror::Error;

pub use hash::HashEmbedder;
pub use minilm::{MiniLm, MiniLmOptions};

/// Why a sentence encoder could not be opened or could not embed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EmbedError {
    /// A file of the model cannot be read; the message names its path.
    #[error("cannot open the sentence encoder")]
    File(#[from] std::io::Error),
    /// A file is larger than any sentence encoder's.
    #[error("{}: {bytes} bytes, expected at most {limit}", path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The largest that is read.
        limit: u64,
    },
    /// A configuration file is not the JSON that it should be.
    #[error("{}: not the configuration of a sentence encoder", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it went wrong.
        source: serde_json::Error,
    },
    /// A number in a configuration file cannot be right.
    #[error("{}: {field} is {found}, expected {expected}", path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// The setting.
        field: &'static str,
        /// Its value.
        found: usize,
        /// What would do.
        expected: &'static str,
    },
    /// The model averages its outputs in another way.
    #[error("{}: only mean pooling is supported", path.display())]
    Pooling {
        /// The file that asks for it.
        path: PathBuf,
    },
    /// The tokenizer cannot be read.
    #[error("{}: not a tokenizer", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// Where it went wrong.
        source: tokenizers::Error,
    },
    /// A setting asks for another network.
    #[error("{}: {field} is {found:?}, but only {expected:?} is supported", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The setting.
        field: &'static str,
        /// Its value.
        found: String,
        /// What would do.
        expected: &'static str,
    },
    /// The weights cannot be read, or one is missing.
    #[error("{}: not the weights of this sentence encoder", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// Where it went wrong.
        source: safetensors::SafeTensorError,
    },
    /// A tensor is not the one that the configuration describes.
    #[error("{}: tensor {name} has shape {found:?} of {ty:?}, expected {expected:?} of F32, F16 or BF16", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// Its name.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// Its type.
        ty: safetensors::Dtype,
        /// The shape that it should have.
        expected: Vec<usize>,
    },
    /// The system has no memory for the weights.
    #[error("no memory for the weights of {}", path.display())]
    Memory {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The system refuses threads to compute with.
    #[error("cannot start {n_threads} threads for the sentence encoder: use fewer")]
    Threads {
        /// How many were asked for.
        n_threads: NonZeroUsize,
        /// What the system says.
        source: std::io::Error,
    },
    /// A text could not be split into word pieces.
    #[error("cannot split text {text} of {n_texts} into word pieces")]
    Encode {
        /// Which text, from 0.
        text: usize,
        /// Texts given.
        n_texts: usize,
        /// Where it went wrong.
        source: tokenizers::Error,
    },
    /// A text has a piece that the network does not know, or too many of them: `tokenizer.json` and
    /// `config.json` are of different models.
    #[error(
        "the sentence encoder's tokenizer gives text {text} of {n_texts} {what}: its files do not fit each other"
    )]
    Pieces {
        /// Which text, from 0.
        text: usize,
        /// Texts given.
        n_texts: usize,
        /// What it gives.
        what: String,
    },
    /// An embedding is not a number: the weights are damaged.
    #[error("the embedding of text {text} of {n_texts} is not finite: are the weights damaged?")]
    NotFinite {
        /// Which text, from 0.
        text: usize,
        /// Texts given.
        n_texts: usize,
    },
}

/// Embeds texts.
///
/// Callers may assume that an embedding depends on its text alone, up to rounding: a text that is
/// embedded among others may differ in the last bits from the same text embedded by itself.
pub trait Embedder: Debug + Send + Sync {
    /// A name that another encoder does not have: stored embeddings are used again under it.
    fn name(&self) -> String;

    /// Components of every embedding.
    fn dim(&self) -> usize;

    /// The embeddings of `texts`, in their order, each of [`dim`](Self::dim) finite components.
    ///
    /// # Errors
    ///
    /// [`EmbedError`]; no text is then embedded.
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError>;
}
