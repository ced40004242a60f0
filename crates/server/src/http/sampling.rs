//! The fields of requests that say how to choose tokens, and when to stop.

use std::collections::BTreeMap;

use everstream_runtime::{GenerateOptions, Sampler, SamplerConfig};
use serde::Deserialize;

use super::Shared;
use crate::error::ApiError;

/// Stop texts of a request at most.
const MAX_STOP_TEXTS: usize = 16;

/// What completions of chats and of texts have in common.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Sampling {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    #[serde(alias = "repetition_penalty")]
    repeat_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    seed: Option<i64>,
    stop: Option<OneOrMany>,
    n: Option<u64>,
}

/// A text, or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a text, or a list of texts")]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub(super) fn texts(&self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text.clone()],
            Self::Many(texts) => texts.clone(),
        }
    }
}

impl Sampling {
    /// How to answer; what the request leaves out is as the server was told.
    pub(super) fn options(
        &self,
        shared: &Shared,
        max_tokens: Option<usize>,
    ) -> Result<GenerateOptions, ApiError> {
        if self.n.is_some_and(|n| n != 1) {
            return Err(ApiError::invalid(
                "n",
                "a conversation goes on in one way: leave n out, and ask again for another answer",
            ));
        }
        let default = shared.engine.sampler;
        let sampler = SamplerConfig {
            temperature: self.temperature.unwrap_or(default.temperature),
            top_p: self.top_p.unwrap_or(default.top_p),
            top_k: self.top_k.unwrap_or(default.top_k),
            min_p: self.min_p.unwrap_or(default.min_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(default.repeat_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(default.frequency_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(default.presence_penalty),
            seed: self.seed.map_or(default.seed, |seed| seed as u64),
        };
        Sampler::new(sampler)?;
        let stop = self.stop.as_ref().map(OneOrMany::texts).unwrap_or_default();
        if stop.len() > MAX_STOP_TEXTS {
            let message = format!("there may be {MAX_STOP_TEXTS} stop texts");
            return Err(ApiError::invalid("stop", message));
        }
        Ok(GenerateOptions {
            max_tokens: max_tokens
                .unwrap_or(shared.engine.max_tokens)
                .min(shared.engine.max_answer),
            sampler,
            stop,
            logit_bias: self.logit_bias()?,
            log_probs: false,
            n_top: 0,
        })
    }

    fn logit_bias(&self) -> Result<Vec<(u32, f32)>, ApiError> {
        let of_token = |(token, &bias): (&String, &f32)| match token.parse() {
            Ok(token) if bias.is_finite() => Ok((token, bias.clamp(-100.0, 100.0))),
            _ => Err(ApiError::invalid("logit_bias", "it must map token numbers to numbers")),
        };
        self.logit_bias.iter().flatten().map(of_token).collect()
    }
}
