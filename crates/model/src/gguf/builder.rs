//! Writes small GGUF files: models made by tests and examples.

use super::GgmlType;

/// Alignment of the tensor data; the format's default, so the file need not state it.
const ALIGNMENT: usize = 32;

/// A metadata value to be written.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names say it all")]
#[non_exhaustive]
pub enum GgufValue {
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Str(String),
    StrArray(Vec<String>),
    I32Array(Vec<i32>),
    F32Array(Vec<f32>),
}

impl From<u32> for GgufValue {
    fn from(value: u32) -> Self {
        Self::U32(value)
    }
}

impl From<f32> for GgufValue {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

impl From<bool> for GgufValue {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&str> for GgufValue {
    fn from(value: &str) -> Self {
        Self::Str(value.to_owned())
    }
}

impl From<Vec<String>> for GgufValue {
    fn from(value: Vec<String>) -> Self {
        Self::StrArray(value)
    }
}

impl From<Vec<i32>> for GgufValue {
    fn from(value: Vec<i32>) -> Self {
        Self::I32Array(value)
    }
}

impl From<Vec<f32>> for GgufValue {
    fn from(value: Vec<f32>) -> Self {
        Self::F32Array(value)
    }
}

/// Collects metadata and tensors and writes them as a little-endian GGUF v3 file.
///
/// It writes what it is told, without checks, so that tests can also make broken files. Everything
/// is held in memory: this is for models of some MB, not a converter.
///
/// ```
/// use everstream_model::{GgmlType, GgufBuilder, GgufFile};
///
/// let mut file = GgufBuilder::new();
/// file.set("general.architecture", "llama");
/// file.tensor("output_norm.weight", GgmlType::F32, &[2], 1.0f32.to_le_bytes().repeat(2));
/// let read = GgufFile::from_bytes(file.build(), "example")?;
/// assert_eq!(read.get_str("general.architecture")?, "llama");
/// assert_eq!(read.tensor_data(read.tensor("output_norm.weight")?).len(), 8);
/// # Ok::<(), everstream_model::LoadError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct GgufBuilder {
    metadata: Vec<(String, GgufValue)>,
    tensors: Vec<Tensor>,
}

#[derive(Clone, Debug)]
struct Tensor {
    name: String,
    ty: GgmlType,
    dims: Vec<u64>,
    data: Vec<u8>,
}

impl GgufBuilder {
    /// A file without metadata and tensors.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `key`, replacing an earlier value.
    pub fn set(&mut self, key: &str, value: impl Into<GgufValue>) -> &mut Self {
        self.unset(key);
        self.metadata.push((key.to_owned(), value.into()));
        self
    }

    /// Removes `key`, if it was set.
    pub fn unset(&mut self, key: &str) -> &mut Self {
        self.metadata.retain(|(name, _)| name != key);
        self
    }

    /// Adds a tensor. `dims` are in ggml's order, the contiguous one first; `data` holds the
    /// encoded rows.
    pub fn tensor(&mut self, name: &str, ty: GgmlType, dims: &[u64], data: Vec<u8>) -> &mut Self {
        self.tensors.push(Tensor { name: name.to_owned(), ty, dims: dims.to_vec(), data });
        self
    }

    /// The bytes of the file.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_str(&mut out, key);
            put_value(&mut out, value);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            put_tensor_info(&mut out, tensor, offset);
            offset += tensor.data.len().next_multiple_of(ALIGNMENT);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
            out.extend(&tensor.data);
        }
        out
    }
}

fn put_str(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &GgufValue) {
    let mut put_type = |id: u32| out.extend(id.to_le_bytes());
    match value {
        GgufValue::U32(number) => {
            put_type(4);
            out.extend(number.to_le_bytes());
        }
        GgufValue::I32(number) => {
            put_type(5);
            out.extend(number.to_le_bytes());
        }
        GgufValue::F32(number) => {
            put_type(6);
            out.extend(number.to_le_bytes());
        }
        GgufValue::Bool(flag) => {
            put_type(7);
            out.push(u8::from(*flag));
        }
        GgufValue::Str(text) => {
            put_type(8);
            put_str(out, text);
        }
        GgufValue::StrArray(texts) => {
            put_type(9);
            put_type(8);
            out.extend((texts.len() as u64).to_le_bytes());
            texts.iter().for_each(|text| put_str(out, text));
        }
        GgufValue::I32Array(numbers) => {
            put_type(9);
            put_type(5);
            out.extend((numbers.len() as u64).to_le_bytes());
            numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
        }
        GgufValue::F32Array(numbers) => {
            put_type(9);
            put_type(6);
            out.extend((numbers.len() as u64).to_le_bytes());
            numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
        }
    }
}

fn put_tensor_info(out: &mut Vec<u8>, tensor: &Tensor, offset: usize) {
    put_str(out, &tensor.name);
    out.extend((tensor.dims.len() as u32).to_le_bytes());
    tensor.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
    out.extend(tensor.ty.id().to_le_bytes());
    out.extend((offset as u64).to_le_bytes());
}
