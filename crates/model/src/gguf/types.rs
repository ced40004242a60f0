//! The tensor types of ggml: their numbers, names and block layouts.

use std::fmt;

use everstream_kernels::WeightType;

/// How the elements of a tensor are stored.
///
/// Elements come in blocks of [`block_len`](Self::block_len), each of
/// [`block_bytes`](Self::block_bytes). All types that ggml defines are known by name, so that
/// `inspect` can show any file; the ones that the kernels compute with are
/// [`SUPPORTED`](Self::SUPPORTED).
///
/// Source: ggml, `ggml/include/ggml.h` (numbers) and `ggml/src/ggml-common.h` (block layouts).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(non_camel_case_types, reason = "these are ggml's own names, with which people search")]
#[expect(missing_docs, reason = "the names say it all; the table below gives the layouts")]
#[non_exhaustive]
pub enum GgmlType {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ2_XXS,
    IQ2_XS,
    IQ3_XXS,
    IQ1_S,
    IQ4_NL,
    IQ3_S,
    IQ2_S,
    IQ4_XS,
    I8,
    I16,
    I32,
    I64,
    F64,
    IQ1_M,
    BF16,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
    Q1_0,
}

/// Type, number in the file, name, elements per block, bytes per block.
///
/// The missing numbers (4, 5, 31 to 33, 36 to 38) once named types that ggml removed.
const LAYOUTS: &[(GgmlType, u32, &str, usize, usize)] = {
    use GgmlType::*;
    &[
        (F32, 0, "F32", 1, 4),
        (F16, 1, "F16", 1, 2),
        (Q4_0, 2, "Q4_0", 32, 18),
        (Q4_1, 3, "Q4_1", 32, 20),
        (Q5_0, 6, "Q5_0", 32, 22),
        (Q5_1, 7, "Q5_1", 32, 24),
        (Q8_0, 8, "Q8_0", 32, 34),
        (Q8_1, 9, "Q8_1", 32, 36),
        (Q2_K, 10, "Q2_K", 256, 84),
        (Q3_K, 11, "Q3_K", 256, 110),
        (Q4_K, 12, "Q4_K", 256, 144),
        (Q5_K, 13, "Q5_K", 256, 176),
        (Q6_K, 14, "Q6_K", 256, 210),
        (Q8_K, 15, "Q8_K", 256, 292),
        (IQ2_XXS, 16, "IQ2_XXS", 256, 66),
        (IQ2_XS, 17, "IQ2_XS", 256, 74),
        (IQ3_XXS, 18, "IQ3_XXS", 256, 98),
        (IQ1_S, 19, "IQ1_S", 256, 50),
        (IQ4_NL, 20, "IQ4_NL", 32, 18),
        (IQ3_S, 21, "IQ3_S", 256, 110),
        (IQ2_S, 22, "IQ2_S", 256, 82),
        (IQ4_XS, 23, "IQ4_XS", 256, 136),
        (I8, 24, "I8", 1, 1),
        (I16, 25, "I16", 1, 2),
        (I32, 26, "I32", 1, 4),
        (I64, 27, "I64", 1, 8),
        (F64, 28, "F64", 1, 8),
        (IQ1_M, 29, "IQ1_M", 256, 56),
        (BF16, 30, "BF16", 1, 2),
        (TQ1_0, 34, "TQ1_0", 256, 54),
        (TQ2_0, 35, "TQ2_0", 256, 66),
        (MXFP4, 39, "MXFP4", 32, 17),
        (NVFP4, 40, "NVFP4", 64, 36),
        (Q1_0, 41, "Q1_0", 128, 18),
    ]
};

/// The types that the kernels compute with, and their name for each.
const WEIGHT_TYPES: [(GgmlType, WeightType); 16] = [
    (GgmlType::F32, WeightType::F32),
    (GgmlType::F16, WeightType::F16),
    (GgmlType::BF16, WeightType::BF16),
    (GgmlType::Q4_0, WeightType::Q4_0),
    (GgmlType::Q4_1, WeightType::Q4_1),
    (GgmlType::Q5_0, WeightType::Q5_0),
    (GgmlType::Q5_1, WeightType::Q5_1),
    (GgmlType::Q8_0, WeightType::Q8_0),
    (GgmlType::IQ4_NL, WeightType::IQ4NL),
    (GgmlType::MXFP4, WeightType::MXFP4),
    (GgmlType::Q2_K, WeightType::Q2K),
    (GgmlType::Q3_K, WeightType::Q3K),
    (GgmlType::Q4_K, WeightType::Q4K),
    (GgmlType::Q5_K, WeightType::Q5K),
    (GgmlType::Q6_K, WeightType::Q6K),
    (GgmlType::IQ4_XS, WeightType::IQ4XS),
];

impl GgmlType {
    /// The types that this engine computes with.
    pub const SUPPORTED: &'static [Self] = &{
        let mut types = [Self::F32; WEIGHT_TYPES.len()];
        let mut i = 0;
        while i < types.len() {
            types[i] = WEIGHT_TYPES[i].0;
            i += 1;
        }
        types
    };

    /// The type with this number in a GGUF file, if ggml defines one.
    #[must_use]
    pub fn from_id(id: u32) -> Option<Self> {
        LAYOUTS.iter().find(|layout| layout.1 == id).map(|layout| layout.0)
    }

    /// The number that stands for this type in a GGUF file.
    #[must_use]
    pub fn id(self) -> u32 {
        self.layout().1
    }

    /// ggml's name, such as `Q4_K`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.layout().2
    }

    /// Elements per block; 1 for types that are not quantized in blocks.
    #[must_use]
    pub fn block_len(self) -> usize {
        self.layout().3
    }

    /// Bytes per block.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        self.layout().4
    }

    /// Whether the kernels compute with this type.
    #[must_use]
    pub fn is_supported(self) -> bool {
        self.weight_type().is_some()
    }

    /// The kernels' name for the type, if they compute with it.
    #[must_use]
    pub fn weight_type(self) -> Option<WeightType> {
        WEIGHT_TYPES.iter().find(|(ty, _)| *ty == self).map(|&(_, weights)| weights)
    }

    fn layout(self) -> &'static (Self, u32, &'static str, usize, usize) {
        // The table lists the variants in the order of their declaration; a test holds it to that.
        &LAYOUTS[self as usize]
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_stands_at_its_own_row_of_the_table() {
        for (row, &(ty, id, name, ..)) in LAYOUTS.iter().enumerate() {
            assert_eq!(ty as usize, row);
            assert_eq!(format!("{ty:?}"), name);
            assert_eq!(GgmlType::from_id(id), Some(ty));
            assert_eq!(ty.id(), id);
        }
        assert_eq!(GgmlType::Q1_0 as usize + 1, LAYOUTS.len());
    }

    #[test]
    fn removed_and_future_types_are_unknown() {
        for id in [4, 5, 31, 36, 999, u32::MAX] {
            assert_eq!(GgmlType::from_id(id), None);
        }
    }
}
