//! The values of GGUF metadata: scalars, strings and arrays.
//!
//! Arrays are not copied. A vocabulary of 150,000 strings stays where it is in the file, was walked
//! once while parsing to check its lengths, and is walked again by whoever needs it.

use std::fmt;
use std::ops::Range;

use super::GgufError;
use super::read::Reader;

/// Arrays may hold arrays; nobody writes more than two levels.
const MAX_DEPTH: usize = 4;

/// The type of a metadata value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it all")]
pub enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Str,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    /// In the order of their numbers in the file.
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::Str,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(id).ok()?).copied()
    }

    /// Bytes of one value; `None` for strings and arrays, whose size is in the file.
    fn size(self) -> Option<u64> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Str | Self::Array => None,
        }
    }

    /// The name in error messages, such as `u32` or `string`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::Str => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A metadata value, borrowed from the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Any unsigned integer type, widened.
    Unsigned(ValueType, u64),
    /// Any signed integer type, widened.
    Signed(ValueType, i64),
    /// `f32` or `f64`, widened.
    Float(ValueType, f64),
    /// A truth value.
    Bool(bool),
    /// A string; GGUF demands UTF-8, files do not always comply.
    Str(&'a [u8]),
    /// An array.
    Array(Array<'a>),
}

impl<'a> Value<'a> {
    /// The type that the file gives.
    #[must_use]
    pub fn value_type(&self) -> ValueType {
        match self {
            Self::Unsigned(ty, _) | Self::Signed(ty, _) | Self::Float(ty, _) => *ty,
            Self::Bool(_) => ValueType::Bool,
            Self::Str(_) => ValueType::Str,
            Self::Array(_) => ValueType::Array,
        }
    }

    /// The value as a number that is not negative, whatever integer type the file chose.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::Unsigned(_, value) => Some(value),
            Self::Signed(_, value) => u64::try_from(value).ok(),
            _ => None,
        }
    }

    /// The value as text, if it is a string and valid UTF-8.
    #[must_use]
    pub fn as_str(&self) -> Option<&'a str> {
        match self {
            Self::Str(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The type in words, with the element type for arrays: `u32`, `array of string`.
    #[must_use]
    pub fn describe_type(&self) -> String {
        match self {
            Self::Array(array) => format!("array of {}", array.element_type()),
            Self::Str(bytes) if std::str::from_utf8(bytes).is_err() => {
                "string that is not UTF-8".to_owned()
            }
            other => other.value_type().to_string(),
        }
    }
}

/// An array in the metadata; its elements are read from the file when they are asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    element: ValueType,
    len: usize,
    /// The encoded elements, checked when the file was parsed.
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the array has no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The type of the elements.
    #[must_use]
    pub fn element_type(&self) -> ValueType {
        self.element
    }

    /// The elements as bytes of strings; `None` if they are something else.
    #[must_use]
    pub fn strings(&self) -> Option<Strings<'a>> {
        (self.element == ValueType::Str)
            .then(|| Strings { reader: Reader::new(self.bytes), left: self.len })
    }

    /// The elements, if they are scalars: numbers or truth values.
    #[must_use]
    pub fn scalars(&self) -> Option<impl Iterator<Item = Value<'a>> + use<'a>> {
        let element = self.element;
        let size = usize::try_from(element.size()?).ok()?;
        Some(self.bytes.chunks_exact(size).filter_map(move |bytes| scalar(element, bytes)))
    }
}

/// The strings of an array, in order, as bytes.
#[derive(Clone, Debug)]
pub struct Strings<'a> {
    reader: Reader<'a>,
    left: usize,
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        self.reader.string("string").ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Strings<'_> {}

/// A value as it is kept: scalars decoded, the rest as a range of the file.
#[derive(Clone, Debug)]
pub(super) enum Stored {
    Scalar(Value<'static>),
    Str(Range<usize>),
    Array { element: ValueType, len: usize, bytes: Range<usize> },
}

impl Stored {
    pub(super) fn view<'a>(&self, file: &'a [u8]) -> Value<'a> {
        match self {
            Self::Scalar(value) => *value,
            Self::Str(range) => Value::Str(&file[range.clone()]),
            Self::Array { element, len, bytes } => {
                Value::Array(Array { element: *element, len: *len, bytes: &file[bytes.clone()] })
            }
        }
    }
}

/// Reads a type number and the value that follows.
pub(super) fn read_value(reader: &mut Reader<'_>, key: &str) -> Result<Stored, GgufError> {
    let ty = read_type(reader, key)?;
    match ty {
        ValueType::Str => {
            let len = reader.string("metadata string")?.len();
            Ok(Stored::Str(reader.pos() - len..reader.pos()))
        }
        ValueType::Array => {
            let (element, len) = read_array_header(reader, key)?;
            let start = reader.pos();
            skip_elements(reader, key, element, len, 1)?;
            Ok(Stored::Array { element, len, bytes: start..reader.pos() })
        }
        _ => {
            let bytes = reader.bytes(ty.size().unwrap_or(0), "metadata value")?;
            let value = scalar(ty, bytes).expect("strings and arrays are handled above");
            Ok(Stored::Scalar(value))
        }
    }
}

fn read_type(reader: &mut Reader<'_>, key: &str) -> Result<ValueType, GgufError> {
    let id = reader.u32("type of a metadata value")?;
    ValueType::from_id(id).ok_or_else(|| GgufError::UnknownValueType { key: key.to_owned(), id })
}

fn read_array_header(reader: &mut Reader<'_>, key: &str) -> Result<(ValueType, usize), GgufError> {
    let element = read_type(reader, key)?;
    // A string takes at least its length (8 bytes), an array its type and length (12 bytes).
    let min_bytes = element.size().unwrap_or(if element == ValueType::Str { 8 } else { 12 });
    let len = reader.count(min_bytes, u64::MAX, "array in the metadata")?;
    Ok((element, len))
}

/// Walks over the elements of an array, checking every length.
///
/// Cost: linear in the bytes of the array, whatever its header claims.
fn skip_elements(
    reader: &mut Reader<'_>,
    key: &str,
    element: ValueType,
    len: usize,
    depth: usize,
) -> Result<(), GgufError> {
    if depth > MAX_DEPTH {
        return Err(GgufError::NestedTooDeep { key: key.to_owned(), limit: MAX_DEPTH });
    }
    if let Some(size) = element.size() {
        // The header was checked to fit, so the product does not overflow.
        reader.bytes(size * len as u64, "array in the metadata")?;
        return Ok(());
    }
    for _ in 0..len {
        if element == ValueType::Str {
            reader.string("string of an array")?;
        } else {
            let (inner, inner_len) = read_array_header(reader, key)?;
            skip_elements(reader, key, inner, inner_len, depth + 1)?;
        }
    }
    Ok(())
}

/// Decodes one scalar from exactly its bytes; `None` for strings and arrays.
fn scalar(ty: ValueType, bytes: &[u8]) -> Option<Value<'static>> {
    let mut wide = [0; 8];
    wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
    let raw = u64::from_le_bytes(wide);
    // Sign extension: shift the value to the top and back.
    let unused_bits = 64 - 8 * bytes.len().max(1) as u32;
    let signed = (raw << unused_bits).cast_signed() >> unused_bits;
    Some(match ty {
        ValueType::U8 | ValueType::U16 | ValueType::U32 | ValueType::U64 => {
            Value::Unsigned(ty, raw)
        }
        ValueType::I8 | ValueType::I16 | ValueType::I32 | ValueType::I64 => {
            Value::Signed(ty, signed)
        }
        ValueType::F32 => Value::Float(ty, f64::from(f32::from_bits(raw as u32))),
        ValueType::F64 => Value::Float(ty, f64::from_bits(raw)),
        ValueType::Bool => Value::Bool(raw != 0),
        ValueType::Str | ValueType::Array => return None,
    })
}
