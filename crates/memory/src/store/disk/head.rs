//! Heads of block records: all of a block but its keys and values.

use everstream_kv_cache::TokenPos;

use super::super::BlockMeta;
use crate::block::{Block, BlockId};
use crate::codec::{Decoder, Encoder};
use crate::kv::{BlockKv, KvShape, KvType};

/// Names the model, tokenizer, rotary settings and layout that made keys and values: the first
/// bytes of a SHA-256.
pub(super) type MakerId = [u8; 16];

/// The first part of a head: what the catalogue keeps as well.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Summary {
    pub(super) meta: BlockMeta,
    pub(super) maker: MakerId,
    pub(super) shape: KvShape,
    pub(super) kv_type: KvType,
}

/// A block as its record's head describes it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Head {
    pub(super) summary: Summary,
    pub(super) tokens: Vec<u32>,
    pub(super) text: String,
}

impl Summary {
    pub(super) fn of(block: &Block, maker: MakerId) -> Self {
        let (shape, kv_type) = (block.kv().shape(), block.kv().kv_type());
        Self { meta: BlockMeta::from(block), maker, shape, kv_type }
    }

    pub(super) fn encode(&self, to: &mut Encoder) {
        let Self { meta, maker, shape, kv_type } = self;
        let u32 = |n: usize| u32::try_from(n).expect("no model or block has 2^32 of anything");
        to.u64(meta.id.0);
        to.u64(meta.range.start.0);
        to.u32(u32(meta.n_tokens()));
        to.role(meta.role);
        to.kv_type(*kv_type);
        to.0.extend_from_slice(maker);
        [shape.n_layers, shape.n_kv_heads, shape.head_dim].iter().for_each(|&n| to.u32(u32(n)));
        to.time(meta.written_at);
        to.source(meta.source.as_ref());
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Option<Self> {
        let (id, start, n_tokens) = (BlockId(from.u64()?), from.u64()?, from.u32()? as usize);
        let (role, kv_type) = (from.role()?, from.kv_type()?);
        let maker = from.take(size_of::<MakerId>())?.try_into().ok()?;
        let mut dim = || Some(from.u32()? as usize);
        let shape = KvShape { n_layers: dim()?, n_kv_heads: dim()?, head_dim: dim()? };
        let (written_at, source) = (from.time()?, from.source()?);
        let range = TokenPos(start)..TokenPos(start.checked_add(n_tokens as u64)?);
        let kv_bytes = BlockKv::stored_bytes(shape, n_tokens, kv_type)?;
        let meta = BlockMeta { id, range, role, source, written_at, kv_bytes, is_forgotten: false };
        Some(Self { meta, maker, shape, kv_type })
    }
}

pub(super) fn encode(block: &Block, summary: &Summary) -> Vec<u8> {
    let mut to = Encoder::default();
    summary.encode(&mut to);
    to.u32s(block.tokens());
    to.bytes(block.text().as_bytes());
    to.0
}

pub(super) fn decode(bytes: &[u8]) -> Option<Head> {
    let mut from = Decoder(bytes);
    let summary = Summary::decode(&mut from)?;
    let tokens = from.u32s()?;
    let text = from.text()?.to_owned();
    from.end()?;
    (tokens.len() == summary.meta.n_tokens()).then_some(Head { summary, tokens, text })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::block::{Role, Source};
    use crate::testing::{new_block, session};

    #[test]
    fn heads_say_all_but_keys_and_values() {
        let mut new = new_block(7..40, "Ein Satz über Öl.");
        new.role = Role::Assistant;
        new.source = Some(Source { file: Arc::from("a/b.txt"), line: 12 });
        new.written_at = SystemTime::UNIX_EPOCH - Duration::from_nanos(1_500_000_001);
        let block = Block::new(session(), new).unwrap();
        let summary = Summary::of(&block, [7; 16]);
        let bytes = encode(&block, &summary);
        let head = decode(&bytes).unwrap();
        assert_eq!(head.summary, summary);
        assert_eq!((&head.tokens[..], &head.text[..]), (block.tokens(), block.text()));
        for len in 0..bytes.len() {
            assert_eq!(decode(&bytes[..len]), None);
        }
    }
}
