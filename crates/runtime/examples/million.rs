//! One endless stream: books through a small cache, loss, time and memory as it goes.
//!
//! `cargo xtask soak million [N_TOKENS]` prints a JSON object for each segment of 50,000 tokens.

use std::time::Instant;

use everstream_runtime::kernels::log_sum_exp;
use everstream_runtime::kv_cache::TokenPos;
use everstream_runtime::memory::Role;
use everstream_runtime::model::SpecialTokens;
use everstream_runtime::{Origin, Policy, Session, SessionConfig};
use serde_json::json;

#[path = "common/books.rs"]
mod books;
mod common;

const SEGMENT: usize = 50_000;
/// Tokens decoded one by one at the end of each segment, for the time of a decode step.
const STEPS: usize = 64;

fn main() -> anyhow::Result<()> {
    let n_tokens: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(1_000_000);
    let model = common::model("EVERSTREAM_TEST_SMOLLM2")?;
    let mut tokens = Vec::new();
    for book in ["War and Peace", "Middlemarch", "Great Expectations", "melville-moby_dick"] {
        let text = books::book(book)?;
        tokens.extend(model.tokenizer().encode(&text, SpecialTokens::AsText));
    }
    anyhow::ensure!(tokens.len() > n_tokens, "the books have {} tokens", tokens.len());
    let config = SessionConfig {
        policy: Policy::Sink,
        n_sink: 4,
        window_tokens: 508,
        ..SessionConfig::default()
    };
    let mut session = Session::new(std::sync::Arc::clone(&model), None, config)?;
    for (i, segment) in tokens[..n_tokens].chunks(SEGMENT).enumerate() {
        let (mut total, mut n) = (0.0, 0);
        let first = i * SEGMENT;
        let mut observe = |position: TokenPos, logits: &[f32]| {
            if let Some(&next) = tokens.get(position.0 as usize + 1) {
                total += log_sum_exp(logits) - f64::from(logits[next as usize]);
                n += 1;
            }
        };
        let origin = Origin::turn(Role::Document);
        let (chunked, single) = segment.split_at(segment.len() - STEPS.min(segment.len()));
        let start = Instant::now();
        session.append_observed(chunked, origin.clone(), &mut observe)?;
        let prefill = start.elapsed().as_secs_f64() * 1e3 / chunked.len() as f64;
        let mut steps = Vec::new();
        for token in single {
            let start = Instant::now();
            session.append_observed(std::slice::from_ref(token), origin.clone(), &mut observe)?;
            steps.push(start.elapsed().as_secs_f64() * 1e3);
        }
        steps.sort_by(f64::total_cmp);
        let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
        let resident = status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u64>().ok());
        println!(
            "{}",
            json!({
                "position": first + segment.len(),
                "perplexity": (total / f64::from(n)).exp(),
                "prefill_ms_per_token": prefill,
                "decode_ms_per_token": steps.get(steps.len() / 2),
                "resident_kb": resident,
            })
        );
    }
    Ok(())
}
