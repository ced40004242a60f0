//! Scores: which positions, from which past, and that policies are measured alike.

#![expect(clippy::unwrap_used, reason = "a test stops where something unexpected happens")]

mod common;

use std::sync::Arc;

use common::{embedder, session, small, story, tiny};
use everstream_runtime::kernels::log_sum_exp;
use everstream_runtime::memory::Role;
use everstream_runtime::model::{Model, SpecialTokens};
use everstream_runtime::perplexity::{Positions, Score, score};
use everstream_runtime::{Origin, Policy, SessionConfig, SessionError};

fn tokens(model: &Model, n: usize) -> Vec<u32> {
    let mut tokens = model.tokenizer().encode(&story(3 * n), SpecialTokens::AsText);
    tokens.truncate(n);
    tokens
}

/// The score, and position and loss of each token.
fn scored(
    model: &Arc<Model>,
    config: SessionConfig,
    tokens: &[u32],
    positions: Positions,
) -> (Score, Vec<(usize, f64)>) {
    let mut losses = Vec::new();
    let mut progress = |position, loss| losses.push((position, loss));
    let score = score(model, embedder(), config, tokens, positions, &mut progress).unwrap();
    assert_eq!(score.tokens, losses.len());
    assert_eq!(score.total, losses.iter().map(|l| l.1).sum::<f64>());
    assert_eq!(score.tokens, positions.count(tokens.len()));
    (score, losses)
}

fn loss(logits: &[f32], token: u32) -> f64 {
    log_sum_exp(logits) - f64::from(logits[token as usize])
}

/// The loss of each token from the second, with a session that reads one token after the other.
fn token_by_token(model: &Arc<Model>, config: SessionConfig, tokens: &[u32]) -> Vec<(usize, f64)> {
    let mut session = session(model, config);
    let mut losses = Vec::new();
    for (i, pair) in tokens.windows(2).enumerate() {
        session.append(&pair[..1], Origin::turn(Role::Document)).unwrap();
        losses.push((i + 1, loss(session.logits(), pair[1])));
    }
    losses
}

#[test]
fn with_a_budget_above_the_length_all_policies_agree() {
    for family in ["qwen2", "llama"] {
        let model = tiny(family);
        let tokens = tokens(&model, 150);
        let run = |policy| {
            let config = SessionConfig { window_tokens: 150, ..small(policy) };
            scored(&model, config, &tokens, Positions::ALL)
        };
        let dense = run(Policy::Dense);
        assert_eq!(dense.1.iter().map(|l| l.0).collect::<Vec<_>>(), (1..150).collect::<Vec<_>>());
        for policy in Policy::ALL {
            assert_eq!(run(policy), dense, "{policy}");
        }
    }
}

#[test]
fn a_score_equals_reading_token_by_token() {
    let model = tiny("qwen2");
    let tokens = tokens(&model, 300);
    for policy in [Policy::Dense, Policy::Window, Policy::Sink] {
        for (window_tokens, chunk_tokens) in [(1, 7), (20, 32), (96, 300)] {
            let config = SessionConfig { window_tokens, chunk_tokens, ..small(policy) };
            let (_, losses) = scored(&model, config.clone(), &tokens, Positions::ALL);
            assert_eq!(losses, token_by_token(&model, config, &tokens), "{policy}");
        }
    }
    let remember = |chunk_tokens| {
        let config = SessionConfig { chunk_tokens, ..small(Policy::Remember) };
        scored(&model, config, &tokens, Positions::ALL).1
    };
    assert_eq!(remember(1), remember(50));
    let config = SessionConfig { window_tokens: 12, ..small(Policy::Recompute) };
    let (_, losses) = scored(&model, config.clone(), &tokens[..60], Positions::ALL);
    assert_eq!(losses, token_by_token(&model, config, &tokens[..60]));
}

/// Each token from `window` past tokens and the one before it, computed from nothing else.
#[test]
fn recompute_sees_the_window_and_the_token_itself() {
    let model = tiny("qwen2");
    let tokens = tokens(&model, 80);
    let window = 17;
    let config = SessionConfig { window_tokens: window, ..small(Policy::Recompute) };
    let (_, losses) = scored(&model, config, &tokens, Positions::ALL);
    for (position, found) in losses {
        let mut fresh = session(&model, small(Policy::Dense));
        let past = &tokens[position.saturating_sub(window + 1)..position];
        fresh.append(past, Origin::turn(Role::Document)).unwrap();
        assert_eq!(found, loss(fresh.logits(), tokens[position]), "{position}");
    }
}

#[test]
fn sampled_positions_are_the_same_for_all_policies() {
    let model = tiny("qwen2");
    let tokens = tokens(&model, 200);
    for (first, every) in [(1, 1), (1, 7), (30, 30), (64, 65), (199, 5), (200, 1), (500, 3)] {
        let positions = Positions { first, every };
        let expected: Vec<usize> = (first..200).step_by(every).collect();
        for policy in Policy::ALL {
            if policy == Policy::Recompute && every == 1 && first == 1 {
                continue;
            }
            let config = SessionConfig { window_tokens: 48, ..small(policy) };
            let (_, sampled) = scored(&model, config.clone(), &tokens, positions);
            assert_eq!(sampled.iter().map(|l| l.0).collect::<Vec<_>>(), expected, "{policy}");
            if policy != Policy::Recompute {
                let (_, all) = scored(&model, config, &tokens, Positions::ALL);
                let chosen: Vec<_> = all.into_iter().filter(|l| positions.contains(l.0)).collect();
                assert_eq!(sampled, chosen, "{policy}");
            }
        }
    }
    // What recompute computes does not depend on what it computed before.
    let config = SessionConfig { window_tokens: 24, ..small(Policy::Recompute) };
    let (_, all) = scored(&model, config.clone(), &tokens[..90], Positions::ALL);
    for (first, every) in [(1, 4), (25, 25), (88, 1)] {
        let positions = Positions { first, every };
        let (_, sampled) = scored(&model, config.clone(), &tokens[..90], positions);
        assert_eq!(
            sampled,
            all.iter().copied().filter(|l| positions.contains(l.0)).collect::<Vec<_>>()
        );
    }
}

#[test]
fn what_cannot_be_scored() {
    let model = tiny("qwen2");
    let tokens = tokens(&model, 50);
    let run = |config: SessionConfig, tokens: &[u32]| {
        score(&model, embedder(), config, tokens, Positions::ALL, &mut |_, _| ())
    };
    for policy in Policy::ALL {
        for n in [0, 1] {
            assert_eq!(run(small(policy), &tokens[..n]).unwrap(), Score::default(), "{policy}");
        }
        assert_eq!(run(small(policy), &tokens[..2]).unwrap().tokens, 1, "{policy}");
    }
    let config = SessionConfig { max_tokens: 48, ..small(Policy::Dense) };
    assert!(matches!(run(config.clone(), &tokens), Err(SessionError::Cache(_))));
    let none = Positions { first: 1, every: 0 };
    let refused = score(&model, None, small(Policy::Sink), &tokens, none, &mut |_, _| ());
    assert!(matches!(refused, Err(SessionError::Setting { value: 0, .. })), "{refused:?}");
    // The last token is predicted and need not be read.
    assert_eq!(run(config, &tokens[..49]).unwrap().tokens, 48);
}
