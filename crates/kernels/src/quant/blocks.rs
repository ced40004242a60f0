//! Blocks of GGUF's quantized types, unpacked to plain integers.

use super::{WeightType, f16_at};

/// What the 4 bits of IQ4_NL and IQ4_XS stand for.
const IQ4_VALUES: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// What the 4 bits of MXFP4 stand for, doubled: sign, two bits of exponent, one of mantissa.
const MXFP4_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// What is subtracted from the unsigned integers of a type to get the signed ones.
pub(crate) const fn bias(ty: WeightType) -> i16 {
    match ty {
        WeightType::Q3K => 4,
        WeightType::Q4_0 => 8,
        WeightType::MXFP4 => 12,
        WeightType::Q5_0 => 16,
        WeightType::Q6K => 32,
        WeightType::Q8_0 | WeightType::IQ4NL | WeightType::IQ4XS => 128,
        _ => 0,
    }
}

/// Whether a minimum is added to the weights of a type.
pub(crate) const fn has_minimum(ty: WeightType) -> bool {
    matches!(
        ty,
        WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q2K | WeightType::Q4K | WeightType::Q5K
    )
}

/// Quantized weights that share a scale and a minimum.
pub(crate) const fn scale_run(ty: WeightType) -> usize {
    match ty {
        WeightType::Q2K | WeightType::Q3K | WeightType::Q6K => 16,
        _ => 32,
    }
}

/// A block of 32 weights: `w[i] = d * (q[i] - bias) + m`.
pub(crate) struct Block {
    pub(crate) d: f32,
    /// 0 for types without a minimum.
    pub(crate) m: f32,
    pub(crate) q: [u8; 32],
    bias: i16,
}

impl Block {
    /// In 4 and 5 bits, byte `j` of the nibbles holds weight `j` below and weight `j + 16` above.
    pub(crate) fn parse(ty: WeightType, block: &[u8]) -> Self {
        let bias = bias(ty);
        let nibble = |at: usize, i: usize| (block[at + i % 16] >> (4 * (i / 16))) & 15;
        let nibbles = |at: usize| -> [u8; 32] { std::array::from_fn(|i| nibble(at, i)) };
        let five = |at: usize| -> [u8; 32] {
            let high = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
            std::array::from_fn(|i| nibble(at + 4, i) | (((high >> i) & 1) as u8) << 4)
        };
        let named = |at: usize, values: [i8; 16]| -> [u8; 32] {
            nibbles(at).map(|q| (i16::from(values[usize::from(q)]) + bias) as u8)
        };
        let d = if ty == WeightType::MXFP4 { half_power(block[0]) } else { f16_at(block, 0) };
        let (m, q) = match ty {
            WeightType::Q4_0 => (0.0, nibbles(2)),
            WeightType::Q4_1 => (f16_at(block, 2), nibbles(4)),
            WeightType::Q5_0 => (0.0, five(2)),
            WeightType::Q5_1 => (f16_at(block, 2), five(4)),
            // Two's complement with the sign bit flipped is the value plus 128.
            WeightType::Q8_0 => (0.0, std::array::from_fn(|i| block[2 + i] ^ 0x80)),
            WeightType::IQ4NL => (0.0, named(2, IQ4_VALUES)),
            WeightType::MXFP4 => (0.0, named(1, MXFP4_VALUES)),
            _ => unreachable!("{ty:?} has no blocks of 32"),
        };
        Self { d, m, q, bias }
    }

    /// Integer `i`, with the type's bias taken off.
    pub(crate) fn integer(&self, i: usize) -> i16 {
        i16::from(self.q[i]) - self.bias
    }
}

/// Half of `2^(e - 127)`, whose doubled integers MXFP4 multiplies.
fn half_power(e: u8) -> f32 {
    match e {
        // Too small for an exponent of their own: 2^-128 and 2^-127.
        0 | 1 => f32::from_bits(0x0020_0000 << e),
        _ => f32::from_bits(u32::from(e - 1) << 23),
    }
}

/// A block of 256 weights: `w[i] = d * scales[i / 16] * (q[i] - bias) - dmin * mins[i / 16]`.
pub(crate) struct SuperBlock {
    pub(crate) d: f32,
    /// 0 for types without minima.
    pub(crate) dmin: f32,
    /// Types with 8 scales have each twice.
    pub(crate) scales: [i8; 16],
    pub(crate) mins: [u8; 16],
    pub(crate) q: [u8; 256],
    bias: i16,
}

impl SuperBlock {
    pub(crate) fn parse(ty: WeightType, block: &[u8]) -> Self {
        let bias = bias(ty);
        let plain = |d: usize| (f16_at(block, d), 0.0, [0; 16]);
        // Each half of 128 weights has 32 bytes of bit pairs: quarter `p` of it takes pair `p`.
        let pair =
            |at: usize, i: usize| (block[at + i / 128 * 32 + i % 32] >> (2 * (i / 32 % 4))) & 3;
        // Eight runs of 32 weights share 32 bytes: each has a bit of them.
        let bit = |at: usize, i: usize| (block[at + i % 32] >> (i / 32)) & 1;
        // 32 bytes hold 64 weights: the low nibbles first, then the high ones.
        let nibble =
            |at: usize, i: usize| (block[at + i / 64 * 32 + i % 32] >> (4 * (i / 32 % 2))) & 15;
        let ((d, dmin, mins), scales, q): (_, [i8; 16], [u8; 256]) = match ty {
            WeightType::Q2K => (
                (f16_at(block, 80), f16_at(block, 82), std::array::from_fn(|i| block[i] >> 4)),
                std::array::from_fn(|i| (block[i] & 15) as i8),
                std::array::from_fn(|i| pair(16, i)),
            ),
            WeightType::Q3K => {
                // Six bits each: nibbles of 0..8, and bit pairs of 8..12.
                let scale = |i: usize| {
                    let low = (block[96 + i % 8] >> (4 * (i / 8))) & 15;
                    (low | ((block[104 + i % 4] >> (2 * (i / 4))) & 3) << 4) as i8 - 32
                };
                (
                    plain(108),
                    std::array::from_fn(scale),
                    std::array::from_fn(|i| pair(32, i) | bit(0, i) << 2),
                )
            }
            WeightType::Q4K | WeightType::Q5K => {
                let six = |i: usize, first: usize| six_bits(&block[4..16], i / 2, first);
                let mins = std::array::from_fn(|i| six(i, 4));
                let q = |i: usize| match ty {
                    WeightType::Q4K => nibble(16, i),
                    _ => nibble(48, i) | bit(16, i) << 4,
                };
                let scales = std::array::from_fn(|i| six(i, 0) as i8);
                ((f16_at(block, 0), f16_at(block, 2), mins), scales, std::array::from_fn(q))
            }
            WeightType::Q6K => {
                // Each half has 64 bytes of low nibbles: its quarter `p` takes nibble p / 2.
                let low = |i: usize| {
                    let (half, p, j) = (i / 128, i / 32 % 4, i % 32);
                    (block[half * 64 + (p % 2) * 32 + j] >> (4 * (p / 2))) & 15
                };
                let scales = std::array::from_fn(|i| block[192 + i] as i8);
                (plain(208), scales, std::array::from_fn(|i| low(i) | pair(128, i) << 4))
            }
            WeightType::IQ4XS => {
                let high = u16::from_le_bytes([block[2], block[3]]);
                let scale = |i: usize| {
                    let s = i / 2;
                    let low = (block[4 + s / 2] >> (4 * (s % 2))) & 15;
                    (low | (((high >> (2 * s)) & 3) as u8) << 4) as i8 - 32
                };
                let value = |i: usize| {
                    let nibble = (block[8 + i / 32 * 16 + i % 16] >> (4 * (i / 16 % 2))) & 15;
                    (i16::from(IQ4_VALUES[usize::from(nibble)]) + bias) as u8
                };
                (plain(0), std::array::from_fn(scale), std::array::from_fn(value))
            }
            _ => unreachable!("{ty:?} has no blocks of 256"),
        };
        Self { d, dmin, scales, mins, q, bias }
    }

    /// Integer `i`, with the type's bias taken off.
    pub(crate) fn integer(&self, i: usize) -> i16 {
        i16::from(self.q[i]) - self.bias
    }
}

/// Scale (`first` 0) or minimum (4) number `i` of Q4_K and Q5_K. Six bits each: the first four of a kind lie
/// in the low bits of bytes 0..4 (scales) and 4..8 (minima), the last four in nibbles of 8..12 and the
/// top bits of those bytes.
fn six_bits(packed: &[u8], i: usize, first: usize) -> u8 {
    match i {
        0..4 => packed[first + i] & 63,
        _ => {
            let low = (packed[4 + i] >> first) & 15;
            low | ((packed[first + i - 4] >> 6) << 4)
        }
    }
}
