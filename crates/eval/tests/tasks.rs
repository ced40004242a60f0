//! What tasks ask, and how they score: on samples of each format, without a model.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::path::{Path, PathBuf};

use everstream_eval::task::{ALL, by_name};
use everstream_eval::{EvalError, Stream, TaskOptions};

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples").join(name)
}

fn options(task: &str, seed: u64) -> TaskOptions {
    let data = match task {
        "squad" => Some(sample("squad.jsonl")),
        "triviaqa" => Some(sample("triviaqa.jsonl")),
        _ => None,
    };
    TaskOptions { data, limit: 12, distractors: 3, distances: vec![300, 1200], seed }
}

fn streams(task: &str, seed: u64) -> Vec<Stream> {
    by_name(task).unwrap().streams(&options(task, seed)).unwrap()
}

#[test]
fn gold_scores_100_and_nothing_scores_0() {
    for name in ALL {
        let task = by_name(name).unwrap();
        assert_eq!(task.name(), name);
        for question in streams(name, 1).iter().flat_map(|stream| &stream.questions) {
            for reference in &question.references {
                for (metric, score) in task.score(reference, question) {
                    assert_eq!(score, 1.0, "{name}, {metric}, {reference:?}");
                }
            }
            assert!(task.score("", question).iter().all(|(_, score)| *score == 0.0), "{name}");
        }
    }
}

#[test]
fn every_question_has_its_evidence_before_it() {
    for name in ALL {
        let streams = streams(name, 2);
        let n_questions: usize = streams.iter().map(|stream| stream.questions.len()).sum();
        assert_eq!(n_questions, if name == "triviaqa" { 10 } else { 12 }, "{name}");
        for stream in streams {
            let mut ids: Vec<&str> = stream.questions.iter().map(|q| &*q.id).collect();
            ids.sort_unstable();
            ids.dedup();
            assert_eq!(ids.len(), stream.questions.len(), "{name}");
            let after: Vec<usize> = stream.questions.iter().map(|q| q.after).collect();
            assert!(
                after.is_sorted() && after.iter().all(|&n| n <= stream.documents.len()),
                "{name}"
            );
            for question in &stream.questions {
                let evidence: String =
                    question.evidence.iter().map(|&i| &*stream.documents[i]).collect();
                assert!(question.evidence.iter().all(|&i| i < question.after), "{name}");
                let says = |reference: &String| evidence.contains(&**reference);
                assert!(question.references.iter().any(says), "{name}: {question:?}");
            }
        }
    }
}

#[test]
fn a_seed_draws_the_same_and_another_one_something_else() {
    for name in ALL {
        let texts = |seed| -> Vec<String> {
            streams(name, seed).iter().map(|stream| stream.documents.concat()).collect()
        };
        assert_eq!(texts(3), texts(3), "{name}");
        assert_ne!(texts(3), texts(4), "{name}");
    }
}

/// The official format of SQuAD and a question a line are the same.
#[test]
fn both_formats_of_squad_are_read() {
    let task = by_name("squad").unwrap();
    let lines = task.streams(&options("squad", 5)).unwrap();
    let official = TaskOptions { data: Some(sample("squad.json")), ..options("squad", 5) };
    let official = task.streams(&official).unwrap();
    assert_eq!(format!("{lines:?}"), format!("{official:?}"));
}

#[test]
fn wrong_data_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    let error = |task: &str, text: &str| -> String {
        fs_err::write(&path, text).unwrap();
        let options = TaskOptions { data: Some(path.clone()), ..options(task, 1) };
        by_name(task).unwrap().streams(&options).unwrap_err().to_string()
    };
    let good = "{\"id\": \"1\", \"context\": \"c\", \"question\": \"q\", \"answers\": [\"a\"]}\n";
    for (task, text, expected) in [
        ("squad", "", "record 1: the file holds no records"),
        ("squad", "{\"id\": 1", "record 1: EOF while parsing"),
        ("squad", &format!("{good}{{\"id\": \"2\"}}\n"), "record 2: `context` is missing"),
        ("squad", &format!("{good}\n{{}}\n"), "record 3: `context` is missing"),
        ("squad", "{\"data\": [{\"paragraphs\": [{}]}]}", "record 1: `qas` is missing"),
        ("squad", good, "has 1 paragraphs, but a stream takes 23"),
        (
            "triviaqa",
            "{\"answers\": [1]}",
            "record 1: `answers` holds something that is not a text",
        ),
        ("triviaqa", "{\"answers\": [\"a\"]}", "record 1: `passages` is missing"),
    ] {
        let found = error(task, text);
        assert!(found.contains(expected), "{found:?}, not {expected:?}");
    }
    let none = TaskOptions { data: None, ..options("squad", 1) };
    let error = by_name("squad").unwrap().streams(&none);
    assert!(matches!(error, Err(EvalError::Setting(message)) if message.contains("--data")));
}
