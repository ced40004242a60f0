//! What the measuring programs share: models and data as `cargo xtask` names them.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use everstream_runtime::model::{Model, ModelOptions};
use serde::de::DeserializeOwned;

/// A path that `cargo xtask` passes on.
pub(crate) fn path(variable: &str) -> anyhow::Result<PathBuf> {
    let value = std::env::var_os(variable);
    Ok(value.with_context(|| format!("{variable} is not set: run `cargo xtask soak`"))?.into())
}

/// A model by its variable.
pub(crate) fn model(variable: &str) -> anyhow::Result<Arc<Model>> {
    Ok(Arc::new(Model::open(&path(variable)?, ModelOptions::default())?))
}

/// The records of a gzipped JSON Lines file.
pub(crate) fn records<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Vec<T>> {
    let file = fs_err::File::open(path)?;
    let lines = BufReader::new(flate2::read::MultiGzDecoder::new(file)).lines();
    lines.map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}
