//! Greedy continuations beside llama.cpp's, recorded by `bench-peer greedy`.
#![expect(clippy::unwrap_used, reason = "a test stops where something unexpected happens")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use everstream_kv_cache::{KvCache, NeverEvict};
use everstream_model::{Arithmetic, Model, ModelOptions, Sequence, SpecialTokens, Workspace};
use serde_json::Value;

const MARGIN: f32 = 0.5;

/// A prompt, and how llama.cpp continued it.
struct Recorded {
    name: String,
    text: String,
    tokens: Vec<u32>,
    continuation: Vec<u32>,
    runners_up: Vec<u32>,
    leads: Vec<f32>,
}

fn list<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

fn recorded(file: &str) -> Vec<Recorded> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    let json: Value = serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap();
    let prompt = |p: &Value| Recorded {
        name: list(&p["name"]),
        text: list(&p["text"]),
        tokens: list(&p["tokens"]),
        continuation: list(&p["continuation"]),
        runners_up: list(&p["runners_up"]),
        leads: list(&p["leads"]),
    };
    json["prompts"].as_array().unwrap().iter().map(prompt).collect()
}

/// A stream under full attention, keys and values in f16, as llama.cpp's.
struct Stream<'m> {
    model: &'m Model,
    cache: KvCache,
    ws: Workspace,
}

impl<'m> Stream<'m> {
    fn new(model: &'m Model, max_tokens: usize) -> Self {
        let policy = NeverEvict { n_sink: 0, max_tokens };
        let config = model.cache_config(Arc::new(policy), 0, max_tokens);
        Self { model, cache: KvCache::new(&config).unwrap(), ws: Workspace::default() }
    }

    fn read(&mut self, tokens: &[u32]) {
        let sequence = Sequence { tokens, cache: &mut self.cache };
        self.model.forward(&mut self.ws, &mut [sequence]).unwrap();
    }

    /// The logits after the `row`-th of the tokens read last.
    fn logits(&mut self, row: usize) -> &[f32] {
        self.model.logits(&mut self.ws, row..row + 1)
    }
}

/// Of equals, the first, as llama.cpp chooses.
fn argmax(logits: &[f32]) -> u32 {
    let better = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
    (0..logits.len()).reduce(better).unwrap() as u32
}

/// Continues the prompt on our own.
fn continued(model: &Model, recorded: &Recorded) -> Vec<u32> {
    let n_tokens = recorded.continuation.len();
    let mut stream = Stream::new(model, recorded.tokens.len() + n_tokens);
    stream.read(&recorded.tokens);
    let mut out = vec![argmax(stream.logits(recorded.tokens.len() - 1))];
    while out.len() < n_tokens {
        stream.read(&out[out.len() - 1..]);
        out.push(argmax(stream.logits(0)));
    }
    out
}

/// What our model thinks of a step of llama.cpp.
struct Opinion {
    /// Our choice.
    best: u32,
    /// Its logit minus that of llama.cpp's choice; 0 if they are the same.
    deficit: f32,
    /// How much further apart we find llama.cpp's two best tokens.
    lead_error: f32,
}

/// Reads llama.cpp's continuation, and at each step asks what we would have chosen.
fn opinions(model: &Model, recorded: &Recorded) -> Vec<Opinion> {
    let n_tokens = recorded.continuation.len();
    let tokens = [&recorded.tokens[..], &recorded.continuation[..n_tokens - 1]].concat();
    let mut stream = Stream::new(model, tokens.len());
    stream.read(&tokens);
    let first = recorded.tokens.len() - 1;
    let opinion = |step: usize| {
        let logits = stream.logits(first + step);
        let best = argmax(logits);
        let chosen = logits[recorded.continuation[step] as usize];
        let lead = chosen - logits[recorded.runners_up[step] as usize];
        Opinion {
            best,
            deficit: logits[best as usize] - chosen,
            lead_error: lead - recorded.leads[step],
        }
    };
    (0..n_tokens).map(opinion).collect()
}

fn check(variable: &str, file: &str) {
    let path: PathBuf = std::env::var_os(variable).expect("xtask sets the model's path").into();
    for arithmetic in [Arithmetic::Quantized, Arithmetic::F32] {
        let start = std::time::Instant::now();
        let options = ModelOptions { arithmetic, ..Default::default() };
        let model = Model::open(&path, options).unwrap();
        for recorded in recorded(file) {
            let ids = model.tokenizer().encode(&recorded.text, SpecialTokens::AsText);
            assert_eq!(ids, recorded.tokens);
            let opinions = opinions(&model, &recorded);
            let own = continued(&model, &recorded);
            let n = own.len();
            let agree = (0..n).filter(|&i| own[i] == recorded.continuation[i]).count();
            let prefix = (0..n).find(|&i| own[i] != recorded.continuation[i]);
            let forced: Vec<usize> =
                (0..n).filter(|&i| opinions[i].best != recorded.continuation[i]).collect();
            assert_eq!(prefix, forced.first().copied());
            let small = recorded.leads.iter().filter(|l| **l < MARGIN).count();
            let rms =
                (opinions.iter().map(|o| o.lead_error.powi(2)).sum::<f32>() / n as f32).sqrt();
            let max = opinions.iter().map(|o| o.lead_error.abs()).fold(0.0, f32::max);
            println!(
                "{file} {arithmetic:?} {}: parts {prefix:?}, agree {agree}, leads below {MARGIN}: {small}, lead error rms {rms:.3} max {max:.3}",
                recorded.name
            );
            for i in forced {
                println!(
                    "   step {i}: lead {:.3} deficit {:.3}",
                    recorded.leads[i], opinions[i].deficit
                );
            }
            println!("   ours: {:?}", String::from_utf8_lossy(&model.tokenizer().decode(&own)));
        }
        println!("{:?}", start.elapsed());
    }
}

#[test]
#[ignore = "needs the real model: cargo xtask check runs it"]
fn smollm2_continues_as_llama_cpp() {
    check("EVERSTREAM_TEST_SMOLLM2", "llama-cpp-smollm2-135m.json");
}

#[test]
#[ignore = "needs the real model: cargo xtask check runs it"]
fn qwen_continues_as_llama_cpp() {
    check("EVERSTREAM_TEST_QWEN", "llama-cpp-qwen2.5-coder-0.5b.json");
}
