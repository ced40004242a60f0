//! What a pull is after: the files of one model, what is known of them, and their sources in order.

use crate::pip;
use crate::spec::HfSpec;
use crate::table::{Entry, HfSource, ModelKind, PinnedFile, PipSource};
use crate::verify::WantedFile;

/// A model of the cache folder, whichever way it was named.
pub(crate) struct Wanted {
    /// How the user called it.
    pub(crate) name: String,
    /// The name of its folder.
    pub(crate) key: String,
    pub(crate) kind: ModelKind,
    pub(crate) files: Vec<WantedFile>,
    pub(crate) sources: Vec<Source>,
}

/// One way to get all files of a model.
pub(crate) enum Source {
    Hf(HfPlace),
    Pip { source: PipSource, files: &'static [PinnedFile] },
}

/// A repository of the hub at a branch or commit.
pub(crate) struct HfPlace {
    pub(crate) repo: String,
    #[cfg_attr(not(feature = "hf"), expect(dead_code, reason = "only the client reads it"))]
    pub(crate) revision: String,
    #[cfg_attr(not(feature = "hf"), expect(dead_code, reason = "only the client reads it"))]
    pub(crate) is_dataset: bool,
    /// The path of the model's only file in the repository, if it differs from the local one.
    #[cfg_attr(not(feature = "hf"), expect(dead_code, reason = "only the client reads it"))]
    pub(crate) file: Option<String>,
}

impl Wanted {
    pub(crate) fn entry(entry: &'static Entry) -> Self {
        let file = |file: &PinnedFile| WantedFile {
            path: file.path.to_owned(),
            bytes: Some(file.bytes),
            sha256: Some(file.sha256),
        };
        let place = |hf: HfSource| HfPlace {
            repo: hf.repo.to_owned(),
            revision: hf.revision.to_owned(),
            is_dataset: false,
            file: None,
        };
        // Without the client the hub's place is no source, rather than one that always fails.
        let hf = entry.hf.filter(|_| cfg!(feature = "hf")).map(|hf| Source::Hf(place(hf)));
        let pip = Source::Pip { source: entry.pip, files: entry.files };
        Self {
            name: entry.name.to_owned(),
            key: entry.name.to_owned(),
            kind: entry.kind,
            files: entry.files.iter().map(file).collect(),
            sources: hf.into_iter().chain([pip]).collect(),
        }
    }

    pub(crate) fn hf(spec: &HfSpec) -> Self {
        let place = HfPlace {
            repo: spec.repo().to_owned(),
            revision: "main".to_owned(),
            is_dataset: spec.is_dataset(),
            file: Some(spec.file().to_owned()),
        };
        let path = spec.base_name().to_owned();
        Self {
            name: spec.to_string(),
            key: spec.key(),
            kind: match spec.is_dataset() {
                true => ModelKind::Dataset,
                false => ModelKind::LanguageModel,
            },
            files: vec![WantedFile { path, bytes: None, sha256: None }],
            sources: vec![Source::Hf(place)],
        }
    }
}

impl Source {
    /// The name of the source, for messages and records.
    pub(crate) fn origin(&self) -> String {
        match self {
            Self::Hf(place) => hf_origin(&place.repo),
            Self::Pip { source, .. } => pip::origin(source),
        }
    }
}

/// As [`Source::origin`], for a repository of the hub.
pub(crate) fn hf_origin(repo: &str) -> String {
    format!("the hub's repository {repo}")
}
