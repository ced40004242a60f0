//! `everstream memory`: what sessions remember.

use std::io::Write;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use base64::Engine;
use everstream_runtime::kv_cache::TokenPos;
use everstream_runtime::memory::{
    BlockMeta, BlockStore, DiskOptions, DiskStore, Embedder, ExactIndex, Keep, Role, SessionFolder,
    StoreError, VectorIndex,
};
use everstream_runtime::{
    DocumentContext, Origin, Policy, Session, SessionConfig, Storage, damaged_files, log_forgotten,
    saved_geometry,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::args::{
    Common, ExportArgs, FilterArgs, ImportArgs, MemoryAction, MemoryArgs, NamedSession, RemoveArgs,
    SearchArgs, ShowArgs,
};
use crate::{load, output};

/// The longest name of a file that an import may give.
const MAX_NAME_BYTES: usize = 4096;
/// Characters of a block that a list shows.
const SHOWN_CHARS: usize = 72;

pub(crate) fn run(common: &Common, args: &MemoryArgs) -> anyhow::Result<()> {
    let data = load::data_dir(common)?;
    match &args.action {
        MemoryAction::Ls(args) => list(&data, args.json),
        MemoryAction::Show(args) => show(&data, args),
        MemoryAction::Search(args) => search(common, &data, args),
        MemoryAction::Export(args) => export(&data, args),
        MemoryAction::Import(args) => import(common, &data, args),
        MemoryAction::Rm(args) => remove(&data, args),
        MemoryAction::Verify(args) => verify(&data, args),
        MemoryAction::Compact(args) => compact(&data, args),
    }
}

/// What a session remembers, whatever model and encoder made it.
fn open(data: &Path, name: &str) -> anyhow::Result<DiskStore> {
    open_for(data, name, None)
}

/// As [`open`]; embeddings are those of `encoder`, if one is named.
fn open_for(data: &Path, name: &str, encoder: Option<String>) -> anyhow::Result<DiskStore> {
    let folder = Arc::new(SessionFolder::open(data, name)?);
    let store = DiskStore::open(folder, DiskOptions { encoder, ..DiskOptions::default() })?;
    for damage in store.damage() {
        let tokens = match &damage.tokens {
            Some(tokens) => format!("tokens {}..{}", tokens.start.0, tokens.end.0),
            None => "tokens that nothing tells".to_owned(),
        };
        let (path, bytes) = (damage.path.display(), &damage.bytes);
        let place = format!("{path}, bytes {}..{}", bytes.start, bytes.end);
        output::note(&format!("damaged: {tokens} ({place}: {})", damage.what));
    }
    Ok(store)
}

fn list(data: &Path, is_json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let names = SessionFolder::list(data)?;
    if names.is_empty() && !is_json {
        output::note(&format!("no sessions in {}", data.display()));
    }
    for name in names {
        let folder = match SessionFolder::open(data, &name) {
            Ok(folder) => Arc::new(folder),
            Err(StoreError::Locked { .. }) => {
                match is_json {
                    true => writeln!(out, "{}", json!({ "session": name, "in_use": true }))?,
                    false => writeln!(out, "{name:<20} in use")?,
                }
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let bytes = folder_bytes(folder.path())?;
        let store = DiskStore::open(folder, DiskOptions::default())?;
        let held = || store.metas().iter().filter(|meta| !meta.is_forgotten);
        let n_tokens: usize = held().map(BlockMeta::n_tokens).sum();
        let model = store.maker().map_or("", |maker| maker.model.as_str());
        let last = held().map(|meta| meta.written_at).max();
        let last = last.map(|time| humantime::format_rfc3339_seconds(shown(time)).to_string());
        if is_json {
            let session = json!({
                "session": name, "model": model, "blocks": held().count(), "tokens": n_tokens,
                "bytes": bytes, "last_written": last, "damaged": store.damage().len(),
            });
            writeln!(out, "{session}")?;
        } else {
            let (blocks, size) = (held().count(), output::size(bytes));
            let last = last.unwrap_or_default();
            writeln!(
                out,
                "{name:<20} {n_tokens:>9} tokens {blocks:>7} blocks {size:>10}  {last}  {model}"
            )?;
        }
    }
    Ok(())
}

fn folder_bytes(path: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in fs_err::read_dir(path)? {
        let entry = entry?;
        bytes += match entry.file_type()?.is_dir() {
            true => folder_bytes(&entry.path())?,
            false => entry.metadata()?.len(),
        };
    }
    Ok(bytes)
}

/// Numbers of the blocks that a filter and a range let pass.
fn chosen(store: &DiskStore, filter: &FilterArgs, range: Option<&Range<TokenPos>>) -> Vec<usize> {
    let filter = filter.filter();
    let passes = |meta: &BlockMeta| {
        let in_range = |range: &Range<TokenPos>| meta.overlaps(range);
        !meta.is_forgotten && filter.passes(meta) && range.is_none_or(in_range)
    };
    (0..store.metas().len()).filter(|&order| passes(&store.metas()[order])).collect()
}

fn show(data: &Path, args: &ShowArgs) -> anyhow::Result<()> {
    let store = open(data, &args.of.session)?;
    let mut out = std::io::stdout().lock();
    for order in chosen(&store, &args.filter, args.range.as_ref()) {
        let meta = &store.metas()[order];
        match store.text(order) {
            Ok(text) if args.of.json => writeln!(out, "{}", block_json(meta, &text.text))?,
            Ok(text) => writeln!(out, "{}", line(meta, &text.text))?,
            Err(StoreError::Damaged { .. }) => {
                output::note(&format!("tokens {}: damaged", tokens(&meta.range)));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A time that can be written with four digits for the year.
fn shown(time: SystemTime) -> SystemTime {
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    time.clamp(SystemTime::UNIX_EPOCH, end)
}

fn tokens(range: &Range<TokenPos>) -> String {
    format!("{}..{}", range.start.0, range.end.0)
}

fn line(meta: &BlockMeta, text: &str) -> String {
    let time = humantime::format_rfc3339_seconds(shown(meta.written_at));
    let source = meta.source.as_ref().map_or(String::new(), |s| format!("{}:{} ", s.file, s.line));
    let words = output::first_words(&format!("{source}{text}"), SHOWN_CHARS);
    format!("{:<15} {time} {:<9} {words}", tokens(&meta.range), meta.role)
}

fn block_json(meta: &BlockMeta, text: &str) -> Value {
    let source = meta.source.as_ref().map(|s| json!({ "file": &*s.file, "line": s.line }));
    json!({
        "block": meta.id.to_string(),
        "range": [meta.range.start.0, meta.range.end.0],
        "role": meta.role.as_str(),
        "source": source,
        "written_at": humantime::format_rfc3339_nanos(shown(meta.written_at)).to_string(),
        "text": text,
    })
}

fn search(common: &Common, data: &Path, args: &SearchArgs) -> anyhow::Result<()> {
    if args.query.trim().is_empty() {
        bail!("nothing to search for: give some words");
    }
    let encoder = load::encoder(common, Policy::Remember)?.context("no sentence encoder")?;
    let mut store = open_for(data, &args.of.session, Some(encoder.name()))?;
    let orders = chosen(&store, &args.filter, None);
    let hits = nearest(&mut store, &*encoder, &orders, args)?;
    let mut out = std::io::stdout().lock();
    for (order, distance) in hits {
        let meta = &store.metas()[order];
        let text = match store.text(order) {
            Err(StoreError::Damaged { .. }) => continue,
            text => text?,
        };
        if args.of.json {
            let mut block = block_json(meta, &text.text);
            block["distance"] = json!(distance);
            writeln!(out, "{block}")?;
        } else {
            writeln!(out, "{distance:.3} {}", line(meta, &text.text))?;
        }
    }
    Ok(())
}

/// The chosen blocks nearest to the query, and how near they are.
fn nearest(
    store: &mut DiskStore,
    encoder: &dyn Embedder,
    orders: &[usize],
    args: &SearchArgs,
) -> anyhow::Result<Vec<(usize, f32)>> {
    let mut index = ExactIndex::new(encoder.dim(), args.distance)?;
    let mut order_of = std::collections::HashMap::new();
    for &order in orders {
        let id = store.metas()[order].id;
        let embedding = match (store.embedding(order)?, store.text(order)) {
            (Some(embedding), _) => embedding,
            (None, Ok(text)) => {
                let embedding = encoder.embed(&[&text.text])?.swap_remove(0);
                store.set_embedding(order, &embedding)?;
                embedding
            }
            (None, Err(StoreError::Damaged { .. })) => continue,
            (None, Err(error)) => return Err(error.into()),
        };
        index.add(id, &embedding)?;
        order_of.insert(id, order);
    }
    let (query, mut hits) = (encoder.embed(&[&args.query])?.swap_remove(0), Vec::new());
    index.search(&query, args.n, &|_| true, &mut hits)?;
    let found =
        |hit: &everstream_runtime::memory::Hit| Some((*order_of.get(&hit.id)?, hit.distance));
    Ok(hits.iter().filter_map(found).collect())
}

fn export(data: &Path, args: &ExportArgs) -> anyhow::Result<()> {
    let store = open(data, &args.session)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for order in chosen(&store, &args.filter, None) {
        let meta = &store.metas()[order];
        let text = match store.text(order) {
            Err(StoreError::Damaged { .. }) => {
                output::note(&format!("tokens {}: damaged, left out", tokens(&meta.range)));
                continue;
            }
            text => text?,
        };
        let mut block = block_json(meta, &text.text);
        block["tokens"] = json!(text.tokens);
        block["embedding"] = json!(store.embedding(order)?);
        if args.kv {
            let kv = match store.get(order) {
                Err(StoreError::Damaged { .. }) => {
                    output::note(&format!("tokens {}: damaged, left out", tokens(&meta.range)));
                    continue;
                }
                kv => kv?,
            };
            let (kv, shape) = (kv.kv(), kv.kv().shape());
            block["kv"] = json!({
                "type": kv.kv_type().name(),
                "n_layers": shape.n_layers,
                "n_kv_heads": shape.n_kv_heads,
                "head_dim": shape.head_dim,
                "base64": base64::engine::general_purpose::STANDARD.encode(kv.to_bytes()),
            });
        }
        writeln!(out, "{block}")?;
    }
    Ok(out.flush()?)
}

/// A line of an export, as far as it is read again.
#[derive(Deserialize)]
struct Imported {
    text: String,
    role: Option<String>,
    source: Option<ImportedSource>,
}

#[derive(Deserialize)]
struct ImportedSource {
    file: String,
    line: u64,
}

fn import(common: &Common, data: &Path, args: &ImportArgs) -> anyhow::Result<()> {
    let lines = load::text(&args.file)?;
    let mut texts = Vec::new();
    for (i, line) in lines.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let text: Imported = serde_json::from_str(line)
            .with_context(|| format!("{}, line {}", args.file.display(), i + 1))?;
        if text.source.as_ref().is_some_and(|source| source.file.len() > MAX_NAME_BYTES) {
            bail!("{}, line {}: the name of a file is too long", args.file.display(), i + 1);
        }
        texts.push(text);
    }
    if texts.is_empty() {
        bail!(
            "{} holds no texts: a JSON object a line, as `memory export` writes them",
            args.file.display()
        );
    }
    let model = load::model(common, &args.model.model)?;
    let encoder = load::encoder(common, Policy::Remember)?.context("no sentence encoder")?;
    let folder = Arc::new(SessionFolder::create(data, &args.session)?);
    let mut config = SessionConfig {
        memory_type: load::SAVED_MEMORY_TYPE,
        document_context: DocumentContext::Paragraph,
        ..SessionConfig::default()
    };
    if let Some(geometry) = saved_geometry(&folder)? {
        geometry.apply(&mut config);
    }
    let storage = Storage { folder, max_bytes: None, keep: Keep::Newest, accepts_loss: false };
    let mut session = Session::open(model, encoder, config, &storage)?;
    let bar = output::bar(texts.len() as u64, "{msg} {wide_bar} {pos}/{len} texts {eta}");
    for text in &texts {
        let role = text.role.as_deref().and_then(Role::by_name).unwrap_or(Role::Document);
        let mut origin = match &text.source {
            Some(source) => Origin::file(&source.file),
            None => Origin::turn(role),
        };
        origin.role = role;
        if let (Some(to), Some(from)) = (&mut origin.source, &text.source) {
            to.line = from.line;
        }
        session.ingest(&text.text, origin, &mut |_, _, _| ControlFlow::Continue(()))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    session.save()?;
    output::note(&format!("read {} texts into session {}", texts.len(), args.session));
    Ok(())
}

fn remove(data: &Path, args: &RemoveArgs) -> anyhow::Result<()> {
    let Some(range) = &args.range else {
        SessionFolder::open(data, &args.session)?.remove()?;
        output::note(&format!("deleted session {}", args.session));
        return Ok(());
    };
    let mut store = open(data, &args.session)?;
    let all = FilterArgs { since: None, role: Vec::new(), source: Vec::new() };
    let orders = chosen(&store, &all, Some(range));
    log_forgotten(store.folder(), range)?;
    for &order in &orders {
        store.forget(order)?;
    }
    store.sync()?;
    let name = &args.session;
    let n = orders.len();
    if n == 0 {
        output::note("forgot nothing: no block has tokens of that range");
        return Ok(());
    }
    output::note(&format!(
        "forgot {n} blocks; `everstream memory compact --session {name}` takes them off the disk, but for \
         what the two newest journals hold of what was read last"
    ));
    Ok(())
}

fn verify(data: &Path, args: &NamedSession) -> anyhow::Result<()> {
    let folder = Arc::new(SessionFolder::open(data, &args.session)?);
    let store = DiskStore::open(Arc::clone(&folder), DiskOptions::default())?;
    let n_blocks = store.metas().len();
    let bar = output::bar(n_blocks as u64, "{msg} {wide_bar} {pos}/{len} blocks {eta}");
    let damage = store.verify(&mut |n| bar.set_position(n as u64))?;
    bar.finish_and_clear();
    let files = damaged_files(&folder)?;
    let mut out = std::io::stdout().lock();
    for damage in &damage {
        let range = damage.tokens.as_ref().map(tokens);
        let (path, bytes) = (damage.path.display(), &damage.bytes);
        if args.json {
            let damage = json!({
                "tokens": damage.tokens.as_ref().map(|t| [t.start.0, t.end.0]),
                "path": damage.path, "bytes": [bytes.start, bytes.end], "what": damage.what,
            });
            writeln!(out, "{damage}")?;
        } else {
            let range = range.unwrap_or("unknown".to_owned());
            let bytes = match bytes.is_empty() {
                true => String::new(),
                false => format!(", bytes {}..{}", bytes.start, bytes.end),
            };
            writeln!(out, "tokens {range}: {} in {path}{bytes}", damage.what)?;
        }
    }
    for (path, what) in &files {
        match args.json {
            true => writeln!(out, "{}", json!({ "path": path, "what": what }))?,
            false => writeln!(out, "{}: {what}", path.display())?,
        }
    }
    let n_damaged = damage.len() + files.len();
    if args.json {
        writeln!(out, "{}", json!({ "blocks": n_blocks, "damaged": n_damaged }))?;
    }
    match n_damaged {
        0 => output::note(&format!("{n_blocks} blocks are whole, and so are states and journals")),
        _ if !files.is_empty() => bail!(
            "{n_damaged} places are damaged, states or journals among them: `chat` says whether that costs \
             anything, and `memory export` saves the texts before"
        ),
        1 => bail!("one place is damaged; all other blocks can be recalled"),
        _ => bail!("{n_damaged} places are damaged; all other blocks can be recalled"),
    }
    Ok(())
}

fn compact(data: &Path, args: &NamedSession) -> anyhow::Result<()> {
    let store = open(data, &args.session)?;
    let (_, compacted) = store.compact()?;
    let (before, after) = (compacted.bytes_before, compacted.bytes_after);
    if args.json {
        let n_segments = compacted.n_segments;
        let result =
            json!({ "segments": n_segments, "bytes_before": before, "bytes_after": after });
        writeln!(std::io::stdout(), "{result}")?;
    } else {
        output::note(&format!("{}, before {}", output::size(after), output::size(before)));
    }
    Ok(())
}
