//! The paths of the server, and what all of them have in common.

mod auth;
mod chat;
mod completions;
mod embeddings;
mod ollama;
mod page;
mod sampling;
mod sessions;
mod tokens;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, MatchedPath, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use everstream_runtime::{Constraint, GenerateOptions, Generated};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

pub use auth::{Keys, digest};
use ollama::OllamaError;

use crate::engine::{Begun, Engine, Event, Job, Piece, Task};
use crate::error::ApiError;
use crate::grammar::Grammars;

/// Largest body of a request: a conversation of some million tokens.
const MAX_BODY_BYTES: usize = 16 << 20;
/// Largest document.
const MAX_DOCUMENT_BYTES: usize = 64 << 20;
/// Names a session where a client cannot add a field to its requests.
const SESSION_HEADER: &str = "x-everstream-session";
/// A stream on which nothing happens says so at these intervals, or proxies would close it.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Who is served, and under which name.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The model's name in requests and responses.
    pub model: String,
    /// The keys that requests must carry.
    pub keys: Keys,
}

#[derive(Debug)]
struct Shared {
    engine: Engine,
    config: ServerConfig,
    /// Seconds since 1970 when the server started.
    started: u64,
    n_answers: AtomicU64,
    /// Who may use the sentence encoder besides the engine: one at a time.
    encoding: Arc<Semaphore>,
    /// Made when the first answer in JSON is asked for.
    grammars: OnceLock<Result<Grammars, ApiError>>,
}

/// Serves until `stop` is done and the answers that were begun are given.
///
/// # Errors
///
/// [`io::Error`] of the listener.
pub async fn serve(
    listener: TcpListener,
    engine: Engine,
    config: ServerConfig,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    axum::serve(listener, router(engine, config)).with_graceful_shutdown(stop).await
}

fn router(engine: Engine, config: ServerConfig) -> Router {
    let shared = Arc::new(Shared {
        engine,
        config,
        started: now(),
        n_answers: AtomicU64::new(0),
        encoding: Arc::new(Semaphore::new(1)),
        grammars: OnceLock::new(),
    });
    let session = "/v1/sessions/{name}";
    let of_session = |path: &str| format!("{session}{path}");
    let guarded = Router::new()
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(model))
        .route("/v1/sessions", get(sessions::list))
        .route(session, get(sessions::show).delete(sessions::delete))
        .route(&of_session("/memory"), get(sessions::memory).delete(sessions::forget))
        .route(&of_session("/pins"), post(sessions::pin))
        .route(&of_session("/pins/{number}"), delete(sessions::unpin))
        .route(
            &of_session("/ingest"),
            post(sessions::ingest).layer(DefaultBodyLimit::max(MAX_DOCUMENT_BYTES)),
        )
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/api/chat", post(ollama::chat))
        .route("/api/generate", post(ollama::generate))
        .route("/api/tags", get(ollama::tags))
        .route("/api/show", post(ollama::show))
        .route("/api/version", get(ollama::version))
        .route("/metrics", get(metrics))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), auth::authorize));
    Router::new()
        .route("/", get(page::page))
        .route("/page.js", get(page::script))
        .route("/page.css", get(page::style))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .merge(guarded)
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), count))
        .with_state(shared)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Counts a request, and writes a line about it that has nothing of what it says.
async fn count(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let (path, method) = (path.unwrap_or_else(|| "other".to_owned()), request.method().clone());
    let response = next.run(request).await;
    let status = response.status().as_u16();
    shared.engine.metrics.count_request(&path, status);
    tracing::info!(%method, path, status, ms = start.elapsed().as_millis() as u64);
    response
}

async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// Whether the engine answers.
async fn ready(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, ApiError> {
    shared.engine.ask(|_| Ok(())).await?;
    Ok(Json(json!({"status": "ready"})))
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], shared.engine.metrics.text()).into_response()
}

async fn unknown_path(uri: Uri) -> Response {
    refuse(&uri, ApiError::not_found("there is nothing at this path"))
}

async fn wrong_method(uri: Uri) -> Response {
    let message = "this path does not take that method";
    refuse(&uri, ApiError::malformed(StatusCode::METHOD_NOT_ALLOWED, message))
}

/// An error in the form of those whose path it is.
fn refuse(uri: &Uri, error: ApiError) -> Response {
    match uri.path().starts_with("/api/") {
        true => OllamaError::from(error).into_response(),
        false => error.into_response(),
    }
}

/// The session that a request names, in its body or in a header.
fn session_name(headers: &HeaderMap, field: Option<String>) -> Option<String> {
    let header = headers.get(SESSION_HEADER).map(|name| name.to_str().unwrap_or("").to_owned());
    field.or(header)
}

fn model_object(shared: &Shared, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": shared.started,
        "owned_by": "everstream",
    })
}

async fn models(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let encoder = shared.engine.encoder.as_ref().map(|_| embeddings::MODEL);
    let names = [&*shared.config.model].into_iter().chain(encoder);
    let data: Vec<Value> = names.map(|name| model_object(&shared, name)).collect();
    Json(json!({"object": "list", "data": data}))
}

async fn model(
    State(shared): State<Arc<Shared>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let id = path(id)?;
    if id != embeddings::MODEL || shared.engine.encoder.is_none() {
        shared.check_model(Some(&id))?;
    }
    Ok(Json(model_object(&shared, &id)))
}

/// The parameters of a path.
fn path<T>(found: Result<Path<T>, PathRejection>) -> Result<T, ApiError> {
    let Path(found) =
        found.map_err(|error| ApiError::malformed(error.status(), error.body_text()))?;
    Ok(found)
}

/// The body of a request.
fn body(found: Result<Bytes, BytesRejection>) -> Result<Bytes, ApiError> {
    found.map_err(|error| ApiError::malformed(error.status(), error.body_text()))
}

/// The JSON of a request. A browser sends this content type to another site only after asking, and
/// the answer to that is no.
fn parse<T: DeserializeOwned>(
    headers: &HeaderMap,
    found: Result<Bytes, BytesRejection>,
) -> Result<T, ApiError> {
    let body = body(found)?;
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !content_type.is_some_and(|ty| ty.starts_with("application/json")) {
        let message = "the body must be JSON, with Content-Type: application/json";
        return Err(ApiError::malformed(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    parse_json(&body)
}

fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        ApiError::malformed(StatusCode::BAD_REQUEST, format!("the body is not a request: {error}"))
    })
}

/// What all parts of one answer have in common.
#[derive(Clone, Debug)]
struct Reply {
    id: String,
    /// Seconds since 1970.
    created: u64,
    model: String,
}

/// A whole answer.
#[derive(Debug)]
struct Answer {
    begun: Begun,
    log_probs: Vec<everstream_runtime::TokenLogProb>,
    generated: Generated,
}

/// How an answer is written as a stream of events; `None` writes nothing.
trait Parts: Send + 'static {
    fn begun(&mut self, begun: &Begun) -> Option<Value>;
    fn piece(&mut self, piece: &Piece) -> Option<Value>;
    fn ended(&mut self, begun: &Begun, generated: &Generated) -> Vec<Value>;
    fn failed(&mut self, error: &ApiError) -> Value {
        error.body()
    }
}

/// How the values of a stream stand in its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// Server-sent events, the last of which is `[DONE]`.
    Events,
    /// A line each.
    Lines,
}

impl Shared {
    /// The beginning of an answer, with a number of its own.
    fn reply(&self, prefix: &str) -> Reply {
        let number = self.n_answers.fetch_add(1, Ordering::Relaxed);
        Reply {
            id: format!("{prefix}-{}-{number}", self.started),
            created: now(),
            model: self.config.model.clone(),
        }
    }

    /// Refuses requests for another model.
    fn check_model(&self, name: Option<&str>) -> Result<(), ApiError> {
        let model = &self.config.model;
        // ollama's clients say which of a model's variants they mean.
        let is_it = |name: &str| name == model || name.strip_suffix(":latest") == Some(model);
        match name.filter(|name| !is_it(name)) {
            Some(other) => {
                let message = format!("this server runs {model:?}, not {other:?}");
                Err(ApiError::unknown_model(message))
            }
            None => Ok(()),
        }
    }

    /// Queues something; its events can be received.
    fn submit(
        &self,
        task: Task,
        options: GenerateOptions,
        constraint: Option<Box<dyn Constraint>>,
    ) -> Result<UnboundedReceiver<Event>, ApiError> {
        let (events, receiver) = unbounded_channel();
        self.engine.submit(vec![Job { task, options, constraint, events }])?;
        Ok(receiver)
    }

    /// What an answer in JSON of a schema may be, if there is a schema.
    async fn constraint(
        self: &Arc<Self>,
        schema: Option<Value>,
    ) -> Result<Option<Box<dyn Constraint>>, ApiError> {
        let Some(schema) = schema else { return Ok(None) };
        let shared = Arc::clone(self);
        let made = off_thread(move || {
            let model = &shared.engine.model;
            let grammars = shared.grammars.get_or_init(|| Grammars::new(model));
            grammars.as_ref().map_err(Clone::clone)?.json(schema)
        });
        made.await.map(Some)
    }

    /// Waits for an answer.
    async fn whole(&self, mut events: UnboundedReceiver<Event>) -> Result<Answer, ApiError> {
        let start = Instant::now();
        let (mut begun, mut log_probs) = (None, Vec::new());
        while let Some(event) = events.recv().await {
            match event {
                Event::Begun(found) => {
                    self.engine.metrics.took_to_begin(start.elapsed());
                    begun = Some(found);
                }
                Event::Text(piece) => log_probs.extend(piece.log_probs),
                Event::Ended(generated) => {
                    self.engine.metrics.took_to_end(start.elapsed());
                    let begun = begun.unwrap_or_default();
                    return Ok(Answer { begun, log_probs, generated });
                }
                Event::Failed(error) => return Err(error),
                Event::Accepted | Event::Read { .. } | Event::DocumentEnded(_) => {}
            }
        }
        Err(ApiError::stopped())
    }

    /// Passes an answer on as it comes. What is wrong before anything is read has a status of its own.
    async fn stream(
        self: &Arc<Self>,
        mut events: UnboundedReceiver<Event>,
        parts: impl Parts,
        framing: Framing,
    ) -> Result<Response, ApiError> {
        first_event(&mut events).await?;
        let (sender, values) = unbounded_channel();
        tokio::spawn(pass_on(Arc::clone(self), events, parts, sender));
        let values = UnboundedReceiverStream::new(values);
        match framing {
            Framing::Events => {
                let event = |value: Option<Value>| {
                    let data = value.map_or_else(|| "[DONE]".to_owned(), |value| value.to_string());
                    Ok::<_, Infallible>(sse::Event::default().data(data))
                };
                let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
                Ok(Sse::new(values.map(event)).keep_alive(keep_alive).into_response())
            }
            Framing::Lines => {
                let line = |value: Option<Value>| {
                    let line = value.map_or_else(String::new, |value| format!("{value}\n"));
                    Ok::<_, Infallible>(line)
                };
                let content_type = [(header::CONTENT_TYPE, "application/x-ndjson")];
                Ok((content_type, Body::from_stream(values.map(line))).into_response())
            }
        }
    }
}

/// Waits until a job is worked on.
async fn first_event(events: &mut UnboundedReceiver<Event>) -> Result<(), ApiError> {
    match events.recv().await {
        None => Err(ApiError::stopped()),
        Some(Event::Failed(error)) => Err(error),
        Some(_) => Ok(()),
    }
}

/// Does what takes long where nobody waits for it.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ApiError::internal(&error))?
}

/// Writes events as they come; `None` ends those that are whole. Whoever does not listen any more ends
/// it, and with it the answer.
async fn pass_on(
    shared: Arc<Shared>,
    mut events: UnboundedReceiver<Event>,
    mut parts: impl Parts,
    sender: UnboundedSender<Option<Value>>,
) {
    let start = Instant::now();
    let mut begun = Begun::default();
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = sender.closed() => return,
        };
        let (values, is_end) = match event {
            None => return,
            Some(Event::Begun(found)) => {
                shared.engine.metrics.took_to_begin(start.elapsed());
                begun = found;
                (parts.begun(&begun).into_iter().collect(), false)
            }
            Some(Event::Text(piece)) => (parts.piece(&piece).into_iter().collect(), false),
            Some(Event::Ended(generated)) => {
                shared.engine.metrics.took_to_end(start.elapsed());
                (parts.ended(&begun, &generated), true)
            }
            Some(Event::Failed(error)) => {
                let _ = sender.send(Some(parts.failed(&error)));
                return;
            }
            Some(Event::Accepted | Event::Read { .. } | Event::DocumentEnded(_)) => {
                (Vec::new(), false)
            }
        };
        for value in values {
            if sender.send(Some(value)).is_err() {
                return;
            }
        }
        if is_end {
            let _ = sender.send(None);
            return;
        }
    }
}
