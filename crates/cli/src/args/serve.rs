//! `everstream serve` and `everstream key`.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use everstream_runtime::Policy;

use super::{CacheArgs, DraftArgs, KeepArg, ModelArgs, RecallArgs, SampleArgs, size};

#[derive(Args, Debug)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Address to listen at; others than this machine's own need an API key
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8080")]
    pub(crate) addr: SocketAddr,
    /// Key that requests must carry [default: $EVERSTREAM_API_KEY, or none]
    #[arg(long, value_name = "KEY", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) api_key: Option<String>,
    /// File with the keys of several people, who see nothing of each other (`everstream key` adds one)
    #[arg(long, value_name = "FILE", conflicts_with = "api_key")]
    pub(crate) keys: Option<PathBuf>,
    /// Answers that are worked on at once
    #[arg(long, value_name = "N", default_value = "8")]
    pub(crate) max_active: NonZeroUsize,
    /// Requests that wait for a place; more are refused
    #[arg(long, value_name = "N", default_value = "64")]
    pub(crate) max_waiting: NonZeroUsize,
    /// Conversations that are kept for their next turn, in memory; others are read again when they
    /// go on
    #[arg(long, value_name = "N", default_value = "16")]
    pub(crate) conversations: NonZeroUsize,
    /// Memory for their keys and values; the newest is kept however large it is
    #[arg(long, value_name = "SIZE", default_value = "4GB", value_parser = size)]
    pub(crate) conversations_memory: u64,
    /// Tokens of an answer at most, whatever a request says
    #[arg(long, value_name = "N", default_value_t = 16_384)]
    pub(crate) max_answer: usize,
    /// Sessions with a name that one key may have, on disk
    #[arg(long, value_name = "N", default_value = "1000")]
    pub(crate) max_sessions: NonZeroUsize,
    /// Of these, so many stay in memory between turns
    #[arg(long, value_name = "N", default_value = "8")]
    pub(crate) open_sessions: NonZeroUsize,
    /// Disk space for what one of them remembers, 128 MiB at least
    #[arg(long, value_name = "SIZE", default_value = "8GB", value_parser = size)]
    pub(crate) memory_max: u64,
    /// What stays of more than that
    #[arg(long, value_enum, default_value_t = KeepArg::Newest)]
    pub(crate) memory_keep: KeepArg,
    /// What is written to standard error: nothing of what requests and answers say
    #[arg(long, value_enum, default_value_t = LogArg::Errors)]
    pub(crate) log: LogArg,
    /// Seconds that answers may still take when the server is stopped
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) grace: u64,
    /// window, sink or remember [default: remember; sink, if there is no sentence encoder]
    #[arg(long, value_name = "POLICY")]
    pub(crate) policy: Option<Policy>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) recall: RecallArgs,
    /// What requests leave out is taken from these
    #[command(flatten)]
    pub(crate) sample: SampleArgs,
    #[command(flatten)]
    pub(crate) draft: DraftArgs,
}

/// What is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogArg {
    /// What is wrong at the server.
    Errors,
    /// A line for each request besides.
    Requests,
}

#[derive(Args, Debug)]
pub(crate) struct KeyArgs {
    /// Whose key it is: letters, digits, '.', '_' and '-'
    pub(crate) name: String,
    /// File to add its SHA-256 to; it is made if there is none
    #[arg(long, value_name = "FILE")]
    pub(crate) keys: PathBuf,
}
