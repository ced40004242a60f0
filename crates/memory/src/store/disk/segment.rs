//! Segments: files of block records, only ever appended to.

use std::io;
use std::io::Write;
use std::path::{Path, PathBuf};

use fs_err::{File, OpenOptions};

use super::folder::sync_folder;
use super::maker::Maker;
use crate::codec::{Decoder, Encoder};
use crate::record;

/// The first record of a segment: who wrote it.
pub(super) const HEADER: u8 = 1;
/// A block: its head is described in `head.rs`, its body are keys and values.
pub(super) const BLOCK: u8 = 2;
/// A block that is forgotten: its first token and its id.
pub(super) const FORGET: u8 = 3;

/// Version of segments.
const VERSION: u32 = 1;

/// What a segment says of itself.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Header {
    pub(super) version: u32,
    /// Grows when the segment is written anew, so that a catalogue of the old one is known to be.
    pub(super) generation: u64,
    pub(super) session: String,
    pub(super) maker: Maker,
}

impl Header {
    pub(super) fn new(session: &str, maker: Maker, generation: u64) -> Self {
        Self { version: VERSION, generation, session: session.to_owned(), maker }
    }

    pub(super) fn is_known_version(&self) -> bool {
        self.version == VERSION
    }

    pub(super) fn record(&self) -> Vec<u8> {
        let mut head = Encoder::default();
        head.u32(self.version);
        head.u64(self.generation);
        head.bytes(self.session.as_bytes());
        self.maker.encode(&mut head);
        let mut record = Vec::new();
        record::encode(HEADER, &head.0, &[], &mut record);
        record
    }

    /// Of another version only the version is read.
    pub(super) fn decode(head: &[u8]) -> Option<Self> {
        let mut from = Decoder(head);
        let version = from.u32()?;
        if version != VERSION {
            let (session, maker) = (String::new(), Maker::default());
            return Some(Self { version, generation: 0, session, maker });
        }
        let (generation, session) = (from.u64()?, from.text()?.to_owned());
        let maker = Maker::decode(&mut from)?;
        from.end()?;
        Some(Self { version, generation, session, maker })
    }
}

/// The head of a record that forgets a block.
pub(super) fn forget_record(start: u64, id: u64) -> Vec<u8> {
    let mut head = Encoder::default();
    head.u64(start);
    head.u64(id);
    let mut record = Vec::new();
    record::encode(FORGET, &head.0, &[], &mut record);
    record
}

/// First token and id of a block that is forgotten.
pub(super) fn decode_forget(head: &[u8]) -> Option<(u64, u64)> {
    let mut from = Decoder(head);
    let forgotten = (from.u64()?, from.u64()?);
    from.end()?;
    Some(forgotten)
}

/// The path of a segment.
pub(super) fn path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number:06}.blocks"))
}

/// Numbers of the segments in a folder, in order.
pub(super) fn list(folder: &Path) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".blocks"));
        let number = number.and_then(|number| number.parse::<u32>().ok());
        // Other spellings of a number are other files, and not ours.
        let is_ours = |n: &u32| *n < u32::MAX && path(folder, *n).file_name() == Some(&name);
        numbers.extend(number.filter(is_ours));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The segment that is appended to.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) number: u32,
    file: File,
    len: u64,
}

impl Writer {
    /// Begins a segment.
    pub(super) fn create(folder: &Path, number: u32, header: &Header) -> io::Result<Self> {
        let path = path(folder, number);
        let file = OpenOptions::new().append(true).create_new(true).open(&path)?;
        let mut writer = Self { number, file, len: 0 };
        let begun = writer.append(&header.record()).and_then(|_| sync_folder(&path));
        begun.inspect_err(|_| drop(fs_err::remove_file(&path)))?;
        Ok(writer)
    }

    /// Goes on behind byte `len` of a segment; what lies there is cut off.
    pub(super) fn resume(folder: &Path, number: u32, len: u64) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).open(path(folder, number))?;
        if file.metadata()?.len() > len {
            file.set_len(len)?;
        }
        Ok(Self { number, file, len })
    }

    /// Bytes written.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Appends a record and returns where it begins. Once it returns, the record survives the end
    /// of the process; [`sync`](Self::sync) makes it survive a power failure.
    pub(super) fn append(&mut self, record: &[u8]) -> io::Result<u64> {
        if let Err(error) = self.write_all(record) {
            // What was written of it would be found damaged; if it cannot be removed now, the next
            // call does so, or the next start.
            let _ = self.file.set_len(self.len);
            return Err(error);
        }
        let offset = self.len;
        self.len += record.len() as u64;
        Ok(offset)
    }

    fn write_all(&mut self, record: &[u8]) -> io::Result<()> {
        if self.file.metadata()?.len() != self.len {
            self.file.set_len(self.len)?;
        }
        #[cfg(test)]
        if let Some(n_bytes) = fail::next_write(record.len()) {
            self.file.write_all(&record[..n_bytes])?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write_all(record)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Lets a write fail after some of its bytes, as a full disk does.
#[cfg(test)]
pub(super) mod fail {
    use std::cell::Cell;

    thread_local! {
        static AFTER_BYTES: Cell<Option<usize>> = const { Cell::new(None) };
    }

    /// The write that would exceed `n_bytes` from now on fails, once.
    pub(in super::super) fn after(n_bytes: Option<usize>) {
        AFTER_BYTES.set(n_bytes);
    }

    pub(super) fn next_write(n_bytes: usize) -> Option<usize> {
        let left = AFTER_BYTES.get()?;
        if n_bytes <= left {
            AFTER_BYTES.set(Some(left - n_bytes));
            return None;
        }
        AFTER_BYTES.set(None);
        Some(left)
    }
}
