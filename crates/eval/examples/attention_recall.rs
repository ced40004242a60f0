//! Which blocks `attention` has to look at: the nearest, those in the best clusters of keys, or all.
//!
//! `cargo xtask soak attention-recall smollm2|qwen TASK DISTRACTORS LIMIT SEED...` reads the streams of a task of
//! `everstream eval`, and asks its questions with each strategy: how often the first block is of the evidence,
//! and how long the recall takes.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use everstream_eval::{TaskOptions, task};
use everstream_runtime::memory::{Gate, Neighbours, Role, strategy};
use everstream_runtime::{Origin, RecallConfig, Session, SessionConfig};

mod common;

const STRATEGIES: [&str; 5] =
    ["nearest", "attention", "attention-clusters", "attention-all", "hybrid"];

/// What a strategy found.
#[derive(Default)]
struct Row {
    n_right: usize,
    times: Vec<Duration>,
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, task, distractors, limit, seeds @ ..] = &args[..] else {
        bail!("use attention-recall smollm2|qwen TASK DISTRACTORS LIMIT SEED...")
    };
    let (model, encoder) = (common::model(model)?, common::encoder()?);
    let mut options = TaskOptions {
        data: common::data(task)?,
        limit: limit.parse()?,
        distractors: Some(distractors.parse()?),
        unanswerable: false,
        distances: Vec::new(),
        seed: 0,
    };
    let task = task::by_name(task).with_context(|| format!("no task {task}"))?;
    let (mut rows, mut n_questions, mut n_blocks) = (STRATEGIES.map(|_| Row::default()), 0, 0);
    let mut making = Duration::ZERO;
    for seed in seeds {
        options.seed = seed.parse()?;
        for stream in task.streams(&options)? {
            let mut session = Session::new(
                Arc::clone(&model),
                Some(Arc::clone(&encoder)),
                SessionConfig::default(),
            )?;
            session.begin()?;
            let mut documents = Vec::new();
            for question in &stream.questions {
                for document in &stream.documents[documents.len()..question.after] {
                    let start = session.n_tokens();
                    let origin = Origin::turn(Role::Document);
                    session.ingest(document, origin, &mut |_, _, _| ControlFlow::Continue(()))?;
                    documents.push(start..session.n_tokens());
                }
                if question.after != stream.documents.len() {
                    bail!("questions of this task stand in the middle of a stream");
                }
                // Words are indexed and clusters made once, and shared by the branches.
                for name in ["hybrid", "attention-clusters"] {
                    session.set_recall(recall(name)?);
                    let start = Instant::now();
                    session.recall(&question.query)?;
                    making = making.max(start.elapsed());
                }
                for (name, row) in STRATEGIES.iter().zip(&mut rows) {
                    let mut branch = session.branch()?;
                    branch.set_recall(recall(name)?);
                    let start = Instant::now();
                    let recalled = branch.recall(&question.query)?;
                    row.times.push(start.elapsed());
                    let is_right = recalled.blocks.iter().any(|block| {
                        question.evidence.iter().any(|&i| {
                            let document = &documents[i];
                            block.part.start.0 < document.end && document.start < block.part.end.0
                        })
                    });
                    row.n_right += usize::from(is_right);
                }
                n_questions += 1;
            }
            n_blocks = n_blocks.max(session.memory().map_or(0, |memory| memory.metas().len()));
        }
    }
    println!(
        "{}: {n_questions} questions, streams of up to {n_blocks} blocks; the first recall through clusters takes {:.2} s\n",
        args.join(" "),
        making.as_secs_f64()
    );
    println!("| strategy | first block right | median time of a recall |");
    println!("|---|---|---|");
    for (name, row) in STRATEGIES.iter().zip(&mut rows) {
        row.times.sort();
        let median = row.times.get(row.times.len() / 2).map_or(0.0, Duration::as_secs_f64);
        let right = 100.0 * row.n_right as f64 / n_questions as f64;
        println!("| `{name}` | {right:.1} % | {:.0} ms |", 1000.0 * median);
    }
    Ok(())
}

/// Recalls one block, whatever its distance.
fn recall(name: &str) -> anyhow::Result<RecallConfig> {
    Ok(RecallConfig {
        strategy: strategy::by_name(name).context("an unknown strategy")?,
        gate: Gate::OPEN,
        neighbours: Neighbours::NONE,
        ..RecallConfig::default()
    })
}
