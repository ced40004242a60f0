//! Opens what commands work on: models, sentence encoders, texts.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use everstream_chroma::{ChromaConfig, ChromaTexts, MakeChroma};
use everstream_hub::{DEFAULT_ENCODER, Hub, HubConfig, ModelFiles, ModelKind, Spec};
use everstream_runtime::kernels::Isa;
use everstream_runtime::memory::{
    DEFAULT_SEGMENT_BYTES, Distance, Embedder, Keep, KvType, MakeExact, MakeIndex, MiniLm,
    MiniLmOptions, SessionFolder,
};
use everstream_runtime::model::{Model, ModelOptions};
use everstream_runtime::{Policy, SessionConfig, Storage};

use crate::args::{ClusterArgs, Common, IndexArg, IndexArgs, SessionArgs};
use crate::output;
use crate::output::PullProgress;

/// What the environment says, if it says something. Nothing outside this file reads it.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The key that a server's clients must have.
pub(crate) fn api_key() -> Option<String> {
    variable("EVERSTREAM_API_KEY")
}

/// The cache folder and where models come from.
pub(crate) fn hub(common: &Common) -> anyhow::Result<Hub> {
    let mut config = HubConfig::new(cache_dir(common)?);
    config.hf_endpoint = variable("HF_ENDPOINT");
    config.hf_token = variable("HF_TOKEN");
    if let Some(python) = variable("EVERSTREAM_PYTHON") {
        config.python = python;
    }
    config.offline = common.offline;
    Ok(Hub::new(config))
}

/// The folder for models and for the history of `chat`.
pub(crate) fn cache_dir(common: &Common) -> anyhow::Result<PathBuf> {
    match &common.cache_dir {
        Some(dir) => Ok(dir.clone()),
        None => default_cache_dir().context(
            "no cache folder: neither XDG_CACHE_HOME nor HOME is set; use --cache-dir DIR",
        ),
    }
}

fn default_cache_dir() -> Option<PathBuf> {
    xdg("XDG_CACHE_HOME", ".cache")
}

/// The program's folder under a base folder of the user's.
fn xdg(variable: &str, default: &str) -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = folder(variable).or_else(|| Some(folder("HOME")?.join(default)))?;
    Some(base.join("everstream"))
}

/// Storage of keys and values in sessions that are kept: half of f16, with a loss that is measured
/// in `docs/BENCHMARKS.md`.
pub(crate) const SAVED_MEMORY_TYPE: KvType = KvType::Q8;

/// The folder for sessions.
pub(crate) fn data_dir(common: &Common) -> anyhow::Result<PathBuf> {
    match &common.data_dir {
        Some(dir) => Ok(dir.clone()),
        None => xdg("XDG_DATA_HOME", ".local/share").context(
            "no folder for sessions: neither XDG_DATA_HOME nor HOME is set; use --data-dir DIR",
        ),
    }
}

/// Where a session lives, and how much it may take.
pub(crate) fn storage(common: &Common, args: &SessionArgs) -> anyhow::Result<Option<Storage>> {
    let Some(name) = &args.session else { return Ok(None) };
    let keep = Keep::from(args.memory_keep);
    let limit = args.memory_max.map(|max_bytes| check_limit(max_bytes, keep)).transpose()?;
    let folder = Arc::new(SessionFolder::create(&data_dir(common)?, name)?);
    let max_bytes = match limit {
        Some(max_bytes) => max_bytes,
        // What it has already is not to be dropped because others filled the disk.
        None => {
            let own = folder.segment_bytes()?;
            own + (fs4::available_space(folder.path())? / 2)
                .max(keep.fewest_segments() * DEFAULT_SEGMENT_BYTES)
        }
    };
    let accepts_loss = args.accept_loss;
    Ok(Some(Storage { folder, max_bytes: Some(max_bytes), keep, accepts_loss }))
}

/// Refuses a limit for what a session remembers that not even a few segments fit into.
pub(crate) fn check_limit(max_bytes: u64, keep: Keep) -> anyhow::Result<u64> {
    let least = keep.fewest_segments() * DEFAULT_SEGMENT_BYTES;
    if max_bytes < least {
        bail!("--memory-max {max_bytes} is too little: use at least {}MiB", least >> 20);
    }
    Ok(max_bytes)
}

/// Adds what blocks are found with to a session's settings. `session` is its name, if it has one.
pub(crate) fn index(
    args: &IndexArgs,
    session: Option<&str>,
    encoder: Option<&dyn Embedder>,
    config: &mut SessionConfig,
) -> anyhow::Result<()> {
    // Without a sentence encoder there is nothing to find.
    let Some(encoder) = encoder else { return Ok(()) };
    let distance = args.distance.into();
    let chroma = ChromaConfig {
        token: variable("CHROMA_TOKEN"),
        tenant: args.chroma_tenant.clone(),
        database: args.chroma_database.clone(),
        ..ChromaConfig::new(&args.chroma_url)
    };
    if let Some(name) = &args.recall_from {
        let texts = ChromaTexts::open(&chroma, name, encoder.dim(), distance, &encoder.name())?;
        config.recall.texts = Some(Arc::new(texts));
    }
    config.index = match args.index {
        IndexArg::Exact => Arc::new(MakeExact(distance)),
        IndexArg::Hnsw => hnsw(distance)?,
        IndexArg::Chroma => {
            let session = session.context(
                "--index chroma keeps vectors beyond the end of the program: give --session NAME",
            )?;
            let collection = args.chroma_collection.clone();
            Arc::new(MakeChroma {
                config: chroma,
                collection: collection.unwrap_or_else(|| format!("everstream-{session}")),
                distance,
                encoder: encoder.name(),
            })
        }
    };
    Ok(())
}

#[cfg(feature = "hnsw")]
#[expect(clippy::unnecessary_wraps, reason = "without the feature it can fail")]
fn hnsw(distance: Distance) -> anyhow::Result<Arc<dyn MakeIndex>> {
    Ok(Arc::new(everstream_runtime::memory::MakeHnsw(distance)))
}

#[cfg(not(feature = "hnsw"))]
fn hnsw(_: Distance) -> anyhow::Result<Arc<dyn MakeIndex>> {
    bail!("this program was built without it: build with --features hnsw, or use --index exact")
}

/// What finds text, if anything does.
type Encoder = Option<Arc<dyn Embedder>>;

/// The files of a model, pulled if they are absent.
pub(crate) fn files(common: &Common, name: &str) -> anyhow::Result<ModelFiles> {
    let hub = hub(common)?;
    let spec = hub.parse(name)?;
    pulled(&hub, &spec)
}

fn pulled(hub: &Hub, spec: &Spec) -> anyhow::Result<ModelFiles> {
    if let Some(files) = hub.locate(spec)? {
        return Ok(files);
    }
    Ok(hub.pull(spec, &mut PullProgress::new())?)
}

/// A file of data: a path, or one of a dataset of the hub, pulled if it is absent.
pub(crate) fn data(common: &Common, path: &Path) -> anyhow::Result<PathBuf> {
    let Some(name) = path.to_str().filter(|name| name.starts_with("hf:")) else {
        return Ok(path.to_owned());
    };
    let hub = hub(common)?;
    let files = pulled(&hub, &hub.parse_data(name)?)?;
    if files.kind != ModelKind::Dataset {
        bail!("{name} is a model: data are at hf:datasets/ORG/NAME");
    }
    Ok(files.main)
}

/// A language model, ready to run.
pub(crate) fn model(common: &Common, name: &str) -> anyhow::Result<Arc<Model>> {
    open_model(common, &model_files(common, name)?)
}

fn model_files(common: &Common, name: &str) -> anyhow::Result<ModelFiles> {
    let (options, n_cores) = (options(common)?, ModelOptions::default().n_threads);
    if options.n_threads > n_cores {
        let n_threads = options.n_threads;
        output::dim_note(&format!("{n_threads} threads on {n_cores} cores: fewer are faster"));
    }
    let files = files(common, name)?;
    let what = match files.kind {
        ModelKind::LanguageModel => return Ok(files),
        ModelKind::SentenceEncoder => "a sentence encoder",
        ModelKind::Dataset => "data",
    };
    bail!("{name} is {what}: choose a language model (see `everstream models`)")
}

fn open_model(common: &Common, files: &ModelFiles) -> anyhow::Result<Arc<Model>> {
    Ok(Arc::new(Model::open(&files.main, options(common)?)?))
}

/// A language model that `clusters` were measured to help, if there are any, and, if the policy
/// remembers, the sentence encoder, opened side by side. If nobody
/// asked for policy `remember`, and no sentence encoder can be had, the session goes on without
/// memory, and that is said.
pub(crate) fn model_and_encoder(
    common: &Common,
    name: &str,
    clusters: &ClusterArgs,
    asked: Option<Policy>,
    config: &mut SessionConfig,
) -> anyhow::Result<(Arc<Model>, Encoder)> {
    let files = model_files(common, name)?;
    let (model, encoder) = std::thread::scope(|scope| {
        // What must be downloaded is, before anything is opened, one after the other.
        let encoder = encoder_files(common, config.policy);
        let encoder = scope.spawn(|| open_encoder(common, encoder?));
        (open_model(common, &files), encoder.join())
    });
    let encoder = encoder.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let model = model?;
    clusters.check(&model.config().name)?;
    match encoder {
        Err(error) if asked.is_none() => {
            let why = output::one_line(&error);
            output::note(&format!("going on without memory, as with --policy sink: {why}"));
            config.policy = Policy::Sink;
            Ok((model, None))
        }
        encoder => Ok((model, encoder?)),
    }
}

/// How models compute.
pub(crate) fn options(common: &Common) -> anyhow::Result<ModelOptions> {
    let mut options = ModelOptions::default();
    if let Some(physical) = std::num::NonZeroUsize::new(num_cpus::get_physical()) {
        options.n_threads = options.n_threads.min(physical);
    }
    if let Some(n_threads) = common.threads {
        options.n_threads = n_threads;
    }
    if let Some(name) = &common.isa {
        options.isa = Isa::by_name(name).with_context(|| {
            let has: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
            format!("instruction set {name:?} is unknown or missing here: use {}", has.join(", "))
        })?;
    }
    Ok(options)
}

/// The sentence encoder, if the policy remembers.
pub(crate) fn encoder(common: &Common, policy: Policy) -> anyhow::Result<Encoder> {
    open_encoder(common, encoder_files(common, policy)?)
}

fn encoder_files(common: &Common, policy: Policy) -> anyhow::Result<Option<ModelFiles>> {
    let remembers = policy == Policy::Remember;
    remembers.then(|| files(common, DEFAULT_ENCODER)).transpose()
}

fn open_encoder(common: &Common, files: Option<ModelFiles>) -> anyhow::Result<Encoder> {
    let Some(files) = files else { return Ok(None) };
    let ModelOptions { n_threads, isa, .. } = options(common)?;
    Ok(Some(Arc::new(MiniLm::open(&files.dir, MiniLmOptions { n_threads, isa })?)))
}

/// Reads a text file; `-` is standard input.
pub(crate) fn text(path: &Path) -> anyhow::Result<String> {
    let bytes = if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
        bytes
    } else {
        fs_err::read(path)?
    };
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => bail!(
            "{} is not UTF-8 (byte {}): convert it, for instance with iconv",
            path.display(),
            error.utf8_error().valid_up_to()
        ),
    }
}
