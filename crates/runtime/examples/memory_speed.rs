//! What the memory costs: putting keys and values back against computing them again, and what
//! storing and embedding add to reading.
//!
//! `cargo xtask soak memory-speed MODEL [TOKENS]` prints Markdown; everything takes turns, medians.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use everstream_runtime::kv_cache::Place;
use everstream_runtime::memory::{
    BlockStore, DiskOptions, DiskStore, Embedder, HashEmbedder, Keep, KvType, MiniLm,
    MiniLmOptions, Recall, RecalledBlock, SessionFolder,
};
use everstream_runtime::model::Model;
use everstream_runtime::{
    Insertion, Origin, Policy, RecallConfig, Session, SessionConfig, Storage, Timings,
};

#[path = "common/books.rs"]
mod books;
mod common;

const ROUNDS: usize = 7;
const RECALLED: usize = 300;
/// Tokens that are read one by one in a round.
const DECODED: usize = 64;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let variable = match args.first().map(String::as_str) {
        Some("qwen") => "EVERSTREAM_TEST_QWEN",
        Some("smollm2") => "EVERSTREAM_TEST_SMOLLM2",
        _ => bail!("use memory_speed qwen|smollm2 [TOKENS]"),
    };
    let n_tokens: usize = args.get(1).map_or(Ok(4096), |n| n.parse())?;
    let model = common::model(variable)?;
    let encoder: Arc<dyn Embedder> =
        Arc::new(MiniLm::open(&common::path("EVERSTREAM_TEST_MINILM")?, MiniLmOptions::default())?);
    let text = books::book("Middlemarch")?;
    println!("\n{}, {} threads, {} rounds", model.config().name, model.n_threads(), ROUNDS);
    reinsertion(&model, &text)?;
    decoding(&model, &encoder, &text)?;
    reading(&model, &encoder, &text, n_tokens)?;
    Ok(())
}

fn config(memory_type: KvType) -> SessionConfig {
    SessionConfig { memory_type, ..SessionConfig::default() }
}

/// A session in a folder.
fn open(
    model: &Arc<Model>,
    encoder: &Arc<dyn Embedder>,
    config: SessionConfig,
    data: &Path,
) -> anyhow::Result<Session> {
    let folder = Arc::new(SessionFolder::create(data, "speed")?);
    let storage = Storage { folder, max_bytes: None, keep: Keep::Newest, accepts_loss: false };
    Ok(Session::open(Arc::clone(model), Arc::clone(encoder), config, &storage)?)
}

/// 300 tokens: computed again, and put back from RAM, from files that the system has in memory, and
/// from files that it must read.
fn reinsertion(model: &Arc<Model>, text: &str) -> anyhow::Result<()> {
    let encoder: Arc<dyn Embedder> = Arc::new(HashEmbedder);
    let tokens = everstream_runtime::encode(model, text)?;
    let tokens = &tokens[..1500];
    println!("\n| 300 tokens | ms, median (smallest..largest) | times faster |\n|---|---|---|");
    let mut session = Session::new(
        Arc::clone(model),
        None,
        SessionConfig { policy: Policy::Sink, ..SessionConfig::default() },
    )?;
    session.append(&tokens[..1000], Origin::file("text"))?;
    let prefill = times(&mut || {
        let mut branch = session.branch()?;
        let start = Instant::now();
        branch.append(&tokens[1000..1000 + RECALLED], Origin::file("text"))?;
        Ok(start.elapsed())
    })?;
    println!("| computed | {} | |", ms(&prefill));
    for memory_type in [KvType::F16, KvType::Q8] {
        let data = tempfile::tempdir()?;
        let mut session = open(model, &encoder, config(memory_type), data.path())?;
        session.append(tokens, Origin::file("text"))?;
        session.save()?;
        let ways = [
            (Place::Near, Insertion::Kv),
            (Place::Between, Insertion::Kv),
            (Place::Near, Insertion::Repair),
            (Place::Near, Insertion::Tokens),
        ];
        for (place, insertion) in ways {
            let recall = RecallConfig { place, insertion: Some(insertion), ..Default::default() };
            session.set_recall(recall);
            let orders = orders(&session)?;
            let recall = read(&session, &orders)?;
            let ram = times(&mut || {
                let mut branch = session.branch()?;
                let recall = recall.clone();
                let start = Instant::now();
                branch.insert(recall)?;
                Ok(start.elapsed())
            })?;
            let (memory_type, place) = (memory_type.name(), format!("{place:?}").to_lowercase());
            let label = format!("{memory_type}, `{place}`, `{}`", insertion.name());
            println!("| {label}, from RAM | {} | {:.0} |", ms(&ram), ratio(&prefill, &ram));
        }
        session.set_recall(RecallConfig { place: Place::Near, ..Default::default() });
        let orders = orders(&session)?;
        for (label, is_cold) in [("files, in the page cache", false), ("files, not in it", true)] {
            let disk = times(&mut || {
                let mut branch = session.branch()?;
                let options = DiskOptions { hot_bytes: 0, ..DiskOptions::default() };
                let copy = copy(data.path())?;
                let folder = Arc::new(SessionFolder::create(copy.path(), "speed")?);
                let store = DiskStore::open(folder, options)?;
                if is_cold {
                    drop_page_cache(copy.path())?;
                }
                let start = Instant::now();
                let blocks: Result<Vec<_>, _> =
                    orders.iter().map(|&order| store.get(order)).collect();
                let mut recall = Recall::default();
                recall.blocks = blocks?.into_iter().map(|b| RecalledBlock::whole(b, 0.0)).collect();
                branch.insert(recall)?;
                Ok(start.elapsed())
            })?;
            let name = memory_type.name();
            println!("| {name}, from {label} | {} | {:.0} |", ms(&disk), ratio(&prefill, &disk));
        }
    }
    Ok(())
}

fn copy(data: &Path) -> anyhow::Result<tempfile::TempDir> {
    let to = tempfile::tempdir()?;
    let status = std::process::Command::new("cp")
        .args(["-r".as_ref(), data.join(".").as_os_str(), to.path().as_os_str()])
        .status()?;
    if status.success() { Ok(to) } else { bail!("cannot copy {}", data.display()) }
}

/// Works for root only; elsewhere the files stay in memory, and the row says what the one above it
/// says.
fn drop_page_cache(_data: &Path) -> anyhow::Result<()> {
    let _ = std::process::Command::new("sync").status()?;
    let _ = fs_err::write("/proc/sys/vm/drop_caches", "1");
    Ok(())
}

/// Blocks that left the window, as many as 300 tokens hold.
fn orders(session: &Session) -> anyhow::Result<Vec<usize>> {
    let metas = session.memory().context("it remembers")?.metas();
    let (mut orders, mut n_tokens) = (Vec::new(), 0);
    for (order, meta) in metas.iter().enumerate() {
        if n_tokens + meta.n_tokens() <= RECALLED {
            n_tokens += meta.n_tokens();
            orders.push(order);
        }
    }
    eprintln!("{} blocks, {n_tokens} tokens", orders.len());
    Ok(orders)
}

fn read(session: &Session, orders: &[usize]) -> anyhow::Result<Recall> {
    let memory = session.memory().context("it remembers")?;
    let mut recall = Recall::default();
    for &order in orders {
        recall.blocks.push(RecalledBlock::whole(memory.block(order)?, 0.0));
    }
    Ok(recall)
}

/// Time of a token that is read alone, in streams of equal budget with and without a memory on
/// disk. What is stored is embedded after the answer, which is not part of it.
fn decoding(model: &Arc<Model>, encoder: &Arc<dyn Embedder>, text: &str) -> anyhow::Result<()> {
    let tokens = everstream_runtime::encode(model, text)?;
    let sink = |window_tokens| {
        let config = SessionConfig { policy: Policy::Sink, window_tokens, ..config(KvType::Q8) };
        Session::new(Arc::clone(model), None, config)
    };
    let folders = [tempfile::tempdir()?, tempfile::tempdir()?];
    // All of the window is seen beside what is recalled, so that the budgets are equal.
    let mut all_seen = config(KvType::Q8);
    all_seen.recall.window = None;
    let remember = |data: &Path| open(model, encoder, all_seen.clone(), data);
    let mut rows = [
        ("sink, 4 + 512", sink(512)?, Vec::new()),
        ("remember, nothing recalled", remember(folders[0].path())?, Vec::new()),
        ("sink, 4 + 512 + 300", sink(512 + RECALLED)?, Vec::new()),
        ("remember, up to 300 recalled", remember(folders[1].path())?, Vec::new()),
    ];
    for (_, session, _) in &mut rows {
        session.append(&tokens[..1500], Origin::file("text"))?;
        session.end_turn()?;
    }
    let orders = orders(&rows[3].1)?;
    let recall = read(&rows[3].1, &orders)?;
    rows[3].1.insert(recall)?;
    let before: Vec<Timings> = rows.iter().map(|row| row.1.timings()).collect();
    let mut order = [0, 1, 2, 3];
    let mut rng = fastrand::Rng::with_seed(1);
    for round in tokens[1500..].chunks_exact(DECODED).take(2 * ROUNDS + 1) {
        rng.shuffle(&mut order);
        for i in order {
            let (_, session, times) = &mut rows[i];
            let start = Instant::now();
            for token in round {
                session.append(&[*token], Origin::file("text"))?;
            }
            times.push(start.elapsed() / DECODED as u32);
        }
    }
    println!(
        "\n| tokens one by one | ms each, median (smallest..largest) | more time | forward pass, mean \
         | storing, mean |"
    );
    println!("|---|---|---|---|---|");
    for (i, (label, session, times)) in rows.iter().enumerate() {
        let more = 100.0 * (ratio(times, &rows[i / 2 * 2].2) - 1.0);
        let n_tokens = (DECODED * times.len()) as f64;
        let each = |part: fn(Timings) -> Duration| {
            1e3 * (part(session.timings()) - part(before[i])).as_secs_f64() / n_tokens
        };
        let (forward, storing) = (each(|t| t.forward), each(|t| t.remember));
        println!("| {label} | {} | {more:+.1} % | {forward:.3} | {storing:.3} |", ms(times));
    }
    Ok(())
}

/// Tokens per second of reading: without memory, with blocks in RAM and on disk, and with all.
fn reading(
    model: &Arc<Model>,
    encoder: &Arc<dyn Embedder>,
    text: &str,
    n_tokens: usize,
) -> anyhow::Result<()> {
    let words: Arc<dyn Embedder> = Arc::new(HashEmbedder);
    let end = text.floor_char_boundary(4 * n_tokens);
    let text = &text[..end];
    let sink = SessionConfig { policy: Policy::Sink, ..SessionConfig::default() };
    let mut rows: Vec<(&str, Vec<Duration>)> = Vec::new();
    let mut n_read = 0;
    let labels = [
        "policy sink, 4 + 512: no memory",
        "blocks in RAM, f16, not embedded",
        "blocks in RAM, q8, not embedded",
        "blocks on disk, f16, not embedded",
        "blocks on disk, q8, not embedded",
        "blocks on disk, q8, embedded: all of it",
    ];
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..7 {
        // What ran just before must not decide.
        let mut all: Vec<_> = labels.into_iter().enumerate().collect();
        rng.shuffle(&mut all);
        for (i, label) in all {
            let data = tempfile::tempdir()?;
            let mut session = match i {
                0 => Session::new(Arc::clone(model), None, sink.clone())?,
                1 => {
                    Session::new(Arc::clone(model), Some(Arc::clone(&words)), config(KvType::F16))?
                }
                2 => Session::new(Arc::clone(model), Some(Arc::clone(&words)), config(KvType::Q8))?,
                3 => open(model, &words, config(KvType::F16), data.path())?,
                4 => open(model, &words, config(KvType::Q8), data.path())?,
                _ => open(model, encoder, config(KvType::Q8), data.path())?,
            };
            let start = Instant::now();
            n_read = session
                .ingest(text, Origin::file("text"), &mut |_, _, _| ControlFlow::Continue(()))?;
            let elapsed = start.elapsed();
            match rows.iter_mut().find(|row| row.0 == label) {
                Some(row) => row.1.push(elapsed),
                None => rows.push((label, vec![elapsed])),
            }
        }
    }
    println!("\n| reading {n_read} tokens | tokens/s, median | more time |\n|---|---|---|");
    rows.sort_by_key(|row| labels.iter().position(|label| *label == row.0));
    let base = median(&rows[0].1);
    for (label, times) in &rows {
        let time = median(times).as_secs_f64();
        let more = 100.0 * (time / base.as_secs_f64() - 1.0);
        println!("| {label} | {:.0} | {more:+.1} % |", n_read as f64 / time);
    }
    Ok(())
}

fn times(run: &mut dyn FnMut() -> anyhow::Result<Duration>) -> anyhow::Result<Vec<Duration>> {
    run()?;
    (0..ROUNDS).map(|_| run()).collect()
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() / 2]
}

fn ratio(slow: &[Duration], fast: &[Duration]) -> f64 {
    median(slow).as_secs_f64() / median(fast).as_secs_f64()
}

fn ms(times: &[Duration]) -> String {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let (low, high) = (times.iter().min(), times.iter().max());
    let edge = |time: Option<&Duration>| time.map_or(0.0, |&time| ms(time));
    format!("{:.2} ({:.2}..{:.2})", ms(median(times)), edge(low), edge(high))
}
