//! The bounded cache of one stream: which tokens are held, where, and at which positions.
//!
//! A stream may be endless; its cache is not. For each KV head, four sections of fixed capacity
//! stand in one buffer:
//!
//! ```text
//! | sinks S | clusters k | recalled context C | window W + one chunk or segment (a ring) |
//! ```
//!
//! What a model perceives is a position *inside the cache* (Xiao et al., "Efficient Streaming
//! Language Models with Attention Sinks", 2023, arXiv:2309.17453, section 3.2). The obvious way to
//! get that, keeping keys un-rotated and rotating all of them again at every step, costs as much
//! as attention itself. Here each key is rotated **once**: keys of the window at their distance in
//! the stream, keys before the window at their place in the cache, and each query twice. What a
//! query sees is a list of [`Span`](everstream_kernels::Span)s, each naming the form of the query
//! that its keys meet; `docs/NOTATION.md` has the formulas.
//!
//! [`Timeline`] holds the integers: positions, slots, bands, the gap that a recall opens. It touches
//! no number of the model, so integers alone can test it. [`KvCache`] adds the buffers.
//! An [`EvictionPolicy`] only says how far back a query may look.
//!
//! Deliberately absent: files, clocks, environment variables, the tokenizer, and any idea of why a
//! block is recalled.

mod buffers;
mod cache;
mod clusters;
mod error;
mod policy;
mod position;
pub mod rng;
mod timeline;

pub use buffers::{HeadBuffers, KvType, QueryHeads};
pub use cache::{CacheConfig, KvCache, KvSource, LayerKind, RawKeys};
pub use clusters::{
    ClusterBias, ClusterConfig, ClusterForm, ClusterPlace, Compute, Means, Segment,
};
pub use error::CacheError;
pub use policy::{EvictionPolicy, NeverEvict, SinkWindow};
pub use position::{RopePos, Slot, TokenPos, range_len};
pub use timeline::{Place, RowPlan, Sections, Spans, Timeline, TimelineState};
