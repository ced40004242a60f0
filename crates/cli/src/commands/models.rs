//! `everstream pull`, `models` and `rm`: what can be run, and what is here.

use std::io::Write;

use anyhow::Context;
use everstream_hub::{ModelFiles, ModelKind, Presence};
use everstream_runtime::model::GgufFile;
use serde_json::json;

use crate::args::{Common, ModelsArgs, PullArgs, RmArgs};
use crate::output::PullProgress;
use crate::{load, output};

pub(crate) fn pull(common: &Common, args: &PullArgs) -> anyhow::Result<()> {
    let hub = load::hub(common)?;
    let files = hub.pull(&hub.parse(&args.model)?, &mut PullProgress::new())?;
    // Of a local path no hash is known; at least it must be what its name promises.
    if files.sha256.is_none() && files.kind == ModelKind::LanguageModel {
        GgufFile::open(&files.main)?;
    }
    let out = &mut std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", result(&files))?;
        return Ok(());
    }
    writeln!(out, "{}", files.main.display())?;
    let size = output::size(files.bytes);
    match files.sha256 {
        Some(hash) => writeln!(out, "{size}, {}, SHA-256 {hash} verified", kind(files.kind))?,
        None => writeln!(out, "{size}, {}, a local path: no hash to verify", kind(files.kind))?,
    }
    Ok(())
}

fn result(files: &ModelFiles) -> serde_json::Value {
    json!({
        "name": files.name,
        "kind": kind(files.kind),
        "path": files.main.display().to_string(),
        "bytes": files.bytes,
        "sha256": files.sha256.map(|hash| hash.to_string()),
        "verified": files.sha256.is_some(),
    })
}

pub(crate) fn list(common: &Common, args: &ModelsArgs) -> anyhow::Result<()> {
    let listed = load::hub(common)?.list();
    let out = &mut std::io::stdout().lock();
    if args.json {
        let models: Vec<_> = listed
            .iter()
            .map(|model| {
                json!({
                    "name": model.entry.name,
                    "about": model.entry.about,
                    "kind": kind(model.entry.kind),
                    "bytes": model.entry.bytes(),
                    "licence": model.entry.licence,
                    "presence": presence(model.presence),
                    "path": model.dir.display().to_string(),
                })
            })
            .collect();
        writeln!(out, "{}", json!({ "models": models }))?;
        return Ok(());
    }
    writeln!(
        out,
        "{:<20} {:>9}  {:<19} {:<17} {:<10} about",
        "name", "size", "licence", "kind", "state"
    )?;
    for model in listed {
        writeln!(
            out,
            "{:<20} {:>9}  {:<19} {:<17} {:<10} {}",
            model.entry.name,
            output::size(model.entry.bytes()),
            model.entry.licence,
            kind(model.entry.kind),
            presence(model.presence),
            model.entry.about,
        )?;
    }
    Ok(())
}

pub(crate) fn remove(common: &Common, args: &RmArgs) -> anyhow::Result<()> {
    let hub = load::hub(common)?;
    let removed = hub.remove(&hub.parse(&args.model)?, &mut PullProgress::new())?;
    let name = &args.model;
    let bytes = removed.with_context(|| {
        format!("{name} is not in the cache folder: `everstream models` lists what is")
    })?;
    let out = &mut std::io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", json!({ "name": name, "bytes": bytes }))?,
        false => writeln!(out, "{name} is gone: {}", output::size(bytes))?,
    }
    Ok(())
}

/// What a model is for, in tables and JSON.
pub(super) fn kind(kind: ModelKind) -> &'static str {
    match kind {
        ModelKind::LanguageModel => "language model",
        ModelKind::SentenceEncoder => "sentence encoder",
        ModelKind::Dataset => "data",
    }
}

/// How a model stands in the cache folder.
fn presence(presence: Presence) -> &'static str {
    match presence {
        Presence::Absent => "absent",
        Presence::Verified => "verified",
        Presence::Unchecked => "unchecked",
        Presence::Damaged => "damaged",
    }
}
