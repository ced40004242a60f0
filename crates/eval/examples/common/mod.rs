//! What the measuring programs share: models and data as `cargo xtask` names them.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use everstream_runtime::memory::{Embedder, MiniLm, MiniLmOptions};
use everstream_runtime::model::{Model, ModelOptions};

/// A language model, `smollm2` or `qwen`.
pub(crate) fn model(name: &str) -> anyhow::Result<Arc<Model>> {
    let variable = match name {
        "smollm2" => "EVERSTREAM_TEST_SMOLLM2",
        "qwen" => "EVERSTREAM_TEST_QWEN",
        _ => bail!("no model {name}: use smollm2 or qwen"),
    };
    Ok(Arc::new(Model::open(&path(variable)?, ModelOptions::default())?))
}

/// The sentence encoder.
pub(crate) fn encoder() -> anyhow::Result<Arc<dyn Embedder>> {
    Ok(Arc::new(MiniLm::open(&path("EVERSTREAM_TEST_MINILM")?, MiniLmOptions::default())?))
}

/// The data of a task; `None` for one that makes its own.
pub(crate) fn data(task: &str) -> anyhow::Result<Option<PathBuf>> {
    let file = match task {
        "squad" => "squad-v2-dev.jsonl.gz",
        "triviaqa" => "triviaqa-dev.jsonl.gz",
        "locomo" => "locomo-dev.jsonl.gz",
        "longeval" => "longeval-lines.jsonl.gz",
        "qmsum" => "qmsum-test.jsonl.gz",
        _ => return Ok(None),
    };
    Ok(Some(path("EVERSTREAM_TEST_DATA")?.join(file)))
}

/// A path that `cargo xtask` passes on.
fn path(variable: &str) -> anyhow::Result<PathBuf> {
    let value = std::env::var_os(variable);
    Ok(value.with_context(|| format!("{variable} is not set: run `cargo xtask soak`"))?.into())
}
