//! Repository chores.
//!
//! `cargo xtask check` is the whole gate; CI calls nothing else. `cargo xtask soak` holds what takes
//! longer. Neither installs system packages; `check` pulls the models that its tests need.

mod bench_peer;
mod check;
mod chroma;
mod clients;
mod models;
mod soak;
mod structure;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  check       formatting, lints, documentation, structure, licences, tests, tests on real models,
              clients of the server
  structure   the part of check that takes no time: invariants, file sizes, licences
  bench-peer  speed beside llama.cpp and candle; needs cmake and libclang; writes docs/bench-peer.md
  soak        what takes longer: a million-token stream, tables of sinks and windows (without a name: a list)";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        ["check"] => check::run(),
        ["structure"] => structure::check(),
        ["bench-peer", rest @ ..] => bench_peer::run(rest),
        ["soak", rest @ ..] => soak::run(rest),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
