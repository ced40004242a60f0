//! Why a model cannot be loaded.
//!
//! Keys, names and values in these messages come from files that nobody vouches for, so they are
//! shortened and escaped: a message stays on one line and cannot speak to the terminal.

use std::io;
use std::path::PathBuf;

use crate::gguf::{GgmlType, GgufError};
use crate::template::TemplateError;

/// Why a model file cannot be used. Every variant names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file cannot be opened or mapped.
    #[error("cannot open the model: {problem}")]
    Open {
        /// The model file.
        path: PathBuf,
        /// The system's answer, which names the path.
        problem: io::Error,
    },
    /// The bytes are not a GGUF file that can be read.
    #[error("{}: {problem}", path.display())]
    Gguf {
        /// The model file.
        path: PathBuf,
        /// What is wrong with it.
        problem: GgufError,
    },
    /// The metadata lacks something that is needed.
    #[error("{}: metadata key `{key}` is missing", path.display())]
    MissingKey {
        /// The model file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A metadata value has another type than expected.
    #[error("{}: metadata key `{key}` should be {expected}, but is {found}", path.display())]
    WrongType {
        /// The model file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The type or range that was expected, in words.
        expected: &'static str,
        /// The type that was found, in words.
        found: String,
    },
    /// A metadata value cannot be right.
    #[error("{}: metadata key `{key}` is {value}, but must be {rule}", path.display())]
    InvalidValue {
        /// The model file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The value that was found.
        value: String,
        /// What the value must be, in words.
        rule: String,
    },
    /// A model family that this engine does not compute.
    #[error(
        "{}: architecture {} is not supported; supported are: {}",
        path.display(), shown(.found), .supported.join(", ")
    )]
    UnsupportedArchitecture {
        /// The model file.
        path: PathBuf,
        /// The value of `general.architecture`.
        found: String,
        /// The names that are accepted.
        supported: &'static [&'static str],
    },
    /// The file asks for something that this engine does not compute, such as rope scaling.
    ///
    /// The system has no memory for the weights.
    #[error(
        "{}: no memory for tensor {}: {problem}; choose a smaller model or quantization",
        path.display(), shown(.tensor)
    )]
    NoMemory {
        /// The model file.
        path: PathBuf,
        /// The tensor that did not fit.
        tensor: String,
        /// What the system says.
        problem: std::io::Error,
    },
    /// The system refuses the threads that were asked for.
    #[error("cannot start {n_threads} threads: {problem}")]
    Threads {
        /// How many.
        n_threads: std::num::NonZeroUsize,
        /// What the system says.
        problem: std::io::Error,
    },
    /// Ignoring it would run, and give wrong answers.
    #[error("{}: {feature} is not supported ({detail}); choose another model", path.display())]
    UnsupportedFeature {
        /// The model file.
        path: PathBuf,
        /// The feature in words.
        feature: &'static str,
        /// The key and value, or the tensor, that asks for it.
        detail: String,
    },
    /// A tensor has a type that the kernels do not compute with.
    #[error(
        "{}: tensor {} has type {ty}, which is not supported; supported are: {}; \
         choose another quantization of this model",
        path.display(), shown(.tensor), names(.supported)
    )]
    UnsupportedTensorType {
        /// The model file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        ty: GgmlType,
        /// The types that are accepted.
        supported: &'static [GgmlType],
    },
    /// A tensor that the architecture needs is not in the file.
    #[error("{}: tensor `{tensor}` is missing", path.display())]
    MissingTensor {
        /// The model file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor has other dimensions than the configuration implies.
    #[error("{}: tensor `{tensor}` has shape {found:?}, expected {expected:?}", path.display())]
    TensorShape {
        /// The model file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The dimensions that the configuration implies, the contiguous one first.
        expected: Vec<usize>,
        /// The dimensions in the file, the contiguous one first.
        found: Vec<usize>,
    },
    /// A tokenizer of a kind that is not built in.
    #[error(
        "{}: tokenizer `{key}` is {}, which is not supported; supported are: {}",
        path.display(), shown(.found), .supported.join(", ")
    )]
    UnsupportedTokenizer {
        /// The model file.
        path: PathBuf,
        /// `tokenizer.ggml.model` or `tokenizer.ggml.pre`.
        key: &'static str,
        /// Its value.
        found: String,
        /// The values that are accepted.
        supported: &'static [&'static str],
    },
    /// Vocabulary and merges do not fit together.
    #[error("{}: element {index} of `{key}` {problem}", path.display())]
    InvalidVocabulary {
        /// The model file.
        path: PathBuf,
        /// The array in the metadata.
        key: &'static str,
        /// The index of the offending element.
        index: usize,
        /// What is wrong with it, in words.
        problem: &'static str,
    },
    /// The chat template is not valid Jinja.
    #[error("{}: {problem}", path.display())]
    Template {
        /// The model file.
        path: PathBuf,
        /// What is wrong with it.
        problem: TemplateError,
    },
}

fn names(types: &[GgmlType]) -> String {
    types.iter().map(|ty| ty.name()).collect::<Vec<_>>().join(", ")
}

/// Text from a file as it may stand in a message: quoted, escaped, cut after 80 characters.
pub(crate) fn shown(text: &str) -> String {
    const LIMIT: usize = 80;
    let escaped: String = text.chars().take(LIMIT).flat_map(char::escape_debug).collect();
    let dots = if text.chars().nth(LIMIT).is_some() { "…" } else { "" };
    format!("`{escaped}{dots}`")
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn text_from_files_stays_on_one_short_line() {
        assert_eq!(shown("llama"), "`llama`");
        assert_eq!(shown("a\nb\u{1b}[31m"), r"`a\nb\u{1b}[31m`");
        assert_eq!(shown(&"x".repeat(1000)).chars().count(), 83);
    }
}
