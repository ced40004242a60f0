//! A SHA-256 digest, and the two ways to get one: of a file, and of bytes while they are written.

use std::fmt;
use std::io::{Read, Write};
use std::path::Path;

use fs_err as fs;
use sha2::{Digest as _, Sha256};

use crate::HubError;
use crate::progress::Progress;

/// Bytes read or written at once: large enough that system calls do not show beside hashing.
const CHUNK_BYTES: usize = 1 << 20;

/// The SHA-256 of a file.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Reads 64 hexadecimal digits of either case; `None` for anything else.
    #[must_use]
    pub const fn from_hex(hex: &str) -> Option<Self> {
        let hex = hex.as_bytes();
        if hex.len() != 64 {
            return None;
        }
        let mut bytes = [0; 32];
        let mut i = 0;
        while i < 32 {
            match (nibble(hex[2 * i]), nibble(hex[2 * i + 1])) {
                (Some(high), Some(low)) => bytes[i] = high << 4 | low,
                _ => return None,
            }
            i += 1;
        }
        Some(Self(bytes))
    }

    /// The 32 bytes of the digest.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

const fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// Hashes the file at `path`, reporting to `progress` how far it is.
pub(crate) fn hash_file(path: &Path, progress: &mut dyn Progress) -> Result<Digest, HubError> {
    let mut file = fs::File::open(path)?;
    let total_bytes = file.metadata()?.len();
    progress.begin(&format!("checking {}", file_name(path)), Some(total_bytes));
    let digest = hash_reader(&mut file, progress);
    progress.finish();
    Ok(digest?)
}

fn hash_reader(file: &mut impl Read, progress: &mut dyn Progress) -> std::io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let n = file.read(&mut chunk)?;
        if n == 0 {
            return Ok(Digest(hasher.finalize().into()));
        }
        hasher.update(&chunk[..n]);
        progress.advance(n as u64);
    }
}

/// The last component of `path`, for messages.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// A file under construction that hashes what is written to it and refuses to grow past a limit.
///
/// The limit is the size that the table promises: a hostile archive cannot fill the disk.
pub(crate) struct HashedFile {
    file: fs::File,
    hasher: Sha256,
    bytes: u64,
    limit_bytes: u64,
}

impl HashedFile {
    /// Creates `path`, which must not exist; its folders are made as needed.
    pub(crate) fn create(path: &Path, limit_bytes: u64) -> std::io::Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file = fs::File::create_new(path)?;
        Ok(Self { file, hasher: Sha256::new(), bytes: 0, limit_bytes })
    }

    /// Appends everything that `source` yields.
    ///
    /// On an error of `source` or of the file, the file is left with a part of it.
    pub(crate) fn append(&mut self, source: &mut impl Read) -> Result<(), AppendError> {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let n = source.read(&mut chunk).map_err(AppendError::Read)?;
            if n == 0 {
                return Ok(());
            }
            // Cannot overflow: `bytes` is at most `limit_bytes` and `n` at most a chunk.
            if self.bytes.saturating_add(n as u64) > self.limit_bytes {
                return Err(AppendError::TooLong { limit_bytes: self.limit_bytes });
            }
            self.file.write_all(&chunk[..n]).map_err(AppendError::Write)?;
            self.hasher.update(&chunk[..n]);
            self.bytes += n as u64;
        }
    }

    /// Flushes the file to the disk and returns its digest and size.
    pub(crate) fn finish(self) -> std::io::Result<(Digest, u64)> {
        self.file.sync_all()?;
        Ok((Digest(self.hasher.finalize().into()), self.bytes))
    }
}

/// Why [`HashedFile::append`] stopped.
pub(crate) enum AppendError {
    Read(std::io::Error),
    Write(std::io::Error),
    TooLong { limit_bytes: u64 },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NoProgress;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn hex_round_trips_and_rejects_everything_else() {
        let digest = Digest::from_hex(ABC).unwrap();
        assert_eq!(digest.to_string(), ABC);
        assert_eq!(Digest::from_hex(&ABC.to_uppercase()), Some(digest));
        for bad in ["", &ABC[1..], &format!("{ABC}0"), &ABC.replace('b', "g")] {
            assert_eq!(Digest::from_hex(bad), None, "{bad}");
        }
    }

    #[test]
    fn file_and_stream_agree() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let mut file = HashedFile::create(&path, 3).unwrap();
        assert!(file.append(&mut &b"abc"[..]).is_ok());
        assert_eq!(file.finish().unwrap(), (Digest::from_hex(ABC).unwrap(), 3));
        assert_eq!(hash_file(&path, &mut NoProgress).unwrap().to_string(), ABC);
    }

    #[test]
    fn the_limit_holds() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = HashedFile::create(&dir.path().join("a"), 2).unwrap();
        let error = file.append(&mut &b"abc"[..]);
        assert!(matches!(error, Err(AppendError::TooLong { limit_bytes: 2 })));
    }
}
