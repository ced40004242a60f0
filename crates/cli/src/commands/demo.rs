//! `everstream demo`: reads a chronicle fifteen times longer than the cache, asks about what left
//! it, and compares the policies.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use everstream_runtime::kernels::log_sum_exp;
use everstream_runtime::kv_cache::TokenPos;
use everstream_runtime::memory::{Embedder, Recall};
use everstream_runtime::model::{Model, SpecialTokens, Tokenizer};
use everstream_runtime::perplexity::{Positions, Score, score};
use everstream_runtime::{GenerateOptions, Origin, Policy, Session, SessionConfig};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::args::{Common, DemoArgs};
use crate::{load, output, recalled};

const CHRONICLE: &str = include_str!("../../../../examples/chronicle.txt");
const QUESTIONS: &str = include_str!("../../../../examples/chronicle.questions.json");

/// Questions drawn.
const N_ASKED: usize = 5;
/// Longest answer.
const ANSWER_TOKENS: usize = 24;
/// Tokens of the comparison of policies.
const COMPARED_TOKENS: usize = 4000;
/// Distance between the positions at which recomputation is sampled.
const RECOMPUTE_EVERY: usize = 100;

#[derive(Deserialize)]
struct Questions {
    questions: Vec<Question>,
}

#[derive(Clone, Deserialize)]
struct Question {
    question: String,
    answers: Vec<String>,
}

/// A question with both answers.
struct Asked {
    question: Question,
    recall: Recall,
    with: Answer,
    without: Answer,
}

struct Answer {
    text: String,
    is_hit: bool,
}

/// A policy on the same text.
struct Compared {
    label: String,
    budget_tokens: usize,
    score: Score,
    elapsed: Duration,
}

pub(crate) fn run(common: &Common, args: &DemoArgs) -> anyhow::Result<()> {
    let start = Instant::now();
    let questions = draw(args)?;
    let model = load::model(common, &args.model.model)?;
    let encoder = load::encoder(common, Policy::Remember)?;
    let config = SessionConfig::default();
    // With `--json` the story goes nowhere, and the object says all at the end.
    let mut story: Box<dyn Write> = match args.json {
        true => Box::new(io::sink()),
        false => Box::new(io::stdout()),
    };
    let out = &mut *story;
    writeln!(
        out,
        "{} with a cache of {} sinks + {} recalled + {} recent tokens, {} threads, {}\n",
        args.model.model,
        config.n_sink,
        config.context_tokens,
        config.window_tokens,
        model.n_threads(),
        model.isa(),
    )?;
    let mut session = Session::new(Arc::clone(&model), encoder.clone(), config)?;
    let perplexity = read(&mut session, out)?;
    let asked = ask(&session, questions, out)?;
    let compared = compare(&model, encoder, out)?;
    writeln!(out, "\nDone in {:.0} s.", start.elapsed().as_secs_f64())?;
    if args.json {
        let result = result(args, &session, perplexity, &asked, &compared, start.elapsed());
        writeln!(io::stdout(), "{result}")?;
    }
    Ok(())
}

/// Draws the questions by seed: a shuffle by a small generator (Knuth's MMIX constants).
fn draw(args: &DemoArgs) -> anyhow::Result<Vec<Question>> {
    let all: Questions = serde_json::from_str(QUESTIONS).context("the demo's own questions")?;
    let mut questions = all.questions;
    if args.all {
        return Ok(questions);
    }
    let mut state = args.seed;
    for i in (1..questions.len()).rev() {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        questions.swap(i, (state >> 33) as usize % (i + 1));
    }
    questions.truncate(N_ASKED);
    Ok(questions)
}

/// Streams the chronicle and returns its perplexity.
fn read(session: &mut Session, out: &mut dyn Write) -> anyhow::Result<f64> {
    session.begin()?;
    let (tokens, n_before) = (session.encode(CHRONICLE)?, session.n_tokens());
    let (mut total, mut n_scored) = (0.0, 0);
    let loss = std::cell::Cell::new((0.0, 0usize));
    let mut observe = |position: TokenPos, logits: &[f32]| {
        if let Some(&next) = tokens.get((position.0 + 1 - n_before) as usize) {
            total += log_sum_exp(logits) - f64::from(logits[next as usize]);
            n_scored += 1;
            loss.set((total, n_scored));
        }
    };
    let start = Instant::now();
    let bar = output::bar(tokens.len() as u64, "{wide_bar} {pos}/{len} tokens\n{msg}");
    let mut next_line = 2000;
    let mut written = Ok(());
    let mut progress = |session: &Session, n_read: usize, _n: usize| {
        let (total, n) = loss.get();
        let line = status(session, n_read, start.elapsed(), (total / n.max(1) as f64).exp());
        bar.set_message(line.clone());
        bar.set_position(n_read as u64);
        // Where no bar can be drawn, lines tell the same.
        if bar.is_hidden() && n_read >= next_line {
            written = writeln!(out, "{n_read:>6} tokens | {line}");
            next_line += 2000;
        }
        match written {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    };
    let origin = Origin::file("chronicle.txt");
    session.ingest_observed(CHRONICLE, origin, Some(&mut observe), &mut progress)?;
    bar.finish_and_clear();
    written?;
    let perplexity = (loss.get().0 / loss.get().1 as f64).exp();
    let line = status(session, tokens.len(), start.elapsed(), perplexity);
    writeln!(out, "Read {} tokens: {line}", tokens.len())?;
    writeln!(
        out,
        "{} tokens have left the window; the memory holds them in {} blocks.\n",
        session.evicted().end.since(session.evicted().start),
        session.memory().map_or(0, |m| m.stats().n_blocks),
    )?;
    Ok(perplexity)
}

fn status(session: &Session, n_read: usize, elapsed: Duration, perplexity: f64) -> String {
    let (sections, config) = (session.sections(), session.config());
    format!(
        "{:.0} tokens/s | sinks {} | recalled {}/{} | window {}/{} | perplexity {perplexity:.1} | {} resident",
        n_read as f64 / elapsed.as_secs_f64(),
        sections.sinks,
        sections.recalled,
        config.context_tokens,
        sections.window,
        config.window_tokens,
        output::resident_bytes().map_or("?".to_owned(), output::size),
    )
}

/// Asks each question twice, on branches of the stream: with and without memory.
fn ask(
    session: &Session,
    questions: Vec<Question>,
    out: &mut dyn Write,
) -> anyhow::Result<Vec<Asked>> {
    let mut asked = Vec::new();
    for question in questions {
        let mut without = session.branch()?;
        without.read_turn(&question.question)?;
        let without = answer(&mut without, &question)?;
        let mut with = session.branch()?;
        let recall = with.turn(&question.question)?.clone();
        let with = answer(&mut with, &question)?;
        let item = Asked { question, recall, with, without };
        item.print(out)?;
        asked.push(item);
    }
    let hits = |f: fn(&Asked) -> &Answer| asked.iter().filter(|a| f(a).is_hit).count();
    let (n, with, without) = (asked.len(), hits(|a| &a.with), hits(|a| &a.without));
    writeln!(out, "Right with memory: {with} of {n}. Without: {without} of {n}.")?;
    Ok(asked)
}

fn answer(session: &mut Session, question: &Question) -> anyhow::Result<Answer> {
    let options = GenerateOptions {
        max_tokens: ANSWER_TOKENS,
        stop: vec!["\n".to_owned()],
        ..GenerateOptions::default()
    };
    let generated = session.generate(&options, &mut |_| ControlFlow::Continue(()))?;
    let text = output::first_words(&generated.text, 200);
    let lower = text.to_lowercase();
    let is_hit = question.answers.iter().any(|a| lower.contains(&a.to_lowercase()));
    Ok(Answer { text, is_hit })
}

impl Answer {
    fn print(&self, out: &mut dyn Write, label: &str) -> io::Result<()> {
        let verdict = if self.is_hit { "right" } else { "miss " };
        writeln!(out, "  {label} [{verdict}] {}", self.text)
    }
}

impl Asked {
    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "Q: {}  (expected: {})", self.question.question, self.question.answers[0])?;
        self.without.print(out, "without memory")?;
        self.with.print(out, "with memory   ")?;
        for recalled in &self.recall.blocks {
            writeln!(
                out,
                "    recalled {}..{} at distance {:.2}: {}",
                recalled.part.start.0,
                recalled.part.end.0,
                recalled.distance,
                output::first_words(recalled.block.text(), 90),
            )?;
        }
        writeln!(out)
    }

    fn json(&self, tokenizer: &Tokenizer) -> Value {
        let answer = |a: &Answer| json!({ "text": a.text, "hit": a.is_hit });
        json!({
            "question": self.question.question,
            "expected": self.question.answers,
            "with_memory": answer(&self.with),
            "without_memory": answer(&self.without),
            "recalled": recalled::json(tokenizer, &self.recall),
        })
    }
}

/// Scores the beginning of the chronicle under each policy, at the budget of the default cache.
fn compare(
    model: &Arc<Model>,
    encoder: Option<Arc<dyn Embedder>>,
    out: &mut dyn Write,
) -> anyhow::Result<Vec<Compared>> {
    let mut tokens = Vec::from_iter(model.tokenizer().first_token());
    tokens.extend(model.tokenizer().encode(CHRONICLE, SpecialTokens::AsText));
    tokens.truncate(COMPARED_TOKENS);
    let base = SessionConfig::default();
    let budget = base.budget_tokens();
    let sampled = Positions { first: RECOMPUTE_EVERY, every: RECOMPUTE_EVERY };
    let plan = [
        (Policy::Dense, Positions::ALL),
        (Policy::Window, Positions::ALL),
        (Policy::Sink, Positions::ALL),
        (Policy::Remember, Positions::ALL),
        (Policy::Sink, sampled),
        (Policy::Recompute, sampled),
    ];
    writeln!(out, "\nThe first {COMPARED_TOKENS} tokens under each policy:")?;
    writeln!(
        out,
        "{:<10} {:>7} {:>8} {:>11} {:>10}",
        "policy", "budget", "scored", "perplexity", "ms/token"
    )?;
    let mut rows = Vec::new();
    for (policy, positions) in plan {
        let mut config = SessionConfig { policy, max_tokens: tokens.len(), ..base.clone() };
        match policy {
            Policy::Dense | Policy::Remember => {}
            Policy::Sink => config.window_tokens = budget - config.n_sink,
            Policy::Window | Policy::Recompute => config.window_tokens = budget,
        }
        let bar = output::token_bar(tokens.len(), policy.name());
        let start = Instant::now();
        let mut progress = |position: usize, _: f64| bar.set_position(position as u64);
        let budget_tokens = config.budget_tokens();
        let score = score(model, encoder.clone(), config, &tokens, positions, &mut progress)?;
        bar.finish_and_clear();
        let elapsed = start.elapsed();
        let row = Compared { label: policy.name().to_owned(), budget_tokens, score, elapsed };
        writeln!(
            out,
            "{:<10} {:>7} {:>8} {:>11.2} {:>10.2}",
            row.label,
            row.budget_tokens,
            row.score.tokens,
            row.score.perplexity(),
            row.ms_per_token(policy)
        )?;
        rows.push(row);
    }
    Ok(rows)
}

impl Compared {
    /// `recompute` computes scored tokens only, the others compute all.
    fn ms_per_token(&self, policy: Policy) -> f64 {
        let n = if policy == Policy::Recompute { self.score.tokens } else { COMPARED_TOKENS };
        self.elapsed.as_secs_f64() * 1e3 / n as f64
    }

    fn json(&self) -> Value {
        json!({
            "policy": self.label,
            "budget_tokens": self.budget_tokens,
            "tokens": self.score.tokens,
            "perplexity": self.score.perplexity(),
            "seconds": self.elapsed.as_secs_f64(),
        })
    }
}

fn result(
    args: &DemoArgs,
    session: &Session,
    perplexity: f64,
    asked: &[Asked],
    compared: &[Compared],
    elapsed: Duration,
) -> Value {
    json!({
        "model": args.model.model,
        "tokens": session.n_tokens(),
        "perplexity": perplexity,
        "questions": asked.iter().map(|a| a.json(session.model().tokenizer())).collect::<Vec<_>>(),
        "policies": compared.iter().map(Compared::json).collect::<Vec<_>>(),
        "resident_bytes": output::peak_resident_bytes(),
        "seconds": elapsed.as_secs_f64(),
    })
}
