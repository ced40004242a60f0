//! Weights in the order in which the kernels read them: sixteen rows side by side.
//!
//! A *group* is 16 consecutive rows; a *step* is 32 columns of a group. Vector `i` of a step holds
//! columns `4i .. 4i + 4` of the 16 rows: byte `4r + j` is row `r`, column `4i + j`. One VNNI
//! instruction then multiplies four columns of sixteen rows with four broadcast activations, each
//! row has a lane of its own, and nothing is ever summed across lanes.
//!
//! ```text
//! group = block, block, …            a block of the file, of all 16 rows: 1 step or 8
//! block = [ scales ][ quants of its steps ]
//!
//! step of 4 bits   4 vectors of 64 bytes; vector v: low nibbles = vector v of the step (columns
//!                  4v..), high nibbles = vector v + 4 (columns 16 + 4v..)
//! step of 5 bits   as 4 bits, then 1 vector: bit i of a byte is the fifth bit of vector i
//! step of 6 bits   as 4 bits, then 2 vectors: bit pair i of vector h is for vector 4h + i
//! step of 8 bits   8 vectors; signed weights are stored plus 128
//!
//! scales of 1 step:       Q4_0 Q5_0 Q8_0 IQ4_NL  d [16 f16]
//!                        Q4_1 Q5_1              d [16 f16]  m [16 f16]
//!                        MXFP4                  d [16 f32]
//! scales of 8 steps:      Q4_K Q5_K    d [16 f16]  dmin [16 f16]  8 x scale [16 u8]  8 x min [16 u8]
//!                        Q2_K         d [16 f16]  dmin [16 f16]  16 x scale [16 u8]  16 x min [16 u8]
//!                        Q3_K Q6_K    d [16 f16]  16 x scale [16 i8]
//!                        IQ4_XS       d [16 f16]  8 x scale [16 i8]
//! F32, F16, BF16         no steps: column by column, 16 numbers each; BF16 as f32
//! ```
//!
//! A product reads a group from its first byte to its last, and the groups of a task lie behind each other:
//! one stream, which is what prefetchers follow. (Scales of a whole group in front of its quants are two
//! streams that start anew with each group.)
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

/// Bytes of a group.
fn group_bytes(ty: WeightType, cols: usize) -> usize {
    let bytes = match ty {
        WeightType::F32 | WeightType::BF16 => cols * GROUP * 4,
        WeightType::F16 => cols * GROUP * 2,
        _ => cols / ty.block_len() * (scale_bytes(ty) + block_steps(ty) * step_bytes(ty)),
    };
    bytes.next_multiple_of(64)
}

/// Steps of a block.
pub(crate) const fn block_steps(ty: WeightType) -> usize {
    ty.block_len() / STEP
}

/// Bytes of the quants of a step.
pub(crate) const fn step_bytes(ty: WeightType) -> usize {
    64 * stored_bits(ty)
}

/// Bytes of the scales of a block.
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
    /// Bytes of a group.
    group_bytes: usize,
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
        let group_bytes = group_bytes(ty, cols);
        let n_groups = rows.div_ceil(GROUP);
        let n_bytes = n_groups.checked_mul(group_bytes).ok_or(std::io::ErrorKind::OutOfMemory)?;
        let mut data = arena.zeroed(n_bytes)?;
        pool.for_each_chunk(data.as_mut_slice(), group_bytes, |group, out| {
            for lane in 0..GROUP.min(rows - group * GROUP) {
                let bytes = row(group * GROUP + lane);
                assert_eq!(Some(bytes.len()), ty.row_bytes(cols), "bytes of row {lane}");
                pack_row(ty, bytes, lane, out);
            }
        });
        Ok(Self { ty, rows, cols, group_bytes, data })
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
        &self.data.as_slice()[group * self.group_bytes..][..self.group_bytes]
    }
}

/// Writes one row into its lane of a group.
fn pack_row(ty: WeightType, bytes: &[u8], lane: usize, out: &mut [u8]) {
    let step_bytes = step_bytes(ty);
    let block_bytes = scale_bytes(ty) + block_steps(ty) * step_bytes;
    for (b, block) in bytes.chunks_exact(ty.block_bytes()).enumerate() {
        match ty {
            WeightType::F32 | WeightType::BF16 => {
                let mut w = [0.0];
                dequantize(ty, block, &mut w);
                out[(b * GROUP + lane) * 4..][..4].copy_from_slice(&w[0].to_ne_bytes());
            }
            WeightType::F16 => {
                let bits = u16::from_le_bytes([block[0], block[1]]);
                out[(b * GROUP + lane) * 2..][..2].copy_from_slice(&bits.to_ne_bytes());
            }
            _ => {
                let out = &mut out[b * block_bytes..][..block_bytes];
                let (scales, quants) = out.split_at_mut(scale_bytes(ty));
                if ty.block_len() == STEP {
                    let parsed = Block::parse(ty, block);
                    pack_scale(ty, &parsed, lane, scales);
                    pack_step(ty, &parsed.q, lane, quants);
                } else {
                    let parsed = SuperBlock::parse(ty, block);
                    pack_scales(ty, &parsed, lane, scales);
                    let steps = quants.chunks_exact_mut(step_bytes);
                    for (q, step) in parsed.q.as_chunks().0.iter().zip(steps) {
                        pack_step(ty, q, lane, step);
                    }
                }
            }
        }
    }
}

/// Writes the scale of 32 weights of one row into its lane, and their minimum.
fn pack_scale(ty: WeightType, block: &Block, lane: usize, out: &mut [u8]) {
    if ty == WeightType::MXFP4 {
        out[lane * 4..][..4].copy_from_slice(&block.d.to_ne_bytes());
    } else {
        put_f16(out, lane, block.d);
    }
    if has_minimum(ty) {
        put_f16(out, GROUP + lane, block.m);
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
