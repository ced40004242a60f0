//! How sure a mean is.

/// What a mean would be in 95 of 100 samples like this one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// 2.5 % of the means are smaller.
    pub low: f64,
    /// 2.5 % of the means are larger.
    pub high: f64,
}

/// Means that are drawn.
const N_DRAWS: usize = 2000;

/// The percentile bootstrap of a mean: of 2,000 samples of the same size, drawn with replacement, by
/// `seed`. For a paired comparison give the differences. `None` without values.
///
/// Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.
#[must_use]
pub fn mean_interval(values: &[f64], seed: u64) -> Option<Interval> {
    if values.is_empty() {
        return None;
    }
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut draw = |_| {
        let sum: f64 = (0..values.len()).map(|_| values[rng.usize(..values.len())]).sum();
        sum / values.len() as f64
    };
    let mut means: Vec<f64> = (0..N_DRAWS).map(&mut draw).collect();
    means.sort_by(f64::total_cmp);
    Some(Interval { low: means[N_DRAWS / 40], high: means[N_DRAWS - 1 - N_DRAWS / 40] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_near_the_normal_one_for_many_values() {
        // Half zeros, half ones: a standard error of 0.5 / sqrt(400).
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let Interval { low, high } = mean_interval(&values, 1).unwrap();
        assert!((low - (0.5 - 1.96 * 0.025)).abs() < 0.006, "{low}");
        assert!((high - (0.5 + 1.96 * 0.025)).abs() < 0.006, "{high}");
        assert_eq!(mean_interval(&values, 1), mean_interval(&values, 1));
    }

    #[test]
    fn equal_values_leave_no_doubt() {
        assert_eq!(mean_interval(&[0.25; 9], 3), Some(Interval { low: 0.25, high: 0.25 }));
        assert_eq!(mean_interval(&[], 3), None);
    }
}
