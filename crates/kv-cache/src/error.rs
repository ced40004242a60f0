//! What can go wrong with a cache.

use std::ops::Range;

use crate::TokenPos;

/// A request that a cache cannot fulfil; the cache is as it was before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// A capacity at construction is out of range.
    #[error("{what} is {value}, but must be {bound}")]
    Config {
        /// Which capacity.
        what: &'static str,
        /// Its value.
        value: usize,
        /// What it must be.
        bound: &'static str,
    },
    /// More tokens at once than a chunk holds, or none.
    #[error("a chunk of {n_tokens} tokens: this cache takes 1 to {limit} here")]
    ChunkTooLong {
        /// Tokens asked for.
        n_tokens: usize,
        /// Tokens that fit now.
        limit: usize,
    },
    /// A policy that never evicts has reached the end of its buffer.
    #[error(
        "the stream has {n_tokens} tokens and the cache holds {capacity}: use a policy that evicts, or a larger --context-limit"
    )]
    Full {
        /// Tokens of the stream with the new ones.
        n_tokens: u64,
        /// Tokens that fit.
        capacity: usize,
    },
    /// A recall larger than its section.
    #[error("a recall of {n_tokens} tokens: the section for recalled context holds {capacity}")]
    RecallTooLarge {
        /// Tokens asked for.
        n_tokens: usize,
        /// Capacity of the section.
        capacity: usize,
    },
    /// A recall while another is in the cache.
    #[error("{n_tokens} recalled tokens are in the cache already: end that recall first")]
    RecallActive {
        /// Tokens recalled.
        n_tokens: usize,
    },
    /// A row to compute again that was not recalled.
    #[error("row {row} to be computed again: {n_tokens} tokens are recalled behind the sinks")]
    NotRecalled {
        /// The row.
        row: usize,
        /// Tokens recalled `between`.
        n_tokens: usize,
    },
    /// A recall before the sinks are filled.
    #[error("a recall after {n_tokens} tokens: the {n_sink} sinks come first")]
    SinksNotFull {
        /// Tokens of the stream.
        n_tokens: u64,
        /// Capacity of the sinks.
        n_sink: usize,
    },
    /// A saved state that this cache cannot be in.
    #[error(
        "a saved state after {n_tokens} tokens does not fit this cache: was it made with other settings?"
    )]
    State {
        /// Tokens of the saved stream.
        n_tokens: u64,
    },
    /// Un-rotated keys are needed, and this cache was built without them.
    #[error("this cache keeps no un-rotated keys: build it with RawKeys::Keep")]
    NoRawKeys,
    /// Rows that the window does not hold (any more).
    #[error("tokens {}..{} are not in the window, which holds {}..{}", range.start.0, range.end.0, held.start.0, held.end.0)]
    NotHeld {
        /// Tokens asked for.
        range: Range<TokenPos>,
        /// Tokens held.
        held: Range<TokenPos>,
    },
}
