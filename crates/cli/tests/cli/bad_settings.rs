//! Settings that cannot be: one line, exit code 1, no panic.

use crate::rig::{Rig, long_text, tiny};

/// Runs every command that has a cache with more arguments, all of which must fail.
fn check(more: &[&str], part: &str) {
    let rig = Rig::new();
    let (model, text) = (tiny("tiny-llama"), rig.file("text.txt", long_text()));
    for command in [
        &["generate", "--prompt", "x", "--model", &model][..],
        &["chat", "--model", &model],
        &["perplexity", "--text", &text, "--model", &model],
        &["inspect", &model],
    ] {
        rig.fails(&[command, more].concat(), part);
    }
}

#[test]
fn a_window_of_0() {
    check(&["--policy", "sink", "--window", "0"], "the window is 0, but must be at least 1");
    check(&["--policy", "remember", "--window", "0"], "the window is 0, but must be at least 1");
}

#[test]
fn a_window_shorter_than_a_block() {
    check(&["--policy", "remember", "--window", "95"], "the window is 95, but must be at least 96");
}

#[test]
fn recalled_context_shorter_than_a_block() {
    let more = ["--policy", "remember", "--context-tokens", "95"];
    check(&more, "the recalled context is 95, but must be at least 96");
}

#[test]
fn a_chunk_of_0() {
    check(&["--policy", "sink", "--chunk", "0"], "a prefill chunk is 0, but must be at least 1");
}

#[test]
fn more_sinks_than_budget() {
    let rig = Rig::new();
    let (model, text) = (tiny("tiny-llama"), rig.file("text.txt", long_text()));
    let arguments = ["perplexity", "--model", &model, "--text", &text, "--tokens", "50"];
    let more = ["--policy", "dense", "--sinks", "51"];
    let expected = "the number of sinks is 51, but must be at most the 50 tokens";
    rig.fails(&[&arguments[..], &more].concat(), expected);
    check(&["--policy", "sink", "--sinks", "18446744073709551615"], "the number of sinks is");
}

#[test]
fn a_cache_larger_than_any_memory() {
    let rig = Rig::new();
    let (model, text) = (tiny("tiny-llama"), rig.file("text.txt", long_text()));
    let huge = ["--policy", "sink", "--window", "500000000", "--sinks", "500000000"];
    let huge = [&huge[..], &["--chunk", "500000000", "--cache-type", "f32"]].concat();
    for command in [
        &["generate", "--prompt", "x", "--model", &model][..],
        &["chat", "--model", &model],
        &["perplexity", "--text", &text, "--model", &model],
    ] {
        rig.fails(&[command, &huge].concat(), "no memory for a cache of");
    }
}

#[test]
fn sampling_out_of_range() {
    let rig = Rig::new();
    let model = tiny("tiny-llama");
    for (setting, part) in [
        ("--temperature=-0.5", "temperature is -0.5, but must be 0 or more"),
        ("--temperature=nan", "temperature is NaN"),
        ("--top-p=0", "top-p is 0"),
        ("--top-p=1.5", "top-p is 1.5"),
        ("--min-p=2", "min-p is 2"),
        ("--repeat-penalty=0", "repeat-penalty is 0"),
    ] {
        rig.fails(&["generate", "--model", &model, "--prompt", "x", setting], part);
        rig.fails(&["chat", "--model", &model, "--policy", "sink", setting], part);
    }
}

#[test]
fn scores_of_too_few_tokens() {
    let rig = Rig::new();
    let (model, text) = (tiny("tiny-llama"), rig.file("text.txt", "A short text."));
    let arguments = ["perplexity", "--model", &model, "--text", &text];
    let fails = |more: &[&str], part: &str| rig.fails(&[&arguments[..], more].concat(), part);
    fails(&["--tokens", "10000"], "fewer than --tokens 10000");
    fails(&["--tokens", "1"], "--tokens is 1, but at least 2 are needed");
    fails(&["--tokens", "0"], "--tokens is 0, but at least 2 are needed");
    fails(&["--every", "0"], "--every is 0");
}

#[test]
fn sizes_beyond_every_machine() {
    for policy in ["recompute", "window", "dense", "sink", "remember"] {
        for size in ["--window", "--sinks", "--chunk"] {
            check(&["--policy", policy, size, "18446744073709551615"], "but must be at most");
        }
    }
}

#[test]
fn limits_that_nothing_fits_into() {
    let rig = Rig::new();
    let model = tiny("tiny-llama");
    let chat = |size, keep| {
        let session = ["--session", "small", "--memory-max", size, "--memory-keep", keep];
        rig.fails(&[&["chat", "--model", &model][..], &session].concat(), "is too little: use at");
    };
    chat("127MiB", "newest");
    chat("191MiB", "distinct");
    assert_eq!(rig.ok(&["memory", "ls", "--json"]).stdout, "", "no session was begun");
}

/// What the parser refuses: its own message, and exit code 2.
#[test]
fn values_that_are_no_setting() {
    let rig = Rig::new();
    for (arguments, part) in [
        (&["chat", "--gate", "nan"][..], "use a number"),
        (&["models", "--threads", "1000000"], "use 1 to 1024"),
        (&["models", "--threads", "0"], "non-zero"),
        (&["generate"], "<--prompt <TEXT>|--file <FILE>>"),
        (&["generate", "--prompt", "x", "--stop", ""], "--stop"),
        (&["chat", "--session", "x", "--memory-max", "3 parsecs"], "500MB or 2GiB"),
        (&["chat", "--session", "x", "--memory-max", "99999999999TB"], "more than there is"),
        (&["chat", "--policy", "all"], "use dense, window"),
        (
            &["chat", "--strategy", "best"],
            "use nearest, hybrid, fusion, attention, attention-clusters",
        ),
        (&["eval", "sqad"], "use ppl, squad, triviaqa"),
        (&["eval", "squad", "--policy", "gold"], "use evidence, closed-book, full"),
        (&["eval", "passkey", "--distance", "0"], "0 is not in 1..=10000000"),
    ] {
        let ran = rig.run(arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran:?}");
        assert!(ran.stderr.contains(part), "{ran:?}");
    }
}

/// Said before a model is looked for.
#[test]
fn evaluations_that_cannot_be() {
    let rig = Rig::new();
    rig.fails(&["eval", "squad"], "this task reads a file: name it with --data");
    rig.fails(&["eval", "squad", "--data", "none.json"], "none.json");
    rig.fails(&["eval", "passkey", "--policy", "sink,sink"], "sink is asked for twice");
    rig.fails(&["eval", "passkey", "--data", "x.json"], "--data has no meaning for passkey");
    rig.fails(&["eval", "squad", "--distance", "9"], "--distance has no meaning for squad");
    rig.fails(&["eval", "number", "--unanswerable"], "--unanswerable has no meaning for number");
    rig.fails(&["eval", "report", "none"], "none");
    rig.fails(&["eval", "all", "none.toml", "--out", "out"], "none.toml");
    rig.fails(&["eval", "passkey", "--limit", "1000"], "--limit: at most 800 for 2 distances");
}

#[test]
fn an_instruction_set_that_does_not_exist() {
    let rig = Rig::new();
    let model = tiny("tiny-llama");
    let arguments = ["generate", "--model", &model, "--prompt", "x", "--isa", "mmx"];
    rig.fails(&arguments, "instruction set \"mmx\" is unknown or missing here: use scalar");
}

#[test]
fn a_sentence_encoder_as_a_language_model() {
    let rig = Rig::new();
    let model = rig.file("model.safetensors", "x");
    rig.fails(&["generate", "--model", &model, "--prompt", "x"], "is a sentence encoder");
}

/// Clusters can ruin a model: who talks to one gets those that were measured to help it.
#[test]
fn clusters_are_refused_where_they_were_not_measured() {
    let rig = Rig::new();
    let (model, text) = (tiny("tiny-llama"), rig.file("text.txt", long_text()));
    let generate = ["generate", "--model", &model, "--prompt", "Once", "--max-tokens", "4"];
    let with = |more: &[&'static str]| [&generate[..], more].concat();
    rig.fails(&with(&["--clusters", "64"]), "clusters were not measured to help");
    rig.fails(
        &with(&["--clusters", "64", "--cluster-form", "medoid"]),
        "only 64 calibrated centroids behind the sinks were measured to help a model: use --clusters 64",
    );
    rig.ok(&with(&["--clusters", "64", "--cluster-form", "medoid", "--force"]));
    rig.fails(
        &with(&["--clusters", "64", "--policy", "dense"]),
        "must be 0 unless the policy is sink or remember",
    );
    rig.fails(&with(&["--clusters", "70000", "--force"]), "must be at most 65536");
    // Who measures may measure anything.
    let score = |clusters: &'static str| {
        let sizes = ["--window", "100", "--policy", "dense,window,sink", "--tokens", "700"];
        let arguments = ["perplexity", "--model", &model, "--text", &text, "--json"];
        rig.ok(&[&arguments[..], &sizes, &["--clusters", clusters]].concat()).json()
    };
    let (without, with) = (score("0"), score("8"));
    // `window` has room for as many more tokens.
    for (policy, is_same) in [(0, true), (1, false), (2, false)] {
        let [a, b] = [&without, &with].map(|score| &score["results"][policy]["nll"]);
        assert_eq!(a == b, is_same, "{a} {b}");
    }
    assert_eq!(with["results"][2]["clusters"]["bias"], "calibrated");
}
