//! `cargo xtask bench-peer`: the comparison with llama.cpp and candle, written to the docs.

use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::{models, structure};

const MODELS: [&str; 3] = ["smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"];

/// Runs it on all models, or on those that are named.
pub(crate) fn run(names: &[&str]) -> anyhow::Result<()> {
    let is_all = names.is_empty();
    let names = if is_all { &MODELS } else { names };
    let files = names.iter().map(|name| models::pull_one(name)).collect::<Result<Vec<_>, _>>()?;
    // In its folder, where cargo finds what the others are to be compiled with.
    let output = Command::new("cargo")
        .args(["run", "--quiet", "--release", "--", "bench"])
        .args(&files)
        .current_dir(structure::root().join("bench-peer"))
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the comparison failed, see above; building it needs cmake and libclang");
    }
    let table = String::from_utf8(output.stdout)?;
    print!("{table}");
    if is_all {
        let page = structure::root().join("docs/bench-peer.md");
        let title = "# Beside llama.cpp and candle\n\nWritten by `cargo xtask bench-peer`.\n\n";
        fs_err::write(page, format!("{title}{}\n", table.trim_end()))?;
    }
    Ok(())
}
