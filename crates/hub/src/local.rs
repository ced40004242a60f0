//! Models that the user gives by path: used where they are, never copied, not verified.

use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::HubError;
use crate::hub::ModelFiles;
use crate::table::ModelKind;

/// What a folder needs to be a sentence encoder, the weights first.
const ENCODER_FILES: [&str; 3] = ["model.safetensors", "tokenizer.json", "config.json"];

/// The model at `path`: a file, or a folder with a sentence encoder.
///
/// A file that ends in `.safetensors` is taken for the weights of a sentence encoder, any other
/// for a language model; whether it is one, its loader will find out.
pub(crate) fn open(path: &Path) -> Result<ModelFiles, HubError> {
    let unreadable = |reason| HubError::Unreadable { path: path.to_owned(), reason };
    // The plain call: the message names the path already.
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    let main = if metadata.is_dir() { encoder_weights(path)? } else { path.to_owned() };
    // Opening a pipe would wait for a writer, so the kind of file is asked for first.
    let metadata = std::fs::metadata(&main).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(unreadable(std::io::Error::other("it is not a regular file")));
    }
    fs::File::open(&main)?;
    let is_encoder = main.extension().is_some_and(|extension| extension == "safetensors");
    Ok(ModelFiles {
        name: path.display().to_string(),
        kind: if is_encoder { ModelKind::SentenceEncoder } else { ModelKind::LanguageModel },
        dir: main.parent().map(Path::to_owned).unwrap_or_default(),
        bytes: metadata.len(),
        main,
        sha256: None,
    })
}

fn encoder_weights(dir: &Path) -> Result<PathBuf, HubError> {
    for missing in ENCODER_FILES {
        if !dir.join(missing).is_file() {
            return Err(HubError::NotAModelFolder { dir: dir.to_owned(), missing });
        }
    }
    Ok(dir.join(ENCODER_FILES[0]))
}
