//! `everstream bench`: what it reports, not how fast it is.

use fs_err as fs;
use serde_json::Value;

use crate::rig::{Rig, long_text, tiny};

const SMALL: [&str; 6] = ["--prompt-tokens", "20", "--decode-tokens", "4", "--repetitions", "3"];

#[test]
fn the_measurement_names_its_conditions() {
    let rig = Rig::new();
    let model = tiny("tiny-llama");
    let arguments =
        ["bench", "--model", &model, "--isa", "scalar", "--json", "--stream-tokens", "0"];
    let result = rig.ok(&[&arguments[..], &SMALL].concat()).json();
    for name in [
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
        "ingest_tokens_per_second",
        "read_bytes_per_second",
        "share_of_limit",
    ] {
        let number = |field: &str| result[name][field].as_f64().unwrap();
        let (min, median, max) = (number("min"), number("median"), number("max"));
        assert!(0.0 < min && min <= median && median <= max, "{result}");
    }
    assert_eq!((&result["isa"], &result["threads"]), (&"scalar".into(), &1.into()));
    for name in ["commit", "os", "cpu", "model"] {
        assert!(!result[name].as_str().unwrap().is_empty(), "{result}");
    }
    assert_eq!(result["file_bytes"], fs::metadata(&model).unwrap().len());
    assert!(result["weight_bytes_per_token"].as_u64().unwrap() > 100_000, "{result}");
    assert!(result["stream"].is_null(), "{result}");
}

fn segments(result: &Value) -> &[Value] {
    result["stream"]["segments"].as_array().unwrap()
}

#[test]
fn a_stream_of_text_is_measured_and_plotted() {
    let rig = Rig::new();
    let (model, text) = (tiny("tiny-qwen2"), rig.file("text.txt", long_text()));
    let plot = rig.path("plot.svg");
    let arguments = ["bench", "--model", &model, "--window", "60", "--stream-tokens", "500"];
    let more = ["--text", &text, "--plot", &plot, "--json"];
    let result = rig.ok(&[&arguments[..], &SMALL, &more].concat()).json();
    let segments = segments(&result);
    assert_eq!(segments.len(), 20, "{result}");
    assert_eq!(segments[19]["end"], 500);
    for segment in segments {
        for field in ["perplexity", "ms_per_token", "decode_ms_per_token"] {
            assert!(segment[field].as_f64().unwrap() > 0.0, "{segment}");
        }
    }
    let svg = fs::read_to_string(plot).unwrap();
    assert!(svg.starts_with("<svg ") && svg.matches("<polyline").count() == 4, "{svg}");
    assert!(!svg.contains("NaN"), "{svg}");
}

#[test]
fn the_perplexity_of_a_stream_is_that_of_its_text() {
    let rig = Rig::new();
    let (model, text) = (tiny("tiny-qwen2"), rig.file("text.txt", long_text()));
    let sizes = ["--model", &model, "--window", "60", "--text", &text, "--json"];
    let bench = ["bench", "--stream-tokens", "201"];
    let result = rig.ok(&[&bench[..], &sizes, &SMALL].concat()).json();
    let scored = rig.ok(&[&["perplexity", "--tokens", "201"][..], &sizes].concat()).json();
    let segments = segments(&result);
    // All segments have eleven tokens but the last, whose last token predicts nothing.
    let nll = |segment: &Value| {
        let n = segment["end"].as_u64().unwrap() - segment["first"].as_u64().unwrap();
        let n = if segment["end"] == 201 { n - 1 } else { n };
        segment["perplexity"].as_f64().map_or(0.0, |p| p.ln() * n as f64)
    };
    let total: f64 = segments.iter().map(nll).sum();
    let expected = scored["results"][0]["nll"].as_f64().unwrap();
    assert!((total / 200.0 / expected - 1.0).abs() < 1e-4, "{} {expected}", total / 200.0);
}

#[test]
fn random_tokens_have_no_perplexity() {
    let rig = Rig::new();
    let model = tiny("tiny-llama");
    let arguments = ["bench", "--model", &model, "--stream-tokens", "30", "--json"];
    let result = rig.ok(&[&arguments[..], &SMALL].concat()).json();
    assert_eq!(result["stream"]["source"], "random");
    assert!(segments(&result).iter().all(|s| s["perplexity"].is_null()), "{result}");
    let text = rig.ok(&[&arguments[..5], &SMALL].concat()).stdout;
    assert!(text.contains("decode") && text.contains("position"), "{text}");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let rig = Rig::new();
    let (model, text) = (tiny("tiny-llama"), rig.file("text.txt", "short"));
    let fails = |more: &[&str], part: &str| {
        rig.fails(&[&["bench", "--model", &model][..], more].concat(), part);
    };
    fails(&["--prompt-tokens", "0"], "--prompt-tokens is 0");
    fails(&["--decode-tokens", "0"], "--decode-tokens is 0");
    fails(&["--repetitions", "0"], "--repetitions is 0");
    fails(&["--window", "0"], "the window is 0");
    fails(&["--plot", "x.svg", "--stream-tokens", "0"], "leave out --stream-tokens 0");
    fails(&["--stream-tokens", "50", "--text", &text], "fewer than --stream-tokens 50");
    let plot = rig.path("missing/x.svg");
    fails(&["--stream-tokens", "50", "--plot", &plot], "does not exist: make it first");
}
