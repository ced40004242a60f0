//! A real server on loopback, with a tiny model, and a plain HTTP client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use everstream_runtime::memory::{BlockSizes, Gate, HashEmbedder, Keep, Neighbours};
use everstream_runtime::model::{Model, ModelOptions};
use everstream_runtime::{RecallConfig, SamplerConfig, SessionConfig};
use everstream_server::{Engine, EngineConfig, Keys, SavedConfig, ServerConfig, serve};
use serde_json::{Value, json};

pub(crate) const CHAT: &str =
    "POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json";
pub(crate) const TURNS: [&str; 4] = [
    "The red boat went to the mill on the first day, and the old boat stayed.",
    "Captain Vasquez hid the emerald compass under the floorboards of the blue boat.",
    "On the third day the slow boat went to the far shore, and then to the sea.",
    "Where is the emerald compass?",
];

pub(crate) fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

pub(crate) fn model() -> Arc<Model> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/tiny-llama.gguf");
    let options = ModelOptions { n_threads: NonZeroUsize::MIN, ..Default::default() };
    Arc::new(Model::open(&path, options).unwrap())
}

pub(crate) fn session_config() -> SessionConfig {
    SessionConfig {
        window_tokens: 96,
        context_tokens: 64,
        chunk_tokens: 32,
        recall: RecallConfig {
            gate: Gate::OPEN,
            sizes: BlockSizes::new(8, 24, 40).unwrap(),
            max_blocks: 4,
            neighbours: Neighbours::NONE,
            ..Default::default()
        },
        ..Default::default()
    }
}

/// An engine that keeps no sessions.
pub(crate) fn engine(max_active: usize, max_waiting: usize) -> (Engine, JoinHandle<()>) {
    start_engine(max_active, max_waiting, None)
}

/// An engine whose sessions live in a folder, two of them in memory.
pub(crate) fn saving_engine(data_dir: &Path) -> (Engine, JoinHandle<()>) {
    let saved = SavedConfig {
        data_dir: data_dir.to_owned(),
        max_bytes: 1 << 30,
        keep: Keep::Newest,
        max_sessions: at_least_one(4),
        max_open: at_least_one(2),
    };
    start_engine(2, 8, Some(saved))
}

fn at_least_one(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap()
}

fn start_engine(
    max_active: usize,
    max_waiting: usize,
    saved: Option<SavedConfig>,
) -> (Engine, JoinHandle<()>) {
    let config = EngineConfig {
        session: session_config(),
        sampler: SamplerConfig::default(),
        max_tokens: 24,
        max_answer: 500,
        max_resting: at_least_one(4),
        max_resting_bytes: u64::MAX,
        max_active: at_least_one(max_active),
        max_waiting: at_least_one(max_waiting),
        saved,
    };
    Engine::start(model(), Some(Arc::new(HashEmbedder)), config).unwrap()
}

/// A server that ends with the test.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    /// Goes with each request.
    pub(crate) key: Option<String>,
    runtime: tokio::runtime::Runtime,
    engine: JoinHandle<()>,
}

impl Server {
    pub(crate) fn start(engine: (Engine, JoinHandle<()>), api_key: Option<&str>) -> Self {
        Self::with_keys(engine, api_key.map_or_else(Keys::open, Keys::one))
    }

    pub(crate) fn with_keys((engine, thread): (Engine, JoinHandle<()>), keys: Keys) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let addr = listener.local_addr().unwrap();
        let config = ServerConfig { model: "tiny".to_owned(), keys };
        runtime.spawn(serve(listener, engine, config, std::future::pending()));
        Self { addr, key: None, runtime, engine: thread }
    }

    /// Drops whoever still asks, and waits until all is saved.
    pub(crate) fn stop(self) {
        drop(self.runtime);
        self.engine.join().unwrap();
    }

    /// Sends raw bytes, as one request that asks for the connection to be closed.
    pub(crate) fn send(&self, head: &str, body: &[u8]) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(self.addr).unwrap();
        let key = self.key.as_ref().map(|key| format!("\r\nAuthorization: Bearer {key}"));
        let head = format!(
            "{head}{}\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            key.unwrap_or_default(),
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        BufReader::new(stream)
    }

    pub(crate) fn request(&self, head: &str, body: &[u8]) -> (u16, Vec<String>, String) {
        let mut reader = self.send(head, body);
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            match line.trim_end() {
                "" => break,
                line => headers.push(line.to_owned()),
            }
        }
        let status = headers[0].split(' ').nth(1).unwrap().parse().unwrap();
        let is_chunked = headers.iter().any(|h| h.to_lowercase() == "transfer-encoding: chunked");
        let mut body = Vec::new();
        match is_chunked {
            true => while read_chunk(&mut reader, &mut body) {},
            false => drop(reader.read_to_end(&mut body).unwrap()),
        }
        (status, headers, String::from_utf8(body).unwrap())
    }

    pub(crate) fn post(&self, body: &Value) -> (u16, Value) {
        self.ask("POST", "/v1/chat/completions", Some(body))
    }

    /// Asks for JSON, with JSON if there is a body.
    pub(crate) fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let head = format!("{method} {path} HTTP/1.1\r\nContent-Type: application/json");
        let body = body.map(Value::to_string).unwrap_or_default();
        let (status, _, body) = self.request(&head, body.as_bytes());
        (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}")))
    }

    /// The body of an answer that must succeed.
    pub(crate) fn get(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let (status, body) = self.ask(method, path, body);
        assert_eq!(status, 200, "{method} {path}: {body}");
        body
    }

    pub(crate) fn answer(&self, messages: &Value) -> String {
        let (status, body) = self.post(&json!({"model": "tiny", "messages": messages}));
        assert_eq!(status, 200, "{body}");
        body["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    }

    /// The events of a streamed answer, without the last, which is `[DONE]`.
    pub(crate) fn events(&self, mut body: Value) -> Vec<Value> {
        body["stream"] = true.into();
        let (status, headers, text) = self.request(CHAT, body.to_string().as_bytes());
        assert_eq!(status, 200, "{text}");
        assert!(headers.iter().any(|h| h.to_lowercase() == "content-type: text/event-stream"));
        let mut events: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("data: ")).collect();
        assert_eq!(events.pop(), Some("[DONE]"));
        events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }
}

/// Reads one chunk of a body that is sent in pieces; returns whether there may be more.
fn read_chunk(reader: &mut BufReader<TcpStream>, body: &mut Vec<u8>) -> bool {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let n = usize::from_str_radix(line.trim(), 16).unwrap();
    let start = body.len();
    body.resize(start + n, 0);
    reader.read_exact(&mut body[start..]).unwrap();
    reader.read_line(&mut String::new()).unwrap();
    n > 0
}
