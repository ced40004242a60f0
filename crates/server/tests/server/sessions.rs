//! Sessions with a name: what they keep, over restarts, and for whom.

use everstream_server::{Keys, digest};
use serde_json::{Value, json};

use crate::harness::{Server, TURNS, engine, saving_engine, user};

fn ask(server: &Server, session: &str, text: &str) -> (String, Value) {
    let body = json!({"session": session, "messages": [user(text)]});
    let answer = server.get("POST", "/v1/chat/completions", Some(&body));
    (answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned(), answer)
}

fn says(block: &Value, word: &str) -> bool {
    block["text"].as_str().unwrap().contains(word)
}

/// The answers of a server that runs through, and of one that is stopped after each turn.
#[test]
fn a_session_goes_on_after_a_restart() {
    let (through, stopped) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(saving_engine(through.path()), None);
    let expected: Vec<String> = TURNS.iter().map(|turn| ask(&server, "work", turn).0).collect();
    for (turn, expected) in TURNS.iter().zip(&expected) {
        let server = Server::start(saving_engine(stopped.path()), None);
        assert_eq!(&ask(&server, "work", turn).0, expected);
        server.stop();
    }
    let server = Server::start(saving_engine(stopped.path()), None);
    let shown = server.get("GET", "/v1/sessions/work", None);
    assert!(shown["n_tokens"].as_u64().unwrap() > 100, "{shown}");
    assert_eq!(shown["active"], false);
    // What was said first is known, and was recalled for the last question.
    let (_, answer) = ask(&server, "work", TURNS[3]);
    let recalled = answer["everstream"]["recalled"].as_array().unwrap();
    assert!(recalled.iter().any(|block| says(block, "compass")), "{answer}");
}

/// Clients that know nothing of sessions send all they know; the session knows it better.
#[test]
fn of_a_whole_conversation_only_the_new_turn_is_read() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let brief = Server::start(saving_engine(one.path()), None);
    let whole = Server::start(saving_engine(other.path()), None);
    let mut messages = Vec::new();
    for turn in TURNS {
        let (expected, _) = ask(&brief, "a", turn);
        messages.push(user(turn));
        let head = "POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\n\
                    X-Everstream-Session: a";
        let body = json!({"messages": messages}).to_string();
        let (status, _, text) = whole.request(head, body.as_bytes());
        assert_eq!(status, 200, "{text}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(answer["choices"][0]["message"]["content"], expected);
        messages.push(json!({"role": "assistant", "content": expected}));
    }
}

#[test]
fn memory_can_be_searched_pinned_and_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(saving_engine(folder.path()), None);
    for turn in TURNS {
        ask(&server, "work", turn);
    }
    let found = server.get("GET", "/v1/sessions/work/memory?query=emerald%20compass&limit=9", None);
    let block = found["data"].as_array().unwrap().iter().find(|b| says(b, "Vasquez")).unwrap();
    let all = server.get("GET", "/v1/sessions/work/memory?limit=100", None);
    let all = all["data"].as_array().unwrap();
    assert!(all.iter().any(|b| b["range"] == block["range"]));
    assert!(all.is_sorted_by_key(|b| b["range"][0].as_u64()));
    let from = block["range"][0].as_u64().unwrap();
    let later = server.get("GET", &format!("/v1/sessions/work/memory?from={from}&limit=1"), None);
    assert_eq!(later["data"][0]["range"], block["range"]);

    let pin = json!({"text": "Answer in one word."});
    let pins = server.get("POST", "/v1/sessions/work/pins", Some(&pin));
    assert_eq!(pins["pins"], json!(["Answer in one word."]));
    assert_eq!(server.get("GET", "/v1/sessions/work", None)["pins"], pins["pins"]);
    assert_eq!(server.ask("DELETE", "/v1/sessions/work/pins/7", None).0, 404);
    assert_eq!(server.get("DELETE", "/v1/sessions/work/pins/0", None)["pins"], json!([]));
    let long = json!({"text": "word ".repeat(500)});
    assert_eq!(server.ask("POST", "/v1/sessions/work/pins", Some(&long)).0, 400);

    let to = block["range"][1].as_u64().unwrap();
    let path = format!("/v1/sessions/work/memory?from={from}&to={to}");
    let forgotten = server.get("DELETE", &path, None);
    assert_eq!(forgotten["ranges"], json!([[from, to]]));
    let found = server.get("GET", "/v1/sessions/work/memory?query=emerald%20compass&limit=9", None);
    assert!(!found["data"].as_array().unwrap().iter().any(|b| b["range"] == block["range"]));
}

#[test]
fn documents_are_read_once_and_recalled() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "{}\n\nThe red lantern belongs to Ottilie.\n\n{}",
        "Rain fell on the quay all day.\n\n".repeat(20),
        "The mill stood still.\n\n".repeat(20)
    );
    let head = "POST /v1/sessions/work/ingest?name=log.txt HTTP/1.1\r\nContent-Type: text/plain";
    let read = |server: &Server| {
        let (status, _, lines) = server.request(head, text.as_bytes());
        assert_eq!(status, 200, "{lines}");
        let lines: Vec<Value> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.is_sorted_by_key(|line| line["n_read"].as_u64()));
        lines.last().unwrap().clone()
    };
    let server = Server::start(saving_engine(folder.path()), None);
    let end = read(&server);
    assert_eq!((&end["done"], &end["n_known"]), (&json!(true), &json!(0)));
    assert_eq!(end["n_read"], end["n_tokens"]);
    server.stop();
    let server = Server::start(saving_engine(folder.path()), None);
    let again = read(&server);
    assert_eq!((&again["n_known"], &again["n_stream"]), (&end["n_tokens"], &end["n_stream"]));
    let (_, answer) = ask(&server, "work", "Who owns the red lantern?");
    let recalled = answer["everstream"]["recalled"].as_array().unwrap();
    assert!(recalled.iter().any(|block| says(block, "Ottilie")), "{answer}");
    let found = server.get("GET", "/v1/sessions/work/memory?query=red%20lantern&limit=1", None);
    assert_eq!(found["data"][0]["source"]["file"], "log.txt");

    for (head, body, status) in [
        (head.replace("text/plain", "image/png"), &b"x"[..], 415),
        (head.to_owned(), b"", 400),
        (head.to_owned(), b"\xff\xfe", 400),
        (head.replace("log.txt", ""), b"x", 400),
        (head.replace("/work/", "/..%2fwork/"), b"x", 400),
    ] {
        assert_eq!(server.request(&head, body).0, status, "{head}");
    }
}

/// Two keys, the same names, and requests that try to reach what is the other's.
#[test]
fn nothing_crosses_from_one_key_to_another() {
    let folder = tempfile::tempdir().unwrap();
    let keys = [("anna", "key of anna"), ("ben", "key of ben")];
    let keys = Keys::named(keys.map(|(name, key)| (name.to_owned(), digest(key))));
    let mut server = Server::with_keys(saving_engine(folder.path()), keys);
    let become_ = |server: &mut Server, name: &str| server.key = Some(format!("key of {name}"));
    become_(&mut server, "anna");
    let secret = "The password of the vault is heliotrope.";
    ask(&server, "work", secret);
    for turn in TURNS {
        ask(&server, "work", turn);
    }
    let first = server.answer(&json!([user(secret)]));
    let known = [user(secret), json!({"role": "assistant", "content": first}), user("And?")];
    let cached = |server: &Server| {
        let answer = server.get("POST", "/v1/chat/completions", Some(&json!({"messages": known})));
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };

    become_(&mut server, "ben");
    assert_eq!(server.get("GET", "/v1/sessions", None)["data"], json!([]));
    for (method, path) in [
        ("GET", "/v1/sessions/work"),
        ("GET", "/v1/sessions/work/memory?query=password"),
        ("DELETE", "/v1/sessions/work/memory?from=0&to=1000"),
        ("DELETE", "/v1/sessions/work"),
        ("GET", "/v1/sessions/..%2fanna"),
        ("GET", "/v1/sessions/..%2f..%2fkeys%2fanna%2fsessions%2fwork"),
        ("DELETE", "/v1/sessions/.."),
        ("GET", "/v1/sessions/%00"),
    ] {
        let (status, body) = server.ask(method, path, None);
        assert!(status == 404 || status == 400, "{method} {path}: {status} {body}");
    }
    // A session of the same name is another one, and the same words are unknown.
    let (_, answer) = ask(&server, "work", "What is the password of the vault?");
    assert_eq!(answer["everstream"]["recalled"], json!([]));
    let found = server.get("GET", "/v1/sessions/work/memory?query=heliotrope&limit=100", None);
    assert!(!found["data"].as_array().unwrap().iter().any(|b| says(b, "heliotrope")));
    let unknown = cached(&server);
    server.get("DELETE", "/v1/sessions/work", None);

    become_(&mut server, "anna");
    assert!(cached(&server) > unknown);
    let found = server.get("GET", "/v1/sessions/work/memory?query=heliotrope&limit=100", None);
    assert!(found["data"].as_array().unwrap().iter().any(|b| says(b, "heliotrope")));
    become_(&mut server, "nobody");
    assert_eq!(server.ask("GET", "/v1/sessions", None).0, 401);
}

#[test]
fn more_sessions_than_fit_in_memory_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(saving_engine(folder.path()), None);
    let names = ["a", "b", "c", "d"];
    let n_tokens = |name: &str| {
        server.get("GET", &format!("/v1/sessions/{name}"), None)["n_tokens"].as_u64().unwrap()
    };
    for turn in TURNS {
        let before: Vec<String> = names.map(|name| ask(&server, name, turn).0).into();
        // The same words in the same place: the same answer.
        assert!(before.iter().all(|answer| *answer == before[0]));
    }
    assert!(names.map(n_tokens).iter().all(|&n| n == n_tokens("a")));
    let listed = server.get("GET", "/v1/sessions", None);
    assert_eq!(listed["data"].as_array().unwrap().len(), 4);
    // A fifth is one too many, until another goes.
    let body = json!({"session": "e", "messages": [user("Hi")]});
    let (status, answer) = server.post(&body);
    assert!(status == 400 && answer["error"]["message"].as_str().unwrap().contains("delete"));
    server.get("DELETE", "/v1/sessions/b", None);
    assert_eq!(server.ask("GET", "/v1/sessions/b", None).0, 404);
    assert_eq!(server.post(&body).0, 200);
}

#[test]
fn turns_of_one_session_wait_for_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(saving_engine(folder.path()), None);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| ask(&server, "work", TURNS[0]));
        }
    });
    let alone = tempfile::tempdir().unwrap();
    let other = Server::start(saving_engine(alone.path()), None);
    for _ in 0..6 {
        ask(&other, "work", TURNS[0]);
    }
    let shown = |server: &Server| server.get("GET", "/v1/sessions/work", None)["n_tokens"].clone();
    assert_eq!(shown(&server), shown(&other));
}

/// What is wrong from the start has its status also where the answer would be streamed, and a session
/// that was refused something is as it was.
#[test]
fn refusals_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(saving_engine(folder.path()), None);
    let streamed = json!({"session": "../x", "messages": [user("Hi")], "stream": true});
    assert_eq!(server.post(&streamed).0, 400);
    ask(&server, "work", TURNS[0]);
    let before = server.get("GET", "/v1/sessions/work", None);
    // Of a session that exists, a system message says nothing, however long it is.
    let long = "word ".repeat(200_000);
    let messages = json!([{"role": "system", "content": long}, user(TURNS[1])]);
    server.get(
        "POST",
        "/v1/chat/completions",
        Some(&json!({"session": "work", "messages": messages})),
    );
    let (status, _) = server.post(&json!({"session": "new", "messages": messages}));
    assert_eq!(status, 400);
    assert_eq!(server.ask("GET", "/v1/sessions/new", None).0, 404);
    let after = server.get("GET", "/v1/sessions/work", None);
    assert!(after["n_tokens"].as_u64() > before["n_tokens"].as_u64());
    // A document first: the session begins without a system turn.
    let head = "POST /v1/sessions/papers/ingest HTTP/1.1\r\nContent-Type: text/plain";
    assert_eq!(server.request(head, b"The red lantern belongs to Ottilie.").0, 200);
    assert!(!ask(&server, "papers", "Who owns it?").0.is_empty());
}

#[test]
fn a_server_without_sessions_says_so() {
    let server = Server::start(engine(1, 2), None);
    for (method, path) in [("GET", "/v1/sessions"), ("GET", "/v1/sessions/a")] {
        assert_eq!(server.ask(method, path, None).0, 400);
    }
}
