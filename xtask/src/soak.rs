//! What takes longer than a gate should. Results are committed to the docs.

use std::process::Command;

use anyhow::bail;

use crate::check::{Profile, built, command, run_command};
use crate::models;

const USAGE: &str = "\
usage: cargo xtask soak NAME

  million   1,000,000 tokens through smollm2-135m (4 + 508); prints JSON Lines
  sinks     perplexity by sinks and window on two books; prints Markdown
  squad     100 questions over streams of 40 paragraphs; prints Markdown
  tests     the ignored tests named soak_*";

pub(crate) fn run(args: &[&str]) -> anyhow::Result<()> {
    match args {
        ["million", rest @ ..] => example("million", rest),
        ["sinks", rest @ ..] => example("sinks", rest),
        ["squad", rest @ ..] => example("squad", rest),
        ["tests"] => {
            let models = models::pull()?;
            let mut tests =
                command(&["test", "--release", "--workspace", "--", "--ignored", "soak_"]);
            run_command(tests.envs(models.variables()))
        }
        _ => bail!("{USAGE}"),
    }
}

/// Runs one of the measuring programs of `runtime` on the models and data of this machine.
fn example(name: &str, args: &[&str]) -> anyhow::Result<()> {
    let models = models::pull()?;
    let program = built(&format!("examples/{name}"), Profile::Release)?;
    run_command(Command::new(program).args(args).envs(models.variables()))
}
