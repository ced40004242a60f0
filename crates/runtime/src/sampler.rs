//! Chooses the next token from logits.

use everstream_kv_cache::TokenPos;

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
    /// Is taken from the logit of a token for each time that the answer has it already; 0 changes nothing.
    pub frequency_penalty: f32,
    /// Is taken once from the logit of a token that the answer has already; 0 changes nothing.
    pub presence_penalty: f32,
    /// Seed of the random numbers. Each position of the stream has its own, so that a stream which
    /// is continued later draws what it would have drawn.
    pub seed: u64,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: 0,
        }
    }
}

/// Candidates that are collected for each that is kept, before those that cannot be are dropped.
const CANDIDATES_PER_KEPT: usize = 4;

/// Tokens that the repeat penalty looks back on.
const PENALTY_TOKENS: usize = 64;

/// Penalties that are taken from logits: larger ones could make a token that must not come less
/// unlikely than one that may.
const PENALTY_RULE: &str = "from -100 to 100";

fn is_penalty(value: f32) -> bool {
    (-100.0..=100.0).contains(&value)
}

/// A sampler. It has no state but its settings.
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplerConfig,
    /// Is added to the logits of tokens.
    bias: Vec<(u32, f32)>,
    /// Logits after penalties and bias; reused.
    adjusted: Vec<f32>,
    /// Logits, then probabilities, with their tokens; reused.
    candidates: Vec<(f64, u32)>,
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
            (
                "frequency_penalty",
                config.frequency_penalty,
                is_penalty(config.frequency_penalty),
                PENALTY_RULE,
            ),
            (
                "presence_penalty",
                config.presence_penalty,
                is_penalty(config.presence_penalty),
                PENALTY_RULE,
            ),
        ];
        for (what, value, is_good, rule) in checks {
            if !is_good || !value.is_finite() {
                return Err(SessionError::Sampling { what, value, rule });
            }
        }
        Ok(Self { config, bias: Vec::new(), adjusted: Vec::new(), candidates: Vec::new() })
    }

    /// Adds to the logits of these tokens; those that the vocabulary does not have are ignored.
    #[must_use]
    pub fn with_bias(self, bias: Vec<(u32, f32)>) -> Self {
        Self { bias, ..self }
    }

    /// The token at `position`, given the logits and the tokens generated so far. Among equals the
    /// lower token wins, so the result does not depend on the order of a sort. A logit that is not
    /// a number is never chosen before one that is.
    pub fn sample(&mut self, logits: &[f32], generated: &[u32], position: TokenPos) -> u32 {
        let is_adjusted = self.adjust(logits, generated);
        let logits = if is_adjusted { &self.adjusted } else { logits };
        if self.config.temperature == 0.0 {
            return first_of_largest(logits);
        }
        collect(logits, self.config.top_k, &mut self.candidates);
        self.truncate();
        // An odd factor keeps seeds apart: no two of them give a position the same numbers.
        let seed = self.config.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ position.0;
        self.draw(fastrand::Rng::with_seed(seed).f64())
    }

    /// Makes the logits with penalties and bias, if there are any.
    fn adjust(&mut self, logits: &[f32], generated: &[u32]) -> bool {
        let c = self.config;
        let by_count = c.frequency_penalty != 0.0 || c.presence_penalty != 0.0;
        if c.repeat_penalty == 1.0 && !by_count && self.bias.is_empty() {
            return false;
        }
        self.adjusted.clear();
        self.adjusted.extend(logits.iter().map(|&logit| finite(logit)));
        if c.repeat_penalty != 1.0 {
            let mut recent = generated[generated.len().saturating_sub(PENALTY_TOKENS)..].to_vec();
            recent.sort_unstable();
            recent.dedup();
            for token in recent {
                let Some(logit) = self.adjusted.get_mut(token as usize) else { continue };
                *logit = match *logit > 0.0 {
                    true => *logit / c.repeat_penalty,
                    false => *logit * c.repeat_penalty,
                };
            }
        }
        if by_count {
            let mut sorted = generated.to_vec();
            sorted.sort_unstable();
            for same in sorted.chunk_by(|a, b| a == b) {
                let Some(logit) = self.adjusted.get_mut(same[0] as usize) else { continue };
                *logit -= c.frequency_penalty * same.len() as f32 + c.presence_penalty;
            }
        }
        for &(token, bias) in &self.bias {
            if let Some(logit) = self.adjusted.get_mut(token as usize) {
                *logit += bias;
            }
        }
        true
    }

    /// Leaves the candidates that top-p and min-p keep, most likely first, with their
    /// unnormalised probabilities at the given temperature.
    fn truncate(&mut self) {
        let c = self.config;
        let (temperature, top_p, min_p) =
            (f64::from(c.temperature), f64::from(c.top_p), f64::from(c.min_p));
        self.candidates.sort_unstable_by(by_likelihood);
        let max = self.candidates.first().map_or(0.0, |x| x.0);
        for (logit, _) in &mut self.candidates {
            *logit = ((*logit - max) / temperature).exp();
        }
        let total: f64 = self.candidates.iter().map(|x| x.0).sum();
        let mut cumulative = 0.0;
        let mut n_kept = 0;
        for (p, _) in &self.candidates {
            if n_kept > 0 && (cumulative >= top_p * total || *p < min_p) {
                break;
            }
            cumulative += p;
            n_kept += 1;
        }
        self.candidates.truncate(n_kept);
    }

    /// The candidate at a share of the total probability, from 0 to 1.
    fn draw(&self, share: f64) -> u32 {
        let total: f64 = self.candidates.iter().map(|x| x.0).sum();
        let mut left = share * total;
        for &(p, token) in &self.candidates {
            left -= p;
            if left < 0.0 {
                return token;
            }
        }
        // Only rounding leads here.
        self.candidates.first().map_or(0, |x| x.1)
    }
}

/// Makes candidates of all tokens, or of those that top-k keeps if it is not 0.
fn collect(logits: &[f32], top_k: usize, candidates: &mut Vec<(f64, u32)>) {
    let n_kept = if top_k == 0 { logits.len() } else { top_k.min(logits.len()) };
    candidates.clear();
    // Who comes later and is not likelier than `n_kept` others is not kept.
    let mut least = f64::NEG_INFINITY;
    for (&logit, token) in logits.iter().zip(0u32..) {
        // -0 becomes 0, which no order tells apart then.
        let logit = f64::from(finite(logit)) + 0.0;
        if logit > least {
            candidates.push((logit, token));
            if n_kept < logits.len() && candidates.len() == CANDIDATES_PER_KEPT * n_kept {
                least = keep_first(n_kept, candidates);
            }
        }
    }
    if n_kept < candidates.len() {
        keep_first(n_kept, candidates);
    }
}

/// Leaves the `n` likeliest candidates; returns the logit of the last of them.
fn keep_first(n: usize, candidates: &mut Vec<(f64, u32)>) -> f64 {
    let (_, last, _) = candidates.select_nth_unstable_by(n - 1, by_likelihood);
    let last = last.0;
    candidates.truncate(n);
    last
}

/// The likelier candidate first; of equal ones the lower token.
fn by_likelihood(a: &(f64, u32), b: &(f64, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// A logit as a number that can be compared: one that is none comes last.
fn finite(logit: f32) -> f32 {
    if logit.is_nan() { f32::MIN } else { logit.clamp(f32::MIN, f32::MAX) }
}

/// The token with the largest logit; of equal ones the lowest. Looks at 16 logits at once: a
/// vocabulary of 150,000 tokens takes as long as a layer if they are looked at one by one.
fn first_of_largest(logits: &[f32]) -> u32 {
    const BLOCK: usize = 1024;
    let mut best = (f32::MIN, 0);
    for (b, block) in logits.chunks(BLOCK).enumerate() {
        let (sixteens, rest) = block.as_chunks::<16>();
        let mut lanes = [f32::MIN; 16];
        for logits in sixteens {
            for (lane, &logit) in lanes.iter_mut().zip(logits) {
                *lane = if logit > *lane { logit } else { *lane };
            }
        }
        let largest = lanes.iter().chain(rest).fold(f32::MIN, |m, &x| finite(x).max(m));
        if largest > best.0 {
            best = (largest, b * BLOCK);
        }
    }
    let at = logits[best.1.min(logits.len())..].iter().position(|&x| finite(x) == best.0);
    u32::try_from(best.1 + at.unwrap_or(0)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything may come, as likely as the logits say.
    const OPEN: SamplerConfig = SamplerConfig {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repeat_penalty: 1.0,
        seed: 3,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
    };

    fn draw(config: SamplerConfig, logits: &[f32], n: u64) -> Vec<u32> {
        let mut s = Sampler::new(config).unwrap();
        (0..n).map(|i| s.sample(logits, &[], TokenPos(i))).collect()
    }

    fn greedy(logits: &[f32], generated: &[u32], repeat_penalty: f32) -> u32 {
        let config = SamplerConfig { repeat_penalty, ..Default::default() };
        Sampler::new(config).unwrap().sample(logits, generated, TokenPos(0))
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(greedy(&[0.0, 3.0, 3.0, -1.0], &[], 1.0), 1);
    }

    /// Ties, numbers that are none, and vocabularies that end anywhere: the twin looks at each logit.
    #[test]
    fn the_largest_is_found_as_one_by_one() {
        let slow = |logits: &[f32]| {
            let all = logits.iter().map(|&logit| finite(logit)).zip(0u32..);
            all.reduce(|best, x| if x.0 > best.0 { x } else { best }).map_or(0, |x| x.1)
        };
        let odd = [f32::NAN, f32::NEG_INFINITY, f32::INFINITY, f32::MAX, f32::MIN, 0.0, -0.0];
        let mut rng = fastrand::Rng::with_seed(5);
        for n in (0..40).chain([1023, 1024, 1025, 2048, 5000]) {
            for round in 0..40 {
                let mut logits: Vec<f32> = (0..n).map(|_| rng.u8(..) as f32 - 128.0).collect();
                for _ in 0..if round % 2 == 0 { n / 3 } else { 0 } {
                    logits[rng.usize(..n)] = odd[rng.usize(..odd.len())];
                }
                assert_eq!(first_of_largest(&logits), slow(&logits), "{logits:?}");
            }
        }
        for odd in odd {
            assert_eq!(first_of_largest(&[odd; 1030]), 0, "{odd}");
        }
    }

    #[test]
    fn top_k_keeps_what_sorting_all_keeps() {
        let mut rng = fastrand::Rng::with_seed(6);
        for n in [1, 2, 7, 100, 3000] {
            for top_k in [1, 2, 3, 40, 2999, 3000, 4000] {
                let mut logits: Vec<f32> = (0..n).map(|_| f32::from(rng.i8(..)) / 8.0).collect();
                logits.iter_mut().filter(|x| **x == 0.0).for_each(|x| *x = -*x);
                let mut all: Vec<_> =
                    logits.iter().zip(0u32..).map(|(&x, t)| (f64::from(x) + 0.0, t)).collect();
                all.sort_by(by_likelihood);
                all.truncate(top_k);
                let mut candidates = Vec::new();
                collect(&logits, top_k, &mut candidates);
                candidates.sort_by(by_likelihood);
                assert_eq!(candidates, all, "{n} {top_k}");
            }
        }
    }

    #[test]
    fn penalty_moves_away_from_recent_repetition() {
        assert_eq!(greedy(&[2.0, 1.5], &[0], 2.0), 1);
        assert_eq!(greedy(&[-1.0, -1.5], &[0], 2.0), 1);
        let mut generated = vec![0];
        generated.resize(PENALTY_TOKENS, 7);
        assert_eq!(greedy(&[2.0, 1.5], &generated, 2.0), 1);
        generated.push(7);
        assert_eq!(greedy(&[2.0, 1.5], &generated, 2.0), 0);
    }

    #[test]
    fn penalties_by_count_and_bias_are_added() {
        let sample = |config: SamplerConfig, bias: &[(u32, f32)], generated: &[u32]| {
            let mut sampler = Sampler::new(config).unwrap().with_bias(bias.to_vec());
            sampler.sample(&[2.0, 1.5, 1.0], generated, TokenPos(0))
        };
        let default = SamplerConfig::default();
        let frequency = SamplerConfig { frequency_penalty: 0.2, ..default };
        // Twice is not enough, three times are.
        assert_eq!(sample(frequency, &[], &[0, 0]), 0);
        assert_eq!(sample(frequency, &[], &[0, 1, 0, 0]), 0);
        assert_eq!(sample(frequency, &[], &[0, 2, 0, 0]), 1);
        let presence = SamplerConfig { presence_penalty: 0.6, ..default };
        assert_eq!(sample(presence, &[], &[]), 0);
        assert_eq!(sample(presence, &[], &[0]), 1);
        assert_eq!(sample(presence, &[], &[0, 0, 1]), 0);
        assert_eq!(sample(SamplerConfig { presence_penalty: -1.0, ..default }, &[], &[2]), 0);
        assert_eq!(sample(SamplerConfig { presence_penalty: -1.1, ..default }, &[], &[2]), 2);
        assert_eq!(sample(default, &[(2, 1.1)], &[]), 2);
        assert_eq!(sample(default, &[(0, -100.0), (1, -100.0), (99, 100.0)], &[]), 2);
    }

    #[test]
    fn frequencies_follow_the_probabilities_at_any_temperature() {
        let logits = [0.0f32, 1.0, 2.0];
        for temperature in [0.5, 1.0, 3.0] {
            let drawn = draw(SamplerConfig { temperature, ..OPEN }, &logits, 20_000);
            let weight = |token: usize| (logits[token] / temperature).exp();
            let total: f32 = (0..3).map(weight).sum();
            for token in 0..3 {
                let share = drawn.iter().filter(|&&t| t == token as u32).count() as f32 / 20_000.0;
                assert!((share - weight(token) / total).abs() < 0.015, "{temperature} {token}");
            }
        }
    }

    #[test]
    fn a_position_and_a_seed_give_one_number() {
        let logits = [0.0; 50];
        let drawn = draw(OPEN, &logits, 200);
        assert_eq!(drawn[..100], draw(OPEN, &logits, 100)[..]);
        let other = draw(SamplerConfig { seed: 4, ..OPEN }, &logits, 200);
        let n_equal = drawn.iter().zip(&other).filter(|(a, b)| a == b).count();
        assert!(n_equal < 20, "{n_equal} of 200 are equal, 4 are expected");
    }

    #[test]
    fn each_truncation_keeps_what_it_says() {
        let logits = [3.0f32, 2.9, 0.0, -5.0];
        let kept = |config| {
            let mut seen = draw(config, &logits, 3000);
            seen.sort_unstable();
            seen.dedup();
            seen
        };
        assert_eq!(kept(SamplerConfig { top_k: 1, ..OPEN }), [0]);
        assert_eq!(kept(SamplerConfig { top_k: 2, ..OPEN }), [0, 1]);
        assert_eq!(kept(SamplerConfig { top_p: 0.4, ..OPEN }), [0]);
        assert_eq!(kept(SamplerConfig { min_p: 0.5, ..OPEN }), [0, 1]);
        assert_eq!(kept(SamplerConfig { top_k: 2, top_p: 0.4, min_p: 0.5, ..OPEN }), [0]);
        // The others' share is measured at the temperature: hot enough, all four come.
        assert_eq!(kept(SamplerConfig { min_p: 0.5, temperature: 30.0, ..OPEN }), [0, 1, 2, 3]);
    }

    #[test]
    fn what_is_not_a_number_is_not_chosen() {
        let logits = [f32::NAN, 1.0, f32::NEG_INFINITY, f32::NAN];
        assert_eq!(greedy(&logits, &[], 1.0), 1);
        assert!(draw(OPEN, &logits, 200).iter().all(|&t| t == 1));
        assert!(draw(OPEN, &[0.0, f32::INFINITY], 200).iter().all(|&t| t == 1));
    }

    /// Sums over many candidates round; the rest must not fall to the least likely one.
    #[test]
    fn rounding_never_draws_the_impossible() {
        let mut logits = vec![0.0f32; 150_000];
        logits[149_999] = -1e4;
        assert!(draw(OPEN, &logits, 300).iter().all(|&t| t != 149_999));
        let mut s = Sampler::new(OPEN).unwrap();
        s.candidates = vec![(0.75, 4), (0.25, 5), (0.0, 6)];
        assert_eq!([s.draw(0.0), s.draw(0.74), s.draw(0.76), s.draw(1.0)], [4, 4, 5, 4]);
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for config in [
            SamplerConfig { temperature: -1.0, ..Default::default() },
            SamplerConfig { temperature: f32::NAN, ..Default::default() },
            SamplerConfig { top_p: 0.0, ..Default::default() },
            SamplerConfig { min_p: 1.5, ..Default::default() },
            SamplerConfig { repeat_penalty: 0.0, ..Default::default() },
            SamplerConfig { frequency_penalty: -101.0, ..Default::default() },
            SamplerConfig { presence_penalty: f32::NAN, ..Default::default() },
        ] {
            assert!(Sampler::new(config).is_err(), "{config:?}");
        }
    }
}
