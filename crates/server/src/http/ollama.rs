//! The paths of ollama that its clients use: conversations and texts, a line of JSON for each piece.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use everstream_runtime::{GenerateOptions, Generated, StopReason};
use serde::Deserialize;
use serde_json::{Value, json};

use super::chat::{Message, past, recalled, turn_of_session};
use super::sampling::Sampling;
use super::tokens::begin_with;
use super::{Framing, Parts, Shared, body, off_thread, parse_json, session_name};
use crate::conversation::{Owner, Past, Speaker, Turn};
use crate::engine::{Begun, Piece, Task};
use crate::error::ApiError;

/// ollama's version whose paths these are.
const VERSION: &str = "0.6.0";

/// An error in ollama's form.
#[derive(Debug)]
pub(super) struct OllamaError(ApiError);

impl From<ApiError> for OllamaError {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for OllamaError {
    fn into_response(self) -> Response {
        self.0.with_body(&json!({"error": self.0.message()}))
    }
}

#[derive(Debug, Deserialize)]
struct ChatRequest {
    model: String,
    messages: Vec<Message>,
    session: Option<String>,
    #[serde(flatten)]
    common: Common,
}

#[derive(Debug, Deserialize)]
struct GenerateRequest {
    model: String,
    prompt: Option<String>,
    system: Option<String>,
    raw: Option<bool>,
    session: Option<String>,
    suffix: Option<String>,
    images: Option<Vec<Value>>,
    #[serde(flatten)]
    common: Common,
}

#[derive(Debug, Deserialize)]
struct Common {
    stream: Option<bool>,
    format: Option<Value>,
    tools: Option<Vec<Value>>,
    options: Option<Options>,
}

/// Settings; those of memory and speed are the server's.
#[derive(Debug, Default, Deserialize)]
struct Options {
    num_predict: Option<i64>,
    #[serde(flatten)]
    sampling: Sampling,
}

impl Common {
    /// How to answer. What ollama calls nothing said is what this server was told.
    fn options(&self, shared: &Shared) -> Result<GenerateOptions, ApiError> {
        if self.tools.as_ref().is_some_and(|tools| !tools.is_empty()) {
            return Err(ApiError::invalid("tools", "tools are not supported yet: leave them out"));
        }
        let default = Options::default();
        let options = self.options.as_ref().unwrap_or(&default);
        // Less than 0 asks for no bound; an endless stream has some.
        let max_tokens = options.num_predict.and_then(|n| usize::try_from(n).ok());
        options.sampling.options(shared, max_tokens)
    }

    fn is_streamed(&self) -> bool {
        self.stream != Some(false)
    }

    /// The schema that an answer must have, if it must have one.
    fn schema(&self) -> Result<Option<Value>, ApiError> {
        match &self.format {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(name)) if name.is_empty() => Ok(None),
            Some(Value::String(name)) if name == "json" => Ok(Some(json!({"type": "object"}))),
            Some(schema @ Value::Object(_)) => Ok(Some(schema.clone())),
            Some(_) => Err(ApiError::invalid("format", "use json, or a JSON schema")),
        }
    }
}

pub(super) async fn chat(
    State(shared): State<Arc<Shared>>,
    Extension(owner): Extension<Owner>,
    headers: HeaderMap,
    found: Result<Bytes, BytesRejection>,
) -> Result<Response, OllamaError> {
    let request: ChatRequest = parse_json(&body(found)?)?;
    shared.check_model(Some(&request.model))?;
    let options = request.common.options(&shared)?;
    let past = past(owner, &request.messages)?;
    let task = match session_name(&headers, request.session) {
        Some(name) => turn_of_session(name, past)?,
        None => Task::Turn(past),
    };
    answer(&shared, task, options, &request.common, "message").await
}

pub(super) async fn generate(
    State(shared): State<Arc<Shared>>,
    Extension(owner): Extension<Owner>,
    headers: HeaderMap,
    found: Result<Bytes, BytesRejection>,
) -> Result<Response, OllamaError> {
    let request: GenerateRequest = parse_json(&body(found)?)?;
    shared.check_model(Some(&request.model))?;
    let options = request.common.options(&shared)?;
    if request.suffix.as_deref().is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::invalid("suffix", "suffix is not supported: leave it out").into());
    }
    if request.images.is_some_and(|images| !images.is_empty()) {
        return Err(ApiError::invalid("images", "images are not supported: leave them out").into());
    }
    let Some(prompt) = request.prompt.filter(|prompt| !prompt.is_empty()) else {
        // That is how ollama's clients ask for the model to be loaded; it is.
        let reply = json!({
            "model": shared.config.model, "created_at": time(), "response": "", "done": true,
            "done_reason": "load",
        });
        return Ok(Json(reply).into_response());
    };
    let session = session_name(&headers, request.session);
    let task = match (request.raw == Some(true), session) {
        (true, Some(_)) => {
            let message = "a raw prompt is no turn of a session: leave one of them out";
            return Err(ApiError::invalid("session", message).into());
        }
        (true, None) => {
            let model = Arc::clone(&shared.engine.model);
            let tokens = off_thread(move || begin_with(&model, &prompt));
            Task::Completion { tokens: tokens.await?, echo: false }
        }
        (false, session) => {
            let turns = vec![Turn { speaker: Speaker::User, text: prompt }];
            let past = Past { owner, system: request.system, turns };
            match session {
                Some(name) => turn_of_session(name, past)?,
                None => Task::Turn(past),
            }
        }
    };
    answer(&shared, task, options, &request.common, "response").await
}

async fn answer(
    shared: &Arc<Shared>,
    task: Task,
    options: GenerateOptions,
    common: &Common,
    field: &'static str,
) -> Result<Response, OllamaError> {
    let constraint = shared.constraint(common.schema()?).await?;
    let events = shared.submit(task, options, constraint)?;
    let mut lines =
        Lines { model: shared.config.model.clone(), field, start: Instant::now(), begun_at: None };
    if common.is_streamed() {
        return Ok(shared.stream(events, lines, Framing::Lines).await?);
    }
    let answer = shared.whole(events).await?;
    let mut reply = lines.last(&answer.begun, &answer.generated);
    lines.put_text(&mut reply, &answer.generated.text);
    Ok(Json(reply).into_response())
}

/// The lines of an answer.
struct Lines {
    model: String,
    /// What the text is called: `message` of a conversation, `response` of a text.
    field: &'static str,
    start: Instant,
    begun_at: Option<Instant>,
}

impl Lines {
    fn put_text(&self, line: &mut Value, text: &str) {
        line[self.field] = match self.field {
            "message" => json!({"role": "assistant", "content": text}),
            _ => text.into(),
        };
    }

    fn line(&self, text: &str) -> Value {
        let mut line = json!({"model": self.model, "created_at": time(), "done": false});
        self.put_text(&mut line, text);
        line
    }

    fn last(&mut self, begun: &Begun, generated: &Generated) -> Value {
        let now = Instant::now();
        let begun_at =
            self.begun_at.unwrap_or_else(|| now - generated.elapsed.min(now - self.start));
        let mut line = self.line("");
        let reason = match generated.stop {
            StopReason::MaxTokens => "length",
            _ => "stop",
        };
        let last = json!({
            "done": true,
            "done_reason": reason,
            "total_duration": (now - self.start).as_nanos() as u64,
            "load_duration": 0,
            "prompt_eval_count": begun.n_tokens - begun.n_known,
            "prompt_eval_duration": (begun_at - self.start).as_nanos() as u64,
            "eval_count": generated.tokens.len(),
            "eval_duration": generated.elapsed.as_nanos() as u64,
            "everstream": {"recalled": recalled(&begun.recalled)},
        });
        if let (Value::Object(line), Value::Object(last)) = (&mut line, last) {
            line.extend(last);
        }
        line
    }
}

impl Parts for Lines {
    fn begun(&mut self, _: &Begun) -> Option<Value> {
        self.begun_at = Some(Instant::now());
        None
    }

    fn piece(&mut self, piece: &Piece) -> Option<Value> {
        Some(self.line(&piece.text))
    }

    fn ended(&mut self, begun: &Begun, generated: &Generated) -> Vec<Value> {
        vec![self.last(begun, generated)]
    }

    fn failed(&mut self, error: &ApiError) -> Value {
        json!({"error": error.message()})
    }
}

/// Now, as ollama writes it.
fn time() -> String {
    humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string()
}

fn model_object(shared: &Shared) -> Value {
    let config = shared.engine.model.config();
    let started = std::time::UNIX_EPOCH + std::time::Duration::from_secs(shared.started);
    json!({
        "name": shared.config.model,
        "model": shared.config.model,
        "modified_at": humantime::format_rfc3339_seconds(started).to_string(),
        "size": shared.engine.model.gguf().bytes().len(),
        "digest": "",
        "details": {
            "format": "gguf",
            "family": config.architecture.name(),
            "families": [config.architecture.name()],
            "parameter_size": "",
            "quantization_level": "",
        },
    })
}

pub(super) async fn tags(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({"models": [model_object(&shared)]}))
}

#[derive(Debug, Deserialize)]
struct ShowRequest {
    #[serde(alias = "name")]
    model: String,
}

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    found: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, OllamaError> {
    let request: ShowRequest = parse_json(&body(found)?)?;
    shared.check_model(Some(&request.model))?;
    let mut model = model_object(&shared);
    let config = shared.engine.model.config();
    let architecture = config.architecture.name();
    model["capabilities"] = json!(["completion"]);
    model["model_info"] = json!({
        "general.architecture": architecture,
        format!("{architecture}.context_length"): config.context_length,
        format!("{architecture}.embedding_length"): config.embedding_dim,
        format!("{architecture}.block_count"): config.n_layers,
    });
    Ok(Json(model))
}

pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": VERSION}))
}
