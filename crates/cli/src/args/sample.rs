//! What can be said of how answers are made.

use clap::Args;
use everstream_runtime::{GenerateOptions, SamplerConfig, SessionConfig};

/// How to choose tokens.
#[derive(Args, Clone, Debug)]
pub(crate) struct SampleArgs {
    /// Tokens of an answer at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) max_tokens: usize,
    /// 0 takes the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) temperature: f32,
    /// Keep the K most likely tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = SamplerConfig::default().top_k)]
    pub(crate) top_k: usize,
    /// Keep the most likely tokens with this probability together
    #[arg(long, value_name = "P", default_value_t = SamplerConfig::default().top_p, allow_negative_numbers = true)]
    pub(crate) top_p: f32,
    /// Drop tokens less likely than this fraction of the most likely one
    #[arg(long, value_name = "P", default_value_t = SamplerConfig::default().min_p, allow_negative_numbers = true)]
    pub(crate) min_p: f32,
    /// Make repeated tokens less likely; 1 changes nothing
    #[arg(long, value_name = "R", default_value_t = SamplerConfig::default().repeat_penalty, allow_negative_numbers = true)]
    pub(crate) repeat_penalty: f32,
    /// Seed of the random choice
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Text that ends the answer, taken as it is (in most shells $'\n' is a line break); may be
    /// repeated
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) stop: Vec<String>,
}

impl SampleArgs {
    /// Options of a generation.
    pub(crate) fn options(&self) -> GenerateOptions {
        GenerateOptions {
            max_tokens: self.max_tokens,
            sampler: SamplerConfig {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
                repeat_penalty: self.repeat_penalty,
                seed: self.seed,
                ..SamplerConfig::default()
            },
            stop: self.stop.clone(),
            ..Default::default()
        }
    }
}

/// How answers are guessed ahead.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct DraftArgs {
    /// Guess up to N tokens of an answer by what stood in the stream before, and compute them
    /// together (prompt look-up, without a second model): the same answer, sooner where it quotes; 0
    /// guesses none, as do --clusters and policy recompute
    #[arg(long, value_name = "N", default_value_t = SessionConfig::default().draft_tokens)]
    pub(crate) draft_tokens: usize,
}
