//! `everstream chat` with piped input.

use crate::rig::{Rig, long_text, tiny};

fn arguments<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let common = ["chat", "--model", model, "--policy", "sink", "--max-tokens", "12"];
    [&common[..], more].concat()
}

#[test]
fn as_many_lines_come_out_as_turns_go_in() {
    let rig = Rig::new();
    let input = b"one\n\n  \ntwo\nthree\r\n//four\nfive, without an end";
    for model in ["tiny-llama", "tiny-qwen2"] {
        for policy in ["sink", "dense", "window"] {
            let model = tiny(model);
            let common = ["chat", "--model", &model, "--policy", policy, "--max-tokens", "12"];
            let ran = rig.run_with_input(&common, input);
            assert_eq!(ran.code, Some(0), "{ran:?}");
            assert_eq!(ran.stdout.matches('\n').count(), 5, "{ran:?}");
        }
    }
}

#[test]
fn no_input_is_no_answer() {
    let rig = Rig::new();
    let ran = rig.run_with_input(&arguments(&tiny("tiny-llama"), &[]), b"");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{ran:?}");
}

#[test]
fn quit_ends_it() {
    let rig = Rig::new();
    let ran = rig.run_with_input(&arguments(&tiny("tiny-llama"), &[]), b"one\n/quit\ntwo\n");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(ran.stdout.lines().count(), 1, "{ran:?}");
}

#[test]
fn commands_answer_on_standard_error() {
    let rig = Rig::new();
    let input = b"/help\n/stats\n/policy\n/memory\n/memory word\n";
    let ran = rig.run_with_input(&arguments(&tiny("tiny-llama"), &[]), input);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{ran:?}");
    for part in ["/quit", "0 evicted", "policy sink: ", "has no memory"] {
        assert!(ran.stderr.contains(part), "{part}: {ran:?}");
    }
}

#[test]
fn a_command_that_does_not_exist_ends_a_script() {
    let rig = Rig::new();
    let ran = rig.run_with_input(&arguments(&tiny("tiny-llama"), &[]), b"one\n/nonsense\ntwo\n");
    assert!(ran.error().contains("unknown command /nonsense"), "{ran:?}");
    assert_eq!(ran.stdout.lines().count(), 1, "{ran:?}");
}

#[test]
fn json_is_one_object_for_each_turn() {
    let rig = Rig::new();
    let input = b"The river\n\nThe town\n";
    let ran = rig.run_with_input(&arguments(&tiny("tiny-llama"), &["--json"]), input);
    let turns = ran.json_lines();
    assert_eq!(turns.len(), 2, "{ran:?}");
    for (i, turn) in turns.iter().enumerate() {
        assert_eq!(turn["turn"], i + 1);
        assert!(turn["text"].is_string() && turn["stop"].is_string(), "{turn}");
        assert!(turn["prompt_tokens"].as_u64().unwrap() > 0, "{turn}");
        assert!(turn["generated_tokens"].as_u64().unwrap() <= 12, "{turn}");
        assert_eq!(turn["recalled"].as_array().unwrap().len(), 0, "{turn}");
        assert!(turn["timings_ms"]["total"].as_f64().unwrap() > 0.0, "{turn}");
        assert!(turn["sections"]["sinks"].as_u64().unwrap() >= 4, "{turn}");
    }
    let same = rig.run_with_input(&arguments(&tiny("tiny-llama"), &["--json"]), input);
    assert_eq!(same.json_lines()[1]["text"], turns[1]["text"]);
}

#[test]
fn a_text_longer_than_the_cache_is_read_first() {
    let rig = Rig::new();
    let (one, two) = (rig.file("one.txt", long_text()), rig.file("two.txt", "A short one."));
    let model = tiny("tiny-qwen2");
    let more = ["--window", "64", "--chunk", "32", "--json", "--ingest", &one, &two];
    let ran = rig.run_with_input(&arguments(&model, &more), b"What was on day 3?\n");
    let turns = ran.json_lines();
    assert_eq!(turns[0]["sections"]["window"], 64, "{ran:?}");
    assert_eq!(turns[0]["sections"]["sinks"], 4, "{ran:?}");
    for name in ["one.txt: ", "two.txt: "] {
        assert!(ran.stderr.contains(name), "{ran:?}");
    }

    // A system prompt is pinned: its tokens are sinks, all of them.
    let system = [&more[..], &["--system", "Answer in one sentence."]].concat();
    let ran = rig.run_with_input(&arguments(&model, &system), b"What was on day 3?\n");
    assert!(ran.json_lines()[0]["sections"]["sinks"].as_u64().unwrap() > 10, "{ran:?}");
}

#[test]
fn input_that_is_no_text_is_refused() {
    let rig = Rig::new();
    let ran = rig.run_with_input(&arguments(&tiny("tiny-llama"), &[]), b"one\n\xff\xfe\n");
    assert!(ran.error().contains("line 2 of standard input is not UTF-8"), "{ran:?}");
    assert_eq!(ran.stdout.lines().count(), 1, "{ran:?}");
}

#[test]
fn a_dense_cache_that_is_full_says_so() {
    let rig = Rig::new();
    let text = rig.file("text.txt", long_text().repeat(10));
    let model = tiny("tiny-llama");
    let arguments =
        ["chat", "--model", &model, "--policy", "dense", "--max-tokens", "4", "--ingest", &text];
    rig.fails_with_input(&arguments, b"one\n", "use a policy that evicts");
}
