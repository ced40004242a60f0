//! Heads of block records: all of a block but its keys and values.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use everstream_kv_cache::TokenPos;

use super::super::BlockMeta;
use crate::block::{Block, BlockId, Role, Source};
use crate::codec::{Decoder, Encoder};
use crate::kv::{BlockKv, KvShape, KvType};

/// Nanoseconds in a second.
const NANOS: i64 = 1_000_000_000;

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
        to.u8(role_code(meta.role));
        to.u8(kv_type_code(*kv_type));
        to.0.extend_from_slice(maker);
        [shape.n_layers, shape.n_kv_heads, shape.head_dim].iter().for_each(|&n| to.u32(u32(n)));
        to.i64(nanos(meta.written_at));
        match &meta.source {
            None => to.u8(0),
            Some(source) => {
                to.u8(1);
                to.u64(source.line);
                to.bytes(source.file.as_bytes());
            }
        }
    }

    pub(super) fn decode(from: &mut Decoder<'_>) -> Option<Self> {
        let (id, start, n_tokens) = (BlockId(from.u64()?), from.u64()?, from.u32()? as usize);
        let (role, kv_type) = (role(from.u8()?)?, kv_type(from.u8()?)?);
        let maker = from.take(size_of::<MakerId>())?.try_into().ok()?;
        let mut dim = || Some(from.u32()? as usize);
        let shape = KvShape { n_layers: dim()?, n_kv_heads: dim()?, head_dim: dim()? };
        let written_at = time(from.i64()?)?;
        let source = match from.u8()? {
            0 => None,
            1 => Some(Source { line: from.u64()?, file: Arc::from(from.text()?) }),
            _ => return None,
        };
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

fn role_code(role: Role) -> u8 {
    match role {
        Role::System => 0,
        Role::User => 1,
        Role::Assistant => 2,
        Role::Document => 3,
    }
}

fn role(code: u8) -> Option<Role> {
    [Role::System, Role::User, Role::Assistant, Role::Document].get(usize::from(code)).copied()
}

fn kv_type_code(kv_type: KvType) -> u8 {
    match kv_type {
        KvType::F32 => 0,
        KvType::F16 => 1,
        KvType::Q8 => 2,
    }
}

fn kv_type(code: u8) -> Option<KvType> {
    [KvType::F32, KvType::F16, KvType::Q8].get(usize::from(code)).copied()
}

/// Nanoseconds since 1970; a time beyond the years 1678 to 2262 becomes the nearest of them.
fn nanos(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => {
            i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, std::ops::Neg::neg)
        }
    }
}

fn time(nanos: i64) -> Option<SystemTime> {
    let (seconds, rest) = (nanos.div_euclid(NANOS), nanos.rem_euclid(NANOS) as u32);
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    };
    time?.checked_add(Duration::from_nanos(u64::from(rest)))
}

#[cfg(test)]
mod tests {
    use super::*;
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

    #[test]
    fn times_of_any_age_keep_their_nanoseconds() {
        for n in [0, 1, -1, NANOS, -NANOS, 1_764_000_000 * NANOS + 5, i64::MAX, i64::MIN + 1] {
            assert_eq!(nanos(time(n).unwrap()), n);
        }
    }
}
