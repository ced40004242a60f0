//! Rotary embedding: its base, and how models trained on longer texts than their first changed it.

use super::Keys;
use crate::config::{Architecture, MAX_HEAD_DIM};
use crate::error::{LoadError, shown};

/// The factors of Llama 3's scaling, one for each pair; the converter writes them as a tensor.
pub(crate) const FACTORS: &str = "rope_freqs.weight";
/// Those of LongRoPE, for texts up to the length of the first training.
pub(crate) const SHORT_FACTORS: &str = "rope_factors_short.weight";
/// And for longer ones.
pub(crate) const LONG_FACTORS: &str = "rope_factors_long.weight";

/// Settings of YaRN that are not computed with other values than these.
const YARN_DEFAULTS: [(&str, f32); 4] = [
    ("rope.scaling.yarn_ext_factor", 1.0),
    ("rope.scaling.yarn_attn_factor", 1.0),
    ("rope.scaling.attn_factor", 1.0),
    ("rope.scaling.yarn_log_multiplier", 0.0),
];

/// How rotary frequencies differ from what their base says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All are divided by one number (Chen et al., "Extending Context Window of Large Language Models
    /// via Positional Interpolation", 2023, arXiv:2306.15595).
    Linear(f32),
    /// High ones as they are, low ones divided, and those between in part.
    Yarn(Yarn),
    /// Each is divided by a number of its own, which the file has as a tensor: Llama 3.
    Factors,
    /// The same, for Phi (Ding et al., "LongRoPE", 2024, arXiv:2402.13753). A cache is far shorter than
    /// what the model was first trained on, so the factors for short texts are used, and the
    /// context length is that of the first training. What is rotated is multiplied by `magnitude`.
    LongRope {
        /// The factor.
        magnitude: f32,
    },
}

/// Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models", 2023,
/// arXiv:2309.00071, section 3.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// How many times longer texts became.
    pub factor: f32,
    /// The length before, in tokens.
    pub original_context: usize,
    /// Pairs that turn more often than this within the original context stay as they are.
    pub beta_fast: f32,
    /// Pairs that turn less often than this are divided by the whole factor.
    pub beta_slow: f32,
}

impl Yarn {
    /// What each of `n_pairs` frequencies of `base` is divided by.
    #[must_use]
    pub fn divisors(&self, base: f32, n_pairs: usize) -> Vec<f32> {
        let pair_of = |turns: f32| {
            let turns = f64::from(turns) * 2.0 * std::f64::consts::PI;
            let turn = self.original_context as f64 / turns;
            n_pairs as f64 * turn.ln() / f64::from(base).ln()
        };
        let low = pair_of(self.beta_fast).floor().max(0.0);
        let high = pair_of(self.beta_slow).ceil().min(2.0 * n_pairs as f64 - 1.0);
        let divisor = |pair: usize| {
            let ramp = ((pair as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
            let frequency = 1.0 - ramp + ramp / f64::from(self.factor);
            (1.0 / frequency) as f32
        };
        (0..n_pairs).map(divisor).collect()
    }

    /// What is rotated is multiplied by it.
    #[must_use]
    pub fn magnitude(&self) -> f32 {
        0.1 * self.factor.ln() + 1.0
    }
}

pub(super) fn base(keys: &Keys<'_>, suffix: &str) -> Result<f32, LoadError> {
    // The value of Llama 1 and 2 and of Gemma's sliding layers, whose files may leave it out.
    let base = keys.find_f32(suffix)?.unwrap_or(10_000.0);
    if !base.is_finite() || base <= 1.0 {
        return Err(keys.invalid(suffix, base, "a finite number above 1".to_owned()));
    }
    Ok(base)
}

pub(super) fn dim(keys: &Keys<'_>, head_dim: usize) -> Result<usize, LoadError> {
    let rope_dim = keys.find_size("rope.dimension_count", MAX_HEAD_DIM)?.unwrap_or(head_dim);
    if rope_dim > head_dim || !rope_dim.is_multiple_of(2) {
        let rule = format!("even and at most the size of a head, {head_dim}");
        return Err(keys.invalid("rope.dimension_count", rope_dim, rule));
    }
    Ok(rope_dim)
}

/// The longest context that full attention is right for.
pub(super) fn context_length(keys: &Keys<'_>, scaling: RopeScaling) -> Result<usize, LoadError> {
    let length = keys.size("context_length", u32::MAX)?;
    match scaling {
        RopeScaling::LongRope { .. } => Ok(original_context(keys)?.unwrap_or(length).min(length)),
        _ => Ok(length),
    }
}

fn original_context(keys: &Keys<'_>) -> Result<Option<usize>, LoadError> {
    keys.find_size("rope.scaling.original_context_length", u32::MAX)
}

pub(super) fn scaling(keys: &Keys<'_>) -> Result<RopeScaling, LoadError> {
    const FEATURE: &str = "rope scaling";
    if keys.architecture == Architecture::Phi3 && keys.gguf.has_tensor(SHORT_FACTORS) {
        let magnitude = keys.factor("rope.scaling.attn_factor")?.unwrap_or(1.0);
        return Ok(RopeScaling::LongRope { magnitude });
    }
    if keys.gguf.has_tensor(FACTORS) {
        return match keys.architecture {
            Architecture::Llama => Ok(RopeScaling::Factors),
            _ => Err(keys.unsupported(FEATURE, format!("the file has a tensor `{FACTORS}`"))),
        };
    }
    let type_key = keys.key("rope.scaling.type");
    let ty = keys.gguf.find_str(&type_key)?;
    // Without a type, llama.cpp takes a factor for linear scaling; `scale_linear` is its old name.
    let mut factor = None;
    for suffix in ["rope.scaling.factor", "rope.scale_linear"] {
        factor = factor.or(keys.factor(suffix)?.map(|factor| (suffix, factor)));
    }
    if let Some((suffix, factor)) = factor.filter(|_| ty != Some("none"))
        && factor < 1.0
    {
        return Err(keys.invalid(suffix, factor, "at least 1".to_owned()));
    }
    match (ty, factor) {
        (Some("none"), _) | (None | Some("linear"), None) => Ok(RopeScaling::None),
        (None | Some("linear"), Some((_, factor))) => Ok(RopeScaling::Linear(factor)),
        (Some("yarn"), Some((_, factor))) => {
            let original_context = match original_context(keys)? {
                Some(length) => length,
                None => keys.size("context_length", u32::MAX)?,
            };
            // Variants of the method, which nobody's files were seen to use.
            for (suffix, default) in YARN_DEFAULTS {
                if let Some(value) = keys.factor(suffix)?.filter(|&value| value != default) {
                    let detail = format!("`{}` is {value}", keys.key(suffix));
                    return Err(keys.unsupported("this variant of YaRN", detail));
                }
            }
            let beta = |suffix, default| Ok(keys.factor(suffix)?.unwrap_or(default));
            let beta_fast = beta("rope.scaling.yarn_beta_fast", 32.0)?;
            let beta_slow = beta("rope.scaling.yarn_beta_slow", 1.0)?;
            Ok(RopeScaling::Yarn(Yarn { factor, original_context, beta_fast, beta_slow }))
        }
        (Some(ty), _) => Err(keys.unsupported(FEATURE, format!("`{type_key}` is {}", shown(ty)))),
    }
}
