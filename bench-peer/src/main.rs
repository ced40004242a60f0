//! Everstream beside llama.cpp, in one process: how fast both are, and what llama.cpp says.
//!
//! `bench` measures both sides in turn, so that what else the machine does falls on both. `greedy`
//! writes what llama.cpp continues some prompts with; `crates/model/tests/greedy.rs` compares that
//! with what Everstream computes, on machines that never build llama.cpp.
//!
//! The obvious alternative for `bench` was to run llama.cpp's own `llama-bench` and
//! `everstream bench` one after the other. Their prompts and protocols differ, and on a small
//! machine the speed of a minute ago says little about the speed of now.
//!
//! # What is built how
//!
//! llama.cpp chooses its kernels when it is compiled, so `.cargo/config.toml` asks for
//! `-C target-cpu=native`, which makes the crate `llama-cpp-2` compile llama.cpp with
//! `-march=native`. Cargo reads that file only when it is called inside `bench-peer/`; elsewhere
//! llama.cpp would run its slowest kernels, and this program refuses to measure that. OpenMP is
//! llama.cpp's default and stays on; llama.cpp is linked statically. The rest is llama.cpp's
//! default as well: optimized (`Release`), tinyBLAS (`GGML_LLAMAFILE`) and repacked weights
//! (`GGML_CPU_REPACK`) on, flash attention chosen by itself.
//!
//! Everstream is compiled for the native CPU too here, which its users' build is not. It chooses
//! its kernels at run time, so that matters little; `everstream bench` tells how much.

mod bench;
mod greedy;
mod machine;
mod prompts;
mod sides;

use std::path::Path;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(version, about = "Compares Everstream with llama.cpp")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures prefill and decode of both, in turn, and prints Markdown.
    Bench(bench::Args),
    /// Writes greedy continuations by llama.cpp.
    Greedy(greedy::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Bench(args) => bench::run(&args),
        Command::Greedy(args) => greedy::run(&args),
    }
}

/// The name of a file without its folders, which say nothing to others.
fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
