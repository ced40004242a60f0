//! Whether a model's folder still holds what was verified when it was downloaded.
//!
//! Hashing a gigabyte at each start would cost about a second, so a verified hash is remembered
//! in `verified.json` beside the files, together with size, time of modification and inode. While
//! these three are as they were, the file counts as unchanged; otherwise it is hashed again. That
//! finds disks that lose data on the way, interrupted copies and editors, not an attacker who may
//! write to the cache folder: such a one could replace the program as well.

use std::path::Path;
use std::time::UNIX_EPOCH;

use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::HubError;
use crate::digest::{Digest, hash_file};
use crate::progress::Progress;

/// The file that remembers verified hashes.
const RECORD_NAME: &str = "verified.json";
/// Its format.
const RECORD_VERSION: u32 = 1;
/// A record names a handful of files; a longer one is none of ours.
const MAX_RECORD_BYTES: u64 = 1 << 16;

/// A file that a model's folder must have.
#[derive(Clone, Debug)]
pub(crate) struct WantedFile {
    /// Path inside the folder, with `/`.
    pub(crate) path: String,
    /// Its size, if known before the download.
    pub(crate) bytes: Option<u64>,
    /// Its hash, if known before the download.
    pub(crate) sha256: Option<Digest>,
}

impl WantedFile {
    /// Holds what came from `origin` to what is known beforehand.
    pub(crate) fn compare(&self, content: &Content, origin: &str) -> Result<(), HubError> {
        let (file, origin) = (self.path.clone(), origin.to_owned());
        let Content { sha256, bytes } = *content;
        match (self.bytes, self.sha256) {
            (Some(expected), _) if expected != bytes => {
                Err(HubError::WrongSize { file, origin, expected, found: bytes, more: false })
            }
            (_, Some(expected)) if expected != sha256 => {
                Err(HubError::WrongHash { file, origin, expected, found: sha256 })
            }
            _ => Ok(()),
        }
    }
}

/// What [`check`] or a download found out about a [`WantedFile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) sha256: Digest,
    pub(crate) bytes: u64,
}

/// How a model stands in the cache folder, as far as can be said without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// At least one of its files is missing.
    Absent,
    /// All files are as they were when their hashes were verified.
    Verified,
    /// All files are there; they will be hashed before use.
    Unchecked,
    /// A file has the wrong size.
    Damaged,
}

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    /// Which source served the files.
    origin: String,
    files: Vec<FileRecord>,
}

#[derive(Serialize, Deserialize)]
struct FileRecord {
    path: String,
    sha256: String,
    #[serde(flatten)]
    stamp: Stamp,
}

/// What changes when a file changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    bytes: u64,
    mtime_ns: u64,
    inode: u64,
}

impl Stamp {
    /// The stamp of the regular file at `path`; `None` if there is none.
    fn of(path: &Path) -> Result<Option<Self>, HubError> {
        let metadata = match fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => metadata,
            Ok(_) => return Ok(None),
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let since_epoch = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Some(Self {
            bytes: metadata.len(),
            mtime_ns: u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX),
            inode: inode(&metadata),
        }))
    }
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

#[cfg(unix)]
fn inode(metadata: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_metadata: &std::fs::Metadata) -> u64 {
    0
}

impl FileRecord {
    fn new(path: &str, sha256: Digest, stamp: Stamp) -> Self {
        Self { path: path.to_owned(), sha256: sha256.to_string(), stamp }
    }
}

impl Record {
    fn new(origin: String, files: Vec<FileRecord>) -> Self {
        Self { version: RECORD_VERSION, origin, files }
    }

    /// The record of `dir`; a missing, foreign or damaged one counts as none.
    fn read(dir: &Path) -> Option<Self> {
        let path = dir.join(RECORD_NAME);
        if fs::metadata(&path).ok()?.len() > MAX_RECORD_BYTES {
            return None;
        }
        let record: Self = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        (record.version == RECORD_VERSION).then_some(record)
    }

    /// Replaces the record of `dir` at once.
    fn write(&self, dir: &Path) -> Result<(), HubError> {
        let text = serde_json::to_vec_pretty(self).map_err(std::io::Error::from)?;
        // Two processes may write the same record; each needs a name of its own.
        let partial = dir.join(format!("{RECORD_NAME}.{}", std::process::id()));
        let written =
            fs::write(&partial, text).and_then(|()| fs::rename(&partial, dir.join(RECORD_NAME)));
        if written.is_err() {
            // Best effort: the error of the write is the one to report.
            let _ = fs::remove_file(&partial);
        }
        Ok(written?)
    }

    /// The remembered hash of `path`, if the file's stamp is still `stamp`.
    fn unchanged(&self, path: &str, stamp: Stamp) -> Option<Digest> {
        let file = self.files.iter().find(|file| file.path == path)?;
        if file.stamp != stamp {
            return None;
        }
        Digest::from_hex(&file.sha256)
    }

    /// The remembered hash of `path`, whatever became of the file.
    fn remembered(&self, path: &str) -> Option<Content> {
        let file = self.files.iter().find(|file| file.path == path)?;
        Some(Content { sha256: Digest::from_hex(&file.sha256)?, bytes: file.stamp.bytes })
    }
}

/// Remembers in `dir` that its files were verified to be `contents`.
///
/// Stamps survive the renaming of `dir`, so this is called before a download is moved in place.
pub(crate) fn remember(
    dir: &Path,
    origin: &str,
    wanted: &[WantedFile],
    contents: &[Content],
) -> Result<(), HubError> {
    let mut files = Vec::with_capacity(wanted.len());
    for (file, content) in wanted.iter().zip(contents) {
        let path = dir.join(&file.path);
        let Some(stamp) = Stamp::of(&path)? else {
            return Err(std::io::Error::other(format!("{} vanished", path.display())).into());
        };
        files.push(FileRecord::new(&file.path, content.sha256, stamp));
    }
    Record::new(origin.to_owned(), files).write(dir)
}

/// Verifies the model in `dir`: its contents, or `None` if a file is missing.
///
/// A file whose hash is not known beforehand is held to the one remembered when it was
/// downloaded; without a record it counts as missing.
///
/// # Errors
///
/// [`HubError::Damaged`] and [`HubError::DamagedSize`] if a file is not what it should be.
pub(crate) fn check(
    dir: &Path,
    wanted: &[WantedFile],
    progress: &mut dyn Progress,
) -> Result<Option<Vec<Content>>, HubError> {
    let Some(files) = survey(dir, wanted)? else {
        return Ok(None);
    };
    let mut contents = Vec::with_capacity(files.len());
    for file in &files {
        contents.push(file.verify(dir, progress)?);
    }
    if files.iter().any(|file| file.unchanged.is_none()) {
        let origin = Record::read(dir).map_or_else(|| "found".to_owned(), |record| record.origin);
        // The stamps are those from before hashing: a file that changed meanwhile stays suspect.
        let records = files.iter().map(|f| FileRecord::new(f.path, f.expected.sha256, f.stamp));
        // A cache folder that cannot be written is hashed at every start, which is no error.
        let _ = Record::new(origin, records.collect()).write(dir);
    }
    Ok(Some(contents))
}

/// Says how the model in `dir` stands without reading its files.
pub(crate) fn glance(dir: &Path, wanted: &[WantedFile]) -> Presence {
    match survey(dir, wanted) {
        Err(_) | Ok(None) => Presence::Absent,
        Ok(Some(files)) if files.iter().any(|file| file.wrong_size()) => Presence::Damaged,
        Ok(Some(files)) if files.iter().any(|file| !file.is_verified()) => Presence::Unchecked,
        Ok(Some(_)) => Presence::Verified,
    }
}

/// A file that is there, and what it must be.
struct Surveyed<'a> {
    path: &'a str,
    stamp: Stamp,
    expected: Content,
    /// The remembered hash, if the file has not changed since.
    unchanged: Option<Digest>,
}

/// Looks for every file of `wanted`; `None` if one is missing.
fn survey<'a>(dir: &Path, wanted: &'a [WantedFile]) -> Result<Option<Vec<Surveyed<'a>>>, HubError> {
    let record = Record::read(dir);
    let mut files = Vec::with_capacity(wanted.len());
    for file in wanted {
        let remembered = record.as_ref().and_then(|record| record.remembered(&file.path));
        let known = file.sha256.zip(file.bytes).map(|(sha256, bytes)| Content { sha256, bytes });
        let (Some(stamp), Some(expected)) =
            (Stamp::of(&dir.join(&file.path))?, known.or(remembered))
        else {
            return Ok(None);
        };
        let unchanged = record.as_ref().and_then(|record| record.unchanged(&file.path, stamp));
        files.push(Surveyed { path: &file.path, stamp, expected, unchanged });
    }
    Ok(Some(files))
}

impl Surveyed<'_> {
    fn wrong_size(&self) -> bool {
        self.stamp.bytes != self.expected.bytes
    }

    fn is_verified(&self) -> bool {
        self.unchanged == Some(self.expected.sha256)
    }

    /// Hashes the file unless its remembered hash still stands for it.
    fn verify(&self, dir: &Path, progress: &mut dyn Progress) -> Result<Content, HubError> {
        let path = dir.join(self.path);
        let Content { sha256: expected, bytes } = self.expected;
        if self.wrong_size() {
            return Err(HubError::DamagedSize { path, expected: bytes, found: self.stamp.bytes });
        }
        let found = match self.unchanged {
            Some(found) => found,
            None => hash_file(&path, progress)?,
        };
        if found != expected {
            return Err(HubError::Damaged { path, expected, found });
        }
        Ok(self.expected)
    }
}
