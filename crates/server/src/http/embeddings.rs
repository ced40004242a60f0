//! OpenAI's embeddings, by the sentence encoder that the memory uses.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::HeaderMap;
use base64::Engine as _;
use everstream_runtime::model::SpecialTokens;
use serde::Deserialize;
use serde_json::{Value, json};

use super::sampling::OneOrMany;
use super::{Shared, off_thread, parse};
use crate::error::ApiError;

/// The encoder's name in requests and responses.
pub(super) const MODEL: &str = "all-MiniLM-L6-v2";
/// Texts of a request at most, as OpenAI has it.
const MAX_TEXTS: usize = 2048;
/// Texts that are encoded at once, so that a request that is given up is not computed to its end.
const BATCH: usize = 32;

/// The body of `POST /v1/embeddings`.
#[derive(Debug, Deserialize)]
struct EmbeddingRequest {
    /// Any name: there is one encoder.
    #[serde(rename = "model")]
    _model: Option<String>,
    input: OneOrMany,
    encoding_format: Option<String>,
    dimensions: Option<usize>,
}

pub(super) async fn embeddings(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, ApiError> {
    let request: EmbeddingRequest = parse(&headers, body)?;
    let Some(encoder) = shared.engine.encoder.clone() else {
        return Err(ApiError::not_found("this server runs without a sentence encoder"));
    };
    if request.dimensions.is_some_and(|n| n != encoder.dim()) {
        let message = format!("an embedding has {} components: leave it out", encoder.dim());
        return Err(ApiError::invalid("dimensions", message));
    }
    let is_base64 = match request.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(ApiError::invalid("encoding_format", "use float or base64")),
    };
    let texts = request.input.texts();
    if texts.is_empty() || texts.len() > MAX_TEXTS {
        let message = format!("there must be a text, and may be {MAX_TEXTS}");
        return Err(ApiError::invalid("input", message));
    }
    if texts.iter().any(|text| text.trim().is_empty()) {
        return Err(ApiError::invalid("input", "an empty text has no meaning"));
    }
    let mut data = Vec::new();
    for batch in texts.chunks(BATCH) {
        let place = Arc::clone(&shared.encoding).acquire_owned().await;
        let place = place.map_err(|_| ApiError::stopped())?;
        let (encoder, batch) = (Arc::clone(&encoder), batch.to_vec());
        let vectors = off_thread(move || {
            let texts: Vec<&str> = batch.iter().map(String::as_str).collect();
            let vectors = encoder.embed(&texts).map_err(|error| ApiError::internal(&error));
            drop(place);
            vectors
        });
        for vector in vectors.await? {
            let embedding = match is_base64 {
                true => base64(&vector).into(),
                false => json!(vector),
            };
            data.push(json!({"object": "embedding", "index": data.len(), "embedding": embedding}));
        }
    }
    // The encoder has tokens of its own; those of the language model stand for them.
    let model = Arc::clone(&shared.engine.model);
    let n_tokens = off_thread(move || {
        let n_tokens = |text: &String| model.tokenizer().encode(text, SpecialTokens::AsText).len();
        Ok(texts.iter().map(n_tokens).sum::<usize>())
    });
    let n_tokens = n_tokens.await?;
    Ok(Json(json!({
        "object": "list",
        "data": data,
        "model": MODEL,
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    })))
}

/// Components as little-endian f32, in base64.
fn base64(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
