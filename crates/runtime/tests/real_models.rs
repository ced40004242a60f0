//! What the demo promises, on the real model.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use everstream_runtime::memory::{MiniLm, MiniLmOptions, Role};
use everstream_runtime::model::{Model, SpecialTokens};
use everstream_runtime::perplexity::{Positions, score};
use everstream_runtime::{GenerateOptions, Origin, Policy, Session, SessionConfig};
use serde::Deserialize;

const CHRONICLE: &str = include_str!("../../../examples/chronicle.txt");

#[derive(Deserialize)]
struct Questions {
    questions: Vec<Question>,
}

#[derive(Deserialize)]
struct Question {
    question: String,
    answers: Vec<String>,
    passage: String,
}

fn path(variable: &str) -> PathBuf {
    std::env::var_os(variable).expect("xtask sets the model's path").into()
}

fn model() -> Arc<Model> {
    Arc::new(Model::open(&path("EVERSTREAM_TEST_SMOLLM2"), Default::default()).unwrap())
}

fn questions() -> Vec<Question> {
    let text = include_str!("../../../examples/chronicle.questions.json");
    serde_json::from_str::<Questions>(text).unwrap().questions
}

/// Whether the answer to the turn that was read last contains what is expected.
fn is_right(session: &mut Session, question: &Question) -> bool {
    let options = GenerateOptions {
        max_tokens: 24,
        stop: vec!["\n".to_owned()],
        ..GenerateOptions::default()
    };
    let answer = session.generate(&options, &mut |_| ControlFlow::Continue(())).unwrap().text;
    let answer = answer.to_lowercase();
    question.answers.iter().any(|expected| answer.contains(&expected.to_lowercase()))
}

/// Without this, a miss of the demo would say nothing about memory.
#[test]
#[ignore = "needs the real model: cargo xtask check runs it"]
fn smollm2_answers_from_the_passage_alone() {
    let model = model();
    let questions = questions();
    let right = questions.iter().filter(|question| {
        let config = SessionConfig { policy: Policy::Dense, ..SessionConfig::default() };
        let mut session = Session::new(Arc::clone(&model), None, config).unwrap();
        let tokens = session.encode(&format!("{}\n\n", question.passage)).unwrap();
        session.append(&tokens, Origin::turn(Role::Document)).unwrap();
        session.read_turn(&question.question).unwrap();
        is_right(&mut session, question)
    });
    let right = right.count();
    println!("{right} of 20 from the passage alone");
    assert!(right >= 16, "{right} of 20");
}

#[test]
#[ignore = "needs the real models: cargo xtask check runs it"]
fn smollm2_answers_from_what_left_the_window() {
    let minilm =
        Arc::new(MiniLm::open(&path("EVERSTREAM_TEST_MINILM"), MiniLmOptions::default()).unwrap());
    let mut session = Session::new(model(), Some(minilm), SessionConfig::default()).unwrap();
    let origin = Origin::file("chronicle.txt");
    session.ingest(CHRONICLE, origin, &mut |_, _, _| ControlFlow::Continue(())).unwrap();
    let (mut with, mut without) = (0, 0);
    for question in questions() {
        let mut branch = session.branch().unwrap();
        branch.read_turn(&question.question).unwrap();
        without += usize::from(is_right(&mut branch, &question));
        let mut branch = session.branch().unwrap();
        let recall = branch.turn(&question.question).unwrap();
        assert!(recall.n_tokens() <= 300);
        with += usize::from(is_right(&mut branch, &question));
    }
    println!("{with} of 20 with memory, {without} without");
    assert!(with >= 16 && without <= 2, "{with} with, {without} without");
}

/// The first book of the evaluation data, or `None` where there is none.
fn book() -> Option<String> {
    #[derive(Deserialize)]
    struct Book {
        text: String,
    }
    let data = PathBuf::from(std::env::var_os("EVERSTREAM_TEST_DATA")?);
    let file = fs_err::File::open(data.join("books-nltk-gutenberg.jsonl.gz")).unwrap();
    let mut lines = BufReader::new(flate2::read::MultiGzDecoder::new(file)).lines();
    let line = lines.next().unwrap().unwrap();
    Some(serde_json::from_str::<Book>(&line).unwrap().text)
}

/// What StreamingLLM observed (arXiv:2309.17453, table 1): a window breaks when the first tokens
/// leave it, four sinks mend it, and a longer cache is worth little more.
#[test]
#[ignore = "needs the real model: cargo xtask check runs it"]
fn sinks_hold_where_a_window_breaks() {
    let Some(text) = book() else { return println!("skipped: the evaluation data is absent") };
    let model = model();
    let mut tokens = model.tokenizer().encode(&text, SpecialTokens::AsText);
    tokens.truncate(2048);
    let perplexity = |policy, window_tokens| {
        let config = SessionConfig { policy, window_tokens, ..SessionConfig::default() };
        let all = Positions::ALL;
        score(&model, None, config, &tokens, all, &mut |_, _| {}).unwrap().perplexity()
    };
    let (window, sink) = (perplexity(Policy::Window, 256), perplexity(Policy::Sink, 252));
    let dense = perplexity(Policy::Dense, 1);
    println!("window {window:.1}, sinks {sink:.1}, full attention {dense:.1}");
    assert!(window > 1.5 * sink, "window {window}, sinks {sink}");
    assert!(sink < 1.3 * dense, "sinks {sink}, full attention {dense}");
}
