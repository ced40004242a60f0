//! Maps a model file into memory: the only file of this crate that contains `unsafe`.
//!
//! Mapping instead of reading means that a model opens in milliseconds, that its pages are shared
//! by every process that runs it, and that the system may drop them again under pressure.
//!
//! # What can go wrong
//!
//! The bytes belong to the file, not to us. If another program overwrites the file in place while
//! it is mapped, weights change under the running model and its output becomes nonsense. If it
//! truncates the file, touching a page behind the new end raises `SIGBUS` and the process dies:
//! no library can turn that into an error value. Both are avoided by replacing model files the way
//! package managers do it, by writing a new file and renaming it over the old name; the old
//! mapping then keeps the old bytes. The models that `everstream pull` fetches are written so.
#![expect(unsafe_code, reason = "mapping a file is unsafe by nature; everything else here is safe")]

use std::io;
use std::ops::Deref;
use std::path::Path;

/// A whole file, mapped read-only.
///
/// Dereferences to the bytes of the file. See the [module](self) for the risk of changing a file
/// while it is mapped.
#[derive(Debug)]
pub struct MappedFile {
    map: memmap2::Mmap,
}

impl MappedFile {
    /// Maps the file at `path`.
    ///
    /// Cost: independent of the file's size; pages are read when they are first touched.
    ///
    /// # Errors
    ///
    /// The error of opening or mapping, which names the path. Folders, pipes and devices are
    /// refused, because their length says nothing about what can be read from them.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Asked before opening, since opening a pipe waits for a writer.
        if !fs_err::metadata(path)?.is_file() {
            let problem = format!("`{}` is not a regular file", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        let file = fs_err::File::open(path)?;
        // SAFETY: the map is read-only and private to this value. What `Mmap` asks of us, that
        // nobody changes the file meanwhile, cannot be enforced from inside a process; the module
        // documentation states the consequence. Lengths and offsets are copied when they are
        // checked; texts that were checked to be UTF-8 are read again where they lie, so whoever
        // edits a model file that is in use breaks the process that uses it.
        let map = unsafe { memmap2::Mmap::map(file.file()) }.map_err(|error| {
            io::Error::new(error.kind(), format!("failed to map `{}`: {error}", path.display()))
        })?;
        Ok(Self { map })
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_the_bytes_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs_err::write(&path, b"some bytes").unwrap();
        assert_eq!(&*MappedFile::open(&path).unwrap(), b"some bytes");
    }

    #[test]
    fn maps_an_empty_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("empty");
        fs_err::write(&path, b"").unwrap();
        assert!(MappedFile::open(&path).unwrap().is_empty());
    }

    #[test]
    fn names_the_path_of_what_it_cannot_open() {
        let folder = tempfile::tempdir().unwrap();
        let missing = MappedFile::open(&folder.path().join("missing.gguf")).unwrap_err();
        assert!(missing.to_string().contains("missing.gguf"), "{missing}");
        let not_a_file = MappedFile::open(folder.path()).unwrap_err();
        assert!(not_a_file.to_string().contains("not a regular file"), "{not_a_file}");
    }
}
