//! How sure a statistic is.

use std::collections::HashMap;
use std::hash::Hash;

/// A number that many answers give together: sums over the answers, and what becomes of the sums.
#[derive(Clone, Debug)]
pub struct Statistic {
    /// What each answer adds, `[n_answers][n_sums]`.
    pub parts: Vec<Vec<f64>>,
    /// The number, of the sums.
    pub value: fn(&[f64]) -> f64,
}

/// What a statistic would be in 95 of 100 samples like this one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// 2.5 % are smaller.
    pub low: f64,
    /// 2.5 % are larger.
    pub high: f64,
}

/// Samples that are drawn.
const N_DRAWS: usize = 2000;

impl Statistic {
    /// The mean of these numbers.
    #[must_use]
    pub fn mean(values: impl IntoIterator<Item = f64>) -> Self {
        let parts = values.into_iter().map(|value| vec![value, 1.0]).collect();
        Self { parts, value: |sums| sums[0] / sums[1] }
    }

    /// The same number, in which answers with the same key count as one for its interval: those about one text
    /// are right and wrong together. Sums are made of sums, so such answers are added up beforehand.
    ///
    /// # Panics
    ///
    /// If there are fewer keys than answers.
    #[must_use]
    pub fn clustered<K: Eq + Hash>(&self, keys: impl IntoIterator<Item = K>) -> Self {
        let mut places = HashMap::new();
        let mut parts: Vec<Vec<f64>> = Vec::new();
        let mut keys = keys.into_iter();
        for part in &self.parts {
            let key = keys.next().expect("a key for each answer");
            let place = *places.entry(key).or_insert(parts.len());
            match parts.get_mut(place) {
                Some(sums) => sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part),
                None => parts.push(part.clone()),
            }
        }
        Self { parts, value: self.value }
    }

    /// The number that all answers give; `None` without answers.
    #[must_use]
    pub fn value(&self) -> Option<f64> {
        (!self.parts.is_empty()).then(|| self.of(0..self.parts.len()))
    }

    fn of(&self, answers: impl Iterator<Item = usize>) -> f64 {
        let mut sums = vec![0.0; self.parts.first().map_or(0, Vec::len)];
        for answer in answers {
            sums.iter_mut().zip(&self.parts[answer]).for_each(|(sum, part)| *sum += part);
        }
        (self.value)(&sums)
    }

    /// The percentile bootstrap: of 2,000 samples of as many answers, drawn with replacement, by `seed`. With
    /// `base`, a statistic of the same answers, it is that of the difference from it: every sample takes the
    /// same answers of both. `None` without answers, or if `base` has more or fewer.
    ///
    /// Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.
    #[must_use]
    pub fn interval(&self, base: Option<&Self>, seed: u64) -> Option<Interval> {
        let n = self.parts.len();
        if n == 0 || base.is_some_and(|base| base.parts.len() != n) {
            return None;
        }
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut drawn = vec![0; n];
        let mut draw = |_| {
            drawn.iter_mut().for_each(|answer| *answer = rng.usize(..n));
            let of = |statistic: &Self| statistic.of(drawn.iter().copied());
            of(self) - base.map_or(0.0, of)
        };
        let mut values: Vec<f64> = (0..N_DRAWS).map(&mut draw).collect();
        values.sort_by(f64::total_cmp);
        Some(Interval { low: values[N_DRAWS / 40], high: values[N_DRAWS - 1 - N_DRAWS / 40] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_near_the_normal_one_for_many_values() {
        // Half zeros, half ones: a standard error of 0.5 / sqrt(400).
        let mean = Statistic::mean((0..400).map(|i| f64::from(i % 2)));
        assert_eq!(mean.value(), Some(0.5));
        let Interval { low, high } = mean.interval(None, 1).unwrap();
        assert!((low - (0.5 - 1.96 * 0.025)).abs() < 0.006, "{low}");
        assert!((high - (0.5 + 1.96 * 0.025)).abs() < 0.006, "{high}");
        assert_eq!(mean.interval(None, 1), mean.interval(None, 1));
    }

    #[test]
    fn equal_values_leave_no_doubt() {
        let mean = Statistic::mean([0.25; 9]);
        assert_eq!(mean.interval(None, 3), Some(Interval { low: 0.25, high: 0.25 }));
        assert_eq!(Statistic::mean([]).interval(None, 3), None);
        // Nor does a difference that is the same for every answer, however they scatter.
        let a = Statistic::mean([0.0, 8.0, 2.0, 6.0]);
        let b = Statistic::mean([1.0, 9.0, 3.0, 7.0]);
        assert_eq!(b.interval(Some(&a), 3), Some(Interval { low: 1.0, high: 1.0 }));
        assert_eq!(b.interval(Some(&mean), 3), None);
    }

    #[test]
    fn answers_about_one_text_say_less_than_as_many_others() {
        // A hundred texts, each asked about four times, always with the same success.
        let values = || (0..400).map(|i| f64::from(i / 4 % 2));
        let alone = Statistic::mean(values());
        let together = Statistic::mean(values()).clustered((0..400).map(|i| i / 4));
        assert_eq!((together.value(), together.parts.len()), (alone.value(), 100));
        let width = |statistic: &Statistic| {
            let Interval { low, high } = statistic.interval(None, 1).unwrap();
            high - low
        };
        // Twice the standard error.
        let ratio = width(&together) / width(&alone);
        assert!((1.8..2.2).contains(&ratio), "{ratio}");
        // Keys of their own change nothing.
        let apart = Statistic::mean(values()).clustered(0..400);
        assert_eq!(apart.interval(None, 1), alone.interval(None, 1));
    }

    #[test]
    fn sums_are_made_before_their_quotient() {
        let rate = Statistic {
            parts: vec![vec![1.0, 10.0], vec![9.0, 10.0], vec![0.0, 80.0]],
            value: |sums| sums[0] / sums[1],
        };
        assert_eq!(rate.value(), Some(0.1));
    }
}
