//! `greedy`: what llama.cpp continues some prompts with, and by how much it prefers that.

use std::io::{BufRead, BufReader};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::prompts::PROMPTS;
use crate::sides::{FlashAttention, LlamaCpp, Shape, Stream};
use crate::{file_name, machine};

/// Length of each continuation.
const N_TOKENS: usize = 64;
/// Longest prompt.
const MAX_PROMPT_TOKENS: usize = 128;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// GGUF file.
    model: PathBuf,
    /// The model's name; otherwise the one in the file.
    #[arg(long)]
    name: Option<String>,
    /// JSON file to write.
    #[arg(long)]
    out: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    machine::require_native(everstream_kernels::Isa::detect())?;
    let peer = LlamaCpp::open(&args.model)?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => peer.metadata("general.name")?,
    };
    let prompts: Vec<Value> = PROMPTS
        .iter()
        .map(|(name, text)| continued(&peer, name, text))
        .collect::<Result<_, _>>()?;
    let version = machine::locked_version;
    let head = [
        ("script", json!("bench-peer greedy")),
        (
            "versions",
            json!({
                "llama-cpp-2": version("llama-cpp-2"),
                "llama-cpp-sys-2": version("llama-cpp-sys-2"),
            }),
        ),
        ("seed", Value::Null),
        ("model", json!(name)),
        ("file", json!(file_name(&args.model))),
        ("sha256", json!(sha256(&args.model)?)),
        (
            "arithmetic",
            json!(
                "llama.cpp on the CPU: weights as stored, activations in 8 bits (blocks of 32 or \
                 256), keys and values in f16, no flash attention, one thread"
            ),
        ),
        ("compiled_for", json!(machine::compiled())),
        ("tolerance", json!("see crates/model/tests/greedy.rs")),
        ("leads_are", json!("logit of each chosen token minus that of its runner-up")),
    ];
    Ok(fs_err::write(&args.out, layout(&head, &prompts))?)
}

/// One prompt and its continuation.
fn continued(peer: &LlamaCpp, name: &str, text: &str) -> anyhow::Result<Value> {
    let shape = Shape {
        n_threads: NonZeroUsize::MIN,
        max_tokens: MAX_PROMPT_TOKENS + N_TOKENS,
        chunk_tokens: MAX_PROMPT_TOKENS,
    };
    let tokens = peer.tokenize(text)?;
    anyhow::ensure!(tokens.len() <= MAX_PROMPT_TOKENS, "prompt {name} has {} tokens", tokens.len());
    let mut stream = peer.stream(shape, FlashAttention::Off)?;
    let mut best = Best::of(stream.read(&tokens)?);
    let (mut continuation, mut runners_up, mut leads) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        continuation.push(best.token);
        runners_up.push(best.runner_up);
        leads.push(best.lead());
        if continuation.len() == N_TOKENS {
            break;
        }
        best = Best::of(stream.read(&[best.token])?);
    }
    println!("{name}: {text}|{}", peer.text(&continuation));
    Ok(json!({
        "name": name,
        "text": text,
        "tokens": tokens,
        "continuation": continuation,
        "continuation_text": peer.text(&continuation),
        "runners_up": runners_up,
        "leads": leads,
    }))
}

/// The two most likely tokens.
struct Best {
    token: u32,
    runner_up: u32,
    logits: [f32; 2],
}

impl Best {
    /// Of equals, the first.
    fn of(logits: &[f32]) -> Self {
        let mut best = Self { token: 0, runner_up: 0, logits: [f32::NEG_INFINITY; 2] };
        for (token, &logit) in (0..).zip(logits) {
            if logit > best.logits[0] {
                best.runner_up = best.token;
                best.logits = [logit, best.logits[0]];
                best.token = token;
            } else if logit > best.logits[1] {
                best.runner_up = token;
                best.logits[1] = logit;
            }
        }
        best
    }

    /// With four decimals, which is more than 8-bit arithmetic is worth.
    fn lead(&self) -> f64 {
        (f64::from(self.logits[0] - self.logits[1]) * 1e4).round() / 1e4
    }
}

/// One line for each entry, so that a difference can be read.
fn layout(head: &[(&str, Value)], prompts: &[Value]) -> String {
    let mut lines: Vec<String> = head.iter().map(|(k, v)| format!("{}:{v}", json!(k))).collect();
    let prompts: Vec<String> = prompts.iter().map(Value::to_string).collect();
    lines.push(format!("\"prompts\":[\n{}\n]", prompts.join(",\n")));
    format!("{{\n{}\n}}\n", lines.join(",\n"))
}

fn sha256(path: &Path) -> anyhow::Result<String> {
    let mut hasher = Sha256::new();
    let mut file = BufReader::with_capacity(1 << 20, fs_err::File::open(path)?);
    loop {
        let bytes = file.fill_buf()?;
        if bytes.is_empty() {
            break;
        }
        hasher.update(bytes);
        let n = bytes.len();
        file.consume(n);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Best, layout};

    #[test]
    fn the_best_two_are_found_wherever_they_are() {
        for (logits, expected) in [
            ([3.0, 1.0, 2.0], (0, 2, 1.0)),
            ([1.0, 2.0, 3.0], (2, 1, 1.0)),
            ([-2.0, -1.5, -4.0], (1, 0, 0.5)),
            ([5.0, 5.0, 1.0], (0, 1, 0.0)),
        ] {
            let best = Best::of(&logits);
            assert_eq!((best.token, best.runner_up, best.lead()), expected);
        }
    }

    #[test]
    fn a_file_is_json() {
        let text = layout(&[("seed", Value::Null)], &[json!({"name": "a"}), json!({"name": "b"})]);
        let expected = json!({"seed": null, "prompts": [{"name": "a"}, {"name": "b"}]});
        assert_eq!(serde_json::from_str::<Value>(&text).expect("it is JSON"), expected);
    }
}
