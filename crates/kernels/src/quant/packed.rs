//! Weights in the order in which the kernels read them: sixteen rows side by side.
//!
//! A *group* is 16 consecutive rows; a *step* is 32 columns of a group. Vector `i` of a step holds
//! columns `4i .. 4i + 4` of the 16 rows: byte `4r + j` is row `r`, column `4i + j`. One VNNI
//! instruction then multiplies four columns of sixteen rows with four broadcast activations, each
//! row has a lane of its own, and nothing is ever summed across lanes.
//!
//! ```text
//! group = [ scales of all steps ][ pad to 64 ][ quants of all steps ]
//!
//! step of 4 bits   4 vectors of 64 bytes; vector v: low nibbles = vector v of the step (columns
//!                  4v..), high nibbles = vector v + 4 (columns 16 + 4v..)
//! step of 5 bits   as 4 bits, then 1 vector: bit i of a byte is the fifth bit of vector i
//! step of 6 bits   as 4 bits, then 2 vectors: bit pair i of vector h is for vector 4h + i
//! step of 8 bits   8 vectors; signed weights are stored plus 128
//!
//! scales, per step:      Q4_1      d [16 f16]  m [16 f16]
//!                        Q5_0 Q8_0 d [16 f16]
//! scales, per 8 steps:   Q4_K      d [16 f16]  dmin [16 f16]  8 x scale [16 u8]  8 x min [16 u8]
//!                        Q6_K      d [16 f16]  16 x scale [16 i8]
//! F32, F16               no steps: column by column, 16 numbers each
//! ```
//!
//! The transformation loses nothing. Six-bit scales of Q4_K become bytes: 148 bytes for 256
//! weights instead of 144; all other types keep their size.

use super::blocks::{Q4K, Q6K, unsigned32};
use super::{WeightType, dequantize};
use crate::buffer::{AlignedBytes, Arena};
use crate::simd::LANES;

/// Rows of a group.
pub const GROUP: usize = LANES;
/// Columns of a step.
pub(crate) const STEP: usize = 32;

/// Sizes of the parts of a packed group, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupLayout {
    /// Offset of the quants.
    pub(crate) quants: usize,
    /// Size of the whole group.
    pub(crate) bytes: usize,
}

impl GroupLayout {
    pub(crate) fn new(ty: WeightType, cols: usize) -> Self {
        let steps = cols.div_ceil(STEP);
        let (scale_bytes, quant_bytes) = match ty {
            WeightType::F32 => (0, cols * GROUP * 4),
            WeightType::F16 => (0, cols * GROUP * 2),
            WeightType::Q4_1 => (steps * 64, steps * 256),
            WeightType::Q5_0 => (steps * 32, steps * 320),
            WeightType::Q8_0 => (steps * 32, steps * 512),
            WeightType::Q4K => (steps / 8 * Q4K_SCALES, steps * 256),
            WeightType::Q6K => (steps / 8 * Q6K_SCALES, steps * 384),
        };
        let quants = scale_bytes.next_multiple_of(64);
        Self { quants, bytes: quants + quant_bytes.next_multiple_of(64) }
    }
}

/// Bytes of scales of 8 steps of Q4_K.
pub(crate) const Q4K_SCALES: usize = 64 + 16 * GROUP;
/// Bytes of scales of 8 steps of Q6_K.
pub(crate) const Q6K_SCALES: usize = 32 + 16 * GROUP;

/// A matrix `[rows, cols]` in packed form; rows are padded with zeros to a multiple of 16.
pub struct PackedMatrix {
    pub(crate) ty: WeightType,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) layout: GroupLayout,
    pub(crate) data: AlignedBytes,
}

impl std::fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedMatrix({:?} [{}, {}])", self.ty, self.rows, self.cols)
    }
}

impl PackedMatrix {
    /// Packs rows of type `ty` into memory of `arena`; `row(i)` gives the stored bytes of output
    /// row `i`, so that a caller can permute rows on the way.
    ///
    /// # Errors
    ///
    /// What the system says if it has no memory for them.
    ///
    /// # Panics
    ///
    /// If a row has another length than `cols` weights of type `ty`, or if `cols` is no multiple
    /// of 32 for a quantized type.
    pub fn pack<'a>(
        ty: WeightType,
        rows: usize,
        cols: usize,
        (arena, pool): (&mut Arena, &crate::Pool),
        row: impl Fn(usize) -> &'a [u8] + Sync,
    ) -> std::io::Result<Self> {
        let layout = GroupLayout::new(ty, cols);
        let n_groups = rows.div_ceil(GROUP);
        let n_bytes = n_groups.checked_mul(layout.bytes).ok_or(std::io::ErrorKind::OutOfMemory)?;
        let mut data = arena.zeroed(n_bytes)?;
        pool.for_each_chunk(data.as_mut_slice(), layout.bytes, |group, out| {
            for lane in 0..GROUP.min(rows - group * GROUP) {
                let bytes = row(group * GROUP + lane);
                assert_eq!(Some(bytes.len()), ty.row_bytes(cols), "bytes of row {lane}");
                pack_row(ty, bytes, lane, layout, out);
            }
        });
        Ok(Self { ty, rows, cols, layout, data })
    }

    /// Rows, the length of an output.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns, the length of an input.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The type the weights were stored in.
    #[must_use]
    pub fn weight_type(&self) -> WeightType {
        self.ty
    }

    /// Bytes in memory, all of which a product reads once.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.data.as_slice().len()
    }

    /// The packed bytes of one group.
    pub(crate) fn group(&self, group: usize) -> &[u8] {
        &self.data.as_slice()[group * self.layout.bytes..][..self.layout.bytes]
    }
}

/// Writes one row into its lane of a group.
fn pack_row(ty: WeightType, bytes: &[u8], lane: usize, layout: GroupLayout, out: &mut [u8]) {
    let (scales, quants) = out.split_at_mut(layout.quants);
    for (b, block) in bytes.chunks_exact(ty.block_bytes()).enumerate() {
        match ty {
            WeightType::F32 => {
                let mut w = [0.0];
                dequantize(ty, block, &mut w);
                quants[(b * GROUP + lane) * 4..][..4].copy_from_slice(&w[0].to_ne_bytes());
            }
            WeightType::F16 => {
                let bits = u16::from_le_bytes([block[0], block[1]]);
                quants[(b * GROUP + lane) * 2..][..2].copy_from_slice(&bits.to_ne_bytes());
            }
            WeightType::Q4_1 => {
                put(scales, b * 64 + lane * 2, &block[0..2]);
                put(scales, b * 64 + 32 + lane * 2, &block[2..4]);
                pack_step(ty, &unsigned32(ty, block), lane, &mut quants[b * 256..][..256]);
            }
            WeightType::Q5_0 => {
                put(scales, b * 32 + lane * 2, &block[0..2]);
                pack_step(ty, &unsigned32(ty, block), lane, &mut quants[b * 320..][..320]);
            }
            WeightType::Q8_0 => {
                put(scales, b * 32 + lane * 2, &block[0..2]);
                pack_step(ty, &unsigned32(ty, block), lane, &mut quants[b * 512..][..512]);
            }
            WeightType::Q4K => {
                let parsed = Q4K::parse(block);
                let scales = &mut scales[b * Q4K_SCALES..][..Q4K_SCALES];
                put(scales, lane * 2, &block[0..2]);
                put(scales, 32 + lane * 2, &block[2..4]);
                for s in 0..8 {
                    scales[64 + s * GROUP + lane] = parsed.scales[s];
                    scales[64 + (8 + s) * GROUP + lane] = parsed.mins[s];
                }
                for (s, q) in parsed.q.as_chunks().0.iter().enumerate() {
                    pack_step(ty, q, lane, &mut quants[(b * 8 + s) * 256..][..256]);
                }
            }
            WeightType::Q6K => {
                let parsed = Q6K::parse(block);
                let scales = &mut scales[b * Q6K_SCALES..][..Q6K_SCALES];
                put(scales, lane * 2, &block[208..210]);
                for s in 0..16 {
                    scales[32 + s * GROUP + lane] = parsed.scales[s] as u8;
                }
                for (s, q) in parsed.q.as_chunks().0.iter().enumerate() {
                    pack_step(ty, q, lane, &mut quants[(b * 8 + s) * 384..][..384]);
                }
            }
        }
    }
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Writes 32 unsigned integers of one row into its lane of a step.
fn pack_step(ty: WeightType, q: &[u8; STEP], lane: usize, out: &mut [u8]) {
    for (col, &q) in q.iter().enumerate() {
        let (vector, byte) = (col / 4, lane * 4 + col % 4);
        if ty == WeightType::Q8_0 {
            out[vector * 64 + byte] = q;
            continue;
        }
        out[vector % 4 * 64 + byte] |= (q & 15) << (4 * (vector / 4));
        match ty {
            WeightType::Q5_0 => out[256 + byte] |= (q >> 4) << vector,
            WeightType::Q6K => out[256 + vector / 4 * 64 + byte] |= (q >> 4) << (2 * (vector % 4)),
            _ => {}
        }
    }
}
