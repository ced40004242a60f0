//! Chooses the next token from logits.

use crate::SessionError;

/// How to sample. Temperature 0 takes the most likely token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerConfig {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Keeps the `top_k` most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the most likely tokens that together have this probability; 1 keeps all.
    pub top_p: f32,
    /// Drops tokens less likely than this fraction of the most likely one; 0 drops none.
    pub min_p: f32,
    /// Divides positive logits of tokens that were generated recently, multiplies negative ones
    /// (Keskar et al., "CTRL", 2019, arXiv:1909.05858, section 4.1); 1 changes nothing.
    pub repeat_penalty: f32,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 40, top_p: 0.95, min_p: 0.05, repeat_penalty: 1.0, seed: 0 }
    }
}

/// Tokens that the repeat penalty looks back on.
const PENALTY_TOKENS: usize = 64;

/// A sampler with its random state.
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplerConfig,
    rng: fastrand::Rng,
    /// Logits after penalties, with their tokens; reused.
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler.
    ///
    /// # Errors
    ///
    /// [`SessionError::Sampling`] for settings out of range.
    pub fn new(config: SamplerConfig) -> Result<Self, SessionError> {
        let checks = [
            ("temperature", config.temperature, config.temperature >= 0.0, "0 or more"),
            (
                "top-p",
                config.top_p,
                config.top_p > 0.0 && config.top_p <= 1.0,
                "above 0, at most 1",
            ),
            ("min-p", config.min_p, (0.0..=1.0).contains(&config.min_p), "from 0 to 1"),
            ("repeat-penalty", config.repeat_penalty, config.repeat_penalty > 0.0, "above 0"),
        ];
        for (what, value, is_good, rule) in checks {
            if !is_good || !value.is_finite() {
                return Err(SessionError::Sampling { what, value, rule });
            }
        }
        let rng = fastrand::Rng::with_seed(config.seed);
        Ok(Self { config, rng, candidates: Vec::new() })
    }

    /// The next token, given the logits and the tokens generated so far. Among equals the lower
    /// token wins, so the result does not depend on the order of a sort.
    pub fn sample(&mut self, logits: &[f32], generated: &[u32]) -> u32 {
        let recent = &generated[generated.len().saturating_sub(PENALTY_TOKENS)..];
        let penalty = self.config.repeat_penalty;
        let penalised = |(token, &logit): (usize, &f32)| {
            let token = token as u32;
            let repeated = penalty != 1.0 && recent.contains(&token);
            match repeated {
                false => (logit, token),
                true if logit > 0.0 => (logit / penalty, token),
                true => (logit * penalty, token),
            }
        };
        let all = logits.iter().enumerate().map(penalised);
        if self.config.temperature == 0.0 {
            return all.reduce(|best, x| if x.0 > best.0 { x } else { best }).map_or(0, |x| x.1);
        }
        self.candidates.clear();
        self.candidates.extend(all);
        self.truncate();
        self.draw()
    }

    /// Leaves the candidates that top-k, top-p and min-p keep, most likely first, with their
    /// unnormalised probabilities at the given temperature.
    fn truncate(&mut self) {
        let c = self.config;
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if c.top_k > 0 && c.top_k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(c.top_k - 1, order);
            self.candidates.truncate(c.top_k);
        }
        self.candidates.sort_unstable_by(order);
        let max = self.candidates.first().map_or(0.0, |x| x.0);
        for (logit, _) in &mut self.candidates {
            *logit = ((*logit - max) / c.temperature).exp();
        }
        let total: f32 = self.candidates.iter().map(|x| x.0).sum();
        let mut cumulative = 0.0;
        let mut n_kept = 0;
        for (p, _) in &self.candidates {
            if n_kept > 0 && (cumulative >= c.top_p * total || *p < c.min_p) {
                break;
            }
            cumulative += p;
            n_kept += 1;
        }
        self.candidates.truncate(n_kept);
    }

    fn draw(&mut self) -> u32 {
        let total: f32 = self.candidates.iter().map(|x| x.0).sum();
        let mut left = self.rng.f32() * total;
        for &(p, token) in &self.candidates {
            left -= p;
            if left < 0.0 {
                return token;
            }
        }
        self.candidates.last().map_or(0, |x| x.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(config: SamplerConfig) -> Sampler {
        Sampler::new(config).unwrap()
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut greedy = sampler(SamplerConfig::default());
        assert_eq!(greedy.sample(&[0.0, 3.0, 3.0, -1.0], &[]), 1);
    }

    #[test]
    fn penalty_moves_away_from_repetition() {
        let mut s = sampler(SamplerConfig { repeat_penalty: 2.0, ..Default::default() });
        assert_eq!(s.sample(&[2.0, 1.5], &[0]), 1);
        assert_eq!(s.sample(&[-1.0, -1.5], &[0]), 1);
    }

    #[test]
    fn frequencies_follow_the_probabilities_and_seeds_repeat() {
        let config = SamplerConfig {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            seed: 3,
        };
        let logits = [0.0f32, 1.0, 2.0];
        let draw = |n| {
            let mut s = sampler(config);
            (0..n).map(|_| s.sample(&logits, &[])).collect::<Vec<_>>()
        };
        let drawn = draw(20_000);
        let total: f32 = logits.iter().map(|l| l.exp()).sum();
        for token in 0..3u32 {
            let share = drawn.iter().filter(|&&t| t == token).count() as f32 / 20_000.0;
            assert!((share - logits[token as usize].exp() / total).abs() < 0.015);
        }
        assert_eq!(drawn[..100], draw(100)[..]);
    }

    #[test]
    fn each_truncation_keeps_what_it_says() {
        let base = SamplerConfig {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            seed: 1,
        };
        let logits = [3.0f32, 2.9, 0.0, -5.0];
        let kept = |config| {
            let mut s = sampler(config);
            let mut seen: Vec<u32> = (0..3000).map(|_| s.sample(&logits, &[])).collect();
            seen.sort_unstable();
            seen.dedup();
            seen
        };
        assert_eq!(kept(SamplerConfig { top_k: 1, ..base }), [0]);
        assert_eq!(kept(SamplerConfig { top_k: 2, ..base }), [0, 1]);
        assert_eq!(kept(SamplerConfig { top_p: 0.4, ..base }), [0]);
        assert_eq!(kept(SamplerConfig { min_p: 0.5, ..base }), [0, 1]);
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for config in [
            SamplerConfig { temperature: -1.0, ..Default::default() },
            SamplerConfig { temperature: f32::NAN, ..Default::default() },
            SamplerConfig { top_p: 0.0, ..Default::default() },
            SamplerConfig { min_p: 1.5, ..Default::default() },
            SamplerConfig { repeat_penalty: 0.0, ..Default::default() },
        ] {
            assert!(Sampler::new(config).is_err(), "{config:?}");
        }
    }
}
