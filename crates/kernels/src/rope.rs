//! Rotary position embedding (Su et al., "RoFormer", 2021, arXiv:2104.09864, section 3.2.2).
//!
//! Components are paired by halves: `(i, i + dim / 2)`. Models whose files pair neighbours
//! (`llama` in GGUF) have the rows of their query and key matrices put back in order when they are
//! loaded, so that there is one convention here and in everything that is stored.

/// The frequencies of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    frequencies: Vec<f32>,
    /// Rotated components are multiplied by it.
    magnitude: f32,
}

/// Cosines and sines for one position: `[dim / 2]` each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rotation {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// Frequencies `base^(-2i / dim)` in f32, as models are trained with.
    ///
    /// # Panics
    ///
    /// If `dim` is odd; configurations are checked when a model is loaded.
    #[must_use]
    pub fn new(base: f32, dim: usize) -> Self {
        assert!(dim.is_multiple_of(2), "rotary dimension {dim} is odd");
        let frequency = |i: usize| 1.0 / (f64::from(base).powf((2 * i) as f64 / dim as f64) as f32);
        Self { frequencies: (0..dim / 2).map(frequency).collect(), magnitude: 1.0 }
    }

    /// No rotation: every position is like the first.
    #[must_use]
    pub fn none() -> Self {
        Self { frequencies: Vec::new(), magnitude: 1.0 }
    }

    /// The same, with pair `i` turning more slowly by `divisors[i]`; all pairs by the only one.
    ///
    /// # Panics
    ///
    /// If there are neither one nor as many divisors as pairs.
    #[must_use]
    pub fn slowed(mut self, divisors: &[f32]) -> Self {
        assert!([1, self.frequencies.len()].contains(&divisors.len()), "divisors of frequencies");
        for (frequency, divisor) in self.frequencies.iter_mut().zip(divisors.iter().cycle()) {
            *frequency /= divisor;
        }
        self
    }

    /// The same, with rotated components multiplied by `magnitude`.
    #[must_use]
    pub fn magnified(self, magnitude: f32) -> Self {
        Self { magnitude, ..self }
    }

    /// Components that are rotated; the rest of a head passes through.
    #[must_use]
    pub fn dim(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// The rotation at `position`.
    #[must_use]
    pub fn rotation(&self, position: u64) -> Rotation {
        let mut rotation = Rotation::default();
        self.at(position, &mut rotation);
        rotation
    }

    /// Computes the rotation at `position`.
    ///
    /// The angle is formed in f64, so that differences of positions stay exact to about 1e-9 at
    /// ten million tokens; in f32 they would be off by whole radians.
    pub fn at(&self, position: u64, rotation: &mut Rotation) {
        rotation.cos.clear();
        rotation.sin.clear();
        for &frequency in &self.frequencies {
            let (sin, cos) = (position as f64 * f64::from(frequency)).sin_cos();
            rotation.cos.push(cos as f32 * self.magnitude);
            rotation.sin.push(sin as f32 * self.magnitude);
        }
    }
}

impl Rotation {
    /// Writes `scale` times the rotated `x` to `out`; both hold one head.
    ///
    /// # Panics
    ///
    /// If a head is shorter than the rotary dimension, or the lengths differ.
    pub fn apply(&self, x: &[f32], scale: f32, out: &mut [f32]) {
        let half = self.cos.len();
        assert_eq!(x.len(), out.len(), "length of a head");
        let (low, high) = out.split_at_mut(half);
        for i in 0..half {
            let (a, b) = (x[i], x[half + i]);
            low[i] = (a * self.cos[i] - b * self.sin[i]) * scale;
            high[i] = (b * self.cos[i] + a * self.sin[i]) * scale;
        }
        for i in 2 * half..x.len() {
            high[i - half] = x[i] * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Rng;

    fn rotated(rope: &Rope, position: u64, x: &[f32]) -> Vec<f32> {
        let mut rotation = Rotation::default();
        rope.at(position, &mut rotation);
        let mut out = vec![0.0; x.len()];
        rotation.apply(x, 1.0, &mut out);
        out
    }

    fn product(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    }

    #[test]
    fn only_differences_of_positions_matter_even_at_ten_million() {
        for base in [10_000.0, 100_000.0, 1_000_000.0] {
            let rope = Rope::new(base, 64);
            let mut rng = Rng::new(1);
            for distance in [0, 1, 17, 512, 4096] {
                let (q, k) = (rng.vec(64), rng.vec(64));
                let near = product(&rotated(&rope, distance, &q), &rotated(&rope, 0, &k));
                let far = product(
                    &rotated(&rope, 10_000_000 + distance, &q),
                    &rotated(&rope, 10_000_000, &k),
                );
                // f32 components: 64 products with a rounding error of 6e-8 each.
                assert!((near - far).abs() < 4e-6, "{base} {distance}: {near} {far}");
            }
        }
    }

    #[test]
    fn slowed_frequencies_are_those_of_nearer_positions() {
        let x = Rng::new(3).vec(32);
        let rope = Rope::new(10_000.0, 32);
        assert_eq!(rotated(&rope.clone().slowed(&[4.0]), 20, &x), rotated(&rope, 5, &x));
        let mut divisors = [1.0; 16];
        divisors[7] = 2.0;
        let slowed = rotated(&rope.clone().slowed(&divisors), 20, &x);
        let (plain, half) = (rotated(&rope, 20, &x), rotated(&rope, 10, &x));
        for i in 0..32 {
            assert_eq!(slowed[i], if i % 16 == 7 { half[i] } else { plain[i] });
        }
    }

    #[test]
    fn a_magnitude_multiplies_what_is_rotated_and_nothing_else() {
        let x = Rng::new(4).vec(24);
        let rope = Rope::new(10_000.0, 16);
        let (plain, magnified) =
            (rotated(&rope, 9, &x), rotated(&rope.clone().magnified(2.0), 9, &x));
        for i in 0..24 {
            assert_eq!(magnified[i], plain[i] * if i < 16 { 2.0 } else { 1.0 });
        }
        assert_eq!(rotated(&Rope::none(), 9, &x), x);
    }

    #[test]
    fn position_zero_changes_nothing_and_the_rest_of_a_head_passes() {
        let rope = Rope::new(10_000.0, 16);
        let x = Rng::new(2).vec(24);
        assert_eq!(rotated(&rope, 0, &x), x);
        assert_eq!(rotated(&rope, 5, &x)[16..], x[16..]);
        assert_ne!(rotated(&rope, 5, &x)[..16], x[..16]);
    }
}
