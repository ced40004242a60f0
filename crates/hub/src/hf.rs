//! The Hugging Face hub as a source, through the `hf-hub` crate.
//!
//! The crate knows the hub's addresses, redirects and tokens; what it does not do is done here.
//! - It has no time limits, and a reply that it did not expect can make it panic. So it runs on a
//!   thread of its own, which reports through a channel; who waits too long, or finds the channel
//!   closed, goes on without it.
//! - It keeps a cache of its own layout, with links. It gets an empty folder for that, and the
//!   file is moved out of it.
//! - It makes paths from what the server calls the file and its commit. Both are checked before
//!   the download begins. (It asks the server again when it begins, so a server that answers
//!   differently the second time could still choose a path: use only endpoints that you trust.)
//! - It does not verify. The size that the server announced, and the hash of the table or else
//!   the one that the hub announces for every large file, must both be met.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::time::Duration;

use fs_err as fs;
use hf_hub::api::sync::{ApiBuilder, ApiError, Metadata};
use hf_hub::{Cache, Repo, RepoType};

use crate::HubError;
use crate::digest::{Digest, hash_file};
use crate::error::one_line;
use crate::progress::Progress;
use crate::spec::DATASETS;
use crate::verify::{Content, WantedFile};
use crate::wanted::hf_origin;

/// The hub's own address.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// Reports that may wait in the channel; a full one slows the download down, which is harmless.
const MAX_WAITING_EVENTS: usize = 64;

/// How long the hub may be silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Until it has described a file.
    pub(crate) reply: Duration,
    /// Between two pieces of a file.
    pub(crate) stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { reply: Duration::from_secs(20), stall: Duration::from_secs(60) }
    }
}

/// What one download needs to know.
pub(crate) struct HfRequest<'a> {
    pub(crate) endpoint: Option<&'a str>,
    pub(crate) token: Option<&'a str>,
    pub(crate) patience: Patience,
    /// `ORG/REPO`.
    pub(crate) repo: &'a str,
    /// Whether that is a repository of datasets.
    pub(crate) is_dataset: bool,
    /// A branch or commit.
    pub(crate) revision: &'a str,
    /// Each file's path in the repository, and where it goes in the model's folder.
    pub(crate) files: Vec<(&'a str, &'a WantedFile)>,
    /// An empty folder that receives the files.
    pub(crate) stage: PathBuf,
    /// An empty folder for the crate's own cache.
    pub(crate) scratch: PathBuf,
}

/// Downloads the files to the stage; returns what they contain.
pub(crate) fn fetch(
    request: &HfRequest<'_>,
    progress: &mut dyn Progress,
) -> Result<Vec<Content>, HubError> {
    request.files.iter().map(|(file, wanted)| request.fetch_file(file, wanted, progress)).collect()
}

/// What the download thread reports.
enum Event {
    /// The server has described the file.
    Described(Metadata),
    /// So many more bytes have come.
    Received(u64),
    /// The file is at this path, or why it is not.
    Ended(Result<PathBuf, ApiError>),
}

impl HfRequest<'_> {
    fn fetch_file(
        &self,
        file: &str,
        wanted: &WantedFile,
        progress: &mut dyn Progress,
    ) -> Result<Content, HubError> {
        let (events, go) = self.start(file)?;
        let description = match events.recv_timeout(self.patience.reply) {
            Ok(Event::Described(description)) => description,
            Ok(Event::Ended(Err(error))) => return Err(self.explain(file, &error)),
            Ok(_) => return Err(self.unusable(file, "it is out of order")),
            Err(error) => return Err(self.silence(file, error)),
        };
        let (bytes, announced) = self.accept(file, wanted, &description)?;
        // Fails only if the thread has died, which the next receive tells.
        let _ = go.send(());
        progress.begin(&format!("downloading {}", self.spec(file)), Some(bytes));
        let path = self.receive(file, bytes, &events, progress);
        progress.finish();
        let content = self.take(file, &path?, &self.stage.join(&wanted.path), bytes, progress)?;
        match announced {
            Some(expected) if expected != content.sha256 => Err(HubError::WrongHash {
                file: wanted.path.clone(),
                origin: hf_origin(self.repo),
                expected,
                found: content.sha256,
            }),
            _ => Ok(content),
        }
    }

    /// Starts the thread, which waits for a go between the description and the download.
    fn start(
        &self,
        file: &str,
    ) -> Result<(Receiver<Event>, std::sync::mpsc::Sender<()>), HubError> {
        let (builder, repo) = self.client();
        let (events, received) = sync_channel(MAX_WAITING_EVENTS);
        let (go, may_go) = channel();
        let file = file.to_owned();
        std::thread::Builder::new()
            .name("hub".to_owned())
            .spawn(move || download(builder, repo, &file, &may_go, &events))?;
        Ok((received, go))
    }

    fn client(&self) -> (ApiBuilder, Repo) {
        let endpoint = self.endpoint.unwrap_or(DEFAULT_ENDPOINT).trim_end_matches('/').to_owned();
        let builder = ApiBuilder::from_cache(Cache::new(self.scratch.join("hf")))
            .with_endpoint(endpoint)
            .with_token(self.token.map(str::to_owned));
        let revision = self.revision.to_owned();
        let kind = if self.is_dataset { RepoType::Dataset } else { RepoType::Model };
        (builder, Repo::with_revision(self.repo.to_owned(), kind, revision))
    }

    /// The names of the repository's files.
    pub(crate) fn list(&self) -> Result<Vec<String>, HubError> {
        let (builder, repo) = self.client();
        let (answer, answered) = sync_channel(1);
        let ask = move || {
            let info = builder.build().and_then(|api| api.repo(repo).info());
            // An error means that nobody waits for it any more.
            let _ = answer.send(info);
        };
        std::thread::Builder::new().name("hub".to_owned()).spawn(ask)?;
        match answered.recv_timeout(self.patience.reply) {
            Ok(Ok(info)) => Ok(info.siblings.into_iter().map(|file| file.rfilename).collect()),
            Ok(Err(error)) => Err(self.explain("", &error)),
            Err(error) => Err(self.silence("", error)),
        }
    }

    /// Decides whether the file described is the one wanted, before any of it is downloaded.
    ///
    /// Returns its size, and its hash if the hub announces one.
    fn accept(
        &self,
        file: &str,
        wanted: &WantedFile,
        description: &Metadata,
    ) -> Result<(u64, Option<Digest>), HubError> {
        let is_plain = |text: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        };
        if !is_plain(description.etag()) || !is_plain(description.commit_hash()) {
            return Err(self.unusable(file, "its ETag or commit is no identifier"));
        }
        let bytes = description.size() as u64;
        let announced = Digest::from_hex(description.etag());
        if wanted.bytes.is_some_and(|expected| expected != bytes) {
            let detail = format!("it announces another file, of {bytes} bytes");
            return Err(self.unusable(file, &detail));
        }
        match (wanted.sha256, announced) {
            (Some(expected), Some(announced)) if expected != announced => {
                let detail = format!("it announces another file, with SHA-256 {announced}");
                Err(self.unusable(file, &detail))
            }
            (None, None) => Err(self.unusable(file, "it announces no SHA-256 to verify it with")),
            _ => Ok((bytes, announced)),
        }
    }

    /// Follows the download to its end; returns where the crate has put the file.
    fn receive(
        &self,
        file: &str,
        bytes: u64,
        events: &Receiver<Event>,
        progress: &mut dyn Progress,
    ) -> Result<PathBuf, HubError> {
        let mut received: u64 = 0;
        loop {
            match events.recv_timeout(self.patience.stall) {
                Ok(Event::Received(n)) => {
                    received = received.saturating_add(n);
                    if received > bytes {
                        return Err(self.wrong_size(file, bytes, received, true));
                    }
                    progress.advance(n);
                }
                Ok(Event::Ended(Ok(path))) => return Ok(path),
                Ok(Event::Ended(Err(_))) if received > 0 && received < bytes => {
                    return Err(self.wrong_size(file, bytes, received, false));
                }
                Ok(Event::Ended(Err(error))) => return Err(self.explain(file, &error)),
                Ok(Event::Described(_)) => return Err(self.unusable(file, "it is out of order")),
                Err(error) => return Err(self.silence(file, error)),
            }
        }
    }

    /// Moves the downloaded file to `target` and hashes it.
    fn take(
        &self,
        file: &str,
        link: &Path,
        target: &Path,
        bytes: u64,
        progress: &mut dyn Progress,
    ) -> Result<Content, HubError> {
        let path = fs::canonicalize(link)?;
        if !path.starts_with(fs::canonicalize(&self.scratch)?) {
            return Err(self.unusable(file, "its identifiers lead out of the download folder"));
        }
        let found = fs::metadata(&path)?.len();
        if found != bytes {
            return Err(self.wrong_size(file, bytes, found, false));
        }
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::rename(&path, target)?;
        fs::File::open(target)?.sync_all()?;
        Ok(Content { sha256: hash_file(target, progress)?, bytes })
    }

    fn spec(&self, file: &str) -> String {
        let datasets = if self.is_dataset { DATASETS } else { "" };
        format!("hf:{datasets}{}/{file}", self.repo).trim_end_matches('/').to_owned()
    }

    fn unusable(&self, file: &str, detail: &str) -> HubError {
        HubError::HfReply { file: self.spec(file), detail: one_line(detail) }
    }

    fn wrong_size(&self, file: &str, expected: u64, found: u64, more: bool) -> HubError {
        let (file, origin) = (file.to_owned(), hf_origin(self.repo));
        HubError::WrongSize { file, origin, expected, found, more }
    }

    fn unreachable(&self, detail: &str) -> HubError {
        let endpoint = without_password(self.endpoint.unwrap_or(DEFAULT_ENDPOINT));
        HubError::HfUnreachable { endpoint, detail: one_line(detail) }
    }

    fn silence(&self, file: &str, error: RecvTimeoutError) -> HubError {
        match error {
            RecvTimeoutError::Timeout => self.unreachable("it does not answer"),
            // The thread panicked inside the crate.
            RecvTimeoutError::Disconnected => self.unusable(file, "it breaks the hub's protocol"),
        }
    }

    fn explain(&self, file: &str, error: &ApiError) -> HubError {
        let ApiError::RequestError(request) = error else {
            return self.unusable(file, &error.to_string());
        };
        match **request {
            ureq::Error::StatusCode(status @ (401 | 403 | 404 | 410)) => {
                HubError::HfRefused { status, file: self.spec(file) }
            }
            _ => self.unreachable(&request.to_string()),
        }
    }
}

/// `endpoint` less the user and password that it may carry.
fn without_password(endpoint: &str) -> String {
    let (scheme, rest) = endpoint.split_once("://").unwrap_or(("", endpoint));
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    match host.rsplit_once('@') {
        Some((_, host)) => one_line(&format!("{scheme}://{host}/{path}")),
        None => one_line(endpoint),
    }
}

/// The body of the download thread. When nobody listens any more, it ends.
fn download(
    builder: ApiBuilder,
    repo: Repo,
    file: &str,
    may_go: &Receiver<()>,
    events: &SyncSender<Event>,
) {
    let run = || -> Result<Option<PathBuf>, ApiError> {
        let api = builder.build()?;
        let repo = api.repo(repo);
        let description = api.metadata(&repo.url(file))?;
        if events.send(Event::Described(description)).is_err() || may_go.recv().is_err() {
            return Ok(None);
        }
        repo.download_with_progress(file, Reporter(events.clone())).map(Some)
    };
    if let Some(result) = run().transpose() {
        // An error means that the puller has given up on this thread.
        let _ = events.send(Event::Ended(result));
    }
}

/// Sends the crate's progress through the channel.
struct Reporter(SyncSender<Event>);

impl hf_hub::api::Progress for Reporter {
    fn init(&mut self, _size: usize, _filename: &str) {}

    fn update(&mut self, size: usize) {
        if self.0.send(Event::Received(size as u64)).is_err() {
            // The puller has given up. This callback cannot return an error, so unwinding is the
            // only way to stop the crate from writing on; it is quiet, and ends at the thread.
            std::panic::resume_unwind(Box::new("the pull was given up"));
        }
    }

    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_stay_out_of_messages() {
        assert_eq!(without_password("https://u:p@host/x"), "https://host/x");
        assert_eq!(without_password("https://host/x@y"), "https://host/x@y");
        assert_eq!(without_password("http://127.0.0.1:80"), "http://127.0.0.1:80");
    }

    #[test]
    fn a_silent_hub_is_given_up() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let dir = tempfile::tempdir().unwrap();
        let wanted = WantedFile { path: "m.gguf".to_owned(), bytes: None, sha256: None };
        let short = Duration::from_millis(50);
        let request = HfRequest {
            endpoint: Some(&endpoint),
            token: None,
            patience: Patience { reply: short, stall: short },
            repo: "org/repo",
            is_dataset: false,
            revision: "main",
            files: vec![("m.gguf", &wanted)],
            stage: dir.path().join("stage"),
            scratch: dir.path().join("scratch"),
        };
        let error = fetch(&request, &mut crate::NoProgress).unwrap_err();
        assert!(error.to_string().contains("does not answer"), "{error}");
    }
}
