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
use crate::formats::{self, Format, Scales};
use crate::pool::Shareable;
use crate::quant::WeightType;
use crate::quant::packed::{GROUP, PackedMatrix, STEP};
use crate::simd::{Kernel, PREFETCH_BYTES, Simd, prefetch};
use crate::{Isa, Pool};

/// Bytes of 8-bit inputs that pass over a group of weights before the next group: they shall stay
/// in the second-level cache.
const PANEL_BYTES: usize = 384 * 1024;

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
                WeightType::F32 | WeightType::BF16 => self.floats::<S, f32>(),
                WeightType::F16 => self.floats::<S, half::f16>(),
                WeightType::Q4_0 => self.quantized::<S, formats::Q4_0>(),
                WeightType::Q4_1 => self.quantized::<S, formats::Q4_1>(),
                WeightType::Q5_0 => self.quantized::<S, formats::Q5_0>(),
                WeightType::Q5_1 => self.quantized::<S, formats::Q5_1>(),
                WeightType::Q8_0 | WeightType::IQ4NL => self.quantized::<S, formats::Q8_0>(),
                WeightType::MXFP4 => self.quantized::<S, formats::MXFP4>(),
                WeightType::Q2K => self.quantized::<S, formats::Q2K>(),
                WeightType::Q3K => self.quantized::<S, formats::Q3K>(),
                WeightType::Q4K => self.quantized::<S, formats::Q4K>(),
                WeightType::Q5K => self.quantized::<S, formats::Q5K>(),
                WeightType::Q6K => self.quantized::<S, formats::Q6K>(),
                WeightType::IQ4XS => self.quantized::<S, formats::IQ4XS>(),
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
            let mut at = bytes.as_ptr();
            let mut acc = [S::splat(0.0); R];
            for first in (0..self.weights.cols / STEP).step_by(F::STEPS) {
                let scales = at;
                prefetch::<S>(at.wrapping_add(PREFETCH_BYTES), F::SCALE_BYTES);
                at = at.add(F::SCALE_BYTES);
                for step in 0..F::STEPS {
                    let w = F::vectors::<S>(at);
                    let scale = F::scales::<S>(scales, step);
                    prefetch::<S>(at.wrapping_add(PREFETCH_BYTES), F::STEP_BYTES);
                    at = at.add(F::STEP_BYTES);
                    for r in 0..R {
                        let x = inputs[r].q.as_ptr().add((first + step) * STEP);
                        let block = *inputs[r].blocks.get_unchecked(first + step);
                        acc[r] = accumulate::<S, F>(&w, scale, x, block, acc[r]);
                    }
                }
            }
            for (r, acc) in acc.into_iter().enumerate() {
                self.write::<S>(group, row + r, acc);
            }
        }
    }

    /// The product of float weights. As many inputs as registers have room for share a pass.
    #[inline(always)]
    unsafe fn floats<S: Simd, E: crate::simd::Element>(&self) {
        let n = self.x.n_rows;
        let panel = PANEL_BYTES / (4 * self.weights.cols).max(1) / 24 * 24;
        let panel = panel.max(24);
        for first in (0..n).step_by(panel) {
            let last = n.min(first + panel);
            for group in self.from..self.to {
                let mut row = first;
                // SAFETY: rows and group are in range; see `float_tile`.
                unsafe {
                    while S::REGISTERS == 32 && row + 8 <= last {
                        self.float_tile::<S, E, 8>(group, row);
                        row += 8;
                    }
                    while row + 3 <= last {
                        self.float_tile::<S, E, 3>(group, row);
                        row += 3;
                    }
                    while row < last {
                        self.float_tile::<S, E, 1>(group, row);
                        row += 1;
                    }
                }
            }
        }
    }

    /// The product of one group of float weights with `R` inputs from `row`: two partial sums, of even
    /// and of odd columns.
    ///
    /// # Safety
    ///
    /// As for [`Simd`]; `group` and all rows exist. A group holds 16 weights for each column.
    #[inline(always)]
    unsafe fn float_tile<S: Simd, E: crate::simd::Element, const R: usize>(
        &self,
        group: usize,
        row: usize,
    ) {
        let cols = self.weights.cols;
        let w = self.weights.group(group).as_ptr().cast::<E>();
        let x: [_; R] = std::array::from_fn(|r| self.x.row_f32(row + r).as_ptr());
        // SAFETY: see above; inputs have `cols` numbers.
        unsafe {
            let mut acc = [[S::splat(0.0); R]; 2];
            for pair in 0..cols / 2 {
                for i in 0..2 {
                    let col = 2 * pair + i;
                    let w = E::load16::<S>(w.add(col * GROUP));
                    for r in 0..R {
                        acc[i][r] = S::fma(w, S::splat(*x[r].add(col)), acc[i][r]);
                    }
                }
            }
            if cols % 2 == 1 {
                let w = E::load16::<S>(w.add((cols - 1) * GROUP));
                for r in 0..R {
                    acc[0][r] = S::fma(w, S::splat(*x[r].add(cols - 1)), acc[0][r]);
                }
            }
            for r in 0..R {
                self.write::<S>(group, row + r, S::add(acc[0][r], acc[1][r]));
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
            let acc = S::fma(S::to_f(low), S::mul(scale.scales[0], d), acc);
            S::fma(S::to_f(high), S::mul(scale.scales[1], d), acc)
        } else {
            S::fma(S::to_f(S::add_i(low, high)), S::mul(scale.scales[0], d), acc)
        };
        match (F::OFFSET, F::HALVES) {
            (false, _) => acc,
            (true, false) => S::fma(scale.offsets[0], S::splat(block.scaled_sum), acc),
            (true, true) => {
                let sums = block.sums.map(|sum| S::splat(block.d * sum as f32));
                let acc = S::fma(scale.offsets[0], sums[0], acc);
                S::fma(scale.offsets[1], sums[1], acc)
            }
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
        let mut acc = [0.0f32; 2];
        for (col, (w, x)) in w.iter().zip(x.row_f32(input)).enumerate() {
            acc[col % 2] = w.mul_add(*x, acc[col % 2]);
        }
        return acc[0] + acc[1];
    }
    let x = x.row(input);
    let mut acc = 0.0f32;
    // Integers from a column on with their scale; or the minima of a step, one or one for each half.
    let mut add = |col: usize, q: &[i16], scale: f32, mins: &[f32]| {
        let block = x.blocks[col / STEP];
        if !q.is_empty() {
            let products = q.iter().zip(&x.q[col..]).map(|(&w, &x)| i32::from(w) * i32::from(x));
            acc = (products.sum::<i32>() as f32).mul_add(scale * block.d, acc);
        }
        match mins {
            [min] => acc = min.mul_add(block.scaled_sum, acc),
            _ => {
                for (min, sum) in mins.iter().zip(block.sums) {
                    acc = min.mul_add(block.d * sum as f32, acc);
                }
            }
        }
    };
    for (b, block) in row.chunks_exact(ty.block_bytes()).enumerate() {
        if ty.block_len() == STEP {
            let p = blocks::Block::parse(ty, block);
            let min = blocks::has_minimum(ty).then_some(p.m);
            let q: Vec<i16> = (0..STEP).map(|i| p.integer(i)).collect();
            add(b * STEP, &q, p.d, &[]);
            min.iter().for_each(|&min| add(b * STEP, &[], 0.0, &[min]));
            continue;
        }
        let p = blocks::SuperBlock::parse(ty, block);
        let run = blocks::scale_run(ty);
        for step in (0..256).step_by(STEP) {
            let runs = || (step..step + STEP).step_by(run);
            for first in runs() {
                let q: Vec<i16> = (first..first + run).map(|i| p.integer(i)).collect();
                add(b * 256 + first, &q, p.d * f32::from(p.scales[first / 16]), &[]);
            }
            let mins = runs().map(|first| 0.0 - p.dmin * f32::from(p.mins[first / 16]));
            if blocks::has_minimum(ty) {
                add(b * 256 + step, &[], 0.0, &mins.collect::<Vec<_>>());
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

    const TYPES: [WeightType; 16] = WeightType::ALL;

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
                WeightType::BF16 => {
                    let x = half::bf16::from_f32(rng.f32()).to_le_bytes();
                    block.copy_from_slice(&x);
                }
                // About 1, so that the products are as large as those of the others.
                WeightType::MXFP4 => block[0] = 124 + block[0] % 6,
                WeightType::F16
                | WeightType::Q4_0
                | WeightType::Q5_0
                | WeightType::Q8_0
                | WeightType::IQ4NL
                | WeightType::IQ4XS => half(0),
                WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K => {
                    half(0);
                    half(2);
                }
                WeightType::Q2K => {
                    half(80);
                    half(82);
                }
                WeightType::Q3K => half(108),
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
                [(1, unit, 1), (16, unit, 2), (17, 2 * unit, 3), (40, 3 * unit, 13), (33, unit, 28)]
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
        for ty in [
            WeightType::Q8_0,
            WeightType::IQ4NL,
            WeightType::Q5_0,
            WeightType::Q5_1,
            WeightType::Q4_0,
            WeightType::Q4_1,
        ] {
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
