//! `bench`: tokens per second of all sides, measured in turn.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use everstream_kernels::Isa;
use everstream_kv_cache::KvType;
use everstream_model::SpecialTokens;

use crate::sides::{self, Candle, Everstream, FlashAttention, LlamaCpp, Shape, Stream};
use crate::{file_name, machine};

/// What all read.
const TEXT: &str = include_str!("../../examples/chronicle.txt");
/// Tokens that are read and decoded before anything is timed.
const WARM_UP_TOKENS: (usize, usize) = (64, 8);
/// Threads of a side spin for some milliseconds after its last job; the next side waits for that.
const PAUSE: Duration = Duration::from_millis(50);
/// Of the largest logit. All sides round to 8 bits, which moves logits by a few hundredths; two
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
    /// Everstream's instruction set; avx2 needs a build for it, whose command it then names.
    #[arg(long)]
    isa: Option<String>,
    /// Leave candle out.
    #[arg(long)]
    no_candle: bool,
    /// Rounds; in each, every side prefills and decodes once.
    #[arg(long, default_value_t = 5)]
    repetitions: usize,
    /// llama.cpp's attention.
    #[arg(long, value_enum, default_value_t = FlashAttention::Auto)]
    flash_attention: FlashAttention,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let isa = match &args.isa {
        Some(name) => Isa::by_name(name).context("this CPU has no such instruction set")?,
        None => Isa::detect(),
    };
    machine::require_native(isa)?;
    if args.prompt == 0 || args.decode == 0 || args.repetitions == 0 {
        bail!("--prompt, --decode and --repetitions must be at least 1");
    }
    rayon::ThreadPoolBuilder::new().num_threads(args.threads.get()).build_global()?;
    let rows = args.models.iter().map(|model| measure(model, args, isa));
    let rows: Vec<Row> = rows.collect::<Result<_, _>>()?;
    describe(args, isa, &rows);
    for (phase, of) in [("prefill", 0), ("decode", 1)] {
        print!("| {phase} | Everstream");
        for name in &rows[0].peers {
            print!(" | {name} | ratio");
        }
        println!("{}", if of == 1 { " | share of the limit | GB/s |" } else { " |" });
        println!("|---{}|", "|---".repeat(1 + 2 * rows[0].peers.len() + 2 * of));
        for row in &rows {
            println!("| {} {}", row.model, row.cells(of));
        }
        println!();
    }
    Ok(())
}

/// All that a reader needs to repeat the measurement.
fn describe(args: &Args, isa: Isa, rows: &[Row]) {
    let Args { threads, prompt, decode, repetitions, .. } = args;
    let version = machine::locked_version;
    let openmp = if cfg!(feature = "openmp") { "OpenMP" } else { "its own threads" };
    println!("- CPU: {}, {}", machine::cpu(), std::env::consts::OS);
    println!(
        "- Everstream {}, commit {}, instruction set {}, policy sink, chunks of {prompt}",
        version("everstream-model"),
        machine::COMMIT,
        isa.name(),
    );
    println!(
        "- llama.cpp through llama-cpp-2 {} (llama-cpp-sys-2 {}), static, {openmp}, flash attention \
         {}, `n_batch` = `n_ubatch` = {prompt}",
        version("llama-cpp-2"),
        version("llama-cpp-sys-2"),
        format!("{:?}", args.flash_attention).to_lowercase(),
    );
    println!("- candle {}, keys and values in f32", version("candle-transformers"));
    println!(
        "- all: compiled for {}, {threads} threads, keys and values in f16 unless said, the same tokens",
        machine::compiled().join(" ")
    );
    println!(
        "- {prompt} tokens at once, then {decode} one by one; tokens per second, median (min..max) \
         of {repetitions} rounds in which the sides take turns; ratio: of the medians (min..max \
         of the rounds)"
    );
    println!(
        "- limit: the speed at which Everstream's threads read all weights and do nothing with them \
         (GB/s, before and after each decoding), over the bytes of weights, keys and values of a token"
    );
    for row in rows {
        println!(
            "- {}: after the prompt the logits of Everstream and llama.cpp differ by at most {:.1} % of the \
             largest",
            row.model,
            100.0 * row.deviation
        );
    }
    println!();
}

struct Row {
    model: String,
    /// Who is compared with.
    peers: Vec<&'static str>,
    /// Tokens per second of prefilling and of decoding: of each side, ours first, round by round.
    speeds: [Vec<Vec<f64>>; 2],
    /// The limit that was reached, and bytes per second that could be read.
    share: Vec<f64>,
    bandwidth: Vec<f64>,
    deviation: f32,
}

impl Row {
    /// The cells behind the model's name.
    fn cells(&self, phase: usize) -> String {
        let [ours, peers @ ..] = &self.speeds[phase][..] else { return String::new() };
        let mut cells = format!("| {} ", spread(ours, 1));
        for theirs in peers {
            let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
            let ratios = sorted(&ratios);
            let ratio = median(&sorted(ours)) / median(&sorted(theirs));
            let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
            cells += &format!("| {} | {ratio:.2} ({least:.2}..{most:.2}) ", spread(theirs, 1));
        }
        if phase == 1 {
            let bandwidth: Vec<f64> = self.bandwidth.iter().map(|b| b / 1e9).collect();
            cells += &format!("| {} | {} ", spread(&self.share, 2), spread(&bandwidth, 0));
        }
        cells + "|"
    }
}

fn measure(path: &Path, args: &Args, isa: Isa) -> anyhow::Result<Row> {
    let model = sides::open_everstream(path, args.threads, isa)?;
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
    let mut peers: Vec<(&'static str, Box<dyn Stream + '_>)> =
        vec![("llama.cpp", Box::new(peer.stream(shape, args.flash_attention)?))];
    if !args.no_candle {
        peers.push(("candle", Box::new(Candle::open(path)?)));
    }
    let warm_up = &prompt[..prompt.len().min(WARM_UP_TOKENS.0)];
    let warm_up = (warm_up, &decoded[..decoded.len().min(WARM_UP_TOKENS.1)]);
    round(&mut ours, warm_up.0, warm_up.1)?;
    for (_, peer) in &mut peers {
        round(peer.as_mut(), warm_up.0, warm_up.1)?;
    }

    let n_visible = args.prompt + args.decode / 2;
    let bytes = (model.weight_bytes() + model.kv_bytes(n_visible, KvType::F16)) as f64;
    let mut row = Row {
        model: file_name(path),
        peers: peers.iter().map(|(name, _)| *name).collect(),
        speeds: [0, 1].map(|_| vec![Vec::new(); 1 + peers.len()]),
        share: Vec::new(),
        bandwidth: Vec::new(),
        deviation: 0.0,
    };
    for _ in 0..args.repetitions {
        let mut before = 0.0;
        let a = round_with(&mut ours, prompt, decoded, &mut || before = model.read_bandwidth())?;
        let bandwidth = f64::midpoint(before, model.read_bandwidth());
        row.share.push(a.decode * bytes / bandwidth);
        row.bandwidth.push(bandwidth);
        row.speeds[0][0].push(a.prefill);
        row.speeds[1][0].push(a.decode);
        for (i, (name, peer)) in peers.iter_mut().enumerate() {
            let b = round(peer.as_mut(), prompt, decoded)?;
            row.speeds[0][1 + i].push(b.prefill);
            row.speeds[1][1 + i].push(b.decode);
            let deviation = compare(&a.logits, &b.logits);
            ensure!(deviation < MAX_DEVIATION, "{name} computes something else: {deviation}");
            if i == 0 {
                row.deviation = row.deviation.max(deviation);
            }
        }
    }
    Ok(row)
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
    round_with(side, prompt, decoded, &mut || {})
}

/// A round; calls `between` after the prompt.
fn round_with(
    side: &mut dyn Stream,
    prompt: &[u32],
    decoded: &[u32],
    between: &mut dyn FnMut(),
) -> anyhow::Result<Round> {
    side.clear()?;
    std::thread::sleep(PAUSE);
    let start = Instant::now();
    let logits = side.read(prompt)?;
    let prefill = prompt.len() as f64 / start.elapsed().as_secs_f64();
    let logits = logits.to_vec();
    between();
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

/// Median (smallest..largest).
fn spread(values: &[f64], digits: usize) -> String {
    let sorted = sorted(values);
    let (least, most) = (sorted[0], sorted[sorted.len() - 1]);
    format!("{:.digits$} ({least:.digits$}..{most:.digits$})", median(&sorted))
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
    use super::{Row, compare, median};

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[1.0, 2.0, 9.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
    }

    #[test]
    fn a_row_has_medians_and_extremes() {
        let speeds = vec![vec![4.0, 2.0, 3.0], vec![2.0, 2.0, 1.0]];
        let row = Row {
            model: "m".to_owned(),
            peers: vec!["p"],
            speeds: [speeds.clone(), speeds],
            share: vec![0.5, 0.75, 1.0],
            bandwidth: vec![4e10, 5e10, 6e10],
            deviation: 0.0,
        };
        let cells = "| 3.0 (2.0..4.0) | 2.0 (1.0..2.0) | 1.50 (1.00..3.00) |";
        assert_eq!(row.cells(0), cells);
        assert_eq!(row.cells(1), format!("{cells} 0.75 (0.50..1.00) | 50 (40..60) |"));
    }

    #[test]
    fn deviations_are_fractions_of_the_largest_logit() {
        assert_eq!(compare(&[1.0, -8.0], &[2.0, -8.0]), 0.125);
        assert_eq!(compare(&[1.0], &[2.0, -8.0]), f32::INFINITY);
        assert_eq!(compare(&[f32::NAN, 0.0], &[2.0, -8.0]), f32::INFINITY);
    }
}
