//! `everstream inspect`: what a model file contains, and the memory that running it needs.
//!
//! Weights are not loaded: everything is read from the file's metadata and tensor table. Whatever
//! the engine cannot run is said and the rest is shown all the same.

mod cache;
mod tensors;

use std::io::{self, Write};

use everstream_hub::{ModelFiles, ModelKind};
use everstream_runtime::SessionConfig;
use everstream_runtime::kv_cache::KvType;
use everstream_runtime::model::gguf::Value as Metadata;
use everstream_runtime::model::{ChatTemplate, GgufFile, ModelConfig, SlidingWindow, Tokenizer};
use serde_json::{Map, Value, json};

use crate::args::{Common, InspectArgs};
use crate::{load, output};

/// Longest metadata value that is shown.
const MAX_SHOWN_CHARS: usize = 200;

pub(crate) fn run(common: &Common, args: &InspectArgs) -> anyhow::Result<()> {
    let mut config = args.cache.session(args.policy);
    config.max_tokens = args.dense.context_limit;
    config.context_tokens = args.context_tokens;
    config.check()?;
    let files = load::files(common, &args.model)?;
    if files.kind == ModelKind::SentenceEncoder {
        return show_encoder(&files, args);
    }
    let report = Report::new(&files, GgufFile::open(&files.main)?, config)?;
    let out = &mut io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", report.json(args))?,
        false => report.print(args, out)?,
    }
    Ok(())
}

/// What is known of a file; what could not be read is among `problems`.
struct Report<'a> {
    files: &'a ModelFiles,
    gguf: GgufFile,
    model: Option<ModelConfig>,
    tokenizer: Option<Tokenizer>,
    has_template: bool,
    cache: Option<cache::Cache>,
    problems: Vec<String>,
}

impl<'a> Report<'a> {
    fn new(files: &'a ModelFiles, gguf: GgufFile, config: SessionConfig) -> anyhow::Result<Self> {
        let mut problems = Vec::new();
        let mut note = |error: anyhow::Error| problems.push(output::one_line(&error));
        let model = ModelConfig::from_gguf(&gguf).map_err(|e| note(e.into())).ok();
        if let Err(error) = gguf.require_supported_tensors() {
            note(error.into());
        }
        let tokenizer = Tokenizer::from_gguf(&gguf).map_err(|e| note(e.into())).ok();
        let template = tokenizer.as_ref().and_then(|tokenizer| {
            ChatTemplate::from_gguf(&gguf, tokenizer).map_err(|e| note(e.into())).ok()
        });
        let has_template = template.is_some_and(|template| !template.is_fallback());
        let cache = match &model {
            Some(model) => Some(cache::Cache::new(config, model)?),
            None => None,
        };
        Ok(Self { files, gguf, model, tokenizer, has_template, cache, problems })
    }

    fn text(&self, key: &str) -> Option<String> {
        Some(shown(&self.gguf.value(key)?))
    }

    fn json(&self, args: &InspectArgs) -> Value {
        let mut result = json!({
            "model": self.files.name,
            "kind": super::models::kind(self.files.kind),
            "path": self.files.main.display().to_string(),
            "file_bytes": self.files.bytes,
            "gguf_version": self.gguf.version(),
            "supported": self.problems.is_empty(),
            "problems": self.problems,
            "architecture": self.text("general.architecture"),
            "name": self.text("general.name"),
            "config": self.model.as_ref().map(config_json),
            "tokenizer": {
                "model": self.text("tokenizer.ggml.model"),
                "pre": self.text("tokenizer.ggml.pre"),
                "chat_template": self.has_template,
                "bos": self.tokenizer.as_ref().and_then(Tokenizer::bos),
                "eos": self.tokenizer.as_ref().map(Tokenizer::eos_ids),
            },
            "weights": tensors::summary_json(&self.gguf),
            "cache": self.cache.as_ref().map(cache::Cache::json),
            "metadata": self.metadata().collect::<Map<_, _>>(),
        });
        if args.tensors {
            result["tensors"] = tensors::list_json(&self.gguf);
        }
        result
    }

    fn metadata(&self) -> impl Iterator<Item = (String, Value)> {
        self.gguf.metadata().map(|(key, value)| {
            let value = match value {
                Metadata::Unsigned(_, n) => json!(n),
                Metadata::Signed(_, n) => json!(n),
                Metadata::Float(_, n) => json!(n),
                Metadata::Bool(flag) => json!(flag),
                Metadata::Str(bytes) => json!(String::from_utf8_lossy(bytes)),
                other => json!(shown(&other)),
            };
            (key.to_owned(), value)
        })
    }

    fn print(&self, args: &InspectArgs, out: &mut dyn Write) -> io::Result<()> {
        for (name, value) in self.lines() {
            writeln!(out, "{name:<16} {value}")?;
        }
        tensors::print_summary(&self.gguf, out)?;
        if let Some(cache) = &self.cache {
            cache.print(out)?;
        }
        if args.metadata || self.model.is_none() {
            writeln!(out, "\nmetadata")?;
            for (key, value) in self.gguf.metadata() {
                writeln!(out, "  {:<44} {}", clean(key), shown(&value))?;
            }
        }
        if args.tensors {
            tensors::print_list(&self.gguf, out)?;
        }
        Ok(())
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let text = |key| self.text(key).unwrap_or_else(|| "(not given)".to_owned());
        let (bytes, version) = (self.files.bytes, self.gguf.version());
        let template = if self.has_template { "its own" } else { "none (ChatML stands in)" };
        let tokenizer = format!("{}, {}", text("tokenizer.ggml.model"), text("tokenizer.ggml.pre"));
        let mut lines = vec![
            ("model", text("general.name")),
            ("file", self.files.main.display().to_string()),
            ("size", format!("{} ({bytes} bytes), GGUF {version}", output::size(bytes))),
            ("architecture", text("general.architecture")),
        ];
        lines.extend(self.problems.iter().map(|problem| ("not supported:", problem.clone())));
        lines.extend(self.model.iter().flat_map(config_lines));
        lines.extend([("tokenizer", tokenizer), ("chat template", template.to_owned())]);
        lines
    }
}

fn config_lines(model: &ModelConfig) -> Vec<(&'static str, String)> {
    let embedding =
        if model.tied_embeddings { "tied to the output" } else { "with its own output" };
    let bias = if model.has_qkv_bias { ", with biases" } else { "" };
    let sliding = match &model.sliding_window {
        Some(SlidingWindow { window_tokens, period, rope_base }) => {
            let which =
                period.map_or("all".to_owned(), |period| format!("all but every {period}th"));
            format!("{which}, {window_tokens} tokens each, with rope base {rope_base}")
        }
        None => "none".to_owned(),
    };
    vec![
        ("layers", model.n_layers.to_string()),
        (
            "heads",
            format!(
                "{} for queries, {} for keys and values, {} dimensions each{bias}",
                model.n_heads, model.n_kv_heads, model.head_dim
            ),
        ),
        ("dimensions", format!("{}, feed-forward {}", model.embedding_dim, model.ffn_dim)),
        ("context length", format!("{} tokens", model.context_length)),
        ("rope base", format!("{}, {} dimensions", model.rope_base, model.rope_dim)),
        ("sliding layers", sliding),
        ("vocabulary", format!("{} tokens, {embedding}", model.vocab_size)),
    ]
}

fn config_json(model: &ModelConfig) -> Value {
    json!({
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "n_kv_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "embedding_dim": model.embedding_dim,
        "ffn_dim": model.ffn_dim,
        "vocab_size": model.vocab_size,
        "context_length": model.context_length,
        "rope_base": model.rope_base,
        "rope_dim": model.rope_dim,
        "norm_eps": model.norm_eps,
        "tied_embeddings": model.tied_embeddings,
        "has_qkv_bias": model.has_qkv_bias,
        "sliding_window": model.sliding_window.map(|sliding| json!({
            "window_tokens": sliding.window_tokens,
            "period": sliding.period,
            "rope_base": sliding.rope_base,
        })),
    })
}

/// The name of a storage type.
fn type_name(ty: KvType) -> &'static str {
    match ty {
        KvType::F32 => "f32",
        KvType::F16 => "f16",
    }
}

/// A metadata value on one line.
fn shown(value: &Metadata<'_>) -> String {
    match value {
        Metadata::Unsigned(_, n) => n.to_string(),
        Metadata::Signed(_, n) => n.to_string(),
        Metadata::Float(_, n) => n.to_string(),
        Metadata::Bool(flag) => flag.to_string(),
        Metadata::Str(bytes) => clean(&String::from_utf8_lossy(bytes)),
        Metadata::Array(array) => format!("{} × {}", array.len(), array.element_type()),
    }
}

/// Text from a file as a terminal may see it.
fn clean(text: &str) -> String {
    output::first_words(text, MAX_SHOWN_CHARS)
}

fn show_encoder(files: &ModelFiles, args: &InspectArgs) -> anyhow::Result<()> {
    let out = &mut io::stdout().lock();
    let kind = super::models::kind(files.kind);
    if args.json {
        let result = json!({
            "model": files.name,
            "kind": kind,
            "path": files.dir.display().to_string(),
            "file_bytes": files.bytes,
            "sha256": files.sha256.map(|hash| hash.to_string()),
        });
        writeln!(out, "{result}")?;
        return Ok(());
    }
    let (folder, size) = (files.dir.display().to_string(), output::size(files.bytes));
    for (name, value) in
        [("model", &*files.name), ("kind", kind), ("folder", &folder), ("weights", &size)]
    {
        writeln!(out, "{name:<16} {value}")?;
    }
    Ok(())
}
