//! What stands between the matrices: norm, gate, sum.

use crate::Isa;
use crate::attention::cap_scores;
use crate::simd::{Element, Kernel, LANES, Simd};

/// Root mean square norm of one row (Zhang and Sennrich, 2019, arXiv:1910.07467):
/// `out = x / sqrt(mean(x²) + eps) * weight`; all of one length, a multiple of 16.
///
/// # Panics
///
/// If the lengths differ or are no multiple of 16.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len(), "lengths of a norm");
    assert!(x.len().is_multiple_of(LANES), "a row of {} is no multiple of {LANES}", x.len());
    isa.run(RmsNorm { x: x.as_ptr(), weight, eps, out: out.as_mut_ptr() });
}

/// [`rms_norm`] in place, of each run of `weight.len()` elements of `x`.
///
/// # Panics
///
/// If `weight` has no multiple of 16 elements, or `x` no multiple of its length.
pub fn rms_norm_in_place(isa: Isa, x: &mut [f32], weight: &[f32], eps: f32) {
    let n = weight.len();
    assert!(n.is_multiple_of(LANES), "a row of {n} is no multiple of {LANES}");
    assert!(x.len().is_multiple_of(n), "{} is no multiple of rows of {n}", x.len());
    for row in x.chunks_exact_mut(n) {
        isa.run(RmsNorm { x: row.as_ptr(), weight, eps, out: row.as_mut_ptr() });
    }
}

/// `x` and `out` have as many elements as `weight`; they may be the same.
struct RmsNorm<'a> {
    x: *const f32,
    weight: &'a [f32],
    eps: f32,
    out: *mut f32,
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.weight.len();
        // SAFETY: all three have `n` elements, a multiple of 16; each is read before it is written.
        unsafe {
            let mut sum = S::splat(0.0);
            for i in (0..n).step_by(LANES) {
                let x = S::load(self.x.add(i));
                sum = S::fma(x, x, sum);
            }
            let scale = S::splat(1.0 / (S::sum(sum) / n as f32 + self.eps).sqrt());
            for i in (0..n).step_by(LANES) {
                let x = S::mul(S::load(self.x.add(i)), scale);
                let y = S::mul(x, S::load(self.weight.as_ptr().add(i)));
                S::store(self.out.add(i), y);
            }
        }
    }
}

/// Layer normalisation (Ba, Kiros and Hinton, 2016, arXiv:1607.06450), in place, of each run of
/// `weight.len()` elements of `x`: `(x - mean) / sqrt(variance + eps) * weight + bias`.
///
/// # Panics
///
/// If `weight` has no elements or no multiple of 16, `bias` another number, or `x` no multiple of it.
pub fn layer_norm(isa: Isa, x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let n = weight.len();
    assert!(n > 0 && n.is_multiple_of(LANES), "a row of {n} is no multiple of {LANES}");
    assert_eq!(bias.len(), n, "length of a bias");
    assert!(x.len().is_multiple_of(n), "{} is no multiple of rows of {n}", x.len());
    for x in x.chunks_exact_mut(n) {
        isa.run(LayerNorm { x, weight, bias, eps });
    }
}

/// All three have the same length, a multiple of 16.
struct LayerNorm<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
}

impl Kernel for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n = self.x.len();
        let p = self.x.as_mut_ptr();
        // SAFETY: all three have `n` elements, a multiple of 16.
        unsafe {
            let mut sum = S::splat(0.0);
            for i in (0..n).step_by(LANES) {
                sum = S::add(sum, S::load(p.add(i)));
            }
            let mean = S::splat(S::sum(sum) / n as f32);
            let mut squares = S::splat(0.0);
            for i in (0..n).step_by(LANES) {
                let x = S::sub(S::load(p.add(i)), mean);
                squares = S::fma(x, x, squares);
                S::store(p.add(i), x);
            }
            let scale = S::splat(1.0 / (S::sum(squares) / n as f32 + self.eps).sqrt());
            for i in (0..n).step_by(LANES) {
                let x = S::mul(S::load(p.add(i)), scale);
                let (weight, bias) = (self.weight.as_ptr().add(i), self.bias.as_ptr().add(i));
                S::store(p.add(i), S::fma(x, S::load(weight), S::load(bias)));
            }
        }
    }
}

/// GELU (Hendrycks and Gimpel, 2016, arXiv:1606.08415) as it is defined, in place:
/// `x (1 + erf(x / √2)) / 2`. An infinite `x` gives NaN.
///
/// # Panics
///
/// If `x` has no multiple of 16 elements.
pub fn gelu(isa: Isa, x: &mut [f32]) {
    assert!(x.len().is_multiple_of(LANES), "{} is no multiple of {LANES}", x.len());
    isa.run(Gelu(x));
}

struct Gelu<'a>(&'a mut [f32]);

impl Kernel for Gelu<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let p = self.0.as_mut_ptr();
        // SAFETY: the length is a multiple of 16.
        unsafe {
            for i in (0..self.0.len()).step_by(LANES) {
                let x = S::load(p.add(i));
                // Half of the complementary error function of |z|, z = x / √2, is e^-z² times a polynomial of
                // 1 / (1 + 0.327 |z|), off by less than 1e-7 (Abramowitz and Stegun, 1964, 7.1.26).
                let z = S::mul(S::abs(x), S::splat(std::f32::consts::FRAC_1_SQRT_2));
                let t = S::fma(z, S::splat(0.327_591_1), S::splat(1.0));
                let t = S::div(S::splat(1.0), t);
                let mut tail = S::splat(0.5 * 1.061_405_4);
                for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
                    tail = S::fma(tail, t, S::splat(0.5 * c));
                }
                let e = S::exp(S::mul(S::sub(S::splat(0.0), z), z));
                let tail = S::mul(S::mul(tail, t), e);
                // x (1 - tail) above 0 and x tail below it.
                let y = S::sub(S::max(x, S::splat(0.0)), S::mul(S::abs(x), tail));
                S::store(p.add(i), y);
            }
        }
    }
}

/// The function that a gated feed-forward network applies to its gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`, as in SwiGLU.
    Silu,
    /// GELU (Hendrycks and Gimpel, 2016, arXiv:1606.08415) by its approximation with `tanh`,
    /// `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`, as in GeGLU.
    GeluTanh,
}

/// The gate of SwiGLU and its kin (Shazeer, 2020, arXiv:2002.05202):
/// `out = activation(gate) * up`; lengths are a multiple of 16.
///
/// # Panics
///
/// If the lengths differ or are no multiple of 16.
pub fn gated(isa: Isa, activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == out.len(), "lengths of a gate");
    assert!(gate.len().is_multiple_of(LANES), "{} is no multiple of {LANES}", gate.len());
    isa.run(Gated { activation, gate, up, out });
}

struct Gated<'a> {
    activation: Activation,
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Gated<'_> {
    type Output = ();

    /// Both are `x / (1 + e^-y)`, since `(1 + tanh z) / 2 = 1 / (1 + e^-2z)`.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // 2 √(2/π)
        const TWICE: f32 = 1.595_769;
        // SAFETY: all slices have the same length, a multiple of 16.
        unsafe {
            for i in (0..self.gate.len()).step_by(LANES) {
                let x = S::load(self.gate.as_ptr().add(i));
                let y = match self.activation {
                    Activation::Silu => x,
                    Activation::GeluTanh => {
                        let cubic = S::mul(S::splat(0.044_715 * TWICE), S::mul(x, x));
                        S::mul(x, S::add(S::splat(TWICE), cubic))
                    }
                };
                let e = S::exp(S::sub(S::splat(0.0), y));
                let activated = S::div(x, S::add(S::splat(1.0), e));
                let y = S::mul(activated, S::load(self.up.as_ptr().add(i)));
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

/// Replaces each element by `cap * tanh(x / cap)`.
pub fn soft_cap(isa: Isa, x: &mut [f32], cap: f32) {
    let (whole, tail) = x.split_at_mut(x.len() / LANES * LANES);
    isa.run(SoftCap { x: whole, cap });
    let mut padded = [0.0; LANES];
    padded[..tail.len()].copy_from_slice(tail);
    isa.run(SoftCap { x: &mut padded, cap });
    tail.copy_from_slice(&padded[..tail.len()]);
}

struct SoftCap<'a> {
    x: &'a mut [f32],
    cap: f32,
}

impl Kernel for SoftCap<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the length is a multiple of 16, as `soft_cap` cuts it.
        unsafe { cap_scores::<S>(self.x, self.cap) }
    }
}

/// `ln Σ e^x`, summed in f64.
#[must_use]
pub fn log_sum_exp(x: &[f32]) -> f64 {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = x.iter().map(|&x| f64::from((x - max).exp())).sum();
    f64::from(max) + sum.ln()
}

/// As [`Element::widen`], for many numbers at once.
///
/// # Panics
///
/// If the lengths differ.
pub fn widen<E: Element>(isa: Isa, from: &[E], to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "numbers to widen");
    isa.run(Widen { from, to });
}

struct Widen<'a, E> {
    from: &'a [E],
    to: &'a mut [f32],
}

impl<E: Element> Kernel for Widen<'_, E> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (from, rest) = self.from.as_chunks::<LANES>();
        let (to, rest_to) = self.to.as_chunks_mut::<LANES>();
        for (from, to) in from.iter().zip(to) {
            // SAFETY: the caller enabled the instruction set of `S`; both are 16 numbers.
            unsafe { S::store(to.as_mut_ptr(), E::load16::<S>(from.as_ptr())) };
        }
        E::widen(rest, rest_to);
    }
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
    fn a_norm_in_place_is_the_same() {
        let mut rng = Rng::new(23);
        let (x, w) = (rng.vec(3 * 48), rng.vec(48));
        for isa in Isa::available() {
            let (mut expected, mut rows) = (vec![0.0; x.len()], x.clone());
            for (x, out) in x.chunks_exact(48).zip(expected.chunks_exact_mut(48)) {
                rms_norm(isa, x, &w, 1e-5, out);
            }
            rms_norm_in_place(isa, &mut rows, &w, 1e-5);
            assert_eq!(rows, expected, "{isa}");
        }
    }

    #[test]
    fn a_layer_norm_agrees_with_the_formula_and_across_instruction_sets() {
        let mut rng = Rng::new(25);
        for n in [16, 48, 384] {
            let (weight, bias) = (rng.vec(n), rng.vec(n));
            let x: Vec<f32> = rng.vec(3 * n).iter().map(|x| 5.0 * x + 3.0).collect();
            let mut expected = x.clone();
            layer_norm(Isa::scalar(), &mut expected, &weight, &bias, 1e-12);
            for (x, y) in x.chunks(n).zip(expected.chunks(n)) {
                let mean: f64 = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
                let square = |&x: &f32| (f64::from(x) - mean).powi(2);
                let variance: f64 = x.iter().map(square).sum::<f64>() / n as f64;
                for i in 0..n {
                    let x = (f64::from(x[i]) - mean) / (variance + 1e-12).sqrt();
                    let exact = x * f64::from(weight[i]) + f64::from(bias[i]);
                    assert!((exact - f64::from(y[i])).abs() < 2e-6, "{n}");
                }
            }
            for isa in Isa::available() {
                let mut out = x.clone();
                layer_norm(isa, &mut out, &weight, &bias, 1e-12);
                assert_eq!(out, expected, "{isa}");
            }
        }
    }

    /// `erf` by its series, which is exact for the arguments that matter.
    #[test]
    fn gelu_agrees_with_the_error_function_and_across_instruction_sets() {
        let erf = |z: f64| {
            let (mut sum, mut term) = (0.0, z);
            for n in 0..200 {
                sum += term / f64::from(2 * n + 1);
                term *= -z * z / f64::from(n + 1);
            }
            2.0 / std::f64::consts::PI.sqrt() * sum
        };
        let mut x: Vec<f32> = (-4000..4000).map(|i| i as f32 / 1000.0).collect();
        let mut expected = x.clone();
        gelu(Isa::scalar(), &mut expected);
        for (&x, &y) in x.iter().zip(&expected) {
            let x = f64::from(x);
            let exact = x * (1.0 + erf(x / 2f64.sqrt())) / 2.0;
            assert!((exact - f64::from(y)).abs() < 4e-7, "{x}: {y} {exact}");
        }
        x[..6].copy_from_slice(&[0.0, -0.0, 1e30, -1e30, 20.0, -20.0]);
        let mut expected = x.clone();
        gelu(Isa::scalar(), &mut expected);
        assert_eq!(expected[..6], [0.0, 0.0, 1e30, 0.0, 20.0, 0.0]);
        for isa in Isa::available() {
            let mut out = x.clone();
            gelu(isa, &mut out);
            assert_eq!(out, expected, "{isa}");
        }
    }

    #[test]
    fn a_soft_cap_agrees_with_the_formula_and_across_instruction_sets() {
        let mut x: Vec<f32> = Rng::new(24).vec(71).iter().map(|x| x * 100.0).collect();
        x[..4].copy_from_slice(&[0.0, 1e30, -1e30, 30.0]);
        let mut expected = x.clone();
        soft_cap(Isa::scalar(), &mut expected, 30.0);
        for (x, y) in x.iter().zip(&expected) {
            let exact = 30.0 * (f64::from(*x) / 30.0).tanh();
            assert!((exact - f64::from(*y)).abs() < 1e-5, "{x}: {y}");
        }
        for isa in Isa::available() {
            let mut out = x.clone();
            soft_cap(isa, &mut out, 30.0);
            assert_eq!(out, expected, "{isa}");
        }
    }

    #[test]
    fn gate_agrees_with_the_formula_and_across_instruction_sets() {
        let mut rng = Rng::new(22);
        let mut gate: Vec<f32> = rng.vec(160).iter().map(|x| x * 30.0).collect();
        gate[..8].copy_from_slice(&[0.0, 200.0, -200.0, -88.5, 1e30, -1e30, -3.0, 5.0]);
        let up = rng.vec(160);
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let mut expected = vec![0.0; 160];
            gated(Isa::scalar(), activation, &gate, &up, &mut expected);
            for i in 0..160 {
                let x = f64::from(gate[i]);
                let activated = match activation {
                    Activation::Silu => x / (1.0 + (-x).exp()),
                    Activation::GeluTanh => {
                        let inner =
                            (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                        x * (1.0 + inner.tanh()) / 2.0
                    }
                };
                let exact = activated * f64::from(up[i]);
                let error = (exact - f64::from(expected[i])).abs();
                assert!(error < 2e-6 * exact.abs() + 1e-6, "{activation:?} {x}: {error:e}");
            }
            for isa in Isa::available() {
                let mut out = vec![0.0; 160];
                gated(isa, activation, &gate, &up, &mut out);
                assert_eq!(out, expected, "{activation:?} {isa}");
            }
        }
    }
}
