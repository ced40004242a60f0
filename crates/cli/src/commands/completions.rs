//! `everstream completions`: what a shell needs to complete commands and flags.

use std::io::Write as _;

use clap::CommandFactory as _;

use crate::args::{Cli, CompletionsArgs};

pub(crate) fn run(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "everstream", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}
