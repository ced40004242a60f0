//! `everstream generate`.

use crate::rig::{Rig, long_text, tiny};

const PROMPT: &str = "The river runs through the old town";

#[test]
fn greedy_is_deterministic_for_any_number_of_threads() {
    let rig = Rig::new();
    for model in ["tiny-llama", "tiny-qwen2"] {
        let model = tiny(model);
        let arguments =
            ["generate", "--model", &model, "--prompt", PROMPT, "--max-tokens", "24", "--json"];
        let text = |threads: &str| {
            let ran = rig.ok(&[&arguments[..], &["--threads", threads]].concat());
            let result = ran.json();
            assert!(result["generated_tokens"].as_u64().unwrap() > 0, "{result}");
            assert!(result["prompt_tokens"].as_u64().unwrap() > 0, "{result}");
            result["text"].as_str().unwrap().to_owned()
        };
        let first = text("1");
        assert!(!first.is_empty());
        assert_eq!(text("1"), first);
        assert_eq!(text("2"), first);
        assert_eq!(text("3"), first);
    }
}

#[test]
fn text_goes_to_standard_output_and_the_rest_to_standard_error() {
    let rig = Rig::new();
    let model = tiny("tiny-llama");
    let ran = rig.ok(&["generate", "--model", &model, "--prompt", PROMPT, "--max-tokens", "8"]);
    assert!(ran.stdout.trim().len() > 1, "{ran:?}");
    assert!(ran.stderr.contains("prompt tokens"), "{ran:?}");
}

#[test]
fn a_prompt_may_come_from_a_file_or_standard_input() {
    let rig = Rig::new();
    let (model, file) = (tiny("tiny-qwen2"), rig.file("prompt.txt", PROMPT));
    let common = ["generate", "--model", &model, "--max-tokens", "6", "--json"];
    let from_argument = rig.ok(&[&common[..], &["--prompt", PROMPT]].concat()).json();
    let from_file = rig.ok(&[&common[..], &["--file", &file]].concat()).json();
    let from_stdin =
        rig.run_with_input(&[&common[..], &["--file", "-"]].concat(), PROMPT.as_bytes()).json();
    assert_eq!(from_file["text"], from_argument["text"]);
    assert_eq!(from_stdin["text"], from_argument["text"]);
}

#[test]
fn a_seed_decides_what_is_drawn() {
    let rig = Rig::new();
    let model = tiny("tiny-llama");
    let text = |seed: &str| {
        let arguments = ["generate", "--model", &model, "--prompt", PROMPT, "--max-tokens", "16"];
        let sampling = ["--temperature", "1.5", "--seed", seed, "--json"];
        rig.ok(&[&arguments[..], &sampling].concat()).json()["text"].clone()
    };
    assert_eq!(text("1"), text("1"));
    assert_ne!(text("1"), text("2"));
}

#[test]
fn a_stream_longer_than_its_cache_goes_on() {
    let rig = Rig::new();
    let (model, file) = (tiny("tiny-llama"), rig.file("long.txt", long_text()));
    for policy in ["window", "recompute", "sink"] {
        let arguments = ["generate", "--model", &model, "--file", &file, "--policy", policy];
        let sizes = ["--window", "40", "--chunk", "16", "--max-tokens", "5", "--json"];
        let result = rig.ok(&[&arguments[..], &sizes].concat()).json();
        assert_eq!(result["generated_tokens"], 5, "{policy}: {result}");
        assert!(result["prompt_tokens"].as_u64().unwrap() > 500, "{result}");
    }
}

#[test]
fn without_a_sentence_encoder_it_goes_on_and_says_so() {
    let rig = Rig::new();
    let model = tiny("tiny-llama");
    let common = ["generate", "--model", &model, "--prompt", PROMPT, "--max-tokens", "3", "--json"];
    let ran = rig.ok(&common);
    assert!(ran.stderr.contains("going on without memory, as with --policy sink"), "{ran:?}");
    assert_eq!(ran.json()["policy"], "sink");
    let asked = [&common[..], &["--policy", "remember"]].concat();
    rig.fails(&asked, "no source of minilm works");
    let session = ["chat", "--model", &model, "--session", "x", "--data-dir", &rig.path("data")];
    rig.fails(&session, "no source of minilm works");
}
