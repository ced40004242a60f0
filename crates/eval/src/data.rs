//! Reads records: JSON Lines, or one JSON document, plain or compressed with gzip; Parquet.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::EvalError;

/// What some programs begin UTF-8 with.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// One object of a file, which can say where it stands when something is missing.
#[derive(Clone, Debug)]
pub struct Record {
    path: PathBuf,
    /// From 1.
    number: usize,
    /// The object.
    pub value: Value,
}

/// The objects of a JSON Lines file, the items of a JSON file that is a list, or its one object; the rows of
/// a Parquet file, with the feature `parquet`.
///
/// # Errors
///
/// [`EvalError`] if the file cannot be read, is empty, or a line is no JSON.
pub fn records(path: &Path) -> Result<Vec<Record>, EvalError> {
    let mut bytes = fs_err::read(path)?;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut plain = Vec::new();
        flate2::read::MultiGzDecoder::new(&*bytes).read_to_end(&mut plain).map_err(|error| {
            EvalError::Setting(format!("{}: damaged or cut off: {error}", path.display()))
        })?;
        bytes = plain;
    }
    if bytes.starts_with(BYTE_ORDER_MARK) {
        bytes.drain(..BYTE_ORDER_MARK.len());
    }
    let record = |number, value| Record { path: path.to_owned(), number, value };
    if bytes.starts_with(b"PAR1") {
        let rows = parquet_rows(path)?.into_iter().enumerate();
        return Ok(rows.map(|(i, row)| record(i + 1, row)).collect());
    }
    match serde_json::from_slice(&bytes) {
        Ok(Value::Array(items)) if !items.is_empty() => {
            return Ok(items
                .into_iter()
                .enumerate()
                .map(|(i, item)| record(i + 1, item))
                .collect());
        }
        Ok(value) => return Ok(vec![record(1, value)]),
        Err(_) => {}
    }
    let mut records = Vec::new();
    let lines = bytes.split(|&byte| byte == b'\n').enumerate();
    for (i, line) in lines.filter(|(_, line)| !line.trim_ascii().is_empty()) {
        let value = serde_json::from_slice(line);
        let value = value.map_err(|error| record(i + 1, Value::Null).error(&error.to_string()))?;
        records.push(record(i + 1, value));
    }
    if records.is_empty() {
        return Err(record(1, Value::Null).error("the file holds no records"));
    }
    Ok(records)
}

#[cfg(feature = "parquet")]
fn parquet_rows(path: &Path) -> Result<Vec<Value>, EvalError> {
    use parquet::file::reader::{FileReader, SerializedFileReader};

    let wrong = |error: parquet::errors::ParquetError| {
        EvalError::Setting(format!("{}: no Parquet file that can be read: {error}", path.display()))
    };
    let file = fs_err::File::open(path)?.into_parts().0;
    let reader = SerializedFileReader::new(file).map_err(wrong)?;
    let rows = reader.get_row_iter(None).map_err(wrong)?;
    rows.map(|row| Ok(row.map_err(wrong)?.to_json_value())).collect()
}

#[cfg(not(feature = "parquet"))]
fn parquet_rows(path: &Path) -> Result<Vec<Value>, EvalError> {
    Err(EvalError::Setting(format!(
        "{}: this program was built without Parquet: build with --features parquet, or give JSON Lines",
        path.display()
    )))
}

impl Record {
    /// An error about this record.
    #[must_use]
    pub fn error(&self, what: &str) -> EvalError {
        EvalError::Record { path: self.path.clone(), record: self.number, what: what.to_owned() }
    }

    /// A part of this record, for messages that name the record.
    #[must_use]
    pub fn part(&self, value: &Value) -> Self {
        Self { path: self.path.clone(), number: self.number, value: value.clone() }
    }

    /// A field's text.
    ///
    /// # Errors
    ///
    /// [`EvalError::Record`] naming the field if it is missing or no text.
    pub fn text(&self, field: &str) -> Result<&str, EvalError> {
        let text = self.value.get(field).and_then(Value::as_str);
        text.ok_or_else(|| self.error(&format!("`{field}` is missing, or is not a text")))
    }

    /// A field's text or whole number, as text: what items are called.
    ///
    /// # Errors
    ///
    /// [`EvalError::Record`] naming the field if it is neither.
    pub fn name(&self, field: &str) -> Result<String, EvalError> {
        match self.value.get(field) {
            Some(Value::Number(number)) if number.is_u64() => Ok(number.to_string()),
            _ => self.text(field).map(str::to_owned),
        }
    }

    /// A field's list.
    ///
    /// # Errors
    ///
    /// [`EvalError::Record`] naming the field if it is missing or no list.
    pub fn list(&self, field: &str) -> Result<&[Value], EvalError> {
        let list = self.value.get(field).and_then(Value::as_array);
        list.map(Vec::as_slice)
            .ok_or_else(|| self.error(&format!("`{field}` is missing, or is not a list")))
    }

    /// A field's list of texts.
    ///
    /// # Errors
    ///
    /// As [`list`](Self::list), and if an item is no text.
    pub fn texts(&self, field: &str) -> Result<Vec<String>, EvalError> {
        let texts = self.list(field)?.iter().map(|item| item.as_str().map(str::to_owned));
        texts
            .collect::<Option<_>>()
            .ok_or_else(|| self.error(&format!("`{field}` holds something that is not a text")))
    }
}
