//! Runs the binary in a world of its own: a cache folder, no network, tiny models.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fs_err as fs;
use serde_json::Value;
use tempfile::TempDir;

/// What a run left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    /// The exit code; `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Its standard output as one JSON value.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Its standard output as JSON values, one on each line.
    pub(crate) fn json_lines(&self) -> Vec<Value> {
        let value = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        self.stdout.lines().map(value).collect()
    }

    /// The line that says why it failed, having checked that it failed as it should.
    pub(crate) fn error(&self) -> &str {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        let mut lines = self.stderr.lines().filter(|line| line.starts_with("everstream: "));
        let error = lines.next_back().unwrap_or_else(|| panic!("{self:?}"));
        assert_eq!(lines.next(), None, "{self:?}");
        assert_eq!(self.stderr.lines().next_back(), Some(error), "{self:?}");
        error
    }
}

pub(crate) struct Rig {
    dir: TempDir,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let rig = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(rig.cache()).unwrap();
        fs::write(rig.cache().join("bystander"), "not ours").unwrap();
        rig
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// Writes a file and returns its path.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    /// The binary, without network: the hub's address answers nothing, and pip fails.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_everstream"));
        let fake_python = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/fake-python.sh");
        command
            .env("EVERSTREAM_PYTHON", fake_python)
            .env("HF_ENDPOINT", "http://127.0.0.1:9")
            .env_remove("HF_TOKEN")
            .env_remove("FAKE_WHEEL")
            .arg("--cache-dir")
            .arg(self.cache())
            .args(["--threads", "1"])
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        finish(self.command().args(arguments), b"")
    }

    pub(crate) fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Ran {
        finish(self.command().args(arguments).stdin(Stdio::piped()), input)
    }

    /// Runs what must succeed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> Ran {
        let ran = self.run(arguments);
        assert_eq!(ran.code, Some(0), "{arguments:?}: {ran:?}");
        ran
    }

    /// Runs what must fail with one line on standard error that contains `part`, nothing on
    /// standard output, and the cache folder as it was.
    pub(crate) fn fails(&self, arguments: &[&str], part: &str) {
        self.fails_with_input(arguments, b"", part);
    }

    pub(crate) fn fails_with_input(&self, arguments: &[&str], input: &[u8], part: &str) {
        let before = snapshot(&self.cache());
        let ran = self.run_with_input(arguments, input);
        let error = ran.error();
        assert!(error.contains(part), "{arguments:?}: {error}");
        assert_eq!(ran.stderr.lines().count(), 1, "{arguments:?}: {}", ran.stderr);
        assert_eq!(ran.stdout, "", "{arguments:?}");
        assert_eq!(snapshot(&self.cache()), before, "{arguments:?}");
    }
}

/// Runs a command to its end.
pub(crate) fn finish(command: &mut Command, input: &[u8]) -> Ran {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    if let Some(mut stdin) = child.stdin.take() {
        // A program that fails early does not read its input.
        let _ = stdin.write_all(input);
    }
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// All files below `dir` with their contents; folders have none.
pub(crate) fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(snapshot(&path));
            found.insert(path, None);
        } else {
            let content = fs::read(&path).unwrap();
            found.insert(path, Some(content));
        }
    }
    found
}

/// The path of a tiny model: `tiny-llama` or `tiny-qwen2`.
pub(crate) fn tiny(name: &str) -> String {
    format!("{}/../model/tests/golden/{name}.gguf", env!("CARGO_MANIFEST_DIR"))
}

/// A text of about a thousand tokens of the tiny models.
pub(crate) fn long_text() -> String {
    (0..40).map(|i| format!("On day {i} the river stood still, and the boats waited. ")).collect()
}
