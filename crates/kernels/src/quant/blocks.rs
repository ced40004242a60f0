//! Blocks of GGUF's quantized types, unpacked to plain integers.

use super::{WeightType, f16_at};

/// Scale and minimum of a block of 32; the minimum is 0 for types without one.
pub(crate) fn scale_and_min(ty: WeightType, block: &[u8]) -> (f32, f32) {
    let min = if ty == WeightType::Q4_1 { f16_at(block, 2) } else { 0.0 };
    (f16_at(block, 0), min)
}

/// The 32 integers of a block, with the type's bias taken off.
pub(crate) fn integers32(ty: WeightType, block: &[u8]) -> [i16; 32] {
    unsigned32(ty, block).map(|q| i16::from(q) - bias(ty))
}

/// What is subtracted from the unsigned integers of a type to get the signed ones.
pub(crate) fn bias(ty: WeightType) -> i16 {
    match ty {
        WeightType::Q5_0 => 16,
        WeightType::Q6K => 32,
        WeightType::Q8_0 => 128,
        WeightType::F32 | WeightType::F16 | WeightType::Q4_1 | WeightType::Q4K => 0,
    }
}

/// The 32 integers of a block, unsigned.
///
/// In 4 and 5 bits, byte `j` of the nibbles holds weight `j` below and weight `j + 16` above.
pub(crate) fn unsigned32(ty: WeightType, block: &[u8]) -> [u8; 32] {
    let nibble = |bytes: &[u8], i: usize| (bytes[i % 16] >> (4 * (i / 16))) & 15;
    match ty {
        WeightType::Q4_1 => std::array::from_fn(|i| nibble(&block[4..], i)),
        WeightType::Q5_0 => {
            let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
            std::array::from_fn(|i| nibble(&block[6..], i) | (((high >> i) & 1) as u8) << 4)
        }
        // Two's complement with the sign bit flipped is the value plus 128.
        WeightType::Q8_0 => std::array::from_fn(|i| block[2 + i] ^ 0x80),
        WeightType::F32 | WeightType::F16 | WeightType::Q4K | WeightType::Q6K => {
            unreachable!("{ty:?} has no blocks of 32")
        }
    }
}

/// A block of 256 weights: `w[i] = d * scales[i / 32] * q[i] - dmin * mins[i / 32]`.
pub(crate) struct Q4K {
    pub(crate) d: f32,
    pub(crate) dmin: f32,
    pub(crate) scales: [u8; 8],
    pub(crate) mins: [u8; 8],
    pub(crate) q: [u8; 256],
}

impl Q4K {
    pub(crate) fn parse(block: &[u8]) -> Self {
        let packed = &block[4..16];
        // Six bits each: the first four of a kind lie in the low bits of bytes 0..4 (scales) and
        // 4..8 (minima), the last four in nibbles of 8..12 and the top bits of those bytes.
        let six = |i: usize, first: usize| match i {
            0..4 => packed[first + i] & 63,
            _ => {
                let low = (packed[4 + i] >> first) & 15;
                low | ((packed[first + i - 4] >> 6) << 4)
            }
        };
        let quants = &block[16..144];
        Self {
            d: f16_at(block, 0),
            dmin: f16_at(block, 2),
            scales: std::array::from_fn(|i| six(i, 0)),
            mins: std::array::from_fn(|i| six(i, 4)),
            // 32 bytes hold 64 weights: the low nibbles first, then the high ones.
            q: std::array::from_fn(|i| (quants[i / 64 * 32 + i % 32] >> (4 * (i / 32 % 2))) & 15),
        }
    }
}

/// A block of 256 weights: `w[i] = d * scales[i / 16] * (q[i] - 32)`.
pub(crate) struct Q6K {
    pub(crate) d: f32,
    pub(crate) scales: [i8; 16],
    pub(crate) q: [u8; 256],
}

impl Q6K {
    pub(crate) fn parse(block: &[u8]) -> Self {
        let (low, high) = (&block[0..128], &block[128..192]);
        // Each half of 128 weights has 64 bytes of low nibbles and 32 bytes of high bit pairs:
        // quarter `p` of the half (32 weights) takes nibble p / 2 and bit pair p.
        let six = |i: usize| {
            let (half, p, j) = (i / 128, i / 32 % 4, i % 32);
            let nibble = (low[half * 64 + (p % 2) * 32 + j] >> (4 * (p / 2))) & 15;
            let pair = (high[half * 32 + j] >> (2 * p)) & 3;
            nibble | pair << 4
        };
        Self {
            d: f16_at(block, 208),
            scales: std::array::from_fn(|i| block[192 + i] as i8),
            q: std::array::from_fn(six),
        }
    }
}
