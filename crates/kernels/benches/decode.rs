//! How fast weights are read: products with one input, as decoding has them, beside plain reads.
//!
//! ```sh
//! cargo bench --package everstream-kernels --bench decode            # a minute
//! cargo bench --package everstream-kernels --bench decode -- --smoke # whether it runs
//! ```
//!
//! A row is a matrix of a known model, repeated until all of them together have 256 MB: more than most
//! caches hold.

use std::num::NonZeroUsize;
use std::time::Instant;

use everstream_kernels::{
    Activations, Arena, Isa, PackedMatrix, Pool, Product, WeightType, matmul, read_bandwidth,
};

/// Rows and columns of matrices that are read with each token.
const SHAPES: [(WeightType, usize, usize, &str); 9] = [
    (WeightType::Q4_1, 576, 576, "SmolLM2 135M, q"),
    (WeightType::Q4_1, 1536, 576, "SmolLM2 135M, gate"),
    (WeightType::Q4_1, 576, 1536, "SmolLM2 135M, down"),
    (WeightType::Q8_0, 49152, 576, "SmolLM2 135M, output"),
    (WeightType::Q5_0, 4864, 896, "Qwen 0.5B, gate"),
    (WeightType::Q6K, 896, 4864, "Qwen 0.5B, down"),
    (WeightType::Q4K, 896, 4864, "Qwen 0.5B, down"),
    (WeightType::Q4K, 8960, 1536, "Qwen 1.5B, gate"),
    (WeightType::Q6K, 1536, 8960, "Qwen 1.5B, down"),
];
/// All matrices of a row together.
const BYTES: usize = 256 << 20;

fn main() -> std::io::Result<()> {
    let smoke = std::env::args().any(|arg| arg == "--smoke");
    let (bytes, rounds) = if smoke { (1 << 20, 1) } else { (BYTES, 9) };
    let n_cores = std::thread::available_parallelism()?;
    let isa = Isa::detect();
    println!("{isa}; GB/s, median of {rounds} rounds (smallest..largest)\n");
    println!("| matrix | threads | product | plain reads | share |\n|---|---|---|---|---|");
    for (ty, rows, cols, name) in SHAPES {
        let mut threads = vec![NonZeroUsize::MIN, n_cores];
        threads.dedup();
        for n_threads in threads {
            let pool = Pool::new(n_threads)?;
            let mut arena = Arena::new();
            let row = vec![1; ty.row_bytes(cols).unwrap_or_default()];
            let mut matrices = Vec::new();
            while matrices.iter().map(PackedMatrix::bytes).sum::<usize>() < bytes {
                matrices.push(PackedMatrix::pack(ty, rows, cols, (&mut arena, &pool), |_| &row)?);
            }
            let mut x = Activations::default();
            x.resize(1, cols).fill(1.0);
            x.quantize(isa, &pool);
            let mut out = vec![0.0; rows];
            let (mut products, mut reads) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                let start = Instant::now();
                for weights in &matrices {
                    matmul(isa, &pool, &x, [Product { weights, out: &mut out }]);
                }
                let n_bytes: usize = matrices.iter().map(PackedMatrix::bytes).sum();
                products.push(n_bytes as f64 / start.elapsed().as_secs_f64() / 1e9);
                let all: Vec<&PackedMatrix> = matrices.iter().collect();
                reads.push(read_bandwidth(isa, &pool, &all) / 1e9);
            }
            products.sort_by(f64::total_cmp);
            reads.sort_by(f64::total_cmp);
            let (product, read) = (products[rounds / 2], reads[rounds / 2]);
            println!(
                "| {name}, {ty:?} [{rows}, {cols}] | {n_threads} | {product:.1} ({:.1}..{:.1}) | {read:.1} | {:.0} % |",
                products[0],
                products[rounds - 1],
                100.0 * product / read
            );
        }
    }
    Ok(())
}
