//! What can be said of an evaluation.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use everstream_eval::{Method, task};
use everstream_runtime::memory::Strategy;
use everstream_runtime::{DocumentContext, SessionConfig};

use super::{CacheArgs, ModelArgs, ReinsertionArgs, document_context, strategy};

#[derive(Args, Clone, Debug)]
pub(crate) struct EvalArgs {
    /// squad, triviaqa, stream-eval, passkey, number or kv-retrieval
    #[arg(value_name = "TASK", value_parser = task_name)]
    pub(crate) task: String,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The task's data: JSON or JSON Lines, also gzipped; generated tasks have none
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<PathBuf>,
    /// What the model sees: evidence (nothing else), closed-book (nothing), full, truncate, window,
    /// sink, rag-text or remember. Differences are from the first
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
    pub(crate) reinsertion: ReinsertionArgs,
    /// What documents see when they are read: paragraph or stream, as in `chat`
    #[arg(long, value_name = "WHAT", default_value = "paragraph", value_parser = document_context)]
    pub(crate) ingest_context: DocumentContext,
    /// Other items between what is asked for and the question (squad, triviaqa)
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) distractors: usize,
    /// Tokens, about, between what is asked for and the question (stream-eval), or of the whole stream (other
    /// generated tasks); several are compared
    #[arg(long, value_name = "T", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub(crate) distance: Vec<u64>,
    /// Questions at most, of each seed
    #[arg(long, value_name = "K", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) limit: u64,
    /// What is drawn; several seeds are asked one after the other
    #[arg(long, value_name = "SEED", value_delimiter = ',', default_value = "1")]
    pub(crate) seeds: Vec<u64>,
    /// Keep all answers here, and go on where an interrupted run stopped
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

impl EvalArgs {
    /// Settings of the sessions that remember.
    pub(crate) fn session(&self) -> SessionConfig {
        let mut config = self.cache.session(everstream_runtime::Policy::Remember);
        self.reinsertion.apply(&mut config);
        config.document_context = self.ingest_context;
        config
    }

    /// What is compared.
    pub(crate) fn methods(&self, config: &SessionConfig) -> Vec<Method> {
        let recalls: Vec<_> = self
            .strategy
            .iter()
            .map(|strategy| {
                let mut recall = config.recall.clone();
                recall.strategy = Arc::clone(strategy);
                recall
            })
            .collect();
        self.policy.iter().filter_map(|name| Method::by_name(name, &recalls)).flatten().collect()
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
