//! The place where a download grows until it is complete and verified.
//!
//! ```text
//! CACHE/models/KEY/             a model: only ever whole
//! CACHE/pulling/KEY.lock        held while KEY is being pulled
//! CACHE/pulling/KEY/stage/      becomes models/KEY with one rename
//! CACHE/pulling/KEY/scratch/    what pip or the hub's client leave behind
//! CACHE/pulling/KEY/replaced/   a models/KEY on its way out: damaged, or not wanted any more
//! ```
//!
//! Everything below `pulling` is on the file system of `models`, so a rename suffices. Whoever
//! holds a lock knows that what it finds under that key belongs to a process that died.
//! When a pull ends, its folder and its lock are removed, and so is each folder that it had
//! created and that is empty: a failed pull leaves the cache as it found it.

use std::fs::TryLockError;
use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::HubError;
use crate::progress::Progress;

/// The folder of `cache_dir` that holds finished models.
pub(crate) const MODELS: &str = "models";
const PULLING: &str = "pulling";
const LOCK_SUFFIX: &str = ".lock";
/// Each attempt fails only if another pull ends just then.
const MAX_LOCK_ATTEMPTS: usize = 1000;

/// The exclusive right to pull one model, and the folders to do it in.
pub(crate) struct Staging {
    root: PathBuf,
    target: PathBuf,
    // Fields are dropped in this order: the lock is released last but for the folders around it.
    lock: Option<LockFile>,
    created: Vec<PathBuf>,
}

impl Staging {
    /// Takes the lock of `key`, waiting for its holder, and removes what dead pulls left behind.
    pub(crate) fn open(
        cache_dir: &Path,
        key: &str,
        progress: &mut dyn Progress,
    ) -> Result<Self, HubError> {
        let pulling = cache_dir.join(PULLING);
        let models = cache_dir.join(MODELS);
        let mut staging = Self {
            root: pulling.join(key),
            target: models.join(key),
            lock: None,
            created: missing(&[&models, &pulling]),
        };
        // From here on, dropping `staging` undoes what was done so far.
        staging
            .prepare(&pulling, &models, key, progress)
            .map_err(|reason| HubError::CacheFolder { path: cache_dir.to_owned(), reason })?;
        Ok(staging)
    }

    fn prepare(
        &mut self,
        pulling: &Path,
        models: &Path,
        key: &str,
        progress: &mut dyn Progress,
    ) -> io::Result<()> {
        let path = lock_path(pulling, key);
        let lock = match LockFile::try_take(&path)? {
            Some(lock) => lock,
            None => {
                progress.note(&format!("another process is pulling {key}; waiting for it"));
                LockFile::take(&path)?
            }
        };
        self.lock = Some(lock);
        sweep(pulling, key);
        fs::create_dir_all(models)?;
        self.reset()
    }

    /// The folder that becomes the model's.
    pub(crate) fn stage(&self) -> PathBuf {
        self.root.join("stage")
    }

    /// A folder for everything else.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.root.join("scratch")
    }

    /// Empties both folders.
    pub(crate) fn reset(&self) -> io::Result<()> {
        remove_tree(&self.root)?;
        fs::create_dir_all(self.stage())?;
        fs::create_dir_all(self.scratch())
    }

    /// Moves the stage to the model's place, and what is there out of the way.
    pub(crate) fn commit(&self) -> io::Result<()> {
        sync_tree(&self.stage())?;
        if let Some(models) = self.target.parent() {
            // A pull that failed just now may have removed it with the last of its own folders.
            fs::create_dir_all(models)?;
        }
        let replaced = self.root.join("replaced");
        let had_old = match fs::rename(&self.target, &replaced) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        if let Err(error) = fs::rename(self.stage(), &self.target) {
            if had_old {
                fs::rename(&replaced, &self.target)?;
            }
            return Err(error);
        }
        self.target.parent().map_or(Ok(()), sync_dir)
    }
}

impl Staging {
    /// Takes the model away in one step; its files go when `self` does. Returns their bytes, `None` if
    /// there is no such model.
    pub(crate) fn remove(&self) -> io::Result<Option<u64>> {
        let bytes = match tree_bytes(&self.target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
        fs::rename(&self.target, self.root.join("replaced"))?;
        self.target.parent().map_or(Ok(()), sync_dir)?;
        Ok(Some(bytes))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.lock.is_some() {
            // What cannot be removed now is swept by the next pull.
            let _ = remove_tree(&self.root);
        }
        self.lock = None;
        // Ours alone, so it goes with the last pull, whoever made it.
        let pulling = self.root.parent().map(Path::to_owned);
        for dir in pulling.iter().chain(self.created.iter().rev()) {
            // Fails, as it should, for each folder that is in use.
            let _ = fs::remove_dir(dir);
        }
    }
}

/// The folders on the way to `dirs`, themselves included, that do not exist, outermost first.
fn missing(dirs: &[&Path]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for dir in dirs {
        let ancestors: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
        for dir in ancestors.into_iter().rev() {
            if !dir.as_os_str().is_empty() && !found.iter().any(|known| known == dir) {
                found.push(dir.to_owned());
            }
        }
    }
    found
}

fn lock_path(pulling: &Path, key: &str) -> PathBuf {
    pulling.join(format!("{key}{LOCK_SUFFIX}"))
}

/// Removes what dead pulls of other models left; best effort, since it is not what was asked for.
fn sweep(pulling: &Path, own_key: &str) {
    let Ok(entries) = fs::read_dir(pulling) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let key = name.strip_suffix(LOCK_SUFFIX).unwrap_or(name);
        if key == own_key {
            continue;
        }
        // Without locks nobody can tell a dead pull from a living one.
        let lock = LockFile::try_take(&lock_path(pulling, key));
        if lock.is_ok_and(|lock| lock.is_some_and(|lock| lock.is_locked)) {
            let _ = remove_tree(&pulling.join(key));
        }
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Bytes of all files in `dir` and its folders.
fn tree_bytes(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        bytes += match entry.file_type()?.is_dir() {
            true => tree_bytes(&entry.path())?,
            false => entry.metadata()?.len(),
        };
    }
    Ok(bytes)
}

/// Flushes the names in `dir` and its folders; their contents were flushed when written.
fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        }
    }
    sync_dir(dir)
}

#[cfg(unix)]
fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

#[cfg(not(unix))]
fn sync_dir(_dir: &Path) -> io::Result<()> {
    Ok(())
}

/// A locked file that is removed when the lock is released.
///
/// Removing it makes a holder's name vanish while others wait for it, so whoever gets the lock
/// checks that the file it locked still has its name, and begins again if not.
struct LockFile {
    // Held open for the lock, which ends with it.
    _file: fs::File,
    path: PathBuf,
    /// False on a file system without locks.
    is_locked: bool,
}

impl LockFile {
    /// Takes the lock; `None` if somebody else holds it.
    fn try_take(path: &Path) -> io::Result<Option<Self>> {
        Self::attempt(path, |file| match file.try_lock() {
            Ok(()) => Ok(Some(true)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => without_locks(error).map(Some),
        })
    }

    /// Takes the lock, waiting for it.
    fn take(path: &Path) -> io::Result<Self> {
        let lock = Self::attempt(path, |file| match file.lock() {
            Ok(()) => Ok(Some(true)),
            Err(error) => without_locks(error).map(Some),
        })?;
        lock.ok_or_else(|| io::Error::other(format!("cannot lock {}", path.display())))
    }

    fn attempt(
        path: &Path,
        lock: impl Fn(&fs::File) -> io::Result<Option<bool>>,
    ) -> io::Result<Option<Self>> {
        for _ in 0..MAX_LOCK_ATTEMPTS {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            let mut options = fs::OpenOptions::new();
            let file = match options.write(true).create(true).truncate(false).open(path) {
                // The folder was removed by a pull that has just ended.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            let Some(is_locked) = lock(&file)? else { return Ok(None) };
            if has_name(&file, path)? {
                return Ok(Some(Self { _file: file, path: path.to_owned(), is_locked }));
            }
        }
        Err(io::Error::other(format!("cannot lock {}", path.display())))
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // A lock file that stays is harmless: it is unlocked.
        let _ = fs::remove_file(&self.path);
    }
}

/// Some network file systems have no locks; there, two pulls at once are the user's risk.
fn without_locks(error: io::Error) -> io::Result<bool> {
    if error.kind() == io::ErrorKind::Unsupported { Ok(false) } else { Err(error) }
}

#[cfg(unix)]
fn has_name(file: &fs::File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let locked = file.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (locked.dev(), locked.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(not(unix))]
fn has_name(_file: &fs::File, _path: &Path) -> io::Result<bool> {
    // Elsewhere an open file keeps its name.
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NoProgress;

    fn open(cache: &Path, key: &str) -> Staging {
        Staging::open(cache, key, &mut NoProgress).unwrap()
    }

    #[test]
    fn an_abandoned_pull_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("a/b");
        let staging = open(&cache, "m");
        fs::write(staging.stage().join("f"), "x").unwrap();
        drop(staging);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_commit_replaces_the_whole_folder() {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in [("old", "1"), ("new", "2")] {
            let staging = open(dir.path(), "m");
            fs::write(staging.stage().join(name), content).unwrap();
            staging.commit().unwrap();
        }
        let names = |path: PathBuf| {
            fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>()
        };
        assert_eq!(names(dir.path().join("models/m")), ["new"]);
        assert_eq!(names(dir.path().to_owned()), ["models"]);
    }

    #[test]
    fn dead_pulls_of_any_model_are_swept_and_living_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let pulling = dir.path().join("pulling");
        for dead in ["m/stage/f", "dead/scratch/w.whl"] {
            fs::create_dir_all(pulling.join(dead)).unwrap();
        }
        fs::write(pulling.join("dead.lock"), "").unwrap();
        let living = open(dir.path(), "living");
        fs::write(living.stage().join("f"), "").unwrap();

        let staging = open(dir.path(), "m");
        assert_eq!(fs::read_dir(staging.stage()).unwrap().count(), 0);
        assert!(!pulling.join("dead").exists() && !pulling.join("dead.lock").exists());
        assert!(living.stage().join("f").exists());
        drop((staging, living));
        assert!(!pulling.exists());
    }

    #[test]
    fn only_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let staging = open(dir.path(), "m");
        let path = lock_path(&dir.path().join(PULLING), "m");
        assert!(LockFile::try_take(&path).unwrap().is_none());
        std::thread::scope(|scope| {
            let second = scope.spawn(|| {
                let staging = open(dir.path(), "m");
                // The first has finished: its model is in place.
                assert!(dir.path().join("models/m").exists());
                drop(staging);
            });
            std::thread::sleep(std::time::Duration::from_millis(50));
            staging.commit().unwrap();
            drop(staging);
            second.join().unwrap();
        });
    }

    #[test]
    fn a_cache_below_a_file_is_refused_and_nothing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        let error = Staging::open(&file.join("sub"), "m", &mut NoProgress).err().unwrap();
        assert!(matches!(error, HubError::CacheFolder { .. }), "{error}");
        assert_eq!(fs::read(&file).unwrap(), b"x");
    }
}
