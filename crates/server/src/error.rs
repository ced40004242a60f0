//! What clients are told when something is wrong, in OpenAI's form.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use everstream_runtime::SessionError;
use serde_json::json;

/// An error as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// OpenAI's `type`.
    kind: &'static str,
    /// The field of the request that is wrong, if it is one.
    param: Option<&'static str>,
    message: String,
}

impl ApiError {
    pub(crate) fn invalid(param: &'static str, message: impl Into<String>) -> Self {
        let (status, kind) = (StatusCode::BAD_REQUEST, "invalid_request_error");
        Self { status, kind, param: Some(param), message: message.into() }
    }

    /// A request that is no request at all.
    pub(crate) fn malformed(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, kind: "invalid_request_error", param: None, message: message.into() }
    }

    pub(crate) fn unauthorized() -> Self {
        let message = "this server wants an API key: Authorization: Bearer KEY".to_owned();
        let (status, kind) = (StatusCode::UNAUTHORIZED, "authentication_error");
        Self { status, kind, param: None, message }
    }

    pub(crate) fn busy() -> Self {
        let message = "all places in the queue are taken: try again in a moment".to_owned();
        let (status, kind) = (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error");
        Self { status, kind, param: None, message }
    }

    pub(crate) fn stopped() -> Self {
        let message = "the server is stopping".to_owned();
        let (status, kind) = (StatusCode::SERVICE_UNAVAILABLE, "server_error");
        Self { status, kind, param: None, message }
    }

    /// `{"error": {...}}`
    pub(crate) fn body(&self) -> serde_json::Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": null,
        }})
    }
}

impl From<SessionError> for ApiError {
    fn from(error: SessionError) -> Self {
        let mut message = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        let is_request = matches!(
            error,
            SessionError::Sampling { .. }
                | SessionError::MissingByte { .. }
                | SessionError::Template(_)
                | SessionError::Cache(_)
        );
        match is_request {
            true => Self::malformed(StatusCode::BAD_REQUEST, message),
            false => {
                let (status, kind) = (StatusCode::INTERNAL_SERVER_ERROR, "server_error");
                Self { status, kind, param: None, message }
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
