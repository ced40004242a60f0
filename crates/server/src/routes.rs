//! The paths of the server, and who may use them.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use everstream_runtime::Sampler;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::engine::{Engine, Event, Job};
use crate::error::ApiError;
use crate::openai::{ChatRequest, Reply};

/// Largest body of a request: a conversation of some million tokens.
const MAX_BODY_BYTES: usize = 16 << 20;
/// A stream on which nothing happens says so at these intervals, or proxies would close it.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Who is served, and under which name.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The model's name in requests and responses.
    pub model: String,
    /// The key that requests must carry; `None` lets everybody in.
    pub api_key: Option<String>,
}

#[derive(Debug)]
struct Shared {
    engine: Engine,
    config: ServerConfig,
    /// Seconds since 1970 when the server started.
    started: u64,
    n_answers: AtomicU64,
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
    let shared = Arc::new(Shared { engine, config, started: now(), n_answers: AtomicU64::new(0) });
    let guarded = Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(model))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), authorize));
    Router::new()
        .route("/health", get(health))
        .merge(guarded)
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(shared)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

async fn unknown_path() -> ApiError {
    ApiError::malformed(
        StatusCode::NOT_FOUND,
        "there is nothing at this path: see /v1/models, /v1/chat/completions",
    )
}

async fn wrong_method() -> ApiError {
    ApiError::malformed(StatusCode::METHOD_NOT_ALLOWED, "this path does not take that method")
}

/// Lets those in who have the key.
async fn authorize(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Response {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer "));
    match (&shared.config.api_key, given) {
        (Some(key), Some(given)) if is_same(key, given) => next.run(request).await,
        (Some(_), _) => ApiError::unauthorized().into_response(),
        // Without a key, a page whose name its owner has pointed here could ask and read.
        (None, _) if !is_own_name(&headers) => ApiError::malformed(
            StatusCode::FORBIDDEN,
            "without an API key this server answers to localhost and to IP addresses only",
        )
        .into_response(),
        (None, _) => next.run(request).await,
    }
}

/// Whether the client calls this server by an address, or by the name that every machine has.
fn is_own_name(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || address.parse::<IpAddr>().is_ok()
}

/// Compares in a time that depends on the lengths only.
fn is_same(a: &str, b: &str) -> bool {
    let differences = a.bytes().zip(b.bytes()).fold(0, |sum, (a, b)| sum | (a ^ b));
    a.len() == b.len() && differences == 0
}

fn model_object(shared: &Shared) -> Value {
    json!({
        "id": shared.config.model,
        "object": "model",
        "created": shared.started,
        "owned_by": "everstream",
    })
}

async fn models(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [model_object(&shared)]}))
}

async fn model(
    State(shared): State<Arc<Shared>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let Path(id) = id.map_err(|error| ApiError::malformed(error.status(), error.body_text()))?;
    if id != shared.config.model {
        return Err(ApiError::malformed(
            StatusCode::NOT_FOUND,
            format!("there is no model {id:?}"),
        ));
    }
    Ok(Json(model_object(&shared)))
}

async fn chat(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let body = body.map_err(|error| ApiError::malformed(error.status(), error.body_text()))?;
    let request: ChatRequest = parse(&headers, &body)?;
    request.check(&shared.config.model)?;
    let (system, turns) = request.conversation()?;
    let options = request.options(shared.engine.sampler, shared.engine.max_tokens);
    Sampler::new(options.sampler)?;
    let (events, receiver) = unbounded_channel();
    shared.engine.submit(Job { system, turns, options, events })?;
    let number = shared.n_answers.fetch_add(1, Ordering::Relaxed);
    let reply = Reply {
        id: format!("chatcmpl-{}-{number}", shared.started),
        created: now(),
        model: shared.config.model.clone(),
    };
    match request.is_streamed() {
        true => Ok(stream(reply, receiver, request.include_usage())),
        false => whole(&reply, receiver).await,
    }
}

/// The JSON of a request. A browser sends this content type to another site only after asking, and
/// the answer to that is no.
fn parse<T: serde::de::DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<T, ApiError> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !content_type.is_some_and(|ty| ty.starts_with("application/json")) {
        let message = "the body must be JSON, with Content-Type: application/json";
        return Err(ApiError::malformed(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    serde_json::from_slice(body).map_err(|error| {
        ApiError::malformed(StatusCode::BAD_REQUEST, format!("the body is not a request: {error}"))
    })
}

async fn whole(reply: &Reply, mut events: UnboundedReceiver<Event>) -> Result<Response, ApiError> {
    let mut begun = None;
    while let Some(event) = events.recv().await {
        match (event, &begun) {
            (Event::Begun(found), _) => begun = Some(found),
            (Event::Ended(generated), Some(begun)) => {
                return Ok(Json(reply.whole(begun, &generated)).into_response());
            }
            (Event::Failed(error), _) => return Err(error),
            (Event::Text(_) | Event::Ended(_), _) => {}
        }
    }
    Err(ApiError::stopped())
}

/// Server-sent events, the last of which is `[DONE]`.
fn stream(reply: Reply, events: UnboundedReceiver<Event>, include_usage: bool) -> Response {
    let (sender, parts) = unbounded_channel::<Result<sse::Event, Infallible>>();
    tokio::spawn(async move {
        let mut events = events;
        let mut begun = None;
        let send = |value: Value| {
            let event = sse::Event::default().data(value.to_string());
            sender.send(Ok(event)).is_ok()
        };
        // Whoever does not listen any more ends the loop, and with it the answer.
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = sender.closed() => return,
            };
            let Some(event) = event else { return };
            let goes_on = match event {
                Event::Begun(found) => {
                    let goes_on = send(reply.first(&found));
                    begun = Some(found);
                    goes_on
                }
                Event::Text(text) => send(reply.piece(&text)),
                Event::Ended(generated) => {
                    send(reply.last(&generated));
                    if let Some(begun) = begun.as_ref().filter(|_| include_usage) {
                        send(reply.usage(begun, &generated));
                    }
                    let _ = sender.send(Ok(sse::Event::default().data("[DONE]")));
                    false
                }
                Event::Failed(error) => {
                    send(error.body());
                    false
                }
            };
            if !goes_on {
                return;
            }
        }
    });
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Sse::new(UnboundedReceiverStream::new(parts)).keep_alive(keep_alive).into_response()
}
