//! One long stream, measured by position.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use everstream_runtime::kernels::log_sum_exp;
use everstream_runtime::kv_cache::TokenPos;
use everstream_runtime::memory::Role;
use everstream_runtime::model::Model;
use everstream_runtime::{Origin, Session, SessionConfig, SessionError};
use serde_json::{Value, json};

use super::median;
use crate::args::BenchArgs;
use crate::output;
use everstream_eval::plot::{self, Chart};

/// A stream is cut into so many segments, unless that makes them longer than is useful.
const N_SEGMENTS: usize = 20;
const MAX_SEGMENT_TOKENS: usize = 50_000;
/// Tokens at the end of a segment that are read one by one, to see what decoding costs there.
const DECODED_TOKENS: usize = 64;
/// Length of a stream of random tokens, if nobody says.
const RANDOM_TOKENS: usize = 2048;
/// Tokens between two looks at the progress bar.
const STRIDE: usize = 1024;

/// What the stream reads.
pub(super) struct Source {
    tokens: Vec<u32>,
    /// Whether the tokens come from a text; of others the perplexity says nothing.
    is_text: bool,
}

impl Source {
    /// The first tokens of `text`, or else random ones.
    pub(super) fn new(
        model: &Arc<Model>,
        text: Option<String>,
        args: &BenchArgs,
    ) -> anyhow::Result<Self> {
        let Some(text) = text else {
            let n = args.stream_tokens.unwrap_or(RANDOM_TOKENS);
            let tokens = random_tokens(model, n, args.seed);
            return Ok(Self { tokens, is_text: false });
        };
        let mut tokens = everstream_runtime::encode(model, &text)?;
        let n = args.stream_tokens.unwrap_or(tokens.len());
        if tokens.len() < n {
            bail!("the text has {} tokens, fewer than --stream-tokens {n}", tokens.len());
        }
        tokens.truncate(n);
        Ok(Self { tokens, is_text: true })
    }
}

/// Tokens drawn by seed, none of them special.
pub(super) fn random_tokens(model: &Model, n: usize, seed: u64) -> Vec<u32> {
    let n_vocab = model.config().vocab_size as u64;
    let mut state = seed;
    let mut draw = || {
        // SplitMix64 (Steele et al., "Fast splittable pseudorandom number generators", 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n_vocab) as u32
    };
    let mut plain = || {
        let mut token = draw();
        // A file may call all its tokens special.
        for _ in 0..64 {
            if !model.tokenizer().is_special(token) {
                break;
            }
            token = draw();
        }
        token
    };
    (0..n).map(|_| plain()).collect()
}

/// What was measured.
pub(super) struct Stream {
    is_text: bool,
    segments: Vec<Segment>,
}

/// A part of the stream.
struct Segment {
    range: Range<usize>,
    /// Sum of losses in nats, and how many.
    loss: (f64, usize),
    /// Reading in chunks: tokens and time.
    read: (usize, Duration),
    /// Reading a token alone: the median.
    decoded_ms: Option<f64>,
    resident_bytes: Option<u64>,
}

impl Segment {
    fn perplexity(&self) -> Option<f64> {
        (self.loss.1 > 0).then(|| (self.loss.0 / self.loss.1 as f64).exp())
    }
}

fn ms_per_token((n, time): (usize, Duration)) -> Option<f64> {
    (n > 0).then(|| time.as_secs_f64() * 1e3 / n as f64)
}

/// Streams the source through a cache.
pub(super) fn measure(
    model: &Arc<Model>,
    config: SessionConfig,
    source: &Source,
) -> anyhow::Result<Stream> {
    let n = source.tokens.len();
    let mut session = Session::new(Arc::clone(model), None, config)?;
    let bar = output::token_bar(n, "stream");
    let mut segments = Vec::new();
    let segment_tokens = n.div_ceil(N_SEGMENTS).clamp(1, MAX_SEGMENT_TOKENS);
    for first in (0..n).step_by(segment_tokens) {
        let range = first..n.min(first + segment_tokens);
        let n_decoded = DECODED_TOKENS.min(range.len() / 2);
        let middle = range.end - n_decoded;
        let mut loss = (0.0, 0);
        let start = Instant::now();
        for from in (range.start..middle).step_by(STRIDE) {
            let to = middle.min(from + STRIDE);
            read(&mut session, source, from..to, &mut loss)?;
            bar.set_position(to as u64);
        }
        let read_time = start.elapsed();
        let mut steps = Vec::new();
        for i in middle..range.end {
            let start = Instant::now();
            read(&mut session, source, i..i + 1, &mut loss)?;
            steps.push(start.elapsed().as_secs_f64() * 1e3);
        }
        steps.sort_by(f64::total_cmp);
        let decoded_ms = (!steps.is_empty()).then(|| median(&steps));
        bar.set_position(range.end as u64);
        let read = (range.len() - n_decoded, read_time);
        let resident_bytes = output::resident_bytes();
        segments.push(Segment { range, loss, read, decoded_ms, resident_bytes });
    }
    bar.finish_and_clear();
    Ok(Stream { is_text: source.is_text, segments })
}

/// Reads some tokens and, if they are text, adds up the loss of those that follow each.
fn read(
    session: &mut Session,
    source: &Source,
    range: Range<usize>,
    loss: &mut (f64, usize),
) -> Result<(), SessionError> {
    let tokens = &source.tokens[range];
    if !source.is_text {
        return session.append(tokens, Origin::turn(Role::Document));
    }
    session.append_observed(tokens, Origin::turn(Role::Document), &mut |position, logits| {
        let TokenPos(position) = position;
        if let Some(&next) = source.tokens.get(position as usize + 1) {
            loss.0 += log_sum_exp(logits) - f64::from(logits[next as usize]);
            loss.1 += 1;
        }
    })
}

impl Stream {
    pub(super) fn json(&self) -> Value {
        let segment = |segment: &Segment| {
            json!({
                "first": segment.range.start,
                "end": segment.range.end,
                "perplexity": segment.perplexity(),
                "ms_per_token": ms_per_token(segment.read),
                "decode_ms_per_token": segment.decoded_ms,
                "resident_bytes": segment.resident_bytes,
            })
        };
        json!({
            "tokens": self.segments.last().map_or(0, |s| s.range.end),
            "source": if self.is_text { "text" } else { "random" },
            "segments": self.segments.iter().map(segment).collect::<Vec<_>>(),
        })
    }

    pub(super) fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(
            out,
            "\n{:>10} {:>11} {:>10} {:>16} {:>10}",
            "position", "perplexity", "ms/token", "decode ms/token", "resident"
        )?;
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.3}"));
        for segment in &self.segments {
            writeln!(
                out,
                "{:>10} {:>11} {:>10} {:>16} {:>10}",
                segment.range.end,
                number(segment.perplexity()),
                number(ms_per_token(segment.read)),
                number(segment.decoded_ms),
                segment.resident_bytes.map_or("-".to_owned(), output::size),
            )?;
        }
        Ok(())
    }

    /// A plot of everything over the position.
    pub(super) fn svg(&self, title: &str) -> String {
        let chart = |title: &str, value: &dyn Fn(&Segment) -> Option<f64>| {
            let point = |s: &Segment| Some((s.range.end as f64, value(s)?));
            let points: Vec<_> = self.segments.iter().filter_map(point).collect();
            Chart { title: title.to_owned(), points }
        };
        let charts = [
            chart("perplexity of each segment", &Segment::perplexity),
            chart("ms per token, read in chunks", &|s| ms_per_token(s.read)),
            chart("ms per token, decoded", &|s| s.decoded_ms),
            chart("resident memory, MB", &|s| Some(s.resident_bytes? as f64 / 1e6)),
        ];
        let charts: Vec<_> = charts.into_iter().filter(|c| !c.points.is_empty()).collect();
        plot::svg(title, "tokens of the stream", &charts)
    }
}
