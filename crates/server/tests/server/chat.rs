//! Chat completions: conversations that go on, and what is refused.

use std::io::{BufRead, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use everstream_runtime::memory::HashEmbedder;
use everstream_runtime::{GenerateOptions, Session};
use serde_json::{Value, json};

use crate::harness::{CHAT, Server, TURNS, engine, model, session_config, user};

/// What the library answers to turns of one conversation.
fn expected(system: Option<&str>, turns: &[&str]) -> Vec<String> {
    let encoder = Some(Arc::new(HashEmbedder) as _);
    let mut session = Session::with_system(model(), encoder, session_config(), system).unwrap();
    let options = GenerateOptions { max_tokens: 24, ..Default::default() };
    let answer = |turn: &&str| {
        session.turn(turn).unwrap();
        session.answer(&options, &mut |_| std::ops::ControlFlow::Continue(())).unwrap().text
    };
    turns.iter().map(answer).collect()
}

#[test]
fn a_conversation_that_goes_on_equals_a_session() {
    let server = Server::start(engine(2, 4), None);
    let expected = expected(Some("Be brief."), &TURNS);
    let mut messages = vec![json!({"role": "system", "content": "Be brief."})];
    let mut known = 0;
    for (turn, expected) in TURNS.iter().zip(&expected) {
        messages.push(user(turn));
        let (status, body) = server.post(&json!({"messages": messages}));
        assert_eq!(status, 200, "{body}");
        let text = body["choices"][0]["message"]["content"].as_str().unwrap();
        assert_eq!(text, expected);
        let usage = &body["usage"];
        let n = |key: &str| usage[key].as_u64().unwrap();
        assert_eq!(n("prompt_tokens") + n("completion_tokens"), n("total_tokens"));
        // Of a conversation that goes on nothing is read again.
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        assert!(cached > known || messages.len() == 2 && cached == 0, "{usage}");
        known = cached;
        messages.push(json!({"role": "assistant", "content": text}));
    }
    // What left the window was put back for the last question.
    messages.pop();
    let (_, body) = server.post(&json!({"messages": messages}));
    let recalled = body["everstream"]["recalled"].as_array().unwrap();
    assert!(
        recalled.iter().any(|block| block["text"].as_str().unwrap().contains("compass")),
        "{body}"
    );
}

#[test]
fn an_edited_conversation_is_read_again() {
    let server = Server::start(engine(2, 4), None);
    let first = server.answer(&json!([user(TURNS[0])]));
    let edited = json!([
        user(TURNS[0]),
        {"role": "assistant", "content": format!("{first} Or so they say.")},
        user(TURNS[3]),
    ]);
    let (status, body) = server.post(&json!({"messages": edited}));
    assert_eq!(status, 200, "{body}");
    let with_edit = body["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    let (_, body) = server.post(&json!({"messages": [user("Something else.")]}));
    assert_eq!(
        body["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap(),
        with_edit
    );
}

/// The turn that was answered last can be said in other words, or be answered once more.
#[test]
fn the_last_turn_can_be_said_again() {
    let server = Server::start(engine(2, 4), None);
    let first = server.answer(&json!([user(TURNS[0])]));
    let with =
        |turn: &str| json!([user(TURNS[0]), {"role": "assistant", "content": first}, user(turn)]);
    let ask = |turn: &str| {
        let (status, body) = server.post(&json!({"messages": with(turn)}));
        assert_eq!(status, 200, "{body}");
        let cached = body["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        (cached, body["choices"][0]["message"]["content"].clone())
    };
    let (known, answer) = ask(TURNS[1]);
    assert!(known > 0);
    assert_eq!(ask(TURNS[1]), (known, answer));
    let (still_known, other) = ask(TURNS[2]);
    assert_eq!(still_known, known);
    assert_eq!(json!(expected(None, &[TURNS[0], TURNS[2]])[1]), other);
}

#[test]
fn tokens_are_told_with_their_probabilities() {
    let server = Server::start(engine(2, 4), None);
    let body =
        json!({"messages": [user("Hi")], "logprobs": true, "top_logprobs": 3, "max_tokens": 8});
    let (status, answer) = server.post(&body);
    assert_eq!(status, 200, "{answer}");
    let choice = &answer["choices"][0];
    let tokens = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(tokens.len() as u64, answer["usage"]["completion_tokens"].as_u64().unwrap());
    for token in tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        // Greedy: the token is the likeliest.
        assert_eq!((top.len(), &top[0]["logprob"]), (3, &token["logprob"]));
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
    }
    // The pieces of a stream tell the same.
    let events = server.events(body);
    let of = |event: &Value| event["choices"][0]["logprobs"]["content"].as_array().cloned();
    let streamed: Vec<Value> = events.iter().filter_map(of).flatten().collect();
    assert_eq!(&streamed, tokens);
}

/// A model of random weights, hot, writes what its schema says, or as much of it as it may.
#[test]
fn answers_follow_their_schema() {
    let server = Server::start(engine(2, 4), None);
    let schema = json!({
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "green"]},
            "count": {"type": "integer", "minimum": 0, "maximum": 9},
            "open": {"type": "boolean"},
        },
        "required": ["colour", "count", "open"],
        "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "box", "schema": schema}});
    for seed in 0..6 {
        let (status, answer) = server.post(&json!({
            "messages": [user("Hi")], "response_format": format, "max_tokens": 200,
            "temperature": 3, "seed": seed,
        }));
        assert_eq!(status, 200, "{answer}");
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "stop", "{answer}");
        let text = choice["message"]["content"].as_str().unwrap();
        let value: Value = serde_json::from_str(text).unwrap();
        let object = value.as_object().unwrap();
        assert_eq!(object.len(), 3, "{text}");
        assert!(["red", "green"].contains(&object["colour"].as_str().unwrap()));
        assert!(object["count"].as_u64().unwrap() <= 9 && object["open"].is_boolean());
    }
    // One that is cut off.
    let (_, answer) = server.post(&json!({
        "messages": [user("Hi")], "response_format": {"type": "json_object"}, "max_tokens": 1,
    }));
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert!(answer["choices"][0]["message"]["content"].as_str().unwrap().starts_with('{'));
}

#[test]
fn penalties_and_biases_change_answers() {
    let server = Server::start(engine(2, 4), None);
    let answer = |more: Value| {
        let mut body = json!({"messages": [user("Hi")], "max_tokens": 16});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, body) = server.post(&body);
        assert_eq!(status, 200, "{body}");
        body["choices"][0]["message"]["content"].clone()
    };
    let plain = answer(json!({}));
    assert_eq!(answer(json!({"frequency_penalty": 0, "presence_penalty": 0.0})), plain);
    // Nothing comes twice.
    let once = answer(json!({"presence_penalty": 100})).to_string();
    assert!(json!(once) != plain && !once.contains("HH"), "{once}");
    assert_ne!(answer(json!({"frequency_penalty": 100})), plain);
    let token = &server.get("POST", "/tokenize", Some(&json!({"content": "b"})))["tokens"][0];
    assert_eq!(answer(json!({"logit_bias": {token.to_string(): 100}})), "b".repeat(16));
}

#[test]
fn a_streamed_answer_is_the_same_answer() {
    let server = Server::start(engine(2, 4), None);
    let whole = server.answer(&json!([user(TURNS[0])]));
    let events = server.events(json!({
        "messages": [user(TURNS[0])], "stream_options": {"include_usage": true}
    }));
    let text: String =
        events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, whole);
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let last = &events[events.len() - 2];
    assert!(["stop", "length"].contains(&last["choices"][0]["finish_reason"].as_str().unwrap()));
    assert!(events.last().unwrap()["usage"]["completion_tokens"].as_u64().unwrap() > 0);
}

#[test]
fn answers_at_the_same_time_equal_answers_one_by_one() {
    let alone = Server::start(engine(1, 8), None);
    let together = Server::start(engine(8, 8), None);
    let requests: Vec<Value> = (0..6)
        .map(|i| {
            let text = TURNS[..1 + i % 4].join(" ");
            json!({"messages": [user(&text)], "temperature": 0.9, "seed": i, "max_tokens": 10 + 3 * i})
        })
        .collect();
    let text = |server: &Server, request: &Value| {
        let (status, body) = server.post(request);
        assert_eq!(status, 200, "{body}");
        body["choices"][0]["message"]["content"].clone()
    };
    let expected: Vec<Value> = requests.iter().map(|request| text(&alone, request)).collect();
    std::thread::scope(|scope| {
        let answers: Vec<_> =
            requests.iter().map(|request| scope.spawn(|| text(&together, request))).collect();
        for (answer, expected) in answers.into_iter().zip(&expected) {
            assert_eq!(&answer.join().unwrap(), expected);
        }
    });
}

#[test]
fn what_cannot_be_answered_is_refused_in_openai_form() {
    let server = Server::start(engine(1, 2), None);
    let valid = json!([user("Hi")]);
    let refused = |body: Value, status: u16, word: &str| {
        let (found, body) = server.post(&body);
        let message = body["error"]["message"].as_str().unwrap();
        assert!(found == status && message.contains(word), "{found} {body}");
        assert!(!message.contains('\n') && body["error"]["type"].is_string());
    };
    refused(json!({"messages": []}), 400, "no message");
    refused(json!({"messages": [{"role": "assistant", "content": "Hi"}]}), 400, "begins");
    refused(json!({"messages": [user("a"), {"role": "assistant", "content": "b"}]}), 400, "last");
    refused(json!({"messages": [user("a"), {"role": "system", "content": "b"}]}), 400, "before");
    refused(json!({"messages": [{"role": "wizard", "content": "b"}]}), 400, "role");
    refused(
        json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        400,
        "text",
    );
    refused(json!({"messages": valid, "model": "gpt-5"}), 404, "tiny");
    refused(json!({"messages": valid, "stop": 5}), 400, "list of texts");
    refused(json!({"messages": valid, "presence_penalty": 101}), 400, "100");
    refused(json!({"messages": valid, "temperature": -1}), 400, "temperature");
    refused(json!({"messages": valid, "n": 2}), 400, "leave n out");
    refused(json!({"messages": valid, "logit_bias": {"x": 1}}), 400, "token numbers");
    refused(json!({"messages": valid, "top_logprobs": 2}), 400, "logprobs: true");
    refused(json!({"messages": valid, "logprobs": true, "top_logprobs": 99}), 400, "20");
    refused(json!({"messages": valid, "session": "work"}), 400, "keeps no sessions");
    refused(json!({"messages": valid, "tools": [{}]}), 400, "tools");
    for (format, word) in [
        (json!({"type": "xml"}), "json_schema"),
        (json!({"type": "json_schema"}), "no schema"),
        (json!({"type": "json_schema", "json_schema": {"schema": {"type": 7}}}), "followed"),
        (json!({"type": "json_schema", "json_schema": {"schema": []}}), "object"),
    ] {
        refused(json!({"messages": valid, "response_format": format}), 400, word);
    }
    refused(json!({"messages": "Hi"}), 400, "sequence");
    refused(json!({}), 400, "messages");
    let long = "word ".repeat(40_000);
    let long = json!([{"role": "system", "content": long}, user("Hi")]);
    refused(json!({"messages": long}), 400, "system prompt");
    // What means nothing is no reason.
    let harmless = json!({
        "messages": valid, "n": 1, "tools": [], "logit_bias": {}, "presence_penalty": 0,
        "user": "u", "stream": null, "stream_options": null, "response_format": {"type": "text"}, "max_tokens": 1
    });
    assert_eq!(server.post(&harmless).0, 200);
    assert_eq!(
        server.answer(&json!([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}])),
        server.answer(&valid)
    );

    for (head, body, status) in [
        ("POST /v1/chat/completions HTTP/1.1", "{}", 415),
        (CHAT, "{\"messages\": [", 400),
        (CHAT, "\u{0}", 400),
        ("GET /v1/chat/completions HTTP/1.1", "", 405),
        ("GET /v1/models/other HTTP/1.1", "", 404),
        ("GET /v1/models/%ff HTTP/1.1", "", 400),
        ("GET /nowhere HTTP/1.1", "", 404),
        ("GET /health HTTP/1.1", "", 200),
        ("GET /v1/models/tiny HTTP/1.1", "", 200),
    ] {
        let (found, _, text) = server.request(head, body.as_bytes());
        assert_eq!(found, status, "{head}: {text}");
        let body: Value = serde_json::from_str(&text).unwrap();
        assert!(status == 200 || body["error"]["message"].is_string(), "{body}");
    }
}

#[test]
fn those_without_the_key_are_not_served() {
    let server = Server::start(engine(1, 2), Some("secret"));
    let get = |more: &str| server.request(&format!("GET /v1/models HTTP/1.1{more}"), b"").0;
    assert_eq!(get(""), 401);
    assert_eq!(get("\r\nAuthorization: Bearer secre"), 401);
    assert_eq!(get("\r\nAuthorization: Bearer secreT"), 401);
    assert_eq!(get("\r\nAuthorization: secret"), 401);
    assert_eq!(get("\r\nAuthorization: Bearer secret"), 200);
    assert_eq!(server.request("GET /health HTTP/1.1", b"").0, 200);
}

#[test]
fn pages_of_other_sites_are_not_answered() {
    let server = Server::start(engine(1, 2), None);
    let get = |origin: &str| {
        server.request(&format!("GET /v1/models HTTP/1.1\r\nOrigin: {origin}"), b"").0
    };
    assert_eq!(get("http://localhost"), 200);
    for origin in ["http://evil.example", "null", "http://localhost:9", "localhost", ""] {
        assert_eq!(get(origin), 403, "{origin}");
        // What needs no leave from a browser is refused as well.
        let head =
            format!("POST /api/chat HTTP/1.1\r\nContent-Type: text/plain\r\nOrigin: {origin}");
        let body = json!({"model": "tiny", "messages": [user("Hi")]}).to_string();
        assert_eq!(server.request(&head, body.as_bytes()).0, 403, "{origin}");
    }
}

#[test]
fn without_a_key_only_this_machines_names_are_answered() {
    let server = Server::start(engine(1, 2), None);
    let status = |host: &str| {
        let mut stream = TcpStream::connect(server.addr).unwrap();
        let request =
            format!("GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().parse::<u16>().unwrap()
    };
    for host in ["localhost", "localhost:8080", "127.0.0.1:8080", "[::1]:8080", "192.168.0.7"] {
        assert_eq!(status(host), 200, "{host}");
    }
    for host in ["evil.example", "evil.example:8080", "localhost.evil.example", ""] {
        assert_eq!(status(host), 403, "{host}");
    }
}

#[test]
fn a_turn_that_comes_to_nothing_leaves_the_conversation_as_it_was() {
    let server = Server::start(engine(2, 4), None);
    let first = server.answer(&json!([user(TURNS[0])]));
    let past = [user(TURNS[0]), json!({"role": "assistant", "content": first})];
    let with = |turn: Value| json!([past[0], past[1], turn]);
    let cached = |messages: Value| {
        let (status, body) = server.post(&json!({"messages": messages, "max_tokens": 4}));
        assert_eq!(status, 200, "{body}");
        body["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    // A client that goes away while its long turn is read.
    let long = user(&TURNS.concat().repeat(20_000));
    let body = json!({"messages": with(long), "stream": true}).to_string();
    let mut reader = server.send(CHAT, body.as_bytes());
    reader.read_line(&mut String::new()).unwrap();
    drop(reader);
    assert_eq!(server.post(&json!({"messages": with(user("a")), "temperature": -1})).0, 400);
    // The place is free once that was noticed.
    let n = (0..100).map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        cached(with(user(TURNS[1])))
    });
    assert!(n.into_iter().any(|n| n > 0));
}

/// A turn that takes minutes to read.
fn endless() -> Vec<u8> {
    let text = TURNS.concat().repeat(20_000);
    json!({"messages": [user(&text)], "stream": true}).to_string().into_bytes()
}

#[test]
fn a_client_that_goes_away_stops_its_answer_and_frees_its_place() {
    let server = Server::start(engine(1, 4), None);
    let mut reader = server.send(CHAT, &endless());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.contains("200"), "{line}");
    drop(reader);
    // The only place is free again, or this would wait until all was read.
    let start = std::time::Instant::now();
    server.answer(&json!([user("Hi")]));
    assert!(start.elapsed().as_secs() < 30, "it waited for {:?}", start.elapsed());
}

#[test]
fn a_full_queue_says_when_to_come_again() {
    let server = Server::start(engine(1, 1), None);
    // One is worked on, one waits, and one of the next finds no place.
    let mut busy = Vec::new();
    let refused = (0..8).any(|_| {
        let mut reader = server.send(CHAT, &endless());
        let mut head = String::new();
        // One that waits has heard nothing yet.
        reader.get_ref().set_read_timeout(Some(std::time::Duration::from_millis(500))).unwrap();
        while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).is_ok_and(|n| n > 0) {}
        busy.push(reader);
        head.contains(" 429 ") && head.to_lowercase().contains("retry-after: 1")
    });
    assert!(refused);
}
