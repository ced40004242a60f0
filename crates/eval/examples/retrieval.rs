//! Is what a question asks for recalled? No model reads anything.
//!
//! `cargo xtask soak retrieval TASK[:DISTANCE,...] LIMIT SEED...` makes the streams of a task of
//! `everstream eval`, and asks all their questions of a memory, by strategy. Of SQuAD, only questions about
//! every second article are asked: settings are chosen on them, and judged on the others.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, bail};
use everstream_eval::{Question, Stream, TaskOptions, records, task};
use everstream_runtime::encode;
use everstream_runtime::kv_cache::TokenPos;
use everstream_runtime::memory::{
    BlockKv, Distance, Embedder, ExactIndex, Fusion, Gate, Hybrid, KvShape, KvType, Memory,
    MemoryConfig, Nearest, Neighbours, NewBlock, RamStore, RecallRequest, Role, Strategy,
};
use everstream_runtime::model::Model;

mod common;

/// The smallest keys and values there are: nothing looks at them.
const SHAPE: KvShape = KvShape { n_layers: 1, n_kv_heads: 1, head_dim: 2 };

/// How much is recalled, in the order of the table's columns: the best block, the best block with its
/// paragraph (the default), and as many of the best blocks as fit.
const AMOUNTS: [(usize, Neighbours); 3] =
    [(1, Neighbours::NONE), (1, Neighbours::Paragraph), (16, Neighbours::NONE)];

/// A way to choose.
struct Row {
    label: String,
    strategy: Arc<dyn Strategy>,
    gate: Gate,
    /// For each question the share of the evidence of which something was recalled; for the first amount,
    /// whether any was.
    found: Vec<[f64; AMOUNTS.len()]>,
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [task, limit, seeds @ ..] = &args[..] else {
        bail!("use retrieval TASK[:DISTANCE,...] LIMIT SEED...")
    };
    let (model, encoder) = (common::model("qwen")?, common::encoder()?);
    let (name, distances) = task.split_once(':').unwrap_or((task, ""));
    let distances = distances.split(',').filter(|distance| !distance.is_empty());
    let mut options = TaskOptions {
        data: common::data(name)?,
        limit: limit.parse()?,
        distractors: None,
        unanswerable: false,
        distances: distances.map(str::parse).collect::<Result<_, _>>()?,
        seed: 0,
    };
    let asked = match &options.data {
        Some(data) if name == "squad" => Some(every_second_article(data)?),
        _ => None,
    };
    let task = task::by_name(name).with_context(|| format!("no task {name}"))?;
    let mut rows = rows();
    for seed in seeds {
        options.seed = seed.parse()?;
        for mut stream in task.streams(&options)? {
            let is_asked = |q: &Question| asked.as_ref().is_none_or(|asked| asked.contains(&q.id));
            stream.questions.retain(is_asked);
            ask(&model, &encoder, &stream, &mut rows)?;
        }
    }
    println!("{}, seeds {}, {} questions\n", args[0], seeds.join(" "), rows[0].found.len());
    println!(
        "| strategy | first block right | with its paragraph, evidence found | blocks of 300 tokens |"
    );
    println!("|---|---|---|---|");
    for row in &rows {
        let mean = |i: usize| {
            100.0 * row.found.iter().map(|found| found[i]).sum::<f64>() / row.found.len() as f64
        };
        println!("| {} | {:.1} % | {:.1} % | {:.1} % |", row.label, mean(0), mean(1), mean(2));
    }
    Ok(())
}

/// The ids of the questions about every second article.
fn every_second_article(data: &Path) -> anyhow::Result<HashSet<String>> {
    let mut titles: Vec<String> = Vec::new();
    let mut ids = HashSet::new();
    for record in records(data)? {
        let field = |name: &str| record.value[name].as_str().unwrap_or_default().to_owned();
        if titles.last() != Some(&field("title")) {
            titles.push(field("title"));
        }
        if titles.len() % 2 == 1 {
            ids.insert(field("id"));
        }
    }
    Ok(ids)
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |label: String, strategy: Arc<dyn Strategy>, gate| {
        rows.push(Row { label, strategy, gate, found: Vec::new() });
    };
    add("nearest".to_owned(), Arc::new(Nearest), Gate::OPEN);
    for k in [3.0, 10.0, 60.0] {
        let fusion = Fusion { k, ..Fusion::default() };
        add(format!("ranks fused, k = {k}"), Arc::new(fusion), Gate::OPEN);
    }
    for weight in [0.1, 0.2, 0.3, 0.4, 0.6, 1.0, 1e6] {
        let hybrid = Hybrid { weight, ..Hybrid::default() };
        add(format!("hybrid, weight {weight}"), Arc::new(hybrid), Gate::OPEN);
    }
    for max in [0.5, 0.6, 0.7, 0.8] {
        let gate = Gate { max_distance: Some(max) };
        add(format!("hybrid, gate {max}"), Arc::new(Hybrid::default()), gate);
    }
    rows
}

/// Asks all questions of a stream in all ways.
fn ask(
    model: &Model,
    encoder: &Arc<dyn Embedder>,
    stream: &Stream,
    rows: &mut [Row],
) -> anyhow::Result<()> {
    let config = MemoryConfig::new("retrieval", SHAPE);
    let index = ExactIndex::new(encoder.dim(), Distance::Cosine)?;
    let mut memory =
        Memory::new(config, Box::new(RamStore::new()), Box::new(index), encoder.clone())?;
    let mut documents: Vec<Range<TokenPos>> = Vec::new();
    for question in &stream.questions {
        for document in &stream.documents[documents.len()..question.after] {
            documents.push(remember(&mut memory, model, document)?);
        }
        let embedding = memory.embed_query(&question.query)?;
        let end = documents.last().map_or(TokenPos(0), |document| document.end);
        let evidence = || question.evidence.iter().map(|&number| &documents[number]);
        for row in &mut *rows {
            memory.set_strategy(row.strategy.clone());
            memory.set_gate(row.gate);
            let mut found = [0.0; AMOUNTS.len()];
            for (&(max_blocks, neighbours), found) in AMOUNTS.iter().zip(&mut found) {
                let recall = memory.recall(&RecallRequest {
                    max_blocks,
                    neighbours,
                    embedding: Some(&embedding),
                    ..RecallRequest::new(&question.query, TokenPos(0)..end)
                })?;
                let is_found = |document: &&Range<TokenPos>| {
                    let parts = recall.blocks.iter().map(|block| &block.part);
                    parts.into_iter().any(|p| p.start < document.end && document.start < p.end)
                };
                *found = evidence().filter(is_found).count() as f64 / evidence().count() as f64;
            }
            found[0] = f64::from(found[0] > 0.0);
            row.found.push(found);
        }
    }
    Ok(())
}

/// Stores a document as blocks, and says where it stands.
fn remember(memory: &mut Memory, model: &Model, text: &str) -> anyhow::Result<Range<TokenPos>> {
    let start = memory.metas().last().map_or(0, |meta| meta.range.end.0);
    let tokens = encode(model, text)?;
    let (mut cutter, mut lengths) = (memory.cutter(), Vec::new());
    for &token in &tokens {
        cutter.push(model.tokenizer().token_bytes(token), &mut lengths);
    }
    lengths.push(tokens.len() - lengths.iter().sum::<usize>());
    let mut first = 0;
    for n_tokens in lengths.into_iter().filter(|&n| n > 0) {
        let tokens = &tokens[first..first + n_tokens];
        let bytes = tokens.iter().flat_map(|&token| model.tokenizer().token_bytes(token));
        let text = String::from_utf8_lossy(&bytes.copied().collect::<Vec<u8>>()).into_owned();
        let zeros = vec![0.0; SHAPE.components(n_tokens).unwrap_or(0)];
        let position = |i: usize| TokenPos(start + i as u64);
        memory.remember(NewBlock {
            range: position(first)..position(first + n_tokens),
            tokens: tokens.to_vec(),
            text,
            role: Role::Document,
            source: None,
            written_at: SystemTime::UNIX_EPOCH,
            kv: BlockKv::new(SHAPE, n_tokens, &zeros, &zeros, KvType::F32)?,
        })?;
        first += n_tokens;
    }
    Ok(TokenPos(start)..TokenPos(start + tokens.len() as u64))
}
