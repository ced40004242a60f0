//! `bench`: tokens per second of both sides, measured in turn.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use everstream_model::SpecialTokens;

use crate::sides::{self, Everstream, FlashAttention, LlamaCpp, Shape, Stream};
use crate::{file_name, machine};

/// What both read.
const TEXT: &str = include_str!("../../examples/chronicle.txt");
/// Tokens that are read and decoded before anything is timed.
const WARM_UP_TOKENS: (usize, usize) = (64, 8);
/// Threads of a side spin for some milliseconds after its last job; the other side waits for that.
const PAUSE: Duration = Duration::from_millis(50);
/// Of the largest logit. Both sides round to 8 bits, which moves logits by a few hundredths; two
/// sides that compute something else are an order of magnitude apart.
const MAX_DEVIATION: f32 = 0.25;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// GGUF files; each gives a row.
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// Threads of each side.
    #[arg(long, default_value = "2")]
    threads: NonZeroUsize,
    /// Tokens read at once.
    #[arg(long, default_value_t = 512)]
    prompt: usize,
    /// Tokens read one by one after them.
    #[arg(long, default_value_t = 64)]
    decode: usize,
    /// Rounds; in each, both sides prefill and decode once.
    #[arg(long, default_value_t = 5)]
    repetitions: usize,
    /// llama.cpp's attention.
    #[arg(long, value_enum, default_value_t = FlashAttention::Auto)]
    flash_attention: FlashAttention,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    machine::require_native()?;
    if args.prompt == 0 || args.decode == 0 || args.repetitions == 0 {
        bail!("--prompt, --decode and --repetitions must be at least 1");
    }
    let rows: Vec<Row> = args.models.iter().map(|m| measure(m, args)).collect::<Result<_, _>>()?;
    describe(args, &rows);
    println!(
        "| model | prefill, Everstream | prefill, llama.cpp | ratio | decode, Everstream | decode, \
         llama.cpp | ratio |\n|---|---|---|---|---|---|---|"
    );
    for row in &rows {
        let [prefill, decode] = [&row.prefill, &row.decode].map(Pairs::cells);
        println!("| {} | {prefill} | {decode} |", row.model);
    }
    Ok(())
}

/// All that a reader needs to repeat the measurement.
fn describe(args: &Args, rows: &[Row]) {
    let Args { threads, prompt, decode, repetitions, .. } = args;
    let version = machine::locked_version;
    let openmp = if cfg!(feature = "openmp") { "OpenMP" } else { "its own threads" };
    println!("- CPU: {}, {}", machine::cpu(), std::env::consts::OS);
    println!(
        "- Everstream {}, commit {}, instruction set {}, policy sink, chunks of {prompt}",
        version("everstream-model"),
        machine::COMMIT,
        rows.first().map_or("unknown", |row| row.isa),
    );
    println!(
        "- llama.cpp through llama-cpp-2 {} (llama-cpp-sys-2 {}), static, {openmp}, flash attention \
         {}, `n_batch` = `n_ubatch` = {prompt}",
        version("llama-cpp-2"),
        version("llama-cpp-sys-2"),
        format!("{:?}", args.flash_attention).to_lowercase(),
    );
    println!(
        "- both: `-C target-cpu=native` ({}), {threads} threads, keys and values in f16, the same \
         tokens",
        machine::compiled().join(" ")
    );
    println!(
        "- {prompt} tokens at once, then {decode} one by one; tokens per second, median (min..max) \
         of {repetitions} rounds in which both sides take turns; ratio: of the medians (min..max \
         of the rounds)"
    );
    for row in rows {
        println!(
            "- {}: after the prompt the logits of both differ by at most {:.1} % of the largest",
            row.model,
            100.0 * row.deviation
        );
    }
    println!();
}

struct Row {
    model: String,
    isa: &'static str,
    prefill: Pairs,
    decode: Pairs,
    deviation: f32,
}

fn measure(path: &Path, args: &Args) -> anyhow::Result<Row> {
    let model = sides::open_everstream(path, args.threads)?;
    let peer = LlamaCpp::open(path)?;
    let shape = Shape {
        n_threads: args.threads,
        max_tokens: args.prompt + args.decode,
        chunk_tokens: args.prompt,
    };
    let tokens = model.tokenizer().encode(TEXT, SpecialTokens::AsText);
    ensure!(
        tokens.len() >= shape.max_tokens,
        "the text has {} tokens, fewer than --prompt and --decode ask for",
        tokens.len()
    );
    let (prompt, decoded) = tokens[..shape.max_tokens].split_at(args.prompt);
    let mut ours = Everstream::new(&model, shape)?;
    let mut theirs = peer.stream(shape, args.flash_attention)?;
    let warm_up = (&prompt[..prompt.len().min(WARM_UP_TOKENS.0)], WARM_UP_TOKENS.1);
    round(&mut ours, warm_up.0, &decoded[..decoded.len().min(warm_up.1)])?;
    round(&mut theirs, warm_up.0, &decoded[..decoded.len().min(warm_up.1)])?;

    let (mut prefill, mut decode) = (Pairs::default(), Pairs::default());
    let mut deviation = 0.0f32;
    for _ in 0..args.repetitions {
        let a = round(&mut ours, prompt, decoded)?;
        let b = round(&mut theirs, prompt, decoded)?;
        prefill.push(a.prefill, b.prefill);
        decode.push(a.decode, b.decode);
        deviation = deviation.max(compare(&a.logits, &b.logits));
        ensure!(deviation < MAX_DEVIATION, "the two sides compute different things: {deviation}");
    }
    let isa = model.isa().name();
    Ok(Row { model: file_name(path), isa, prefill, decode, deviation })
}

/// What one side did in one round.
struct Round {
    /// Tokens per second.
    prefill: f64,
    decode: f64,
    /// After the prompt.
    logits: Vec<f32>,
}

fn round(side: &mut dyn Stream, prompt: &[u32], decoded: &[u32]) -> anyhow::Result<Round> {
    side.clear()?;
    std::thread::sleep(PAUSE);
    let start = Instant::now();
    let logits = side.read(prompt)?;
    let prefill = prompt.len() as f64 / start.elapsed().as_secs_f64();
    let logits = logits.to_vec();
    let start = Instant::now();
    for &token in decoded {
        std::hint::black_box(side.read(&[token])?);
    }
    let decode = decoded.len() as f64 / start.elapsed().as_secs_f64();
    Ok(Round { prefill, decode, logits })
}

/// The largest difference as a fraction of the largest logit; infinite if they cannot be compared.
fn compare(a: &[f32], b: &[f32]) -> f32 {
    if a.len() != b.len() || a.iter().chain(b).any(|x| !x.is_finite()) {
        return f32::INFINITY;
    }
    let largest = b.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let difference = a.iter().zip(b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    difference / largest
}

/// Speeds of both sides, round by round.
#[derive(Default)]
struct Pairs {
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

impl Pairs {
    fn push(&mut self, ours: f64, theirs: f64) {
        self.ours.push(ours);
        self.theirs.push(theirs);
    }

    /// Three cells of the table.
    fn cells(&self) -> String {
        let ratios: Vec<f64> = self.ours.iter().zip(&self.theirs).map(|(a, b)| a / b).collect();
        let (ours, theirs, ratios) = (sorted(&self.ours), sorted(&self.theirs), sorted(&ratios));
        format!(
            "{:.1} ({:.1}..{:.1}) | {:.1} ({:.1}..{:.1}) | {:.2} ({:.2}..{:.2})",
            median(&ours),
            ours[0],
            ours[ours.len() - 1],
            median(&theirs),
            theirs[0],
            theirs[theirs.len() - 1],
            median(&ours) / median(&theirs),
            ratios[0],
            ratios[ratios.len() - 1],
        )
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

/// The median of sorted numbers, of which there is at least one.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::{Pairs, compare, median};

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[1.0, 2.0, 9.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
    }

    #[test]
    fn a_row_has_medians_and_extremes() {
        let pairs = Pairs { ours: vec![4.0, 2.0, 3.0], theirs: vec![2.0, 2.0, 1.0] };
        assert_eq!(pairs.cells(), "3.0 (2.0..4.0) | 2.0 (1.0..2.0) | 1.50 (1.00..3.00)");
    }

    #[test]
    fn deviations_are_fractions_of_the_largest_logit() {
        assert_eq!(compare(&[1.0, -8.0], &[2.0, -8.0]), 0.125);
        assert_eq!(compare(&[1.0], &[2.0, -8.0]), f32::INFINITY);
        assert_eq!(compare(&[f32::NAN, 0.0], &[2.0, -8.0]), f32::INFINITY);
    }
}
