//! `everstream bench`: how fast a model reads and writes here, and whether that stays so.
//!
//! Prefill and decode are measured on fresh streams, several times. Then one
//! long stream follows: what it costs per token, what memory is resident, and how surprised the
//! model is, by position. All of it runs under policy `sink`, whose cost per token is that of
//! `remember` without its memory.

mod stream;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::bail;
use everstream_runtime::kv_cache::TokenPos;
use everstream_runtime::memory::Role;
use everstream_runtime::model::Model;
use everstream_runtime::{Origin, Policy, Sampler, SamplerConfig, Session, SessionConfig};
use indicatif::ProgressBar;
use serde_json::{Value, json};

use crate::args::{BenchArgs, Common};
use crate::{host, load, output};

/// Tokens that are read at once at most: they are drawn or encoded beforehand.
const MAX_TOKENS: usize = 1_000_000_000;
/// Tokens that are read before anything is timed.
const WARM_UP_TOKENS: usize = 32;

pub(crate) fn run(common: &Common, args: &BenchArgs) -> anyhow::Result<()> {
    let config = args.cache.session(Policy::Sink);
    config.check()?;
    check(args)?;
    let text = read_text(args)?;
    let model = load::model(common, &args.model.model)?;
    // What the stream will read is known before minutes are spent on the rest.
    let source = stream::Source::new(&model, text, args)?;
    let speed = measure(&model, &config, args)?;
    let stream = match args.stream_tokens {
        Some(0) => None,
        _ => Some(stream::measure(&model, config.clone(), &source)?),
    };
    let out = &mut std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", json(&model, &config, args, &speed, stream.as_ref()))?;
    } else {
        print(&model, &config, args, &speed, out)?;
        stream.iter().try_for_each(|stream| stream.print(out))?;
    }
    // Last: what was measured is not lost with a disk that is full.
    if let (Some(path), Some(stream)) = (&args.plot, &stream) {
        let title = format!(
            "{}, {} sinks + {}{} recent",
            args.model.model,
            config.n_sink,
            output::clusters_and(&config),
            config.window_tokens
        );
        fs_err::write(path, stream.svg(&title))?;
    }
    Ok(())
}

fn check(args: &BenchArgs) -> anyhow::Result<()> {
    for (flag, value) in [
        ("--prompt-tokens", args.prompt_tokens),
        ("--decode-tokens", args.decode_tokens),
        ("--repetitions", args.repetitions),
    ] {
        if value == 0 {
            bail!("{flag} is 0, but must be at least 1");
        }
    }
    for (flag, value) in [
        ("--prompt-tokens", args.prompt_tokens),
        ("--ingest-tokens", args.ingest_tokens),
        ("--stream-tokens", args.stream_tokens.unwrap_or(0)),
    ] {
        if value > MAX_TOKENS {
            bail!("{flag} is {value}, but must be at most {MAX_TOKENS}");
        }
    }
    if args.stream_tokens == Some(0) && (args.plot.is_some() || !args.text.is_empty()) {
        bail!("--plot and --text are about a stream: leave out --stream-tokens 0");
    }
    let folder = args.plot.as_ref().and_then(|plot| plot.parent());
    if let Some(folder) = folder.filter(|f| *f != Path::new("") && !f.is_dir()) {
        bail!("the plot's folder {} does not exist: make it first", folder.display());
    }
    Ok(())
}

fn read_text(args: &BenchArgs) -> anyhow::Result<Option<String>> {
    let texts: Vec<String> = args.text.iter().map(|p| load::text(p)).collect::<Result<_, _>>()?;
    Ok((!texts.is_empty()).then(|| texts.concat()))
}

/// What was measured once in each repetition, sorted.
#[derive(Default)]
struct Speed {
    /// Tokens per second.
    prefill: Vec<f64>,
    /// Tokens per second.
    decode: Vec<f64>,
    /// Tokens per second, behind what was decoded.
    ingest: Vec<f64>,
    /// Bytes per second at which the weights are read when nothing is computed.
    bandwidth: Vec<f64>,
    /// The part of decoding's time that reading alone would take at that speed.
    share: Vec<f64>,
}

fn measure(model: &Arc<Model>, config: &SessionConfig, args: &BenchArgs) -> anyhow::Result<Speed> {
    let prompt = stream::random_tokens(model, args.prompt_tokens, args.seed);
    let more = stream::random_tokens(model, args.ingest_tokens, args.seed.wrapping_add(1));
    let per_run = args.prompt_tokens + args.decode_tokens + args.ingest_tokens;
    let bytes_per_token = bytes_per_token(model, config, args);
    let bar = output::token_bar(per_run * args.repetitions, "measuring");
    let warm_up = &prompt[..prompt.len().min(WARM_UP_TOKENS)];
    Session::new(Arc::clone(model), None, config.clone())?
        .append(warm_up, Origin::turn(Role::Document))?;
    let mut speed = Speed::default();
    for _ in 0..args.repetitions {
        let mut session = Session::new(Arc::clone(model), None, config.clone())?;
        let start = Instant::now();
        session.append(&prompt, Origin::turn(Role::Document))?;
        speed.prefill.push(args.prompt_tokens as f64 / start.elapsed().as_secs_f64());
        bar.inc(args.prompt_tokens as u64);
        // On a shared machine the speed of memory changes from one second to the next.
        let before = model.read_bandwidth();
        let decode = decode(&mut session, args.decode_tokens, &bar)?;
        let bandwidth = f64::midpoint(before, model.read_bandwidth());
        speed.share.push(bytes_per_token as f64 * decode / bandwidth);
        speed.decode.push(decode);
        speed.bandwidth.push(bandwidth);
        if !more.is_empty() {
            let start = Instant::now();
            session.append(&more, Origin::turn(Role::Document))?;
            speed.ingest.push(more.len() as f64 / start.elapsed().as_secs_f64());
            bar.inc(more.len() as u64);
        }
    }
    bar.finish_and_clear();
    let Speed { prefill, decode, ingest, bandwidth, share } = &mut speed;
    for all in [prefill, decode, ingest, bandwidth, share] {
        all.sort_by(f64::total_cmp);
    }
    Ok(speed)
}

/// Bytes of weights, keys and values that a token of the middle of the decoded ones reads.
fn bytes_per_token(model: &Model, config: &SessionConfig, args: &BenchArgs) -> usize {
    let n_visible = args.prompt_tokens + args.decode_tokens / 2;
    let n_visible = n_visible.min(config.budget_tokens());
    model.weight_bytes() + model.kv_bytes(n_visible, config.kv_type)
}

/// Decodes greedily, past every end of a turn, and returns tokens per second.
fn decode(session: &mut Session, n_tokens: usize, bar: &ProgressBar) -> anyhow::Result<f64> {
    let mut sampler = Sampler::new(SamplerConfig::default())?;
    let start = Instant::now();
    for _ in 0..n_tokens {
        let token = sampler.sample(session.logits(), &[], TokenPos(session.n_tokens()));
        session.append(&[token], Origin::turn(Role::Assistant))?;
        bar.inc(1);
    }
    Ok(n_tokens as f64 / start.elapsed().as_secs_f64())
}

/// The median of sorted numbers.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

fn spread(sorted: &[f64]) -> Value {
    json!({ "median": median(sorted), "min": sorted.first(), "max": sorted.last() })
}

fn json(
    model: &Model,
    config: &SessionConfig,
    args: &BenchArgs,
    speed: &Speed,
    stream: Option<&stream::Stream>,
) -> Value {
    json!({
        "model": args.model.model,
        "file_bytes": model.gguf().bytes().len(),
        "weight_bytes_per_token": model.weight_bytes(),
        "bytes_per_token": bytes_per_token(model, config, args),
        "threads": model.n_threads(),
        "isa": model.isa().name(),
        "commit": host::COMMIT,
        "version": env!("CARGO_PKG_VERSION"),
        "os": host::os(),
        "cpu": host::cpu(),
        "policy": config.policy.name(),
        "sinks": config.n_sink,
        "clusters": config.clusters.map(|clusters| clusters.to_string()),
        "window": config.window_tokens,
        "chunk": config.chunk_tokens,
        "prompt_tokens": args.prompt_tokens,
        "decode_tokens": args.decode_tokens,
        "repetitions": args.repetitions,
        "prefill_tokens_per_second": spread(&speed.prefill),
        "decode_tokens_per_second": spread(&speed.decode),
        "ingest_tokens": args.ingest_tokens,
        "ingest_tokens_per_second": spread(&speed.ingest),
        "read_bytes_per_second": spread(&speed.bandwidth),
        "share_of_limit": spread(&speed.share),
        "stream": stream.map(stream::Stream::json),
        "peak_resident_bytes": output::peak_resident_bytes(),
    })
}

fn print(
    model: &Model,
    config: &SessionConfig,
    args: &BenchArgs,
    speed: &Speed,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let c = &args.cache;
    let size = |bytes: usize| output::size(bytes as u64);
    let row = |sorted: &[f64]| {
        let (min, max) = (sorted.first().unwrap_or(&0.0), sorted.last().unwrap_or(&0.0));
        format!("{:.1} tokens/s ({min:.1} to {max:.1})", median(sorted))
    };
    let clusters = output::clusters_and(config);
    let bytes = bytes_per_token(model, config, args);
    let gigabytes = |i: usize| speed.bandwidth.get(i).unwrap_or(&0.0) / 1e9;
    let limit = format!(
        "{:.0} % of {:.1} tokens/s reached: {} a token, read at {:.1} GB/s ({:.1} to {:.1})",
        100.0 * median(&speed.share),
        median(&speed.bandwidth) / bytes as f64,
        size(bytes),
        median(&speed.bandwidth) / 1e9,
        gigabytes(0),
        gigabytes(speed.bandwidth.len().saturating_sub(1)),
    );
    let mut lines = vec![
        ("model", format!("{}, {}", args.model.model, size(model.gguf().bytes().len()))),
        ("machine", format!("{}, {}", host::cpu(), host::os())),
        ("threads", format!("{}, {}", model.n_threads(), model.isa())),
        ("commit", host::COMMIT.to_owned()),
        ("cache", format!("sink, {} + {clusters}{}, chunks of {}", c.sinks, c.window, c.chunk)),
        ("weights", format!("{} read per decoded token", size(model.weight_bytes()))),
        ("prefill", format!("{} over {} tokens", row(&speed.prefill), args.prompt_tokens)),
        ("decode", format!("{} over {} tokens", row(&speed.decode), args.decode_tokens)),
        ("limit", limit),
    ];
    if !speed.ingest.is_empty() {
        let n = args.ingest_tokens;
        lines.push(("ingest", format!("{} over {n} tokens behind them", row(&speed.ingest))));
    }
    lines.push(("", format!("median of {}, smallest and largest", args.repetitions)));
    if let Some(peak) = output::peak_resident_bytes() {
        lines.push(("memory", format!("{} at most", output::size(peak))));
    }
    for (name, value) in lines {
        writeln!(out, "{name:<8} {value}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[1.0, 2.0, 9.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
        assert!(median(&[]).is_nan());
    }
}
