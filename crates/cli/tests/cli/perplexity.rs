//! `everstream perplexity`.

use serde_json::Value;

use crate::rig::{Rig, long_text, tiny};

#[test]
fn the_fields_are_stable() {
    let rig = Rig::new();
    let (model, text) = (tiny("tiny-llama"), rig.file("text.txt", long_text()));
    let arguments = ["perplexity", "--model", &model, "--text", &text, "--policy", "sink"];
    let sizes = ["--sinks", "4", "--window", "60", "--tokens", "300", "--json"];
    let result = rig.ok(&[&arguments[..], &sizes].concat()).json();
    assert_eq!(result["model"], model.as_str());
    let row = &result["results"][0];
    assert_eq!(row["policy"], "sink");
    assert_eq!(row["sinks"], 4);
    assert_eq!(row["window"], 60);
    assert_eq!(row["tokens"], 299);
    let (nll, perplexity) = (row["nll"].as_f64().unwrap(), row["perplexity"].as_f64().unwrap());
    assert!(nll > 0.0 && (nll.exp() / perplexity - 1.0).abs() < 1e-12, "{row}");
}

#[test]
fn policies_are_scored_on_the_same_positions() {
    let rig = Rig::new();
    let (model, text) = (tiny("tiny-qwen2"), rig.file("text.txt", long_text()));
    let arguments = ["perplexity", "--model", &model, "--text", &text, "--tokens", "200"];
    let choice = ["--policy", "dense,window,recompute,sink", "--window", "50", "--every", "7"];
    let result = rig.ok(&[&arguments[..], &choice, &["--json"]].concat()).json();
    let rows = result["results"].as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|row| row["policy"].as_str().unwrap()).collect();
    assert_eq!(names, ["dense", "window", "recompute", "sink"]);
    for row in rows {
        for field in ["tokens", "first_position", "every"] {
            assert_eq!(row[field], rows[0][field], "{row}");
        }
    }
    assert_eq!(rows[0]["tokens"], 28);
}

#[test]
fn a_budget_larger_than_the_text_is_full_attention() {
    let rig = Rig::new();
    for model in ["tiny-llama", "tiny-qwen2"] {
        let (model, text) = (tiny(model), rig.file("text.txt", long_text()));
        let arguments = ["perplexity", "--model", &model, "--text", &text, "--tokens", "240"];
        let choice = ["--policy", "dense,sink,window,recompute", "--window", "500", "--json"];
        let result = rig.ok(&[&arguments[..], &choice].concat()).json();
        let nll = |i: usize| result["results"][i]["nll"].as_f64().unwrap();
        // A row's bits do not depend on the rows beside it.
        assert_eq!([nll(1), nll(2), nll(3)], [nll(0); 3], "{result}");
    }
}

#[test]
fn a_whole_text_is_scored_by_every_policy() {
    let rig = Rig::new();
    let (model, text) = (tiny("tiny-llama"), rig.file("text.txt", "The river stood still."));
    let arguments = ["perplexity", "--model", &model, "--text", &text, "--json"];
    let result = rig.ok(&[&arguments[..], &["--policy", "dense,sink,window"]].concat()).json();
    assert_eq!(result["results"].as_array().unwrap().len(), 3, "{result}");
}

#[test]
fn every_policy_has_a_line_in_the_table() {
    let rig = Rig::new();
    let (model, text) = (tiny("tiny-llama"), rig.file("text.txt", long_text()));
    let arguments = ["perplexity", "--model", &model, "--text", &text, "--tokens", "50"];
    let ran = rig.ok(&[&arguments[..], &["--policy", "sink,dense"]].concat());
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert!(lines.len() == 3 && lines[0].starts_with("policy"), "{ran:?}");
    assert!(lines[1].starts_with("sink ") && lines[2].starts_with("dense "), "{ran:?}");
}

#[test]
fn the_instruction_sets_agree() {
    let rig = Rig::new();
    let (model, text) = (tiny("tiny-llama"), rig.file("text.txt", long_text()));
    let nll = |more: &[&str]| {
        let arguments = ["perplexity", "--model", &model, "--text", &text, "--tokens", "100"];
        let result: Value = rig.ok(&[&arguments[..], &["--json"], more].concat()).json();
        result["results"][0]["nll"].as_f64().unwrap()
    };
    assert_eq!(nll(&[]), nll(&["--isa", "scalar"]));
}
