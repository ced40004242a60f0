//! What can be said on the command line.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use everstream_runtime::kv_cache::{KvType, Place, TokenPos};
use everstream_runtime::memory::{
    BlockFilter, Distance, Gate, Keep, KvType as MemoryType, Neighbours, RecallOrder, Role,
    Strategy,
};
use everstream_runtime::{DocumentContext, Insertion, Policy, RecallConfig, SessionConfig};

use crate::examples;

mod clusters;
mod eval;
mod memory;
mod sample;
mod serve;

pub(crate) use clusters::ClusterArgs;
pub(crate) use eval::{AllArgs, EvalArgs, EvalCommand, ReportArgs, RunArgs};
pub(crate) use memory::{
    ExportArgs, ImportArgs, MemoryAction, MemoryArgs, NamedSession, RemoveArgs, SearchArgs,
    ShowArgs,
};
pub(crate) use sample::{DraftArgs, SampleArgs};
pub(crate) use serve::{KeyArgs, LogArg, ServeArgs};

const EXAMPLES: &str = "\
Examples:
  everstream demo                                   watch it read, forget and remember
  everstream chat --ingest notes.md                 talk about a text of any length
  everstream generate --prompt 'Once upon a time'
  everstream perplexity --text book.txt --policy window,sink --window 1020
  everstream inspect smollm2-135m

Exit codes: 0 success, 1 failure (one line on standard error), 2 arguments that cannot be parsed.";

/// An LLM runtime whose stream never ends and never forgets.
#[derive(Debug, Parser)]
#[command(name = "everstream", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub(crate) struct Common {
    /// Threads to compute with [default: physical cores]
    #[arg(long, global = true, value_name = "N", value_parser = threads)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Instruction set: scalar, avx2 or avx512 [default: the widest of this CPU]
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) isa: Option<String>,
    /// Folder for models [default: $XDG_CACHE_HOME/everstream or ~/.cache/everstream]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) cache_dir: Option<PathBuf>,
    /// Folder for sessions [default: $XDG_DATA_HOME/everstream or ~/.local/share/everstream]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Use only what is in the cache folder
    #[arg(long, global = true)]
    pub(crate) offline: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Read a chronicle fifteen times longer than the cache, then ask about what left it
    #[command(after_help = examples::DEMO)]
    Demo(DemoArgs),
    /// Talk with a model; with piped input each line is a turn
    #[command(after_help = examples::CHAT)]
    Chat(ChatArgs),
    /// Continue a text
    #[command(after_help = examples::GENERATE)]
    Generate(GenerateArgs),
    /// Look at what sessions remember, export it, check it, delete it
    #[command(after_help = examples::MEMORY)]
    Memory(MemoryArgs),
    /// Serve conversations without end to any OpenAI client
    #[command(after_help = examples::SERVE)]
    Serve(ServeArgs),
    /// Make a key for a server that several people use
    #[command(after_help = examples::KEY)]
    Key(KeyArgs),
    /// Score a text under one or more policies, on the same positions
    #[command(after_help = examples::PERPLEXITY)]
    Perplexity(PerplexityArgs),
    /// Ask questions about streams, and compare what a model may see
    #[command(after_help = examples::EVAL)]
    Eval(EvalArgs),
    /// Measure prefill, decode, and time per token over the stream
    #[command(after_help = examples::BENCH)]
    Bench(BenchArgs),
    /// Show what a model file contains, and the memory it needs
    #[command(after_help = examples::INSPECT)]
    Inspect(InspectArgs),
    /// Download and verify a model
    #[command(after_help = examples::PULL)]
    Pull(PullArgs),
    /// List known models
    #[command(after_help = examples::MODELS)]
    Models(ModelsArgs),
    /// Delete a model from the cache folder
    #[command(after_help = examples::RM)]
    Rm(RmArgs),
    /// Print what a shell needs to complete these commands
    #[command(after_help = examples::COMPLETIONS)]
    Completions(CompletionsArgs),
}

/// Which model.
#[derive(Args, Clone, Debug)]
pub(crate) struct ModelArgs {
    /// A known name (see `everstream models`), hf:ORG/REPO/FILE, or the path of a GGUF file
    #[arg(long, value_name = "MODEL", default_value = everstream_hub::DEFAULT_MODEL)]
    pub(crate) model: String,
}

/// What the cache holds.
#[derive(Args, Clone, Debug)]
pub(crate) struct CacheArgs {
    /// Attention sinks: first tokens that never leave
    #[arg(long, value_name = "S", default_value_t = 4)]
    pub(crate) sinks: usize,
    /// Recent tokens that a query sees
    #[arg(long, value_name = "W", default_value_t = 512)]
    pub(crate) window: usize,
    /// Longest prefill chunk
    #[arg(long, value_name = "C", default_value_t = 256)]
    pub(crate) chunk: usize,
    /// Storage of keys and values
    #[arg(long, value_enum, default_value_t = CacheType::F16)]
    pub(crate) cache_type: CacheType,
    #[command(flatten)]
    pub(crate) clusters: ClusterArgs,
}

/// Where a stream that keeps everything ends.
#[derive(Args, Clone, Debug)]
pub(crate) struct DenseArgs {
    /// Tokens at which a stream of policy dense ends
    #[arg(long, value_name = "N", default_value_t = SessionConfig::default().max_tokens)]
    pub(crate) context_limit: usize,
}

/// How `remember` recalls.
#[derive(Args, Clone, Debug)]
pub(crate) struct RecallArgs {
    /// Which blocks are recalled: hybrid (by meaning and words), nearest, fusion, attention (by what the
    /// model looks at of the nearest; attention-clusters: of those in the best clusters of keys;
    /// attention-all: of all), mmr, max-distance, or the controls random, farthest and recent (open the gate for these)
    #[arg(long, value_name = "NAME", default_value = "hybrid", value_parser = strategy)]
    pub(crate) strategy: Arc<dyn Strategy>,
    #[command(flatten)]
    pub(crate) amount: AmountArgs,
    /// Where recalled context stands
    #[arg(long, value_enum, default_value_t = PlaceArg::Near)]
    pub(crate) place: PlaceArg,
    /// With which keys and values: stored ones, or ones computed from the tokens again, for all of a
    /// block or for its start
    #[arg(long, value_enum, default_value_t = InsertionArg::Auto)]
    pub(crate) insertion: InsertionArg,
    /// Recall again after every N tokens of an answer; 0 recalls at turns only
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) recall_every: usize,
    /// Recall for each chunk of text that is read, too; paragraphs are then not read apart
    #[arg(long)]
    pub(crate) recall_on_ingest: bool,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
    #[command(flatten)]
    pub(crate) index: IndexArgs,
    /// Storage of keys and values in the memory [default: q8 with --session, else f16]
    #[arg(long, value_enum)]
    pub(crate) memory_type: Option<MemoryTypeArg>,
}

/// How much comes back of what was found.
#[derive(Args, Clone, Debug)]
pub(crate) struct AmountArgs {
    /// Tokens of recalled context
    #[arg(long, value_name = "N", default_value_t = 300)]
    pub(crate) context_tokens: usize,
    /// Order of recalled blocks
    #[arg(long, value_enum, default_value_t = OrderArg::BestLast)]
    pub(crate) order: OrderArg,
    /// Blocks chosen at most
    #[arg(long, value_name = "N", default_value_t = RecallConfig::default().max_blocks)]
    pub(crate) recall_blocks: usize,
    /// What comes with each of them, as far as it fits: so many blocks before and after it, or the
    /// `paragraph` or turn that it is part of
    #[arg(long, value_name = "N|paragraph", default_value = "paragraph", value_parser = neighbours)]
    pub(crate) neighbours: Neighbours,
    /// Cosine distance above which nothing is recalled; 2 lets everything pass
    #[arg(
        long,
        value_name = "D",
        default_value_t = Gate::default().max_distance.unwrap_or(2.0),
        allow_negative_numbers = true,
        value_parser = distance
    )]
    pub(crate) gate: f32,
    /// A turn that has something recalled sees besides only the last turn with its answer, and at least
    /// the newest N tokens of the window; the others can be recalled, and are seen again by the next turn
    #[arg(long, value_name = "N|all", default_value = "0", value_parser = recall_window)]
    pub(crate) recall_window: usize,
}

/// What blocks are found with.
#[derive(Args, Clone, Debug)]
pub(crate) struct IndexArgs {
    /// exact; hnsw, approximate, for millions of blocks; or chroma, a server (with --session)
    #[arg(long, value_enum, default_value_t = IndexArg::Exact)]
    pub(crate) index: IndexArg,
    /// How distances are measured, as --gate means them
    #[arg(long, value_enum, default_value_t = DistanceArg::Cosine)]
    pub(crate) distance: DistanceArg,
    /// Address of a Chroma server
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    pub(crate) chroma_url: String,
    /// Tenant there
    #[arg(long, value_name = "NAME", default_value = "default_tenant")]
    pub(crate) chroma_tenant: String,
    /// Database there
    #[arg(long, value_name = "NAME", default_value = "default_database")]
    pub(crate) chroma_database: String,
    /// Collection for the vectors of the session [default: everstream-SESSION]
    #[arg(long, value_name = "NAME")]
    pub(crate) chroma_collection: Option<String>,
    /// Collection of a Chroma server whose texts are recalled besides blocks; its vectors must be
    /// those of all-MiniLM-L6-v2, Chroma's default
    #[arg(long, value_name = "COLLECTION")]
    pub(crate) recall_from: Option<String>,
}

/// Which blocks may be found.
#[derive(Args, Clone, Debug)]
pub(crate) struct FilterArgs {
    /// Find only what was written since: a duration (2h, 3days) or a time (2026-11-25T08:00:00Z)
    #[arg(long, value_name = "WHEN", value_parser = since)]
    pub(crate) since: Option<SystemTime>,
    /// Find only blocks of which this one wrote most: user, assistant, document or system; may be
    /// repeated. A short question is in one block with its answer
    #[arg(long, value_name = "ROLE", value_parser = role)]
    pub(crate) role: Vec<Role>,
    /// Find only what was read from a file with this in its name; may be repeated
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) source: Vec<String>,
}

impl FilterArgs {
    pub(crate) fn filter(&self) -> BlockFilter {
        BlockFilter { since: self.since, roles: self.role.clone(), sources: self.source.clone() }
    }
}

fn since(text: &str) -> Result<SystemTime, String> {
    if let Ok(duration) = humantime::parse_duration(text) {
        // Before all time, which is as long ago as anything can have been written.
        return Ok(SystemTime::now().checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH));
    }
    let text = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    let parsed = humantime::parse_rfc3339_weak(&text);
    parsed.map_err(|_| "use a duration such as 2h, or a time such as 2026-11-25".to_owned())
}

fn role(name: &str) -> Result<Role, String> {
    Role::by_name(name).ok_or_else(|| "use user, assistant, document or system".to_owned())
}

/// A size such as 500MB or 2GiB.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1.0,
        "KB" | "K" => 1e3,
        "MB" | "M" => 1e6,
        "GB" | "G" => 1e9,
        "TB" | "T" => 1e12,
        "KIB" => f64::from(1 << 10),
        "MIB" => f64::from(1 << 20),
        "GIB" => f64::from(1 << 30),
        _ => return Err("use a size such as 500MB or 2GiB".to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| "use a size such as 500MB or 2GiB".to_owned())?;
    let bytes = number * factor;
    if bytes >= u64::MAX as f64 {
        return Err("that is more than there is".to_owned());
    }
    Ok(bytes as u64)
}

/// Where a session lives.
#[derive(Args, Clone, Debug)]
pub(crate) struct SessionArgs {
    /// Keep the stream and its memory under this name; one that exists goes on where it ended
    #[arg(long, value_name = "NAME")]
    pub(crate) session: Option<String>,
    /// Disk space for what a session remembers, 128 MiB at least
    /// [default: what it has, and half of what is free]
    #[arg(long, value_name = "SIZE", value_parser = size, requires = "session")]
    pub(crate) memory_max: Option<u64>,
    /// What stays of more than that
    #[arg(long, value_enum, default_value_t = KeepArg::Newest, requires = "session")]
    pub(crate) memory_keep: KeepArg,
    /// Go on with a session whose journal is damaged, without what was read after the damage
    #[arg(long, requires = "session")]
    pub(crate) accept_loss: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeepArg {
    /// The newest
    Newest,
    /// Of all parts of the stream those blocks whose keys are unlike the others' (192 MiB at least)
    Distinct,
}

impl From<KeepArg> for Keep {
    fn from(arg: KeepArg) -> Self {
        match arg {
            KeepArg::Newest => Self::Newest,
            KeepArg::Distinct => Self::Distinct,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MemoryTypeArg {
    F32,
    F16,
    /// 8 bits
    Q8,
}

impl From<MemoryTypeArg> for MemoryType {
    fn from(arg: MemoryTypeArg) -> Self {
        match arg {
            MemoryTypeArg::F32 => Self::F32,
            MemoryTypeArg::F16 => Self::F16,
            MemoryTypeArg::Q8 => Self::Q8,
        }
    }
}

fn strategy(name: &str) -> Result<Arc<dyn Strategy>, String> {
    let all = everstream_runtime::memory::strategy::ALL;
    let found = everstream_runtime::memory::strategy::by_name(name);
    found.ok_or_else(|| format!("use {}", all.join(", ")))
}

fn document_context(name: &str) -> Result<DocumentContext, String> {
    let found = DocumentContext::ALL.into_iter().find(|context| context.name() == name);
    found.ok_or_else(|| "use stream or paragraph".to_owned())
}

/// The whole window, whatever its size.
const ALL_OF_IT: usize = usize::MAX;

fn recall_window(text: &str) -> Result<usize, String> {
    match text {
        "all" => Ok(ALL_OF_IT),
        _ => text.parse().map_err(|_| "use a number of tokens, or all".to_owned()),
    }
}

fn neighbours(name: &str) -> Result<Neighbours, String> {
    Neighbours::by_name(name).ok_or_else(|| "use a number of blocks, or paragraph".to_owned())
}

/// As many threads as any machine has cores.
fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let n: NonZeroUsize = text.parse().map_err(|e: std::num::ParseIntError| e.to_string())?;
    if n.get() > 1024 { Err("use 1 to 1024".to_owned()) } else { Ok(n) }
}

/// A threshold that something can pass.
fn distance(text: &str) -> Result<f32, String> {
    let d: f32 = text.parse().map_err(|e: std::num::ParseFloatError| e.to_string())?;
    if d.is_nan() { Err("use a number, such as 0.7".to_owned()) } else { Ok(d) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheType {
    F32,
    F16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum IndexArg {
    /// Every block is compared
    Exact,
    /// A graph of neighbours, where it is built in
    Hnsw,
    /// A Chroma server
    Chroma,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DistanceArg {
    /// Squared Euclidean
    L2,
    /// One minus the inner product
    Ip,
    /// One minus the cosine
    Cosine,
}

impl From<DistanceArg> for Distance {
    fn from(arg: DistanceArg) -> Self {
        match arg {
            DistanceArg::L2 => Self::L2,
            DistanceArg::Ip => Self::InnerProduct,
            DistanceArg::Cosine => Self::Cosine,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PlaceArg {
    /// Right before the newest turn
    Near,
    /// Between sinks and window
    Between,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum InsertionArg {
    /// The stored ones, unless several texts come back that never saw each other: these are computed
    /// again
    Auto,
    /// The stored ones
    Kv,
    /// All computed again, behind the sinks
    Tokens,
    /// The first 16 of each block computed again, the others stored
    Repair,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OrderArg {
    /// The most relevant nearest to the turn
    BestLast,
    /// As they stood in the stream
    Stream,
}

impl CacheArgs {
    /// The settings of a session.
    pub(crate) fn session(&self, policy: Policy) -> SessionConfig {
        SessionConfig {
            policy,
            n_sink: self.sinks,
            window_tokens: self.window,
            chunk_tokens: self.chunk,
            kv_type: match self.cache_type {
                CacheType::F32 => KvType::F32,
                CacheType::F16 => KvType::F16,
            },
            clusters: self.clusters.config(),
            ..SessionConfig::default()
        }
    }
}

impl RecallArgs {
    /// Adds these settings to a session's.
    pub(crate) fn apply(&self, config: &mut SessionConfig) {
        self.amount.apply(config);
        config.recall.place = self.place.place();
        config.recall.insertion = self.insertion.insertion();
        config.recall.strategy = Arc::clone(&self.strategy);
        config.recall.filter = self.filter.filter();
        config.recall.every = self.recall_every;
        config.recall.on_ingest = self.recall_on_ingest;
        if let Some(memory_type) = self.memory_type {
            config.memory_type = memory_type.into();
        }
    }
}

impl PlaceArg {
    pub(crate) fn place(self) -> Place {
        match self {
            Self::Near => Place::Near,
            Self::Between => Place::Between,
        }
    }
}

impl InsertionArg {
    pub(crate) fn insertion(self) -> Option<Insertion> {
        match self {
            Self::Auto => None,
            Self::Kv => Some(Insertion::Kv),
            Self::Tokens => Some(Insertion::Tokens),
            Self::Repair => Some(Insertion::Repair),
        }
    }
}

impl AmountArgs {
    /// Adds these settings to a session's.
    pub(crate) fn apply(&self, config: &mut SessionConfig) {
        config.context_tokens = self.context_tokens;
        config.recall = RecallConfig {
            order: match self.order {
                OrderArg::BestLast => RecallOrder::BestLast,
                OrderArg::Stream => RecallOrder::Stream,
            },
            max_blocks: self.recall_blocks,
            neighbours: self.neighbours,
            gate: Gate { max_distance: Some(self.gate) },
            window: (self.recall_window != ALL_OF_IT).then_some(self.recall_window),
            ..config.recall.clone()
        };
    }
}

#[derive(Args, Clone, Debug)]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Draws five of the twenty questions
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Ask all twenty questions
    #[arg(long)]
    pub(crate) all: bool,
    /// Print one JSON object instead
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// dense, window, recompute, sink or remember [default: remember; sink, if there is no sentence
    /// encoder]
    #[arg(long, value_name = "POLICY")]
    pub(crate) policy: Option<Policy>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) dense: DenseArgs,
    #[command(flatten)]
    pub(crate) recall: RecallArgs,
    #[command(flatten)]
    pub(crate) sample: SampleArgs,
    #[command(flatten)]
    pub(crate) draft: DraftArgs,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
    /// System prompt; its tokens are pinned as sinks
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Text files and folders to read first; - is standard input, which then holds no turns.
    /// Without --system the stream begins with the text itself, which the small models were
    /// measured to remember best. What a session has read of a file is not read again, as long as its
    /// path and its text are the same: of a file that grows, give what is new
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(crate) ingest: Vec<PathBuf>,
    /// What these texts see when they are read: stream is sinks and window; paragraph is sinks and
    /// their own paragraph, so that keys and values fit any other place (not with
    /// --recall-on-ingest)
    #[arg(long, value_name = "WHAT", default_value = "paragraph", value_parser = document_context)]
    pub(crate) ingest_context: DocumentContext,
    /// Print one JSON object for each turn
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Clone, Debug)]
#[command(group = clap::ArgGroup::new("text_to_continue").required(true))]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Text to continue; special tokens in it are read as plain text
    #[arg(long, value_name = "TEXT", group = "text_to_continue")]
    pub(crate) prompt: Option<String>,
    /// File to continue; - is standard input
    #[arg(long, value_name = "FILE", group = "text_to_continue")]
    pub(crate) file: Option<PathBuf>,
    /// dense, window, recompute, sink or remember [default: remember; sink, if there is no sentence
    /// encoder]
    #[arg(long, value_name = "POLICY")]
    pub(crate) policy: Option<Policy>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) dense: DenseArgs,
    #[command(flatten)]
    pub(crate) recall: RecallArgs,
    #[command(flatten)]
    pub(crate) sample: SampleArgs,
    #[command(flatten)]
    pub(crate) draft: DraftArgs,
    /// Put the text into the model's chat template as a user's turn
    #[arg(long)]
    pub(crate) chat: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct PerplexityArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Text to score; - is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) text: PathBuf,
    /// Score the first N tokens [default: all]
    #[arg(long, value_name = "N")]
    pub(crate) tokens: Option<usize>,
    /// Policies, separated by commas; window and recompute get S + W recent tokens, the budget of
    /// sink
    #[arg(long, value_name = "P[,P...]", value_delimiter = ',', default_value = "sink")]
    pub(crate) policy: Vec<Policy>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    /// Tokens of recalled context, of policy remember
    #[arg(long, value_name = "N", default_value_t = 300)]
    pub(crate) context_tokens: usize,
    /// Score every n-th token only (for recompute); all policies on the same positions
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) every: usize,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    /// Length of the prompt
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub(crate) prompt_tokens: usize,
    /// Tokens to decode
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) decode_tokens: usize,
    /// Random tokens to read after the decoded ones, with a full window; 0 leaves that out
    #[arg(long, value_name = "N", default_value_t = 2048)]
    pub(crate) ingest_tokens: usize,
    /// Repetitions; medians are printed
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) repetitions: usize,
    /// Stream this many tokens, and report time and memory by position; 0 leaves that out
    /// [default: all of --text, or 2048]
    #[arg(long, value_name = "N")]
    pub(crate) stream_tokens: Option<usize>,
    /// Write a plot of the stream here
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
    /// Text of the stream, one file after the other; its perplexity is reported, too [default:
    /// random tokens]
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub(crate) text: Vec<PathBuf>,
    /// Seed of random tokens
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct InspectArgs {
    /// A known name, hf:ORG/REPO/FILE, or the path of a GGUF file
    pub(crate) model: String,
    /// Policy of the cache whose memory is shown
    #[arg(long, value_name = "POLICY", default_value = "remember")]
    pub(crate) policy: Policy,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) dense: DenseArgs,
    /// Tokens of recalled context
    #[arg(long, value_name = "N", default_value_t = 300)]
    pub(crate) context_tokens: usize,
    /// List all metadata
    #[arg(long)]
    pub(crate) metadata: bool,
    /// List all tensors
    #[arg(long)]
    pub(crate) tensors: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct PullArgs {
    /// A known name, hf:ORG/REPO/FILE, or a path to check
    pub(crate) model: String,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct RmArgs {
    /// A known name or hf:ORG/REPO/FILE
    pub(crate) model: String,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct CompletionsArgs {
    pub(crate) shell: Shell,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ModelsArgs {
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// A range of tokens, `START..END`, or one token.
pub(crate) fn token_range(text: &str) -> Result<Range<TokenPos>, String> {
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let range = match text.split_once("..") {
        Some((start, end)) => number(start).zip(number(end)),
        None => number(text).and_then(|token| Some((token, token.checked_add(1)?))),
    };
    match range {
        Some((start, end)) if start < end => Ok(TokenPos(start)..TokenPos(end)),
        _ => Err("use a range of tokens such as 120..180, the first below the second".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parser_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_and_ranges() {
        for (text, bytes) in [("20GB", 20_000_000_000), ("1.5 mb", 1_500_000), ("7", 7)] {
            assert_eq!(size(text), Ok(bytes));
        }
        for text in ["", "GB", "1XB", "-1", "1.2.3"] {
            assert!(size(text).is_err(), "{text:?}");
        }
        let range = |start, end| Ok(TokenPos(start)..TokenPos(end));
        assert_eq!(token_range("120..180"), range(120, 180));
        assert_eq!(token_range(" 7 "), range(7, 8));
        for text in ["", "..", "5..", "5..5", "6..5", "a..b", "18446744073709551615", "-1..3"] {
            assert!(token_range(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn times() {
        let at = |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        assert_eq!(since("1970-01-02"), Ok(at(86_400)));
        assert_eq!(since("1970-01-01T00:00:05Z"), Ok(at(5)));
        assert!(since("2h").unwrap() < SystemTime::now());
        for text in ["", "yesterday", "1970-13-02", "2h ago"] {
            assert!(since(text).is_err(), "{text:?}");
        }
    }
}
