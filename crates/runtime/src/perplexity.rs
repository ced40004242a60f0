//! How surprised a model is by a text, under any policy, on the same positions.
//!
//! Each token is predicted from exactly what streaming would hold: the sinks, the window, and the
//! token before it (StreamingLLM's own protocol, arXiv:2309.17453, section 4.1).

use std::sync::Arc;

use everstream_kernels::log_sum_exp;
use everstream_kv_cache::{Place, TokenPos};
use everstream_memory::{Embedder, Role};
use everstream_model::Model;

use crate::{Origin, Policy, Session, SessionConfig, SessionError};

/// Tokens between two recalls of `remember`.
pub const RECALL_EVERY: usize = 64;

/// Which tokens are scored: all from the second, or every n-th.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Positions {
    /// The first token scored, at least 1.
    pub first: usize,
    /// Distance to the next, at least 1; 1 scores all.
    pub every: usize,
}

impl Positions {
    /// All tokens that have a predecessor.
    pub const ALL: Self = Self { first: 1, every: 1 };

    /// Whether the token at `position` is scored.
    #[must_use]
    pub fn contains(self, position: usize) -> bool {
        position >= self.first && (position - self.first).is_multiple_of(self.every)
    }

    /// How many of `n_tokens` are scored.
    #[must_use]
    pub fn count(self, n_tokens: usize) -> usize {
        (self.first..n_tokens).step_by(self.every).count()
    }
}

/// The loss of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Tokens scored.
    pub tokens: usize,
    /// Sum of negative log likelihoods, in nats.
    pub total: f64,
}

impl Score {
    /// Mean negative log likelihood, in nats per token.
    #[must_use]
    pub fn nll(self) -> f64 {
        self.total / self.tokens as f64
    }

    /// `e` to the mean.
    #[must_use]
    pub fn perplexity(self) -> f64 {
        self.nll().exp()
    }
}

/// Scores `tokens`. `progress` hears of each scored token: its position and its loss.
///
/// `remember` recalls `between` every [`RECALL_EVERY`] tokens, what is relevant to the newest ones.
///
/// # Errors
///
/// [`SessionError`], for instance a `dense` cache that is too small.
pub fn score(
    model: &Arc<Model>,
    embedder: Option<Arc<dyn Embedder>>,
    mut config: SessionConfig,
    tokens: &[u32],
    positions: Positions,
    progress: &mut dyn FnMut(usize, f64),
) -> Result<Score, SessionError> {
    if positions.every == 0 {
        let (what, rule) = ("the distance of scored tokens", "at least 1".to_owned());
        return Err(SessionError::Setting { what, value: 0, rule });
    }
    let policy = config.policy;
    config.recall.place = Place::Between;
    let mut session = Session::new(Arc::clone(model), embedder, config)?;
    let mut score = Score::default();
    let mut observe = |position: TokenPos, logits: &[f32]| {
        let next = position.0 as usize + 1;
        let Some(&token) = tokens.get(next).filter(|_| positions.contains(next)) else { return };
        let loss = log_sum_exp(logits) - f64::from(logits[token as usize]);
        score.tokens += 1;
        score.total += loss;
        progress(next, loss);
    };
    let origin = Origin::turn(Role::Document);
    // The last token predicts nothing that is known.
    let tokens = &tokens[..tokens.len().saturating_sub(1)];
    match policy {
        Policy::Recompute => {
            // Only scored positions are computed: the others merely pass through the window.
            let mut rest = tokens;
            while let Some(n) =
                (1..=rest.len()).find(|n| positions.contains(tokens.len() - rest.len() + n))
            {
                let (passing, scored) = rest[..n].split_at(n - 1);
                session.pass(passing);
                session.append_observed(scored, origin.clone(), &mut observe)?;
                rest = &rest[n..];
            }
        }
        Policy::Remember => {
            for chunk in tokens.chunks(RECALL_EVERY) {
                session.recall_beside_window("")?;
                session.append_observed(chunk, origin.clone(), &mut observe)?;
            }
        }
        Policy::Dense | Policy::Window | Policy::Sink => {
            session.append_observed(tokens, origin, &mut observe)?;
        }
    }
    if score.total.is_nan() {
        return Err(SessionError::NotFinite { n_tokens: tokens.len() as u64 });
    }
    Ok(score)
}
