//! What can be said of an evaluation.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use everstream_eval::{Method, Reads, Task, task};
use everstream_runtime::memory::{Gate, Strategy};
use everstream_runtime::{DocumentContext, RecallConfig, SessionConfig};

use super::{
    AmountArgs, CacheArgs, DraftArgs, InsertionArg, ModelArgs, PlaceArg, document_context, strategy,
};
use crate::examples;

/// Strategies that others are compared with.
const CONTROLS: [&str; 3] = ["random", "farthest", "recent"];

#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct EvalArgs {
    #[command(subcommand)]
    pub(crate) command: Option<EvalCommand>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum EvalCommand {
    /// Run all that a TOML file describes, and write a report
    #[command(after_help = examples::EVAL_ALL)]
    All(AllArgs),
    /// Write a report of runs that were kept: Markdown, CSV, plots, and a page
    Report(ReportArgs),
}

#[derive(Args, Clone, Debug)]
pub(crate) struct AllArgs {
    /// A table `[[run]]` for each run, with a `task` and the flags of `eval` as keys; keys above them are
    /// for all runs
    #[arg(value_name = "FILE.toml")]
    pub(crate) file: PathBuf,
    /// Folder of the data files that it names [default: where the file is]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Keep answers and report here; the same command goes on where it was stopped
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Questions at most, of each seed, instead of what the file says
    #[arg(long, value_name = "K")]
    pub(crate) limit: Option<u64>,
    /// Run only these, by name
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ReportArgs {
    /// Folders that `--out` made, or folders of such folders
    #[arg(value_name = "DIR", required = true)]
    pub(crate) folders: Vec<PathBuf>,
    /// Write the report here [default: the first folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) to: Option<PathBuf>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct RunArgs {
    /// ppl, squad, triviaqa, multi-news, writing-prompts, fandom, stream-eval, passkey, number, kv-retrieval,
    /// multi-needle, longeval, locomo or qmsum
    #[arg(value_name = "TASK", required = true, value_parser = task_name)]
    pub(crate) task: Option<String>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The task's data: JSON, JSON Lines (also gzipped), Parquet (feature `parquet`), text for ppl and fandom;
    /// or hf:datasets/ORG/NAME/FILE. Generated tasks have none
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<PathBuf>,
    /// What the model sees: evidence (nothing else), closed-book (nothing), full, truncate, recompute,
    /// window, sink, rag-text or remember. Differences are from the first
    #[arg(
        long,
        value_name = "POLICY",
        value_delimiter = ',',
        default_value = "evidence,closed-book,sink,rag-text,remember",
        value_parser = policy
    )]
    pub(crate) policy: Vec<String>,
    /// Which blocks are recalled, as in `chat`; several are compared
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "hybrid",
        value_parser = strategy
    )]
    pub(crate) strategy: Vec<Arc<dyn Strategy>>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) amount: AmountArgs,
    #[command(flatten)]
    pub(crate) draft: DraftArgs,
    /// Where recalled context stands; several are compared
    #[arg(long, value_enum, value_delimiter = ',', default_value = "near")]
    pub(crate) place: Vec<PlaceArg>,
    /// With which keys and values it comes back; several are compared
    #[arg(long, value_enum, value_delimiter = ',', default_value = "auto")]
    pub(crate) insertion: Vec<InsertionArg>,
    /// What documents see when they are read: paragraph or stream, as in `chat`
    #[arg(long, value_name = "WHAT", default_value = "paragraph", value_parser = document_context)]
    pub(crate) ingest_context: DocumentContext,
    /// Other items between what is asked for and the question, in tasks whose data are items [default: squad
    /// and triviaqa 20, stories 8, multi-news 2]
    #[arg(long, value_name = "N")]
    pub(crate) distractors: Option<usize>,
    /// Ask questions without an answer as well (squad, locomo)
    #[arg(long)]
    pub(crate) unanswerable: bool,
    /// Tokens, about, between what is asked for and the question (stream-eval), or of the whole stream (other
    /// generated tasks, ppl); several are compared
    #[arg(long, value_name = "T", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub(crate) distance: Vec<u64>,
    /// Questions at most, of each seed
    #[arg(long, value_name = "K", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) limit: u64,
    /// What is drawn; several seeds are asked one after the other
    #[arg(long, value_name = "SEED", value_delimiter = ',', default_value = "1")]
    pub(crate) seeds: Vec<u64>,
    /// Streams that are read at the same time; they share the threads
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) jobs: NonZeroUsize,
    /// Keep all answers here, and go on where an interrupted run stopped
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

impl RunArgs {
    /// Settings of the sessions that remember.
    pub(crate) fn session(&self) -> SessionConfig {
        let mut config = self.cache.session(everstream_runtime::Policy::Remember);
        self.amount.apply(&mut config);
        config.draft_tokens = self.draft.draft_tokens;
        config.document_context = self.ingest_context;
        config
    }

    /// Refuses what the task would not look at.
    pub(crate) fn check(&self, task: &dyn Task) -> Result<(), String> {
        let reads = task.reads();
        let asks_for_more = self.unanswerable && !["squad", "locomo"].contains(&task.name());
        let unused = [
            ("--data", self.data.is_some() && reads == Reads::Nothing),
            ("--distractors", self.distractors.is_some() && reads != Reads::Items),
            (
                "--distance",
                !self.distance.is_empty() && matches!(reads, Reads::Items | Reads::Streams),
            ),
            ("--unanswerable", asks_for_more),
        ];
        match unused.iter().find(|(_, is_given)| *is_given) {
            Some((flag, _)) => {
                Err(format!("{flag} has no meaning for {}: leave it out", task.name()))
            }
            None => Ok(()),
        }
    }

    /// What is compared.
    pub(crate) fn methods(&self, config: &SessionConfig) -> Vec<Method> {
        let (mut as_text, mut put_back) = (Vec::new(), Vec::new());
        for strategy in &self.strategy {
            let mut recall =
                RecallConfig { strategy: Arc::clone(strategy), ..config.recall.clone() };
            // What is relevant is not what a control recalls.
            if CONTROLS.contains(&strategy.name()) {
                recall.gate = Gate::OPEN;
            }
            for place in &self.place {
                let place = place.place();
                let insertions = self.insertion.iter().map(|insertion| insertion.insertion());
                put_back.extend(insertions.map(|insertion| RecallConfig {
                    place,
                    insertion,
                    ..recall.clone()
                }));
            }
            as_text.push(recall);
        }
        let of = |name: &String| {
            let recalls = if name == "rag-text" { &as_text } else { &put_back };
            Method::by_name(name, recalls)
        };
        self.policy.iter().filter_map(of).flatten().collect()
    }
}

fn task_name(name: &str) -> Result<String, String> {
    let message = || format!("use {}", task::ALL.join(", "));
    task::by_name(name).map(|task| task.name().to_owned()).ok_or_else(message)
}

fn policy(name: &str) -> Result<String, String> {
    let message = || format!("use {}", Method::ALL.join(", "));
    Method::by_name(name, &[]).map(|_| name.to_owned()).ok_or_else(message)
}
