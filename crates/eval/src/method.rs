//! What a model sees when it is asked.

use everstream_runtime::{DocumentContext, Policy, RecallConfig, SessionConfig};

/// What the model sees besides the question.
#[derive(Clone, Debug)]
pub enum Method {
    /// The evidence and nothing else: what a memory that finds everything would give.
    Evidence,
    /// Nothing: what the model knows anyway.
    ClosedBook,
    /// The whole stream, by full attention, as far as the model was trained.
    Full,
    /// The newest tokens of the stream, as many as the budget, read anew.
    Truncate,
    /// The same, read anew for every token of the answer.
    Recompute,
    /// What a policy without a memory keeps, at the budget of the others: `window` or `sink`.
    Kept(Policy),
    /// The text of what is recalled, read behind the window: ordinary retrieval.
    RagText(RecallConfig),
    /// What is recalled, put back into the cache.
    Remember(RecallConfig),
}

/// Methods of the same reading share the streams that they read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Nothing is read before the question is known.
    Nothing,
    Full,
    Kept(Policy),
    /// Nothing is read before, and a window is read anew for every token.
    Recompute,
    /// Remembers, and has the room for recalled context in its window, where the text goes.
    RagText,
    Remember,
}

impl Method {
    /// The names of all methods, as the command line takes them.
    pub const ALL: [&'static str; 9] = [
        "evidence",
        "closed-book",
        "full",
        "truncate",
        "recompute",
        "window",
        "sink",
        "rag-text",
        "remember",
    ];

    /// The method of this name, recalling in one of the ways given if it recalls: one for each.
    #[must_use]
    pub fn by_name(name: &str, recalls: &[RecallConfig]) -> Option<Vec<Self>> {
        let each = |method: fn(RecallConfig) -> Self| recalls.iter().cloned().map(method).collect();
        Some(match name {
            "evidence" => vec![Self::Evidence],
            "closed-book" => vec![Self::ClosedBook],
            "full" => vec![Self::Full],
            "truncate" => vec![Self::Truncate],
            "recompute" => vec![Self::Recompute],
            "window" => vec![Self::Kept(Policy::Window)],
            "sink" => vec![Self::Kept(Policy::Sink)],
            "rag-text" => each(Self::RagText),
            "remember" => each(Self::Remember),
            _ => return None,
        })
    }

    /// The name of what is seen.
    #[must_use]
    pub fn policy(&self) -> &'static str {
        match self {
            Self::Evidence => "evidence",
            Self::ClosedBook => "closed-book",
            Self::Full => "full",
            Self::Truncate => "truncate",
            Self::Recompute => "recompute",
            Self::Kept(policy) => policy.name(),
            Self::RagText(_) => "rag-text",
            Self::Remember(_) => "remember",
        }
    }

    /// How it recalls, if it does.
    #[must_use]
    pub fn recall(&self) -> Option<&RecallConfig> {
        match self {
            Self::RagText(recall) | Self::Remember(recall) => Some(recall),
            _ => None,
        }
    }

    /// A name that no other method of a run has: the policy, the strategy of its recall, and where and with
    /// which keys and values it puts back, unless as by default.
    #[must_use]
    pub fn label(&self) -> String {
        let mut label = self.policy().to_owned();
        if let Some(recall) = self.recall() {
            label = format!("{label} {}", recall.strategy.name());
        }
        if let Self::Remember(recall) = self {
            let default = RecallConfig::default();
            if recall.place != default.place {
                label = format!("{label} {}", recall.place.name());
            }
            if recall.insertion != default.insertion {
                label = format!("{label} {}", recall.insertion_name());
            }
        }
        label
    }

    pub(crate) fn reading(&self) -> Reading {
        match self {
            Self::Evidence | Self::ClosedBook | Self::Truncate => Reading::Nothing,
            Self::Full => Reading::Full,
            Self::Recompute => Reading::Recompute,
            Self::Kept(policy) => Reading::Kept(*policy),
            Self::RagText(_) => Reading::RagText,
            Self::Remember(_) => Reading::Remember,
        }
    }
}

impl Reading {
    /// Settings of the session that reads a stream, all of the budget of `config`, which remembers;
    /// those that keep everything hold `dense_tokens`.
    pub(crate) fn config(self, config: &SessionConfig, dense_tokens: usize) -> SessionConfig {
        let budget = config.budget_tokens();
        // Only those of `sink` and `remember` have clusters; all others have room for more tokens.
        let clusters = config.clusters;
        let config = SessionConfig { clusters: None, ..config.clone() };
        match self {
            Self::Nothing | Self::Full => {
                SessionConfig { policy: Policy::Dense, max_tokens: dense_tokens, ..config }
            }
            Self::Recompute => {
                let policy = Policy::Recompute;
                SessionConfig { policy, n_sink: 0, window_tokens: budget, ..config }
            }
            // As others know these policies: text is read as it stands in the stream.
            Self::Kept(policy) => {
                let n_sink = if policy == Policy::Sink { config.n_sink } else { 0 };
                let document_context = DocumentContext::Stream;
                let clusters = clusters.filter(|_| policy == Policy::Sink);
                let kept = SessionConfig { policy, clusters, document_context, ..config };
                let n_before = if clusters.is_some() { kept.n_before_window() } else { n_sink };
                SessionConfig { window_tokens: budget - n_before, ..kept }
            }
            // It has no use for keys and values that fit any place: its window is an ordinary one.
            Self::RagText => {
                let window_tokens = budget - config.n_sink;
                let document_context = DocumentContext::Stream;
                SessionConfig {
                    policy: Policy::Remember,
                    window_tokens,
                    document_context,
                    ..config
                }
            }
            Self::Remember => SessionConfig { policy: Policy::Remember, clusters, ..config },
        }
    }

    pub(crate) fn remembers(self) -> bool {
        matches!(self, Self::RagText | Self::Remember)
    }
}
