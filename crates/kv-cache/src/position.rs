//! The three kinds of position of a token, as types that cannot be mixed.
//!
//! A token has an index in the stream, a row in the cache's buffers and a position at which its
//! key was rotated. In a bounded cache all three differ, and every mistake of the field (shifted
//! caches, absolute positions used as row numbers) is a confusion of two of them.

use std::ops::Range;

/// Index of a token in the stream, from 0; it never changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenPos(pub u64);

/// Row in the buffers of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// Position fed to the rotary embedding; only differences between a query's and a key's matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RopePos(pub u64);

impl TokenPos {
    /// The position `n` tokens later.
    #[must_use]
    pub fn after(self, n: usize) -> Self {
        Self(self.0 + n as u64)
    }

    /// The position `n` tokens earlier, or the start of the stream.
    #[must_use]
    pub fn before(self, n: usize) -> Self {
        Self(self.0.saturating_sub(n as u64))
    }

    /// How many tokens lie from `earlier` (inclusive) to here (exclusive); 0 if it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> usize {
        self.0.saturating_sub(earlier.0) as usize
    }
}

impl RopePos {
    /// The position `n` places later.
    #[must_use]
    pub fn after(self, n: usize) -> Self {
        Self(self.0 + n as u64)
    }
}

/// Number of tokens in `range`; 0 if it is empty or reversed.
#[must_use]
pub fn range_len(range: &Range<TokenPos>) -> usize {
    range.end.since(range.start)
}
