//! A session: an endless stream over a bounded cache, with a memory of what left it.
//!
//! A [`Session`] reads tokens in chunks, lets the cache evict, cuts what was read into blocks and
//! hands them to the memory, recalls before a turn, and generates. It is a plain value that one
//! thread drives: no lock, no task, no clock decides anything, so the same input gives the same
//! stream. The threads are inside the kernels. (The obvious alternative, remembering on a thread of
//! its own, would compete with decoding for the same cores and make what a recall finds a matter
//! of timing.)
//!
//! [`Session::branch`] continues one stream in several ways; [`perplexity`] scores a text under
//! any [`Policy`].
//!
//! ```
//! use std::ops::ControlFlow;
//! use std::sync::Arc;
//! use everstream_runtime::memory::{Gate, HashEmbedder};
//! use everstream_runtime::{GenerateOptions, Origin, Session, SessionConfig, model::Model};
//!
//! # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../model/tests/golden/tiny-llama.gguf");
//! # let path = std::path::Path::new(path);
//! # let log = "The gate was locked by Ines.\n\nRain fell on the quay all day.\n\n".repeat(30);
//! let model = Arc::new(Model::open(path, Default::default())?);
//! // With a real model: memory::MiniLm::open(folder, Default::default())?
//! let encoder = Arc::new(HashEmbedder);
//! let mut config = SessionConfig { window_tokens: 96, ..SessionConfig::default() };
//! config.recall.gate = Gate::OPEN;
//!
//! let mut session = Session::new(model, Some(encoder), config)?;
//! session.ingest(&log, Origin::file("log.txt"), &mut |_, _, _| ControlFlow::Continue(()))?;
//! let recall = session.turn("Who locked the gate?")?;
//! assert!(recall.blocks.iter().any(|b| b.block.text().contains("Ines")));
//!
//! let options = GenerateOptions { max_tokens: 8, ..Default::default() };
//! let answer = session.answer(&options, &mut |piece| {
//!     print!("{piece}");
//!     ControlFlow::Continue(())
//! })?;
//! assert!(answer.tokens.len() <= 8);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod config;
mod error;
mod footprint;
mod generate;
mod ingest;
pub mod perplexity;
mod recalling;
mod recent;
mod recorder;
mod sampler;
mod saved;
mod session;
mod together;
mod turns;

pub use config::{DocumentContext, Insertion, Policy, RecallConfig, SessionConfig};
pub use error::SessionError;
pub use footprint::CacheFootprint;
pub use generate::{Constraint, GenerateOptions, Generated, Generation, StopReason, TokenLogProb};
pub use ingest::Ingest;
pub use recalling::REPAIR_TOKENS;
pub use recorder::Origin;
pub use sampler::{Sampler, SamplerConfig};
pub use saved::{
    Geometry, Resumed, SAVE_TOKENS, Storage, damaged_files, log_forgotten, saved_geometry,
};
pub use session::{Observer, QUERY_TOKENS, Session, Timings, encode};
pub use together::{Drafts, Step, append_each};
pub use turns::Prefill;

pub use everstream_kernels as kernels;
pub use everstream_kv_cache as kv_cache;
pub use everstream_memory as memory;
pub use everstream_model as model;
