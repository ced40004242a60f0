//! Who may ask, and whose things are whose.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest, Sha256};

use super::{Shared, refuse};
use crate::conversation::Owner;
use crate::error::ApiError;

/// The keys that open a server, of which it knows no more than their SHA-256. Keys are long and
/// random, so that nothing slower is needed.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    keys: Vec<(Owner, [u8; 32])>,
}

impl Keys {
    /// No key: everybody is let in.
    #[must_use]
    pub fn open() -> Self {
        Self::default()
    }

    /// One key, whose owner has no name.
    #[must_use]
    pub fn one(key: &str) -> Self {
        Self { keys: vec![(Owner::from(""), digest(key))] }
    }

    /// Keys by the names of their owners, who see nothing of each other.
    #[must_use]
    pub fn named(keys: impl IntoIterator<Item = (String, [u8; 32])>) -> Self {
        Self { keys: keys.into_iter().map(|(name, key)| (name.into(), key)).collect() }
    }

    /// Whether everybody is let in.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whose key this is. All are compared, each in a time that depends on nothing.
    fn owner(&self, key: &str) -> Option<Owner> {
        let given = digest(key);
        let is_same = |known: &[u8; 32]| {
            known.iter().zip(given).fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
        };
        let found = |found: Option<Owner>, (owner, known): &(Owner, [u8; 32])| {
            let is_it = is_same(known);
            found.or(is_it.then(|| Arc::clone(owner)))
        };
        self.keys.iter().fold(None, found)
    }
}

/// What a server keeps of a key.
#[must_use]
pub fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// Lets those in who have a key, and says whose it is.
pub(super) async fn authorize(
    State(shared): State<Arc<Shared>>,
    mut request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    if !is_own_origin(headers) {
        let message = "pages of other sites may not ask this server";
        return refuse(request.uri(), ApiError::malformed(StatusCode::FORBIDDEN, message));
    }
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.split_once(' '));
    let given = given
        .and_then(|(scheme, key)| scheme.eq_ignore_ascii_case("bearer").then(|| key.trim_start()));
    let owner = match (shared.config.keys.is_open(), given) {
        // Without a key, a page whose name its owner has pointed here could ask and read.
        (true, _) if !is_own_name(headers) => {
            let message =
                "without an API key this server answers to localhost and to IP addresses only";
            return refuse(request.uri(), ApiError::malformed(StatusCode::FORBIDDEN, message));
        }
        (true, _) => Some(Owner::from("")),
        (false, given) => given.and_then(|given| shared.config.keys.owner(given)),
    };
    match owner {
        Some(owner) => {
            request.extensions_mut().insert(owner);
            next.run(request).await
        }
        None => refuse(request.uri(), ApiError::unauthorized()),
    }
}

/// Whether a request is of no page, or of this server's own. A browser says whose page asks whenever it
/// asks for more than to read; so pages of other sites change nothing here, whatever content type
/// they send.
fn is_own_origin(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or(""));
    match (text(header::ORIGIN), text(header::HOST)) {
        (None, _) => true,
        (Some(origin), Some(host)) => {
            origin.split_once("://").is_some_and(|(_, authority)| authority == host)
        }
        (Some(_), None) => false,
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
