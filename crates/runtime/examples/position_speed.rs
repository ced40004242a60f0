//! Does a token cost the same, far into a stream? Four streams take turns: with policy `sink` and with
//! `remember`, 1,000 and N tokens long.
//!
//! `cargo xtask soak position-speed [TOKENS]` prints Markdown. The cache is full in all four, nothing is
//! recalled; tokens are read one by one, as when answering.

use std::sync::Arc;
use std::time::{Duration, Instant};

use everstream_runtime::memory::{Embedder, Keep, MiniLm, MiniLmOptions, Role, SessionFolder};
use everstream_runtime::{Origin, Policy, Session, SessionConfig, Storage};

#[path = "common/books.rs"]
mod books;
mod common;

const ROUNDS: usize = 31;
/// Tokens that are read one by one in a round.
const DECODED: usize = 32;
const NEAR: usize = 1000;

fn main() -> anyhow::Result<()> {
    let far: usize = std::env::args().nth(1).map_or(Ok(1_000_000), |n| n.parse())?;
    let model = common::model("EVERSTREAM_TEST_SMOLLM2")?;
    let folder = common::path("EVERSTREAM_TEST_MINILM")?;
    let encoder: Arc<dyn Embedder> = Arc::new(MiniLm::open(&folder, MiniLmOptions::default())?);
    let text = books::book("War and Peace")? + &books::book("Middlemarch")?;
    let tokens = everstream_runtime::encode(&model, &text)?;
    anyhow::ensure!(tokens.len() >= far, "the books have {} tokens only", tokens.len());
    let data = tempfile::tempdir()?;

    let mut streams = Vec::new();
    for policy in [Policy::Sink, Policy::Remember] {
        for n_tokens in [NEAR, far] {
            let config = SessionConfig { policy, ..SessionConfig::default() };
            let mut session = match policy {
                Policy::Remember => {
                    let folder =
                        Arc::new(SessionFolder::create(data.path(), &format!("s{n_tokens}"))?);
                    let storage = Storage {
                        folder,
                        max_bytes: None,
                        keep: Keep::Newest,
                        accepts_loss: false,
                    };
                    Session::open(Arc::clone(&model), Arc::clone(&encoder), config, &storage)?
                }
                _ => Session::new(Arc::clone(&model), None, config)?,
            };
            let start = Instant::now();
            session.append(&tokens[..n_tokens], Origin::turn(Role::Document))?;
            let speed = n_tokens as f64 / start.elapsed().as_secs_f64();
            eprintln!("{}: read {n_tokens} tokens, {speed:.0} a second", policy.name());
            streams.push((policy, n_tokens, session, Vec::<Duration>::new()));
        }
    }

    let mut rng = fastrand::Rng::with_seed(1);
    for round in 0..=ROUNDS {
        // What ran just before must not decide.
        let mut order = [0, 1, 2, 3];
        rng.shuffle(&mut order);
        for i in order {
            let (_, _, session, times) = &mut streams[i];
            let start = Instant::now();
            for &token in &tokens[round * DECODED..(round + 1) * DECODED] {
                session.append(&[token], Origin::turn(Role::Assistant))?;
            }
            // The first round warms up.
            if round > 0 {
                times.push(start.elapsed() / DECODED as u32);
            }
        }
    }
    println!("\n{}, {} threads, {ROUNDS} rounds", model.config().name, model.n_threads());
    println!("| policy | position | ms a token, median (smallest..largest) | of that at {NEAR} |");
    println!("|---|---|---|---|");
    let mut near = Duration::ZERO;
    for (policy, n_tokens, _, times) in &mut streams {
        times.sort();
        let ms = |i: usize| times[i].as_secs_f64() * 1e3;
        let median = times[ROUNDS / 2];
        if *n_tokens == NEAR {
            near = median;
        }
        let ratio = median.as_secs_f64() / near.as_secs_f64();
        let (middle, least, most) = (ms(ROUNDS / 2), ms(0), ms(ROUNDS - 1));
        println!(
            "| {} | {n_tokens} | {middle:.3} ({least:.3}..{most:.3}) | {ratio:.3} |",
            policy.name()
        );
    }
    Ok(())
}
