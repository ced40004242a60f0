//! Decides how far back a query may look.
//!
//! A policy is a function from integers to integers: it moves no row and reads no number of the
//! model. Inside a prefill chunk every query has a band of its own, so the question is asked for
//! each query, and *evicted* means: no later query will see it.

use std::fmt::Debug;

use crate::TokenPos;

/// Which past tokens a query may see, besides itself.
///
/// Implementers keep three promises, which the contract tests check for each implementation:
/// the result lies between `n_sink` and the query, it never decreases from one query to the next,
/// and at most `window_tokens` past tokens lie between it and the query.
pub trait EvictionPolicy: Send + Sync + Debug {
    /// First tokens of the stream, which stay visible for ever.
    fn n_sink(&self) -> usize;

    /// Past tokens that a query sees at most, besides the sinks.
    fn window_tokens(&self) -> usize;

    /// The oldest token after the sinks that the query at `query` sees; the query itself if it sees
    /// none. `query` is at least `n_sink`.
    fn oldest_visible(&self, query: TokenPos) -> TokenPos;

    /// Whether tokens ever leave; if not, the stream ends when the buffer is full.
    fn evicts(&self) -> bool;
}

/// Keeps the first `n_sink` tokens of the stream and the most recent ones. With no sinks this is
/// plain window attention.
///
/// Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023,
/// arXiv:2309.17453, section 3.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SinkWindow {
    /// Tokens kept from the start of the stream.
    pub n_sink: usize,
    /// Past tokens visible besides them.
    pub window_tokens: usize,
}

impl EvictionPolicy for SinkWindow {
    fn n_sink(&self) -> usize {
        self.n_sink
    }

    fn window_tokens(&self) -> usize {
        self.window_tokens
    }

    fn oldest_visible(&self, query: TokenPos) -> TokenPos {
        query.before(self.window_tokens).max(TokenPos(self.n_sink as u64))
    }

    fn evicts(&self) -> bool {
        true
    }
}

/// Keeps everything, up to `max_tokens`: full attention, the oracle for all other policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeverEvict {
    /// Tokens that are addressed as sinks, so that what comes after them can be evicted on purpose.
    pub n_sink: usize,
    /// Where the stream ends.
    pub max_tokens: usize,
}

impl EvictionPolicy for NeverEvict {
    fn n_sink(&self) -> usize {
        self.n_sink
    }

    fn window_tokens(&self) -> usize {
        self.max_tokens.saturating_sub(self.n_sink)
    }

    fn oldest_visible(&self, _query: TokenPos) -> TokenPos {
        TokenPos(self.n_sink as u64)
    }

    fn evicts(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contract(policy: &dyn EvictionPolicy, n_tokens: u64) {
        let n_sink = policy.n_sink() as u64;
        let mut last = TokenPos(0);
        for query in n_sink..n_tokens {
            let oldest = policy.oldest_visible(TokenPos(query));
            assert!(oldest >= TokenPos(n_sink) && oldest <= TokenPos(query), "{policy:?} {query}");
            assert!(oldest >= last, "{policy:?} {query}: a token came back");
            assert!(TokenPos(query).since(oldest) <= policy.window_tokens(), "{policy:?} {query}");
            last = oldest;
        }
    }

    #[test]
    fn every_policy_keeps_the_contract() {
        for n_sink in [0, 1, 4, 9] {
            for window_tokens in [1, 2, 7, 64] {
                contract(&SinkWindow { n_sink, window_tokens }, 200);
            }
            contract(&NeverEvict { n_sink, max_tokens: 200 }, 200);
        }
    }
}
