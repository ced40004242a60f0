//! `everstream serve`.

use std::net::SocketAddr;
use std::num::NonZeroUsize;

use clap::Args;
use everstream_runtime::Policy;

use super::{CacheArgs, ModelArgs, RecallArgs, SampleArgs};

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
}
