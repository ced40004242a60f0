//! What can go wrong in a session.

use everstream_kv_cache::CacheError;
use everstream_memory::{MemoryError, StoreError};
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
    /// An answer that cannot be what it must be.
    #[error("the answer cannot go on as it must: {reason}")]
    Constraint {
        /// Why, in words.
        reason: String,
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
    /// A text that cannot be in every recall.
    #[error(
        "a pinned text must not be empty, and all of them together must not be longer than {capacity} tokens, half of the recalled context; with this one they would be {n_tokens}"
    )]
    Pin {
        /// Tokens of all pinned texts.
        n_tokens: usize,
        /// The most there may be.
        capacity: usize,
    },
    /// Settings that differ from those that a saved session was made with.
    #[error(
        "this session was made with a {what} of {saved}, not {asked}: leave that setting out, or use another --session"
    )]
    Geometry {
        /// The setting.
        what: &'static str,
        /// Its value in the saved session.
        saved: String,
        /// The value asked for.
        asked: String,
    },
    /// A policy whose streams cannot be saved.
    #[error("policy {policy} cannot be saved: use --policy remember, or leave --session out")]
    NotSaved {
        /// The policy.
        policy: crate::Policy,
    },
    /// A session whose saved states are all damaged or gone.
    #[error(
        "session {session:?}: no saved state can be read; `everstream memory export --session {session}` still gives its text"
    )]
    LostState {
        /// The session.
        session: String,
    },
    /// A journal that is damaged in its middle: what was read after it cannot be read again.
    #[error(
        "session {session:?}: {} is damaged at byte {at}; {n_blocks} blocks of what was read after token {n_tokens} would be lost with it",
        path.display()
    )]
    BrokenJournal {
        /// The session.
        session: String,
        /// The journal.
        path: std::path::PathBuf,
        /// Where in it.
        at: u64,
        /// Tokens that can be read again.
        n_tokens: u64,
        /// Whole blocks of tokens behind them.
        n_blocks: usize,
    },
    /// A damaged journal, which nothing can be written behind.
    #[error("{} is damaged at byte {at}: nothing can be written behind that", path.display())]
    DamagedJournal {
        /// The journal.
        path: std::path::PathBuf,
        /// Where in it.
        at: u64,
    },
    /// A state of another version.
    #[error("{}: state of version {found}, this program reads {expected}: use a newer everstream", path.display())]
    StateVersion {
        /// The file.
        path: std::path::PathBuf,
        /// Its version.
        found: u32,
        /// The version of this program.
        expected: u32,
    },
    /// A cache that is too large to be saved.
    #[error("a state of {:.1} GB cannot be saved: use a smaller window, or leave --session out", *bytes as f64 / 1e9)]
    StateTooLarge {
        /// Its size.
        bytes: u64,
    },
    /// A file of a saved session; the message names its path.
    #[error("cannot use the session's files")]
    File(#[from] std::io::Error),
    /// The forward pass refused.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// The cache refused.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The memory refused.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The model's chat template refused.
    #[error(transparent)]
    Template(#[from] TemplateError),
}
