//! How each quantized type reads a step of its packed weights: see `quant/packed.rs` for the layouts.

use crate::quant::WeightType;
use crate::quant::blocks::{bias, has_minimum, scale_run};
use crate::quant::packed::{GROUP, block_steps, scale_bytes, step_bytes, stored_bits};
use crate::simd::Simd;

/// Scales of a step for 16 rows.
pub(crate) struct Scales<S: Simd> {
    /// Of columns 0..16 and 16..32; the first for all of them unless the type has [`Format::HALVES`].
    pub(crate) scales: [S::F; 2],
    /// What is added for each unit of the inputs, likewise, if the type has an [`Format::OFFSET`].
    pub(crate) offsets: [S::F; 2],
}

impl<S: Simd> Clone for Scales<S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S: Simd> Copy for Scales<S> {}

/// How one weight type reads a step.
pub(crate) trait Format {
    /// The type whose layout it reads.
    const TYPE: WeightType;
    /// Bytes of the scales of a block.
    const SCALE_BYTES: usize = scale_bytes(Self::TYPE);
    /// Steps of a block.
    const STEPS: usize = block_steps(Self::TYPE);
    /// Bytes of the quants of a step.
    const STEP_BYTES: usize = step_bytes(Self::TYPE);
    /// Subtracted from every stored integer.
    const BIAS: i32 = bias(Self::TYPE) as i32;
    /// Columns 0..16 and 16..32 have scales of their own.
    const HALVES: bool = scale_run(Self::TYPE) < 32;
    /// There is a minimum.
    const OFFSET: bool = has_minimum(Self::TYPE);

    /// # Safety
    ///
    /// As for [`Simd`]; `quants` points to a step of [`Self::STEP_BYTES`].
    #[inline(always)]
    unsafe fn vectors<S: Simd>(quants: *const u8) -> [S::B; 8] {
        // SAFETY: the caller's promise; a step has 64 bytes for each bit.
        unsafe {
            match stored_bits(Self::TYPE) {
                4 => nibbles::<S>(quants),
                5 => five_bits::<S>(quants),
                6 => six_bits::<S>(quants),
                _ => bytes::<S>(quants),
            }
        }
    }

    /// # Safety
    ///
    /// As for [`Simd`]; `scales` points to those of a block that has the step.
    unsafe fn scales<S: Simd>(scales: *const u8, step: usize) -> Scales<S>;

    /// # Safety
    ///
    /// As for [`Simd`]; `x` points to four integers.
    #[inline(always)]
    unsafe fn dot<S: Simd>(acc: S::I, w: S::B, x: *const i8) -> S::I {
        // SAFETY: the caller's promise. Bytes above 127 need the wide form.
        unsafe {
            if stored_bits(Self::TYPE) == 8 {
                S::dot::<true>(acc, w, x)
            } else {
                S::dot::<false>(acc, w, x)
            }
        }
    }
}

/// Low nibbles of four vectors, then their high nibbles: 256 bytes.
#[inline(always)]
unsafe fn nibbles<S: Simd>(quants: *const u8) -> [S::B; 8] {
    // SAFETY: the caller's promise.
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

/// 256 bytes of nibbles, then 64 of fifth bits.
#[inline(always)]
unsafe fn five_bits<S: Simd>(quants: *const u8) -> [S::B; 8] {
    // SAFETY: the caller's promise.
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

/// 256 bytes of nibbles, then 128 of bit pairs.
#[inline(always)]
unsafe fn six_bits<S: Simd>(quants: *const u8) -> [S::B; 8] {
    // SAFETY: the caller's promise.
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

/// 512 bytes.
#[inline(always)]
unsafe fn bytes<S: Simd>(quants: *const u8) -> [S::B; 8] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut w = [S::bytes(quants); 8];
        for (i, w) in w.iter_mut().enumerate().skip(1) {
            *w = S::bytes(quants.add(64 * i));
        }
        w
    }
}

/// One scale for a step.
#[inline(always)]
fn one<S: Simd>(scale: S::F) -> Scales<S> {
    Scales { scales: [scale; 2], offsets: [scale; 2] }
}

/// A step's `d`, in f16.
#[inline(always)]
unsafe fn d<S: Simd>(scales: *const u8, _step: usize) -> Scales<S> {
    // SAFETY: the caller's promise.
    unsafe { one(S::load_f16(scales.cast())) }
}

/// A step's `d`, in f32.
#[inline(always)]
unsafe fn wide_d<S: Simd>(scales: *const u8, _step: usize) -> Scales<S> {
    // SAFETY: the caller's promise.
    unsafe { one(S::load(scales.cast())) }
}

/// A step's `d` and `m`, in f16.
#[inline(always)]
unsafe fn d_and_m<S: Simd>(scales: *const u8, _step: usize) -> Scales<S> {
    // SAFETY: the caller's promise.
    unsafe {
        let (d, m) = (S::load_f16(scales.cast()), S::load_f16(scales.add(32).cast()));
        Scales { scales: [d; 2], offsets: [m; 2] }
    }
}

/// `d`, `dmin` of a block, then `n` scales for each step, then as many minima.
#[inline(always)]
unsafe fn scales_and_mins<S: Simd, F: Format>(scales: *const u8, step: usize) -> Scales<S> {
    let n = if F::HALVES { 2 } else { 1 };
    // SAFETY: the caller's promise.
    unsafe {
        let (d, dmin) = (S::load_f16(scales.cast()), S::load_f16(scales.add(32).cast()));
        let of_step = scales.add(64 + step * n * GROUP);
        let scale = |i: usize| S::mul(d, S::load_u8(of_step.add(i * GROUP)));
        let min = |i: usize| S::mul(dmin, S::load_u8(of_step.add((F::STEPS * n + i) * GROUP)));
        let offset = |i: usize| S::sub(S::splat(0.0), min(i));
        Scales { scales: [scale(0), scale(n - 1)], offsets: [offset(0), offset(n - 1)] }
    }
}

/// `d` of a block, then one or two signed scales for each step.
#[inline(always)]
unsafe fn signed_scales<S: Simd, F: Format>(scales: *const u8, step: usize) -> Scales<S> {
    let n = if F::HALVES { 2 } else { 1 };
    // SAFETY: the caller's promise.
    unsafe {
        let d = S::load_f16(scales.cast());
        let of_step = scales.add(32 + step * n * GROUP);
        let scale = |i: usize| S::mul(d, S::load_i8(of_step.add(i * GROUP)));
        Scales { scales: [scale(0), scale(n - 1)], offsets: [d; 2] }
    }
}

/// The format of a type, which reads its scales by this function.
macro_rules! format {
    ($name:ident, $scales:expr) => {
        pub(crate) struct $name;
        impl Format for $name {
            const TYPE: WeightType = WeightType::$name;

            #[inline(always)]
            unsafe fn scales<S: Simd>(scales: *const u8, step: usize) -> Scales<S> {
                // SAFETY: the caller's promise.
                unsafe { $scales(scales, step) }
            }
        }
    };
}

format!(Q4_0, d::<S>);
format!(Q4_1, d_and_m::<S>);
format!(Q5_0, d::<S>);
format!(Q5_1, d_and_m::<S>);
// IQ4_NL is stored in the same way.
format!(Q8_0, d::<S>);
format!(MXFP4, wide_d::<S>);
format!(Q2K, scales_and_mins::<S, Self>);
format!(Q3K, signed_scales::<S, Self>);
format!(Q4K, scales_and_mins::<S, Self>);
format!(Q5K, scales_and_mins::<S, Self>);
format!(Q6K, signed_scales::<S, Self>);
format!(IQ4XS, signed_scales::<S, Self>);
