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
        "fandom" | "ppl" => Some(sample(&format!("{task}.txt"))),
        "stream-eval" | "passkey" | "number" | "kv-retrieval" | "multi-needle" => None,
        _ => Some(sample(&format!("{task}.jsonl"))),
    };
    let distances = if task == "ppl" { vec![3500] } else { vec![1000, 1400] };
    TaskOptions { data, limit: 12, distractors: Some(3), unanswerable: false, distances, seed }
}

fn streams(task: &str, seed: u64) -> Vec<Stream> {
    by_name(task).unwrap().streams(&options(task, seed)).unwrap()
}

/// Tasks whose answers are compared as texts, or not at all.
const OPEN: [&str; 5] = ["ppl", "multi-news", "writing-prompts", "fandom", "qmsum"];

#[test]
fn gold_scores_100_and_nothing_scores_0() {
    for name in ALL {
        let task = by_name(name).unwrap();
        assert_eq!(task.name(), name);
        for question in streams(name, 1).iter().flat_map(|stream| &stream.questions) {
            let golds = match name {
                "multi-needle" => vec![question.references.join(", ")],
                _ => question.references.clone(),
            };
            assert!(!golds.is_empty(), "{name}");
            for gold in golds {
                for (metric, score) in task.score(&gold, question) {
                    // Of a text of one line, the union of subsequences is the text.
                    assert!((score - 1.0).abs() < 1e-12, "{name}, {metric}, {gold:?}: {score}");
                }
            }
            assert!(task.score("", question).iter().all(|(_, score)| *score == 0.0), "{name}");
        }
    }
}

#[test]
fn parts_of_what_is_asked_for_score_in_part() {
    let task = by_name("multi-needle").unwrap();
    let streams = streams("multi-needle", 1);
    let question = &streams[0].questions[0];
    assert_eq!((question.references.len(), question.evidence.len()), (4, 4));
    let two = format!("{} and {}", question.references[3], question.references[0]);
    assert_eq!(task.score(&two, question), [("accuracy", 0.5)]);
}

#[test]
fn every_question_has_its_evidence_before_it() {
    for name in ALL {
        let streams = streams(name, 2);
        let n_questions: usize = streams.iter().map(|stream| stream.questions.len()).sum();
        let expected = match name {
            "triviaqa" => 10,
            "writing-prompts" | "fandom" => 4,
            // Six pieces, the first of which is not asked for; two items; conversations and meetings as
            // they are, less what has no evidence, no answer or no part.
            "ppl" => 5,
            "multi-news" => 2,
            "longeval" | "locomo" => 5,
            "qmsum" => 6,
            _ => 12,
        };
        assert_eq!(n_questions, expected, "{name}");
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
                assert!(question.evidence.iter().all(|&i| i < question.after), "{name}");
                assert_eq!(question.evidence.is_empty(), name == "ppl", "{name}");
                let evidence: String =
                    question.evidence.iter().map(|&i| &*stream.documents[i]).collect();
                let says = |reference: &String| evidence.contains(&**reference);
                let is_open = OPEN.contains(&name) || name == "locomo";
                assert!(is_open || question.references.iter().any(says), "{name}: {question:?}");
            }
        }
    }
}

#[test]
fn a_seed_draws_the_same_and_another_one_something_else() {
    for name in ALL {
        let texts = |seed| -> Vec<String> {
            let streams = streams(name, seed);
            let texts = streams.iter().map(|stream| {
                let questions = stream.questions.iter().map(|question| &*question.prompt);
                stream.documents.concat() + &questions.collect::<String>()
            });
            texts.collect()
        };
        assert_eq!(texts(3), texts(3), "{name}");
        // There is one text only.
        assert_eq!(texts(3) == texts(5), name == "ppl", "{name}");
    }
}

/// Questions without an answer are asked when that is wanted, and want silence.
#[test]
fn unanswerable_questions_want_no_answer() {
    for name in ["squad", "locomo"] {
        let task = by_name(name).unwrap();
        let options = TaskOptions { unanswerable: true, limit: 100, ..options(name, 1) };
        let streams = task.streams(&options).unwrap();
        let questions: Vec<_> = streams.iter().flat_map(|stream| &stream.questions).collect();
        let none: Vec<_> = questions.iter().filter(|q| q.references.is_empty()).collect();
        assert!(!none.is_empty() && none.len() < questions.len(), "{name}");
        let groups = ["unanswerable", "adversarial"];
        assert!(none.iter().all(|question| groups.contains(&&*question.group)), "{name}");
    }
    let task = by_name("squad").unwrap();
    let streams = task
        .streams(&TaskOptions { unanswerable: true, limit: 100, ..options("squad", 1) })
        .unwrap();
    let question = streams[0].questions.iter().find(|q| q.references.is_empty()).unwrap();
    assert_eq!(task.score("", question), [("f1", 1.0), ("em", 1.0)]);
    assert_eq!(task.score("in 1871", question), [("f1", 0.0), ("em", 0.0)]);
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_is_read_as_json() {
    let task = by_name("squad").unwrap();
    let text = |file: &str| {
        let options = TaskOptions { data: Some(sample(file)), ..options("squad", 5) };
        format!("{:?}", task.streams(&options).unwrap())
    };
    assert_eq!(text("squad.parquet"), text("squad.jsonl"));
}

/// The distributed formats and a record a line are the same.
#[test]
fn both_formats_of_a_task_are_read() {
    for (name, file) in
        [("locomo", "locomo.json"), ("writing-prompts", "writing-prompts.wp_source")]
    {
        let task = by_name(name).unwrap();
        let text = |data: PathBuf| {
            let streams =
                task.streams(&TaskOptions { data: Some(data), ..options(name, 5) }).unwrap();
            format!("{:?}", streams[0].documents)
        };
        assert_eq!(text(sample(file)), text(sample(&format!("{name}.jsonl"))), "{name}");
    }
}

#[test]
fn a_book_is_cut_without_loss() {
    let stream = &streams("ppl", 1)[0];
    let text = fs_err::read_to_string(sample("ppl.txt")).unwrap();
    assert!(text.starts_with(&stream.documents.concat()));
    for question in &stream.questions {
        assert_eq!(question.references, [stream.documents[question.after].clone()]);
        assert!(question.form.scores_reference && question.form.max_tokens == 0);
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
        ("triviaqa", "{\"Data\": [{\"QuestionId\": \"1\"}]}", "record 1: `Question` is missing"),
        (
            "triviaqa",
            "{\"Data\": [{\"QuestionId\": \"1\", \"Question\": \"q\", \"Answer\": {\"Aliases\": [\"a\"]}, \
             \"EntityPages\": [{\"Filename\": \"../a\"}]}]}",
            "`Filename` leads out",
        ),
        ("multi-news", "{\"documents\": []}", "record 1: it has no articles"),
        ("multi-news", "{\"documents\": [\"a\"]}", "record 1: `summary` is missing"),
        ("writing-prompts", "[{}, {\"id\": \"1\"}]", "record 1: `id` is missing"),
        ("fandom", "One. Two.\n", "has 0 long stories, but a stream takes 7"),
        ("ppl", "{\"title\": \"a\"}", "record 1: `text` is missing"),
        ("ppl", "{\"text\": \"a\"}", "the longest about 0"),
        ("longeval", "{\"prompt\": \"a\"}", "`prompt` does not say where the record ends"),
        (
            "longeval",
            "{\"prompt\": \"line a: <2> Now the record is over. What?\", \"answer\": \"1\"}",
            "the record does not say the answer",
        ),
        ("locomo", "{\"sessions\": []}", "record 1: `qa` is missing"),
        ("locomo", "{\"sessions\": [], \"qa\": [{\"category\": 9}]}", "`category` is no number"),
        ("qmsum", "{\"turns\": [{}]}", "record 1: `speaker` is missing"),
        (
            "qmsum",
            "{\"turns\": [], \"queries\": [{\"query\": \"q\", \"answer\": \"a\", \"relevant_text_span\": [[\"x\"]]}]}",
            "`relevant_text_span` is no list of pairs",
        ),
    ] {
        let found = error(task, text);
        assert!(found.contains(expected), "{found:?}, not {expected:?}");
    }
    let none = TaskOptions { data: None, ..options("squad", 1) };
    let error = by_name("squad").unwrap().streams(&none);
    assert!(matches!(error, Err(EvalError::Setting(message)) if message.contains("--data")));
}

/// The first question about a paragraph has an answer nearly always: both kinds have to be drawn.
#[test]
fn a_few_questions_are_of_both_kinds() {
    let squad = by_name("squad").unwrap();
    let mut groups = std::collections::HashMap::new();
    for seed in 0..8 {
        let options = TaskOptions { unanswerable: true, limit: 6, ..options("squad", seed) };
        for question in squad.streams(&options).unwrap().into_iter().flat_map(|s| s.questions) {
            *groups.entry(question.group).or_insert(0) += 1;
        }
    }
    assert!(groups.len() == 2 && groups.values().all(|&n| n > 8), "{groups:?}");
}

#[test]
fn distances_that_hold_no_questions_are_refused() {
    for (name, distances, limit, expected) in [
        ("passkey", vec![200], 40, "no room for 40 questions: use at least 1600"),
        ("multi-needle", vec![200], 2, "use at least 320"),
        ("number", vec![4000, 8000], 1, "--limit: at least 2"),
        ("stream-eval", vec![100], 9, "--distance 100: use at least 160"),
        ("stream-eval", vec![200, 300], 1, "--limit: at least 2"),
    ] {
        let options = TaskOptions { distances, limit, ..options(name, 1) };
        let error = by_name(name).unwrap().streams(&options).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
