//! Parses header, metadata and tensor table.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, versions 2 and 3 (which
//! differ only in that 3 permits big-endian files).

use std::collections::BTreeMap;

use super::GgufError;
use super::read::Reader;
use super::tensor::{RawTensor, TensorInfo};
use super::value::{Stored, read_value};

const MAGIC: [u8; 4] = *b"GGUF";
const VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;
/// The alignment of tensor data when the file does not say.
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 20;
/// Real files have some dozens of keys and at most some thousands of tensors.
const MAX_ENTRIES: u64 = 1 << 16;
/// The format's own limit.
const MAX_KEY_BYTES: u64 = 65_535;
/// Key length, type, shortest value.
const MIN_KEY_VALUE_BYTES: u64 = 8 + 4 + 1;
/// Name length, number of dimensions, one dimension, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 4 + 8 + 4 + 8;

/// Everything of a file but the tensor data.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) version: u32,
    pub(super) metadata: BTreeMap<String, Stored>,
    pub(super) tensors: BTreeMap<String, TensorInfo>,
}

/// Parses a whole file.
///
/// Memory: proportional to the number of keys and tensors; arrays and strings are not copied.
pub(super) fn parse(file: &[u8]) -> Result<Contents, GgufError> {
    let mut reader = Reader::new(file);
    let version = read_version(&mut reader)?;
    let n_tensors = reader.count(MIN_TENSOR_BYTES, MAX_ENTRIES, "number of tensors")?;
    let n_keys = reader.count(MIN_KEY_VALUE_BYTES, MAX_ENTRIES, "number of metadata keys")?;
    let metadata = read_metadata(&mut reader, n_keys)?;
    let raw =
        (0..n_tensors).map(|_| RawTensor::read(&mut reader)).collect::<Result<Vec<_>, _>>()?;
    let alignment = alignment(&metadata, file)?;
    // A position inside a slice plus at most one MiB does not overflow.
    let data_start = reader.pos().next_multiple_of(alignment as usize);
    let tensors = place_all(raw, data_start, alignment, file.len())?;
    Ok(Contents { version, metadata, tensors })
}

fn read_version(reader: &mut Reader<'_>) -> Result<u32, GgufError> {
    let magic = reader.array::<4>("magic number")?;
    if magic != MAGIC {
        return Err(GgufError::BadMagic { found: magic.escape_ascii().to_string() });
    }
    let version = reader.u32("version")?;
    if VERSIONS.contains(&version) {
        return Ok(version);
    }
    if VERSIONS.contains(&version.swap_bytes()) {
        return Err(GgufError::BigEndian);
    }
    Err(GgufError::UnsupportedVersion { found: version })
}

fn read_metadata(
    reader: &mut Reader<'_>,
    n_keys: usize,
) -> Result<BTreeMap<String, Stored>, GgufError> {
    let mut metadata = BTreeMap::new();
    for _ in 0..n_keys {
        let key = read_key(reader)?;
        let value = read_value(reader, &key)?;
        if metadata.contains_key(&key) {
            return Err(GgufError::DuplicateKey { key });
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn read_key(reader: &mut Reader<'_>) -> Result<String, GgufError> {
    const WHAT: &str = "metadata key";
    let offset = reader.pos() as u64;
    let len = reader.count(1, MAX_KEY_BYTES, WHAT)?;
    let bytes = reader.bytes(len as u64, WHAT)?;
    String::from_utf8(bytes.to_vec()).map_err(|_| GgufError::NameNotUtf8 { what: WHAT, offset })
}

fn alignment(metadata: &BTreeMap<String, Stored>, file: &[u8]) -> Result<u64, GgufError> {
    let Some(stored) = metadata.get("general.alignment") else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    let value = stored.view(file);
    match value.as_u64() {
        Some(found) if found.is_power_of_two() && found <= MAX_ALIGNMENT => Ok(found),
        Some(found) => {
            Err(GgufError::BadAlignment { found: found.to_string(), limit: MAX_ALIGNMENT })
        }
        None => Err(GgufError::BadAlignment { found: value.describe_type(), limit: MAX_ALIGNMENT }),
    }
}

fn place_all(
    raw: Vec<RawTensor>,
    data_start: usize,
    alignment: u64,
    file_len: usize,
) -> Result<BTreeMap<String, TensorInfo>, GgufError> {
    let mut tensors = BTreeMap::new();
    for tensor in raw {
        let name = tensor.name().to_owned();
        let placed = tensor.place(data_start, alignment, file_len)?;
        if tensors.insert(name.clone(), placed).is_some() {
            return Err(GgufError::DuplicateTensor { tensor: name });
        }
    }
    refuse_overlap(&tensors)?;
    Ok(tensors)
}

/// Tensors lie apart, so all of them together are no larger than the file.
fn refuse_overlap(tensors: &BTreeMap<String, TensorInfo>) -> Result<(), GgufError> {
    let mut by_offset: Vec<&TensorInfo> = tensors.values().collect();
    by_offset.sort_by_key(|info| info.offset());
    for pair in by_offset.windows(2) {
        if pair[0].offset() + pair[0].bytes() > pair[1].offset() {
            let [tensor, other] = [pair[1], pair[0]].map(|info| info.name().to_owned());
            return Err(GgufError::Overlap { tensor, other });
        }
    }
    Ok(())
}
