//! OpenAI's requests and responses, as far as they are answered.
//!
//! A field that would change the answer and is not supported is refused; one that changes nothing
//! (`user`, `metadata`, `store`) is ignored, as are fields with the value that means nothing.

use everstream_runtime::{GenerateOptions, Generated, SamplerConfig, StopReason};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::conversation::{Speaker, Turn};
use crate::engine::Begun;
use crate::error::ApiError;

/// The body of `POST /v1/chat/completions`.
#[derive(Debug, Deserialize)]
pub(crate) struct ChatRequest {
    pub(crate) model: Option<String>,
    messages: Vec<Message>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    seed: Option<i64>,
    stop: Option<OneOrMany>,
    n: Option<u64>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    logit_bias: Option<Value>,
    logprobs: Option<bool>,
    tools: Option<Vec<Value>>,
    functions: Option<Vec<Value>>,
    response_format: Option<ResponseFormat>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    content: Option<Content>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

impl ChatRequest {
    /// Refuses what is asked for and not done.
    pub(crate) fn check(&self, model: &str) -> Result<(), ApiError> {
        if let Some(other) = self.model.as_deref().filter(|&name| name != model) {
            let message = format!("this server runs {model:?}, not {other:?}");
            return Err(ApiError::invalid("model", message));
        }
        let is_set = |x: Option<f32>| x.is_some_and(|x| x != 0.0);
        let asks_format = self.response_format.as_ref().is_some_and(|f| f.kind != "text");
        let has_some = |list: &Option<Vec<Value>>| list.as_ref().is_some_and(|l| !l.is_empty());
        let has_bias = match &self.logit_bias {
            None | Some(Value::Null) => false,
            Some(Value::Object(biases)) => !biases.is_empty(),
            Some(_) => true,
        };
        for (param, is_asked) in [
            ("n", self.n.is_some_and(|n| n != 1)),
            ("frequency_penalty", is_set(self.frequency_penalty)),
            ("presence_penalty", is_set(self.presence_penalty)),
            ("logit_bias", has_bias),
            ("logprobs", self.logprobs == Some(true)),
            ("tools", has_some(&self.tools)),
            ("functions", has_some(&self.functions)),
            ("response_format", asks_format),
        ] {
            if is_asked {
                return Err(ApiError::invalid(
                    param,
                    format!("{param} is not supported yet: leave it out"),
                ));
            }
        }
        Ok(())
    }

    pub(crate) fn include_usage(&self) -> bool {
        self.stream_options.as_ref().is_some_and(|options| options.include_usage == Some(true))
    }

    pub(crate) fn is_streamed(&self) -> bool {
        self.stream == Some(true)
    }

    /// The system prompt, and the turns, of which the last is the user's.
    pub(crate) fn conversation(&self) -> Result<(Option<String>, Vec<Turn>), ApiError> {
        let wrong = |message: &str| Err(ApiError::invalid("messages", message));
        let (mut system, mut turns) = (None, Vec::<Turn>::new());
        for message in &self.messages {
            let text = message.text()?;
            let speaker = match &*message.role {
                "system" | "developer" if turns.is_empty() => {
                    let before = system.take().map(|before: String| before + "\n\n");
                    system = Some(before.unwrap_or_default() + &text);
                    continue;
                }
                "system" | "developer" => {
                    return wrong("a system message must stand before all others");
                }
                "user" => Speaker::User,
                "assistant" => Speaker::Assistant,
                "tool" | "function" => return wrong("messages of tools are not supported yet"),
                _ => return wrong("role must be system, user or assistant"),
            };
            match turns.last_mut() {
                // Two messages of one speaker are one turn.
                Some(last) if last.speaker == speaker => {
                    last.text += "\n\n";
                    last.text += &text;
                }
                None if speaker == Speaker::Assistant => {
                    return wrong("a conversation begins with a message of the user");
                }
                _ => turns.push(Turn { speaker, text }),
            }
        }
        match turns.last() {
            Some(Turn { speaker: Speaker::User, .. }) => Ok((system, turns)),
            Some(_) => wrong("the last message must be the user's"),
            None => wrong("there is no message of the user"),
        }
    }

    /// How to answer; what the request leaves out is as the server was told.
    pub(crate) fn options(&self, sampler: SamplerConfig, max_tokens: usize) -> GenerateOptions {
        let stop = match &self.stop {
            None => Vec::new(),
            Some(OneOrMany::One(text)) => vec![text.clone()],
            Some(OneOrMany::Many(texts)) => texts.clone(),
        };
        GenerateOptions {
            max_tokens: self.max_completion_tokens.or(self.max_tokens).unwrap_or(max_tokens),
            sampler: SamplerConfig {
                temperature: self.temperature.unwrap_or(sampler.temperature),
                top_p: self.top_p.unwrap_or(sampler.top_p),
                seed: self.seed.map_or(sampler.seed, |seed| seed as u64),
                ..sampler
            },
            stop,
            log_probs: false,
        }
    }
}

impl Message {
    fn text(&self) -> Result<String, ApiError> {
        match &self.content {
            None => Ok(String::new()),
            Some(Content::Text(text)) => Ok(text.clone()),
            Some(Content::Parts(parts)) => {
                let text = |part: &Part| match (&*part.kind, &part.text) {
                    ("text", Some(text)) => Ok(text.clone()),
                    _ => Err(ApiError::invalid("messages", "content must be text")),
                };
                parts.iter().map(text).collect::<Result<Vec<_>, _>>().map(|texts| texts.join("\n"))
            }
        }
    }
}

/// What all parts of one answer have in common.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) id: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: String,
}

impl Reply {
    /// The whole answer.
    pub(crate) fn whole(&self, begun: &Begun, generated: &Generated) -> Value {
        json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": generated.text, "refusal": null},
                "logprobs": null,
                "finish_reason": finish_reason(generated.stop),
            }],
            "usage": usage(begun, generated.tokens.len()),
            "everstream": {"recalled": recalled(begun)},
        })
    }

    /// The first part of a streamed answer.
    pub(crate) fn first(&self, begun: &Begun) -> Value {
        let mut chunk = self.chunk(json!({"role": "assistant", "content": ""}), Value::Null);
        chunk["everstream"] = json!({"recalled": recalled(begun)});
        chunk
    }

    /// A piece of its text.
    pub(crate) fn piece(&self, text: &str) -> Value {
        self.chunk(json!({"content": text}), Value::Null)
    }

    /// Its last part, but for [`usage`](Self::usage).
    pub(crate) fn last(&self, generated: &Generated) -> Value {
        self.chunk(json!({}), finish_reason(generated.stop).into())
    }

    /// The part that only those get who asked for it.
    pub(crate) fn usage(&self, begun: &Begun, generated: &Generated) -> Value {
        let mut chunk = self.chunk(json!({}), Value::Null);
        chunk["choices"] = json!([]);
        chunk["usage"] = usage(begun, generated.tokens.len());
        chunk
    }

    fn chunk(&self, delta: Value, finish_reason: Value) -> Value {
        json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [
                {"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason}
            ],
        })
    }
}

fn finish_reason(stop: StopReason) -> &'static str {
    match stop {
        StopReason::MaxTokens => "length",
        StopReason::EndOfTurn | StopReason::StopText | StopReason::Interrupted => "stop",
    }
}

/// Tokens: of the whole conversation, of these what was known already, of the answer.
fn usage(begun: &Begun, n_generated: usize) -> Value {
    json!({
        "prompt_tokens": begun.n_tokens,
        "completion_tokens": n_generated,
        "total_tokens": begun.n_tokens + n_generated as u64,
        "prompt_tokens_details": {"cached_tokens": begun.n_known},
    })
}

fn recalled(begun: &Begun) -> Vec<Value> {
    let block = |block: &crate::engine::Recalled| {
        json!({
            "range": [block.range.0, block.range.1],
            "distance": block.distance,
            "text": block.text,
        })
    };
    begun.recalled.iter().map(block).collect()
}
