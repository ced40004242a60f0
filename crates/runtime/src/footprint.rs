//! What a cache weighs, said before it is made: no weights are read for it.

use everstream_kernels::key_tiles_len;
use everstream_kv_cache::Timeline;
use everstream_model::{ModelConfig, RopeScaling};

use crate::{SessionConfig, SessionError};

/// Rows of a cache by section, and their bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheFootprint {
    /// Rows for sinks.
    pub sinks: usize,
    /// Rows for clusters.
    pub clusters: usize,
    /// Rows for recalled context.
    pub recalled: usize,
    /// Rows of the window.
    pub window: usize,
    /// Rows of one prefill chunk, which the window's buffer holds besides.
    pub chunk: usize,
    /// Bytes of the rotated key and the value of a token, in all layers.
    pub kv_bytes_per_token: u64,
    /// Bytes of the key of a token before rotation, in all layers; 0 if none are kept.
    pub raw_key_bytes_per_token: u64,
    /// Bytes of all rotated keys and values, the padding of key tiles included.
    pub kv_bytes: u64,
    /// Bytes of all keys before rotation; sinks have none.
    pub raw_key_bytes: u64,
    /// Bytes of clusters beside their rows: means in f32, samples of what has left, and queries.
    pub cluster_bytes: u64,
}

impl CacheFootprint {
    /// Bytes of the cache.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.kv_bytes + self.raw_key_bytes + self.cluster_bytes
    }

    /// Asks the system for the memory and gives it back, so that a cache that cannot be is an
    /// error and not the end of the process.
    pub(crate) fn check_room(&self) -> Result<(), SessionError> {
        let mut room = Vec::<u8>::new();
        let n_bytes = usize::try_from(self.bytes()).unwrap_or(usize::MAX);
        let fits = room.try_reserve_exact(n_bytes).is_ok();
        // Nothing is written to it, and the compiler must not conclude that it is not needed.
        std::hint::black_box(&room);
        if fits { Ok(()) } else { Err(SessionError::NoRoom { bytes: self.bytes() }) }
    }
}

impl SessionConfig {
    /// The cache of a session with these settings. (A system turn may make the sinks larger.)
    ///
    /// # Errors
    ///
    /// [`SessionError`] for settings out of range.
    pub fn footprint(&self, model: &ModelConfig) -> Result<CacheFootprint, SessionError> {
        self.check()?;
        let timeline = Timeline::new(self.eviction(), self.recall_capacity(), self.chunk_tokens)?
            .with_clusters(self.clusters);
        let (n_slots, sinks) = (timeline.n_slots(), timeline.policy().n_sink());
        let window = timeline.policy().window_tokens();
        let keeps_raw = timeline.recall_tokens() > 0 || self.clusters.is_some();
        let raw_rows = if keeps_raw { n_slots - sinks } else { 0 };
        // At most 2^31 rows of 2^9 numbers, tiles and values, in 2^20 heads, 4 bytes each: below
        // 2^63. The limits are those of `Timeline` and `ModelConfig`.
        let n_heads = (model.n_layers * model.n_kv_heads) as u64;
        let number_bytes = self.kv_type.bytes() as u64;
        let key_bytes = (model.n_layers * model.kv_dim()) as u64 * number_bytes;
        let key_numbers = key_tiles_len(n_slots, model.head_dim) as u64;
        let value_numbers = (n_slots * model.head_dim) as u64;
        Ok(CacheFootprint {
            sinks,
            clusters: self.n_clusters(),
            recalled: timeline.recall_tokens(),
            window,
            chunk: timeline.ring_slots() - window,
            kv_bytes_per_token: 2 * key_bytes,
            raw_key_bytes_per_token: if raw_rows > 0 { key_bytes } else { 0 },
            kv_bytes: n_heads * (key_numbers + value_numbers) * number_bytes,
            raw_key_bytes: raw_rows as u64 * key_bytes,
            cluster_bytes: self.clusters.map_or(0, |clusters| {
                let n_kv_heads = (model.n_layers, model.n_kv_heads);
                clusters.bytes(n_kv_heads, model.n_heads / model.n_kv_heads, model.head_dim)
            }),
        })
    }

    /// Refuses a cache longer than what a model of LongRoPE was first trained on: its rotary
    /// frequencies would be others then.
    pub(crate) fn check_reach(&self, model: &ModelConfig) -> Result<(), SessionError> {
        let (value, limit) = (self.budget_tokens(), model.context_length);
        match model.rope_scaling {
            RopeScaling::LongRope { .. } if value > limit => Err(SessionError::Setting {
                what: "the cache",
                value,
                rule: format!("at most {limit} tokens for this model: use a smaller window"),
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use everstream_kv_cache::ClusterConfig;
    use everstream_memory::{Embedder, HashEmbedder};
    use everstream_model::Model;

    use super::*;
    use crate::{Policy, Session};

    fn tiny() -> Arc<Model> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"));
        let path = path.join("../model/tests/golden/tiny-qwen2.gguf");
        Arc::new(Model::open(&path, Default::default()).unwrap())
    }

    #[test]
    fn it_is_what_a_session_holds() {
        let model = tiny();
        for policy in Policy::ALL {
            for n_sink in [0, 4, 5] {
                let mut config = SessionConfig { policy, n_sink, ..SessionConfig::default() };
                let evicts_behind_sinks = matches!(policy, Policy::Sink | Policy::Remember);
                config.clusters = (n_sink == 5 && evicts_behind_sinks).then(ClusterConfig::default);
                let expected = config.footprint(model.config()).unwrap();
                let embedder: Arc<dyn Embedder> = Arc::new(HashEmbedder);
                let session = Session::new(model.clone(), Some(embedder), config).unwrap();
                let (kv, raw) = session.cache_bytes();
                let found = (kv as u64, raw as u64);
                assert_eq!(found, (expected.kv_bytes, expected.raw_key_bytes), "{policy}");
            }
        }
    }

    #[test]
    fn a_cache_beyond_all_memory_is_refused() {
        let model = tiny();
        let config = SessionConfig {
            policy: Policy::Sink,
            window_tokens: 1 << 29,
            chunk_tokens: 1 << 29,
            n_sink: 1 << 29,
            ..SessionConfig::default()
        };
        let mut huge = config.footprint(model.config()).unwrap();
        huge.kv_bytes = u64::MAX / 2;
        assert!(matches!(huge.check_room(), Err(SessionError::NoRoom { .. })));
        let too_many = SessionConfig { n_sink: usize::MAX, ..config };
        assert!(matches!(too_many.footprint(model.config()), Err(SessionError::Setting { .. })));
    }
}
