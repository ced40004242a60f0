//! The three distances that the project offers, with Chroma's definitions.

use std::fmt;

/// How far apart two vectors are; smaller is nearer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Distance {
    /// Squared Euclidean distance: `sum((a - b)^2)`.
    L2,
    /// One minus the inner product: `1 - sum(a * b)`. It may be negative.
    InnerProduct,
    /// One minus the cosine of the angle: 0 for the same direction, 2 for opposite ones. A zero
    /// vector has no direction and stands at distance 1 from everything.
    #[default]
    Cosine,
}

impl Distance {
    /// The name that Chroma and the command line use: `l2`, `ip` or `cosine`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::L2 => "l2",
            Self::InnerProduct => "ip",
            Self::Cosine => "cosine",
        }
    }

    /// The definition, summed in f64: what every index must agree with to 1e-5 for vectors of
    /// about unit length. Components beyond the shorter vector's length are left out.
    #[must_use]
    pub fn between(self, a: &[f32], b: &[f32]) -> f32 {
        let sum = |term: fn(f64, f64) -> f64| -> f64 {
            a.iter().zip(b).map(|(&a, &b)| term(f64::from(a), f64::from(b))).sum()
        };
        let distance = match self {
            Self::L2 => sum(|a, b| (a - b) * (a - b)),
            Self::InnerProduct => 1.0 - sum(|a, b| a * b),
            Self::Cosine => {
                let norms = (sum(|a, _| a * a) * sum(|_, b| b * b)).sqrt();
                if norms == 0.0 { 1.0 } else { 1.0 - sum(|a, b| a * b) / norms }
            }
        };
        distance as f32
    }
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Independent sums that a compiler keeps in vector registers. One running sum would make every
/// addition wait for the one before, and the compiler may not reorder it. The count is fixed, so
/// the result is the same on every instruction set.
const LANES: usize = 16;

/// `sum(a * b)` over vectors of equal length: f32 products, f32 sums.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum_of(a, b, |a, b| a * b)
}

/// `sum((a - b)^2)` over vectors of equal length: f32 terms, f32 sums.
pub(super) fn squared_difference(a: &[f32], b: &[f32]) -> f32 {
    sum_of(a, b, |a, b| (a - b) * (a - b))
}

#[inline]
fn sum_of(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0_f32; LANES];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += term(a[lane], b[lane]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(&a, &b)| term(a, b)).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use everstream_kv_cache::rng::SplitMix64;

    /// Reordered sums of n terms of size 1 differ by at most about n * 2^-24 * n / 2; the products
    /// here have random signs, so 1e-5 of n is far above what occurs and below any mistake.
    #[test]
    fn fast_sums_agree_with_the_naive_ones() {
        let mut rng = SplitMix64::new(1);
        for n in 0..=2 * LANES * 2 + 1 {
            let a: Vec<f32> = (0..n).map(|_| rng.signed_unit()).collect();
            let b: Vec<f32> = (0..n).map(|_| rng.signed_unit()).collect();
            let tolerance = 1e-5 * (n + 1) as f32;
            let naive: f32 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
            assert!((dot(&a, &b) - naive).abs() <= tolerance, "{n}");
            let naive: f32 = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum();
            assert!((squared_difference(&a, &b) - naive).abs() <= tolerance, "{n}");
        }
    }

    #[test]
    fn definitions_are_those_of_chroma() {
        let (a, b) = (&[3.0, 4.0][..], &[4.0, 3.0][..]);
        for (distance, expected) in
            [(Distance::L2, 2.0), (Distance::InnerProduct, -23.0), (Distance::Cosine, 0.04)]
        {
            assert!((distance.between(a, b) - expected).abs() < 1e-6, "{distance}");
        }
        assert_eq!(Distance::Cosine.between(a, &[0.0, 0.0]), 1.0);
    }
}
