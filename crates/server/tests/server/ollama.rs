//! The paths of ollama.

use serde_json::{Value, json};

use crate::harness::{Server, TURNS, engine, user};

fn lines(server: &Server, path: &str, body: &Value) -> Vec<Value> {
    // Their clients send no content type.
    let head = format!("POST {path} HTTP/1.1");
    let (status, _, text) = server.request(&head, body.to_string().as_bytes());
    assert_eq!(status, 200, "{text}");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn conversations_and_texts_are_answered_line_by_line() {
    let server = Server::start(engine(2, 4), None);
    let expected = server.answer(&json!([user(TURNS[0])]));
    let body = json!({"model": "tiny:latest", "messages": [user(TURNS[0])]});
    let parts = lines(&server, "/api/chat", &body);
    let text: String =
        parts.iter().filter_map(|part| part["message"]["content"].as_str()).collect();
    assert_eq!(text, expected);
    let last = parts.last().unwrap();
    assert_eq!(last["done"], true);
    assert!(last["eval_count"].as_u64().unwrap() > 0 && last["eval_duration"].is_u64());
    assert!(parts[..parts.len() - 1].iter().all(|part| part["done"] == false));

    let body = json!({"model": "tiny", "prompt": TURNS[0], "stream": false});
    let whole = lines(&server, "/api/generate", &body);
    assert_eq!(whole.len(), 1);
    assert_eq!((&whole[0]["response"], &whole[0]["done"]), (&json!(expected), &json!(true)));
    let options = json!({"num_predict": 3, "temperature": 0});
    let body = json!({"model": "tiny", "prompt": TURNS[0], "stream": false, "options": options});
    assert_eq!(lines(&server, "/api/generate", &body)[0]["eval_count"], 3);
    let body = json!({"model": "tiny", "prompt": "The old", "raw": true, "stream": false});
    let expected = server.get(
        "POST",
        "/v1/completions",
        Some(&json!({"prompt": "The old", "max_tokens": 24})),
    );
    assert_eq!(
        lines(&server, "/api/generate", &body)[0]["response"],
        expected["choices"][0]["text"]
    );
    assert_eq!(
        lines(&server, "/api/generate", &json!({"model": "tiny"}))[0]["done_reason"],
        "load"
    );
}

#[test]
fn an_answer_can_be_asked_for_in_json() {
    let server = Server::start(engine(2, 4), None);
    let schema = json!({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
        "additionalProperties": false});
    let body = json!({
        "model": "tiny", "prompt": TURNS[0], "stream": false, "format": schema,
        "options": {"num_predict": 100},
    });
    let text = lines(&server, "/api/generate", &body)[0]["response"].as_str().unwrap().to_owned();
    assert!(serde_json::from_str::<Value>(&text).unwrap()["a"].is_boolean(), "{text}");
}

#[test]
fn models_are_named_and_errors_are_words() {
    let server = Server::start(engine(1, 2), None);
    assert_eq!(server.get("GET", "/api/tags", None)["models"][0]["name"], "tiny");
    let shown = server.get("POST", "/api/show", Some(&json!({"model": "tiny"})));
    assert_eq!(shown["model_info"]["general.architecture"], "llama");
    assert!(server.get("GET", "/api/version", None)["version"].is_string());
    for (path, body, status) in [
        ("/api/chat", json!({"model": "other", "messages": [user("Hi")]}), 404),
        ("/api/chat", json!({"model": "tiny", "messages": []}), 400),
        ("/api/chat", json!({"model": "tiny", "messages": [user("Hi")], "format": "xml"}), 400),
        ("/api/generate", json!({"model": "tiny", "prompt": "a", "images": ["x"]}), 400),
        ("/api/show", json!({"model": "other"}), 404),
        ("/api/generate", json!({}), 400),
    ] {
        let (found, body) = server.ask("POST", path, Some(&body));
        assert!(found == status && body["error"].is_string(), "{path}: {found} {body}");
    }
}
