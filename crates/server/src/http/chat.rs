//! OpenAI's chat completions.
//!
//! A field that would change the answer and is not supported is refused; one that changes nothing
//! (`user`, `metadata`, `store`) is ignored, as are fields with the value that means nothing.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use everstream_runtime::model::Model;
use everstream_runtime::{Generated, StopReason, TokenLogProb};
use serde::Deserialize;
use serde_json::{Value, json};

use super::sampling::Sampling;
use super::{Answer, Framing, Parts, Reply, Shared, parse, session_name};
use crate::conversation::{Owner, Past, Speaker, Turn};
use crate::engine::{Begun, Piece, Recalled, Task};
use crate::error::ApiError;
use crate::saved::SessionId;

/// Alternatives to each token at most.
const MAX_TOP: usize = 20;

/// The body of `POST /v1/chat/completions`.
#[derive(Debug, Deserialize)]
pub(super) struct ChatRequest {
    model: Option<String>,
    messages: Vec<Message>,
    /// A session with a name.
    session: Option<String>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    tools: Option<Vec<Value>>,
    functions: Option<Vec<Value>>,
    response_format: Option<ResponseFormat>,
    #[serde(flatten)]
    sampling: Sampling,
}

#[derive(Debug, Deserialize)]
pub(super) struct StreamOptions {
    pub(super) include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
    json_schema: Option<NamedSchema>,
}

#[derive(Debug, Deserialize)]
struct NamedSchema {
    schema: Option<Value>,
}

impl ResponseFormat {
    /// The schema that an answer must have; `None` for text.
    fn schema(&self) -> Result<Option<Value>, ApiError> {
        let schema = self.json_schema.as_ref().and_then(|named| named.schema.clone());
        match (&*self.kind, schema) {
            ("text", _) => Ok(None),
            ("json_object", _) => Ok(Some(json!({"type": "object"}))),
            ("json_schema", Some(schema)) => Ok(Some(schema)),
            ("json_schema", None) => {
                Err(ApiError::invalid("response_format", "json_schema has no schema"))
            }
            _ => {
                let message = "use type text, json_object or json_schema";
                Err(ApiError::invalid("response_format", message))
            }
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Message {
    role: String,
    content: Option<Content>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "content must be a text, or a list of parts")]
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

pub(super) async fn chat(
    State(shared): State<Arc<Shared>>,
    Extension(owner): Extension<Owner>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let request: ChatRequest = parse(&headers, body)?;
    shared.check_model(request.model.as_deref())?;
    request.check()?;
    let max_tokens = request.max_completion_tokens.or(request.max_tokens);
    let mut options = request.sampling.options(&shared, max_tokens)?;
    options.log_probs = request.logprobs == Some(true);
    options.n_top = request.top_logprobs.unwrap_or(0);
    let past = past(owner, &request.messages)?;
    let task = match session_name(&headers, request.session.clone()) {
        Some(name) => turn_of_session(name, past)?,
        None => Task::Turn(past),
    };
    let schema = request.response_format.as_ref().map(ResponseFormat::schema).transpose()?;
    let constraint = shared.constraint(schema.flatten()).await?;
    let events = shared.submit(task, options, constraint)?;
    let model = Arc::clone(&shared.engine.model);
    let reply = ChatReply {
        reply: shared.reply("chatcmpl"),
        model,
        log_probs: request.logprobs == Some(true),
        include_usage: request.stream_options.is_some_and(|o| o.include_usage == Some(true)),
    };
    match request.stream == Some(true) {
        true => shared.stream(events, reply, Framing::Events).await,
        false => Ok(Json(reply.whole(&shared.whole(events).await?)).into_response()),
    }
}

/// The newest turn, for a session that knows the older ones.
pub(super) fn turn_of_session(name: String, mut past: Past) -> Result<Task, ApiError> {
    let id = SessionId { owner: past.owner, name };
    let Some(turn) = past.turns.pop() else {
        return Err(ApiError::invalid("messages", "there is no message of the user"));
    };
    Ok(Task::SessionTurn { id, system: past.system, text: turn.text })
}

impl ChatRequest {
    /// Refuses what is asked for and not done.
    fn check(&self) -> Result<(), ApiError> {
        let has_some = |list: &Option<Vec<Value>>| list.as_ref().is_some_and(|l| !l.is_empty());
        for (param, is_asked) in
            [("tools", has_some(&self.tools)), ("functions", has_some(&self.functions))]
        {
            if is_asked {
                let message = format!("{param} is not supported yet: leave it out");
                return Err(ApiError::invalid(param, message));
            }
        }
        if self.top_logprobs.is_some_and(|n| n > MAX_TOP) {
            let message = format!("there may be {MAX_TOP} alternatives to each token");
            return Err(ApiError::invalid("top_logprobs", message));
        }
        if self.top_logprobs.is_some() && self.logprobs != Some(true) {
            return Err(ApiError::invalid("top_logprobs", "it needs logprobs: true"));
        }
        Ok(())
    }
}

/// The system prompt, and the turns, of which the last is the user's.
pub(super) fn past(owner: Owner, messages: &[Message]) -> Result<Past, ApiError> {
    let wrong = |message: &str| Err(ApiError::invalid("messages", message));
    let (mut system, mut turns) = (None, Vec::<Turn>::new());
    for message in messages {
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
        Some(Turn { speaker: Speaker::User, .. }) => Ok(Past { owner, system, turns }),
        Some(_) => wrong("the last message must be the user's"),
        None => wrong("there is no message of the user"),
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

/// How an answer is written.
struct ChatReply {
    reply: Reply,
    model: Arc<Model>,
    log_probs: bool,
    include_usage: bool,
}

impl ChatReply {
    fn whole(&self, answer: &Answer) -> Value {
        let Answer { begun, log_probs, generated } = answer;
        json!({
            "id": self.reply.id,
            "object": "chat.completion",
            "created": self.reply.created,
            "model": self.reply.model,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": generated.text, "refusal": null},
                "logprobs": self.log_probs(log_probs),
                "finish_reason": finish_reason(generated.stop),
            }],
            "usage": usage(begun, generated.tokens.len()),
            "everstream": {"recalled": recalled(&begun.recalled)},
        })
    }

    fn chunk(&self, delta: &Value, log_probs: &Value, finish_reason: &Value) -> Value {
        json!({
            "id": self.reply.id,
            "object": "chat.completion.chunk",
            "created": self.reply.created,
            "model": self.reply.model,
            "choices": [{
                "index": 0, "delta": delta, "logprobs": log_probs, "finish_reason": finish_reason,
            }],
        })
    }

    /// How likely tokens were, if that was asked for.
    fn log_probs(&self, of: &[TokenLogProb]) -> Value {
        if !self.log_probs {
            return Value::Null;
        }
        let entry = |token: u32, log_prob: f64| {
            let bytes = self.model.tokenizer().token_bytes(token);
            let text = String::from_utf8_lossy(bytes);
            json!({"token": text, "logprob": log_prob, "bytes": bytes})
        };
        let content = of.iter().map(|of| {
            let top = of.top.iter().map(|&(token, log_prob)| entry(token, log_prob));
            let mut value = entry(of.token, of.log_prob);
            value["top_logprobs"] = top.collect();
            value
        });
        json!({"content": content.collect::<Vec<_>>(), "refusal": null})
    }
}

impl Parts for ChatReply {
    fn begun(&mut self, begun: &Begun) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        let mut chunk = self.chunk(&delta, &Value::Null, &Value::Null);
        chunk["everstream"] = json!({"recalled": recalled(&begun.recalled)});
        Some(chunk)
    }

    fn piece(&mut self, piece: &Piece) -> Option<Value> {
        let log_probs = self.log_probs(&piece.log_probs);
        Some(self.chunk(&json!({"content": piece.text}), &log_probs, &Value::Null))
    }

    fn ended(&mut self, begun: &Begun, generated: &Generated) -> Vec<Value> {
        let reason = finish_reason(generated.stop).into();
        let mut chunks = vec![self.chunk(&json!({}), &Value::Null, &reason)];
        if self.include_usage {
            let mut chunk = self.chunk(&json!({}), &Value::Null, &Value::Null);
            chunk["choices"] = json!([]);
            chunk["usage"] = usage(begun, generated.tokens.len());
            chunks.push(chunk);
        }
        chunks
    }
}

pub(super) fn finish_reason(stop: StopReason) -> &'static str {
    match stop {
        StopReason::MaxTokens => "length",
        StopReason::EndOfTurn | StopReason::StopText | StopReason::Interrupted => "stop",
    }
}

/// Tokens: of the whole conversation, of these what was known already, of the answer.
pub(super) fn usage(begun: &Begun, n_generated: usize) -> Value {
    json!({
        "prompt_tokens": begun.n_tokens,
        "completion_tokens": n_generated,
        "total_tokens": begun.n_tokens + n_generated as u64,
        "prompt_tokens_details": {"cached_tokens": begun.n_known},
    })
}

/// What was recalled, as all answers and sessions tell it.
pub(super) fn recalled<'a>(blocks: impl IntoIterator<Item = &'a Recalled>) -> Vec<Value> {
    let block = |block: &Recalled| {
        json!({
            "range": [block.range.0, block.range.1],
            "distance": block.distance,
            "text": block.text,
        })
    };
    blocks.into_iter().map(block).collect()
}
