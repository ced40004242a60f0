//! What can be said of what sessions remember.

use std::ops::Range;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use everstream_runtime::kv_cache::TokenPos;
use everstream_runtime::memory::Distance;

use super::{FilterArgs, ModelArgs, token_range};

#[derive(Args, Clone, Debug)]
pub(crate) struct MemoryArgs {
    #[command(subcommand)]
    pub(crate) action: MemoryAction,
}

/// What to do with what sessions remember.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum MemoryAction {
    /// List all sessions
    Ls(ListArgs),
    /// List the blocks of a session
    Show(ShowArgs),
    /// Find the blocks of a session that are nearest to a text
    Search(SearchArgs),
    /// Write the blocks of a session as JSON Lines
    Export(ExportArgs),
    /// Read exported texts into a session, computing their keys and values
    Import(ImportArgs),
    /// Delete a session, or what it remembers of a range of tokens
    Rm(RemoveArgs),
    /// Read all that is stored of a session and name what is damaged
    Verify(NamedSession),
    /// Take off the disk what was forgotten or damaged
    Compact(NamedSession),
}

/// Which session.
#[derive(Args, Clone, Debug)]
pub(crate) struct NamedSession {
    /// Name of the session
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub(crate) session: String,
    /// Print JSON instead
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ListArgs {
    /// Print one JSON object for each session
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    pub(crate) of: NamedSession,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
    /// Only blocks with tokens of this range
    #[arg(value_name = "START..END", value_parser = token_range)]
    pub(crate) range: Option<Range<TokenPos>>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct SearchArgs {
    #[command(flatten)]
    pub(crate) of: NamedSession,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
    /// Blocks to show at most
    #[arg(long, short, value_name = "N", default_value_t = 5)]
    pub(crate) n: usize,
    /// How far apart two texts are: l2, ip or cosine, as Chroma defines them
    #[arg(long, value_name = "NAME", default_value = "cosine", value_parser = distance_name)]
    pub(crate) distance: Distance,
    /// What to search for
    pub(crate) query: String,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ExportArgs {
    /// Name of the session
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub(crate) session: String,
    #[command(flatten)]
    pub(crate) filter: FilterArgs,
    /// With keys and values, in base64
    #[arg(long)]
    pub(crate) kv: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ImportArgs {
    /// Name of the session that reads them
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub(crate) session: String,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// JSON Lines with a `text` each, and perhaps `role` and `source`, as `export` writes them
    pub(crate) file: PathBuf,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct RemoveArgs {
    /// Name of the session
    #[arg(long, value_name = "NAME")]
    pub(crate) session: String,
    /// Only blocks with tokens of this range; `compact` then takes them off the disk
    #[arg(value_name = "START..END", value_parser = token_range)]
    pub(crate) range: Option<Range<TokenPos>>,
}

fn distance_name(name: &str) -> Result<Distance, String> {
    let all = [Distance::L2, Distance::InnerProduct, Distance::Cosine];
    let found = all.into_iter().find(|distance| distance.as_str() == name);
    found.ok_or_else(|| "use l2, ip or cosine".to_owned())
}
