//! Pulls the models that tests on real models need, with the project's own binary.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::check::{Profile, built};
use crate::structure;

/// Where the models are.
pub(crate) struct Models {
    smollm2: PathBuf,
    qwen: PathBuf,
    gemma3: PathBuf,
    minilm: PathBuf,
}

impl Models {
    /// What tests read. The evaluation data is absent from most machines; its tests then say so.
    pub(crate) fn variables(&self) -> Vec<(&'static str, PathBuf)> {
        let mut variables = vec![
            ("EVERSTREAM_TEST_SMOLLM2", self.smollm2.clone()),
            ("EVERSTREAM_TEST_QWEN", self.qwen.clone()),
            ("EVERSTREAM_TEST_GEMMA3", self.gemma3.clone()),
            ("EVERSTREAM_TEST_MINILM", parent(&self.minilm)),
            // CACHE/models/smollm2-135m/FILE
            ("EVERSTREAM_TEST_CACHE", parent(&parent(&parent(&self.smollm2)))),
        ];
        match data_folder() {
            Some(data) => variables.push(("EVERSTREAM_TEST_DATA", data)),
            None => println!("xtask: evaluation data is absent: its tests are skipped"),
        }
        variables
    }
}

/// The folder of evaluation data beside the repository, if it is there.
pub(crate) fn data_folder() -> Option<PathBuf> {
    let data = structure::root().parent()?.join("shared/data");
    data.join("SOURCES.md").exists().then_some(data)
}

/// Pulls all models, into the user's cache folder.
pub(crate) fn pull() -> anyhow::Result<Models> {
    Ok(Models {
        smollm2: pull_one("smollm2-135m")?,
        qwen: pull_one("qwen2.5-coder-0.5b")?,
        gemma3: pull_one("gemma3-270m")?,
        minilm: pull_one("minilm")?,
    })
}

/// Pulls a model; returns the path of its file.
pub(crate) fn pull_one(name: &str) -> anyhow::Result<PathBuf> {
    let output = Command::new(built("everstream", Profile::Dev)?)
        .args(["pull", name, "--json"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run everstream")?;
    if !output.status.success() {
        bail!("`everstream pull {name}` failed");
    }
    let result: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let path = result["path"].as_str().context("`everstream pull --json` names no path")?;
    Ok(PathBuf::from(path))
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(path).to_owned()
}
