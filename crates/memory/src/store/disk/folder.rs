//! A session's folder, held by one process at a time.

use std::fs::TryLockError;
use std::path::{Path, PathBuf};

use fs_err::{File, OpenOptions};

use super::{StoreError, segment};

/// What a data directory says of itself; the number is the format of its layout.
const FORMAT: &str = "everstream data 1\n";

/// The folder of one session in a data directory, locked until it is dropped.
#[derive(Debug)]
pub struct SessionFolder {
    path: PathBuf,
    name: String,
    /// The system releases the lock when the file is closed, also if the process is killed.
    _lock: File,
}

impl SessionFolder {
    /// The longest name of a session.
    pub const MAX_NAME_BYTES: usize = 64;

    /// Opens the folder of session `name` in `data_dir`, and makes both if they are absent.
    ///
    /// # Errors
    ///
    /// [`StoreError::SessionName`], [`StoreError::Locked`] if another process has it,
    /// [`StoreError::Format`] for a data directory of another version, [`StoreError::File`].
    pub fn create(data_dir: &Path, name: &str) -> Result<Self, StoreError> {
        check_name(name)?;
        check_format(data_dir)?;
        let path = Self::path_of(data_dir, name);
        fs_err::create_dir_all(&path)?;
        let format = data_dir.join("FORMAT");
        if !format.exists() {
            write_whole(&format, FORMAT.as_bytes())?;
        }
        Self::lock(path, name)
    }

    /// Opens the folder of a session that exists.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create), and [`StoreError::NoSession`].
    pub fn open(data_dir: &Path, name: &str) -> Result<Self, StoreError> {
        check_name(name)?;
        check_format(data_dir)?;
        let path = Self::path_of(data_dir, name);
        if !path.is_dir() {
            let (name, data_dir) = (name.to_owned(), data_dir.to_owned());
            return Err(StoreError::NoSession { name, data_dir });
        }
        Self::lock(path, name)
    }

    /// Names of the sessions in `data_dir`, in order; none if there is no such directory.
    ///
    /// # Errors
    ///
    /// [`StoreError::Format`], [`StoreError::File`].
    pub fn list(data_dir: &Path) -> Result<Vec<String>, StoreError> {
        check_format(data_dir)?;
        let sessions = data_dir.join("sessions");
        if !sessions.is_dir() {
            return Ok(Vec::new());
        }
        let mut names = Vec::new();
        for entry in fs_err::read_dir(&sessions)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string()
                && entry.path().is_dir()
                && check_name(&name).is_ok()
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Where the session `name` lies.
    #[must_use]
    pub fn path_of(data_dir: &Path, name: &str) -> PathBuf {
        data_dir.join("sessions").join(name)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The session's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of all stored blocks.
    ///
    /// # Errors
    ///
    /// [`StoreError::File`].
    pub fn segment_bytes(&self) -> Result<u64, StoreError> {
        let folder = self.path.join("blocks");
        if !folder.is_dir() {
            return Ok(0);
        }
        let mut bytes = 0;
        for number in segment::list(&folder)? {
            bytes += fs_err::metadata(segment::path(&folder, number))?.len();
        }
        Ok(bytes)
    }

    /// Deletes the session with all that it remembers.
    ///
    /// # Errors
    ///
    /// [`StoreError::File`].
    pub fn remove(self) -> Result<(), StoreError> {
        Ok(fs_err::remove_dir_all(&self.path)?)
    }

    fn lock(path: PathBuf, name: &str) -> Result<Self, StoreError> {
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, name: name.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked { name: name.to_owned() }),
            Err(TryLockError::Error(error)) => Err(StoreError::File(error)),
        }
    }
}

/// Whether `name` can be the name of a session, and so of a folder.
///
/// # Errors
///
/// [`StoreError::SessionName`].
pub fn check_name(name: &str) -> Result<(), StoreError> {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-');
    let short = (1..=SessionFolder::MAX_NAME_BYTES).contains(&name.len());
    if short && !name.starts_with('.') && name.chars().all(allowed) {
        Ok(())
    } else {
        Err(StoreError::SessionName { name: name.to_owned() })
    }
}

fn check_format(data_dir: &Path) -> Result<(), StoreError> {
    let path = data_dir.join("FORMAT");
    if !path.exists() {
        return Ok(());
    }
    let found = fs_err::read(&path)?;
    if found == FORMAT.as_bytes() {
        return Ok(());
    }
    let found = String::from_utf8_lossy(&found[..found.len().min(80)]).trim().to_owned();
    Err(StoreError::Format { path, found, expected: FORMAT.trim() })
}

/// Writes a file that is there whole or not at all, also after a power failure.
///
/// # Errors
///
/// What the system says; the message names the file.
pub fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    Partial::write(path, bytes)?.put()
}

/// A file that is written and not yet in its place. It is removed unless it is put there.
pub(super) struct Partial<'a> {
    path: &'a Path,
    partial: PathBuf,
}

impl<'a> Partial<'a> {
    pub(super) fn write(path: &'a Path, bytes: &[u8]) -> std::io::Result<Self> {
        use std::io::Write;
        let written = Self { path, partial: path.with_extension("partial") };
        let mut file = File::create(&written.partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(written)
    }

    pub(super) fn put(self) -> std::io::Result<()> {
        fs_err::rename(&self.partial, self.path)?;
        sync_folder(self.path)
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        // After `put` there is nothing there.
        let _ = fs_err::remove_file(&self.partial);
    }
}

/// Makes the entry of `path` in its folder durable.
pub(super) fn sync_folder(path: &Path) -> std::io::Result<()> {
    // A bare name is in the folder where the program runs.
    let parent = path.parent().map(|folder| if folder == "" { Path::new(".") } else { folder });
    match parent {
        // Folders can be synchronised on Unix only, and need it there only.
        Some(folder) if cfg!(unix) => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}
