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
//! ```no_run
//! use std::ops::ControlFlow;
//! use std::path::Path;
//! use std::sync::Arc;
//! use everstream_runtime::{memory::MiniLm, model::Model, Origin, Session, SessionConfig};
//!
//! let model = Arc::new(Model::open(Path::new("model.gguf"), Default::default())?);
//! let encoder = Arc::new(MiniLm::open(Path::new("all-MiniLM-L6-v2"))?);
//! let mut session = Session::new(model, Some(encoder), SessionConfig::default())?;
//! session.ingest("…", Origin::file("log.txt"), &mut |_, _, _| ControlFlow::Continue(()))?;
//! let recall = session.turn("Who locked the gate?")?;
//! println!("{} blocks recalled", recall.blocks.len());
//! let answer = session.answer(&Default::default(), &mut |_| ControlFlow::Continue(()))?;
//! println!("{}", answer.text);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod config;
mod error;
mod footprint;
mod generate;
pub mod perplexity;
mod recorder;
mod sampler;
mod session;

pub use config::{Policy, RecallConfig, SessionConfig};
pub use error::SessionError;
pub use footprint::CacheFootprint;
pub use generate::{GenerateOptions, Generated, StopReason};
pub use recorder::Origin;
pub use sampler::{Sampler, SamplerConfig};
pub use session::{Observer, Session, Timings};

pub use everstream_kernels as kernels;
pub use everstream_kv_cache as kv_cache;
pub use everstream_memory as memory;
pub use everstream_model as model;
