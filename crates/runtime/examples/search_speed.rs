//! Search over many blocks: exactly, and by the approximate index where it is built in.
//!
//! `cargo xtask soak search-speed N_VECTORS` draws vectors of 384 components around as many centres
//! as each has 500 of, and prints medians of searches for the nearest ten of vectors drawn likewise.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use anyhow::bail;
use everstream_runtime::memory::{BlockId, Distance, MakeExact, MakeIndex, VectorIndex, normalise};

const DIM: usize = 384;
const N_QUERIES: usize = 101;
const N_NEAREST: usize = 10;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [n_vectors] = &args[..] else { bail!("use search_speed N_VECTORS") };
    let n_vectors: usize = n_vectors.parse()?;
    let mut cloud = Cloud::new(n_vectors / 500 + 1);
    let vectors: Vec<Vec<f32>> = (0..n_vectors).map(|_| cloud.draw()).collect();
    let queries: Vec<Vec<f32>> = (0..N_QUERIES).map(|_| cloud.draw()).collect();
    let n_threads = std::thread::available_parallelism()?;

    println!("{n_vectors} vectors of {DIM}, {n_threads} threads, nearest {N_NEAREST}\n");
    println!("| index | added, each | search, median (5 % .. 95 %) | recall |\n|---|---|---|---|");
    let indexes: &[(&str, &dyn MakeIndex)] = &[
        ("exact", &MakeExact(Distance::Cosine)),
        #[cfg(feature = "hnsw")]
        ("hnsw", &everstream_runtime::memory::MakeHnsw(Distance::Cosine)),
    ];
    let mut expected = Vec::new();
    for (label, make) in indexes {
        let found = measure(label, *make, n_threads, &vectors, &queries, &expected)?;
        if expected.is_empty() {
            expected = found;
        }
    }
    Ok(())
}

/// Prints a row; returns what was found for each query.
fn measure(
    label: &str,
    make: &dyn MakeIndex,
    n_threads: NonZeroUsize,
    vectors: &[Vec<f32>],
    queries: &[Vec<f32>],
    expected: &[Vec<BlockId>],
) -> anyhow::Result<Vec<Vec<BlockId>>> {
    let mut index: Box<dyn VectorIndex> = make.make(DIM, n_threads)?;
    let start = Instant::now();
    for (i, vector) in vectors.iter().enumerate() {
        index.add(BlockId(i as u64), vector)?;
    }
    let added = start.elapsed() / u32::try_from(vectors.len())?;
    let (mut times, mut all) = (Vec::new(), Vec::new());
    for query in queries {
        let mut hits = Vec::new();
        let start = Instant::now();
        index.search(query, N_NEAREST, &|id| id.0 != 0, &mut hits)?;
        times.push(start.elapsed());
        all.push(hits.iter().map(|hit| hit.id).collect::<Vec<_>>());
    }
    times.sort();
    let ms = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e3;
    let same = all.iter().zip(expected).map(|(a, b)| a.iter().filter(|id| b.contains(id)).count());
    let recall = match expected.len() {
        0 => "1 by definition".to_owned(),
        n => format!("{:.3}", same.sum::<usize>() as f64 / (n * N_NEAREST) as f64),
    };
    let (low, median, high) = (ms(5), ms(50), ms(95));
    println!("| {label} | {} | {median:.2} ms ({low:.2} .. {high:.2}) | {recall} |", micros(added));
    Ok(all)
}

fn micros(time: Duration) -> String {
    format!("{:.1} µs", time.as_secs_f64() * 1e6)
}

/// Unit vectors around centres, whose cosine with their centre is about 0.8.
struct Cloud {
    rng: fastrand::Rng,
    centres: Vec<Vec<f32>>,
}

impl Cloud {
    fn new(n_centres: usize) -> Self {
        let mut rng = fastrand::Rng::with_seed(1);
        let centres = (0..n_centres).map(|_| uniform(&mut rng)).collect();
        Self { rng, centres }
    }

    fn draw(&mut self) -> Vec<f32> {
        let centre = self.rng.usize(..self.centres.len());
        let noise = uniform(&mut self.rng);
        let x = self.centres[centre].iter().zip(noise).map(|(c, e)| c + 0.75 * e);
        let mut x: Vec<f32> = x.collect();
        normalise(&mut x);
        x
    }
}

fn uniform(rng: &mut fastrand::Rng) -> Vec<f32> {
    (0..DIM).map(|_| 2.0 * rng.f32() - 1.0).collect()
}
