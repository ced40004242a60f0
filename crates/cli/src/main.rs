//! The command line. It parses, opens what a command needs, runs it, and maps an error to one line
//! on standard error and an exit code; everything it does can be done from `everstream_runtime`.

// They panic where nobody reads; `writeln!` and `output::note` do not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod commands;
mod examples;
mod host;
mod load;
mod output;
mod recalled;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that has seen enough (`| head`) is no failure.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(&format!("everstream: {}", output::one_line(&error)));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    match &cli.command {
        Command::Demo(args) => commands::demo::run(&cli.common, args),
        Command::Chat(args) => commands::chat::run(&cli.common, args),
        Command::Generate(args) => commands::generate::run(&cli.common, args),
        Command::Memory(args) => commands::memory::run(&cli.common, args),
        Command::Serve(args) => commands::serve::run(&cli.common, args),
        Command::Key(args) => commands::key::run(args),
        Command::Perplexity(args) => commands::perplexity::run(&cli.common, args),
        Command::Eval(args) => commands::eval::run(&cli.common, args),
        Command::Bench(args) => commands::bench::run(&cli.common, args),
        Command::Inspect(args) => commands::inspect::run(&cli.common, args),
        Command::Pull(args) => commands::models::pull(&cli.common, args),
        Command::Models(args) => commands::models::list(&cli.common, args),
        Command::Rm(args) => commands::models::remove(&cli.common, args),
        Command::Completions(args) => commands::completions::run(args),
    }
}
