//! What only real models can show: that a chat recalls what its window has lost.
//!
//! `EVERSTREAM_TEST_CACHE` names a cache folder that holds `smollm2-135m` and `minilm`;
//! `cargo xtask check` pulls them and sets it.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

const CHRONICLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/chronicle.txt");
const QUESTIONS: &str = include_str!("../../../examples/chronicle.questions.json");

/// Held while a model runs: two at once on all cores would wait for each other.
static CORES: Mutex<()> = Mutex::new(());

/// Runs the binary on the models of the test cache; returns both output streams.
fn run(arguments: &[&str], input: &str) -> (String, String) {
    let _cores = CORES.lock().unwrap_or_else(PoisonError::into_inner);
    let cache = std::env::var("EVERSTREAM_TEST_CACHE")
        .expect("EVERSTREAM_TEST_CACHE names a cache folder: run `cargo xtask check`");
    let mut child = Command::new(env!("CARGO_BIN_EXE_everstream"))
        .args(["--offline", "--cache-dir", &cache])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|stream| String::from_utf8(stream).unwrap());
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    (stdout, stderr)
}

fn objects(lines: &str) -> Vec<Value> {
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The beginning of the chronicle, in a file.
fn excerpt(dir: &tempfile::TempDir, n_bytes: usize) -> String {
    let text = fs_err::read_to_string(CHRONICLE).unwrap();
    let path = dir.path().join("excerpt.txt");
    fs_err::write(&path, &text[..text.floor_char_boundary(n_bytes)]).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
#[ignore = "needs the real models: cargo xtask check runs it"]
fn a_chat_recalls_what_its_window_has_lost() {
    let asked: Value = serde_json::from_str(QUESTIONS).unwrap();
    let asked = &asked["questions"].as_array().unwrap()[..2];
    let lines: Vec<_> = asked.iter().map(|q| q["question"].as_str().unwrap()).collect();
    let input = format!("{}\n/memory {}\n", lines.join("\n"), lines[0]);
    let dir = tempfile::tempdir().unwrap();
    let text = excerpt(&dir, 20_000);
    let arguments = ["chat", "--ingest", &text, "--max-tokens", "16", "--json"];
    let (stdout, stderr) = run(&arguments, &input);
    let turns = objects(&stdout);
    assert_eq!(turns.len(), 2, "{stdout}");
    for (turn, asked) in turns.iter().zip(asked) {
        let answer = asked["answers"][0].as_str().unwrap();
        let recalled = turn["recalled"].as_array().unwrap();
        let holds_answer = |block: &Value| block["text"].as_str().unwrap().contains(answer);
        assert!(recalled.iter().any(holds_answer), "{answer}: {turn}");
        // One paragraph, in its order.
        let follows = |a: &Value, b: &Value| a["range"][1] == b["range"][0];
        assert!(recalled.is_sorted_by(follows), "{turn}");
        // This turn, and perhaps the last one, of a window of 512 tokens.
        let n = |value: &Value| value.as_u64().unwrap();
        let n_said = n(&turn["prompt_tokens"]) + n(&turn["generated_tokens"]);
        assert!((n_said..150).contains(&n(&turn["sections"]["window"])), "{turn}");
    }
    let n_recalled: usize = turns.iter().map(|t| t["recalled"].as_array().unwrap().len()).sum();
    let shown = stderr.lines().filter(|line| line.starts_with("recalled tokens ")).count();
    assert_eq!(shown, n_recalled, "{stderr}");
    assert!(stderr.contains("excerpt.txt:"), "the search names file and line: {stderr}");
}

#[test]
#[ignore = "needs the real models: cargo xtask check runs it"]
fn remember_without_a_recall_is_sink_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let text = excerpt(&dir, 2500);
    // No distance is below the gate, so nothing is recalled; what has left the window is in memory.
    let common = ["chat", "--ingest", &text, "--window", "96", "--gate=-1", "--max-tokens", "24"];
    let input = "Who rang the bell?\nAnd why?\n";
    let answers = |policy: &str| -> Vec<Value> {
        let (stdout, _) = run(&[&common[..], &["--json", "--policy", policy]].concat(), input);
        let turns = objects(&stdout);
        assert!(turns.iter().all(|turn| turn["recalled"].as_array().unwrap().is_empty()));
        turns.iter().map(|turn| turn["text"].clone()).collect()
    };
    assert_eq!(answers("remember"), answers("sink"));

    let generated = |policy: &str| {
        let arguments =
            ["generate", "--file", &text, "--window", "96", "--gate=-1", "--max-tokens", "24"];
        run(&[&arguments[..], &["--policy", policy]].concat(), "").0
    };
    assert_eq!(generated("remember"), generated("sink"));
}

#[test]
#[ignore = "needs the real models: cargo xtask check runs it"]
fn remember_is_scored_on_the_positions_of_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let text = excerpt(&dir, 2500);
    let arguments = ["perplexity", "--text", &text, "--window", "96", "--context-tokens", "96"];
    let (stdout, _) = run(&[&arguments[..], &["--policy", "sink,remember", "--json"]].concat(), "");
    let result: Value = serde_json::from_str(&stdout).unwrap();
    let rows = result["results"].as_array().unwrap();
    assert_eq!(rows[0]["tokens"], rows[1]["tokens"], "{result}");
    assert!(rows[0]["tokens"].as_u64() > Some(300), "{result}");
    for row in rows {
        assert!((1.0..1000.0).contains(&row["perplexity"].as_f64().unwrap()), "{row}");
    }
}

#[test]
#[ignore = "needs the real models: cargo xtask check runs it"]
fn a_session_goes_on_and_can_be_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let (text, data) = (excerpt(&dir, 12_000), dir.path().join("data"));
    let data = data.to_str().unwrap();
    let chat = ["chat", "--data-dir", data, "--session", "work", "--max-tokens", "8", "--json"];
    let ingest = [&chat[..], &["--ingest", &text]].concat();
    let (first, said) = run(&ingest, "Who is the harbour master?\n");
    assert!(said.contains("tokens/s"), "{said}");
    let (_, said) = run(&ingest, "\n");
    assert!(said.contains("session work: ") && said.contains("was read before"), "{said}");
    let (second, _) = run(&chat, "Who is the harbour master?\n/forget 4..120\n");
    let recalled = |lines: &str| objects(lines)[0]["recalled"].as_array().unwrap().len();
    assert!(recalled(&first) > 0 && recalled(&second) > 0);

    let memory = |action: &[&str]| {
        let arguments = [&["memory"], action, &["--data-dir", data]].concat();
        run(&arguments, "").0
    };
    let sessions = objects(&memory(&["ls", "--json"]));
    assert_eq!((sessions.len(), &sessions[0]["session"]), (1, &"work".into()));
    let shown = objects(&memory(&["show", "--session", "work", "--json"]));
    assert!(shown.len() > 20 && shown[0]["range"][0].as_u64().unwrap() > 4, "the first is gone");
    let users = objects(&memory(&["show", "--session", "work", "--role", "user", "--json"]));
    assert!(users.len() < shown.len());
    let found = objects(&memory(&[
        "search",
        "--session",
        "work",
        "--json",
        "-n",
        "3",
        "--distance",
        "l2",
        "harbour master",
    ]));
    let distances: Vec<f64> = found.iter().map(|f| f["distance"].as_f64().unwrap()).collect();
    assert!(distances.len() == 3 && distances.is_sorted(), "{distances:?}");
    memory(&["verify", "--session", "work"]);
    let compacted = memory(&["compact", "--session", "work", "--json"]);
    let compacted: Value = serde_json::from_str(&compacted).unwrap();
    assert!(compacted["bytes_after"].as_u64() < compacted["bytes_before"].as_u64());
    let exported = memory(&["export", "--session", "work", "--kv"]);
    let blocks = objects(&exported);
    assert_eq!(blocks.len(), shown.len());
    assert_eq!(blocks[0]["embedding"].as_array().unwrap().len(), 384);
    assert!(blocks[0]["kv"]["base64"].as_str().unwrap().len() > 100_000);
    let lines: Vec<&str> = exported.lines().take(4).collect();
    let file = dir.path().join("some.jsonl");
    fs_err::write(&file, lines.join("\n")).unwrap();
    memory(&["import", "--session", "copy", file.to_str().unwrap()]);
    let copied = objects(&memory(&["show", "--session", "copy", "--json"]));
    assert!(copied.len() >= 3 && copied[0]["source"]["file"] == blocks[0]["source"]["file"]);
    memory(&["rm", "--session", "copy"]);
    assert_eq!(objects(&memory(&["ls", "--json"])).len(), 1);
}
