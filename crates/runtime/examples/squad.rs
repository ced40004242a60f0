//! Question answering over streams: 40 SQuAD paragraphs are read once, then the state is branched
//! for each question about a paragraph that has left the window, and for each way to recall.
//!
//! `cargo xtask soak squad MODEL HALF N_STREAMS QUESTIONS_PER_STREAM SEED [ROW…]` prints a Markdown
//! table. MODEL is `qwen` or `smollm2`; HALF is `tune` (every second article: settings are chosen
//! on these) or `report` (the others); a ROW says what the model sees, for example
//! `nearest 2 between window=64`.

use std::collections::HashMap;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use everstream_runtime::kv_cache::{Place, TokenPos};
use everstream_runtime::memory::strategy::by_name;
use everstream_runtime::memory::{
    BlockSizes, Embedder, Gate, Memory, MiniLm, Neighbours, Recall, RecallOrder, RecalledBlock,
    Role,
};
use everstream_runtime::model::Model;
use everstream_runtime::{
    DocumentContext, GenerateOptions, Insertion, Origin, Policy, RecallConfig, Session,
    SessionConfig, encode,
};

mod common;
#[path = "common/squad_streams.rs"]
mod squad_streams;

use squad_streams::{Record, Stream, half_of, streams};

const CONTEXT_TOKENS: usize = 300;
/// Tokens at the end of the stream about which nothing is asked: the largest window, and a margin.
const RECENT: u64 = 900;

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
    Recalled,
    /// All blocks of the right paragraph, as far as they fit.
    Gold,
    /// The text of what would be recalled, read in front of the question.
    Text,
}

/// One line of the table, as its label says.
#[derive(Clone)]
struct Row {
    label: String,
    sees: Sees,
    recall: RecallConfig,
    /// What the paragraphs saw when they were read.
    context: DocumentContext,
}

/// The table that is made if no rows are asked for.
const ROWS: [&str; 21] = [
    "alone",
    "dense",
    "sink",
    "gold",
    "gold tokens",
    "gold repair",
    "gold between",
    "gold window=64",
    "nearest 1",
    "nearest 2",
    "nearest 4",
    "nearest 2 tokens",
    "nearest 2 repair",
    "nearest 2 between",
    "nearest 2 stream",
    "nearest 2 gate=2",
    "nearest 2 window=64",
    "hybrid 2",
    "mmr 2",
    "random 2 gate=2",
    "text nearest 2",
];

impl Row {
    /// Reads a label: `alone`, `dense`, `sink`, or what is recalled (`gold`, or a strategy and a
    /// number of blocks), in front of it `text` if its text is read, behind it any of `between`,
    /// `stream`, `tokens`, `repair`, `gate=D`, `neighbours=N|paragraph`, `apart`, `window=N`, `block=N`.
    fn parse(label: &str) -> anyhow::Result<Self> {
        // What a label does not say is the plainest, whatever the defaults are.
        let mut recall = RecallConfig {
            strategy: by_name("nearest").context("the plainest strategy")?,
            max_blocks: 4,
            neighbours: Neighbours::NONE,
            window: None,
            ..RecallConfig::default()
        };
        let (mut sees, mut context) = (Sees::Recalled, DocumentContext::default());
        for word in label.split_whitespace() {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            match name {
                "alone" => sees = Sees::Alone,
                "dense" => sees = Sees::Dense,
                "sink" => sees = Sees::Sink,
                "gold" => sees = Sees::Gold,
                "text" => sees = Sees::Text,
                "between" => recall.place = Place::Between,
                "stream" => recall.order = RecallOrder::Stream,
                "tokens" => recall.insertion = Insertion::Tokens,
                "repair" => recall.insertion = Insertion::Repair,
                "gate" => recall.gate = Gate { max_distance: Some(value.parse()?) },
                "neighbours" => {
                    recall.neighbours =
                        Neighbours::by_name(value).context("neighbours=N|paragraph")?;
                }
                "apart" => context = DocumentContext::Paragraph,
                "window" => recall.window = Some(value.parse()?),
                "block" => recall.sizes = block_sizes(value.parse()?)?,
                _ if name.parse::<usize>().is_ok() => recall.max_blocks = name.parse()?,
                _ => recall.strategy = by_name(name).with_context(|| format!("unknown: {name}"))?,
            }
        }
        if matches!(sees, Sees::Text) && recall.window.is_some() {
            bail!("{label}: text is read behind the whole window");
        }
        Ok(Self { label: label.to_owned(), sees, recall, context })
    }
}

impl Row {
    /// Rows of the same value share streams.
    fn reading(&self) -> (BlockSizes, DocumentContext) {
        (self.recall.sizes, self.context)
    }
}

/// Blocks of about so many tokens.
fn block_sizes(target: usize) -> anyhow::Result<BlockSizes> {
    Ok(BlockSizes::new(target / 4, target, target * 3 / 2)?)
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
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let labels = if wanted.is_empty() { &ROWS } else { &wanted[..] };
    let rows: Vec<Row> = labels.iter().map(|label| Row::parse(label)).collect::<Result<_, _>>()?;
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

fn print_table(model: &Model, half: &str, seed: u64, rows: &[Row], table: &[Sums]) {
    let n = table.first().map_or(0.0, |sums| sums.n);
    println!("\n{}, {half}, seed {seed}, {n} questions\n", model.config().name);
    println!("| what the model sees | F1 | EM | gold paragraph recalled | tokens |");
    println!("|---|---|---|---|---|");
    for (Row { label, .. }, s) in rows.iter().zip(table) {
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

/// A stream, read in the ways that the rows need.
struct Stage<'a> {
    model: &'a Arc<Model>,
    encoder: &'a Arc<dyn Embedder>,
    stream: &'a Stream,
    dense: Option<Session>,
    sink: Option<Session>,
    /// One for each size of blocks and context of paragraphs.
    remember: Vec<((BlockSizes, DocumentContext), Session)>,
    /// Where each paragraph lies.
    ranges: Vec<Range<u64>>,
}

impl<'a> Stage<'a> {
    fn new(
        model: &'a Arc<Model>,
        encoder: &'a Arc<dyn Embedder>,
        stream: &'a Stream,
        rows: &[Row],
    ) -> anyhow::Result<Self> {
        let read = |config| read(model, encoder, config, &stream.paragraphs);
        let ranges = ranges(model, &stream.paragraphs)?;
        let mut stage =
            Self { model, encoder, stream, dense: None, sink: None, remember: Vec::new(), ranges };
        for row in rows {
            match row.sees {
                Sees::Alone => {}
                Sees::Dense => stage.dense = Some(read(config(Policy::Dense))?),
                Sees::Sink => {
                    let config = SessionConfig { window_tokens: 812, ..config(Policy::Sink) };
                    stage.sink = Some(read(config)?);
                }
                _ if stage.remember.iter().any(|(read, _)| *read == row.reading()) => {}
                _ => {
                    let config = SessionConfig {
                        recall: row.recall.clone(),
                        document_context: row.context,
                        ..config(Policy::Remember)
                    };
                    stage.remember.push((row.reading(), read(config)?));
                }
            }
        }
        Ok(stage)
    }

    fn ask_all(&mut self, rows: &[Row], table: &mut [Sums]) -> anyhow::Result<()> {
        let end = self.ranges.last().map_or(0, |range| range.end);
        for (record, paragraph) in &self.stream.questions {
            if self.ranges[*paragraph].end + RECENT > end {
                continue;
            }
            for (row, sums) in rows.iter().zip(&mut *table) {
                let (mut session, is_hit) = self.session(row, record, *paragraph)?;
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
        row: &Row,
        record: &Record,
        paragraph: usize,
    ) -> anyhow::Result<(Session, bool)> {
        let gold = self.ranges[paragraph].clone();
        let branch = |session: &Option<Session>| -> anyhow::Result<Session> {
            Ok(session.as_ref().context("not read")?.branch()?)
        };
        match row.sees {
            Sees::Alone => {
                let alone = [self.stream.paragraphs[paragraph].clone()];
                let read = read(self.model, self.encoder, config(Policy::Dense), &alone)?;
                return Ok((read, true));
            }
            Sees::Dense => return Ok((branch(&self.dense)?, true)),
            Sees::Sink => return Ok((branch(&self.sink)?, false)),
            Sees::Gold | Sees::Recalled | Sees::Text => {}
        }
        let read = self.remember.iter().find(|(read, _)| *read == row.reading());
        let mut session = read.context("not read")?.1.branch()?;
        session.set_recall(row.recall.clone());
        if let Sees::Gold = row.sees {
            session.insert(blocks_of(session.memory().context("it remembers")?, &gold)?)?;
            return Ok((session, true));
        }
        let recall = session.recall(&record.question)?.clone();
        if let Sees::Text = row.sees {
            let texts = recall.blocks.iter().map(|b| format!("{}\n\n", b.block.text().trim()));
            let text: String = texts.collect();
            session.insert(Recall::default())?;
            let tokens = session.encode(&text)?;
            session.append(&tokens, Origin::turn(Role::Document))?;
        }
        Ok((session, is_hit(&recall, &gold)))
    }
}

fn config(policy: Policy) -> SessionConfig {
    SessionConfig { policy, max_tokens: 16_384, ..SessionConfig::default() }
}

/// A paragraph as it stands in a stream.
fn document(paragraph: &String) -> String {
    format!("{paragraph}\n\n")
}

/// The tokens of each paragraph: those that begin in it.
fn ranges(model: &Model, paragraphs: &[String]) -> anyhow::Result<Vec<Range<u64>>> {
    let documents: Vec<String> = paragraphs.iter().map(document).collect();
    let mut starts = Vec::new();
    let mut n_bytes = 0;
    for token in encode(model, &documents.concat())? {
        starts.push(n_bytes);
        n_bytes += model.tokenizer().token_bytes(token).len();
    }
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut end = 0;
    for document in &documents {
        end += document.len();
        let first = ranges.last().map_or(0, |range| range.end);
        ranges.push(first..starts.partition_point(|&start| start < end) as u64);
    }
    Ok(ranges)
}

/// A session that has read the paragraphs.
fn read(
    model: &Arc<Model>,
    encoder: &Arc<dyn Embedder>,
    config: SessionConfig,
    paragraphs: &[String],
) -> anyhow::Result<Session> {
    let mut session = Session::new(Arc::clone(model), Some(Arc::clone(encoder)), config)?;
    let text: String = paragraphs.iter().map(document).collect();
    session.ingest(
        &text,
        Origin::turn(Role::Document),
        &mut |_, _, _| ControlFlow::Continue(()),
    )?;
    Ok(session)
}

fn is_hit(recall: &Recall, gold: &Range<u64>) -> bool {
    recall.blocks.iter().any(|block| overlap(&block.part, gold))
}

fn overlap(part: &Range<TokenPos>, gold: &Range<u64>) -> bool {
    part.start.0 < gold.end && gold.start < part.end.0
}

/// All blocks of a paragraph, in stream order, as far as they fit.
fn blocks_of(memory: &Memory, paragraph: &Range<u64>) -> anyhow::Result<Recall> {
    let mut recall = Recall::default();
    for (order, meta) in memory.metas().iter().enumerate() {
        let part = &meta.range;
        if overlap(part, paragraph) && recall.n_tokens() + meta.n_tokens() <= CONTEXT_TOKENS {
            recall.blocks.push(RecalledBlock::whole(memory.block(order)?, 0.0));
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
