//! Sessions that stop, or are stopped, and go on.

#![expect(clippy::unwrap_used, reason = "a test stops where something unexpected happens")]

mod common;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow::Continue;
use std::path::Path;
use std::sync::Arc;

use common::{small, story, tiny};
use everstream_runtime::kv_cache::{ClusterConfig, ClusterForm, KvType, Place, TokenPos};
use everstream_runtime::memory::record::{self, PREFIX_BYTES};
use everstream_runtime::memory::{
    BlockStore, DiskOptions, DiskStore, HashEmbedder, Keep, KvType as MemoryType, Recall,
    RecallOrder, Role, SessionFolder, StoreError,
};
use everstream_runtime::model::{Arithmetic, Model, ModelOptions};
use everstream_runtime::{
    DocumentContext, GenerateOptions, Insertion, Origin, Policy, RecallConfig, Session,
    SessionConfig, SessionError, Storage, damaged_files, log_forgotten, saved_geometry,
};
use tempfile::TempDir;

fn try_open(
    model: &Arc<Model>,
    config: SessionConfig,
    data: &Path,
) -> Result<Session, SessionError> {
    open_accepting(false, model, config, data)
}

fn open_accepting(
    accepts_loss: bool,
    model: &Arc<Model>,
    config: SessionConfig,
    data: &Path,
) -> Result<Session, SessionError> {
    let folder = Arc::new(SessionFolder::create(data, "test")?);
    let storage = Storage { folder, max_bytes: None, keep: Keep::Newest, accepts_loss };
    Session::open(Arc::clone(model), Arc::new(HashEmbedder), config, &storage)
}

fn open(model: &Arc<Model>, config: &SessionConfig, data: &Path) -> Session {
    try_open(model, config.clone(), data).unwrap()
}

/// The data directory as the next start finds it after `kill -9` now.
fn copy(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    copy_files(from, to.path());
    to
}

fn copy_files(from: &Path, to: &Path) {
    fs_err::create_dir_all(to).unwrap();
    for entry in fs_err::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        match path.is_dir() {
            true => copy_files(&path, &to),
            false => drop(fs_err::copy(path, to).unwrap()),
        }
    }
}

/// Things that happen to a session.
#[derive(Clone, Debug)]
enum Step {
    Ingest(String),
    Turn(&'static str),
    QuietTurn(&'static str),
    Answer(usize),
    Save,
    Recall(&'static str),
}

fn script(seed: u64) -> Vec<Step> {
    let turns = ["What did Captain Vasquez hide?", "Where did the red boat go?", "Thank you!"];
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut steps = vec![Step::Ingest(story(1500))];
    for _ in 0..8 {
        match rng.u8(0..6) {
            0 => steps.push(Step::Ingest(story(rng.usize(1..900)))),
            1 => steps.push(Step::Save),
            2 => steps.push(Step::Recall("a bridge")),
            3 => {
                steps.push(Step::QuietTurn(turns[rng.usize(0..3)]));
                steps.push(Step::Answer(rng.usize(0..30)));
            }
            _ => {
                steps.push(Step::Turn(turns[rng.usize(0..3)]));
                steps.push(Step::Answer(rng.usize(0..60)));
            }
        }
    }
    steps
}

fn run(session: &mut Session, step: &Step) {
    match step {
        Step::Ingest(text) => {
            let origin = Origin::file("story.txt");
            session.ingest(text, origin, &mut |_, _, _| Continue(())).unwrap();
        }
        Step::Turn(text) => drop(session.turn(text).unwrap().clone()),
        Step::QuietTurn(text) => session.read_turn(text).unwrap(),
        Step::Answer(max_tokens) => {
            let options = GenerateOptions { max_tokens: *max_tokens, ..Default::default() };
            session.answer(&options, &mut |_| Continue(())).unwrap();
        }
        Step::Save => session.save().unwrap(),
        Step::Recall(query) => drop(session.recall(query).unwrap().clone()),
    }
}

/// All that can be seen of a session.
#[derive(Debug, PartialEq)]
struct Seen {
    n_tokens: u64,
    /// A hash, as numbers would fill pages where a test fails.
    logits: u64,
    sections: everstream_runtime::kv_cache::Sections,
    recalled: Vec<(u64, u64)>,
    /// Of each block: id, range, role, source, and a hash of its keys in the first layer.
    blocks: Vec<String>,
}

fn hash(numbers: &[f32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    numbers.iter().for_each(|number| number.to_bits().hash(&mut hasher));
    hasher.finish()
}

fn seen(session: &mut Session) -> Seen {
    let recalled = session.last_recall().cloned().unwrap_or_default();
    let recalled = recalled.blocks.iter().map(|b| (b.part.start.0, b.part.end.0)).collect();
    let memory = session.memory().unwrap();
    let blocks = (0..memory.metas().len()).map(|order| {
        let block = memory.block(order).unwrap();
        let n_tokens = block.tokens().len();
        let mut keys = vec![0.0; n_tokens * block.kv().shape().head_dim];
        block.kv().keys(0, 0, 0..n_tokens).copy_to(&mut keys);
        let (range, role, source) = (block.range(), block.role(), block.source());
        format!("{} {range:?} {role} {source:?} {}", block.id(), hash(&keys))
    });
    Seen {
        n_tokens: session.n_tokens(),
        logits: hash(session.logits()),
        sections: session.sections(),
        recalled,
        blocks: blocks.collect(),
    }
}

fn places() -> impl Iterator<Item = SessionConfig> {
    [
        (Place::Near, MemoryType::F16, Insertion::Kv),
        (Place::Near, MemoryType::Q8, Insertion::Kv),
        (Place::Near, MemoryType::Q8, Insertion::Tokens),
        (Place::Near, MemoryType::F16, Insertion::Repair),
        (Place::Between, MemoryType::F16, Insertion::Kv),
        (Place::Between, MemoryType::Q8, Insertion::Repair),
    ]
    .into_iter()
    .map(|(place, memory_type, insertion)| {
        // Also with paragraphs that are read apart.
        let document_context = match place {
            Place::Near => DocumentContext::Paragraph,
            Place::Between => DocumentContext::Stream,
        };
        let mut config = SessionConfig { memory_type, document_context, ..small(Policy::Remember) };
        // Also with a window that recalls cut.
        let window = (insertion == Insertion::Repair).then_some(20);
        let insertion = Some(insertion);
        config.recall = RecallConfig { place, insertion, window, ..config.recall };
        // Also with clusters.
        let form = match memory_type {
            MemoryType::Q8 => ClusterForm::Medoid,
            _ => ClusterForm::Centroid,
        };
        let (n_clusters, segment_tokens) = (12, 32);
        config.clusters = (place == Place::Between).then(|| ClusterConfig {
            n_clusters,
            segment_tokens,
            form,
            ..Default::default()
        });
        config
    })
}

#[test]
fn a_killed_session_continues_bit_for_bit() {
    for (seed, (family, config)) in
        ["qwen2", "llama"].into_iter().flat_map(|f| places().map(move |c| (f, c))).enumerate()
    {
        let (model, steps) = (tiny(family), script(seed as u64));
        let data = tempfile::tempdir().unwrap();
        let mut whole = open(&model, &config, data.path());
        // A session in RAM is the plain twin.
        let mut in_ram =
            common::session(&model, SessionConfig { name: "test".into(), ..config.clone() });
        for (i, step) in steps.iter().enumerate() {
            let killed = copy(data.path());
            run(&mut whole, step);
            run(&mut in_ram, step);
            let expected = seen(&mut whole);
            assert_eq!(seen(&mut in_ram), expected, "{seed}: {step:?} in RAM");
            let mut resumed = open(&model, &config, killed.path());
            run(&mut resumed, step);
            assert_eq!(seen(&mut resumed), expected, "{seed}: step {i}, {step:?}");
        }
    }
}

/// Killed in the middle of reading and of answering, wherever that is.
#[test]
fn a_session_killed_in_the_middle_goes_on_where_it_was() {
    for (document_context, chunk_tokens) in [
        (DocumentContext::Stream, 32),
        (DocumentContext::Paragraph, 32),
        (DocumentContext::Paragraph, 5),
    ] {
        let config = SessionConfig { document_context, chunk_tokens, ..small(Policy::Remember) };
        kill_in_the_middle(&config);
    }
}

fn kill_in_the_middle(config: &SessionConfig) {
    let model = tiny("qwen2");
    let data = tempfile::tempdir().unwrap();
    let mut whole = open(&model, config, data.path());
    let (text, mut copies) = (story(4000), Vec::new());
    let origin = || Origin::file("story.txt");
    let path = data.path().to_owned();
    whole
        .ingest_rest(&text, origin(), &mut |session, n_read, _| {
            copies.push((copy(&path), n_read, session.n_tokens()));
            Continue(())
        })
        .unwrap();
    let expected = seen(&mut whole);
    assert_eq!(whole.ingest_rest(&text, origin(), &mut |_, _, _| Continue(())).unwrap(), 0);
    let tokens = whole.encode(&text).unwrap();
    assert!(copies.len() > 10);
    for (killed, n_read, n_tokens) in &copies {
        let mut resumed = open(&model, config, killed.path());
        assert_eq!(resumed.n_tokens(), *n_tokens, "what was acknowledged is there");
        let n_rest = resumed.ingest_rest(&text, origin(), &mut |_, _, _| Continue(())).unwrap();
        assert_eq!(n_rest, tokens.len() - n_read);
        assert_eq!(seen(&mut resumed), expected);
    }

    whole.turn("Where did the red boat go?").unwrap();
    let (mut copies, options) =
        (Vec::new(), GenerateOptions { max_tokens: 40, ..Default::default() });
    let mut text = String::new();
    let generated = whole
        .generate(&options, &mut |piece| {
            text += piece;
            copies.push((copy(&path), text.clone()));
            Continue(())
        })
        .unwrap();
    let expected = whole.logits().to_vec();
    for (killed, said) in copies {
        let mut resumed = open(&model, config, killed.path());
        assert!(resumed.awaits_answer());
        let n_left = (whole.n_tokens() - resumed.n_tokens()) as usize;
        let options = GenerateOptions { max_tokens: n_left, ..Default::default() };
        let rest = resumed.generate(&options, &mut |_| Continue(())).unwrap();
        assert_eq!(resumed.logits(), expected);
        assert!(generated.tokens.ends_with(&rest.tokens));
        assert!(generated.text.starts_with(&said));
        resumed.close_answer().unwrap();
        assert!(!resumed.awaits_answer());
    }
}

/// A kill between the last token of an answer and the end of its turn: what the template writes behind an
/// answer stands there once, however much of it was read.
#[test]
fn an_answer_is_closed_once() {
    for family in ["llama", "qwen2", "gemma3"] {
        let (model, config) = (tiny(family), small(Policy::Remember));
        let data = tempfile::tempdir().unwrap();
        let mut session = open(&model, &config, data.path());
        session.turn("Where did the red boat go?").unwrap();
        let options = GenerateOptions { max_tokens: 9, ..Default::default() };
        session.generate(&options, &mut |_| Continue(())).unwrap();
        let (open_until, n_answered) = (journal_bytes(data.path()), session.n_tokens());
        session.close_answer().unwrap();
        let n_closed = session.n_tokens();
        assert!(n_closed > n_answered);
        let all = journal_bytes(data.path());
        session.turn("And the compass?").unwrap();
        let expected = (session.n_tokens(), session.logits().to_vec());
        let (mut n_open, mut n_whole) = (0, 0);
        for len in open_until.len()..=all.len() {
            let killed = copy(data.path());
            fs_err::write(file_of(killed.path(), "journal-", 0), &all[..len]).unwrap();
            let mut resumed = open(&model, &config, killed.path());
            if resumed.awaits_answer() {
                n_open += 1;
                resumed.close_answer().unwrap();
            } else {
                n_whole += 1;
            }
            assert_eq!(resumed.n_tokens(), n_closed, "{family}: {len} of {} bytes", all.len());
            resumed.turn("And the compass?").unwrap();
            assert!((resumed.n_tokens(), resumed.logits().to_vec()) == expected, "{family} {len}");
        }
        assert!(n_open > 1 && n_whole > 1, "{n_open} {n_whole}");
    }
}

fn journal_bytes(data: &Path) -> Vec<u8> {
    fs_err::read(file_of(data, "journal-", 0)).unwrap()
}

#[test]
fn a_saved_session_replays_nothing() {
    let (model, config) = (tiny("llama"), small(Policy::Remember));
    let data = tempfile::tempdir().unwrap();
    let mut session = open(&model, &config, data.path());
    assert_eq!(session.resumed(), None);
    run(&mut session, &Step::Ingest(story(3000)));
    run(&mut session, &Step::Turn("Where is the compass?"));
    session.save().unwrap();
    let expected = seen(&mut session);
    drop(session);
    let newest = file_of(data.path(), "state-", 0);
    let mut session = open(&model, &config, data.path());
    session.save().unwrap();
    assert_eq!(file_of(data.path(), "state-", 0), newest, "nothing happened, nothing is written");
    assert_eq!(session.resumed(), Some(everstream_runtime::Resumed::default()));
    assert_eq!(seen(&mut session), expected);
    // Two states at most are kept.
    for _ in 0..3 {
        run(&mut session, &Step::Ingest(story(200)));
        session.save().unwrap();
    }
    let files = fs_err::read_dir(SessionFolder::path_of(data.path(), "test")).unwrap();
    let names = files.map(|f| f.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.starts_with("state-")).count(), 2);
}

fn file_of(data: &Path, prefix: &str, nth_last: usize) -> std::path::PathBuf {
    let folder = SessionFolder::path_of(data, "test");
    let files = fs_err::read_dir(folder).unwrap().map(|f| f.unwrap().path());
    let is_ours = |p: &std::path::PathBuf| {
        p.file_name().unwrap().to_str().is_some_and(|name| name.starts_with(prefix))
    };
    let mut files: Vec<_> = files.filter(is_ours).collect();
    files.sort();
    files.swap_remove(files.len() - 1 - nth_last)
}

#[test]
fn damage_to_a_state_costs_a_longer_replay() {
    let (model, config) = (tiny("llama"), small(Policy::Remember));
    let data = tempfile::tempdir().unwrap();
    let mut session = open(&model, &config, data.path());
    run(&mut session, &Step::Ingest(story(2000)));
    session.save().unwrap();
    run(&mut session, &Step::Turn("Where is the compass?"));
    run(&mut session, &Step::Answer(20));
    session.save().unwrap();
    run(&mut session, &Step::Ingest(story(300)));
    let expected = seen(&mut session);
    drop(session);
    let newest = file_of(data.path(), "state-", 0);
    let good = fs_err::read(&newest).unwrap();
    let step = good.len() / 40;
    for at in (0..200).chain((200..good.len()).step_by(step)) {
        let copy = copy(data.path());
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs_err::write(file_of(copy.path(), "state-", 0), bad).unwrap();
        let mut session = open(&model, &config, copy.path());
        assert!(session.resumed().unwrap().is_older_state, "byte {at}");
        assert_eq!(seen(&mut session), expected, "byte {at}");
    }
    for nth_last in [0, 1] {
        fs_err::write(file_of(data.path(), "state-", nth_last), "damaged").unwrap();
    }
    let error = try_open(&model, config.clone(), data.path()).unwrap_err();
    assert!(matches!(error, SessionError::LostState { .. }), "{error}");
    for nth_last in [0, 0] {
        fs_err::remove_file(file_of(data.path(), "state-", nth_last)).unwrap();
    }
    let error = try_open(&model, config, data.path()).unwrap_err();
    assert!(matches!(error, SessionError::LostState { .. }), "{error}");
}

#[test]
fn a_damaged_journal_is_refused_and_ends_the_replay_where_that_is_accepted() {
    let (model, config) = (tiny("llama"), small(Policy::Remember));
    let data = tempfile::tempdir().unwrap();
    let mut session = open(&model, &config, data.path());
    run(&mut session, &Step::Ingest(story(2000)));
    run(&mut session, &Step::Turn("Where is the compass?"));
    run(&mut session, &Step::Answer(20));
    let n_tokens = session.n_tokens();
    drop(session);
    let journal = file_of(data.path(), "journal-", 0);
    let good = fs_err::read(&journal).unwrap();
    let n_blocks = DiskStore::open(
        Arc::new(SessionFolder::open(data.path(), "test").unwrap()),
        DiskOptions::default(),
    );
    let n_blocks = n_blocks.unwrap().metas().len();
    for at in (0..good.len()).step_by(101) {
        let copy = copy(data.path());
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs_err::write(file_of(copy.path(), "journal-", 0), bad).unwrap();
        let folder = SessionFolder::open(copy.path(), "test").unwrap();
        let damaged = damaged_files(&folder).unwrap();
        drop(folder);
        // The last record is short; it may be damaged so that it looks unfinished.
        let n_lost = match try_open(&model, config.clone(), copy.path()) {
            Err(SessionError::BrokenJournal { at: from, n_blocks: n_beyond, n_tokens, .. }) => {
                assert!(from <= at as u64 && n_beyond <= n_blocks, "byte {at}");
                assert!(n_beyond > 0 || n_tokens > 0);
                assert_eq!(damaged.len(), 1, "byte {at}");
                n_beyond
            }
            Err(error) => panic!("byte {at}: {error}"),
            Ok(_) => {
                assert!(at + 200 > good.len(), "byte {at}");
                continue;
            }
        };
        let mut session = open_accepting(true, &model, config.clone(), copy.path()).unwrap();
        assert!(session.n_tokens() <= n_tokens);
        assert_eq!(session.resumed().unwrap().n_dropped_blocks, n_lost, "byte {at}");
        let n_before = session.n_tokens();
        let ends = |s: &Session| s.memory().unwrap().metas().last().map_or(0, |m| m.range.end.0);
        assert!(ends(&session) <= n_before, "no block lies beyond the stream");
        run(&mut session, &Step::Ingest("Something else happened on that day.\n".repeat(40)));
        assert!(ends(&session) > n_before);
    }
}

/// A state that is gone leaves its journal, which is read behind the one before it.
#[test]
fn a_state_that_is_gone_costs_a_longer_replay() {
    let (model, config) = (tiny("llama"), small(Policy::Remember));
    let data = tempfile::tempdir().unwrap();
    let mut session = open(&model, &config, data.path());
    run(&mut session, &Step::Ingest(story(1500)));
    session.save().unwrap();
    run(&mut session, &Step::Ingest(story(700)));
    session.save().unwrap();
    run(&mut session, &Step::Turn("Where is the compass?"));
    let expected = seen(&mut session);
    drop(session);
    fs_err::remove_file(file_of(data.path(), "state-", 0)).unwrap();
    for _ in 0..2 {
        let mut session = open(&model, &config, data.path());
        let found = seen(&mut session);
        // A start cuts the blocks of a turn that has ended.
        assert_eq!((found.n_tokens, found.logits), (expected.n_tokens, expected.logits));
        assert!(found.blocks.starts_with(&expected.blocks));
    }
}

#[test]
fn what_does_not_fit_a_saved_session_is_refused() {
    let (model, config) = (tiny("llama"), small(Policy::Remember));
    let data = tempfile::tempdir().unwrap();
    let folder = SessionFolder::create(data.path(), "test").unwrap();
    assert_eq!(saved_geometry(&folder).unwrap(), None);
    drop(folder);
    let mut session = open(&model, &config, data.path());
    run(&mut session, &Step::Ingest(story(1000)));
    let error = SessionFolder::create(data.path(), "test").unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }));
    drop(session);

    let wider = SessionConfig { window_tokens: 128, ..config.clone() };
    let error = try_open(&model, wider.clone(), data.path()).unwrap_err();
    let expected = "this session was made with a window of 96, not 128: leave that setting out, or use another --session";
    assert_eq!(error.to_string(), expected);
    let sink = SessionConfig { policy: Policy::Sink, ..config.clone() };
    let error = try_open(&model, sink, data.path()).unwrap_err();
    assert!(matches!(error, SessionError::NotSaved { policy: Policy::Sink }));
    let error = try_open(&tiny("qwen2"), config.clone(), data.path()).unwrap_err();
    assert!(matches!(error, SessionError::Store(StoreError::Maker { .. })), "{error}");

    // What was asked for can be taken from what is there; a chunk may have any length.
    let folder = SessionFolder::open(data.path(), "test").unwrap();
    let mut asked = SessionConfig { chunk_tokens: 7, ..wider };
    saved_geometry(&folder).unwrap().unwrap().apply(&mut asked);
    drop(folder);
    assert_eq!(asked.window_tokens, config.window_tokens);
    drop(open(&model, &asked, data.path()));
}

/// States of version 2 knew no clusters: neither their settings in the head, nor which there are.
fn as_version_2(state: &Path) {
    const CLUSTER_SETTINGS: std::ops::Range<usize> = 38..38 + 43;
    const CLUSTERS: std::ops::Range<usize> = 49..49 + 16;
    let bytes = fs_err::read(state).unwrap();
    let prefix = record::Prefix::parse(bytes[..PREFIX_BYTES].try_into().unwrap()).unwrap();
    let (head, body) = bytes[PREFIX_BYTES..].split_at(prefix.head_len);
    let without = |bytes: &[u8], range: std::ops::Range<usize>| {
        [&bytes[..range.start], &bytes[range.end..]].concat()
    };
    let mut head = without(head, CLUSTER_SETTINGS);
    head[..4].copy_from_slice(&2_u32.to_le_bytes());
    let mut out = Vec::new();
    record::encode(prefix.kind, &head, &without(&body[..prefix.body_len], CLUSTERS), &mut out);
    fs_err::write(state, out).unwrap();
}

#[test]
fn a_state_of_version_2_is_read() {
    let (model, config) = (tiny("llama"), small(Policy::Remember));
    let data = tempfile::tempdir().unwrap();
    let mut session = open(&model, &config, data.path());
    run(&mut session, &Step::Ingest(story(1500)));
    run(&mut session, &Step::Turn("Where is the compass?"));
    session.save().unwrap();
    let older = copy(data.path());
    as_version_2(&file_of(older.path(), "state-", 0));
    let expected = seen(&mut session);
    drop(session);
    let mut found = open(&model, &config, older.path());
    assert!(!found.resumed().unwrap().is_older_state, "{:?}", found.resumed());
    let found = seen(&mut found);
    assert_eq!((found.n_tokens, found.logits), (expected.n_tokens, expected.logits));
}

#[test]
fn what_is_forgotten_does_not_come_back() {
    let (model, config) = (tiny("llama"), small(Policy::Remember));
    let data = tempfile::tempdir().unwrap();
    let mut session = open(&model, &config, data.path());
    run(&mut session, &Step::Ingest(story(3000)));
    let recall = session.recall("Captain Vasquez hid the emerald compass").unwrap().clone();
    let best = recall.blocks.last().unwrap().block.range();
    assert!(session.sections().recalled > 0);
    let forgotten = session.forget(&best).unwrap();
    assert_eq!(forgotten, std::slice::from_ref(&best));
    assert_eq!(session.sections().recalled, 0, "it leaves the cache, too");
    let state = fs_err::read(file_of(data.path(), "state-", 0)).unwrap();
    let ids = |tokens: &[u32]| -> Vec<u8> { tokens.iter().flat_map(|t| t.to_le_bytes()).collect() };
    let holds = |tokens: &[u32]| {
        let ids = ids(&tokens[..8]);
        state.windows(ids.len()).any(|bytes| bytes == ids)
    };
    assert!(!holds(recall.blocks.last().unwrap().block.tokens()), "and the saved state");
    let text = session.encode(&story(3000)).unwrap();
    assert!(holds(&text[text.len() - 10..]), "which has what came later");
    assert_eq!(session.forget(&best).unwrap(), []);
    let killed = copy(data.path());
    for session in [&mut session, &mut open(&model, &config, killed.path())] {
        let recall = session.recall("Captain Vasquez hid the emerald compass").unwrap();
        assert!(!recall.blocks.iter().any(|b| b.block.text().contains("emerald")));
        assert!(session.search("emerald", 100).unwrap().iter().all(|f| f.meta.range != best));
    }
    assert_eq!(session.forget(&(TokenPos(1 << 40)..TokenPos(1 << 41))).unwrap(), []);
}

/// A block that cannot be read costs the recall that block, and the answer goes on.
#[test]
fn a_damaged_block_is_left_out_and_named() {
    let (model, config) = (tiny("llama"), small(Policy::Remember));
    let data = tempfile::tempdir().unwrap();
    let mut session = open(&model, &config, data.path());
    run(&mut session, &Step::Ingest(story(3000)));
    session.save().unwrap();
    drop(session);
    let segment = SessionFolder::path_of(data.path(), "test").join("blocks/000001.blocks");
    let mut bytes = fs_err::read(&segment).unwrap();
    let at = bytes.windows(7).position(|w| w == b"emerald").unwrap() + 300;
    bytes[at] ^= 1;
    fs_err::write(&segment, bytes).unwrap();
    let mut session = open(&model, &config, data.path());
    let recall = session.recall("Captain Vasquez hid the emerald compass").unwrap();
    assert_eq!(recall.unreadable.len(), 1);
    assert!(!recall.blocks.is_empty());
    session.turn("Captain Vasquez hid the emerald compass").unwrap();
}

/// Keys and values make the trip through a file without loss in f32, and with a bounded one in
/// f16 and 8 bits: the deviation of logits, as a part of the largest.
#[test]
fn what_is_recalled_from_disk_equals_never_leaving() {
    for family in ["qwen2", "llama"] {
        // Inputs in 8 bits would amplify a deviation of any size.
        let options = ModelOptions { arithmetic: Arithmetic::F32, ..Default::default() };
        let path = format!("../model/tests/golden/tiny-{family}.gguf");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let model = Arc::new(Model::open(&path, options).unwrap());
        let tokens = model
            .tokenizer()
            .encode(&story(1200), everstream_runtime::model::SpecialTokens::AsText);
        let tokens = &tokens[..200];
        let run = |window_tokens, memory_type, data: &Path| {
            let mut config =
                SessionConfig { window_tokens, memory_type, ..small(Policy::Remember) };
            config.context_tokens = 200;
            config.kv_type = KvType::F32;
            config.recall.place = Place::Between;
            config.recall.order = RecallOrder::Stream;
            config.recall.max_blocks = 100;
            let mut session = open(&model, &config, data);
            let mut logits = Vec::new();
            for token in tokens {
                let n_evicted = session.evicted().end.since(session.evicted().start);
                assert_eq!(session.recall("the boat").unwrap().n_tokens(), n_evicted);
                session.append(&[*token], Origin::turn(Role::Document)).unwrap();
                logits.extend_from_slice(session.logits());
            }
            logits
        };
        let folder = tempfile::tempdir().unwrap();
        let whole = run(400, MemoryType::F32, &folder.path().join("whole"));
        let largest = whole.iter().fold(0.0_f32, |max, logit| max.max(logit.abs()));
        for (memory_type, tolerance) in
            [(MemoryType::F32, 0.0), (MemoryType::F16, 2e-3), (MemoryType::Q8, 2e-2)]
        {
            let cut = run(96, memory_type, &folder.path().join(memory_type.name()));
            let deviation = |(a, b): (&f32, &f32)| (a - b).abs() / largest;
            let deviation = whole.iter().zip(&cut).map(deviation).fold(0.0, f32::max);
            println!("{family} {}: {deviation:.1e}", memory_type.name());
            assert!(deviation <= tolerance, "{family} {}: {deviation}", memory_type.name());
        }
    }
}

#[test]
fn a_recall_that_does_not_fit_changes_nothing() {
    let (model, config) = (tiny("llama"), small(Policy::Remember));
    let data = tempfile::tempdir().unwrap();
    let mut session = open(&model, &config, data.path());
    run(&mut session, &Step::Ingest(story(3000)));
    let mut recall: Recall = session.recall("the boat").unwrap().clone();
    let before = seen(&mut session);
    let again = recall.blocks.clone();
    recall.blocks.extend(again.iter().cloned().chain(again.iter().cloned()));
    assert!(matches!(session.insert(recall), Err(SessionError::Cache(_))));
    assert_eq!(seen(&mut session), before);
    let copy = copy(data.path());
    assert_eq!(seen(&mut open(&model, &config, copy.path())), before);
}

/// Another program forgets blocks of a session that was killed: the replay writes them again, and
/// they are forgotten again.
#[test]
fn what_is_forgotten_after_a_kill_is_not_replayed() {
    let (model, config) = (tiny("llama"), small(Policy::Remember));
    let data = tempfile::tempdir().unwrap();
    let mut session = open(&model, &config, data.path());
    run(&mut session, &Step::Ingest(story(2500)));
    let query = "Captain Vasquez hid the emerald compass";
    let best = session.recall(query).unwrap().blocks.last().unwrap().block.range();
    let n_tokens = session.n_tokens();
    let killed = copy(data.path());
    let folder = Arc::new(SessionFolder::open(killed.path(), "test").unwrap());
    log_forgotten(&folder, &best).unwrap();
    let mut store = DiskStore::open(folder, DiskOptions::default()).unwrap();
    let order = store.metas().iter().position(|meta| meta.range == best).unwrap();
    store.forget(order).unwrap();
    drop(store);
    for _ in 0..2 {
        let mut session = open(&model, &config, killed.path());
        assert_eq!(session.n_tokens(), n_tokens);
        let recall = session.recall(query).unwrap();
        assert!(!recall.blocks.iter().any(|b| b.block.range() == best));
        assert!(session.search("emerald", 100).unwrap().iter().all(|f| f.meta.range != best));
    }
}

/// A turn between two parts of a document is no part of it.
#[test]
fn a_document_goes_on_where_it_stopped_whatever_was_said_between() {
    let (model, config) = (tiny("qwen2"), small(Policy::Remember));
    let data = tempfile::tempdir().unwrap();
    let (text, path) = (story(3000), data.path().to_owned());
    let mut copies = Vec::new();
    let mut session = open(&model, &config, data.path());
    session
        .ingest_rest(&text, Origin::file("a.txt"), &mut |_, n_read, _| {
            copies.push((copy(&path), n_read));
            Continue(())
        })
        .unwrap();
    let n_all = session.n_tokens() as usize;
    let (killed, n_read) = &copies[copies.len() / 2];
    let mut session = open(&model, &config, killed.path());
    run(&mut session, &Step::Turn("Where did the red boat go?"));
    run(&mut session, &Step::Answer(20));
    let origin = || Origin::file("a.txt");
    let n_rest = session.ingest_rest(&text, origin(), &mut |_, _, _| Continue(())).unwrap();
    assert_eq!(n_rest, n_all - n_read);
    let other = Origin::file("b.txt");
    assert!(session.ingest_rest(&text, other, &mut |_, _, _| Continue(())).unwrap() == n_all);
}

/// Where recalls go may change from one start to the next; a replay puts them where they went.
#[test]
fn a_replay_recalls_to_the_place_of_then() {
    let (model, mut config) = (tiny("llama"), small(Policy::Remember));
    let data = tempfile::tempdir().unwrap();
    let mut session = open(&model, &config, data.path());
    run(&mut session, &Step::Ingest(story(2000)));
    run(&mut session, &Step::Turn("Where did the red boat go?"));
    run(&mut session, &Step::Answer(10));
    let (expected, killed) = (seen(&mut session), copy(data.path()));
    config.recall.place = Place::Between;
    let mut session = open(&model, &config, killed.path());
    assert_eq!(seen(&mut session), expected);
    // The same blocks at another place are another recall.
    let recall = session.last_recall().unwrap().clone();
    let before = session.logits().to_vec();
    session.insert(recall).unwrap();
    session.append(&[5], Origin::turn(Role::Document)).unwrap();
    assert_ne!(session.logits(), before);
}

/// Killed while a turn was being read: the next start closes it.
#[test]
fn a_turn_that_was_cut_off_is_closed() {
    let (model, config) = (tiny("llama"), small(Policy::Remember));
    let data = tempfile::tempdir().unwrap();
    let mut session = open(&model, &config, data.path());
    run(&mut session, &Step::Ingest(story(1000)));
    let n_before = session.n_tokens();
    let long = "The boat went on. ".repeat(20);
    session.read_turn(&long).unwrap();
    let n_after = session.n_tokens();
    drop(session);
    // Its last chunk never came.
    let journal = file_of(data.path(), "journal-", 0);
    let bytes = fs_err::read(&journal).unwrap();
    fs_err::write(&journal, &bytes[..bytes.len() - 10]).unwrap();
    let mut session = open(&model, &config, data.path());
    assert!(session.n_tokens() > n_before && session.n_tokens() < n_after);
    assert!(session.awaits_answer());
    session.close_answer().unwrap();
    run(&mut session, &Step::Turn("Where?"));
}

/// A damaged block whose embedding is not stored either: it is not found, and that is all.
#[test]
fn a_damaged_block_without_embedding_does_not_keep_a_session_from_opening() {
    let (model, config) = (tiny("llama"), small(Policy::Remember));
    let data = tempfile::tempdir().unwrap();
    let mut session = open(&model, &config, data.path());
    run(&mut session, &Step::Ingest(story(3000)));
    session.save().unwrap();
    let n_blocks = session.memory().unwrap().stats().n_indexed;
    drop(session);
    let segment = SessionFolder::path_of(data.path(), "test").join("blocks/000001.blocks");
    let mut bytes = fs_err::read(&segment).unwrap();
    let at = bytes.windows(7).position(|w| w == b"emerald").unwrap();
    bytes[at] ^= 1;
    fs_err::write(&segment, bytes).unwrap();
    // Another encoder would drop all embeddings; opening the store under its name does so.
    let folder = Arc::new(SessionFolder::open(data.path(), "test").unwrap());
    let options = DiskOptions { encoder: Some("another".to_owned()), ..DiskOptions::default() };
    drop(DiskStore::open(folder, options).unwrap());
    let mut session = open(&model, &config, data.path());
    assert_eq!(session.memory().unwrap().stats().n_indexed, n_blocks - 1);
    assert!(!session.recall("Where did the boat go?").unwrap().blocks.is_empty());
    assert_eq!(session.search("boat", 1000).unwrap().len(), n_blocks - 1);
}

#[test]
fn recalling_while_reading_takes_windows_shorter_than_a_chunk() {
    let model = tiny("llama");
    let mut config = SessionConfig { chunk_tokens: 256, ..small(Policy::Remember) };
    config.recall.on_ingest = true;
    let mut session = common::session(&model, config);
    run(&mut session, &Step::Ingest(story(3000)));
}
