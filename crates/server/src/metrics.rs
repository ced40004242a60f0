//! What the server counts, for Prometheus.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// What requests are counted by.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    /// The route, with the names of what is in braces; not what was asked for.
    pub(crate) path: String,
    pub(crate) status: u16,
}

/// Counters and gauges; all of them can be shared.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) requests: Family<RequestLabels, Counter>,
    /// Seconds until an answer begins.
    pub(crate) seconds_to_begin: Histogram,
    /// Seconds until it has ended.
    pub(crate) seconds_to_end: Histogram,
    pub(crate) read_tokens: Counter,
    pub(crate) generated_tokens: Counter,
    pub(crate) drafted_tokens: Counter,
    pub(crate) accepted_tokens: Counter,
    pub(crate) recalled_blocks: Counter,
    pub(crate) active: Gauge,
    pub(crate) waiting: Gauge,
    pub(crate) conversations: Gauge,
    pub(crate) open_sessions: Gauge,
}

/// From 10 ms on, each twice the one before.
fn seconds() -> Histogram {
    Histogram::new((0..14).map(|i| 0.01 * f64::from(1 << i)))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("everstream");
        let requests = Family::default();
        let (seconds_to_begin, seconds_to_end) = (seconds(), seconds());
        let counters: [Counter; 5] = Default::default();
        let [read_tokens, generated_tokens, drafted_tokens, accepted_tokens, recalled_blocks] =
            counters;
        let gauges: [Gauge; 4] = Default::default();
        let [active, waiting, conversations, open_sessions] = gauges;
        registry.register("requests", "Requests by route and status", requests.clone());
        for (name, help, counter) in [
            ("read_tokens", "Tokens of prompts and documents that were read", &read_tokens),
            ("generated_tokens", "Tokens of answers", &generated_tokens),
            ("drafted_tokens", "Tokens of answers that were guessed ahead", &drafted_tokens),
            ("accepted_tokens", "Those of them that were right", &accepted_tokens),
            ("recalled_blocks", "Blocks that were recalled for answers", &recalled_blocks),
        ] {
            registry.register(name, help, counter.clone());
        }
        for (name, help, gauge) in [
            ("active_streams", "Streams that are read or answered", &active),
            ("waiting_requests", "Requests that wait for a place", &waiting),
            ("resting_conversations", "Conversations that are kept in memory", &conversations),
            ("open_sessions", "Sessions with a name that are in memory", &open_sessions),
        ] {
            registry.register(name, help, gauge.clone());
        }
        for (name, help, histogram) in [
            ("time_to_begin", "Time until an answer begins", &seconds_to_begin),
            ("time_to_end", "Time until an answer has ended", &seconds_to_end),
        ] {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
        Self {
            registry,
            requests,
            seconds_to_begin,
            seconds_to_end,
            read_tokens,
            generated_tokens,
            drafted_tokens,
            accepted_tokens,
            recalled_blocks,
            active,
            waiting,
            conversations,
            open_sessions,
        }
    }
}

impl Metrics {
    /// All of them in OpenMetrics' text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    pub(crate) fn count_request(&self, path: &str, status: u16) {
        let labels = RequestLabels { path: path.to_owned(), status };
        self.requests.get_or_create(&labels).inc();
    }

    pub(crate) fn took_to_begin(&self, time: Duration) {
        self.seconds_to_begin.observe(time.as_secs_f64());
    }

    pub(crate) fn took_to_end(&self, time: Duration) {
        self.seconds_to_end.observe(time.as_secs_f64());
    }
}
