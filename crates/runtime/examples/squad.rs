//! Question answering over streams: 40 SQuAD paragraphs are read once, then the state is branched
//! for each question about a paragraph that has left the window, and for each way to recall.
//!
//! `cargo xtask soak squad MODEL HALF N_STREAMS QUESTIONS_PER_STREAM SEED [ROW…]` prints a Markdown
//! table. MODEL is `qwen` or `smollm2`; HALF is `tune` (four articles, on which settings are
//! chosen) or `report` (the other four); rows whose label contains one of ROW are computed.

use std::collections::HashMap;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use everstream_runtime::kv_cache::{Place, TokenPos};
use everstream_runtime::memory::strategy::by_name;
use everstream_runtime::memory::{
    Embedder, Gate, Memory, MiniLm, Recall, RecallOrder, RecalledBlock, Role,
};
use everstream_runtime::model::Model;
use everstream_runtime::{GenerateOptions, Origin, Policy, RecallConfig, Session, SessionConfig};
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

/// Sums of F1, its square, exact match and whether the gold paragraph was among what was recalled.
#[derive(Default)]
struct Sums {
    f1: f64,
    f1_squares: f64,
    em: f64,
    hits: f64,
    tokens: f64,
    n: f64,
}

struct Stream {
    paragraphs: Vec<String>,
    /// Question and the number of its paragraph.
    questions: Vec<(Record, usize)>,
}

/// What the model sees besides the question.
#[derive(Clone)]
enum Sees {
    /// The paragraph and nothing else.
    Alone,
    /// The whole stream.
    Dense,
    /// Sinks and a window of the budget of those that recall.
    Sink,
    /// What is recalled for the question.
    Recalled(RecallConfig),
    /// The paragraphs that these blocks are from, whole, as far as they fit.
    Paragraphs(RecallConfig),
    /// All blocks of the right paragraph.
    Gold(Place),
    /// The text of what would be recalled, read in front of the question.
    Text(RecallConfig),
    /// As the other, with so many tokens left in the window.
    Shrunk(usize, Box<Sees>),
}

fn rows() -> Vec<(String, Sees)> {
    let recall = |strategy: &str, max_blocks| RecallConfig {
        strategy: by_name(strategy).expect("a known strategy"),
        max_blocks,
        ..RecallConfig::default()
    };
    let mut rows = vec![
        ("the paragraph alone (ceiling)".to_owned(), Sees::Alone),
        ("dense: full attention over the stream".to_owned(), Sees::Dense),
        ("sink, 4 + 812".to_owned(), Sees::Sink),
        ("gold paragraph, near".to_owned(), Sees::Gold(Place::Near)),
        ("gold paragraph, between".to_owned(), Sees::Gold(Place::Between)),
    ];
    for n in [1, 2, 3, 4] {
        rows.push((format!("nearest {n}, near"), Sees::Recalled(recall("nearest", n))));
    }
    for n in [2, 4] {
        let stream = RecallConfig { order: RecallOrder::Stream, ..recall("nearest", n) };
        rows.push((format!("nearest {n}, near, stream order"), Sees::Recalled(stream)));
        let between = RecallConfig { place: Place::Between, ..recall("nearest", n) };
        rows.push((format!("nearest {n}, between"), Sees::Recalled(between)));
        let open = RecallConfig { gate: Gate::OPEN, ..recall("nearest", n) };
        rows.push((format!("nearest {n}, near, no gate"), Sees::Recalled(open)));
    }
    for n in [1, 2] {
        let config = recall("nearest", n);
        rows.push((format!("paragraph of nearest {n}, near"), Sees::Paragraphs(config)));
        let config = RecallConfig { place: Place::Between, ..recall("nearest", n) };
        rows.push((format!("paragraph of nearest {n}, between"), Sees::Paragraphs(config)));
        rows.push((format!("text of nearest {n}"), Sees::Text(recall("nearest", n))));
    }
    for strategy in everstream_runtime::memory::strategy::ALL.into_iter().skip(1) {
        for n in [2, 4] {
            let control = ["random", "farthest", "recent"].contains(&strategy);
            let gate = if control { Gate::OPEN } else { Gate::default() };
            let config = RecallConfig { gate, ..recall(strategy, n) };
            rows.push((format!("{strategy} {n}, near"), Sees::Recalled(config)));
        }
    }
    for n_tokens in [0, 64, 192] {
        let shrunk = |sees| Sees::Shrunk(n_tokens, Box::new(sees));
        let label = |what: &str| format!("{what}, window cut to {n_tokens}");
        rows.push((label("gold paragraph, near"), shrunk(Sees::Gold(Place::Near))));
        rows.push((label("nearest 2, near"), shrunk(Sees::Recalled(recall("nearest", 2)))));
        rows.push((label("nearest 4, near"), shrunk(Sees::Recalled(recall("nearest", 4)))));
    }
    rows
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, half, n_streams, per_stream, seed, wanted @ ..] = &args[..] else {
        bail!("use squad MODEL HALF N_STREAMS QUESTIONS_PER_STREAM SEED [ROW...]");
    };
    let (n_streams, per_stream, seed) = (n_streams.parse()?, per_stream.parse()?, seed.parse()?);
    let model = match model.as_str() {
        "qwen" => common::model("EVERSTREAM_TEST_QWEN")?,
        "smollm2" => common::model("EVERSTREAM_TEST_SMOLLM2")?,
        _ => bail!("unknown model {model}: use qwen or smollm2"),
    };
    let minilm = common::path("EVERSTREAM_TEST_MINILM")?;
    let encoder: Arc<dyn Embedder> = Arc::new(MiniLm::open(&minilm)?);
    let data = common::path("EVERSTREAM_TEST_DATA")?.join("squad-v2-dev.jsonl.gz");
    let records = half_of(common::records(&data)?, half)?;
    let mut rows = rows();
    rows.retain(|row| wanted.is_empty() || wanted.iter().any(|w| row.0.contains(w.as_str())));
    let mut table: Vec<Sums> = rows.iter().map(|_| Sums::default()).collect();
    let start = Instant::now();
    for (i, stream) in streams(&records, n_streams, per_stream, seed).iter().enumerate() {
        let mut stage = Stage::new(&model, &encoder, stream, &rows)?;
        stage.ask_all(&rows, &mut table)?;
        eprintln!("stream {} of {n_streams} after {:.0} s", i + 1, start.elapsed().as_secs_f64());
        print_table(&model, half, seed, &rows, &table);
    }
    Ok(())
}

/// The questions about every second article.
fn half_of(records: Vec<Record>, half: &str) -> anyhow::Result<Vec<Record>> {
    let rest = match half {
        "tune" => 0,
        "report" => 1,
        _ => bail!("unknown half {half}: use tune or report"),
    };
    let mut titles: Vec<String> = Vec::new();
    for record in &records {
        if !titles.contains(&record.title) {
            titles.push(record.title.clone());
        }
    }
    let number = |title: &String| titles.iter().position(|t| t == title).unwrap_or(0);
    Ok(records.into_iter().filter(|record| number(&record.title) % 2 == rest).collect())
}

fn print_table(model: &Model, half: &str, seed: u64, rows: &[(String, Sees)], table: &[Sums]) {
    let n = table.first().map_or(0.0, |sums| sums.n);
    println!("\n{}, {half}, seed {seed}, {n} questions\n", model.config().name);
    println!("| what the model sees | F1 | EM | gold paragraph recalled | tokens |");
    println!("|---|---|---|---|---|");
    for ((label, _), s) in rows.iter().zip(table) {
        let mean = s.f1 / s.n;
        let error = ((s.f1_squares / s.n - mean * mean) / s.n).sqrt();
        println!(
            "| {label} | {:.1} ± {:.1} | {:.0} | {:.0} % | {:.0} |",
            100.0 * mean,
            100.0 * error,
            100.0 * s.em / s.n,
            100.0 * s.hits / s.n,
            s.tokens / s.n
        );
    }
}

/// Streams of paragraphs from several articles, drawn by seed; answerable questions, spread evenly.
fn streams(records: &[Record], n_streams: usize, per_stream: usize, seed: u64) -> Vec<Stream> {
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
    fastrand::Rng::with_seed(seed).shuffle(&mut paragraphs);
    let draw = |chosen: &[(String, Vec<Record>)]| {
        let mut questions = Vec::new();
        // The last paragraphs are still in the window.
        let asked = &chosen[..chosen.len() - 6];
        for round in 0..20 {
            for (i, (_, all)) in asked.iter().enumerate() {
                questions.extend(all.get(round).map(|q| (q.clone(), i)));
            }
        }
        questions.truncate(per_stream);
        Stream { paragraphs: chosen.iter().map(|p| p.0.clone()).collect(), questions }
    };
    // Each paragraph is in one stream of a seed.
    paragraphs.chunks_exact(PARAGRAPHS).take(n_streams).map(draw).collect()
}

/// A stream, read in the ways that the rows need.
struct Stage<'a> {
    model: &'a Arc<Model>,
    encoder: &'a Arc<dyn Embedder>,
    stream: &'a Stream,
    dense: Option<Session>,
    sink: Option<Session>,
    remember: Session,
    /// Where each paragraph lies.
    ranges: Vec<Range<u64>>,
}

impl<'a> Stage<'a> {
    fn new(
        model: &'a Arc<Model>,
        encoder: &'a Arc<dyn Embedder>,
        stream: &'a Stream,
        rows: &[(String, Sees)],
    ) -> anyhow::Result<Self> {
        let read =
            |config| Ok::<_, anyhow::Error>(read(model, encoder, config, &stream.paragraphs)?.0);
        let (mut dense, mut sink) = (None, None);
        if rows.iter().any(|row| matches!(row.1, Sees::Dense)) {
            dense = Some(read(config(Policy::Dense))?);
        }
        if rows.iter().any(|row| matches!(row.1, Sees::Sink)) {
            sink = Some(read(SessionConfig { window_tokens: 812, ..config(Policy::Sink) })?);
        }
        let (remember, ranges) =
            self::read(model, encoder, config(Policy::Remember), &stream.paragraphs)?;
        Ok(Self { model, encoder, stream, dense, sink, remember, ranges })
    }

    fn ask_all(&mut self, rows: &[(String, Sees)], table: &mut [Sums]) -> anyhow::Result<()> {
        for (record, paragraph) in &self.stream.questions {
            if self.ranges[*paragraph].end + RECENT > self.remember.n_tokens() {
                continue;
            }
            for ((_, sees), sums) in rows.iter().zip(&mut *table) {
                let (mut session, is_hit) = self.session(sees, record, *paragraph)?;
                sums.tokens += session.sections().recalled as f64;
                let answer = answer(&mut session, &record.question)?;
                let score = best(record, |gold| f1(&answer, gold));
                sums.f1 += score;
                sums.f1_squares += score * score;
                sums.em += best(record, |gold| f64::from(normalise(&answer) == normalise(gold)));
                sums.hits += f64::from(is_hit);
                sums.n += 1.0;
            }
        }
        Ok(())
    }

    /// A session that sees what a row says, and whether the right paragraph is part of that.
    fn session(
        &self,
        sees: &Sees,
        record: &Record,
        paragraph: usize,
    ) -> anyhow::Result<(Session, bool)> {
        let gold = self.ranges[paragraph].clone();
        let mut session = match sees {
            Sees::Alone => {
                let alone = [self.stream.paragraphs[paragraph].clone()];
                let read = read(self.model, self.encoder, config(Policy::Dense), &alone)?;
                return Ok((read.0, true));
            }
            Sees::Dense => return Ok((self.dense.as_ref().context("not read")?.branch()?, true)),
            Sees::Sink => return Ok((self.sink.as_ref().context("not read")?.branch()?, false)),
            _ => self.remember.branch()?,
        };
        let memory = session.memory().context("it remembers")?;
        match sees {
            Sees::Gold(place) => {
                let recall = blocks_of(memory, &[gold])?;
                session.set_recall(RecallConfig { place: *place, ..RecallConfig::default() });
                session.insert(recall)?;
                Ok((session, true))
            }
            Sees::Recalled(config) => {
                session.set_recall(config.clone());
                let is_hit = is_hit(session.recall(&record.question)?, &gold);
                Ok((session, is_hit))
            }
            Sees::Paragraphs(config) => {
                session.set_recall(config.clone());
                let recall = session.recall(&record.question)?.clone();
                let of = |block: &RecalledBlock| {
                    let holds = |range: &&Range<u64>| overlap(&block.part, range);
                    self.ranges.iter().find(holds).cloned()
                };
                let ranges: Vec<_> = recall.blocks.iter().filter_map(of).collect();
                let recall = blocks_of(session.memory().context("it remembers")?, &ranges)?;
                let is_hit = is_hit(&recall, &gold);
                session.insert(recall)?;
                Ok((session, is_hit))
            }
            Sees::Text(config) => {
                session.set_recall(config.clone());
                let recall = session.recall(&record.question)?.clone();
                let text: String = recall
                    .blocks
                    .iter()
                    .map(|b| format!("{}\n\n", b.block.text().trim()))
                    .collect();
                session.insert(Recall::default())?;
                let tokens = session.encode(&text)?;
                session.append(&tokens, Origin::turn(Role::Document))?;
                Ok((session, is_hit(&recall, &gold)))
            }
            Sees::Shrunk(n_tokens, sees) => {
                // What leaves now is not recalled: it was in the window when the question came.
                let (mut session, is_hit) = self.session(sees, record, paragraph)?;
                session.shrink_window(*n_tokens)?;
                Ok((session, is_hit))
            }
            Sees::Alone | Sees::Dense | Sees::Sink => unreachable!("answered above"),
        }
    }
}

fn config(policy: Policy) -> SessionConfig {
    SessionConfig { policy, max_tokens: 16_384, ..SessionConfig::default() }
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

fn is_hit(recall: &Recall, gold: &Range<u64>) -> bool {
    recall.blocks.iter().any(|block| overlap(&block.part, gold))
}

fn overlap(part: &Range<TokenPos>, gold: &Range<u64>) -> bool {
    part.start.0 < gold.end && gold.start < part.end.0
}

/// All blocks of some paragraphs, each in stream order, as far as they fit; what fits of the last
/// ones goes first.
fn blocks_of(memory: &Memory, ranges: &[Range<u64>]) -> anyhow::Result<Recall> {
    let (mut recall, mut n_tokens) = (Recall::default(), 0);
    let mut parts: Vec<Vec<RecalledBlock>> = Vec::new();
    for range in ranges.iter().rev() {
        let mut part: Vec<RecalledBlock> = Vec::new();
        for order in 0..memory.metas().len() {
            let meta = &memory.metas()[order];
            let is_new = !parts.iter().chain([&part]).flatten().any(|b| b.block.id() == meta.id);
            if overlap(&meta.range, range) && is_new && n_tokens + meta.n_tokens() <= CONTEXT_TOKENS
            {
                n_tokens += meta.n_tokens();
                part.push(RecalledBlock::whole(memory.block(order)?, 0.0));
            }
        }
        parts.push(part);
    }
    recall.blocks = parts.into_iter().rev().flatten().collect();
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
