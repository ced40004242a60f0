//! What stands between the matrices: norm, gate, sum.

use crate::Isa;
use crate::simd::{Kernel, LANES, Simd};

/// Root mean square norm of one row (Zhang and Sennrich, 2019, arXiv:1910.07467):
/// `out = x / sqrt(mean(x²) + eps) * weight`; all of one length, a multiple of 16.
///
/// # Panics
///
/// If the lengths differ or are no multiple of 16.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len(), "lengths of a norm");
    assert!(x.len().is_multiple_of(LANES), "a row of {} is no multiple of {LANES}", x.len());
    isa.run(RmsNorm { x, weight, eps, out });
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.x.len();
        // SAFETY: all slices have `n` elements, a multiple of 16.
        unsafe {
            let mut sum = S::splat(0.0);
            for i in (0..n).step_by(LANES) {
                let x = S::load(self.x.as_ptr().add(i));
                sum = S::fma(x, x, sum);
            }
            let scale = S::splat(1.0 / (S::sum(sum) / n as f32 + self.eps).sqrt());
            for i in (0..n).step_by(LANES) {
                let x = S::mul(S::load(self.x.as_ptr().add(i)), scale);
                let y = S::mul(x, S::load(self.weight.as_ptr().add(i)));
                S::store(self.out.as_mut_ptr().add(i), y);
            }
        }
    }
}

/// The gated activation of SwiGLU (Shazeer, 2020, arXiv:2002.05202):
/// `out = silu(gate) * up` with `silu(x) = x / (1 + e^-x)`; lengths are a multiple of 16.
///
/// # Panics
///
/// If the lengths differ or are no multiple of 16.
pub fn silu_mul(isa: Isa, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == out.len(), "lengths of a gate");
    assert!(gate.len().is_multiple_of(LANES), "{} is no multiple of {LANES}", gate.len());
    isa.run(SiluMul { gate, up, out });
}

struct SiluMul<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for SiluMul<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: all slices have the same length, a multiple of 16.
        unsafe {
            for i in (0..self.gate.len()).step_by(LANES) {
                let x = S::load(self.gate.as_ptr().add(i));
                let e = S::exp(S::sub(S::splat(0.0), x));
                let silu = S::div(x, S::add(S::splat(1.0), e));
                let y = S::mul(silu, S::load(self.up.as_ptr().add(i)));
                S::store(self.out.as_mut_ptr().add(i), y);
            }
        }
    }
}

/// `x += y`.
///
/// # Panics
///
/// If the lengths differ.
pub fn add_assign(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "lengths of a sum");
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// `ln Σ e^x`, summed in f64.
#[must_use]
pub fn log_sum_exp(x: &[f32]) -> f64 {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = x.iter().map(|&x| f64::from((x - max).exp())).sum();
    f64::from(max) + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Rng;

    #[test]
    fn norm_agrees_with_the_formula_and_across_instruction_sets() {
        let mut rng = Rng::new(21);
        for n in [16, 64, 576, 896] {
            let (x, w) = (rng.vec(n), rng.vec(n));
            let mut expected = vec![0.0; n];
            rms_norm(Isa::scalar(), &x, &w, 1e-5, &mut expected);
            let mean: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n as f64;
            for i in 0..n {
                let exact = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(w[i]);
                assert!((exact - f64::from(expected[i])).abs() < 1e-6, "{n}");
            }
            for isa in Isa::available() {
                let mut out = vec![0.0; n];
                rms_norm(isa, &x, &w, 1e-5, &mut out);
                assert_eq!(out, expected, "{isa}");
            }
        }
    }

    #[test]
    fn gate_agrees_with_the_formula_and_across_instruction_sets() {
        let mut rng = Rng::new(22);
        let mut gate: Vec<f32> = rng.vec(160).iter().map(|x| x * 30.0).collect();
        gate[..4].copy_from_slice(&[0.0, 200.0, -200.0, -88.5]);
        let up = rng.vec(160);
        let mut expected = vec![0.0; 160];
        silu_mul(Isa::scalar(), &gate, &up, &mut expected);
        for i in 0..160 {
            let x = f64::from(gate[i]);
            let exact = x / (1.0 + (-x).exp()) * f64::from(up[i]);
            assert!((exact - f64::from(expected[i])).abs() < 2e-6 * exact.abs() + 1e-6, "{x}");
        }
        for isa in Isa::available() {
            let mut out = vec![0.0; 160];
            silu_mul(isa, &gate, &up, &mut out);
            assert_eq!(out, expected, "{isa}");
        }
    }
}
