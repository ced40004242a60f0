//! Servers that are not there, do not answer, or answer something else.

#![expect(clippy::unwrap_used, reason = "a test stops where something unexpected happens")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use everstream_chroma::{ChromaConfig, ChromaTexts, MakeChroma};
use everstream_memory::{Distance, MakeIndex};

fn make(url: &str) -> MakeChroma {
    let config = ChromaConfig { timeout: Duration::from_millis(300), ..ChromaConfig::new(url) };
    MakeChroma {
        config,
        collection: "blocks".into(),
        distance: Distance::Cosine,
        encoder: "words".into(),
    }
}

/// What opening an index says.
fn error(url: &str) -> String {
    let error = make(url).make(2, NonZeroUsize::MIN).map(drop).unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

/// A server that answers every request with this.
fn server(status: &'static str, body: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let mut request = [0; 65_536];
            let _ = connection.read(&mut request);
            let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\n");
            let _ = write!(connection, "{head}content-length: {}\r\n\r\n{body}", body.len());
        }
    });
    url
}

#[test]
fn nobody_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = error(&url);
    assert!(error.contains(&url) && error.contains("chroma run"), "{error}");
}

#[test]
fn nobody_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let start = Instant::now();
    let error = error(&format!("http://{}", listener.local_addr().unwrap()));
    assert!(error.contains("no answer from Chroma"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn something_else_answers() {
    for body in ["", "<html>hello</html>", "[]", "{}", "{\"id\": 3}"] {
        let error = error(&server("200 OK", body));
        assert!(error.contains("did not answer as Chroma does"), "{error}");
    }
}

#[test]
fn a_collection_cannot_be_used() {
    let check = |body, expected: &str| {
        let error = error(&server("200 OK", body));
        assert!(error.contains(expected), "{error}");
    };
    check(r#"{"id": "x", "name": "blocks", "dimension": 3}"#, "vectors of 3 components");
    let l2 = r#"{"id": "x", "name": "blocks", "configuration_json": {"hnsw": {"space": "l2"}}}"#;
    check(l2, "use --distance l2");
    let other = r#"{"id": "x", "name": "blocks", "metadata": {"everstream_encoder": "bge"}}"#;
    check(other, "\"bge\"");
}

#[test]
fn the_server_says_why_not() {
    let body = "{\"error\": \"x\", \"message\": \"no\\nsuch tenant\"}";
    assert!(error(&server("401 Unauthorized", body)).contains("refused (401): no such tenant"));
    let url = server("404 Not Found", "{\"message\": \"Collection [notes] does not exist\"}");
    let config = ChromaConfig::new(&url);
    let error = ChromaTexts::open(&config, "notes", 2, Distance::Cosine, "words").unwrap_err();
    assert!(error.to_string().contains("Collection [notes] does not exist"));
}
