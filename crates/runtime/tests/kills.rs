//! `kill -9` at random moments: what was acknowledged is there, and the stream goes on with the
//! bits that it would have had.
//!
//! The test starts itself as another process that reads a text into a session, and kills it.
#![expect(clippy::unwrap_used, reason = "a test stops where something unexpected happens")]

mod common;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Write};
use std::ops::ControlFlow::Continue;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{session, small, story, tiny};
use everstream_runtime::memory::{
    BlockStore, DiskOptions, DiskStore, HashEmbedder, Keep, SessionFolder,
};
use everstream_runtime::model::SpecialTokens;
use everstream_runtime::{Origin, Policy, Session, SessionConfig, Storage};

/// Names the data directory to the process that is killed.
const DATA: &str = "EVERSTREAM_TEST_KILLED";
/// Some 50,000 tokens of the tiny model: several states are saved on the way.
const TEXT_BYTES: usize = 80_000;

fn config() -> SessionConfig {
    let mut config = small(Policy::Remember);
    config.recall.on_ingest = true;
    config
}

fn open(data: &Path) -> Session {
    let folder = Arc::new(SessionFolder::create(data, "test").unwrap());
    let storage = Storage { folder, max_bytes: None, keep: Keep::Newest, accepts_loss: false };
    Session::open(tiny("llama"), Arc::new(HashEmbedder), config(), &storage).unwrap()
}

fn last_block_end(session: &Session) -> u64 {
    session.memory().unwrap().metas().last().map_or(0, |meta| meta.range.end.0)
}

/// The process that is killed: reads the text and says how far it has come.
#[test]
#[ignore = "started by the tests of this file"]
fn soak_child() {
    let Ok(data) = std::env::var(DATA) else { return };
    let mut session = open(Path::new(&data));
    let say = |session: &Session| {
        let mut out = std::io::stdout();
        writeln!(out, "\nread {} stored {} .", session.n_tokens(), last_block_end(session))
            .unwrap();
        out.flush().unwrap();
    };
    say(&session);
    session
        .ingest_rest(&story(TEXT_BYTES), Origin::file("story.txt"), &mut |session, _, _| {
            say(session);
            Continue(())
        })
        .unwrap();
    writeln!(std::io::stdout(), "\ndone .").unwrap();
}

/// What the process said last: tokens read, tokens stored, and whether it came to its end. A line
/// that it did not finish does not count.
fn acknowledged(said: &str) -> (u64, u64, bool) {
    let (mut last, mut is_done) = ((0, 0), false);
    for line in said.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["read", read, "stored", stored, "."] => {
                last = (read.parse().unwrap(), stored.parse().unwrap());
            }
            ["done", "."] => is_done = true,
            _ => {}
        }
    }
    (last.0, last.1, is_done)
}

/// Starts the process and kills it after `delay`; returns what it said.
fn run_and_kill(data: &Path, delay: Duration) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "soak_child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(DATA, data)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut said = Vec::new();
        stdout.read_to_end(&mut said).unwrap();
        String::from_utf8_lossy(&said).into_owned()
    });
    let start = Instant::now();
    while start.elapsed() < delay && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}

fn logits_hash(session: &Session) -> u64 {
    let mut hasher = DefaultHasher::new();
    session.logits().iter().for_each(|logit| logit.to_bits().hash(&mut hasher));
    hasher.finish()
}

/// Kills the process `n_kills` times while it reads, over as many sessions as that takes.
fn check(n_kills: usize, seed: u64) {
    let text = story(TEXT_BYTES);
    let tokens = tiny("llama").tokenizer().encode(&text, SpecialTokens::AsText);
    // The plain twin: in RAM, and never stopped.
    let mut expected =
        session(&tiny("llama"), SessionConfig { name: "test".to_owned(), ..config() });
    let start = Instant::now();
    expected.ingest_rest(&text, Origin::file("story.txt"), &mut |_, _, _| Continue(())).unwrap();
    let time = start.elapsed();
    let ids = |session: &Session| -> Vec<_> {
        session.memory().unwrap().metas().iter().map(|meta| meta.id).collect()
    };
    let expected = (expected.n_tokens(), logits_hash(&expected), ids(&expected));

    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut killed, mut finished) = (0, 0);
    while killed < n_kills || finished == 0 {
        let data = tempfile::tempdir().unwrap();
        loop {
            // Opening alone takes a good part of a short delay: some kills fall into it.
            let delay = time.mul_f64(if killed < n_kills { 0.3 * rng.f64() } else { 1000.0 });
            let (read, stored, is_done) = acknowledged(&run_and_kill(data.path(), delay));
            killed += usize::from(!is_done);
            check_store(data.path(), &tokens, stored);
            let session = open(data.path());
            assert!(session.n_tokens() >= read, "{} of {read}", session.n_tokens());
            assert!(last_block_end(&session) >= stored);
            if is_done {
                assert_eq!((session.n_tokens(), logits_hash(&session), ids(&session)), expected);
                finished += 1;
                break;
            }
        }
    }
    println!("{killed} kills, {finished} sessions finished");
}

/// Every acknowledged block is whole and says what the stream said.
fn check_store(data: &Path, tokens: &[u32], stored: u64) {
    let Ok(folder) = SessionFolder::open(data, "test") else {
        assert_eq!(stored, 0);
        return;
    };
    let store = DiskStore::open(Arc::new(folder), DiskOptions::default()).unwrap();
    assert_eq!(store.verify(&mut |_| {}).unwrap(), []);
    let mut end = 4;
    for (order, meta) in store.metas().iter().enumerate() {
        assert_eq!(meta.range.start.0, end, "no gap");
        end = meta.range.end.0;
        let range = meta.range.start.0 as usize..end as usize;
        assert_eq!(store.get(order).unwrap().tokens(), &tokens[range]);
    }
    assert!(end >= stored, "stored up to {end}, acknowledged {stored}");
}

#[test]
fn twenty_kills() {
    check(20, 1);
}

#[test]
#[ignore = "takes minutes: cargo xtask soak tests"]
fn soak_kills() {
    check(500, std::process::id().into());
}
