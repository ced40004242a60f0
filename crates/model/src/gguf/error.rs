//! What can be wrong with the bytes of a GGUF file.

use super::types::GgmlType;
use crate::error::shown;

/// Why bytes are not a GGUF file that can be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum GgufError {
    /// The file ends in the middle of something, or a length in it is nonsense.
    #[error(
        "{what} at byte {offset} needs {needed} bytes, but {left} are left; \
         the file is damaged or incomplete: fetch it again"
    )]
    TooShort {
        /// What was being read.
        what: &'static str,
        /// Where it begins.
        offset: u64,
        /// The bytes that it takes.
        needed: u64,
        /// The bytes between there and the end of the file.
        left: u64,
    },
    /// The first four bytes are not `GGUF`.
    #[error("the file begins with `{found}` instead of `GGUF`; it is no GGUF file")]
    BadMagic {
        /// The first bytes, escaped.
        found: String,
    },
    /// The file was written for a big-endian machine.
    #[error("the file is big-endian; only little-endian GGUF can be read: convert it again")]
    BigEndian,
    /// A version other than 2 and 3.
    #[error("GGUF version {found} is not supported (2 and 3 are); convert the model again")]
    UnsupportedVersion {
        /// The version in the file.
        found: u32,
    },
    /// A count in the file is beyond any real model.
    #[error("{what}: {count} is more than the limit of {limit}; the file is damaged")]
    TooMany {
        /// What was counted.
        what: &'static str,
        /// The count in the file.
        count: u64,
        /// The most that is accepted.
        limit: u64,
    },
    /// A key or tensor name is not UTF-8.
    #[error("the {what} at byte {offset} is not valid UTF-8; the file is damaged")]
    NameNotUtf8 {
        /// Key or tensor name.
        what: &'static str,
        /// Where it begins.
        offset: u64,
    },
    /// Two tensors share bytes.
    #[error(
        "tensors {} and {} overlap; the file is damaged", shown(.tensor), shown(.other)
    )]
    Overlap {
        /// One of them.
        tensor: String,
        /// The other, which begins before it.
        other: String,
    },
    /// A key stands twice in the metadata.
    #[error("metadata key {} appears twice", shown(.key))]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A metadata value has a type that GGUF does not define.
    #[error("metadata key {} has the unknown value type {id}", shown(.key))]
    UnknownValueType {
        /// The key.
        key: String,
        /// The number of the type.
        id: u32,
    },
    /// Arrays of arrays of arrays ….
    #[error("metadata key {} nests arrays more than {limit} deep", shown(.key))]
    NestedTooDeep {
        /// The key.
        key: String,
        /// The depth that is accepted.
        limit: usize,
    },
    /// `general.alignment` is no power of two, or absurd.
    #[error("general.alignment is {found}, expected a power of two up to {limit}")]
    BadAlignment {
        /// The value or type in the file.
        found: String,
        /// The largest value that is accepted.
        limit: u64,
    },
    /// Two tensors have one name.
    #[error("tensor {} appears twice", shown(.tensor))]
    DuplicateTensor {
        /// The name.
        tensor: String,
    },
    /// A tensor without dimensions, or with too many.
    #[error("tensor {} has {found} dimensions, expected 1 to 4", shown(.tensor))]
    BadDimensionCount {
        /// The tensor.
        tensor: String,
        /// The number in the file.
        found: u32,
    },
    /// A tensor without elements.
    #[error("tensor {} has no elements: dimensions {dims:?}", shown(.tensor))]
    ZeroDimension {
        /// The tensor.
        tensor: String,
        /// Its dimensions.
        dims: Vec<u64>,
    },
    /// The size of a tensor does not fit in 64 bits.
    #[error("tensor {} is impossibly large: dimensions {dims:?}", shown(.tensor))]
    TooLarge {
        /// The tensor.
        tensor: String,
        /// Its dimensions.
        dims: Vec<u64>,
    },
    /// A row is not a whole number of quantization blocks.
    #[error(
        "tensor {} has rows of {row_len} elements, but {ty} comes in blocks of {block_len}",
        shown(.tensor)
    )]
    PartialBlock {
        /// The tensor.
        tensor: String,
        /// Its type.
        ty: GgmlType,
        /// Elements per row.
        row_len: u64,
        /// Elements per block.
        block_len: u64,
    },
    /// A tensor type that ggml does not define (any more, or yet).
    #[error("tensor {} has the unknown type number {id}", shown(.tensor))]
    UnknownTensorType {
        /// The tensor.
        tensor: String,
        /// The number in the file.
        id: u32,
    },
    /// The data of a tensor does not begin at a multiple of the alignment.
    #[error("tensor {} begins at offset {offset}, no multiple of {alignment}", shown(.tensor))]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// Its offset from the start of the tensor data.
        offset: u64,
        /// The alignment of the file.
        alignment: u64,
    },
    /// The data of a tensor reaches beyond the end of the file.
    #[error(
        "tensor {} takes {bytes} bytes from byte {offset}, but the file has {file_bytes}; \
         it is damaged or incomplete: fetch it again",
        shown(.tensor)
    )]
    OutsideFile {
        /// The tensor.
        tensor: String,
        /// Where its data begins.
        offset: u64,
        /// Its size.
        bytes: u64,
        /// The size of the file.
        file_bytes: u64,
    },
}
