//! Text as tokens, and tokens as text, in the form of llama.cpp's server.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::HeaderMap;
use everstream_runtime::encode;
use everstream_runtime::model::{Model, SpecialTokens};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Shared, off_thread, parse};
use crate::error::ApiError;

#[derive(Debug, Deserialize)]
struct TokenizeRequest {
    content: String,
    /// Whether the token that begins a stream comes first.
    add_special: Option<bool>,
    /// Whether special tokens that are spelled out are those tokens.
    parse_special: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct DetokenizeRequest {
    tokens: Vec<u32>,
}

/// The tokens of a stream that begins with a text, as the model expects it.
pub(super) fn begin_with(model: &Model, text: &str) -> Result<Vec<u32>, ApiError> {
    let mut tokens = encode(model, text)?;
    tokens.splice(0..0, model.tokenizer().first_token());
    Ok(tokens)
}

pub(super) async fn tokenize(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, ApiError> {
    let request: TokenizeRequest = parse(&headers, body)?;
    let model = Arc::clone(&shared.engine.model);
    let tokens = off_thread(move || {
        // What the vocabulary lacks is refused in either case.
        let as_text = encode(&model, &request.content)?;
        let mut tokens = match request.parse_special == Some(true) {
            true => model.tokenizer().encode(&request.content, SpecialTokens::Parse),
            false => as_text,
        };
        if request.add_special == Some(true) {
            tokens.splice(0..0, model.tokenizer().first_token());
        }
        Ok(tokens)
    });
    Ok(Json(json!({"tokens": tokens.await?})))
}

pub(super) async fn detokenize(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, ApiError> {
    let request: DetokenizeRequest = parse(&headers, body)?;
    let model = &shared.engine.model;
    let n_vocab = model.config().vocab_size;
    if request.tokens.iter().any(|&token| token as usize >= n_vocab) {
        let message = format!("tokens are numbers below {n_vocab}");
        return Err(ApiError::invalid("tokens", message));
    }
    let bytes = model.tokenizer().decode(&request.tokens);
    Ok(Json(json!({"content": String::from_utf8_lossy(&bytes)})))
}
