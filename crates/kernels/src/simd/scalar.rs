//! The definition: sixteen lanes as an array, for machines without the vector units and for tests.

use half::f16;

use super::{LANES, Simd};

/// Arrays of sixteen.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

#[inline(always)]
fn map2<T: Copy, U>(a: [T; LANES], b: [T; LANES], f: impl Fn(T, T) -> U) -> [U; LANES] {
    std::array::from_fn(|l| f(a[l], b[l]))
}

#[inline(always)]
fn halves(a: [u8; 64], f: impl Fn(u16) -> u16) -> [u8; 64] {
    let mut out = [0; 64];
    for (to, from) in out.chunks_exact_mut(2).zip(a.chunks_exact(2)) {
        to.copy_from_slice(&f(u16::from_le_bytes([from[0], from[1]])).to_le_bytes());
    }
    out
}

// SAFETY of every unsafe block below: the trait's contract makes the pointers valid for the
// number of elements read or written; unaligned access is used throughout.
impl Simd for Scalar {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type B = [u8; 64];
    const REGISTERS: usize = 1;

    unsafe fn splat(x: f32) -> Self::F {
        [x; LANES]
    }
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: 16 elements, by contract.
        unsafe { p.cast::<[f32; LANES]>().read_unaligned() }
    }
    unsafe fn load_f16(p: *const u16) -> Self::F {
        // SAFETY: 16 elements, by contract.
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|b| f16::from_bits(b).to_f32())
    }
    unsafe fn store(p: *mut f32, x: Self::F) {
        // SAFETY: 16 elements, by contract.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(x) }
    }
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |x, y| x + y)
    }
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |x, y| x - y)
    }
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |x, y| x * y)
    }
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |x, y| x / y)
    }
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|l| a[l].mul_add(b[l], c[l]))
    }
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |x, y| if x > y { x } else { y })
    }
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        map2(a, b, |x, y| if x < y { x } else { y })
    }
    unsafe fn abs(a: Self::F) -> Self::F {
        a.map(f32::abs)
    }
    unsafe fn round(a: Self::F) -> Self::F {
        a.map(f32::round_ties_even)
    }
    unsafe fn exp2i(n: Self::F) -> Self::F {
        n.map(|n| f32::from_bits(((n as i32 + 127) << 23) as u32))
    }
    unsafe fn splat_i(x: i32) -> Self::I {
        [x; LANES]
    }
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        map2(a, b, i32::wrapping_add)
    }
    unsafe fn to_f(a: Self::I) -> Self::F {
        a.map(|x| x as f32)
    }
    unsafe fn store_i8(p: *mut i8, x: Self::F) {
        // SAFETY: 16 elements, by contract.
        unsafe { p.cast::<[i8; LANES]>().write_unaligned(x.map(|x| x.round_ties_even() as i8)) }
    }
    unsafe fn load_u8(p: *const u8) -> Self::F {
        // SAFETY: 16 elements, by contract.
        unsafe { p.cast::<[u8; LANES]>().read_unaligned() }.map(f32::from)
    }
    unsafe fn load_i8(p: *const u8) -> Self::F {
        // SAFETY: 16 elements, by contract.
        unsafe { p.cast::<[i8; LANES]>().read_unaligned() }.map(f32::from)
    }
    unsafe fn bytes(p: *const u8) -> Self::B {
        // SAFETY: 64 elements, by contract.
        unsafe { p.cast::<[u8; 64]>().read_unaligned() }
    }
    unsafe fn splat_b(x: u8) -> Self::B {
        [x; 64]
    }
    unsafe fn and(a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| a[i] & b[i])
    }
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| a[i] | b[i])
    }
    unsafe fn shl<const N: u32>(a: Self::B) -> Self::B {
        halves(a, |h| h << N)
    }
    unsafe fn shr<const N: u32>(a: Self::B) -> Self::B {
        halves(a, |h| h >> N)
    }
    unsafe fn dot<const WIDE: bool>(acc: Self::I, w: Self::B, a: *const i8) -> Self::I {
        // SAFETY: 4 elements, by contract.
        let a = unsafe { a.cast::<[i8; 4]>().read_unaligned() };
        std::array::from_fn(|l| {
            (0..4).fold(acc[l], |sum, j| sum + i32::from(w[4 * l + j]) * i32::from(a[j]))
        })
    }
}
