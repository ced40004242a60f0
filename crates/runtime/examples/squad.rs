//! Question answering over streams: 40 SQuAD paragraphs are read once, then the state is branched
//! for each question about a paragraph that has left the window.
//!
//! `cargo xtask soak squad [N_STREAMS [QUESTIONS_PER_STREAM]]` prints a Markdown table.

use std::collections::HashMap;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::Instant;

use everstream_runtime::kv_cache::{Place, TokenPos};
use everstream_runtime::memory::{Embedder, Memory, MiniLm, Recall, RecalledBlock, Role};
use everstream_runtime::model::Model;
use everstream_runtime::{GenerateOptions, Origin, Policy, Session, SessionConfig};
use serde::Deserialize;

mod common;

const PARAGRAPHS: usize = 40;
const CONTEXT_TOKENS: usize = 300;
/// Tokens at the end of the stream about which nothing is asked: the largest window, and a margin.
const RECENT: u64 = 900;

#[derive(Clone, Deserialize)]
struct Record {
    title: String,
    context: String,
    question: String,
    answers: Vec<String>,
    is_impossible: bool,
}

/// Sums of F1, exact match and whether the gold paragraph was among the recalled blocks.
#[derive(Default)]
struct Sums {
    f1: f64,
    em: f64,
    hits: f64,
    n: f64,
}

struct Stream {
    paragraphs: Vec<String>,
    /// Question and the number of its paragraph.
    questions: Vec<(Record, usize)>,
}

fn main() -> anyhow::Result<()> {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let n_streams = numbers.first().copied().unwrap_or(5);
    let per_stream = numbers.get(1).copied().unwrap_or(20);
    let model = common::model("EVERSTREAM_TEST_QWEN")?;
    let minilm = common::path("EVERSTREAM_TEST_MINILM")?;
    let encoder: Arc<dyn Embedder> = Arc::new(MiniLm::open(&minilm)?);
    let data = common::path("EVERSTREAM_TEST_DATA")?.join("squad-v2-dev.jsonl.gz");
    let records: Vec<Record> = common::records(&data)?;
    let mut table: Vec<(&str, Sums)> = Vec::new();
    let start = Instant::now();
    for (i, stream) in streams(&records, n_streams, per_stream).iter().enumerate() {
        ask_all(&model, &encoder, stream, &mut table)?;
        eprintln!("stream {} of {n_streams} after {:.0} s", i + 1, start.elapsed().as_secs_f64());
        print_table(&model, &table);
    }
    Ok(())
}

fn print_table(model: &Model, table: &[(&str, Sums)]) {
    println!("\n{}, {} questions\n", model.config().name, table.first().map_or(0.0, |r| r.1.n));
    println!("| what the model sees | F1 | EM | gold paragraph recalled |\n|---|---|---|---|");
    for (label, s) in table {
        println!(
            "| {label} | {:.1} | {:.0} | {:.0} % |",
            100.0 * s.f1 / s.n,
            100.0 * s.em / s.n,
            100.0 * s.hits / s.n
        );
    }
}

/// Streams of consecutive paragraphs from several articles; answerable questions, spread evenly.
fn streams(records: &[Record], n_streams: usize, per_stream: usize) -> Vec<Stream> {
    let mut paragraphs: Vec<(String, Vec<Record>)> = Vec::new();
    for record in records {
        let known = paragraphs.last().is_some_and(|p| p.0 == record.context);
        if !known {
            paragraphs.push((record.context.clone(), Vec::new()));
        }
        if let Some((_, questions)) = paragraphs.last_mut()
            && !record.is_impossible
        {
            questions.push(record.clone());
        }
    }
    let titles: Vec<&str> = records.iter().map(|r| r.title.as_str()).collect();
    eprintln!(
        "{} paragraphs of {} articles",
        paragraphs.len(),
        titles.iter().collect::<std::collections::HashSet<_>>().len()
    );
    // Every n-th paragraph, so that a stream mixes articles.
    let stride = paragraphs.len() / PARAGRAPHS;
    (0..n_streams.min(stride))
        .map(|offset| {
            let chosen: Vec<_> =
                paragraphs.iter().skip(offset).step_by(stride).take(PARAGRAPHS).collect();
            let mut questions = Vec::new();
            // The last paragraphs are still in the window.
            for round in 0.. {
                for (i, (_, all)) in chosen[..PARAGRAPHS - 6].iter().enumerate() {
                    questions.extend(all.get(round).map(|q| (q.clone(), i)));
                }
                if questions.len() >= per_stream {
                    break;
                }
            }
            let step = (questions.len() / per_stream).max(1);
            let questions = questions.into_iter().step_by(step).take(per_stream).collect();
            Stream { paragraphs: chosen.iter().map(|p| p.0.clone()).collect(), questions }
        })
        .collect()
}

/// A session that has read the paragraphs, and where each of them lies.
fn read(
    model: &Arc<Model>,
    encoder: &Arc<dyn Embedder>,
    config: SessionConfig,
    paragraphs: &[String],
) -> anyhow::Result<(Session, Vec<Range<u64>>)> {
    let mut session = Session::new(Arc::clone(model), Some(Arc::clone(encoder)), config)?;
    let mut ranges = Vec::new();
    for paragraph in paragraphs {
        let first = session.n_tokens();
        let tokens = session.encode(&format!("{paragraph}\n\n"))?;
        session.append(&tokens, Origin::turn(Role::Document))?;
        ranges.push(first..session.n_tokens());
    }
    session.end_turn()?;
    Ok((session, ranges))
}

fn ask_all(
    model: &Arc<Model>,
    encoder: &Arc<dyn Embedder>,
    stream: &Stream,
    table: &mut Vec<(&'static str, Sums)>,
) -> anyhow::Result<()> {
    let base = SessionConfig::default();
    let config = |policy| SessionConfig { policy, max_tokens: 16_384, ..base.clone() };
    let (dense, _) = read(model, encoder, config(Policy::Dense), &stream.paragraphs)?;
    let wide = SessionConfig { window_tokens: 812, ..config(Policy::Sink) };
    let (sink, _) = read(model, encoder, wide, &stream.paragraphs)?;
    let mut between = config(Policy::Remember);
    between.recall.place = Place::Between;
    let (between, _) = read(model, encoder, between, &stream.paragraphs)?;
    let (near, ranges) = read(model, encoder, config(Policy::Remember), &stream.paragraphs)?;
    for (record, paragraph) in &stream.questions {
        let gold = ranges[*paragraph].clone();
        if gold.end + RECENT > near.n_tokens() {
            continue;
        }
        let mut add = |label, session: &mut Session, hit: bool| -> anyhow::Result<()> {
            let answer = answer(session, &record.question)?;
            let sums = row(table, label);
            sums.f1 += best(record, |gold| f1(&answer, gold));
            sums.em += best(record, |gold| f64::from(normalise(&answer) == normalise(gold)));
            sums.hits += f64::from(hit);
            sums.n += 1.0;
            Ok(())
        };
        let alone = [stream.paragraphs[*paragraph].clone()];
        let (mut alone, _) = read(model, encoder, config(Policy::Dense), &alone)?;
        add("the paragraph alone (ceiling)", &mut alone, true)?;
        add("dense: full attention over the stream", &mut dense.branch()?, true)?;
        add("sink, 4 + 812", &mut sink.branch()?, false)?;
        for (label, session) in [
            ("remember, gold paragraph, near", &near),
            ("remember, gold paragraph, between", &between),
        ] {
            let mut branch = session.branch()?;
            let recall = gold_blocks(branch.memory().expect("it remembers"), &gold)?;
            branch.insert(recall)?;
            add(label, &mut branch, true)?;
        }
        for (label, session, max_blocks) in [
            ("remember, best block, near", &near, 1),
            ("remember, 2 best blocks, near", &near, 2),
            ("remember, 4 best blocks, near", &near, 4),
            ("remember, 4 best blocks, between", &between, 4),
        ] {
            let mut branch = session.branch()?;
            let recall = branch.recall_up_to(&record.question, max_blocks)?;
            let hit = recall.blocks.iter().any(|b| overlap(&b.part, &gold));
            add(label, &mut branch, hit)?;
        }
    }
    Ok(())
}

fn row<'t>(table: &'t mut Vec<(&'static str, Sums)>, label: &'static str) -> &'t mut Sums {
    let at = table.iter().position(|r| r.0 == label).unwrap_or_else(|| {
        table.push((label, Sums::default()));
        table.len() - 1
    });
    &mut table[at].1
}

fn overlap(part: &Range<TokenPos>, gold: &Range<u64>) -> bool {
    part.start.0 < gold.end && gold.start < part.end.0
}

/// All blocks of a paragraph, in stream order, as far as they fit.
fn gold_blocks(memory: &Memory, gold: &Range<u64>) -> anyhow::Result<Recall> {
    let mut recall = Recall::default();
    let mut n_tokens = 0;
    for order in 0..memory.metas().len() {
        if overlap(&memory.metas()[order].range, gold) {
            let block = RecalledBlock::whole(memory.block(order)?, 0.0);
            if n_tokens + block.n_tokens() <= CONTEXT_TOKENS {
                n_tokens += block.n_tokens();
                recall.blocks.push(block);
            }
        }
    }
    Ok(recall)
}

fn answer(session: &mut Session, question: &str) -> anyhow::Result<String> {
    let turn = format!("Question: {question}\nShort answer:");
    let tokens = session.encode(&turn)?;
    session.append(&tokens, Origin::turn(Role::User))?;
    let options = GenerateOptions {
        max_tokens: 24,
        stop: vec!["\n".to_owned()],
        ..GenerateOptions::default()
    };
    Ok(session.generate(&options, &mut |_| ControlFlow::Continue(()))?.text)
}

fn best(record: &Record, score: impl Fn(&str) -> f64) -> f64 {
    record.answers.iter().map(|gold| score(gold)).fold(0.0, f64::max)
}

/// As the official script of SQuAD 2.0: lower case, no punctuation, no articles, single spaces.
fn normalise(text: &str) -> Vec<String> {
    let text: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let words = text.split_whitespace().filter(|w| !["a", "an", "the"].contains(w));
    words.map(str::to_owned).collect()
}

fn f1(answer: &str, gold: &str) -> f64 {
    let (answer, gold) = (normalise(answer), normalise(gold));
    let mut left: HashMap<&String, usize> = HashMap::new();
    for word in &gold {
        *left.entry(word).or_default() += 1;
    }
    let mut common = 0.0;
    for word in &answer {
        if let Some(n) = left.get_mut(word).filter(|n| **n > 0) {
            *n -= 1;
            common += 1.0;
        }
    }
    if common == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (common / answer.len() as f64, common / gold.len() as f64);
    2.0 * precision * recall / (precision + recall)
}
