//! Inputs of matrix products, rounded to 8 bits once per input.

use crate::quant::packed::STEP;
use crate::simd::{Kernel, Simd};
use crate::{Isa, Pool};

/// A matrix `[n_rows, cols]` of inputs, in f32 and, in blocks of 32, in 8 bits with a scale.
///
/// `x ≈ d * q` with `d = max|x| / 127` and q rounded to nearest even. Buffers are reused from call
/// to call and only ever grow to the largest input seen.
#[derive(Debug, Default)]
pub struct Activations {
    pub(crate) n_rows: usize,
    pub(crate) cols: usize,
    /// Whether `rows` are those of `x`.
    pub(crate) is_quantized: bool,
    /// `[n_rows, cols]`
    pub(crate) x: Vec<f32>,
    rows: Vec<QuantizedRow>,
}

/// One row in 8 bits.
#[derive(Clone, Debug, Default)]
pub(crate) struct QuantizedRow {
    /// `[cols]`, padded to whole blocks with zeros.
    pub(crate) q: Vec<i8>,
    /// Per block of 32.
    pub(crate) blocks: Vec<BlockScale>,
}

/// What belongs to 32 inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct BlockScale {
    pub(crate) d: f32,
    /// `d` times the sum of the 32 integers: what a weight's minimum is multiplied with.
    pub(crate) scaled_sum: f32,
    /// Sums of the first and the last 16 integers.
    pub(crate) sums: [i32; 2],
}

impl Activations {
    /// The buffer for `n_rows` inputs of `cols` numbers; fill it, then call
    /// [`Activations::quantize`].
    pub fn resize(&mut self, n_rows: usize, cols: usize) -> &mut [f32] {
        self.n_rows = n_rows;
        self.cols = cols;
        self.is_quantized = false;
        self.x.resize(n_rows * cols, 0.0);
        &mut self.x
    }

    /// Rounds the inputs to 8 bits.
    pub fn quantize(&mut self, isa: Isa, pool: &Pool) {
        let (x, cols) = (&self.x, self.cols);
        if self.rows.len() < self.n_rows {
            self.rows.resize_with(self.n_rows, QuantizedRow::default);
        }
        pool.for_each_chunk(&mut self.rows[..self.n_rows], 1, |i, row| {
            row[0].fill(isa, &x[i * cols..][..cols]);
        });
        self.is_quantized = true;
    }

    /// How many inputs it holds.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Length of an input.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn row(&self, i: usize) -> &QuantizedRow {
        &self.rows[i]
    }

    #[inline]
    pub(crate) fn row_f32(&self, i: usize) -> &[f32] {
        &self.x[i * self.cols..][..self.cols]
    }
}

impl QuantizedRow {
    fn fill(&mut self, isa: Isa, x: &[f32]) {
        let n_blocks = x.len().div_ceil(STEP);
        self.q.resize(n_blocks * STEP, 0);
        self.blocks.resize(n_blocks, BlockScale::default());
        let (whole, rest) = x.as_chunks();
        isa.run(Quantize { x: whole, row: self, first: 0 });
        if !rest.is_empty() {
            let mut block = [0.0; STEP];
            block[..rest.len()].copy_from_slice(rest);
            isa.run(Quantize { x: &[block], row: self, first: whole.len() });
        }
    }
}

/// Rounds blocks of 32 numbers into a row, from block `first`.
struct Quantize<'a> {
    x: &'a [[f32; STEP]],
    row: &'a mut QuantizedRow,
    first: usize,
}

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (q, _) = self.row.q.as_chunks_mut::<STEP>();
        let blocks = q[self.first..].iter_mut().zip(&mut self.row.blocks[self.first..]);
        for (x, (q, block)) in self.x.iter().zip(blocks) {
            // SAFETY: both arrays have 32 elements.
            *block = unsafe { quantize::<S>(x, q) };
        }
    }
}

/// Rounds one block.
#[inline(always)]
unsafe fn quantize<S: Simd>(x: &[f32; STEP], q: &mut [i8; STEP]) -> BlockScale {
    // SAFETY: both arrays have 32 elements, read and written 16 at a time.
    unsafe {
        let halves = [S::load(x.as_ptr()), S::load(x.as_ptr().add(16))];
        let amax = S::largest(S::max(S::abs(halves[0]), S::abs(halves[1])));
        let inverse = S::splat(if amax > 0.0 { 127.0 / amax } else { 0.0 });
        let mut sums = [0; 2];
        for i in 0..2 {
            // The clamp is for NaN and for products with an infinite inverse.
            let scaled = S::max(S::mul(halves[i], inverse), S::splat(-127.0));
            let rounded = S::round(S::min(scaled, S::splat(127.0)));
            S::store_i8(q.as_mut_ptr().add(16 * i), rounded);
            // Exact: integers below 2^24.
            sums[i] = S::sum(rounded) as i32;
        }
        // Below 0 is -∞: all of them are NaN, and so is what they are multiplied with.
        let d = if amax < 0.0 { f32::NAN } else { amax / 127.0 };
        BlockScale { d, scaled_sum: d * (sums[0] + sums[1]) as f32, sums }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Rng;

    fn naive(x: &[f32]) -> (Vec<i8>, f32) {
        let amax = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let inverse = if amax > 0.0 { 127.0 / amax } else { 0.0 };
        (x.iter().map(|v| (v * inverse).round_ties_even() as i8).collect(), amax / 127.0)
    }

    #[test]
    fn rounding_is_the_same_everywhere() {
        let mut rng = Rng::new(3);
        for round in 0..500 {
            let scale = 10f32.powi(round % 60 - 30);
            let x: [f32; STEP] = std::array::from_fn(|_| rng.f32() * scale);
            let (q, d) = naive(&x);
            for isa in Isa::available() {
                let mut row = QuantizedRow::default();
                row.fill(isa, &x);
                assert_eq!((&row.q, row.blocks[0].d), (&q, d), "{isa}");
                assert_eq!(
                    row.blocks[0].sums.iter().sum::<i32>(),
                    q.iter().map(|&q| q as i32).sum()
                );
            }
        }
    }

    #[test]
    fn extremes_and_tails() {
        for isa in Isa::available() {
            let mut row = QuantizedRow::default();
            row.fill(isa, &[0.0; 5]);
            assert_eq!((row.q.len(), row.blocks[0].d), (32, 0.0));
            row.fill(isa, &[1e-44; 33]);
            assert_eq!(row.q[..33], [127; 33], "{isa}");
            row.fill(isa, &[f32::NAN, 1.0]);
            assert_eq!(row.q[1], 127, "{isa}");
            row.fill(isa, &[f32::NAN; STEP]);
            assert!(row.blocks[0].d.is_nan(), "{isa}");
            row.fill(isa, &[f32::INFINITY, 1.0]);
            assert_eq!(row.blocks[0].d, f32::INFINITY);
        }
    }
}
