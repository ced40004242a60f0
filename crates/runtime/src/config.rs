//! What a session is made with, checked once.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use everstream_kv_cache::{
    ClusterConfig, ClusterPlace, EvictionPolicy, KvType, NeverEvict, Place, SinkWindow,
};
use everstream_memory::{
    BlockFilter, BlockSizes, Gate, Hybrid, KvType as MemoryType, MakeExact, MakeIndex, Neighbours,
    RecallOrder, Strategy, TextSource,
};

use crate::SessionError;

/// What a stream keeps of its past.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Everything, up to a limit: full attention.
    Dense,
    /// The most recent tokens only; breaks once the first tokens leave.
    Window,
    /// The most recent tokens, computed anew for every token: exact, and slow.
    Recompute,
    /// Attention sinks and the most recent tokens: StreamingLLM.
    Sink,
    /// Sinks, the most recent tokens, and a memory of all that left.
    Remember,
}

impl Policy {
    /// All policies, in the order of tables.
    pub const ALL: [Self; 5] =
        [Self::Dense, Self::Window, Self::Recompute, Self::Sink, Self::Remember];

    /// The name on the command line and in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Window => "window",
            Self::Recompute => "recompute",
            Self::Sink => "sink",
            Self::Remember => "remember",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Policy {
    type Err = SessionError;

    fn from_str(name: &str) -> Result<Self, SessionError> {
        let found = Self::ALL.into_iter().find(|p| p.name() == name.trim());
        found.ok_or_else(|| SessionError::UnknownPolicy { name: name.to_owned() })
    }
}

/// With which keys and values a block enters the cache again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Insertion {
    /// Those that were stored: nothing is computed but their rotation.
    #[default]
    Kv,
    /// New ones: the block's tokens are read again, behind sinks, clusters and what is recalled before.
    Tokens,
    /// Stored ones, but for the first [`REPAIR_TOKENS`](crate::REPAIR_TOKENS) of each block, which
    /// are read again.
    Repair,
}

impl Insertion {
    /// All of them; files name one by its place here.
    pub const ALL: [Self; 3] = [Self::Kv, Self::Tokens, Self::Repair];

    /// The name on the command line and in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kv => "kv",
            Self::Tokens => "tokens",
            Self::Repair => "repair",
        }
    }
}

/// What the tokens of a document see when they are read.
///
/// Keys and values hold something of all that their token saw. Those of a paragraph that saw others
/// fit behind those others only; those of one that saw the sinks alone fit anywhere.
///
/// Source: Lu et al., "TurboRAG: Accelerating Retrieval-Augmented Generation with Precomputed KV
/// Caches for Chunked Text", 2024, arXiv:2410.07590, who compute chunks apart before they are needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DocumentContext {
    /// Sinks and window, as all else.
    #[default]
    Stream,
    /// Sinks, clusters and their own paragraph.
    Paragraph,
}

impl DocumentContext {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Stream, Self::Paragraph];

    /// The name on the command line and in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Paragraph => "paragraph",
        }
    }
}

/// Capacities and settings of a [`Session`](crate::Session).
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Its name, part of the ids of its blocks.
    pub name: String,
    /// What it keeps.
    pub policy: Policy,
    /// Tokens kept from the start of the stream. Not used by `window` and `recompute`.
    pub n_sink: usize,
    /// Past tokens that a query sees besides the sinks.
    pub window_tokens: usize,
    /// Capacity for recalled tokens, of `remember`.
    pub context_tokens: usize,
    /// How what left the window is summarised, of `sink` and `remember`; `None` for not at all.
    pub clusters: Option<ClusterConfig>,
    /// Longest prefill chunk.
    pub chunk_tokens: usize,
    /// Where a `dense` stream ends.
    pub max_tokens: usize,
    /// Tokens of an answer that are guessed at most, by what stood in the stream before, and computed
    /// with the one before them; 0 guesses none, and more than 19 are never guessed. They change nothing
    /// but the time. Streams that take their steps together share them; not with clusters, nor with
    /// `recompute`.
    pub draft_tokens: usize,
    /// Storage type of keys and values in the cache.
    pub kv_type: KvType,
    /// Storage type of keys and values in the memory, of `remember`.
    pub memory_type: MemoryType,
    /// What documents see that `remember` and `sink` read, unless something is recalled for them
    /// ([`RecallConfig::on_ingest`]).
    pub document_context: DocumentContext,
    /// What `remember` finds blocks with.
    pub index: Arc<dyn MakeIndex>,
    /// How `remember` recalls.
    pub recall: RecallConfig,
}

/// How a session recalls.
#[derive(Clone, Debug)]
pub struct RecallConfig {
    /// Where recalled tokens stand.
    pub place: Place,
    /// With which keys and values; `None` for [`Insertion::Kv`] where one piece of the stream comes
    /// back alone that saw what stands before it in it, and for [`Insertion::Tokens`] where several do, or
    /// paragraphs that were read apart, or something beside a pinned or foreign text.
    /// `docs/decisions/011-insertion.md`.
    pub insertion: Option<Insertion>,
    /// Which blocks are proposed.
    pub strategy: Arc<dyn Strategy>,
    /// In which order.
    pub order: RecallOrder,
    /// Blocks at most.
    pub max_blocks: usize,
    /// What comes with each of them.
    pub neighbours: Neighbours,
    /// What is relevant enough.
    pub gate: Gate,
    /// Which blocks may be recalled at all.
    pub filter: BlockFilter,
    /// Texts of somebody else that may be recalled besides; they are computed, since nobody has
    /// their keys and values.
    pub texts: Option<Arc<dyn TextSource>>,
    /// Tokens of the window that a turn sees if something is recalled for it, besides the last turn
    /// with its answer; `None` for all. Text that a turn does not need draws attention from what was
    /// recalled for it. The rest is hidden until the next turn, and can be recalled meanwhile.
    pub window: Option<usize>,
    /// Recall again after so many tokens of an answer, for its newest tokens; 0 recalls at turns
    /// only.
    pub every: usize,
    /// Whether text that is read recalls as well: for each chunk, in front of it.
    pub on_ingest: bool,
    /// Tokens per block.
    pub sizes: BlockSizes,
}

impl RecallConfig {
    /// The name of the insertion on the command line and in results.
    #[must_use]
    pub fn insertion_name(&self) -> &'static str {
        self.insertion.map_or("auto", Insertion::name)
    }
}

impl Default for RecallConfig {
    /// The setting that answered best, computing again only several texts:
    /// `docs/decisions/008-paragraphs.md` and `009-words.md`.
    fn default() -> Self {
        Self {
            place: Place::Near,
            insertion: None,
            strategy: Arc::new(Hybrid::default()),
            order: RecallOrder::BestLast,
            max_blocks: 1,
            neighbours: Neighbours::Paragraph,
            gate: Gate::default(),
            filter: BlockFilter::default(),
            texts: None,
            window: Some(0),
            every: 0,
            on_ingest: false,
            sizes: BlockSizes::default(),
        }
    }
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            name: "main".to_owned(),
            policy: Policy::Remember,
            n_sink: 4,
            window_tokens: 512,
            context_tokens: 300,
            clusters: None,
            chunk_tokens: 256,
            max_tokens: 8192,
            draft_tokens: 7,
            kv_type: KvType::default(),
            memory_type: MemoryType::default(),
            document_context: DocumentContext::default(),
            index: Arc::new(MakeExact::default()),
            recall: RecallConfig::default(),
        }
    }
}

impl SessionConfig {
    /// The most that any section may hold.
    pub const MAX_SECTION_TOKENS: usize = 1 << 29;

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`SessionError::Setting`] naming the first that cannot be.
    pub fn check(&self) -> Result<(), SessionError> {
        let setting = |what, value, rule| Err(SessionError::Setting { what, value, rule });
        for (what, value) in [
            ("the window", self.window_tokens),
            ("the number of sinks", self.n_sink),
            ("the recalled context", self.context_tokens),
            ("a prefill chunk", self.chunk_tokens),
            ("the limit of a dense cache", self.max_tokens),
        ] {
            if value > Self::MAX_SECTION_TOKENS {
                return setting(what, value, format!("at most {}", Self::MAX_SECTION_TOKENS));
            }
        }
        if self.window_tokens == 0 && self.policy != Policy::Dense {
            return setting("the window", 0, "at least 1 token: try --window 512".to_owned());
        }
        if self.chunk_tokens == 0 {
            return setting("a prefill chunk", 0, "at least 1 token: try --chunk 256".to_owned());
        }
        if self.policy == Policy::Dense && self.n_sink > self.max_tokens {
            let rule = format!("at most the {} tokens of the cache", self.max_tokens);
            return setting("the number of sinks", self.n_sink, rule);
        }
        if let Some(clusters) = self.clusters {
            let n = clusters.n_clusters;
            if !matches!(self.policy, Policy::Sink | Policy::Remember) {
                let rule = "0 unless the policy is sink or remember".to_owned();
                return setting("the number of clusters", n, rule);
            }
            clusters.check()?;
        }
        let longest = self.recall.sizes.max();
        if self.policy == Policy::Remember && self.window_tokens < longest {
            let rule = format!("at least {longest} tokens with policy remember, a whole block");
            return setting("the window", self.window_tokens, rule);
        }
        if self.policy == Policy::Remember && self.context_tokens < longest {
            let rule = format!("at least {longest} tokens with policy remember, a whole block");
            return setting("the recalled context", self.context_tokens, rule);
        }
        Ok(())
    }

    /// Past tokens that a query may see: what policies are compared at.
    #[must_use]
    pub fn budget_tokens(&self) -> usize {
        match self.policy {
            Policy::Dense => self.max_tokens,
            Policy::Window | Policy::Recompute => self.window_tokens,
            Policy::Sink => self.n_before_window() + self.window_tokens,
            Policy::Remember => self.n_before_window() + self.context_tokens + self.window_tokens,
        }
    }

    /// Sinks and clusters that a query sees.
    #[must_use]
    pub fn n_before_window(&self) -> usize {
        match self.clusters {
            Some(clusters) if clusters.place == ClusterPlace::Sinks => clusters.n_clusters,
            _ => self.n_sink + self.n_clusters(),
        }
    }

    /// Clusters of each KV head.
    #[must_use]
    pub fn n_clusters(&self) -> usize {
        self.clusters.map_or(0, |clusters| clusters.n_clusters)
    }

    /// The eviction policy of the cache.
    pub(crate) fn eviction(&self) -> Arc<dyn EvictionPolicy> {
        let window_tokens = self.window_tokens;
        match self.policy {
            Policy::Dense => Arc::new(NeverEvict { n_sink: 0, max_tokens: self.max_tokens }),
            // The window is computed anew for each token, the token itself included.
            Policy::Recompute => Arc::new(NeverEvict { n_sink: 0, max_tokens: window_tokens + 1 }),
            Policy::Window => Arc::new(SinkWindow { n_sink: 0, window_tokens }),
            Policy::Sink | Policy::Remember => {
                Arc::new(SinkWindow { n_sink: self.n_sink, window_tokens })
            }
        }
    }

    /// Tokens at the start of the stream that never leave.
    pub(crate) fn pinned(&self) -> usize {
        match self.policy {
            Policy::Dense | Policy::Window | Policy::Recompute => 0,
            Policy::Sink | Policy::Remember => self.n_sink,
        }
    }

    /// Capacity of the recalled section.
    pub(crate) fn recall_capacity(&self) -> usize {
        if self.policy == Policy::Remember { self.context_tokens } else { 0 }
    }
}
