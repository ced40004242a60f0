//! What is worth keeping of a memory that is too small for all?
//!
//! `cargo xtask soak keep smollm2|qwen TASK[:DISTANCE,...] DISTRACTORS LIMIT SEED...` reads the streams of a task of
//! `everstream eval`, copies their blocks into stores that have room for a part of them, by what they keep, and
//! asks all questions of each.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use anyhow::{Context, bail};
use everstream_eval::{Question, TaskOptions, task};
use everstream_runtime::kv_cache::TokenPos;
use everstream_runtime::memory::{
    Block, BlockStore, DiskOptions, DiskStore, Distance, Embedder, ExactIndex, Gate, Keep, Maker,
    Memory, MemoryConfig, Neighbours, RamStore, RecallRequest, Role, SessionFolder, strategy,
};
use everstream_runtime::{Origin, Session, SessionConfig};

mod common;

/// Shares of all bytes that there is room for: one in so many.
const PARTS: [usize; 3] = [2, 4, 8];
/// Segments that a store may have. More of them keep more evenly, in smaller files.
const N_SEGMENTS: usize = 6;
const RULES: [Rule; 3] = [Rule::Keep(Keep::Newest), Rule::Keep(Keep::Distinct), Rule::Random];

#[derive(Clone, Copy)]
enum Rule {
    Keep(Keep),
    /// The control: any of them.
    Random,
}

/// Of the questions, those whose evidence is still there, and those for which it was recalled first.
#[derive(Clone, Copy, Default)]
struct Cell {
    n_kept: usize,
    n_recalled: usize,
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, task, distractors, limit, seeds @ ..] = &args[..] else {
        bail!("use keep smollm2|qwen TASK[:DISTANCE,...] DISTRACTORS LIMIT SEED...")
    };
    let (name, distances) = task.split_once(':').unwrap_or((task, ""));
    let distances = distances.split(',').filter(|distance| !distance.is_empty());
    let (model, encoder) = (common::model(model)?, common::encoder()?);
    let data = common::data(name)?;
    let mut options = TaskOptions {
        limit: limit.parse()?,
        distractors: data.as_ref().map(|_| distractors.parse()).transpose()?,
        data,
        unanswerable: false,
        distances: distances.map(str::parse).collect::<Result<_, _>>()?,
        seed: 0,
    };
    let task = task::by_name(name).with_context(|| format!("no task {name}"))?;
    let mut cells = [[Cell::default(); PARTS.len()]; RULES.len()];
    let mut n_questions = 0;
    for seed in seeds {
        options.seed = seed.parse()?;
        for stream in task.streams(&options)? {
            let config = SessionConfig::default();
            let mut session = Session::new(Arc::clone(&model), Some(Arc::clone(&encoder)), config)?;
            session.begin()?;
            let mut documents = Vec::new();
            for document in &stream.documents {
                let (start, origin) = (session.n_tokens(), Origin::turn(Role::Document));
                session.ingest(document, origin, &mut |_, _, _| ControlFlow::Continue(()))?;
                documents.push(TokenPos(start)..TokenPos(session.n_tokens()));
            }
            let memory = session.memory().context("no memory")?;
            let blocks: Vec<Arc<Block>> =
                (0..memory.metas().len()).map(|i| memory.block(i)).collect::<Result<_, _>>()?;
            n_questions += stream.questions.len();
            for (rule, cells) in RULES.iter().zip(&mut cells) {
                for (&part, cell) in PARTS.iter().zip(cells) {
                    let store = kept(*rule, part, &blocks)?;
                    ask(store, &blocks, &encoder, (&stream.questions, &documents), cell)?;
                }
            }
        }
    }
    println!(
        "{}: {n_questions} questions; evidence that is there / recalled first\n",
        args.join(" ")
    );
    println!("| kept | {} |", PARTS.map(|part| format!("1 / {part}")).join(" | "));
    println!("|---|{}", "---|".repeat(PARTS.len()));
    for (rule, cells) in RULES.iter().zip(&cells) {
        let name = match rule {
            Rule::Keep(keep) => keep.name(),
            Rule::Random => "random",
        };
        let percent = |n: usize| 100.0 * n as f64 / n_questions as f64;
        let cells =
            cells.map(|c| format!("{:.0} / {:.0} %", percent(c.n_kept), percent(c.n_recalled)));
        println!("| {name} | {} |", cells.join(" | "));
    }
    Ok(())
}

/// A store with room for one in `part` bytes, to which all blocks were given.
fn kept(rule: Rule, part: usize, blocks: &[Arc<Block>]) -> anyhow::Result<Box<dyn BlockStore>> {
    let Rule::Keep(keep) = rule else {
        let mut store = RamStore::new();
        let mut rng = everstream_runtime::kv_cache::rng::SplitMix64::new(1);
        for block in blocks {
            if rng.below(part) == 0 {
                store.append(Arc::clone(block))?;
            }
        }
        return Ok(Box::new(store));
    };
    let n_bytes: usize = blocks.iter().map(|block| block.kv().bytes() + 1000).sum();
    let segment_bytes = (n_bytes / part / N_SEGMENTS) as u64;
    let data = tempfile::tempdir()?;
    let folder = Arc::new(SessionFolder::create(data.path(), "main")?);
    let options = DiskOptions {
        maker: Some(Maker::default()),
        segment_bytes,
        max_bytes: Some(segment_bytes * N_SEGMENTS as u64),
        keep,
        ..DiskOptions::default()
    };
    let mut store = DiskStore::open(folder, options)?;
    for block in blocks {
        store.append(Arc::clone(block))?;
    }
    let mut left = RamStore::new();
    for order in 0..store.metas().len() {
        if !store.metas()[order].is_forgotten {
            left.append(store.get(order)?)?;
        }
    }
    Ok(Box::new(left))
}

fn ask(
    store: Box<dyn BlockStore>,
    all: &[Arc<Block>],
    encoder: &Arc<dyn Embedder>,
    (questions, documents): (&[Question], &[Range<TokenPos>]),
    cell: &mut Cell,
) -> anyhow::Result<()> {
    let shape = all.first().context("no block")?.kv().shape();
    let config = MemoryConfig {
        gate: Gate::OPEN,
        strategy: strategy::by_name("hybrid").context("no strategy")?,
        ..MemoryConfig::new("main", shape)
    };
    let index = ExactIndex::new(encoder.dim(), Distance::Cosine)?;
    let mut memory = Memory::new(config, store, Box::new(index), Arc::clone(encoder))?;
    let end = documents.last().map_or(TokenPos(0), |document| document.end);
    for question in questions {
        let is_evidence = |range: &Range<TokenPos>| {
            question
                .evidence
                .iter()
                .any(|&i| range.start < documents[i].end && documents[i].start < range.end)
        };
        cell.n_kept += usize::from(memory.metas().iter().any(|meta| is_evidence(&meta.range)));
        let recall = memory.recall(&RecallRequest {
            max_blocks: 1,
            neighbours: Neighbours::NONE,
            ..RecallRequest::new(&question.query, TokenPos(0)..end)
        })?;
        let is_right = recall.blocks.iter().any(|block| is_evidence(&block.part));
        cell.n_recalled += usize::from(is_right);
    }
    Ok(())
}
