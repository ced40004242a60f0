//! The tensor types of GGUF files: what their bytes mean.
//!
//! `dequantize` is the definition, a transcription of the format into plain arithmetic; the packed
//! forms in `packed.rs` hold the same integers and scales in another order, and tests compare both.
//! Layouts: the `ggml` project's `ggml-common.h` (`block_q4_1`, `block_q4_K`, …).

pub(crate) mod blocks;
pub(crate) mod packed;

use half::{bf16, f16};

/// How the weights of a matrix are stored in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// The upper half of 32-bit floats.
    BF16,
    /// 4 bits, blocks of 32 with scale.
    Q4_0,
    /// 4 bits, blocks of 32 with scale and minimum.
    Q4_1,
    /// 5 bits, blocks of 32 with scale.
    Q5_0,
    /// 5 bits, blocks of 32 with scale and minimum.
    Q5_1,
    /// 8 bits, blocks of 32 with scale.
    Q8_0,
    /// 4 bits that name one of sixteen integers, blocks of 32 with scale.
    IQ4NL,
    /// Floats of 4 bits, blocks of 32 with a power of two as scale.
    MXFP4,
    /// 2 bits, blocks of 256 with 16 four-bit scales and minima.
    Q2K,
    /// 3 bits, blocks of 256 with 16 six-bit scales.
    Q3K,
    /// 4 bits, blocks of 256 with 8 six-bit scales and minima.
    Q4K,
    /// 5 bits, blocks of 256 with 8 six-bit scales and minima.
    Q5K,
    /// 6 bits, blocks of 256 with 16 eight-bit scales.
    Q6K,
    /// As `IQ4NL`, blocks of 256 with 8 six-bit scales.
    IQ4XS,
}

impl WeightType {
    /// All types.
    pub const ALL: [Self; 16] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::IQ4NL,
        Self::MXFP4,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::IQ4XS,
    ];

    /// Weights per block, and bytes.
    const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 | Self::IQ4NL => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::MXFP4 => (32, 17),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
            Self::IQ4XS => (256, 136),
        }
    }

    /// Weights per block; a row is a whole number of blocks.
    #[must_use]
    pub const fn block_len(self) -> usize {
        self.block().0
    }

    /// Bytes per block.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        self.block().1
    }

    /// Bytes of a row of `cols` weights, or `None` if `cols` is not a whole number of blocks.
    #[must_use]
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        cols.is_multiple_of(self.block_len()).then(|| cols / self.block_len() * self.block_bytes())
    }

    /// Whether products take activations in 8 bits.
    #[must_use]
    pub fn is_quantized(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::BF16)
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
            WeightType::BF16 => out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32(),
            _ if ty.block_len() == 32 => {
                let b = blocks::Block::parse(ty, block);
                for (i, w) in out.iter_mut().enumerate() {
                    *w = b.d * f32::from(b.integer(i)) + b.m;
                }
            }
            _ => {
                let b = blocks::SuperBlock::parse(ty, block);
                for (i, w) in out.iter_mut().enumerate() {
                    let scale = b.d * f32::from(b.scales[i / 16]);
                    *w = scale * f32::from(b.integer(i)) - b.dmin * f32::from(b.mins[i / 16]);
                }
            }
        }
    }
}

/// The half-precision number at byte `at`.
pub(crate) fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}
