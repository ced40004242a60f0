//! `everstream serve`: conversations of any length for any OpenAI client.

use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail};
use everstream_runtime::memory::{Keep, SessionFolder};
use everstream_runtime::{DocumentContext, Policy, Sampler};
use everstream_server::{Engine, EngineConfig, Keys, SavedConfig, ServerConfig, serve};

use super::chat::INTERRUPTED;
use super::key;
use crate::args::{Common, LogArg, ServeArgs};
use crate::{load, output};

pub(crate) fn run(common: &Common, args: &ServeArgs) -> anyhow::Result<()> {
    let mut config = args.cache.session(args.policy.unwrap_or(Policy::Remember));
    args.recall.apply(&mut config);
    config.draft_tokens = args.draft.draft_tokens;
    // Paragraphs of documents do not see each other, as in `chat`.
    config.document_context = DocumentContext::Paragraph;
    config.check()?;
    if let Policy::Dense | Policy::Recompute = config.policy {
        bail!(
            "--policy {} does not serve conversations without end: use window, sink or remember",
            config.policy
        );
    }
    let defaults = args.sample.options();
    Sampler::new(defaults.sampler)?;
    if !defaults.stop.is_empty() {
        bail!("--stop belongs to requests: leave it out");
    }
    let keys = keys(args)?;
    let keep = Keep::from(args.memory_keep);
    load::check_limit(args.memory_max, keep)?;
    if !args.addr.ip().is_loopback() && keys.is_open() {
        bail!(
            "{} can be reached by others: give --api-key KEY or --keys FILE, or listen at 127.0.0.1",
            args.addr
        );
    }
    // As in `chat`, what is kept takes 8 bits a number.
    if args.recall.memory_type.is_none() {
        config.memory_type = load::SAVED_MEMORY_TYPE;
    }
    let level = match args.log {
        LogArg::Errors => tracing_subscriber::filter::LevelFilter::ERROR,
        LogArg::Requests => tracing_subscriber::filter::LevelFilter::INFO,
    };
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).init();
    let (named, clusters) = (&args.model.model, &args.cache.clusters);
    let (model, encoder) =
        load::model_and_encoder(common, named, clusters, args.policy, &mut config)?;
    load::index(&args.recall.index, None, encoder.as_deref(), &mut config)?;
    let data_dir = load::data_dir(common)?;
    // What would be wrong with the first session is said now.
    SessionFolder::list(&data_dir)?;
    fs_err::create_dir_all(data_dir.join("sessions"))?;
    let saved = SavedConfig {
        data_dir,
        max_bytes: args.memory_max,
        keep,
        max_sessions: args.max_sessions,
        max_open: args.open_sessions,
    };
    let engine = EngineConfig {
        session: config,
        sampler: defaults.sampler,
        max_tokens: defaults.max_tokens,
        max_answer: args.max_answer,
        max_resting: args.conversations,
        max_resting_bytes: args.conversations_memory,
        max_active: args.max_active,
        max_waiting: args.max_waiting,
        saved: Some(saved),
    };
    let started = Engine::start(model, encoder, engine);
    let (engine, thread) = started.map_err(anyhow::Error::from_boxed)?;
    let server = ServerConfig { model: name(&args.model.model), keys };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let served = runtime.block_on(listen(args, engine, server, &thread));
    // Whoever still waits is dropped, and what was begun for them ends.
    runtime.shutdown_timeout(Duration::from_secs(1));
    if thread.join().is_err() {
        bail!("the engine has stopped unexpectedly: sessions go on from their journals");
    }
    served
}

/// Serves until a signal comes, and then until all answers are given or the time for that is over.
async fn listen(
    args: &ServeArgs,
    engine: Engine,
    server: ServerConfig,
    thread: &JoinHandle<()>,
) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(args.addr)
        .await
        .with_context(|| format!("cannot listen at {}", args.addr))?;
    let addr = listener.local_addr()?;
    output::note(&format!("{} at http://{addr}/v1, and a page at http://{addr}", server.model));
    output::dim_note("Ctrl-C stops");
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        signal().await;
        let _ = stop.send(true);
        signal().await;
        // Asked a second time, before all answers were given.
        std::process::exit(INTERRUPTED);
    });
    let grace = Duration::from_secs(args.grace);
    let mut also_stopped = stopped.clone();
    let too_late = async {
        let _ = also_stopped.wait_for(|&is_stopped| is_stopped).await;
        tokio::time::sleep(grace).await;
    };
    // Without the engine nothing can be answered: whoever watches the process starts it again.
    let dead = async {
        while !thread.is_finished() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let stop = async move { drop(stopped.wait_for(|&is_stopped| is_stopped).await) };
    tokio::select! {
        served = serve(listener, engine, server, stop) => Ok(served?),
        () = too_late => Ok(()),
        () = dead => Ok(()),
    }
}

/// Waits until the server is asked to stop.
async fn signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        // Without the one there is the other.
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}

/// The keys that open the server.
fn keys(args: &ServeArgs) -> anyhow::Result<Keys> {
    if let Some(path) = &args.keys {
        let keys = key::read(path)?;
        if keys.is_empty() {
            bail!("{} has no key: make one by `everstream key NAME --keys FILE`", path.display());
        }
        return Ok(Keys::named(keys));
    }
    Ok(match args.api_key.clone().or_else(load::api_key) {
        Some(key) => Keys::one(&key),
        None => Keys::open(),
    })
}

/// The name of a model in requests: as it was given, or that of its file.
fn name(given: &str) -> String {
    let stem = Path::new(given).file_stem().and_then(|stem| stem.to_str());
    match given.to_lowercase().ends_with(".gguf") {
        true => stem.unwrap_or(given).to_owned(),
        false => given.to_owned(),
    }
}
