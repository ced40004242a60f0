//! Sixteen lanes, written once: the operations that every kernel is made of.
//!
//! A kernel is a generic function over [`Simd`]. Three types implement it: arrays (the scalar
//! definition), AVX2 (two registers of eight lanes) and AVX-512 (one register of sixteen). All
//! three do the same operations on the same sixteen lanes in the same order, with fused
//! multiply-adds, so a kernel returns **the same bits** on every instruction set. Tests compare
//! with `==`, and a golden file made on one machine holds on another.
//!
//! The obvious alternative, one hand-written function per kernel and instruction set, is what
//! most engines have. It triples the code, and since each sums in its own order, its tests need
//! tolerances wide enough to hide a wrong tail.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
mod scalar;

use half::slice::HalfFloatSliceExt;

pub(crate) use scalar::Scalar;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Sixteen-lane arithmetic.
///
/// # Safety
///
/// Every method requires that the instruction set of the implementing type is enabled in the
/// calling function (kernels are entered through [`crate::Isa::run`] only), and that pointers
/// are valid for the number of elements named by the method; no alignment is required.
pub trait Simd: Copy {
    /// 16 `f32`.
    type F: Copy;
    /// 16 `i32`.
    type I: Copy;
    /// 64 bytes: 16 groups of 4.
    type B: Copy;
    /// How many [`Simd::F`] the CPU has room for.
    const REGISTERS: usize;

    unsafe fn splat(x: f32) -> Self::F;
    /// Reads 16 `f32`.
    unsafe fn load(p: *const f32) -> Self::F;
    /// Reads 16 half-precision numbers.
    unsafe fn load_f16(p: *const u16) -> Self::F;
    /// Writes 16 `f32`.
    unsafe fn store(p: *mut f32, x: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger of each pair; `b` where either is NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The smaller of each pair; `b` where either is NaN.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn abs(a: Self::F) -> Self::F;
    /// Rounds to the nearest integer, ties to even.
    unsafe fn round(a: Self::F) -> Self::F;
    /// `2^n` for integral `n` in -126 ..= 127.
    unsafe fn exp2i(n: Self::F) -> Self::F;

    unsafe fn splat_i(x: i32) -> Self::I;
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn to_f(a: Self::I) -> Self::F;
    /// Rounds to nearest even and writes 16 `i8`; the values must lie in -127 ..= 127.
    unsafe fn store_i8(p: *mut i8, x: Self::F);
    /// Reads 16 bytes, unsigned.
    unsafe fn load_u8(p: *const u8) -> Self::F;
    /// Reads 16 bytes, signed.
    unsafe fn load_i8(p: *const u8) -> Self::F;

    /// Asks for the cache line at `p`, which need not exist.
    unsafe fn prefetch(_p: *const u8) {}

    /// Reads 64 bytes.
    unsafe fn bytes(p: *const u8) -> Self::B;
    unsafe fn splat_b(x: u8) -> Self::B;
    unsafe fn and(a: Self::B, b: Self::B) -> Self::B;
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B;
    /// Shifts each 16-bit half left; callers mask what crosses a byte.
    unsafe fn shl<const N: u32>(a: Self::B) -> Self::B;
    /// Shifts each 16-bit half right; callers mask what crosses a byte.
    unsafe fn shr<const N: u32>(a: Self::B) -> Self::B;
    /// Adds to lane `l` the dot product of bytes `4l .. 4l + 4` of `w` (unsigned) with the four
    /// signed bytes at `a`, exactly. Unless `WIDE`, the bytes of `w` are at most 127.
    unsafe fn dot<const WIDE: bool>(acc: Self::I, w: Self::B, a: *const i8) -> Self::I;

    /// The sum of the lanes: `l + 8`, then `l + 4`, `l + 2`, `l + 1`.
    #[inline(always)]
    unsafe fn sum(a: Self::F) -> f32 {
        let mut lanes = [0.0; LANES];
        // SAFETY: the array has 16 elements.
        unsafe { Self::store(lanes.as_mut_ptr(), a) };
        fold(lanes, |x, y| x + y)
    }

    /// The largest lane, in the order of [`Simd::sum`]; lanes that are NaN do not count, and -∞ is
    /// the largest of none.
    #[inline(always)]
    unsafe fn largest(a: Self::F) -> f32 {
        let mut lanes = [0.0; LANES];
        // SAFETY: the array has 16 elements.
        unsafe {
            Self::store(lanes.as_mut_ptr(), Self::max(a, Self::splat(f32::NEG_INFINITY)));
        }
        fold(lanes, |x, y| if x > y { x } else { y })
    }

    /// `e^x` with a relative error below 3e-7 for x in -87 ..= 88; below that range a number under
    /// 2e-38, from -104 on 0, and the value at 88 above it. NaN counts as the upper end.
    ///
    /// Argument reduction by Cody and Waite and the polynomial of Cephes' `expf`.
    #[inline(always)]
    unsafe fn exp(x: Self::F) -> Self::F {
        // SAFETY: the caller's promise; no pointers.
        unsafe {
            let x = Self::max(Self::min(x, Self::splat(88.0)), Self::splat(-104.0));
            let n = Self::round(Self::mul(x, Self::splat(std::f32::consts::LOG2_E)));
            let r = Self::fma(n, Self::splat(-0.693_359_4), x);
            let r = Self::fma(n, Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.987_569_1e-4);
            for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
                p = Self::fma(p, r, Self::splat(c));
            }
            let y = Self::add(Self::fma(Self::mul(r, r), p, r), Self::splat(1.0));
            // Two factors, so that results below the normal range come out as (nearly) zero.
            let half = Self::round(Self::mul(n, Self::splat(0.5)));
            let rest = Self::sub(n, half);
            Self::mul(Self::mul(y, Self::exp2i(half)), Self::exp2i(rest))
        }
    }
}

/// How far ahead of what is read from memory lines are asked for, in bytes; see `docs/BENCHMARKS.md` for what
/// was tried.
pub(crate) const PREFETCH_BYTES: usize = 2048;

/// Asks for the `len` bytes at `p`.
///
/// # Safety
///
/// As for [`Simd`]; but `p` may point anywhere.
#[inline(always)]
pub(crate) unsafe fn prefetch<S: Simd>(p: *const u8, len: usize) {
    for at in (0..len).step_by(64) {
        // SAFETY: the caller's promise.
        unsafe { S::prefetch(p.wrapping_add(at)) };
    }
}

/// Reduces 16 lanes in the one order that all implementations share.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    for width in [8, 4, 2, 1] {
        for l in 0..width {
            lanes[l] = f(lanes[l], lanes[l + width]);
        }
    }
    lanes[0]
}

/// A computation that can run on any [`Simd`]; [`crate::Isa::run`] picks one.
pub(crate) trait Kernel {
    type Output;

    /// # Safety
    ///
    /// As for [`Simd`]. Implementations are `#[inline(always)]`, so that their body is compiled
    /// with the instruction set of the caller. That does not reach into closures: no operation of
    /// [`Simd`] stands in one.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// An element of a key or value buffer: `f32` or `f16`.
pub trait Element: Copy + Default + Send + Sync + private::Sealed + 'static {
    /// Rounds to this type.
    fn from_f32(x: f32) -> Self;
    /// Widens.
    fn to_f32(self) -> f32;
    /// Rounds all of `from`, as [`Element::from_f32`] does.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    fn narrow(from: &[f32], to: &mut [Self]);
    /// Widens all of `from`.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    fn widen(from: &[Self], to: &mut [f32]);
}

pub(crate) mod private {
    use super::Simd;

    /// Keeps [`super::Element`] closed and gives kernels its vector load.
    pub trait Sealed: Sized {
        /// Reads 16 elements.
        ///
        /// # Safety
        ///
        /// As for [`Simd`]: `p` is valid for 16 elements.
        unsafe fn load16<S: Simd>(p: *const Self) -> S::F;
    }

    impl Sealed for f32 {
        #[inline(always)]
        unsafe fn load16<S: Simd>(p: *const Self) -> S::F {
            // SAFETY: the caller's promise.
            unsafe { S::load(p) }
        }
    }

    impl Sealed for half::f16 {
        #[inline(always)]
        unsafe fn load16<S: Simd>(p: *const Self) -> S::F {
            // SAFETY: the caller's promise; `f16` is a transparent `u16`.
            unsafe { S::load_f16(p.cast()) }
        }
    }
}

impl Element for f32 {
    fn from_f32(x: f32) -> Self {
        x
    }
    fn to_f32(self) -> f32 {
        self
    }
    fn narrow(from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }
    fn widen(from: &[Self], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Element for half::f16 {
    fn from_f32(x: f32) -> Self {
        Self::from_f32(x)
    }
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
    // Slices are converted by the CPU's instructions where it has them, single numbers are not.
    fn narrow(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
    }
    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::{Element, Kernel, LANES, Simd};
    use crate::Isa;

    /// Applies most operations to sixteen lanes and collects the results.
    struct Probe {
        a: [f32; LANES],
        b: [f32; LANES],
    }

    impl Kernel for Probe {
        type Output = Vec<u32>;

        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> Vec<u32> {
            let mut out = Vec::new();
            // SAFETY: all arrays have 16 elements.
            unsafe {
                let (a, b) = (S::load(self.a.as_ptr()), S::load(self.b.as_ptr()));
                let results = [
                    S::add(a, b),
                    S::sub(a, b),
                    S::mul(a, b),
                    S::div(a, b),
                    S::fma(a, b, a),
                    S::max(a, b),
                    S::min(a, b),
                    S::abs(a),
                    S::round(a),
                    S::exp(a),
                ];
                for r in results {
                    let mut lanes = [0.0f32; LANES];
                    S::store(lanes.as_mut_ptr(), r);
                    out.extend(
                        lanes.iter().map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }),
                    );
                }
                out.push(S::sum(b).to_bits());
                out.push(S::largest(b).to_bits());
            }
            out
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let special = [0.0, -0.0, 1.0, -1.5, 2.5, -2.5, 1e-40, -1e-40, 88.0, -87.5, -110.0];
        let mut rng = crate::testing::Rng::new(7);
        for round in 0..2000 {
            let mut pick = |i: usize| match (round + i) % 7 {
                0 => special[(round * 5 + i) % special.len()],
                1 => rng.f32() * 100.0,
                _ => rng.f32() * 4.0,
            };
            let a = std::array::from_fn(&mut pick);
            let b = std::array::from_fn(&mut pick);
            let expected = Isa::scalar().run(Probe { a, b });
            for isa in Isa::available() {
                assert_eq!(isa.run(Probe { a, b }), expected, "{isa} {a:?} {b:?}");
            }
        }
    }

    struct Exp([f32; LANES]);

    impl Kernel for Exp {
        type Output = [f32; LANES];

        #[inline(always)]
        unsafe fn run<S: Simd>(mut self) -> [f32; LANES] {
            // SAFETY: the array has 16 elements.
            unsafe { S::store(self.0.as_mut_ptr(), S::exp(S::load(self.0.as_ptr()))) };
            self.0
        }
    }

    struct Largest([f32; LANES]);

    impl Kernel for Largest {
        type Output = f32;

        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> f32 {
            // SAFETY: the array has 16 elements.
            unsafe { S::largest(S::load(self.0.as_ptr())) }
        }
    }

    #[test]
    fn the_largest_lane_is_found_wherever_it_is_and_nan_is_none() {
        for isa in Isa::available() {
            for at in 0..LANES {
                let mut lanes = [f32::NAN; LANES];
                assert_eq!(isa.run(Largest(lanes)), f32::NEG_INFINITY, "{isa}");
                lanes[(at + 5) % LANES] = -7.0;
                lanes[at] = -2.0;
                assert_eq!(isa.run(Largest(lanes)), -2.0, "{isa} {at}");
            }
        }
    }

    #[test]
    fn exp_is_close_and_saturates() {
        for i in 0..20_000 {
            let x = -87.0 + 175.0 * i as f32 / 20_000.0;
            let y = Isa::detect().run(Exp([x; LANES]))[0];
            let exact = f64::from(x).exp();
            assert!((f64::from(y) / exact - 1.0).abs() < 3e-7, "{x}: {y} {exact}");
        }
        let ends = [f32::NEG_INFINITY, -200.0, 0.0, 89.0, f32::INFINITY];
        let y = Isa::detect().run(Exp(std::array::from_fn(|i| ends[i % 5])));
        assert!(y[0] < 1e-38 && y[1] < 1e-38);
        assert_eq!(y[2], 1.0);
        assert!(y[3].is_finite() && y[3] == y[4]);
    }

    /// Every length up to twice the widest vector and one, and every kind of number.
    #[test]
    fn slices_are_converted_as_single_numbers_are() {
        let odd = [0.0, -0.0, 1.0, 65504.0, 65520.0, 1e-8, 6e-8, f32::INFINITY, 1.000_488_3, -3e5];
        let numbers: Vec<f32> = (0..33_u16)
            .map(|i| odd.get(usize::from(i)).copied().unwrap_or(f32::from(i) * 0.3 - 7.7))
            .collect();
        for n in 0..=numbers.len() {
            for start in 0..=numbers.len() - n {
                let from = &numbers[start..start + n];
                let mut narrow = vec![f16::ZERO; n];
                f16::narrow(from, &mut narrow);
                let expected: Vec<f16> = from.iter().map(|&x| f16::from_f32(x)).collect();
                assert_eq!(narrow, expected);
                let mut wide = vec![0.0; n];
                f16::widen(&narrow, &mut wide);
                assert_eq!(wide, expected.iter().map(|x| x.to_f32()).collect::<Vec<f32>>());
                for isa in crate::Isa::available() {
                    let mut at_once = vec![1.0; n];
                    crate::widen(isa, &narrow, &mut at_once);
                    assert_eq!(at_once, wide, "{isa}");
                }
            }
        }
    }
}
