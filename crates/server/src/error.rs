//! What clients are told when something is wrong, in OpenAI's form.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use everstream_runtime::SessionError;
use everstream_runtime::memory::{MemoryError, StoreError};
use serde_json::json;

/// An error as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// OpenAI's `type`.
    kind: &'static str,
    /// The field of the request that is wrong, if it is one.
    param: Option<&'static str>,
    /// OpenAI's name for it, if it has one.
    code: Option<&'static str>,
    message: String,
}

impl ApiError {
    pub(crate) fn invalid(param: &'static str, message: impl Into<String>) -> Self {
        Self { param: Some(param), ..Self::malformed(StatusCode::BAD_REQUEST, message) }
    }

    /// A request that is no request at all.
    pub(crate) fn malformed(status: StatusCode, message: impl Into<String>) -> Self {
        let kind = "invalid_request_error";
        Self { status, kind, param: None, code: None, message: message.into() }
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::malformed(StatusCode::NOT_FOUND, message)
    }

    pub(crate) fn unknown_model(message: impl Into<String>) -> Self {
        let (param, code) = (Some("model"), Some("model_not_found"));
        Self { param, code, ..Self::not_found(message) }
    }

    /// Something that is in use.
    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::malformed(StatusCode::CONFLICT, message)
    }

    pub(crate) fn unauthorized() -> Self {
        let message = "this server wants an API key: Authorization: Bearer KEY";
        Self { kind: "authentication_error", ..Self::malformed(StatusCode::UNAUTHORIZED, message) }
    }

    pub(crate) fn busy() -> Self {
        let message = "all places in the queue are taken: try again in a moment";
        Self { kind: "rate_limit_error", ..Self::malformed(StatusCode::TOO_MANY_REQUESTS, message) }
    }

    pub(crate) fn stopped() -> Self {
        let message = "the server is stopping";
        Self { kind: "server_error", ..Self::malformed(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// Something that is nobody's fault who asks. What it is, with paths and all, is in the log.
    pub(crate) fn internal(error: &dyn std::error::Error) -> Self {
        tracing::error!("{}", with_causes(error));
        let message = "something is wrong at the server: its log says what";
        Self { kind: "server_error", ..Self::malformed(StatusCode::INTERNAL_SERVER_ERROR, message) }
    }

    /// What is wrong, in words.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// `{"error": {...}}`
    pub(crate) fn body(&self) -> serde_json::Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }

    /// The status and headers of an answer with another body.
    pub(crate) fn with_body(&self, body: &serde_json::Value) -> Response {
        let mut response = (self.status, Json(body)).into_response();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    message
}

impl From<SessionError> for ApiError {
    fn from(error: SessionError) -> Self {
        match &error {
            SessionError::Sampling { .. }
            | SessionError::MissingByte { .. }
            | SessionError::Template(_)
            | SessionError::Pin { .. }
            | SessionError::EmptyStream
            | SessionError::Cache(_) => {
                Self::malformed(StatusCode::BAD_REQUEST, with_causes(&error))
            }
            // What it says may quote the answer.
            SessionError::Constraint { .. } => {
                Self::invalid("response_format", "no answer can go on as the schema says")
            }
            SessionError::Store(store) | SessionError::Memory(MemoryError::Store(store)) => {
                match store {
                    StoreError::NoSession { name, .. } => {
                        Self::not_found(format!("there is no session {name:?}"))
                    }
                    StoreError::SessionName { .. } => Self::invalid("session", store.to_string()),
                    StoreError::Locked { name } => {
                        Self::conflict(format!("session {name:?} is in use by another program"))
                    }
                    StoreError::Maker { .. } => Self::conflict(store.to_string()),
                    _ => Self::internal(&error),
                }
            }
            _ => Self::internal(&error),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.with_body(&self.body())
    }
}
