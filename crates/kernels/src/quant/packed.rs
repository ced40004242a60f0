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
//! scales, per step:      Q4_0 Q5_0 Q8_0 IQ4_NL  d [16 f16]
//!                        Q4_1 Q5_1              d [16 f16]  m [16 f16]
//!                        MXFP4                  d [16 f32]
//! scales, per 8 steps:   Q4_K Q5_K    d [16 f16]  dmin [16 f16]  8 x scale [16 u8]  8 x min [16 u8]
//!                        Q2_K         d [16 f16]  dmin [16 f16]  16 x scale [16 u8]  16 x min [16 u8]
//!                        Q3_K Q6_K    d [16 f16]  16 x scale [16 i8]
//!                        IQ4_XS       d [16 f16]  8 x scale [16 i8]
//! F32, F16, BF16         no steps: column by column, 16 numbers each; BF16 as f32
//! ```
//!
//! The transformation loses nothing. Most types keep their size or nearly so: six-bit scales become
//! bytes. What people rarely choose is widened: bits of Q2_K and Q3_K to nibbles, those of MXFP4 to five, the
//! named integers of IQ4_NL and IQ4_XS to bytes, BF16 to f32.

use half::f16;

use super::blocks::{Block, SuperBlock, has_minimum, scale_run};
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
            WeightType::F32 | WeightType::BF16 => (0, cols * GROUP * 4),
            WeightType::F16 => (0, cols * GROUP * 2),
            _ if ty.block_len() == STEP => (steps * scale_bytes(ty), steps * 64 * stored_bits(ty)),
            _ => (steps / 8 * scale_bytes(ty), steps * 64 * stored_bits(ty)),
        };
        let quants = scale_bytes.next_multiple_of(64);
        Self { quants, bytes: quants + quant_bytes.next_multiple_of(64) }
    }
}

/// Bytes of the scales of a block of 16 rows.
pub(crate) const fn scale_bytes(ty: WeightType) -> usize {
    match ty {
        WeightType::F32 | WeightType::F16 | WeightType::BF16 => 0,
        WeightType::Q4_0 | WeightType::Q5_0 | WeightType::Q8_0 | WeightType::IQ4NL => 32,
        WeightType::Q4_1 | WeightType::Q5_1 | WeightType::MXFP4 => 64,
        WeightType::Q4K | WeightType::Q5K => 64 + 16 * GROUP,
        WeightType::Q2K => 64 + 32 * GROUP,
        WeightType::Q3K | WeightType::Q6K => 32 + 16 * GROUP,
        WeightType::IQ4XS => 32 + 8 * GROUP,
    }
}

/// Bits of a quantized weight in memory.
pub(crate) const fn stored_bits(ty: WeightType) -> usize {
    match ty {
        WeightType::Q4_0
        | WeightType::Q4_1
        | WeightType::Q2K
        | WeightType::Q3K
        | WeightType::Q4K => 4,
        WeightType::Q5_0 | WeightType::Q5_1 | WeightType::Q5K | WeightType::MXFP4 => 5,
        WeightType::Q6K => 6,
        WeightType::Q8_0 | WeightType::IQ4NL | WeightType::IQ4XS => 8,
        WeightType::F32 | WeightType::F16 | WeightType::BF16 => 0,
    }
}

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
    let step_bytes = 64 * stored_bits(ty);
    for (b, block) in bytes.chunks_exact(ty.block_bytes()).enumerate() {
        match ty {
            WeightType::F32 | WeightType::BF16 => {
                let mut w = [0.0];
                dequantize(ty, block, &mut w);
                quants[(b * GROUP + lane) * 4..][..4].copy_from_slice(&w[0].to_ne_bytes());
            }
            WeightType::F16 => {
                let bits = u16::from_le_bytes([block[0], block[1]]);
                quants[(b * GROUP + lane) * 2..][..2].copy_from_slice(&bits.to_ne_bytes());
            }
            _ if ty.block_len() == STEP => {
                let parsed = Block::parse(ty, block);
                let scales = &mut scales[b * scale_bytes(ty)..][..scale_bytes(ty)];
                if ty == WeightType::MXFP4 {
                    scales[lane * 4..][..4].copy_from_slice(&parsed.d.to_ne_bytes());
                } else {
                    put_f16(scales, lane, parsed.d);
                }
                if has_minimum(ty) {
                    put_f16(scales, GROUP + lane, parsed.m);
                }
                pack_step(ty, &parsed.q, lane, &mut quants[b * step_bytes..][..step_bytes]);
            }
            _ => {
                let parsed = SuperBlock::parse(ty, block);
                let scales = &mut scales[b * scale_bytes(ty)..][..scale_bytes(ty)];
                pack_scales(ty, &parsed, lane, scales);
                for (s, q) in parsed.q.as_chunks().0.iter().enumerate() {
                    let step = &mut quants[(b * 8 + s) * step_bytes..][..step_bytes];
                    pack_step(ty, q, lane, step);
                }
            }
        }
    }
}

/// Writes the scales of 256 weights of one row into its lane.
fn pack_scales(ty: WeightType, block: &SuperBlock, lane: usize, out: &mut [u8]) {
    let has_mins = has_minimum(ty);
    // Those with 8 scales have each twice.
    let every = scale_run(ty) / 16;
    put_f16(out, lane, block.d);
    let mut at = 2 * GROUP;
    if has_mins {
        put_f16(out, GROUP + lane, block.dmin);
        at += 2 * GROUP;
    }
    let mins = block.mins.iter().copied().step_by(every).filter(|_| has_mins);
    let scales = block.scales.iter().map(|&scale| scale as u8).step_by(every);
    for (i, byte) in scales.chain(mins).enumerate() {
        out[at + i * GROUP + lane] = byte;
    }
}

fn put_f16(out: &mut [u8], at: usize, value: f32) {
    out[2 * at..][..2].copy_from_slice(&f16::from_f32(value).to_bits().to_ne_bytes());
}

/// Writes 32 unsigned integers of one row into its lane of a step.
fn pack_step(ty: WeightType, q: &[u8; STEP], lane: usize, out: &mut [u8]) {
    for (col, &q) in q.iter().enumerate() {
        let (vector, byte) = (col / 4, lane * 4 + col % 4);
        if stored_bits(ty) == 8 {
            out[vector * 64 + byte] = q;
            continue;
        }
        out[vector % 4 * 64 + byte] |= (q & 15) << (4 * (vector / 4));
        match stored_bits(ty) {
            5 => out[256 + byte] |= (q >> 4) << vector,
            6 => out[256 + vector / 4 * 64 + byte] |= (q >> 4) << (2 * (vector % 4)),
            _ => {}
        }
    }
}
