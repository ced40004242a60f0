//! Records: how this project appends to files that must survive a crash.
//!
//! A record delimits and checks itself, so a file of them needs no table of contents: a reader
//! finds the next record after a damaged one, and damage costs the record that it hit.
//!
//! ```text
//! offset  bytes  what                         (all integers little-endian)
//! 0       4      "evrs"
//! 4       1      kind
//! 5       3      zero
//! 8       4      bytes of the head
//! 12      4      bytes of the body
//! 16      4      CRC-32 of the head
//! 20      4      CRC-32 of the body
//! 24      4      CRC-32 of bytes 0 to 23
//! 28             head, then body
//! ```
//!
//! The head is what one reads to know what there is; the body, often large, is read and checked
//! when it is needed. The prefix has a checksum of its own, so that its lengths can be trusted.

use std::io;
use std::ops::Range;

use fs_err::File;

/// Bytes before the head.
pub const PREFIX_BYTES: usize = 28;
const MAGIC: [u8; 4] = *b"evrs";
/// Bytes read at once when the next record is searched for.
const SEARCH_BYTES: usize = 64 * 1024;
/// The longest head: heads are read into memory whole.
const MAX_HEAD_BYTES: usize = 16 << 20;

/// What the first bytes of a record say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// What the record is; the file's format gives the meaning.
    pub kind: u8,
    /// Bytes of the head.
    pub head_len: usize,
    /// Bytes of the body.
    pub body_len: usize,
    /// Checksum of the head.
    pub head_crc: u32,
    /// Checksum of the body.
    pub body_crc: u32,
}

impl Prefix {
    /// Reads a prefix; `None` for bytes that are none.
    #[must_use]
    pub fn parse(bytes: &[u8; PREFIX_BYTES]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
        let is_prefix = bytes.starts_with(&MAGIC)
            && bytes[5..8] == [0; 3]
            && word(24) == crc32fast::hash(&bytes[..24])
            && word(8) as usize <= MAX_HEAD_BYTES;
        is_prefix.then(|| Self {
            kind: bytes[4],
            head_len: word(8) as usize,
            body_len: word(12) as usize,
            head_crc: word(16),
            body_crc: word(20),
        })
    }

    /// Bytes of the whole record.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a record is never empty")]
    pub fn len(&self) -> u64 {
        (PREFIX_BYTES + self.head_len + self.body_len) as u64
    }
}

/// The checksum that records use.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// Appends a record to `out`.
///
/// # Panics
///
/// If head or body have 4 GiB or more, or the head more than 16 MiB: callers bound both.
pub fn encode(kind: u8, head: &[u8], body: &[u8], out: &mut Vec<u8>) {
    assert!(head.len() <= MAX_HEAD_BYTES, "a head of {} bytes", head.len());
    let len = |part: &[u8]| u32::try_from(part.len()).expect("parts are below 4 GiB").to_le_bytes();
    let start = out.len();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[kind, 0, 0, 0]);
    out.extend_from_slice(&len(head));
    out.extend_from_slice(&len(body));
    out.extend_from_slice(&crc32fast::hash(head).to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(body).to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(&out[start..]).to_le_bytes());
    out.extend_from_slice(head);
    out.extend_from_slice(body);
}

/// What a scan comes across.
#[derive(Debug)]
pub enum Found {
    /// A record whose prefix and head are whole; the body has not been looked at.
    Record {
        /// Where it begins.
        offset: u64,
        /// Its lengths and checksums.
        prefix: Prefix,
        /// Its head.
        head: Vec<u8>,
    },
    /// Bytes that are no record; the next record, if there is one, begins behind them.
    Damaged(Range<u64>),
    /// The file ends inside a record, as when the process died while it was being written.
    Torn(Range<u64>),
}

/// Walks through the records of `file` from `offset` on; heads are read, bodies are skipped.
///
/// # Errors
///
/// What reading says, or `visit`.
pub fn scan<E: From<io::Error>>(
    file: &File,
    mut offset: u64,
    visit: &mut dyn FnMut(Found) -> Result<(), E>,
) -> Result<(), E> {
    let end = file.metadata()?.len();
    while offset < end {
        match read_at(file, offset, end)? {
            Some((prefix, head)) => {
                visit(Found::Record { offset, prefix, head })?;
                offset += prefix.len();
            }
            None => {
                let next = find_next(file, offset + 1, end)?;
                let range = offset..next.unwrap_or(end);
                let is_torn = next.is_none() && ends_inside(file, offset, end)?;
                visit(if is_torn { Found::Torn(range) } else { Found::Damaged(range) })?;
                offset = next.unwrap_or(end);
            }
        }
    }
    Ok(())
}

/// Prefix and head of the record at `offset`, if there is a whole one before `end`.
///
/// # Errors
///
/// What the system says; the message names the file.
pub fn read_at(file: &File, offset: u64, end: u64) -> io::Result<Option<(Prefix, Vec<u8>)>> {
    let Some(prefix) = prefix_at(file, offset, end)? else { return Ok(None) };
    if offset + prefix.len() > end {
        return Ok(None);
    }
    let mut head = vec![0; prefix.head_len];
    read_exact_at(file, &mut head, offset + PREFIX_BYTES as u64)?;
    Ok((crc32fast::hash(&head) == prefix.head_crc).then_some((prefix, head)))
}

fn prefix_at(file: &File, offset: u64, end: u64) -> io::Result<Option<Prefix>> {
    if offset + PREFIX_BYTES as u64 > end {
        return Ok(None);
    }
    let mut bytes = [0; PREFIX_BYTES];
    read_exact_at(file, &mut bytes, offset)?;
    Ok(Prefix::parse(&bytes))
}

/// Whether what stands at `offset` is the beginning of a record that the file ends inside of.
fn ends_inside(file: &File, offset: u64, end: u64) -> io::Result<bool> {
    match prefix_at(file, offset, end)? {
        Some(prefix) => Ok(offset + prefix.len() > end),
        None => Ok(offset + PREFIX_BYTES as u64 > end),
    }
}

/// The first whole record at `from` or later.
fn find_next(file: &File, mut from: u64, end: u64) -> io::Result<Option<u64>> {
    let mut bytes = vec![0; SEARCH_BYTES];
    while from + (PREFIX_BYTES as u64) <= end {
        let n_bytes = SEARCH_BYTES.min((end - from) as usize);
        let window = &mut bytes[..n_bytes];
        read_exact_at(file, window, from)?;
        for at in 0..n_bytes - (MAGIC.len() - 1) {
            let may_begin = window[at..].starts_with(&MAGIC);
            if may_begin && read_at(file, from + at as u64, end)?.is_some() {
                return Ok(Some(from + at as u64));
            }
        }
        // The magic may lie across the edge.
        from += (n_bytes - (MAGIC.len() - 1)) as u64;
    }
    Ok(None)
}

/// Reads `out.len()` bytes from `offset` without moving the file's cursor.
///
/// # Errors
///
/// What the system says; the message names the file.
pub fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    {
        use fs_err::os::unix::fs::FileExt;
        file.read_exact_at(out, offset)
    }
    #[cfg(not(unix))]
    {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = file.try_clone()?;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use everstream_kv_cache::rng::SplitMix64;

    /// What a scan finds: heads of records, and ranges of what is none.
    type Scanned = (Vec<Vec<u8>>, Vec<Range<u64>>, Vec<Range<u64>>);

    fn scanned(bytes: &[u8]) -> Scanned {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records");
        fs_err::write(&path, bytes).unwrap();
        let (mut heads, mut damaged, mut torn) = Scanned::default();
        let file = File::open(&path).unwrap();
        scan::<io::Error>(&file, 0, &mut |found| {
            match found {
                Found::Record { head, .. } => heads.push(head),
                Found::Damaged(range) => damaged.push(range),
                Found::Torn(range) => torn.push(range),
            }
            Ok(())
        })
        .unwrap();
        (heads, damaged, torn)
    }

    fn three_records() -> (Vec<u8>, [u64; 4]) {
        let (mut bytes, mut starts) = (Vec::new(), [0; 4]);
        for i in 0..3_u8 {
            // A body that looks like the beginning of a record.
            let body = [b"evrs".as_slice(), &[i; 40]].concat();
            encode(i, &[i; 9], &body, &mut bytes);
            starts[usize::from(i) + 1] = bytes.len() as u64;
        }
        (bytes, starts)
    }

    fn heads(of: &[u8]) -> Vec<Vec<u8>> {
        of.iter().map(|&i| vec![i; 9]).collect()
    }

    #[test]
    fn what_was_encoded_is_found() {
        assert_eq!(scanned(&[]), Scanned::default());
        let (bytes, _) = three_records();
        assert_eq!(scanned(&bytes), (heads(&[0, 1, 2]), vec![], vec![]));
    }

    #[test]
    fn any_damaged_byte_costs_its_record_only() {
        let (bytes, starts) = three_records();
        for at in 0..bytes.len() {
            for change in [1, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= change;
                let (found, holes, torn) = scanned(&damaged);
                let hit = starts.partition_point(|&start| start <= at as u64) - 1;
                let rest: Vec<u8> = (0..3).filter(|&i| usize::from(i) != hit).collect();
                // A scan does not look at bodies; they begin 37 bytes into a record.
                if at as u64 - starts[hit] < 37 {
                    assert_eq!(found, heads(&rest), "byte {at}");
                    let lost = starts[hit]..starts[hit + 1];
                    assert_eq!([&holes[..], &torn].concat(), std::slice::from_ref(&lost));
                } else {
                    assert_eq!((found, holes, torn), (heads(&[0, 1, 2]), vec![], vec![]));
                }
            }
        }
    }

    #[test]
    fn a_file_may_end_anywhere() {
        let (bytes, starts) = three_records();
        for len in 0..bytes.len() {
            let n_whole = starts.partition_point(|&start| start <= len as u64) - 1;
            let (found, damaged, torn) = scanned(&bytes[..len]);
            assert_eq!(found, heads(&[0, 1, 2][..n_whole]));
            let rest = starts[n_whole]..len as u64;
            assert_eq!(
                (damaged, torn),
                (vec![], if rest.is_empty() { vec![] } else { vec![rest] })
            );
        }
    }

    #[test]
    fn a_record_is_found_behind_any_amount_of_garbage() {
        let mut rng = SplitMix64::new(1);
        for n_garbage in [1, 27, 28, SEARCH_BYTES - 2, SEARCH_BYTES, 3 * SEARCH_BYTES + 5] {
            let mut bytes: Vec<u8> = (0..n_garbage).map(|_| rng.next_u64() as u8).collect();
            encode(7, b"head", b"body", &mut bytes);
            let (found, damaged, torn) = scanned(&bytes);
            let garbage = 0..n_garbage as u64;
            assert_eq!((found, damaged, torn), (vec![b"head".to_vec()], vec![garbage], vec![]));
        }
    }
}
