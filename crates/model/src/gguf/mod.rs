//! Reads GGUF, the file format of llama.cpp: metadata, tensor table, tensor data.
//!
//! A [`GgufFile`] is checked once, when it is opened: afterwards every string, array and tensor is
//! known to lie inside the file, and reading them cannot fail. Nothing large is copied: arrays and
//! tensors are views of the mapped file, so opening costs milliseconds and little memory.
//!
//! Files are untrusted. Every length is compared with the bytes that are left before anything is
//! allocated for it, all arithmetic is checked, and no input makes the parser panic.

mod builder;
mod error;
mod parse;
mod read;
mod tensor;
#[cfg(test)]
mod tests;
mod types;
mod value;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use builder::{GgufBuilder, GgufValue};
pub use error::GgufError;
pub use tensor::TensorInfo;
pub use types::GgmlType;
pub use value::{Array, Strings, Value, ValueType};

use crate::error::LoadError;
use crate::mmap::MappedFile;

/// A GGUF file: checked, and held in memory or mapped.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    data: Backing,
    contents: parse::Contents,
}

#[derive(Debug)]
enum Backing {
    Mapped(MappedFile),
    Owned(Vec<u8>),
}

impl Backing {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(file) => file,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl GgufFile {
    /// Maps and checks the file at `path`.
    ///
    /// Cost: a walk over metadata and tensor table (some MB), a few milliseconds. Tensor data is
    /// not touched.
    ///
    /// # Errors
    ///
    /// [`LoadError::Open`] and [`LoadError::Gguf`].
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let file = MappedFile::open(path)
            .map_err(|problem| LoadError::Open { path: path.to_owned(), problem })?;
        Self::new(Backing::Mapped(file), path.to_owned())
    }

    /// Checks a file that is in memory already; `name` stands for its path in messages.
    ///
    /// # Errors
    ///
    /// [`LoadError::Gguf`].
    pub fn from_bytes(bytes: Vec<u8>, name: &str) -> Result<Self, LoadError> {
        Self::new(Backing::Owned(bytes), PathBuf::from(name))
    }

    fn new(data: Backing, path: PathBuf) -> Result<Self, LoadError> {
        match parse::parse(data.bytes()) {
            Ok(contents) => Ok(Self { path, data, contents }),
            Err(problem) => Err(LoadError::Gguf { path, problem }),
        }
    }

    /// Where the file came from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The version of the format: 2 or 3.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.contents.version
    }

    /// The whole file.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.data.bytes()
    }

    /// All metadata, sorted by key.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        let file = self.bytes();
        self.contents.metadata.iter().map(move |(key, value)| (key.as_str(), value.view(file)))
    }

    /// The value of `key`, if the file has it.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<Value<'_>> {
        self.contents.metadata.get(key).map(|value| value.view(self.bytes()))
    }

    /// All tensors by name.
    #[must_use]
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.contents.tensors
    }

    /// Whether the file has a tensor of this name.
    #[must_use]
    pub fn has_tensor(&self, name: &str) -> bool {
        self.contents.tensors.contains_key(name)
    }

    /// The tensor `name`, of a type that the kernels compute with.
    ///
    /// # Errors
    ///
    /// [`LoadError::MissingTensor`] and [`LoadError::UnsupportedTensorType`].
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo, LoadError> {
        let info = self.contents.tensors.get(name).ok_or_else(|| LoadError::MissingTensor {
            path: self.path.clone(),
            tensor: name.to_owned(),
        })?;
        self.require_supported(info)?;
        Ok(info)
    }

    /// Checks that the kernels compute with the type of every tensor.
    ///
    /// # Errors
    ///
    /// [`LoadError::UnsupportedTensorType`] for the first one (by name) that is not supported.
    pub fn require_supported_tensors(&self) -> Result<(), LoadError> {
        self.contents.tensors.values().try_for_each(|info| self.require_supported(info))
    }

    fn require_supported(&self, info: &TensorInfo) -> Result<(), LoadError> {
        if info.ty().is_supported() {
            return Ok(());
        }
        Err(LoadError::UnsupportedTensorType {
            path: self.path.clone(),
            tensor: info.name().to_owned(),
            ty: info.ty(),
            supported: GgmlType::SUPPORTED,
        })
    }

    /// The bytes of a tensor: `[n_rows]` rows, each of whole blocks.
    ///
    /// # Panics
    ///
    /// If `info` comes from another file.
    #[must_use]
    pub fn tensor_data(&self, info: &TensorInfo) -> &[u8] {
        &self.bytes()[info.offset()..][..info.bytes()]
    }
}

/// Typed access to the metadata: `get_…` demands a key, `find_…` allows it to be absent.
///
/// All of them fail with [`LoadError::WrongType`] if the value has another type, and the first kind
/// with [`LoadError::MissingKey`]. Integers of any width and sign are accepted where they fit,
/// because writers disagree about them.
impl GgufFile {
    /// A number from 0 to 2^32 - 1.
    ///
    /// # Errors
    ///
    /// Missing key or wrong type, see above.
    pub fn get_u32(&self, key: &str) -> Result<u32, LoadError> {
        self.required(key, self.find_u32(key)?)
    }

    /// A number from 0 to 2^32 - 1, if present.
    ///
    /// # Errors
    ///
    /// Wrong type, see above.
    pub fn find_u32(&self, key: &str) -> Result<Option<u32>, LoadError> {
        self.find(key, "a whole number from 0 to 4294967295", |value| {
            value.as_u64().and_then(|wide| u32::try_from(wide).ok())
        })
    }

    /// A number with a fraction, rounded to `f32`.
    ///
    /// # Errors
    ///
    /// Missing key or wrong type, see above.
    pub fn get_f32(&self, key: &str) -> Result<f32, LoadError> {
        self.required(key, self.find_f32(key)?)
    }

    /// A number with a fraction, rounded to `f32`, if present.
    ///
    /// # Errors
    ///
    /// Wrong type, see above.
    pub fn find_f32(&self, key: &str) -> Result<Option<f32>, LoadError> {
        self.find(key, "f32 or f64", |value| match value {
            Value::Float(_, float) => Some(float as f32),
            _ => None,
        })
    }

    /// A truth value, if present.
    ///
    /// # Errors
    ///
    /// Wrong type, see above.
    pub fn find_bool(&self, key: &str) -> Result<Option<bool>, LoadError> {
        self.find(key, "bool", |value| match value {
            Value::Bool(flag) => Some(flag),
            _ => None,
        })
    }

    /// A text.
    ///
    /// # Errors
    ///
    /// Missing key or wrong type (or text that is not UTF-8), see above.
    pub fn get_str(&self, key: &str) -> Result<&str, LoadError> {
        self.required(key, self.find_str(key)?)
    }

    /// A text, if present.
    ///
    /// # Errors
    ///
    /// Wrong type (or text that is not UTF-8), see above.
    pub fn find_str(&self, key: &str) -> Result<Option<&str>, LoadError> {
        self.find(key, "string", |value| value.as_str())
    }

    /// An array of strings, which need not be UTF-8.
    ///
    /// # Errors
    ///
    /// Missing key or wrong type, see above.
    pub fn get_arr_str(&self, key: &str) -> Result<Strings<'_>, LoadError> {
        self.required(key, self.find_arr_str(key)?)
    }

    /// An array of strings, which need not be UTF-8, if present.
    ///
    /// # Errors
    ///
    /// Wrong type, see above.
    pub fn find_arr_str(&self, key: &str) -> Result<Option<Strings<'_>>, LoadError> {
        self.find(key, "array of string", |value| match value {
            Value::Array(array) => array.strings(),
            _ => None,
        })
    }

    /// An array of scalars, if present.
    ///
    /// # Errors
    ///
    /// Wrong type, see above.
    pub fn find_arr_scalar(
        &self,
        key: &str,
    ) -> Result<Option<impl Iterator<Item = Value<'_>>>, LoadError> {
        self.find(key, "array of numbers", |value| match value {
            Value::Array(array) => array.scalars(),
            _ => None,
        })
    }

    fn find<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| LoadError::WrongType {
            path: self.path.clone(),
            key: key.to_owned(),
            expected,
            found: describe(&value),
        })
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, LoadError> {
        value.ok_or_else(|| LoadError::MissingKey { path: self.path.clone(), key: key.to_owned() })
    }
}

/// The type and, where it is short, the value: `i32 -1`.
fn describe(value: &Value<'_>) -> String {
    match value {
        Value::Unsigned(ty, number) => format!("{ty} {number}"),
        Value::Signed(ty, number) => format!("{ty} {number}"),
        Value::Float(ty, number) => format!("{ty} {number}"),
        other => other.describe_type(),
    }
}
