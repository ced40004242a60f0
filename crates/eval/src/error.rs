//! What can go wrong in an evaluation.

use std::path::PathBuf;

use everstream_runtime::SessionError;
use thiserror::Error;

/// An evaluation that cannot be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A file could not be read or written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A file of data is not what the task reads.
    #[error("{}: record {record}: {what}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Which record, from 1.
        record: usize,
        /// What is wrong with it.
        what: String,
    },
    /// A setting that cannot be.
    #[error("{0}")]
    Setting(String),
    /// The model could not read or answer.
    #[error(transparent)]
    Session(#[from] SessionError),
}
