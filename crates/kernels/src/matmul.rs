//! Products of quantized weights and 8-bit activations.
//!
//! One skeleton serves every type and every number of inputs. For each output the sum runs over
//! steps of 32 columns in stream order:
//!
//! ```text
//! isum = Σ (q_w - bias) * q_x          exact, in i32
//! acc  = fma(isum, s_w * d_x, acc)     s_w: scale of the weights, d_x: of the input
//! acc  = fma(o_w, d_x * Σ q_x, acc)    for types with a minimum
//! ```
//!
//! Nothing depends on how many inputs are multiplied at once, on the number of threads or on the
//! instruction set, so decoding alone, in company, and prefilling give the same bits. (The obvious
//! alternative for prefill, a second kernel with its own tiling, would be a little faster and
//! would lose that.) Weights are read once per panel of inputs ([`PANEL_BYTES`]).

use crate::activations::{Activations, BlockScale};
use crate::pool::Shareable;
use crate::quant::WeightType;
use crate::quant::packed::{GROUP, PackedMatrix, Q4K_SCALES, Q6K_SCALES, STEP};
use crate::simd::{Kernel, Simd};
use crate::{Isa, Pool};

/// Bytes of 8-bit inputs that pass over a group of weights before the next group: they shall stay
/// in the second-level cache.
const PANEL_BYTES: usize = 384 * 1024;

/// Prefetch distances, in bytes. They were found by trial on Zen 4: 4096 and 8192 are worse than
/// either, and no rule was found that predicts the best one of a layout.
const NEAR: usize = 640;
const FAR: usize = 2176;
/// Tasks that a thread should get, so that an uneven machine does not stall the others.
const TASKS_PER_THREAD: usize = 16;
/// Bytes of weights of a task: enough to be worth taking, little enough to be divided evenly.
const TASK_BYTES: std::ops::RangeInclusive<usize> = 16 << 10..=128 << 10;

/// One matrix and where its product goes.
#[derive(Debug)]
pub struct Product<'a> {
    /// `[rows, cols]`
    pub weights: &'a PackedMatrix,
    /// `[n_inputs, rows]`
    pub out: &'a mut [f32],
}

/// Multiplies the inputs `x` with several matrices in one parallel region.
///
/// # Panics
///
/// If a matrix has another number of columns than `x`, an output another size, or if a matrix is
/// quantized and `x` was filled and not quantized since.
pub fn matmul<const N: usize>(isa: Isa, pool: &Pool, x: &Activations, products: [Product<'_>; N]) {
    let (mut n_groups, mut n_bytes) = (0, 0);
    let parts = products.map(|p| {
        assert_eq!(p.weights.cols, x.cols, "columns of weights and inputs");
        assert!(x.is_quantized || !p.weights.ty.is_quantized(), "inputs that are not quantized");
        assert_eq!(p.out.len(), x.n_rows * p.weights.rows, "size of the output");
        n_groups += p.weights.rows.div_ceil(GROUP);
        n_bytes += p.weights.bytes();
        (p.weights, Shareable(p.out.as_mut_ptr()))
    });
    let task_bytes = n_bytes / (pool.n_threads() * TASKS_PER_THREAD);
    let task_bytes = task_bytes.clamp(*TASK_BYTES.start(), *TASK_BYTES.end());
    let per_task = (n_groups * task_bytes).div_ceil(n_bytes.max(1)).max(1);
    pool.run(n_groups.div_ceil(per_task), &|_, task| {
        let (mut first, mut last) = (task * per_task, (task + 1) * per_task);
        for (weights, out) in &parts {
            let n = weights.rows.div_ceil(GROUP);
            let (from, to) = (first.min(n), last.min(n));
            if from < to {
                isa.run(Groups { weights, x, out: out.get(), from, to });
            }
            (first, last) = (first.saturating_sub(n), last.saturating_sub(n));
        }
    });
}

/// The product of some groups of rows with all inputs.
struct Groups<'a> {
    weights: &'a PackedMatrix,
    x: &'a Activations,
    /// `[n_inputs, rows]`; this task alone writes the columns of its groups.
    out: *mut f32,
    from: usize,
    to: usize,
}

impl Kernel for Groups<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise is passed on.
        unsafe {
            match self.weights.ty {
                WeightType::F32 => self.floats::<S, f32>(),
                WeightType::F16 => self.floats::<S, half::f16>(),
                WeightType::Q4_1 => self.quantized::<S, Q4_1>(),
                WeightType::Q5_0 => self.quantized::<S, Q5_0>(),
                WeightType::Q8_0 => self.quantized::<S, Q8_0>(),
                WeightType::Q4K => self.quantized::<S, Q4K>(),
                WeightType::Q6K => self.quantized::<S, Q6K>(),
            }
        }
    }
}

impl Groups<'_> {
    #[inline(always)]
    unsafe fn quantized<S: Simd, F: Format>(&self) {
        let n = self.x.n_rows;
        let panel = (PANEL_BYTES / self.weights.cols.max(1)).max(8) & !7;
        for first in (0..n).step_by(panel) {
            let last = n.min(first + panel);
            for group in self.from..self.to {
                let mut row = first;
                // SAFETY: rows and group are in range; see `tile`.
                unsafe {
                    while row + 8 <= last {
                        self.tile::<S, F, 8>(group, row);
                        row += 8;
                    }
                    while row + 4 <= last {
                        self.tile::<S, F, 4>(group, row);
                        row += 4;
                    }
                    while row < last {
                        self.tile::<S, F, 1>(group, row);
                        row += 1;
                    }
                }
            }
        }
    }

    /// The product of one group with `R` inputs from `row`.
    ///
    /// # Safety
    ///
    /// As for [`Simd`]; `group` and all rows exist. Reads stay inside the group, whose layout was
    /// computed from the same type and columns, and inside rows of `cols` padded to steps.
    #[inline(always)]
    unsafe fn tile<S: Simd, F: Format, const R: usize>(&self, group: usize, row: usize) {
        let bytes = self.weights.group(group);
        let inputs: [_; R] = std::array::from_fn(|r| self.x.row(row + r));
        // SAFETY: see above.
        unsafe {
            let scales = bytes.as_ptr();
            let mut quants = scales.add(self.weights.layout.quants);
            let mut acc = [S::splat(0.0); R];
            for step in 0..self.weights.cols.div_ceil(STEP) {
                let w = F::vectors::<S>(quants);
                let scale = F::scales::<S>(scales, step);
                if R == 1 {
                    for line in 0..F::STEP_BYTES / 64 {
                        S::prefetch(quants.wrapping_add(F::PREFETCH_BYTES + 64 * line));
                    }
                }
                quants = quants.add(F::STEP_BYTES);
                for r in 0..R {
                    let x = inputs[r].q.as_ptr().add(step * STEP);
                    let block = *inputs[r].blocks.get_unchecked(step);
                    acc[r] = accumulate::<S, F>(&w, scale, x, block, acc[r]);
                }
            }
            for (r, acc) in acc.into_iter().enumerate() {
                self.write::<S>(group, row + r, acc);
            }
        }
    }

    /// The product of float weights: four partial sums, by column modulo 4.
    #[inline(always)]
    unsafe fn floats<S: Simd, E: crate::simd::Element>(&self) {
        for group in self.from..self.to {
            let w = self.weights.group(group).as_ptr().cast::<E>();
            for row in 0..self.x.n_rows {
                let x = self.x.row_f32(row);
                // SAFETY: a group holds 16 weights for each column.
                unsafe {
                    let mut acc = [S::splat(0.0); 4];
                    for (col, &x) in x.iter().enumerate() {
                        let w = E::load16::<S>(w.add(col * GROUP));
                        acc[col % 4] = S::fma(w, S::splat(x), acc[col % 4]);
                    }
                    let acc = S::add(S::add(acc[0], acc[1]), S::add(acc[2], acc[3]));
                    self.write::<S>(group, row, acc);
                }
            }
        }
    }

    /// Writes the outputs of a group for one input; lanes past the last row are dropped.
    #[inline(always)]
    unsafe fn write<S: Simd>(&self, group: usize, row: usize, acc: S::F) {
        let rows = self.weights.rows;
        let n = GROUP.min(rows - group * GROUP);
        // SAFETY: the output holds `rows` numbers for each input, and this task owns these `n`.
        unsafe {
            let out = self.out.add(row * rows + group * GROUP);
            if n == GROUP {
                S::store(out, acc);
            } else {
                let mut lanes = [0.0f32; GROUP];
                S::store(lanes.as_mut_ptr(), acc);
                out.copy_from_nonoverlapping(lanes.as_ptr(), n);
            }
        }
    }
}

/// Scales of a step for 16 rows: of columns 0..16, of 16..32, and the offset.
type Scales<S> = (<S as Simd>::F, <S as Simd>::F, <S as Simd>::F);

/// Adds one step of 32 columns and one input to 16 outputs; `x` points to its 32 integers.
#[inline(always)]
unsafe fn accumulate<S: Simd, F: Format>(
    w: &[S::B; 8],
    scale: Scales<S>,
    x: *const i8,
    block: BlockScale,
    acc: S::F,
) -> S::F {
    // SAFETY: the caller's promise; `x` has 32 elements, read four at a time.
    unsafe {
        let mut low = S::splat_i(-F::BIAS * block.sums[0]);
        let mut high = S::splat_i(-F::BIAS * block.sums[1]);
        for i in 0..4 {
            low = F::dot::<S>(low, w[i], x.add(4 * i));
            high = F::dot::<S>(high, w[4 + i], x.add(16 + 4 * i));
        }
        let d = S::splat(block.d);
        let acc = if F::HALVES {
            let acc = S::fma(S::to_f(low), S::mul(scale.0, d), acc);
            S::fma(S::to_f(high), S::mul(scale.1, d), acc)
        } else {
            S::fma(S::to_f(S::add_i(low, high)), S::mul(scale.0, d), acc)
        };
        if F::OFFSET { S::fma(scale.2, S::splat(block.scaled_sum), acc) } else { acc }
    }
}

/// How one weight type reads a step: see `quant/packed.rs` for the layout.
trait Format {
    /// Bytes of quants of a step.
    const STEP_BYTES: usize;
    /// How far ahead of the weights that meet a single input the next ones are asked for: measured,
    /// see `docs/BENCHMARKS.md`.
    const PREFETCH_BYTES: usize = NEAR;
    /// Subtracted from every stored integer.
    const BIAS: i32 = 0;
    /// Columns 0..16 and 16..32 have scales of their own.
    const HALVES: bool = false;
    /// There is a minimum.
    const OFFSET: bool = false;

    unsafe fn vectors<S: Simd>(quants: *const u8) -> [S::B; 8];
    unsafe fn scales<S: Simd>(scales: *const u8, step: usize) -> Scales<S>;
    #[inline(always)]
    unsafe fn dot<S: Simd>(acc: S::I, w: S::B, x: *const i8) -> S::I {
        // SAFETY: the caller's promise.
        unsafe { S::dot::<false>(acc, w, x) }
    }
}

/// Low nibbles of four vectors, then their high nibbles.
#[inline(always)]
unsafe fn nibbles<S: Simd>(quants: *const u8) -> [S::B; 8] {
    // SAFETY: the caller's promise: 256 bytes.
    unsafe {
        let mask = S::splat_b(15);
        let mut w = [mask; 8];
        for i in 0..4 {
            let both = S::bytes(quants.add(64 * i));
            w[i] = S::and(both, mask);
            w[4 + i] = S::and(S::shr::<4>(both), mask);
        }
        w
    }
}

struct Q4_1;
impl Format for Q4_1 {
    const STEP_BYTES: usize = 256;
    const OFFSET: bool = true;

    #[inline(always)]
    unsafe fn vectors<S: Simd>(quants: *const u8) -> [S::B; 8] {
        // SAFETY: the caller's promise.
        unsafe { nibbles::<S>(quants) }
    }
    #[inline(always)]
    unsafe fn scales<S: Simd>(scales: *const u8, step: usize) -> Scales<S> {
        // SAFETY: 64 bytes for each step.
        unsafe {
            let p = scales.add(step * 64);
            let d = S::load_f16(p.cast());
            (d, d, S::load_f16(p.add(32).cast()))
        }
    }
}

struct Q5_0;
impl Format for Q5_0 {
    const STEP_BYTES: usize = 320;
    const BIAS: i32 = 16;

    #[inline(always)]
    unsafe fn vectors<S: Simd>(quants: *const u8) -> [S::B; 8] {
        // SAFETY: 256 bytes of nibbles, then 64 of fifth bits.
        unsafe {
            let mut w = nibbles::<S>(quants);
            let high = S::bytes(quants.add(256));
            let bit = S::splat_b(16);
            w[0] = S::or(w[0], S::and(S::shl::<4>(high), bit));
            w[1] = S::or(w[1], S::and(S::shl::<3>(high), bit));
            w[2] = S::or(w[2], S::and(S::shl::<2>(high), bit));
            w[3] = S::or(w[3], S::and(S::shl::<1>(high), bit));
            w[4] = S::or(w[4], S::and(high, bit));
            w[5] = S::or(w[5], S::and(S::shr::<1>(high), bit));
            w[6] = S::or(w[6], S::and(S::shr::<2>(high), bit));
            w[7] = S::or(w[7], S::and(S::shr::<3>(high), bit));
            w
        }
    }
    #[inline(always)]
    unsafe fn scales<S: Simd>(scales: *const u8, step: usize) -> Scales<S> {
        // SAFETY: 32 bytes for each step.
        unsafe {
            let d = S::load_f16(scales.add(step * 32).cast());
            (d, d, d)
        }
    }
}

struct Q8_0;
impl Format for Q8_0 {
    const STEP_BYTES: usize = 512;
    const BIAS: i32 = 128;

    #[inline(always)]
    unsafe fn vectors<S: Simd>(quants: *const u8) -> [S::B; 8] {
        // SAFETY: 512 bytes.
        unsafe {
            let mut w = [S::bytes(quants); 8];
            for (i, w) in w.iter_mut().enumerate().skip(1) {
                *w = S::bytes(quants.add(64 * i));
            }
            w
        }
    }
    #[inline(always)]
    unsafe fn scales<S: Simd>(scales: *const u8, step: usize) -> Scales<S> {
        // SAFETY: 32 bytes for each step.
        unsafe {
            let d = S::load_f16(scales.add(step * 32).cast());
            (d, d, d)
        }
    }
    #[inline(always)]
    unsafe fn dot<S: Simd>(acc: S::I, w: S::B, x: *const i8) -> S::I {
        // SAFETY: the caller's promise.
        unsafe { S::dot::<true>(acc, w, x) }
    }
}

struct Q4K;
impl Format for Q4K {
    const STEP_BYTES: usize = 256;
    const PREFETCH_BYTES: usize = FAR;
    const OFFSET: bool = true;

    #[inline(always)]
    unsafe fn vectors<S: Simd>(quants: *const u8) -> [S::B; 8] {
        // SAFETY: the caller's promise.
        unsafe { nibbles::<S>(quants) }
    }
    #[inline(always)]
    unsafe fn scales<S: Simd>(scales: *const u8, step: usize) -> Scales<S> {
        // SAFETY: `Q4K_SCALES` bytes for each 8 steps: d, dmin, 8 scales, 8 minima.
        unsafe {
            let p = scales.add(step / 8 * Q4K_SCALES);
            let bytes = p.add(64 + step % 8 * GROUP);
            let scale = S::mul(S::load_f16(p.cast()), S::load_u8(bytes));
            let min = S::mul(S::load_f16(p.add(32).cast()), S::load_u8(bytes.add(8 * GROUP)));
            (scale, scale, S::sub(S::splat(0.0), min))
        }
    }
}

struct Q6K;
impl Format for Q6K {
    const STEP_BYTES: usize = 384;
    const PREFETCH_BYTES: usize = FAR;
    const BIAS: i32 = 32;
    const HALVES: bool = true;

    #[inline(always)]
    unsafe fn vectors<S: Simd>(quants: *const u8) -> [S::B; 8] {
        // SAFETY: 256 bytes of nibbles, then 128 of bit pairs.
        unsafe {
            let mut w = nibbles::<S>(quants);
            let pair = S::splat_b(48);
            for h in 0..2 {
                let high = S::bytes(quants.add(256 + 64 * h));
                let w = &mut w[4 * h..];
                w[0] = S::or(w[0], S::and(S::shl::<4>(high), pair));
                w[1] = S::or(w[1], S::and(S::shl::<2>(high), pair));
                w[2] = S::or(w[2], S::and(high, pair));
                w[3] = S::or(w[3], S::and(S::shr::<2>(high), pair));
            }
            w
        }
    }
    #[inline(always)]
    unsafe fn scales<S: Simd>(scales: *const u8, step: usize) -> Scales<S> {
        // SAFETY: `Q6K_SCALES` bytes for each 8 steps: d, then 16 scales.
        unsafe {
            let p = scales.add(step / 8 * Q6K_SCALES);
            let d = S::load_f16(p.cast());
            let bytes = p.add(32 + step % 8 * 2 * GROUP);
            (S::mul(d, S::load_i8(bytes)), S::mul(d, S::load_i8(bytes.add(GROUP))), d)
        }
    }
}

/// The definition: the same product from the file's own bytes, one output at a time.
///
/// `row` holds the stored weights of one output. Equal to [`matmul`] bit for bit.
///
/// # Panics
///
/// If the lengths do not match.
#[must_use]
pub fn dot_definition(ty: WeightType, row: &[u8], x: &Activations, input: usize) -> f32 {
    use crate::quant::blocks;
    assert_eq!(Some(row.len()), ty.row_bytes(x.cols), "bytes of a row");
    if !ty.is_quantized() {
        let mut w = vec![0.0; x.cols];
        crate::dequantize(ty, row, &mut w);
        let mut acc = [0.0f32; 4];
        for (col, (w, x)) in w.iter().zip(x.row_f32(input)).enumerate() {
            acc[col % 4] = w.mul_add(*x, acc[col % 4]);
        }
        return (acc[0] + acc[1]) + (acc[2] + acc[3]);
    }
    let x = x.row(input);
    let mut acc = 0.0f32;
    let mut add = |col: usize, q: &[i16], scale: f32, min: Option<f32>| {
        let products = q.iter().zip(&x.q[col..]).map(|(&w, &x)| i32::from(w) * i32::from(x));
        let block = x.blocks[col / STEP];
        acc = (products.sum::<i32>() as f32).mul_add(scale * block.d, acc);
        if let Some(min) = min {
            acc = min.mul_add(block.scaled_sum, acc);
        }
    };
    for (b, block) in row.chunks_exact(ty.block_bytes()).enumerate() {
        match ty {
            WeightType::Q4K => {
                let p = blocks::Q4K::parse(block);
                for s in 0..8 {
                    let q = p.q[s * 32..][..32].iter().map(|&q| i16::from(q)).collect::<Vec<_>>();
                    let min = 0.0 - p.dmin * f32::from(p.mins[s]);
                    add(b * 256 + s * 32, &q, p.d * f32::from(p.scales[s]), Some(min));
                }
            }
            WeightType::Q6K => {
                let p = blocks::Q6K::parse(block);
                for s in 0..16 {
                    let q: Vec<_> =
                        p.q[s * 16..][..16].iter().map(|&q| i16::from(q) - 32).collect();
                    add(b * 256 + s * 16, &q, p.d * f32::from(p.scales[s]), None);
                }
            }
            _ => {
                let (d, m) = blocks::scale_and_min(ty, block);
                let min = (ty == WeightType::Q4_1).then_some(m);
                add(b * 32, &blocks::integers32(ty, block), d, min);
            }
        }
    }
    acc
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::buffer::Arena;
    use crate::testing::Rng;

    const TYPES: [WeightType; 7] = [
        WeightType::F32,
        WeightType::F16,
        WeightType::Q4_1,
        WeightType::Q5_0,
        WeightType::Q8_0,
        WeightType::Q4K,
        WeightType::Q6K,
    ];

    /// Random blocks: any integers, scales of moderate size.
    fn random_rows(ty: WeightType, rows: usize, cols: usize, rng: &mut Rng) -> Vec<u8> {
        let mut bytes = vec![0u8; rows * ty.row_bytes(cols).unwrap()];
        for block in bytes.chunks_exact_mut(ty.block_bytes()) {
            block.iter_mut().for_each(|b| *b = rng.u64() as u8);
            let mut half = |at: usize| {
                let h = half::f16::from_f32(rng.f32()).to_le_bytes();
                block[at..at + 2].copy_from_slice(&h);
            };
            match ty {
                WeightType::F32 => {
                    let x = rng.f32().to_le_bytes();
                    block.copy_from_slice(&x);
                }
                WeightType::F16 | WeightType::Q5_0 | WeightType::Q8_0 => half(0),
                WeightType::Q4_1 | WeightType::Q4K => {
                    half(0);
                    half(2);
                }
                WeightType::Q6K => half(208),
            }
        }
        bytes
    }

    fn pool(n: usize) -> Pool {
        Pool::new(NonZeroUsize::new(n).unwrap()).unwrap()
    }

    #[test]
    fn products_equal_the_definition_bit_for_bit() {
        let (mut rng, mut arena) = (Rng::new(11), Arena::new());
        for ty in TYPES {
            let unit = ty.block_len().max(32);
            for (rows, cols, n) in
                [(1, unit, 1), (16, unit, 2), (17, 2 * unit, 3), (40, 3 * unit, 13), (33, unit, 8)]
            {
                let bytes = random_rows(ty, rows, cols, &mut rng);
                let row_bytes = ty.row_bytes(cols).unwrap();
                let row = |i: usize| &bytes[i * row_bytes..][..row_bytes];
                for isa in Isa::available() {
                    for threads in [1, 2] {
                        let pool = pool(threads);
                        let w =
                            PackedMatrix::pack(ty, rows, cols, (&mut arena, &pool), row).unwrap();
                        let mut x = Activations::default();
                        let input = rng.vec(n * cols);
                        x.resize(n, cols).copy_from_slice(&input);
                        x.quantize(isa, &pool);
                        let mut out = vec![f32::NAN; n * rows];
                        matmul(isa, &pool, &x, [Product { weights: &w, out: &mut out }]);
                        for i in 0..n {
                            for r in 0..rows {
                                let expected = dot_definition(ty, row(r), &x, i);
                                let got = out[i * rows + r];
                                assert_eq!(
                                    got.to_bits(),
                                    expected.to_bits(),
                                    "{ty:?} {isa} [{rows}, {cols}] input {i} row {r}: {got} {expected}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    /// What 8-bit activations cost: below 3 % of the norm of the terms (a rounding error of at most
    /// half of 1/127 of the largest of 32, averaged over many terms).
    #[test]
    fn eight_bit_activations_stay_near_the_f32_product() {
        let mut rng = Rng::new(12);
        for ty in TYPES {
            let cols = 1024;
            let bytes = random_rows(ty, 1, cols, &mut rng);
            let mut x = Activations::default();
            let input = rng.vec(cols);
            x.resize(1, cols).copy_from_slice(&input);
            x.quantize(Isa::detect(), &pool(1));
            let mut w = vec![0.0; cols];
            crate::dequantize(ty, &bytes, &mut w);
            let exact: f64 = w.iter().zip(&input).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            let norm: f64 =
                w.iter().zip(&input).map(|(w, x)| (f64::from(*w) * f64::from(*x)).powi(2)).sum();
            let got = f64::from(dot_definition(ty, &bytes, &x, 0));
            assert!((got - exact).abs() < 0.01 * norm.sqrt() * 3.0, "{ty:?} {got} {exact}");
        }
    }

    #[test]
    fn extreme_integers_do_not_saturate() {
        let pool = pool(1);
        for ty in [WeightType::Q8_0, WeightType::Q5_0, WeightType::Q4_1] {
            for fill in [0x00, 0x7f, 0x80, 0xff] {
                let mut row = vec![fill; ty.row_bytes(64).unwrap()];
                for block in row.chunks_exact_mut(ty.block_bytes()) {
                    block[0..2].copy_from_slice(&half::f16::ONE.to_le_bytes());
                }
                for sign in [1.0, -1.0] {
                    let mut x = Activations::default();
                    x.resize(1, 64).fill(sign);
                    x.quantize(Isa::scalar(), &pool);
                    let expected = dot_definition(ty, &row, &x, 0);
                    for isa in Isa::available() {
                        let arena = &mut Arena::new();
                        let w = PackedMatrix::pack(ty, 1, 64, (arena, &pool), |_| &row).unwrap();
                        let mut out = [0.0];
                        matmul(isa, &pool, &x, [Product { weights: &w, out: &mut out }]);
                        assert_eq!(out[0].to_bits(), expected.to_bits(), "{ty:?} {isa} {fill:#x}");
                    }
                }
            }
        }
    }

    #[test]
    fn several_products_in_one_region() {
        let mut rng = Rng::new(13);
        let pool = pool(2);
        let isa = Isa::detect();
        let (a, b) = (
            random_rows(WeightType::Q8_0, 20, 32, &mut rng),
            random_rows(WeightType::Q4_1, 50, 32, &mut rng),
        );
        let mut arena = Arena::new();
        let mut pack = |ty: WeightType, rows, bytes: &[u8]| {
            let row = |i: usize| &bytes[i * ty.block_bytes()..][..ty.block_bytes()];
            PackedMatrix::pack(ty, rows, 32, (&mut arena, &pool), row).unwrap()
        };
        let wa = pack(WeightType::Q8_0, 20, &a);
        let wb = pack(WeightType::Q4_1, 50, &b);
        let mut x = Activations::default();
        let input = rng.vec(3 * 32);
        x.resize(3, 32).copy_from_slice(&input);
        x.quantize(isa, &pool);
        let (mut oa, mut ob) = (vec![0.0; 60], vec![0.0; 150]);
        matmul(
            isa,
            &pool,
            &x,
            [Product { weights: &wa, out: &mut oa }, Product { weights: &wb, out: &mut ob }],
        );
        for i in 0..3 {
            for r in 0..20 {
                assert_eq!(
                    oa[i * 20 + r],
                    dot_definition(WeightType::Q8_0, &a[r * 34..][..34], &x, i)
                );
            }
            for r in 0..50 {
                assert_eq!(
                    ob[i * 50 + r],
                    dot_definition(WeightType::Q4_1, &b[r * 20..][..20], &x, i)
                );
            }
        }
    }
}
