//! `everstream serve`: conversations of any length for any OpenAI client.

use std::path::Path;

use anyhow::{Context, bail};
use everstream_runtime::{Policy, Sampler};
use everstream_server::{Engine, EngineConfig, ServerConfig, serve};

use super::chat::INTERRUPTED;
use crate::args::{Common, ServeArgs};
use crate::{load, output};

pub(crate) fn run(common: &Common, args: &ServeArgs) -> anyhow::Result<()> {
    let mut config = args.cache.session(args.policy.unwrap_or(Policy::Remember));
    args.recall.apply(&mut config);
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
    let api_key = args.api_key.clone().or_else(load::api_key);
    if !args.addr.ip().is_loopback() && api_key.is_none() {
        bail!("{} can be reached by others: give --api-key KEY, or listen at 127.0.0.1", args.addr);
    }
    let model = load::model(common, &args.model.model)?;
    let encoder = load::encoder_or_sink(common, args.policy, &mut config)?;
    load::index(&args.recall.index, None, encoder.as_deref(), &mut config)?;
    let engine = EngineConfig {
        session: config,
        sampler: defaults.sampler,
        max_tokens: defaults.max_tokens,
        max_resting: args.conversations,
        max_active: args.max_active,
        max_waiting: args.max_waiting,
    };
    let engine = Engine::start(model, encoder, engine).map_err(anyhow::Error::from_boxed)?;
    let server = ServerConfig { model: name(&args.model.model), api_key };

    let (stop, stopped) = tokio::sync::oneshot::channel();
    let mut stop = Some(stop);
    ctrlc::set_handler(move || match stop.take() {
        Some(stop) => drop(stop.send(())),
        // Asked a second time, before all answers were given.
        None => std::process::exit(INTERRUPTED),
    })
    .context("cannot listen for Ctrl-C")?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(args.addr)
            .await
            .with_context(|| format!("cannot listen at {}", args.addr))?;
        output::note(&format!(
            "{} at http://{}/v1; Ctrl-C stops",
            server.model,
            listener.local_addr()?
        ));
        let stop = async { drop(stopped.await) };
        Ok(serve(listener, engine, server, stop).await?)
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
