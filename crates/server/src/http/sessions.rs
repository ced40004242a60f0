//! Sessions with a name: what they are, what they remember, and documents for them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use everstream_runtime::kv_cache::TokenPos;
use everstream_runtime::memory::{BlockMeta, StoreError};
use everstream_runtime::{GenerateOptions, Ingest, Origin, Session, SessionError};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc::unbounded_channel;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::chat::recalled;
use super::{Shared, body, first_event, off_thread, parse, path};
use crate::conversation::Owner;
use crate::engine::{Event, Recalled, Task};
use crate::error::ApiError;
use crate::saved::SessionId;

/// Blocks of a list at most.
const MAX_BLOCKS: usize = 1000;
/// Blocks of a list where a request does not say.
const DEFAULT_BLOCKS: usize = 20;
/// Bytes of a pinned text at most; how many tokens fit, the session says.
const MAX_PIN_BYTES: usize = 1 << 16;
/// The longest name of a document.
const MAX_NAME_BYTES: usize = 4096;

type Name = Result<Path<String>, PathRejection>;
type Parameters = BTreeMap<String, String>;
type Queried = Result<Query<Parameters>, QueryRejection>;

fn parameters(found: Queried) -> Result<Parameters, ApiError> {
    let Query(found) =
        found.map_err(|error| ApiError::malformed(error.status(), error.body_text()))?;
    Ok(found)
}

fn id(owner: Owner, name: Name) -> Result<SessionId, ApiError> {
    Ok(SessionId { owner, name: path(name)? })
}

/// A number that a query has, or its default.
fn number(parameters: &Parameters, name: &'static str, default: usize) -> Result<usize, ApiError> {
    match parameters.get(name) {
        None => Ok(default),
        Some(text) => {
            text.parse().map_err(|_| ApiError::invalid(name, format!("{name} is not a number")))
        }
    }
}

pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    Extension(owner): Extension<Owner>,
) -> Result<Json<Value>, ApiError> {
    let sessions = shared.engine.ask(move |streams| streams.sessions(&owner)).await?;
    let object = |(name, is_active)| json!({"id": name, "object": "session", "active": is_active});
    let data: Vec<Value> = sessions.into_iter().map(object).collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    Extension(owner): Extension<Owner>,
    name: Name,
) -> Result<Json<Value>, ApiError> {
    let id = id(owner, name)?;
    let shown = shared.engine.ask(move |streams| {
        let is_active = streams.is_active(&id);
        let mut shown = streams.look(&id, |session| Ok(session_object(session)))?;
        (shown["id"], shown["active"]) = (id.name.into(), is_active.into());
        Ok(shown)
    });
    Ok(Json(shown.await?))
}

/// What a session is, and what its cache holds.
fn session_object(session: &Session) -> Value {
    let (sections, config, evicted) = (session.sections(), session.config(), session.evicted());
    let n_window = session.n_tokens().saturating_sub(evicted.end.0);
    let stats = session.memory().map(|memory| memory.stats());
    let blocks = session.last_recall().map(|recall| recall.blocks.iter().map(Recalled::from));
    let blocks: Vec<Recalled> = blocks.into_iter().flatten().collect();
    json!({
        "object": "session",
        "n_tokens": session.n_tokens(),
        "evicted": [evicted.start.0, evicted.end.0],
        "sections": {
            "sinks": sections.sinks,
            "clusters": sections.clusters,
            "recalled": sections.recalled,
            "window": sections.window,
            "hidden": n_window.saturating_sub(sections.window as u64),
        },
        "capacity": {
            "sinks": config.n_sink,
            "clusters": config.n_clusters(),
            "recalled": config.context_tokens,
            "window": config.window_tokens,
        },
        "memory": stats.map(|s| {
            json!({"blocks": s.n_blocks, "tokens": s.n_tokens, "bytes": s.kv_bytes})
        }),
        "recalled": recalled(&blocks),
        "pins": session.pins(),
    })
}

pub(super) async fn delete(
    State(shared): State<Arc<Shared>>,
    Extension(owner): Extension<Owner>,
    name: Name,
) -> Result<Json<Value>, ApiError> {
    let id = id(owner, name)?;
    let name = id.name.clone();
    let deleted = shared.engine.ask(move |streams| {
        streams.check_idle(&id)?;
        streams.saved.delete(&id)
    });
    deleted.await?;
    Ok(Json(json!({"id": name, "object": "session", "deleted": true})))
}

/// Blocks near to a `query`, nearest first, or those from token `from` on in the order of the
/// stream.
pub(super) async fn memory(
    State(shared): State<Arc<Shared>>,
    Extension(owner): Extension<Owner>,
    name: Name,
    queried: Queried,
) -> Result<Json<Value>, ApiError> {
    let (id, parameters) = (id(owner, name)?, parameters(queried)?);
    let limit = number(&parameters, "limit", DEFAULT_BLOCKS)?.min(MAX_BLOCKS);
    let from = number(&parameters, "from", 0)?;
    let query = parameters.get("query").cloned().filter(|query| !query.trim().is_empty());
    let blocks = shared.engine.ask(move |streams| {
        streams.look(&id, |session| match query {
            Some(query) => {
                let found = session.search(&query, limit)?;
                let block = |found: &everstream_runtime::memory::Found| {
                    let mut block = block_object(&found.meta, &found.text.text);
                    block["distance"] = found.distance.into();
                    block
                };
                Ok(found.iter().map(block).collect())
            }
            None => blocks_from(session, TokenPos(from as u64), limit),
        })
    });
    let blocks: Vec<Value> = blocks.await?;
    Ok(Json(json!({"object": "list", "data": blocks})))
}

fn blocks_from(session: &Session, from: TokenPos, limit: usize) -> Result<Vec<Value>, ApiError> {
    let Some(memory) = session.memory() else { return Ok(Vec::new()) };
    let is_wanted = |meta: &BlockMeta| !meta.is_forgotten && meta.range.end > from;
    let wanted = memory.metas().iter().enumerate().filter(|(_, meta)| is_wanted(meta));
    let mut blocks = Vec::new();
    for (order, meta) in wanted.take(limit) {
        match memory.text(order) {
            Ok(text) => blocks.push(block_object(meta, &text.text)),
            Err(everstream_runtime::memory::MemoryError::Store(StoreError::Damaged { .. })) => {}
            Err(error) => return Err(SessionError::from(error).into()),
        }
    }
    Ok(blocks)
}

fn block_object(meta: &BlockMeta, text: &str) -> Value {
    let source = meta.source.as_ref().map(|s| json!({"file": &*s.file, "line": s.line}));
    json!({
        "id": meta.id.to_string(),
        "object": "block",
        "range": [meta.range.start.0, meta.range.end.0],
        "role": meta.role.as_str(),
        "source": source,
        "written_at": seconds(meta.written_at),
        "text": text,
    })
}

/// Seconds since 1970.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// Forgets what has tokens from `from` up to `to`.
pub(super) async fn forget(
    State(shared): State<Arc<Shared>>,
    Extension(owner): Extension<Owner>,
    name: Name,
    queried: Queried,
) -> Result<Json<Value>, ApiError> {
    let (id, parameters) = (id(owner, name)?, parameters(queried)?);
    for name in ["from", "to"] {
        if !parameters.contains_key(name) {
            return Err(ApiError::invalid(name, "say which tokens: ?from=A&to=B"));
        }
    }
    let position = |name| number(&parameters, name, 0).map(|n| TokenPos(n as u64));
    let range = position("from")?..position("to")?;
    if range.start >= range.end {
        return Err(ApiError::invalid("to", "to must be greater than from"));
    }
    let forgotten = shared
        .engine
        .ask(move |streams| streams.change(&id, |session| Ok(session.forget(&range)?)));
    let forgotten = forgotten.await?;
    let ranges: Vec<[u64; 2]> = forgotten.iter().map(|r| [r.start.0, r.end.0]).collect();
    Ok(Json(json!({"object": "forgotten", "ranges": ranges})))
}

#[derive(Debug, Deserialize)]
struct PinRequest {
    text: String,
}

/// Puts a text into every recall.
pub(super) async fn pin(
    State(shared): State<Arc<Shared>>,
    Extension(owner): Extension<Owner>,
    name: Name,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, ApiError> {
    let id = id(owner, name)?;
    let request: PinRequest = parse(&headers, body)?;
    if request.text.len() > MAX_PIN_BYTES {
        return Err(ApiError::invalid(
            "text",
            "a pinned text must fit half of the recalled context",
        ));
    }
    let pins = shared.engine.ask(move |streams| {
        streams.change(&id, |session| {
            session.pin(&request.text)?;
            Ok(session.pins().to_vec())
        })
    });
    Ok(Json(json!({"pins": pins.await?})))
}

/// Takes a pinned text back.
pub(super) async fn unpin(
    State(shared): State<Arc<Shared>>,
    Extension(owner): Extension<Owner>,
    found: Result<Path<(String, usize)>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let (name, number) = path(found)?;
    let id = SessionId { owner, name };
    let pins = shared.engine.ask(move |streams| {
        streams.change(&id, |session| match session.unpin(number)? {
            Some(_) => Ok(session.pins().to_vec()),
            None => Err(ApiError::not_found(format!("there is no pinned text {number}"))),
        })
    });
    Ok(Json(json!({"pins": pins.await?})))
}

/// Reads a document, and tells in lines how far it is. What was read of the same document before is
/// not read again.
pub(super) async fn ingest(
    State(shared): State<Arc<Shared>>,
    Extension(owner): Extension<Owner>,
    name: Name,
    queried: Queried,
    headers: HeaderMap,
    found: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let (id, parameters) = (id(owner, name)?, parameters(queried)?);
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if !content_type.is_some_and(|ty| ty.starts_with("text/")) {
        let message = "the body must be text, with Content-Type: text/markdown or another of text/";
        return Err(ApiError::malformed(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let file = parameters.get("name").cloned().unwrap_or_else(|| "document".to_owned());
    if file.is_empty() || file.len() > MAX_NAME_BYTES {
        let message = format!("a document's name has 1 to {MAX_NAME_BYTES} bytes");
        return Err(ApiError::invalid("name", message));
    }
    let text = String::from_utf8(body(found)?.into()).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        ApiError::malformed(StatusCode::BAD_REQUEST, format!("the text is not UTF-8 (byte {at})"))
    })?;
    if text.trim().is_empty() {
        return Err(ApiError::malformed(StatusCode::BAD_REQUEST, "the document is empty"));
    }
    let model = Arc::clone(&shared.engine.model);
    let document = off_thread(move || Ok(Ingest::new(&model, &text, Origin::file(&file))?));
    let task = Task::Document { id, document: document.await? };
    let mut events = shared.submit(task, GenerateOptions::default(), None)?;
    // What is wrong from the start has a status of its own.
    first_event(&mut events).await?;
    let (sender, lines) = unbounded_channel();
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = sender.closed() => return,
            };
            let Some(event) = event else { return };
            let value = match event {
                Event::Read { n_read, n_tokens } => json!({"n_read": n_read, "n_tokens": n_tokens}),
                Event::DocumentEnded(end) => json!({
                    "n_read": end.n_tokens, "n_tokens": end.n_tokens, "n_known": end.n_known,
                    "n_stream": end.n_stream, "done": true,
                }),
                Event::Failed(error) => error.body(),
                Event::Accepted | Event::Begun(_) | Event::Text(_) | Event::Ended(_) => continue,
            };
            let line = Ok::<_, std::convert::Infallible>(format!("{value}\n"));
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let body = Body::from_stream(UnboundedReceiverStream::new(lines));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}
