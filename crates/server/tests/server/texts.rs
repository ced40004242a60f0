//! Texts that go on, embeddings, tokens, metrics, and the page.

use serde_json::{Value, json};

use crate::harness::{Server, engine, model, user};

#[test]
fn a_completion_is_what_the_library_generates() {
    use everstream_runtime::memory::{HashEmbedder, Role};
    use everstream_runtime::{GenerateOptions, Origin, Session};
    let server = Server::start(engine(2, 8), None);
    // Long enough that its begin has left the window, and is recalled for its end.
    let text = "The old boat went to the mill. Captain Vasquez hid the compass. ".repeat(20);
    for text in ["The old boat", &text] {
        let encoder = Some(std::sync::Arc::new(HashEmbedder) as _);
        let mut session = Session::new(model(), encoder, crate::harness::session_config()).unwrap();
        let tokens = session.encode(text).unwrap();
        session.read_prompt(&tokens, Origin::turn(Role::Document)).unwrap();
        let options = GenerateOptions { max_tokens: 12, ..Default::default() };
        let expected =
            session.generate(&options, &mut |_| std::ops::ControlFlow::Continue(())).unwrap().text;
        let body = json!({"prompt": text, "max_tokens": 12});
        let answer = server.get("POST", "/v1/completions", Some(&body));
        assert_eq!(answer["choices"][0]["text"], expected);
        assert_eq!(answer["object"], "text_completion");
        let body = json!({"prompt": tokens, "max_tokens": 12});
        let answer = server.get("POST", "/v1/completions", Some(&body));
        assert_eq!(answer["choices"][0]["text"], expected);
    }
}

/// What lm-evaluation-harness asks for: how likely a text was, token by token.
#[test]
fn an_echo_says_how_likely_each_token_was() {
    let server = Server::start(engine(2, 8), None);
    let tokens: Vec<u32> = (40..60).collect();
    let body = json!({
        "prompt": [tokens, [50, 51]], "max_tokens": 1, "logprobs": 1, "echo": true, "temperature": 0
    });
    let answer = server.get("POST", "/v1/completions", Some(&body));
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 2);
    let of = &choices[0]["logprobs"];
    let log_probs = of["token_logprobs"].as_array().unwrap();
    assert_eq!(log_probs.len(), tokens.len() + 1);
    assert_eq!(log_probs[0], Value::Null);
    // The same, computed by the library.
    let mut score = 0.0;
    let config = crate::harness::session_config();
    let encoder = Some(std::sync::Arc::new(everstream_runtime::memory::HashEmbedder) as _);
    let mut session = everstream_runtime::Session::new(model(), encoder, config).unwrap();
    let origin = everstream_runtime::Origin::turn(everstream_runtime::memory::Role::Document);
    let mut next = tokens.iter().skip(1);
    session
        .append_observed(&tokens, origin, &mut |_, logits| {
            if let Some(&next) = next.next() {
                score += everstream_runtime::TokenLogProb::new(logits, next, 0).log_prob;
            }
        })
        .unwrap();
    let told: f64 = log_probs[1..tokens.len()].iter().map(|x| x.as_f64().unwrap()).sum();
    assert!((told - score).abs() < 1e-9, "{told} {score}");
    for (log_prob, top) in log_probs.iter().zip(of["top_logprobs"].as_array().unwrap()).skip(1) {
        let best = top.as_object().unwrap().values().next().unwrap().as_f64().unwrap();
        assert!(log_prob.as_f64().unwrap() <= best);
    }
}

/// The parts of a stream tell together what the whole answer tells.
#[test]
fn a_streamed_completion_is_the_same_completion() {
    let server = Server::start(engine(2, 8), None);
    let mut body = json!({"prompt": "The old boat", "max_tokens": 20, "logprobs": 2, "echo": true});
    let whole = server.get("POST", "/v1/completions", Some(&body))["choices"][0].clone();
    body["stream"] = true.into();
    let head = "POST /v1/completions HTTP/1.1\r\nContent-Type: application/json";
    let (status, _, text) = server.request(head, body.to_string().as_bytes());
    assert_eq!(status, 200, "{text}");
    let parts: Vec<Value> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: ").filter(|data| *data != "[DONE]"))
        .map(|data| serde_json::from_str::<Value>(data).unwrap()["choices"][0].clone())
        .collect();
    let text: String = parts.iter().filter_map(|part| part["text"].as_str()).collect();
    assert_eq!(text, whole["text"]);
    for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let of = |part: &Value| part["logprobs"][key].as_array().cloned().unwrap_or_default();
        let told: Vec<Value> = parts.iter().flat_map(of).collect();
        assert_eq!(json!(told), whole["logprobs"][key], "{key}");
    }
}

#[test]
fn completions_that_cannot_be_are_refused() {
    let server = Server::start(engine(1, 80), None);
    for (body, word) in [
        (json!({"prompt": ""}), "nothing to go on"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": [99_999_999]}), "below"),
        (json!({"prompt": "a", "suffix": "b"}), "suffix"),
        (json!({"prompt": "a", "session": "work"}), "chat"),
        (json!({"prompt": -1}), "lists of tokens"),
        (json!({"prompt": vec![5; 40_000], "echo": true, "logprobs": 0}), "32768"),
        (json!({"prompt": "a", "best_of": 2}), "best_of"),
        (json!({"prompt": "a", "logprobs": 99}), "20"),
        (json!({"prompt": ["a", "b"], "stream": true}), "one prompt"),
        (json!({"prompt": vec!["a"; 65]}), "64"),
        (json!({}), "prompt"),
    ] {
        let (status, answer) = server.ask("POST", "/v1/completions", Some(&body));
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(status == 400 && message.contains(word), "{status} {answer}");
    }
}

#[test]
fn embeddings_are_those_of_the_encoder() {
    use everstream_runtime::memory::{Embedder, HashEmbedder};
    let server = Server::start(engine(1, 8), None);
    let texts = ["the boat", "the mill on the hill"];
    let expected = HashEmbedder.embed(&texts).unwrap();
    let body = json!({"model": "any", "input": texts});
    let answer = server.get("POST", "/v1/embeddings", Some(&body));
    for (i, expected) in expected.iter().enumerate() {
        let vector: Vec<f32> =
            serde_json::from_value(answer["data"][i]["embedding"].clone()).unwrap();
        assert_eq!(&vector, expected);
        assert_eq!(answer["data"][i]["index"], i);
    }
    let body = json!({"input": texts[0], "encoding_format": "base64"});
    let answer = server.get("POST", "/v1/embeddings", Some(&body));
    let text = answer["data"][0]["embedding"].as_str().unwrap();
    let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).unwrap();
    let vector: Vec<f32> =
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert_eq!(vector, expected[0]);
    for body in [
        json!({"input": []}),
        json!({"input": " "}),
        json!({"input": "a", "encoding_format": "hex"}),
        json!({"input": "a", "dimensions": 7}),
        json!({"input": [1, 2]}),
    ] {
        assert_eq!(server.ask("POST", "/v1/embeddings", Some(&body)).0, 400, "{body}");
    }
}

#[test]
fn text_becomes_tokens_and_text_again() {
    let server = Server::start(engine(1, 8), None);
    let text = "The boat, the mill — and a line\nmore.";
    let tokens = server.get("POST", "/tokenize", Some(&json!({"content": text})));
    let back = server.get("POST", "/detokenize", Some(&tokens));
    assert_eq!(back["content"], text);
    let wrong = json!({"tokens": [99_999_999]});
    assert_eq!(server.ask("POST", "/detokenize", Some(&wrong)).0, 400);
}

#[test]
fn what_happens_is_counted() {
    let server = Server::start(engine(1, 8), None);
    server.answer(&json!([user("Hi")]));
    // The engine has answered this when it has ended that.
    assert_eq!(server.get("GET", "/ready", None)["status"], "ready");
    let (status, headers, text) = server.request("GET /metrics HTTP/1.1", b"");
    assert_eq!(status, 200);
    assert!(headers.iter().any(|header| header.contains("openmetrics-text")));
    let has = |line: &str| assert!(text.lines().any(|l| l.starts_with(line)), "{line}: {text}");
    has("everstream_requests_total{path=\"/v1/chat/completions\",status=\"200\"} 1");
    has("everstream_resting_conversations 1");
    has("everstream_time_to_begin_seconds_count 1");
    let tokens = text.lines().find(|l| l.starts_with("everstream_generated_tokens_total")).unwrap();
    assert!(tokens.split(' ').nth(1).unwrap().parse::<u64>().unwrap() > 0);
}

#[test]
fn the_page_loads_nothing_from_elsewhere() {
    let server = Server::start(engine(1, 8), Some("secret"));
    for (path, content_type) in [
        ("/", "text/html; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/page.css", "text/css; charset=utf-8"),
    ] {
        // It asks for the key itself.
        let (status, headers, text) = server.request(&format!("GET {path} HTTP/1.1"), b"");
        assert_eq!(status, 200, "{path}");
        let headers = headers.join("\n").to_lowercase();
        assert!(headers.contains(&format!("content-type: {content_type}")), "{headers}");
        assert!(headers.contains("content-security-policy: default-src 'self'"), "{headers}");
        let outside = |text: &str| text.contains("http://") || text.contains("https://");
        // But for the name of a namespace.
        let text = text.replace("http://www.w3.org/2000/svg", "");
        assert!(!outside(&text), "{path}");
        assert!(!text.contains("innerHTML"));
    }
}
