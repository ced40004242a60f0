//! Which block comes first: is it of the paragraph that a question is about?
//!
//! `cargo xtask soak retrieval HALF SEED...` draws streams of 40 SQuAD paragraphs as the program
//! `squad` does and asks all their answerable questions; no model reads anything. HALF is `tune` or
//! `report`.

use std::sync::Arc;
use std::time::SystemTime;

use anyhow::bail;
use everstream_runtime::encode;
use everstream_runtime::kv_cache::TokenPos;
use everstream_runtime::memory::{
    BlockKv, Distance, Embedder, ExactIndex, Fusion, Gate, Hybrid, KvShape, KvType, Memory,
    MemoryConfig, MiniLm, Nearest, NewBlock, RamStore, RecallRequest, Role, Strategy,
};
use everstream_runtime::model::Model;

mod common;
#[path = "common/squad_streams.rs"]
mod squad_streams;

use squad_streams::{Record, Stream, half_of, streams};

/// The smallest keys and values there are: nothing looks at them.
const SHAPE: KvShape = KvShape { n_layers: 1, n_kv_heads: 1, head_dim: 2 };

/// A way to choose.
struct Row {
    label: String,
    strategy: Arc<dyn Strategy>,
    gate: Gate,
    /// How often the first block was right, and one of the blocks of two.
    right: [usize; 2],
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [half, seeds @ ..] = &args[..] else { bail!("use retrieval HALF SEED...") };
    let model = common::model("EVERSTREAM_TEST_QWEN")?;
    let encoder: Arc<dyn Embedder> =
        Arc::new(MiniLm::open(&common::path("EVERSTREAM_TEST_MINILM")?)?);
    let data = common::path("EVERSTREAM_TEST_DATA")?.join("squad-v2-dev.jsonl.gz");
    let records: Vec<Record> = half_of(common::records(&data)?, half)?;

    let (mut rows, mut n) = (rows(), 0);
    for seed in seeds {
        for stream in streams(&records, usize::MAX, usize::MAX, seed.parse()?) {
            n += stream.questions.len();
            ask(&model, &encoder, &stream, &mut rows)?;
        }
    }
    println!("{half}, seeds {}, {n} questions\n", seeds.join(" "));
    println!("| strategy | first block right | one of two right |\n|---|---|---|");
    for row in &rows {
        let [one, two] = row.right.map(|right| 100.0 * right as f64 / n as f64);
        println!("| {} | {one:.1} % | {two:.1} % |", row.label);
    }
    Ok(())
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |label: String, strategy: Arc<dyn Strategy>, gate| {
        rows.push(Row { label, strategy, gate, right: [0; 2] });
    };
    add("nearest".to_owned(), Arc::new(Nearest), Gate::OPEN);
    for k in [3.0, 10.0, 60.0] {
        let fusion = Fusion { k, ..Fusion::default() };
        add(format!("ranks fused, k = {k}"), Arc::new(fusion), Gate::OPEN);
    }
    for weight in [0.1, 0.2, 0.3, 0.4, 0.6, 1.0, 1e6] {
        let hybrid = Hybrid { weight, ..Hybrid::default() };
        add(format!("similarity + {weight} words"), Arc::new(hybrid), Gate::OPEN);
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
    let mut paragraphs = Vec::new();
    for paragraph in &stream.paragraphs {
        let start = memory.metas().last().map_or(TokenPos(0), |meta| meta.range.end);
        remember(&mut memory, model, &format!("{paragraph}\n\n"), start)?;
        let end = memory.metas().last().map_or(start, |meta| meta.range.end);
        paragraphs.push(start..end);
    }
    let end = paragraphs.last().map_or(TokenPos(0), |range| range.end);
    for (record, paragraph) in &stream.questions {
        let embedding = memory.embed_query(&record.question)?;
        for row in &mut *rows {
            memory.set_strategy(row.strategy.clone());
            memory.set_gate(row.gate);
            for (max_blocks, right) in [1, 2].into_iter().zip(&mut row.right) {
                let request = RecallRequest {
                    max_blocks,
                    embedding: Some(&embedding),
                    ..RecallRequest::new(&record.question, TokenPos(0)..end)
                };
                let gold = &paragraphs[*paragraph];
                let recall = memory.recall(&request)?;
                *right += usize::from(recall.blocks.iter().any(|b| gold.contains(&b.part.start)));
            }
        }
    }
    Ok(())
}

/// Stores a paragraph as blocks.
fn remember(memory: &mut Memory, model: &Model, text: &str, start: TokenPos) -> anyhow::Result<()> {
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
        let position = |i: usize| TokenPos(start.0 + i as u64);
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
    Ok(())
}
