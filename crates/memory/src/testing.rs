//! Small blocks for the tests of this crate.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use everstream_kv_cache::TokenPos;

use crate::block::{NewBlock, Role};
use crate::kv::{BlockKv, KvShape, KvType};

pub(crate) const SHAPE: KvShape = KvShape { n_layers: 2, n_kv_heads: 1, head_dim: 2 };

pub(crate) fn session() -> Arc<str> {
    Arc::from("test")
}

pub(crate) fn positions(range: Range<u64>) -> Range<TokenPos> {
    TokenPos(range.start)..TokenPos(range.end)
}

/// A block whose token ids and components are functions of their place in the stream.
pub(crate) fn new_block(range: Range<u64>, text: &str) -> NewBlock {
    let n_tokens = (range.end - range.start) as usize;
    let components: Vec<f32> =
        (0..SHAPE.components(n_tokens).unwrap()).map(|i| i as f32 + range.start as f32).collect();
    NewBlock {
        tokens: range.clone().map(|pos| pos as u32 + 1000).collect(),
        range: positions(range.clone()),
        text: text.to_owned(),
        role: Role::Document,
        source: None,
        written_at: SystemTime::UNIX_EPOCH + Duration::from_secs(range.start),
        kv: BlockKv::new(SHAPE, n_tokens, &components, &components, KvType::F32).unwrap(),
    }
}
