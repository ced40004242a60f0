//! A model file, from its bytes to what the engine computes with: GGUF, configuration, tokenizer
//! and chat template.
//!
//! # The file
//!
//! A GGUF file holds everything that a model needs: weights, shape, vocabulary and chat template.
//! [`GgufFile`] maps it and checks every length in it once; afterwards all parts are views that
//! cannot fail. [`ModelConfig`] reads the shape, [`Tokenizer`] the vocabulary, [`ChatTemplate`] the
//! template. Each of them refuses what it does not know by name ([`LoadError`]): a model that runs
//! with a wrong rotary base or a wrong pre-tokenizer gives fluent nonsense, which is worse than an
//! error.
//!
//! The obvious alternative was to build on candle's GGUF reader and the `tokenizers` crate. The
//! reader allocates what a file's counts promise and copies every string and tensor; the tokenizer
//! copies vocabulary and merges into maps of owned strings and normalizes Qwen's text, so that a
//! stream could not be given back byte by byte. Both are small once the needs are known: one file
//! format, one kind of tokenizer. `tokenizers` remains as the oracle of the tests.
//!
//! Only the module [`mmap`] contains `unsafe` code.

pub mod config;
pub mod error;
mod forward;
pub mod gguf;
pub mod mmap;
mod model;
pub mod template;
pub mod tokenizer;
mod weights;

pub use config::{
    Architecture, ModelConfig, Norms, QkNorm, RopePairs, RopeScaling, SlidingWindow, Yarn,
};
pub use error::LoadError;
pub use forward::{ForwardError, Sequence, Workspace};
pub use gguf::{GgmlType, GgufBuilder, GgufError, GgufFile, GgufValue, TensorInfo};
pub use mmap::MappedFile;
pub use model::{Arithmetic, Model, ModelOptions};
pub use template::{ChatTemplate, GenerationPrompt, Message, Role, TemplateError, TurnText};
pub use tokenizer::{SpecialTokens, TextStream, Tokenizer};
