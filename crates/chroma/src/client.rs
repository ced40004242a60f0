//! Six calls of Chroma's REST API.

use std::fmt;
use std::time::Duration;

use everstream_memory::Distance;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use thiserror::Error;
use ureq::http::{Method, Request};

/// A server that has not answered by then is taken for dead.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(30);
/// The longest answer that is read: more than all vectors of a page.
const MAX_ANSWER_BYTES: u64 = 256 << 20;

/// Where a server is, and as whom to talk to it.
#[derive(Clone)]
pub struct ChromaConfig {
    /// For example `http://127.0.0.1:8000`.
    pub url: String,
    /// Sent as `x-chroma-token`.
    pub token: Option<String>,
    /// The tenant.
    pub tenant: String,
    /// The database.
    pub database: String,
    /// How long to wait for an answer.
    pub timeout: Duration,
}

impl ChromaConfig {
    /// The default tenant and database of a server, without a token.
    #[must_use]
    pub fn new(url: &str) -> Self {
        Self {
            url: url.trim_end_matches('/').to_owned(),
            token: None,
            tenant: "default_tenant".to_owned(),
            database: "default_database".to_owned(),
            timeout: TIMEOUT,
        }
    }
}

impl fmt::Debug for ChromaConfig {
    /// Without the token: it is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChromaConfig")
            .field("url", &self.url)
            .field("tenant", &self.tenant)
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

/// Why a server did not do what it was asked. Each message is one line that says what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ChromaError {
    /// No answer.
    #[error(
        "no answer from Chroma at {url} ({why}): start it with `chroma run`, or check --chroma-url"
    )]
    Unreachable {
        /// The server.
        url: String,
        /// What the connection says.
        why: String,
    },
    /// The server refused.
    #[error("Chroma at {url} refused ({status}): {message}")]
    Refused {
        /// The server.
        url: String,
        /// HTTP status.
        status: u16,
        /// What it says.
        message: String,
    },
    /// An answer that cannot be understood.
    #[error(
        "{url} did not answer as Chroma does ({why}): check --chroma-url; version 2 of its API is needed"
    )]
    Nonsense {
        /// The server.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// A collection that measures otherwise.
    #[error(
        "collection {name:?} measures by {found}, not by {expected}: use --distance {found}, or another collection"
    )]
    Distance {
        /// The collection.
        name: String,
        /// Its distance.
        found: String,
        /// The one asked for.
        expected: Distance,
    },
    /// A collection of vectors of another length.
    #[error(
        "collection {name:?} holds vectors of {found} components, the sentence encoder makes {expected}: use another collection"
    )]
    Dim {
        /// The collection.
        name: String,
        /// Its dimension.
        found: usize,
        /// The one needed.
        expected: usize,
    },
    /// A collection whose vectors another encoder made.
    #[error(
        "collection {name:?} was made with the sentence encoder {found:?}: use that one, or another collection"
    )]
    Encoder {
        /// The collection.
        name: String,
        /// Who made its vectors.
        found: String,
    },
}

/// A connection to a server, in one database of one tenant.
#[derive(Clone, Debug)]
pub struct Chroma {
    agent: ureq::Agent,
    config: ChromaConfig,
    /// `…/collections`
    collections: String,
}

/// A collection of a server.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Collection {
    pub(crate) id: String,
    pub(crate) name: String,
    #[serde(default)]
    dimension: Option<usize>,
    #[serde(default)]
    metadata: Option<Value>,
    #[serde(default)]
    configuration_json: Value,
}

/// The nearest of a query, nearest first.
#[derive(Debug, Deserialize)]
struct Nearest {
    ids: Vec<Vec<String>>,
    distances: Option<Vec<Vec<Option<f32>>>>,
    documents: Option<Vec<Vec<Option<String>>>>,
    embeddings: Option<Vec<Vec<Option<Vec<f32>>>>>,
}

/// A row of [`Nearest`].
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) id: String,
    pub(crate) distance: f32,
    pub(crate) document: Option<String>,
    pub(crate) embedding: Option<Vec<f32>>,
}

/// Records of a collection.
#[derive(Debug, Deserialize)]
pub(crate) struct Records {
    pub(crate) ids: Vec<String>,
    pub(crate) embeddings: Option<Vec<Option<Vec<f32>>>>,
}

impl Chroma {
    /// Prepares a connection; nothing is sent yet.
    #[must_use]
    pub fn new(config: ChromaConfig) -> Self {
        let agent = ureq::Agent::config_builder()
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(config.timeout))
            .http_status_as_error(false)
            .build()
            .into();
        let ChromaConfig { url, tenant, database, .. } = &config;
        let (tenant, database) = (encoded(tenant), encoded(database));
        let collections = format!("{url}/api/v2/tenants/{tenant}/databases/{database}/collections");
        Self { agent, config, collections }
    }

    /// The collection of this name.
    pub(crate) fn collection(&self, name: &str) -> Result<Collection, ChromaError> {
        self.call(&format!("{}/{}", self.collections, encoded(name)), None)
    }

    /// The collection of this name, made if it is not there.
    pub(crate) fn create(
        &self,
        name: &str,
        distance: Distance,
        encoder: &str,
    ) -> Result<Collection, ChromaError> {
        let body = json!({
            "name": name,
            "get_or_create": true,
            // The server's own defaults, 100 each, miss more of the nearest.
            "configuration": { "hnsw": {
                "space": distance.as_str(),
                "ef_construction": 200,
                "ef_search": 200,
            } },
            "metadata": { "everstream_encoder": encoder },
        });
        match self.collection(name) {
            // A collection's metadata would be overwritten, and with it who made its vectors.
            Ok(collection) => Ok(collection),
            Err(ChromaError::Refused { status: 404, .. }) => {
                self.call(&self.collections, Some(&body))
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn upsert(
        &self,
        collection: &Collection,
        ids: &[String],
        embeddings: &[&[f32]],
    ) -> Result<(), ChromaError> {
        let body = json!({ "ids": ids, "embeddings": embeddings });
        self.call::<Value>(&self.path(collection, "upsert"), Some(&body)).map(drop)
    }

    pub(crate) fn delete(&self, collection: &Collection, id: &str) -> Result<(), ChromaError> {
        let body = json!({ "ids": [id] });
        self.call::<Value>(&self.path(collection, "delete"), Some(&body)).map(drop)
    }

    pub(crate) fn query(
        &self,
        collection: &Collection,
        embedding: &[f32],
        n: usize,
        include: &[&str],
    ) -> Result<Vec<Row>, ChromaError> {
        let body = json!({
            "query_embeddings": [embedding],
            "n_results": n,
            "include": include,
        });
        let found: Nearest = self.call(&self.path(collection, "query"), Some(&body))?;
        let wrong = || self.nonsense("rows and distances of a query differ in number");
        let ids = found.ids.into_iter().next().ok_or_else(wrong)?;
        let n = ids.len();
        let distances = first(found.distances, n).ok_or_else(wrong)?;
        let documents = first(found.documents, n).ok_or_else(wrong)?;
        let embeddings = first(found.embeddings, n).ok_or_else(wrong)?;
        let rows = ids.into_iter().zip(distances).zip(documents.into_iter().zip(embeddings));
        let row = |((id, distance), (document, embedding)): ((String, Option<f32>), _)| {
            // What is no number cannot be written in JSON.
            Row { id, distance: distance.unwrap_or(f32::INFINITY), document, embedding }
        };
        Ok(rows.map(row).collect())
    }

    /// Records with these ids, in any order, with their vectors.
    pub(crate) fn get(
        &self,
        collection: &Collection,
        ids: &[String],
    ) -> Result<Records, ChromaError> {
        let body = json!({ "ids": ids, "include": ["embeddings"] });
        self.call(&self.path(collection, "get"), Some(&body))
    }

    /// The ids of records `offset ..`, at most `limit` of them.
    pub(crate) fn ids(
        &self,
        collection: &Collection,
        offset: usize,
        limit: usize,
    ) -> Result<Vec<String>, ChromaError> {
        let body = json!({ "offset": offset, "limit": limit, "include": [] });
        Ok(self.call::<Records>(&self.path(collection, "get"), Some(&body))?.ids)
    }

    fn path(&self, collection: &Collection, verb: &str) -> String {
        format!("{}/{}/{verb}", self.collections, encoded(&collection.id))
    }

    /// Sends a body, or asks for what is at `url`, and reads the answer.
    fn call<T: DeserializeOwned>(&self, url: &str, body: Option<&Value>) -> Result<T, ChromaError> {
        let mut request = Request::builder().uri(url).header("content-type", "application/json");
        if let Some(token) = &self.config.token {
            request = request.header("x-chroma-token", token);
        }
        let answer = match body {
            None => request.body(()).map_err(ureq::Error::from).and_then(|r| self.agent.run(r)),
            Some(body) => {
                let request = request.method(Method::POST).body(body.to_string());
                request.map_err(ureq::Error::from).and_then(|r| self.agent.run(r))
            }
        };
        let mut answer = answer.map_err(|error| self.unreachable(&error))?;
        let status = answer.status();
        let body = answer.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_string();
        let body = body.map_err(|error| self.unreachable(&error))?;
        if !status.is_success() {
            let message = serde_json::from_str::<Value>(&body).ok();
            let message = message.as_ref().and_then(|m| m["message"].as_str()).unwrap_or(&body);
            let message = one_line(message);
            let url = self.config.url.clone();
            return Err(ChromaError::Refused { url, status: status.as_u16(), message });
        }
        serde_json::from_str(&body).map_err(|error| self.nonsense(&error.to_string()))
    }

    fn unreachable(&self, error: &ureq::Error) -> ChromaError {
        let (url, why) = (self.config.url.clone(), one_line(&error.to_string()));
        ChromaError::Unreachable { url, why }
    }

    pub(crate) fn nonsense(&self, why: &str) -> ChromaError {
        ChromaError::Nonsense { url: self.config.url.clone(), why: one_line(why) }
    }
}

impl Collection {
    /// Whether its vectors can be compared with ours.
    pub(crate) fn check(
        &self,
        dim: usize,
        distance: Option<Distance>,
        encoder: &str,
    ) -> Result<(), ChromaError> {
        let name = self.name.clone();
        let space = ["hnsw", "spann"]
            .iter()
            .find_map(|kind| self.configuration_json[*kind]["space"].as_str());
        if let (Some(found), Some(expected)) = (space, distance)
            && found != expected.as_str()
        {
            return Err(ChromaError::Distance { name, found: found.to_owned(), expected });
        }
        if let Some(found) = self.dimension.filter(|&found| found != dim) {
            return Err(ChromaError::Dim { name, found, expected: dim });
        }
        let maker = self.metadata.as_ref().and_then(|m| m["everstream_encoder"].as_str());
        if let Some(found) = maker.filter(|found| *found != encoder) {
            return Err(ChromaError::Encoder { name, found: found.to_owned() });
        }
        Ok(())
    }
}

/// The column of the first query, with a place for each of `n` rows; `None` if it has not.
fn first<T: Clone>(column: Option<Vec<Vec<Option<T>>>>, n: usize) -> Option<Vec<Option<T>>> {
    match column {
        None => Some(vec![None; n]),
        Some(column) => column.into_iter().next().filter(|column| column.len() == n),
    }
}

/// A name as a part of a path: everything but letters, digits and `-_.~` by its bytes.
fn encoded(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(byte.into());
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn one_line(text: &str) -> String {
    let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place_in_a_path() {
        assert_eq!(encoded("a-b_c.d~1"), "a-b_c.d~1");
        assert_eq!(encoded("../x?y=ü"), "..%2Fx%3Fy%3D%C3%BC");
    }

    #[test]
    fn a_token_is_not_shown() {
        let config = ChromaConfig { token: Some("secret".into()), ..ChromaConfig::new("http://h") };
        assert!(!format!("{config:?} {:?}", Chroma::new(config.clone())).contains("secret"));
    }

    #[test]
    fn long_messages_become_one_short_line() {
        let line = one_line(&"a\n b\t".repeat(300));
        assert!(line.starts_with("a b a b") && line.chars().count() == 201);
    }
}
