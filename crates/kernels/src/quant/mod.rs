//! The tensor types of GGUF files: what their bytes mean.
//!
//! `dequantize` is the definition, a transcription of the format into plain arithmetic; the packed
//! forms in `packed.rs` hold the same integers and scales in another order, and tests compare both.
//! Layouts: the `ggml` project's `ggml-common.h` (`block_q4_1`, `block_q4_K`, …).

pub(crate) mod blocks;
pub(crate) mod packed;

use half::f16;

/// How the weights of a matrix are stored in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// 4 bits, blocks of 32 with scale and minimum.
    Q4_1,
    /// 5 bits, blocks of 32 with scale.
    Q5_0,
    /// 8 bits, blocks of 32 with scale.
    Q8_0,
    /// 4 bits, blocks of 256 with 8 six-bit scales and minima.
    Q4K,
    /// 6 bits, blocks of 256 with 16 eight-bit scales.
    Q6K,
}

impl WeightType {
    /// Weights per block; a row is a whole number of blocks.
    #[must_use]
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 => 1,
            Self::Q4_1 | Self::Q5_0 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q6K => 256,
        }
    }

    /// Bytes per block.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q6K => 210,
        }
    }

    /// Bytes of a row of `cols` weights, or `None` if `cols` is not a whole number of blocks.
    #[must_use]
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        cols.is_multiple_of(self.block_len()).then(|| cols / self.block_len() * self.block_bytes())
    }

    /// Whether products take activations in 8 bits.
    #[must_use]
    pub fn is_quantized(self) -> bool {
        !matches!(self, Self::F32 | Self::F16)
    }
}

/// Widens a row of stored weights: `bytes` holds `out.len()` weights of type `ty`.
///
/// # Panics
///
/// If the lengths do not match; callers checked the file's table.
pub fn dequantize(ty: WeightType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(Some(bytes.len()), ty.row_bytes(out.len()), "bytes of a row of {}", out.len());
    let blocks = bytes.chunks_exact(ty.block_bytes()).zip(out.chunks_exact_mut(ty.block_len()));
    for (block, out) in blocks {
        match ty {
            WeightType::F32 => {
                out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]])
            }
            WeightType::F16 => out[0] = f16_at(block, 0),
            WeightType::Q4_1 | WeightType::Q5_0 | WeightType::Q8_0 => {
                let (d, m) = blocks::scale_and_min(ty, block);
                for (w, q) in out.iter_mut().zip(blocks::integers32(ty, block)) {
                    *w = d * f32::from(q) + m;
                }
            }
            WeightType::Q4K => {
                let b = blocks::Q4K::parse(block);
                for (i, w) in out.iter_mut().enumerate() {
                    let scale = b.d * f32::from(b.scales[i / 32]);
                    *w = scale * f32::from(b.q[i]) - b.dmin * f32::from(b.mins[i / 32]);
                }
            }
            WeightType::Q6K => {
                let b = blocks::Q6K::parse(block);
                for (i, w) in out.iter_mut().enumerate() {
                    *w = b.d * f32::from(b.scales[i / 16]) * (f32::from(b.q[i]) - 32.0);
                }
            }
        }
    }
}

/// The half-precision number at byte `at`.
pub(crate) fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}
