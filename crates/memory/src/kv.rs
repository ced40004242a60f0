//! The keys and values of a block: what re-insertion puts back instead of prefilling again.
//!
//! Keys are stored as they were computed, *before* rotation (after bias and key norm). A rotated
//! key is tied to one position, and a recalled block comes back at another; rotating a rotated
//! key again adds rounding each time, while the raw key is rotated once wherever it is needed.
//!
//! Layout: `[n_layers, n_kv_heads, n_tokens, head_dim]`, row-major. Attention reads one layer and
//! one head at a time, so the rows of one `(layer, head)` are one contiguous slice, and so are
//! those of any run of tokens inside it: a straddling block is cut without a copy.
//!
//! Stored in 8 bits, every number becomes one of 256 steps between the smallest and the largest of
//! its row. A row of keys is one *component* over the tokens of the block, a row of values one
//! *token*: keys have components that are large for every token (a bias, above all), and one step
//! for all components of a token would drown the small ones.
//!
//! Source: Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", 2024,
//! arXiv:2402.02750, section 3.2. Differs from the paper: 8 bits, keys before rotation, and the
//! block as the group.
//!
//! This module knows numbers and a shape; it does not know which model made them.

mod q8;

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::block::BlockError;

pub use q8::Q8Rows;
use q8::{Axis, Q8Buffer};

/// What one token's keys (or values) look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers of the model.
    pub n_layers: usize,
    /// Heads that have keys and values of their own (fewer than query heads under GQA).
    pub n_kv_heads: usize,
    /// Components per head.
    pub head_dim: usize,
}

impl KvShape {
    /// Components of the keys (or values) of `n_tokens` tokens; `None` if that overflows.
    #[must_use]
    pub fn components(self, n_tokens: usize) -> Option<usize> {
        self.n_layers
            .checked_mul(self.n_kv_heads)?
            .checked_mul(self.head_dim)?
            .checked_mul(n_tokens)
    }
}

/// Element type in which keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvType {
    /// 4 bytes per component; the trip into memory and back changes no bit.
    F32,
    /// 2 bytes per component.
    #[default]
    F16,
    /// 1 byte per component, and 4 bytes per row of them.
    Q8,
}

impl KvType {
    /// All types; files name one by its place here.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Q8];

    /// The name on the command line and in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8",
        }
    }
}

/// Keys or values in one of the element types.
#[derive(Clone, Debug, PartialEq)]
enum KvBuffer {
    /// f32 storage.
    F32(Vec<f32>),
    /// f16 storage.
    F16(Vec<f16>),
    /// 8-bit storage.
    Q8(Q8Buffer),
}

impl KvBuffer {
    /// Stores `components`, `[n_layers * n_kv_heads, n_tokens, head_dim]`, as `kv_type`.
    ///
    /// Components beyond the range of f16 become ±65504 in f16 and in 8 bits: one infinite key
    /// would make every later attention sum NaN, while a clamped one stays the largest of its row.
    fn from_f32(components: &[f32], head_dim: usize, n_tokens: usize, ty: (KvType, Axis)) -> Self {
        match ty {
            (KvType::F32, _) => Self::F32(components.to_vec()),
            (KvType::F16, _) => Self::F16(to_f16_clamped(components)),
            (KvType::Q8, axis) => {
                Self::Q8(Q8Buffer::quantize(components, head_dim, n_tokens, axis))
            }
        }
    }

    /// Element type of the components.
    fn kv_type(&self) -> KvType {
        match self {
            Self::F32(_) => KvType::F32,
            Self::F16(_) => KvType::F16,
            Self::Q8(_) => KvType::Q8,
        }
    }

    /// Bytes that the components take, in RAM as on disk.
    fn bytes(&self) -> usize {
        match self {
            Self::F32(components) => size_of_val(components.as_slice()),
            Self::F16(components) => size_of_val(components.as_slice()),
            Self::Q8(buffer) => buffer.bytes(),
        }
    }

    /// Appends the components, little-endian.
    fn write_to(&self, out: &mut Vec<u8>) {
        match self {
            Self::F32(components) => {
                let room = grow(out, 4 * components.len()).as_chunks_mut().0;
                room.iter_mut().zip(components).for_each(|(to, c)| *to = c.to_le_bytes());
            }
            Self::F16(components) => write_f16(components, out),
            Self::Q8(buffer) => buffer.write_to(out),
        }
    }

    /// Reads what [`write_to`](Self::write_to) wrote; `bytes` has exactly that length.
    fn from_bytes(bytes: &[u8], head_dim: usize, n_tokens: usize, ty: (KvType, Axis)) -> Self {
        match ty {
            (KvType::F32, _) => {
                Self::F32(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
            }
            (KvType::F16, _) => Self::F16(read_f16(bytes)),
            (KvType::Q8, axis) => Self::Q8(Q8Buffer::from_bytes(bytes, head_dim, n_tokens, axis)),
        }
    }
}

/// Makes room for `n_bytes` at the end of `out`.
fn grow(out: &mut Vec<u8>, n_bytes: usize) -> &mut [u8] {
    let start = out.len();
    out.resize(start + n_bytes, 0);
    &mut out[start..]
}

fn write_f16(components: &[f16], out: &mut Vec<u8>) {
    let room = grow(out, 2 * components.len()).as_chunks_mut().0;
    room.iter_mut().zip(components).for_each(|(to, c)| *to = c.to_le_bytes());
}

fn read_f16(bytes: &[u8]) -> Vec<f16> {
    bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect()
}

fn to_f16_clamped(components: &[f32]) -> Vec<f16> {
    let limit = f16::MAX.to_f32();
    let clamped: Vec<f32> = components.iter().map(|c| c.clamp(-limit, limit)).collect();
    let mut out = vec![f16::ZERO; clamped.len()];
    out.convert_from_f32_slice(&clamped);
    out
}

/// Rows of one layer and one head, `[n_tokens, head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum KvRows<'a> {
    /// f32 storage.
    F32(&'a [f32]),
    /// f16 storage.
    F16(&'a [f16]),
    /// 8-bit storage.
    Q8(Q8Rows<'a>),
}

impl KvRows<'_> {
    /// Writes the components to `out` as f32; exact from all element types.
    ///
    /// # Panics
    ///
    /// If `out` has another length.
    pub fn copy_to(&self, out: &mut [f32]) {
        match self {
            Self::F32(rows) => out.copy_from_slice(rows),
            Self::F16(rows) => rows.convert_to_f32_slice(out),
            Self::Q8(rows) => rows.copy_to(out),
        }
    }
}

/// Keys (before rotation) and values of the tokens of one block, all layers and heads.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockKv {
    shape: KvShape,
    n_tokens: usize,
    keys: KvBuffer,
    values: KvBuffer,
}

impl BlockKv {
    /// Stores `keys` (before rotation) and `values`, each of shape
    /// `[n_layers, n_kv_heads, n_tokens, head_dim]`, as `kv_type`.
    ///
    /// # Errors
    ///
    /// [`BlockError::KvShape`] if a dimension is zero or their product overflows;
    /// [`BlockError::KvLength`] if keys or values have another length than the shape says.
    pub fn new(
        shape: KvShape,
        n_tokens: usize,
        keys: &[f32],
        values: &[f32],
        kv_type: KvType,
    ) -> Result<Self, BlockError> {
        let expected = match shape.components(n_tokens) {
            None | Some(0) => return Err(BlockError::KvShape { shape, n_tokens }),
            Some(components) => components,
        };
        for (part, found) in [("keys", keys.len()), ("values", values.len())] {
            if found != expected {
                return Err(BlockError::KvLength { part, shape, n_tokens, expected, found });
            }
        }
        let store = |components: &[f32], axis| {
            KvBuffer::from_f32(components, shape.head_dim, n_tokens, (kv_type, axis))
        };
        let (keys, values) = (store(keys, Axis::Component), store(values, Axis::Token));
        Ok(Self { shape, n_tokens, keys, values })
    }

    /// Bytes of the keys and values of `n_tokens` tokens; `None` if that overflows.
    #[must_use]
    pub fn stored_bytes(shape: KvShape, n_tokens: usize, kv_type: KvType) -> Option<usize> {
        let [keys, values] = part_bytes(shape, n_tokens, kv_type)?;
        keys.checked_add(values)
    }

    /// Keys, then values, little-endian; `docs/FORMAT.md` has the layout.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.bytes());
        self.write_to(&mut bytes);
        bytes
    }

    /// Appends keys, then values, little-endian; `docs/FORMAT.md` has the layout.
    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        self.keys.write_to(out);
        self.values.write_to(out);
    }

    /// Reads what [`write_to`](Self::write_to) wrote.
    ///
    /// # Errors
    ///
    /// [`BlockError::KvShape`] as for [`new`](Self::new); [`BlockError::KvBytes`] if `bytes` has
    /// another length than the shape says.
    pub(crate) fn from_bytes(
        shape: KvShape,
        n_tokens: usize,
        kv_type: KvType,
        bytes: &[u8],
    ) -> Result<Self, BlockError> {
        let found = bytes.len();
        let parts = part_bytes(shape, n_tokens, kv_type).filter(|parts| parts[0] > 0);
        let [n_keys, n_values] = parts.ok_or(BlockError::KvShape { shape, n_tokens })?;
        if n_keys.checked_add(n_values) != Some(found) {
            return Err(BlockError::KvBytes { expected: n_keys.saturating_add(n_values), found });
        }
        let (keys, values) = bytes.split_at(n_keys);
        let read = |bytes: &[u8], axis| {
            KvBuffer::from_bytes(bytes, shape.head_dim, n_tokens, (kv_type, axis))
        };
        let (keys, values) = (read(keys, Axis::Component), read(values, Axis::Token));
        Ok(Self { shape, n_tokens, keys, values })
    }

    /// Layers, heads and components per head.
    #[must_use]
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Number of tokens.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Element type of the keys.
    #[must_use]
    pub fn kv_type(&self) -> KvType {
        self.keys.kv_type()
    }

    /// Raw keys (before rotation) of `tokens`, counted from the block's first token, in one layer
    /// and one head: rows of shape `[tokens.len(), head_dim]`.
    ///
    /// # Panics
    ///
    /// If `layer`, `kv_head` or `tokens` lie outside the shape.
    #[must_use]
    pub fn keys(&self, layer: usize, kv_head: usize, tokens: Range<usize>) -> KvRows<'_> {
        self.rows(&self.keys, layer, kv_head, tokens)
    }

    /// Values of `tokens`, as [`keys`](Self::keys) gives the keys.
    ///
    /// # Panics
    ///
    /// If `layer`, `kv_head` or `tokens` lie outside the shape.
    #[must_use]
    pub fn values(&self, layer: usize, kv_head: usize, tokens: Range<usize>) -> KvRows<'_> {
        self.rows(&self.values, layer, kv_head, tokens)
    }

    /// Bytes that the components take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.keys.bytes() + self.values.bytes()
    }

    /// Without these checks a wrong head would silently read its neighbour's rows.
    fn rows<'a>(
        &self,
        buffer: &'a KvBuffer,
        layer: usize,
        kv_head: usize,
        tokens: Range<usize>,
    ) -> KvRows<'a> {
        let KvShape { n_layers, n_kv_heads, head_dim } = self.shape;
        assert!(layer < n_layers, "layer {layer} of {n_layers}");
        assert!(kv_head < n_kv_heads, "kv head {kv_head} of {n_kv_heads}");
        assert!(
            tokens.start <= tokens.end && tokens.end <= self.n_tokens,
            "tokens {tokens:?} of {}",
            self.n_tokens
        );
        let head = layer * n_kv_heads + kv_head;
        let first_row = head * self.n_tokens;
        let range = (first_row + tokens.start) * head_dim..(first_row + tokens.end) * head_dim;
        match buffer {
            KvBuffer::F32(all) => KvRows::F32(&all[range]),
            KvBuffer::F16(all) => KvRows::F16(&all[range]),
            KvBuffer::Q8(all) => KvRows::Q8(all.rows(head, tokens)),
        }
    }
}

/// Bytes of keys and of values.
fn part_bytes(shape: KvShape, n_tokens: usize, kv_type: KvType) -> Option<[usize; 2]> {
    let components = shape.components(n_tokens)?;
    let n_heads = shape.n_layers.checked_mul(shape.n_kv_heads)?;
    let bytes = |n_rows: usize| match kv_type {
        KvType::F32 => components.checked_mul(4),
        KvType::F16 => components.checked_mul(2),
        KvType::Q8 => components.checked_add(n_heads.checked_mul(n_rows)?.checked_mul(4)?),
    };
    Some([bytes(shape.head_dim)?, bytes(n_tokens)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: KvShape = KvShape { n_layers: 2, n_kv_heads: 3, head_dim: 4 };

    const TYPES: [KvType; 3] = [KvType::F32, KvType::F16, KvType::Q8];

    /// A component that names its own place.
    fn component(layer: usize, head: usize, token: usize, i: usize) -> f32 {
        (layer * 1000 + head * 100 + token * 10 + i) as f32
    }

    fn numbered(n_tokens: usize, sign: f32) -> Vec<f32> {
        let mut all = Vec::new();
        for layer in 0..SHAPE.n_layers {
            for head in 0..SHAPE.n_kv_heads {
                for token in 0..n_tokens {
                    all.extend((0..4).map(|i| sign * component(layer, head, token, i)));
                }
            }
        }
        all
    }

    fn kv(n_tokens: usize, kv_type: KvType) -> BlockKv {
        let (keys, values) = (numbered(n_tokens, 1.0), numbered(n_tokens, -1.0));
        BlockKv::new(SHAPE, n_tokens, &keys, &values, kv_type).unwrap()
    }

    #[test]
    fn every_row_is_found_where_the_layout_says() {
        for kv_type in [KvType::F32, KvType::F16] {
            let kv = kv(5, kv_type);
            for (layer, head) in (0..2).flat_map(|l| (0..3).map(move |h| (l, h))) {
                for (start, end) in (0..=5).flat_map(|s| (s..=5).map(move |e| (s, e))) {
                    let expected: Vec<f32> = (start..end)
                        .flat_map(|t| (0..4).map(move |i| component(layer, head, t, i)))
                        .collect();
                    let mut keys = vec![0.0; expected.len()];
                    kv.keys(layer, head, start..end).copy_to(&mut keys);
                    assert_eq!(keys, expected);
                    let mut values = vec![0.0; expected.len()];
                    kv.values(layer, head, start..end).copy_to(&mut values);
                    assert_eq!(values, expected.iter().map(|c| -c).collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn bytes_follow_the_element_type() {
        assert_eq!(kv(5, KvType::F32).bytes(), 2 * 2 * 3 * 5 * 4 * 4);
        assert_eq!(kv(5, KvType::F16).bytes(), 2 * 2 * 3 * 5 * 4 * 2);
        // One byte per number, and 4 for each of 4 rows of keys and 5 rows of values per head.
        assert_eq!(kv(5, KvType::Q8).bytes(), 2 * 2 * 3 * 5 * 4 + 2 * 3 * (4 + 5) * 4);
        assert_eq!(kv(5, KvType::F16).kv_type(), KvType::F16);
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let zeros = [0.0; 48];
        let make = |shape, n_tokens, values: &[f32]| {
            BlockKv::new(shape, n_tokens, &zeros, values, KvType::F32).unwrap_err()
        };
        let expected = BlockError::KvLength {
            part: "values",
            shape: SHAPE,
            n_tokens: 2,
            expected: 48,
            found: 47,
        };
        assert_eq!(make(SHAPE, 2, &zeros[1..]).to_string(), expected.to_string());
        assert!(matches!(make(SHAPE, 0, &zeros), BlockError::KvShape { .. }));
        let huge = KvShape { n_layers: usize::MAX, n_kv_heads: 2, head_dim: 1 };
        assert!(matches!(make(huge, 1, &zeros), BlockError::KvShape { .. }));
        for kv_type in TYPES {
            assert!(BlockKv::from_bytes(huge, 1, kv_type, &[]).is_err());
            assert!(BlockKv::from_bytes(SHAPE, 0, kv_type, &[]).is_err());
            assert_eq!(BlockKv::stored_bytes(huge, 1, kv_type), None);
        }
    }

    #[test]
    fn bytes_become_the_same_block() {
        for kv_type in TYPES {
            let kv = kv(5, kv_type);
            let mut bytes = vec![];
            kv.write_to(&mut bytes);
            assert_eq!(bytes.len(), kv.bytes());
            assert_eq!(BlockKv::stored_bytes(SHAPE, 5, kv_type), Some(kv.bytes()));
            assert_eq!(BlockKv::from_bytes(SHAPE, 5, kv_type, &bytes).unwrap(), kv);
            for wrong in [&bytes[1..], &[&bytes[..], &[0]].concat()] {
                let error = BlockKv::from_bytes(SHAPE, 5, kv_type, wrong).unwrap_err();
                assert!(matches!(error, BlockError::KvBytes { .. }));
            }
        }
    }

    #[test]
    #[should_panic(expected = "kv head 3 of 3")]
    fn a_head_too_many_does_not_read_its_neighbour() {
        let _ = kv(2, KvType::F32).keys(0, 3, 0..1);
    }

    #[test]
    fn stored_numbers_are_never_infinite() {
        let shape = KvShape { n_layers: 1, n_kv_heads: 1, head_dim: 4 };
        let numbers = [1e9, -1e9, 1.5, f32::INFINITY];
        for kv_type in [KvType::F16, KvType::Q8] {
            let kv = BlockKv::new(shape, 1, &numbers, &numbers, kv_type).unwrap();
            let mut stored = [0.0; 4];
            kv.keys(0, 0, 0..1).copy_to(&mut stored);
            assert_eq!(stored, [65504.0, -65504.0, 1.5, 65504.0]);
            kv.values(0, 0, 0..1).copy_to(&mut stored);
            assert!(stored.iter().all(|c| c.is_finite()));
        }
    }
}
