//! Perplexity by number of sinks and size of the window, in the form of StreamingLLM's tables 1, 2
//! and 6 (arXiv:2309.17453), and with clusters.
//!
//! `cargo xtask soak sinks smollm2|qwen BOOK N_TOKENS` prints Markdown.

use std::io::Write;

use everstream_runtime::kv_cache::ClusterConfig;
use everstream_runtime::model::SpecialTokens;
use everstream_runtime::perplexity::{Positions, score};
use everstream_runtime::{Policy, SessionConfig};

#[path = "common/books.rs"]
mod books;
mod common;

/// Sinks, at equal budget: the first table.
const SINKS: [usize; 5] = [0, 1, 2, 4, 8];
const BUDGET: usize = 1024;
/// Windows behind four sinks: the second table.
const WINDOWS: [usize; 4] = [252, 508, 1020, 2044];
/// Budgets whose window is computed anew at sampled positions, and the distance of these.
const RECOMPUTE: [usize; 2] = [256, 512];
const EVERY: usize = 128;
/// Budgets at which clusters are compared with sinks alone.
const CLUSTERED: [usize; 3] = [256, 512, 1024];

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, book, n_tokens] = args.as_slice() else {
        anyhow::bail!("usage: cargo xtask soak sinks smollm2|qwen BOOK N_TOKENS");
    };
    let variable = match name.as_str() {
        "smollm2" => "EVERSTREAM_TEST_SMOLLM2",
        "qwen" => "EVERSTREAM_TEST_QWEN",
        _ => anyhow::bail!("unknown model {name:?}: use smollm2 or qwen"),
    };
    let (n_tokens, model) = (n_tokens.parse::<usize>()?, common::model(variable)?);
    let mut tokens = model.tokenizer().encode(&books::book(book)?, SpecialTokens::AsText);
    anyhow::ensure!(tokens.len() >= n_tokens, "{book} has {} tokens", tokens.len());
    tokens.truncate(n_tokens);
    let perplexity = |config: SessionConfig, tokens: &[u32], positions| {
        anyhow::Ok(score(&model, None, config, tokens, positions, &mut |_, _| {})?.perplexity())
    };
    let run = |policy, n_sink, window_tokens, positions| {
        let config = SessionConfig { policy, n_sink, window_tokens, ..Default::default() };
        perplexity(config, &tokens, positions)
    };
    let mut out = std::io::stdout();
    let mut cell = |value: f64| {
        print!(" {value:.2} |");
        out.flush()
    };

    println!("\n{}, {book}, {n_tokens} tokens\n", model.config().name);
    println!("| sinks + window | {} |", SINKS.map(|s| format!("{s} + {}", BUDGET - s)).join(" | "));
    println!("|---|{}", "---|".repeat(SINKS.len()));
    print!("| perplexity |");
    for n_sink in SINKS {
        cell(run(Policy::Sink, n_sink, BUDGET - n_sink, Positions::ALL)?)?;
    }
    println!("\n\n| sinks + window | {} |", WINDOWS.map(|w| format!("4 + {w}")).join(" | "));
    println!("|---|{}", "---|".repeat(WINDOWS.len()));
    print!("| perplexity |");
    for window in WINDOWS {
        cell(run(Policy::Sink, 4, window, Positions::ALL)?)?;
    }
    let sampled = Positions { first: EVERY, every: EVERY };
    println!("\n\nEvery {EVERY}th token only:\n");
    println!("| budget | sinks, 4 + | recomputation | window |\n|---|---|---|---|");
    for budget in RECOMPUTE {
        print!("| {budget} |");
        cell(run(Policy::Sink, 4, budget - 4, sampled)?)?;
        cell(run(Policy::Recompute, 0, budget, sampled)?)?;
        cell(run(Policy::Window, 0, budget, sampled)?)?;
        println!();
    }

    let line_break = model.tokenizer().encode("\n", SpecialTokens::AsText);
    let broken = [line_break.repeat(4), tokens.clone()].concat();
    println!(
        "\n\n| budget | 0 + | 4 + | 4 line breaks + | 4 + 64 clusters + |\n|---|---|---|---|---|"
    );
    for budget in CLUSTERED {
        print!("| {budget} |");
        cell(run(Policy::Window, 0, budget, Positions::ALL)?)?;
        cell(run(Policy::Sink, 4, budget - 4, Positions::ALL)?)?;
        // Of the same tokens: none of the line breaks.
        let behind = Positions { first: broken.len() - tokens.len() + 1, every: 1 };
        let policy = Policy::Sink;
        let config = SessionConfig { policy, window_tokens: budget - 4, ..Default::default() };
        cell(perplexity(config.clone(), &broken, behind)?)?;
        let clusters = Some(ClusterConfig::default());
        let window_tokens = config.window_tokens - ClusterConfig::default().n_clusters;
        let config = SessionConfig { clusters, window_tokens, ..config };
        cell(perplexity(config, &tokens, Positions::ALL)?)?;
        println!();
    }
    Ok(())
}
