//! The gate: every stage in order, the first failure ends it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};

use crate::{chroma, clients, models, structure};

/// Runs all stages.
pub(crate) fn run() -> anyhow::Result<()> {
    let start = Instant::now();
    stage("formatting", || cargo(&["fmt", "--all", "--check"]))?;
    stage("structure", structure::check)?;
    stage("lints", || {
        let lints = ["--all-targets", "--all-features", "--", "-D", "warnings"];
        cargo(&[&["clippy", "--workspace"], &lints[..]].concat())
    })?;
    stage("documentation", || {
        let mut command = command(&["doc", "--workspace", "--no-deps", "--document-private-items"]);
        command.arg("--all-features");
        command.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links");
        run_command(&mut command)
    })?;
    stage("tests", || cargo(&["test", "--workspace", "--all-features"]))?;
    stage("benches", || {
        // Whether they run: how fast is not a test.
        cargo(&["test", "--package", "everstream-kernels", "--bench", "decode", "--", "--smoke"])
    })?;
    stage("features alone", || {
        cargo(&["check", "--package", "everstream-hub", "--no-default-features"])?;
        cargo(&["check", "--workspace", "--all-targets"])
    })?;
    let models = stage_value("models", models::pull)?;
    let chroma = stage_value("a Chroma server", chroma::Server::start)?;
    stage("tests on real models", || {
        // Soak tests are ignored as well, and run by `cargo xtask soak`.
        let mut command = command(&["test", "--workspace", "--all-features"]);
        command.args(["--", "--ignored", "--skip", "soak_"]).envs(models.variables());
        run_command(command.env("EVERSTREAM_TEST_CHROMA", &chroma.url))
    })?;
    stage("clients of the server", clients::check)?;
    println!("xtask: all stages passed in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn stage(name: &str, run: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    stage_value(name, run)
}

fn stage_value<T>(name: &str, run: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    println!("xtask: {name}");
    let start = Instant::now();
    let value = run().with_context(|| format!("stage {name:?} failed"))?;
    println!("xtask: {name} took {:.0} s", start.elapsed().as_secs_f64());
    Ok(value)
}

/// Runs cargo in the repository.
pub(crate) fn cargo(args: &[&str]) -> anyhow::Result<()> {
    run_command(&mut command(args))
}

/// A cargo command in the repository.
pub(crate) fn command(args: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(args).current_dir(structure::root());
    command
}

/// How to build.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

/// Builds the whole workspace and returns the path of one of its programs. Building a package
/// alone would unify features differently, and compile half of the dependencies once more.
pub(crate) fn built(program: &str, profile: Profile) -> anyhow::Result<PathBuf> {
    let mut build = command(&["build", "--quiet", "--workspace", "--bins", "--examples"]);
    build.arg("--all-features");
    if profile == Profile::Release {
        build.arg("--release");
    }
    run_command(&mut build)?;
    let folder = if profile == Profile::Release { "release" } else { "debug" };
    Ok(structure::target_folder()?.join(folder).join(program))
}

/// Runs a command to its end.
pub(crate) fn run_command(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}
