//! The memory of a cache, by section.

use std::io::{self, Write};

use everstream_runtime::model::ModelConfig;
use everstream_runtime::{CacheFootprint, Policy, SessionConfig, SessionError};
use serde_json::{Value, json};

use crate::output;

/// A cache that does not exist yet.
pub(super) struct Cache {
    config: SessionConfig,
    footprint: CacheFootprint,
}

/// Rows of one purpose: their number, bytes of rotated keys and values, bytes of other keys.
struct Section {
    name: &'static str,
    tokens: usize,
    kv_bytes: u64,
    raw_key_bytes: u64,
}

impl Cache {
    /// # Errors
    ///
    /// [`SessionError`] for settings out of range.
    pub(super) fn new(config: SessionConfig, model: &ModelConfig) -> Result<Self, SessionError> {
        let footprint = config.footprint(model)?;
        Ok(Self { config, footprint })
    }

    /// In the order of the buffer.
    fn sections(&self) -> Vec<Section> {
        let f = &self.footprint;
        let section = |name, tokens: usize, raw_key_bytes_per_token: u64| Section {
            name,
            tokens,
            kv_bytes: tokens as u64 * f.kv_bytes_per_token,
            raw_key_bytes: tokens as u64 * raw_key_bytes_per_token,
        };
        let raw = f.raw_key_bytes_per_token;
        vec![
            section("sinks", f.sinks, 0),
            section("clusters", f.clusters, raw),
            section("recalled", f.recalled, raw),
            section("window", f.window, raw),
            section("chunk", f.chunk, raw),
        ]
    }

    /// Bytes that the memory keeps for each token that leaves the window: its key before rotation
    /// and its value.
    fn stored_bytes_per_token(&self) -> u64 {
        if self.config.policy == Policy::Remember { self.footprint.kv_bytes_per_token } else { 0 }
    }

    pub(super) fn json(&self) -> Value {
        let f = &self.footprint;
        let section = |section: Section| {
            json!({
                "name": section.name,
                "tokens": section.tokens,
                "kv_bytes": section.kv_bytes,
                "raw_key_bytes": section.raw_key_bytes,
            })
        };
        json!({
            "policy": self.config.policy.name(),
            "type": super::type_name(self.config.kv_type),
            "budget_tokens": self.config.budget_tokens(),
            "kv_bytes_per_token": f.kv_bytes_per_token,
            "raw_key_bytes_per_token": f.raw_key_bytes_per_token,
            "sections": self.sections().into_iter().map(section).collect::<Vec<_>>(),
            "kv_bytes": f.kv_bytes,
            "raw_key_bytes": f.raw_key_bytes,
            "cluster_bytes": f.cluster_bytes,
            "bytes": f.bytes(),
            "stored_bytes_per_evicted_token": self.stored_bytes_per_token(),
        })
    }

    pub(super) fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let f = &self.footprint;
        writeln!(
            out,
            "\ncache of policy {}, {}: {} of keys and values per token{}",
            self.config.policy,
            super::type_name(self.config.kv_type),
            output::size(f.kv_bytes_per_token),
            match f.raw_key_bytes_per_token {
                0 => String::new(),
                raw => format!(", {} of keys before rotation", output::size(raw)),
            }
        )?;
        writeln!(
            out,
            "  {:<10} {:>7} {:>17} {:>17}",
            "section", "tokens", "keys and values", "other keys"
        )?;
        for Section { name, tokens, kv_bytes, raw_key_bytes } in self.sections() {
            let (kv, raw) = (output::size(kv_bytes), output::size(raw_key_bytes));
            writeln!(out, "  {name:<10} {tokens:>7} {kv:>17} {raw:>17}")?;
        }
        let (kv, raw) = (output::size(f.kv_bytes), output::size(f.raw_key_bytes));
        let tokens = f.sinks + f.clusters + f.recalled + f.window + f.chunk;
        writeln!(out, "  {:<10} {tokens:>7} {kv:>17} {raw:>17}", "together")?;
        if f.cluster_bytes > 0 {
            let made = output::size(f.cluster_bytes);
            writeln!(out, "  clusters are made of {made} of means, sampled tokens and queries")?;
        }
        if self.stored_bytes_per_token() > 0 {
            let stored = output::size(self.stored_bytes_per_token());
            writeln!(out, "  each token that leaves the window is kept in {stored} of memory")?;
        }
        Ok(())
    }
}
