//! What is read before the first turn: files, folders, standard input.

use std::path::{Path, PathBuf};

use anyhow::bail;

use crate::{load, output};

/// Names of standard input.
const STANDARD_INPUT: [&str; 4] = ["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"];

/// A text to read before the first turn.
pub(super) struct Document {
    pub(super) name: String,
    pub(super) text: String,
}

pub(super) fn is_stdin(path: &Path) -> bool {
    STANDARD_INPUT.iter().any(|name| path == Path::new(name))
}

/// Reads files in the order given, and those of a folder by name. In a folder, what is hidden, empty
/// or no text is left out with a note; named by itself, it is an error.
pub(super) fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<Document>> {
    let mut documents = Vec::new();
    for path in paths {
        if path.is_dir() {
            let n_before = documents.len();
            read_folder(path, &mut documents)?;
            if documents.len() == n_before {
                bail!("{} holds no text: leave it out of --ingest", path.display());
            }
        } else {
            documents.push(read_file(path)?);
        }
    }
    Ok(documents)
}

fn read_file(path: &Path) -> anyhow::Result<Document> {
    let name = path.display().to_string();
    let text = load::text(if is_stdin(path) { Path::new("-") } else { path })?;
    if text.trim().is_empty() {
        bail!("{name} is empty: leave it out of --ingest");
    }
    Ok(Document { name, text })
}

fn read_folder(folder: &Path, documents: &mut Vec<Document>) -> anyhow::Result<()> {
    let mut paths = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        let is_hidden = entry.file_name().to_str().is_some_and(|name| name.starts_with('.'));
        // A link may lead back to where it lies.
        if !is_hidden && !entry.file_type()?.is_symlink() {
            paths.push(entry.path());
        }
    }
    paths.sort();
    for path in paths {
        if path.is_dir() {
            read_folder(&path, documents)?;
            continue;
        }
        match read_file(&path) {
            Ok(document) => documents.push(document),
            Err(error) => output::dim_note(&format!("left out: {}", output::one_line(&error))),
        }
    }
    Ok(())
}
