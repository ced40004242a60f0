//! One row of the tensor table, and the checks that it must pass.

use super::GgufError;
use super::read::Reader;
use super::types::GgmlType;

/// Longest tensor name; ggml itself allows 63 bytes.
const MAX_NAME_BYTES: u64 = 256;
/// ggml's limit.
const MAX_DIMS: u32 = 4;

/// Where a tensor lies in the file and how to read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    name: String,
    ty: GgmlType,
    dims: Vec<usize>,
    offset: usize,
    bytes: usize,
}

impl TensorInfo {
    /// The name, such as `blk.0.attn_q.weight`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How the elements are stored.
    #[must_use]
    pub fn ty(&self) -> GgmlType {
        self.ty
    }

    /// The dimensions in ggml's order: one to four numbers, the contiguous one *first*.
    ///
    /// A matrix that maps `[in]` to `[out]` has dims `[in, out]`: it is stored as `out` rows of
    /// `in` elements.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Elements per row: the contiguous dimension, a multiple of the type's block length.
    #[must_use]
    pub fn row_len(&self) -> usize {
        self.dims[0]
    }

    /// Number of rows: the product of all other dimensions.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self.dims[1..].iter().product()
    }

    /// Number of elements.
    #[must_use]
    pub fn n_elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Offset of the first byte from the start of the file.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Size in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A row of the table before the start of the tensor data is known.
pub(super) struct RawTensor {
    name: String,
    ty: GgmlType,
    dims: Vec<usize>,
    relative_offset: u64,
    bytes: u64,
}

impl RawTensor {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, GgufError> {
        let name = read_name(reader)?;
        let dims = read_dims(reader, &name)?;
        let id = reader.u32("type of a tensor")?;
        let Some(ty) = GgmlType::from_id(id) else {
            return Err(GgufError::UnknownTensorType { tensor: name, id });
        };
        let relative_offset = reader.u64("offset of a tensor")?;
        let bytes = size_in_bytes(&name, ty, &dims)?;
        let dims = to_usize(&name, &dims)?;
        Ok(Self { name, ty, dims, relative_offset, bytes })
    }

    /// Places the tensor in a file of `file_len` bytes whose tensor data begins at `data_start`.
    pub(super) fn place(
        self,
        data_start: usize,
        alignment: u64,
        file_len: usize,
    ) -> Result<TensorInfo, GgufError> {
        let Self { name, ty, dims, relative_offset, bytes } = self;
        if !relative_offset.is_multiple_of(alignment) {
            return Err(GgufError::Misaligned { tensor: name, offset: relative_offset, alignment });
        }
        let start = (data_start as u64).checked_add(relative_offset);
        let end = start.and_then(|start| start.checked_add(bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= file_len as u64 => {
                // Both are at most the length of a slice, so neither is cut.
                Ok(TensorInfo { name, ty, dims, offset: start as usize, bytes: bytes as usize })
            }
            _ => Err(GgufError::OutsideFile {
                tensor: name,
                offset: start.unwrap_or(u64::MAX),
                bytes,
                file_bytes: file_len as u64,
            }),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

fn read_name(reader: &mut Reader<'_>) -> Result<String, GgufError> {
    let offset = reader.pos() as u64;
    let len = reader.count(1, MAX_NAME_BYTES, "name of a tensor")?;
    let bytes = reader.bytes(len as u64, "name of a tensor")?;
    String::from_utf8(bytes.to_vec())
        .map_err(|_| GgufError::NameNotUtf8 { what: "name of a tensor", offset })
}

fn read_dims(reader: &mut Reader<'_>, name: &str) -> Result<Vec<u64>, GgufError> {
    let n_dims = reader.u32("number of dimensions")?;
    if !(1..=MAX_DIMS).contains(&n_dims) {
        return Err(GgufError::BadDimensionCount { tensor: name.to_owned(), found: n_dims });
    }
    let dims = (0..n_dims).map(|_| reader.u64("dimension")).collect::<Result<Vec<_>, _>>()?;
    if dims.contains(&0) {
        return Err(GgufError::ZeroDimension { tensor: name.to_owned(), dims });
    }
    Ok(dims)
}

fn size_in_bytes(name: &str, ty: GgmlType, dims: &[u64]) -> Result<u64, GgufError> {
    let block_len = ty.block_len() as u64;
    if !dims[0].is_multiple_of(block_len) {
        return Err(GgufError::PartialBlock {
            tensor: name.to_owned(),
            ty,
            row_len: dims[0],
            block_len,
        });
    }
    // The elements are counted too, because a block may take fewer bytes than it has elements,
    // and both products are used later.
    dims.iter()
        .try_fold(1, |product: u64, &dim| product.checked_mul(dim))
        .and_then(|n_elements| (n_elements / block_len).checked_mul(ty.block_bytes() as u64))
        .ok_or_else(|| too_large(name, dims))
}

fn to_usize(name: &str, dims: &[u64]) -> Result<Vec<usize>, GgufError> {
    dims.iter().map(|&dim| usize::try_from(dim).map_err(|_| too_large(name, dims))).collect()
}

fn too_large(name: &str, dims: &[u64]) -> GgufError {
    GgufError::TooLarge { tensor: name.to_owned(), dims: dims.to_vec() }
}
