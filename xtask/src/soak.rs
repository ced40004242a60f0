//! What takes longer than a gate should. Results are committed to the docs.

use std::process::Command;

use anyhow::bail;

use crate::check::{Profile, built, command, run_command};
use crate::{clients, models, structure};

const USAGE: &str = "\
usage: cargo xtask soak NAME

  million   1,000,000 tokens of books through smollm2-135m (4 + 508); prints JSON and
            writes docs/million.svg
  sinks     perplexity by sinks and window on two books; prints Markdown
  retrieval what is found of a task of `everstream eval`, by strategy; no model reads anything
  attention-recall
            which blocks' keys are looked at: hits and time
  keep      what a memory keeps that is too small for all
  memory-speed
            keys and values put back against computed again; what remembering adds to reading
  position-speed
            a token's time at 1,000 tokens of a stream and at 1,000,000; takes 12 GB of disk
  search-speed
            exact and approximate search over N vectors
  clients   LangChain, LlamaIndex, llm, OpenAI's client for JavaScript; a conversation of 200 turns over a
            kill of the server; prints JSON
  tests     the ignored tests named soak_*";

pub(crate) fn run(args: &[&str]) -> anyhow::Result<()> {
    match args {
        ["million"] => million(),
        ["sinks", rest @ ..] => example("sinks", rest),
        ["retrieval", rest @ ..] => example("retrieval", rest),
        ["attention-recall", rest @ ..] => example("attention_recall", rest),
        ["keep", rest @ ..] => example("keep", rest),
        ["memory-speed", rest @ ..] => example("memory_speed", rest),
        ["position-speed", rest @ ..] => example("position_speed", rest),
        ["search-speed", rest @ ..] => example("search_speed", rest),
        ["clients"] => clients::soak(),
        ["tests"] => {
            let models = models::pull()?;
            let mut tests =
                command(&["test", "--release", "--workspace", "--", "--ignored", "soak_"]);
            run_command(tests.envs(models.variables()))
        }
        _ => bail!("{USAGE}"),
    }
}

/// Perplexity, time and memory of one endless stream.
fn million() -> anyhow::Result<()> {
    let models = models::pull()?;
    let books = ["War and Peace", "Middlemarch", "Great Expectations", "melville-moby_dick"];
    let mut print = Command::new(built("examples/books", Profile::Release)?);
    let output = print.args(books).envs(models.variables()).output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    let text = structure::target_folder()?.join("soak-books.txt");
    fs_err::write(&text, output.stdout)?;
    let mut bench = Command::new(built("everstream", Profile::Release)?);
    bench.args(["bench", "--window", "508", "--stream-tokens", "1000000", "--json", "--text"]);
    bench.arg(text).arg("--plot").arg(structure::root().join("docs/million.svg"));
    run_command(&mut bench)
}

/// Runs one of the measuring programs on the models and data of this machine.
fn example(name: &str, args: &[&str]) -> anyhow::Result<()> {
    let models = models::pull()?;
    let program = built(&format!("examples/{name}"), Profile::Release)?;
    run_command(Command::new(program).args(args).envs(models.variables()))
}
