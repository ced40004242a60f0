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
//! This module knows numbers and a shape; it does not know which model made them.

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::block::BlockError;

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
}

/// Components in one of the element types.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum KvBuffer {
    /// f32 storage.
    F32(Vec<f32>),
    /// f16 storage.
    F16(Vec<f16>),
}

impl KvBuffer {
    /// Stores `components` as `kv_type`.
    ///
    /// Components beyond the range of f16 become ±65504: one infinite key would make every later
    /// attention sum NaN, while a clamped one stays the largest of its row.
    #[must_use]
    pub fn from_f32(components: &[f32], kv_type: KvType) -> Self {
        match kv_type {
            KvType::F32 => Self::F32(components.to_vec()),
            KvType::F16 => Self::F16(to_f16_clamped(components)),
        }
    }

    /// Number of components.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(components) => components.len(),
            Self::F16(components) => components.len(),
        }
    }

    /// Whether there are no components.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element type of the components.
    #[must_use]
    pub fn kv_type(&self) -> KvType {
        match self {
            Self::F32(_) => KvType::F32,
            Self::F16(_) => KvType::F16,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F32(components) => size_of_val(components.as_slice()),
            Self::F16(components) => size_of_val(components.as_slice()),
        }
    }

    fn rows(&self, components: Range<usize>) -> KvRows<'_> {
        match self {
            Self::F32(all) => KvRows::F32(&all[components]),
            Self::F16(all) => KvRows::F16(&all[components]),
        }
    }
}

fn to_f16_clamped(components: &[f32]) -> Vec<f16> {
    let limit = f16::MAX.to_f32();
    let clamped: Vec<f32> = components.iter().map(|c| c.clamp(-limit, limit)).collect();
    let mut out = vec![f16::ZERO; clamped.len()];
    out.convert_from_f32_slice(&clamped);
    out
}

/// Rows of one layer and one head, `[n_tokens, head_dim]`, contiguous.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum KvRows<'a> {
    /// f32 storage.
    F32(&'a [f32]),
    /// f16 storage.
    F16(&'a [f16]),
}

impl KvRows<'_> {
    /// Number of components: `n_tokens * head_dim`.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(rows) => rows.len(),
            Self::F16(rows) => rows.len(),
        }
    }

    /// Whether there are no components.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the components to `out` as f32; exact from both element types.
    ///
    /// # Panics
    ///
    /// If `out` has another length.
    pub fn copy_to(&self, out: &mut [f32]) {
        match self {
            Self::F32(rows) => out.copy_from_slice(rows),
            Self::F16(rows) => rows.convert_to_f32_slice(out),
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
    /// Wraps `keys` (before rotation) and `values`, each of shape
    /// `[n_layers, n_kv_heads, n_tokens, head_dim]`.
    ///
    /// # Errors
    ///
    /// [`BlockError::KvShape`] if a dimension is zero or their product overflows;
    /// [`BlockError::KvLength`] if keys or values have another length than the shape says.
    pub fn new(
        shape: KvShape,
        n_tokens: usize,
        keys: KvBuffer,
        values: KvBuffer,
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
        self.keys.rows(self.components_of(layer, kv_head, tokens))
    }

    /// Values of `tokens`, as [`keys`](Self::keys) gives the keys.
    ///
    /// # Panics
    ///
    /// If `layer`, `kv_head` or `tokens` lie outside the shape.
    #[must_use]
    pub fn values(&self, layer: usize, kv_head: usize, tokens: Range<usize>) -> KvRows<'_> {
        self.values.rows(self.components_of(layer, kv_head, tokens))
    }

    /// Bytes that the components take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.keys.bytes() + self.values.bytes()
    }

    /// Without these checks a wrong head would silently read its neighbour's rows.
    fn components_of(&self, layer: usize, kv_head: usize, tokens: Range<usize>) -> Range<usize> {
        let KvShape { n_layers, n_kv_heads, head_dim } = self.shape;
        assert!(layer < n_layers, "layer {layer} of {n_layers}");
        assert!(kv_head < n_kv_heads, "kv head {kv_head} of {n_kv_heads}");
        assert!(
            tokens.start <= tokens.end && tokens.end <= self.n_tokens,
            "tokens {tokens:?} of {}",
            self.n_tokens
        );
        let first_row = (layer * n_kv_heads + kv_head) * self.n_tokens;
        (first_row + tokens.start) * head_dim..(first_row + tokens.end) * head_dim
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: KvShape = KvShape { n_layers: 2, n_kv_heads: 3, head_dim: 4 };

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
        let keys = KvBuffer::from_f32(&numbered(n_tokens, 1.0), kv_type);
        let values = KvBuffer::from_f32(&numbered(n_tokens, -1.0), kv_type);
        BlockKv::new(SHAPE, n_tokens, keys, values).unwrap()
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
        assert_eq!(kv(5, KvType::F16).kv_type(), KvType::F16);
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let buffer = |n: usize| KvBuffer::F32(vec![0.0; n]);
        let error = BlockKv::new(SHAPE, 2, buffer(48), buffer(47)).unwrap_err();
        assert!(matches!(
            error,
            BlockError::KvLength { part: "values", expected: 48, found: 47, .. }
        ));
        assert!(matches!(
            BlockKv::new(SHAPE, 0, buffer(0), buffer(0)),
            Err(BlockError::KvShape { .. })
        ));
        let huge = KvShape { n_layers: usize::MAX, n_kv_heads: 2, head_dim: 1 };
        assert!(matches!(
            BlockKv::new(huge, 1, buffer(0), buffer(0)),
            Err(BlockError::KvShape { .. })
        ));
    }

    #[test]
    #[should_panic(expected = "kv head 3 of 3")]
    fn a_head_too_many_does_not_read_its_neighbour() {
        let _ = kv(2, KvType::F32).keys(0, 3, 0..1);
    }

    #[test]
    fn f16_never_makes_an_infinity() {
        let KvBuffer::F16(stored) =
            KvBuffer::from_f32(&[1e9, -1e9, 1.5, f32::INFINITY], KvType::F16)
        else {
            panic!("f16 was asked for")
        };
        let stored: Vec<f32> = stored.iter().map(|c| c.to_f32()).collect();
        assert_eq!(stored, [65504.0, -65504.0, 1.5, 65504.0]);
    }
}
