//! Sixteen lanes as two AVX2 registers of eight.

use std::arch::x86_64::*;

use super::{Kernel, Simd};

/// AVX2 with FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// Runs `kernel` with the instruction set enabled.
///
/// # Safety
///
/// The CPU has the features named in the attribute.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the features are enabled here and the kernel inlines into this function.
    unsafe { kernel.run::<Avx2>() }
}

/// The sum of eight lanes: `l + 4`, then `l + 2`, then `l + 1`.
///
/// # Safety
///
/// AVX is enabled in the calling function.
#[inline(always)]
pub(super) unsafe fn sum8(x: __m256) -> f32 {
    // SAFETY: the caller's promise; no pointers.
    unsafe {
        let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
    }
}

/// The largest of eight lanes, in the order of [`sum8`].
///
/// # Safety
///
/// AVX is enabled in the calling function.
#[inline(always)]
pub(super) unsafe fn largest8(x: __m256) -> f32 {
    // SAFETY: the caller's promise; no pointers.
    unsafe {
        let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
    }
}

/// Applies an operation to the two registers of each argument.
macro_rules! both {
    ($f:expr; $a:ident) => {
        [$f($a[0]), $f($a[1])]
    };
    ($f:expr; $a:ident, $b:ident) => {
        [$f($a[0], $b[0]), $f($a[1], $b[1])]
    };
    ($f:expr; $a:ident, $b:ident, $c:ident) => {
        [$f($a[0], $b[0], $c[0]), $f($a[1], $b[1], $c[1])]
    };
}

/// Sums of four products of unsigned and signed bytes, exact if the bytes of `w` are at most 127:
/// a pair then sums to at most 2 * 127 * 127, which fits 16 bits.
///
/// # Safety
///
/// AVX2 is enabled in the calling function.
#[inline(always)]
unsafe fn dot4(w: __m256i, a: __m256i) -> __m256i {
    // SAFETY: the caller's promise; no pointers.
    unsafe { _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1)) }
}

/// Adds [`dot4`]. A wide byte is split into its low seven bits and its top bit, since a pair of
/// products of full bytes would saturate the 16-bit sums.
///
/// # Safety
///
/// AVX2 is enabled in the calling function.
#[inline(always)]
unsafe fn add_dot<const WIDE: bool>(acc: __m256i, w: __m256i, a: __m256i) -> __m256i {
    // SAFETY: the caller's promise; no pointers.
    unsafe {
        if WIDE {
            let low = _mm256_and_si256(w, _mm256_set1_epi8(0x7f));
            let top = _mm256_andnot_si256(_mm256_set1_epi8(0x7f), w);
            _mm256_add_epi32(acc, _mm256_add_epi32(dot4(low, a), dot4(top, a)))
        } else {
            _mm256_add_epi32(acc, dot4(w, a))
        }
    }
}

// SAFETY of every unsafe block below: the trait's contract enables the instructions and makes
// the pointers valid for the number of elements read or written; all accesses are unaligned ones.
impl Simd for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type B = [__m256i; 2];
    const REGISTERS: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        // SAFETY: see the impl.
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: see the impl.
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        // SAFETY: see the impl.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast())),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        // SAFETY: see the impl.
        unsafe {
            _mm256_storeu_ps(p, x[0]);
            _mm256_storeu_ps(p.add(8), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the impl.
        unsafe { both!(_mm256_add_ps; a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the impl.
        unsafe { both!(_mm256_sub_ps; a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the impl.
        unsafe { both!(_mm256_mul_ps; a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the impl.
        unsafe { both!(_mm256_div_ps; a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see the impl.
        unsafe { both!(_mm256_fmadd_ps; a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the impl.
        unsafe { both!(_mm256_max_ps; a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see the impl.
        unsafe { both!(_mm256_min_ps; a, b) }
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        // SAFETY: see the impl.
        unsafe {
            let mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fff_ffff));
            [_mm256_and_ps(a[0], mask), _mm256_and_ps(a[1], mask)]
        }
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        const MODE: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: see the impl.
        unsafe { both!(_mm256_round_ps::<MODE>; a) }
    }
    #[inline(always)]
    unsafe fn exp2i(n: Self::F) -> Self::F {
        // SAFETY: see the impl.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let e = both!(_mm256_cvttps_epi32; n);
            let e = [_mm256_add_epi32(e[0], bias), _mm256_add_epi32(e[1], bias)];
            let e = both!(_mm256_slli_epi32::<23>; e);
            both!(_mm256_castsi256_ps; e)
        }
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        // SAFETY: see the impl.
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see the impl.
        unsafe { both!(_mm256_add_epi32; a, b) }
    }
    #[inline(always)]
    unsafe fn to_f(a: Self::I) -> Self::F {
        // SAFETY: see the impl.
        unsafe { both!(_mm256_cvtepi32_ps; a) }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: Self::F) {
        // SAFETY: see the impl. The values fit a byte, so the saturating packs are exact.
        unsafe {
            let i = both!(_mm256_cvtps_epi32; x);
            let low =
                _mm_packs_epi32(_mm256_castsi256_si128(i[0]), _mm256_extracti128_si256::<1>(i[0]));
            let high =
                _mm_packs_epi32(_mm256_castsi256_si128(i[1]), _mm256_extracti128_si256::<1>(i[1]));
            _mm_storeu_si128(p.cast(), _mm_packs_epi16(low, high));
        }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        // SAFETY: see the impl.
        unsafe {
            [
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()))),
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(8).cast()))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::F {
        // SAFETY: see the impl.
        unsafe {
            [
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8).cast()))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> Self::B {
        // SAFETY: see the impl.
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn splat_b(x: u8) -> Self::B {
        // SAFETY: see the impl.
        unsafe { [_mm256_set1_epi8(x as i8); 2] }
    }
    #[inline(always)]
    unsafe fn and(a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: see the impl.
        unsafe { both!(_mm256_and_si256; a, b) }
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: see the impl.
        unsafe { both!(_mm256_or_si256; a, b) }
    }
    #[inline(always)]
    unsafe fn shl<const N: u32>(a: Self::B) -> Self::B {
        // SAFETY: see the impl.
        unsafe {
            let n = _mm_cvtsi32_si128(N as i32);
            [_mm256_sll_epi16(a[0], n), _mm256_sll_epi16(a[1], n)]
        }
    }
    #[inline(always)]
    unsafe fn shr<const N: u32>(a: Self::B) -> Self::B {
        // SAFETY: see the impl.
        unsafe {
            let n = _mm_cvtsi32_si128(N as i32);
            [_mm256_srl_epi16(a[0], n), _mm256_srl_epi16(a[1], n)]
        }
    }
    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(acc: Self::I, w: Self::B, a: *const i8) -> Self::I {
        // SAFETY: see the impl.
        unsafe {
            let a = [_mm256_set1_epi32(a.cast::<i32>().read_unaligned()); 2];
            both!(add_dot::<WIDE>; acc, w, a)
        }
    }
    #[inline(always)]
    unsafe fn sum(a: Self::F) -> f32 {
        // SAFETY: see the impl. The order of additions is the trait's.
        unsafe { sum8(_mm256_add_ps(a[0], a[1])) }
    }
    #[inline(always)]
    unsafe fn largest(a: Self::F) -> f32 {
        // SAFETY: see the impl. The order of comparisons is the trait's.
        unsafe {
            let none = _mm256_set1_ps(f32::NEG_INFINITY);
            let (low, high) = (_mm256_max_ps(a[0], none), _mm256_max_ps(a[1], none));
            largest8(_mm256_max_ps(low, high))
        }
    }
}
