//! Sessions with a name: streams that live on disk, and go on after a restart.
//!
//! Some are open, with their caches in memory; the one that has rested longest is closed when
//! another is opened. An owner's sessions lie in a data folder of their own, so no name that a
//! request gives leads to somebody else's.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use everstream_runtime::memory::{Embedder, Keep, Role, SessionFolder};
use everstream_runtime::model::Model;
use everstream_runtime::{
    Origin, Policy, Prefill, Session, SessionConfig, SessionError, Storage, saved_geometry,
};

use crate::conversation::Owner;
use crate::error::ApiError;

/// Where sessions with a name live, and how many.
#[derive(Clone, Debug)]
pub struct SavedConfig {
    /// The folder of those without a key, or with the only one; those of other keys lie in folders
    /// of their own within it.
    pub data_dir: PathBuf,
    /// Disk space of one session's blocks at most.
    pub max_bytes: u64,
    /// What stays of more than that.
    pub keep: Keep,
    /// Sessions of one owner at most.
    pub max_sessions: NonZeroUsize,
    /// Sessions that are open at the same time, besides those that are worked on.
    pub max_open: NonZeroUsize,
}

/// A session's name, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SessionId {
    pub(crate) owner: Owner,
    pub(crate) name: String,
}

/// Sessions with a name.
#[derive(Debug)]
pub(crate) struct SavedSessions {
    config: Option<SavedConfig>,
    /// Open ones, the one that was used last at the end.
    open: Vec<(SessionId, Session)>,
    model: Arc<Model>,
    encoder: Option<Arc<dyn Embedder>>,
    session: SessionConfig,
}

/// What to do about a session that does not exist.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Absent<'a> {
    /// It is made, with this system prompt.
    Make(Option<&'a str>),
    /// It is made to read documents: without a turn.
    MakeEmpty,
    /// That is an error.
    Refuse,
}

impl SavedSessions {
    pub(crate) fn new(
        config: Option<SavedConfig>,
        model: Arc<Model>,
        encoder: Option<Arc<dyn Embedder>>,
        session: &SessionConfig,
    ) -> Self {
        Self { config, open: Vec::new(), model, encoder, session: session.clone() }
    }

    /// Sessions that are open and not worked on.
    pub(crate) fn n_open(&self) -> usize {
        self.open.len()
    }

    /// The folder of an owner's sessions.
    fn data_dir(&self, owner: &Owner) -> Result<PathBuf, ApiError> {
        let is_remembering = self.session.policy == Policy::Remember && self.encoder.is_some();
        match &self.config {
            Some(config) if is_remembering => Ok(match &**owner {
                "" => config.data_dir.clone(),
                name => config.data_dir.join("keys").join(name),
            }),
            _ => Err(ApiError::invalid(
                "session",
                "this server keeps no sessions: it runs without memory",
            )),
        }
    }

    /// Names of an owner's sessions.
    pub(crate) fn names(&self, owner: &Owner) -> Result<Vec<String>, ApiError> {
        Ok(SessionFolder::list(&self.data_dir(owner)?).map_err(SessionError::from)?)
    }

    /// Takes a session out, to be worked on; [`put`](Self::put) brings it back. If it is empty, comes
    /// with what is to be read first.
    pub(crate) fn take(
        &mut self,
        id: &SessionId,
        absent: Absent<'_>,
    ) -> Result<(Session, Option<Prefill>), ApiError> {
        let session = match self.open.iter().position(|(open, _)| open == id) {
            Some(at) => self.open.remove(at).1,
            None => self.open(id, absent)?,
        };
        let first = if session.n_tokens() == 0 { self.first(absent) } else { Ok(None) };
        match first {
            Ok(first) => Ok((session, first)),
            Err(error) => {
                self.put(id.clone(), session);
                Err(error)
            }
        }
    }

    /// What an empty session begins with.
    fn first(&self, absent: Absent<'_>) -> Result<Option<Prefill>, ApiError> {
        let begin = |token| Prefill::new(vec![token], Origin::turn(Role::Document));
        match absent {
            Absent::Make(system) => check_system(&self.model, system).map(Some),
            Absent::MakeEmpty => Ok(self.model.tokenizer().first_token().map(begin)),
            Absent::Refuse => Ok(None),
        }
    }

    /// Keeps a session open, and closes the one that has rested longest if there are too many.
    pub(crate) fn put(&mut self, id: SessionId, session: Session) {
        self.open.push((id, session));
        let max_open = self.config.as_ref().map_or(0, |config| config.max_open.get());
        while self.open.len() > max_open {
            let (_, mut session) = self.open.remove(0);
            // What cannot be saved is in the journal, and will be replayed.
            let _ = session.save();
        }
    }

    /// Saves all that are open.
    pub(crate) fn save_all(&mut self) -> Result<(), SessionError> {
        let mut all = Ok(());
        for (_, session) in &mut self.open {
            // One that cannot be saved keeps no other from it.
            all = all.and(session.save());
        }
        all
    }

    /// Deletes a session with all that it remembers.
    pub(crate) fn delete(&mut self, id: &SessionId) -> Result<(), ApiError> {
        let data_dir = self.data_dir(&id.owner)?;
        self.open.retain(|(open, _)| open != id);
        let folder = SessionFolder::open(&data_dir, &id.name).map_err(SessionError::from)?;
        Ok(folder.remove().map_err(SessionError::from)?)
    }

    fn open(&self, id: &SessionId, absent: Absent<'_>) -> Result<Session, ApiError> {
        let data_dir = self.data_dir(&id.owner)?;
        let (Some(config), Some(encoder)) = (&self.config, &self.encoder) else {
            return Err(ApiError::stopped());
        };
        let known = self.names(&id.owner)?;
        let mut session = self.session.clone();
        let folder = match absent {
            Absent::Refuse => SessionFolder::open(&data_dir, &id.name),
            Absent::Make(_) | Absent::MakeEmpty => {
                if !known.contains(&id.name) {
                    if known.len() >= config.max_sessions.get() {
                        let message = format!("there are {} sessions: delete one", known.len());
                        return Err(ApiError::invalid("session", message));
                    }
                    // All of what it begins with is pinned.
                    let n_first = self.first(absent)?.map_or(0, |first| first.n_tokens());
                    session.n_sink = session.n_sink.max(n_first);
                }
                SessionFolder::create(&data_dir, &id.name)
            }
        };
        let folder = Arc::new(folder.map_err(SessionError::from)?);
        if let Some(geometry) = saved_geometry(&folder)? {
            geometry.apply(&mut session);
        }
        let (max_bytes, keep) = (Some(config.max_bytes), config.keep);
        let storage = Storage { folder, max_bytes, keep, accepts_loss: false };
        let (model, encoder) = (Arc::clone(&self.model), Arc::clone(encoder));
        let mut session = Session::open(model, encoder, session, &storage)?;
        if session.awaits_answer() {
            // A crash has cut it off; it stays as far as it came.
            session.close_answer()?;
        }
        Ok(session)
    }
}

/// Tokens of a system prompt at most; all of them stay in the cache.
const MAX_SYSTEM_TOKENS: usize = 8192;
/// And bytes, so that no megabytes are encoded to be counted.
const MAX_SYSTEM_BYTES: usize = 64 * MAX_SYSTEM_TOKENS;

/// The system turn of a model. All of it stays in the cache, so that its length is what a stream
/// costs: it is bounded.
pub(crate) fn check_system(model: &Model, system: Option<&str>) -> Result<Prefill, ApiError> {
    let too_long = || {
        let message = format!("a system prompt may have {MAX_SYSTEM_TOKENS} tokens");
        ApiError::invalid("messages", message)
    };
    if system.map_or(0, str::len) > MAX_SYSTEM_BYTES {
        return Err(too_long());
    }
    let prefill = Prefill::system(model, system)?;
    if prefill.n_tokens() > MAX_SYSTEM_TOKENS {
        return Err(too_long());
    }
    Ok(prefill)
}
