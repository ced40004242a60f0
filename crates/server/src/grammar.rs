//! Answers that must be JSON: which tokens may come next, by `llguidance`.

use std::fmt;
use std::sync::Arc;

use everstream_runtime::Constraint;
use everstream_runtime::model::Model;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::error::ApiError;

/// Marks tokens that are signals and never text.
const SIGNAL: u8 = 0xff;

/// Makes constraints for a model.
pub(crate) struct Grammars {
    factory: ParserFactory,
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Grammars")
    }
}

impl Grammars {
    /// Sorts the vocabulary of a model, which takes a moment.
    pub(crate) fn new(model: &Model) -> Result<Self, ApiError> {
        let tokenizer = model.tokenizer();
        let vocab_size = model.config().vocab_size as u32;
        let Some(&eos) = tokenizer.eos_ids().first() else {
            let message = "this model cannot end an answer by itself: leave response_format out";
            return Err(ApiError::invalid("response_format", message));
        };
        let word = |token: u32| match tokenizer.token_bytes(token) {
            bytes if tokenizer.is_special(token) || bytes.is_empty() => {
                [&[SIGNAL], format!("<{token}>").as_bytes()].concat()
            }
            bytes => bytes.to_vec(),
        };
        let words: Vec<Vec<u8>> = (0..vocab_size).map(word).collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocab_size, eos), &words);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let factory = ParserFactory::new_simple(&environment);
        let mut factory = factory.map_err(|error| ApiError::internal(&*Box::from(error)))?;
        factory.quiet();
        Ok(Self { factory })
    }

    /// Answers that a JSON schema describes. White space stands where JSON is usually written with
    /// some, so that no model gets lost in it.
    pub(crate) fn json(&self, mut schema: Value) -> Result<Box<dyn Constraint>, ApiError> {
        let wrong = |what: String| ApiError::invalid("response_format", what);
        let Some(object) = schema.as_object_mut() else {
            return Err(wrong("the schema must be an object".to_owned()));
        };
        object.insert("x-guidance".to_owned(), json!({"whitespace_flexible": false}));
        let parser = self.factory.create_parser(TopLevelGrammar::from_json_schema(schema));
        let matcher = Matcher::new(parser);
        match matcher.get_error() {
            Some(error) => {
                let line = error.lines().next().unwrap_or_default();
                Err(wrong(format!("the schema cannot be followed: {line}")))
            }
            None => Ok(Box::new(Grammar(matcher))),
        }
    }
}

struct Grammar(Matcher);

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Grammar")
    }
}

impl Constraint for Grammar {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
        let allowed = self.0.compute_mask_or_eos().map_err(|error| error.to_string())?;
        allowed.iter_unset_entries(|token| {
            if let Some(logit) = logits.get_mut(token) {
                *logit = f32::NEG_INFINITY;
            }
        });
        Ok(())
    }

    fn took(&mut self, token: u32) -> Result<(), String> {
        self.0.consume_token(token).map_err(|error| error.to_string())
    }
}
