//! Perplexity by number of sinks and size of the window, in the form of StreamingLLM's tables 1, 2
//! and 6 (arXiv:2309.17453).
//!
//! `cargo xtask soak sinks smollm2|qwen BOOK N_TOKENS` prints Markdown.

use std::io::Write;

use everstream_runtime::model::SpecialTokens;
use everstream_runtime::perplexity::{Positions, score};
use everstream_runtime::{Policy, SessionConfig};

#[path = "common/books.rs"]
mod books;
mod common;

const SINKS: [usize; 5] = [0, 1, 2, 4, 8];
const WINDOWS: [usize; 4] = [252, 508, 1020, 2044];
/// Windows that are computed anew at sampled positions, and the distance of these.
const RECOMPUTE: [usize; 2] = [256, 512];
const EVERY: usize = 64;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (name, book, n_tokens) = match args.as_slice() {
        [name, book, n] => (name.as_str(), book.as_str(), n.parse()?),
        _ => ("smollm2", "carroll-alice", 16_384),
    };
    let variable = if name == "qwen" { "EVERSTREAM_TEST_QWEN" } else { "EVERSTREAM_TEST_SMOLLM2" };
    let model = common::model(variable)?;
    let text = books::book(book)?;
    let mut tokens = model.tokenizer().encode(&text, SpecialTokens::AsText);
    tokens.truncate(n_tokens);
    let run = |policy, n_sink, window_tokens, positions| {
        let config = SessionConfig { policy, n_sink, window_tokens, ..Default::default() };
        score(&model, None, config, &tokens, positions, &mut |_, _| {})
    };
    println!("\n{}, {book}, {} tokens\n", model.config().name, tokens.len());
    println!("| sinks | {} |", WINDOWS.map(|w| format!("+ {w}")).join(" | "));
    println!("|---|{}", "---|".repeat(WINDOWS.len()));
    for n_sink in SINKS {
        print!("| {n_sink} |");
        for window in WINDOWS {
            let score = run(Policy::Sink, n_sink, window, Positions::ALL)?;
            print!(" {:.2} |", score.perplexity());
            std::io::stdout().flush()?;
        }
        println!();
    }
    let sampled = Positions { first: EVERY, every: EVERY };
    println!(
        "\nEvery {EVERY}th token only:\n\n| cache | sink, 4 + | recompute | window |\n|---|---|---|---|"
    );
    for budget in RECOMPUTE {
        let sink = run(Policy::Sink, 4, budget - 4, sampled)?;
        let window = run(Policy::Window, 0, budget, sampled)?;
        let recompute = run(Policy::Recompute, 0, budget, sampled)?;
        println!(
            "| {budget} | {:.2} | {:.2} | {:.2} |",
            sink.perplexity(),
            recompute.perplexity(),
            window.perplexity()
        );
    }
    Ok(())
}
