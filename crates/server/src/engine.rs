//! The thread on which all streams live.
//!
//! It goes round: take what has been asked, read one chunk of one text, take one decode step of
//! every stream that generates. So a long turn of one client delays the answers of others by a chunk
//! at a time, and several answers cost one pass over the weights.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;

use everstream_runtime::memory::{Embedder, RecalledBlock};
use everstream_runtime::model::{Model, Workspace};
use everstream_runtime::{
    Constraint, GenerateOptions, Generated, Ingest, SamplerConfig, Session, SessionConfig,
    SessionError, Step, TokenLogProb, append_each,
};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::active::{Active, Home, Next};
use crate::conversation::{Conversation, Owner, Past, Resting, RestingLimits, Turn};
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::saved::{Absent, SavedConfig, SavedSessions, SessionId, check_system};

/// What the engine keeps, and how much it takes on.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Settings of every stream.
    pub session: SessionConfig,
    /// How to sample where a request does not say.
    pub sampler: SamplerConfig,
    /// Tokens of an answer at most where a request does not say.
    pub max_tokens: usize,
    /// And where it does.
    pub max_answer: usize,
    /// Conversations that are kept for their next turn.
    pub max_resting: NonZeroUsize,
    /// Bytes of their keys and values; the newest is kept however large it is.
    pub max_resting_bytes: u64,
    /// Answers that are worked on at once; more wait.
    pub max_active: NonZeroUsize,
    /// Requests that wait; more are refused.
    pub max_waiting: NonZeroUsize,
    /// Where sessions with a name live; `None` refuses them.
    pub saved: Option<SavedConfig>,
}

/// A handle to the thread; it ends when the last handle is dropped and all answers are given.
#[derive(Clone, Debug)]
pub struct Engine {
    messages: Sender<Message>,
    /// Places for those who wait.
    places: Arc<Semaphore>,
    pub(crate) model: Arc<Model>,
    pub(crate) encoder: Option<Arc<dyn Embedder>>,
    pub(crate) sampler: SamplerConfig,
    pub(crate) max_tokens: usize,
    pub(crate) max_answer: usize,
    pub(crate) metrics: Arc<Metrics>,
}

/// What the thread is told.
enum Message {
    Job(Box<Job>, OwnedSemaphorePermit),
    /// Something short, which does not wait for its turn.
    Command(Box<dyn FnOnce(&mut Streams) + Send>),
}

/// Something to be read, and perhaps answered.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) task: Task,
    pub(crate) options: GenerateOptions,
    /// What the answer must be.
    pub(crate) constraint: Option<Box<dyn Constraint>>,
    pub(crate) events: UnboundedSender<Event>,
}

#[derive(Debug)]
pub(crate) enum Task {
    /// A conversation whose last turn is the user's and is to be answered.
    Turn(Past),
    /// A turn in a session with a name; `system` is for a new one.
    SessionTurn { id: SessionId, system: Option<String>, text: String },
    /// A text that is to go on; `echo` asks how likely its own tokens were.
    Completion { tokens: Vec<u32>, echo: bool },
    /// A text that a session with a name is to know.
    Document { id: SessionId, document: Ingest },
}

/// What a client hears of its job, in this order.
#[derive(Debug)]
pub(crate) enum Event {
    /// It is being worked on.
    Accepted,
    /// How much of a document has been read, and of how much.
    Read { n_read: usize, n_tokens: usize },
    /// The text was read; the answer begins.
    Begun(Begun),
    /// A piece of the answer.
    Text(Piece),
    /// The answer has ended.
    Ended(Generated),
    /// The document was read.
    DocumentEnded(DocumentEnd),
    /// Nothing more will come.
    Failed(ApiError),
}

/// A piece of an answer, and how likely its tokens were if that was asked for.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) log_probs: Vec<TokenLogProb>,
}

/// What came of a document.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DocumentEnd {
    pub(crate) n_tokens: usize,
    /// Of these, what had been read by an earlier request.
    pub(crate) n_known: usize,
    /// Tokens of the stream.
    pub(crate) n_stream: u64,
}

/// What there was before the answer.
#[derive(Debug, Default)]
pub(crate) struct Begun {
    /// Tokens of the stream.
    pub(crate) n_tokens: u64,
    /// Those that had been read before the request.
    pub(crate) n_known: u64,
    pub(crate) recalled: Vec<Recalled>,
    /// How likely the prompt's tokens were, if that was asked for: all but the first.
    pub(crate) log_probs: Vec<TokenLogProb>,
}

/// A part of the past that was put back.
#[derive(Clone, Debug)]
pub(crate) struct Recalled {
    pub(crate) range: (u64, u64),
    pub(crate) distance: f32,
    pub(crate) text: String,
}

impl From<&RecalledBlock> for Recalled {
    fn from(of: &RecalledBlock) -> Self {
        let (range, text) = ((of.part.start.0, of.part.end.0), of.block.text().to_owned());
        Self { range, distance: of.distance, text }
    }
}

impl Engine {
    /// Starts the thread. Whoever waits for it to end knows that all sessions are saved.
    ///
    /// # Errors
    ///
    /// [`SessionError`] if no stream could be made with these
    /// settings, and [`std::io::Error`] if there is no thread to be had.
    pub fn start(
        model: Arc<Model>,
        encoder: Option<Arc<dyn Embedder>>,
        config: EngineConfig,
    ) -> Result<(Self, JoinHandle<()>), Box<dyn std::error::Error + Send + Sync>> {
        // Whatever is wrong with the settings is said before anything listens.
        drop(Session::with_system(
            Arc::clone(&model),
            encoder.clone(),
            config.session.clone(),
            None,
        )?);
        let (sender, messages) = channel();
        let metrics = Arc::new(Metrics::default());
        let engine = Self {
            messages: sender,
            places: Arc::new(Semaphore::new(config.max_waiting.get())),
            model: Arc::clone(&model),
            encoder: encoder.clone(),
            sampler: config.sampler,
            max_tokens: config.max_tokens,
            max_answer: config.max_answer,
            metrics: Arc::clone(&metrics),
        };
        let limits = RestingLimits {
            n_conversations: config.max_resting.get(),
            n_bytes: config.max_resting_bytes,
        };
        let saved = SavedSessions::new(
            config.saved.clone(),
            Arc::clone(&model),
            encoder.clone(),
            &config.session,
        );
        let streams = Streams {
            waiting: VecDeque::new(),
            active: Vec::new(),
            resting: Resting::new(limits),
            saved,
            next_reader: 0,
            workspace: Workspace::default(),
            model,
            encoder,
            config,
            metrics,
        };
        let thread = std::thread::Builder::new()
            .name("everstream-engine".to_owned())
            .spawn(move || streams.run(&messages))?;
        Ok((engine, thread))
    }

    /// Queues jobs: all of them, or none if there is no place for all.
    pub(crate) fn submit(&self, jobs: Vec<Job>) -> Result<(), ApiError> {
        let places = Arc::clone(&self.places).try_acquire_many_owned(jobs.len() as u32);
        let mut places = places.map_err(|_| ApiError::busy())?;
        for job in jobs {
            let Some(place) = places.split(1) else { return Err(ApiError::busy()) };
            let sent = self.messages.send(Message::Job(Box::new(job), place));
            sent.map_err(|_| ApiError::stopped())?;
        }
        Ok(())
    }

    /// What `ask` finds on the thread. It must be short: everybody waits for it.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut Streams) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let (sender, answer) = oneshot::channel();
        let command = move |streams: &mut Streams| drop(sender.send(ask(streams)));
        let sent = self.messages.send(Message::Command(Box::new(command)));
        sent.map_err(|_| ApiError::stopped())?;
        answer.await.map_err(|_| ApiError::stopped())?
    }
}

/// The state of the thread.
#[derive(Debug)]
pub(crate) struct Streams {
    /// With their places in the queue, which end with their waiting.
    waiting: VecDeque<(Box<Job>, OwnedSemaphorePermit)>,
    active: Vec<Active>,
    resting: Resting,
    pub(crate) saved: SavedSessions,
    /// Whose turn it is to read.
    next_reader: usize,
    workspace: Workspace,
    model: Arc<Model>,
    encoder: Option<Arc<dyn Embedder>>,
    config: EngineConfig,
    metrics: Arc<Metrics>,
}

impl Streams {
    fn run(mut self, messages: &Receiver<Message>) {
        while self.listen(messages) {
            self.drop_abandoned();
            self.accept_waiting();
            self.read_chunk();
            self.decode();
            self.count();
        }
        if let Err(error) = self.saved.save_all() {
            tracing::error!(
                "not all sessions are saved as they are, and will be replayed: {error}"
            );
        }
    }

    /// Takes what has been asked; waits for something if there is nothing to do. Returns whether to
    /// go on.
    fn listen(&mut self, messages: &Receiver<Message>) -> bool {
        loop {
            let is_idle = self.active.is_empty() && self.waiting.is_empty();
            let message = match is_idle {
                true => messages.recv().map_err(|_| TryRecvError::Disconnected),
                false => messages.try_recv(),
            };
            match message {
                Ok(Message::Job(job, place)) => self.waiting.push_back((job, place)),
                Ok(Message::Command(command)) => command(self),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return !is_idle,
            }
        }
    }

    /// Ends the answers of clients that are gone; their conversations are as they were before, and
    /// sessions with a name keep what was read and said.
    fn drop_abandoned(&mut self) {
        self.waiting.retain(|(job, _)| !job.events.is_closed());
        for at in (0..self.active.len()).rev() {
            if self.active[at].is_abandoned() {
                let active = self.active.remove(at);
                self.abandon(active);
            }
        }
    }

    fn abandon(&mut self, active: Active) {
        let is_begun = active.is_begun();
        let Active { mut session, home, .. } = active;
        match home {
            Home::Conversation(turn) => self.resting.put_back(turn.before),
            Home::Nowhere => {}
            Home::Saved(id) if !is_begun => {
                // It would be a session with half a system prompt.
                drop(session);
                if let Err(error) = self.saved.delete(&id) {
                    tracing::error!("session {:?}: {}", id.name, error.message());
                }
            }
            Home::Saved(id) => {
                let ended = match session.awaits_answer() {
                    true => session.close_answer(),
                    false => session.stop_ingest(),
                };
                match ended {
                    Ok(()) => self.saved.put(id, session),
                    // It is opened again as its journal says.
                    Err(error) => tracing::error!("session {:?}: {error}", id.name),
                }
            }
        }
    }

    /// Begins with those that wait, as long as there is room. Of one session one turn at a time is
    /// worked on.
    fn accept_waiting(&mut self) {
        while self.active.len() < self.config.max_active.get() {
            let is_free = |job: &Job| job.task.session().is_none_or(|id| !self.is_active(id));
            let Some(at) = self.waiting.iter().position(|(job, _)| is_free(job)) else { return };
            let Some((job, _)) = self.waiting.remove(at) else { return };
            let Job { task, options, constraint, events } = *job;
            match self.accept(task, options, events.clone()) {
                Ok(active) => {
                    let _ = events.send(Event::Accepted);
                    self.active.push(active.with_constraint(constraint));
                }
                Err(error) => drop(events.send(Event::Failed(error))),
            }
        }
    }

    /// Whether a session is being worked on.
    pub(crate) fn is_active(&self, id: &SessionId) -> bool {
        self.active.iter().any(|active| matches!(&active.home, Home::Saved(of) if of == id))
    }

    /// What `look` finds in a session, whether it is worked on, open or on disk.
    pub(crate) fn look<T>(
        &mut self,
        id: &SessionId,
        look: impl FnOnce(&mut Session) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let is_it = |active: &&mut Active| matches!(&active.home, Home::Saved(of) if of == id);
        if let Some(active) = self.active.iter_mut().find(is_it) {
            return look(&mut active.session);
        }
        let (mut session, _) = self.saved.take(id, Absent::Refuse)?;
        let found = look(&mut session);
        self.saved.put(id.clone(), session);
        found
    }

    /// As [`look`](Self::look), for what would change a stream under the hands of who works on it.
    pub(crate) fn change<T>(
        &mut self,
        id: &SessionId,
        change: impl FnOnce(&mut Session) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        self.check_idle(id)?;
        self.look(id, change)
    }

    /// Refuses what cannot be done to a session that is being worked on.
    pub(crate) fn check_idle(&self, id: &SessionId) -> Result<(), ApiError> {
        match self.is_active(id) {
            true => Err(ApiError::conflict(format!(
                "session {:?} is reading or answering: try again when it has ended",
                id.name
            ))),
            false => Ok(()),
        }
    }

    /// Makes a stream of what is known, with the rest to be read.
    fn accept(
        &mut self,
        task: Task,
        options: GenerateOptions,
        events: UnboundedSender<Event>,
    ) -> Result<Active, ApiError> {
        match task {
            Task::Turn(past) => match self.resting.take(&past) {
                Some(known) => match known.branch() {
                    Ok(Conversation { session, past: known_past }) => {
                        let n_known_turns = known_past.turns.len();
                        let active = Active::new(session, options, events);
                        Ok(active.with_turns(past, n_known_turns, Some(known)))
                    }
                    Err(error) => {
                        self.resting.put_back(Some(known));
                        Err(error.into())
                    }
                },
                None => {
                    let prefill = check_system(&self.model, past.system.as_deref())?;
                    let session = Session::with_pinned(
                        Arc::clone(&self.model),
                        self.encoder.clone(),
                        self.config.session.clone(),
                        &prefill,
                    )?;
                    let active = Active::new(session, options, events).with_first(Some(prefill));
                    Ok(active.with_turns(past, 0, None))
                }
            },
            Task::SessionTurn { id, system, text } => {
                let (session, first) = self.saved.take(&id, Absent::Make(system.as_deref()))?;
                let active = Active::new(session, options, events).with_first(first);
                Ok(active.with_turn(id, text))
            }
            Task::Document { id, document } => {
                let (session, first) = self.saved.take(&id, Absent::MakeEmpty)?;
                let active = Active::new(session, options, events).with_first(first);
                Ok(active.with_document(id, document))
            }
            Task::Completion { tokens, echo } => {
                let (model, encoder) = (Arc::clone(&self.model), self.encoder.clone());
                let session = Session::new(model, encoder, self.config.session.clone())?;
                Ok(Active::new(session, options, events).with_prompt(tokens, echo))
            }
        }
    }

    /// Reads one chunk of one text; who reads next takes turns.
    fn read_chunk(&mut self) {
        let n = self.active.len();
        let Some(at) =
            (0..n).map(|i| (self.next_reader + i) % n).find(|&i| self.active[i].has_to_read())
        else {
            return;
        };
        self.next_reader = at + 1;
        let n_before = self.active[at].session.n_tokens();
        let read = self.active[at].read_chunk();
        self.metrics.read_tokens.inc_by(self.active[at].session.n_tokens() - n_before);
        match read {
            Ok(Next::Read) => {}
            Ok(Next::Answer(n_recalled)) => {
                self.metrics.recalled_blocks.inc_by(n_recalled as u64);
            }
            Ok(Next::End) => self.end_document(at),
            Err(error) => self.fail(at, error),
        }
    }

    /// Takes one step of every stream that generates.
    fn decode(&mut self) {
        let drafts = |active: &[Active]| -> (u64, u64) {
            let drafts = active.iter().map(|active| active.session.drafts());
            drafts.fold((0, 0), |sum, d| (sum.0 + d.drafted, sum.1 + d.accepted))
        };
        let before = drafts(&self.active);
        let mut ended = Vec::new();
        let mut steps = Vec::new();
        let mut stepping = Vec::new();
        for (at, active) in self.active.iter_mut().enumerate() {
            let Some(generation) = &mut active.generation else { continue };
            match generation.next(&mut active.session) {
                Ok(Some(token)) => {
                    steps.push(Step { session: &mut active.session, token });
                    stepping.push(at);
                }
                Ok(None) => ended.push((at, None)),
                Err(error) => ended.push((at, Some(error))),
            }
        }
        let results = append_each(&mut steps, &mut self.workspace);
        self.metrics.generated_tokens.inc_by(results.len() as u64);
        let after = drafts(&self.active);
        self.metrics.drafted_tokens.inc_by(after.0 - before.0);
        self.metrics.accepted_tokens.inc_by(after.1 - before.1);
        for (at, result) in stepping.into_iter().zip(results) {
            match result {
                Ok(()) => self.active[at].took(),
                Err(error) => ended.push((at, Some(error))),
            }
        }
        // From the end, so that places stay what they are.
        ended.sort_by_key(|&(at, _)| std::cmp::Reverse(at));
        for (at, error) in ended {
            match error {
                Some(error) => self.fail(at, error),
                None => self.end_answer(at),
            }
        }
    }

    /// Ends an answer, and keeps the stream for its next turn.
    fn end_answer(&mut self, at: usize) {
        let mut active = self.active.remove(at);
        let Some(text) = active.end_answer() else { return };
        let Active { mut session, home, .. } = active;
        // The client has its answer; what follows is for the next turn.
        match home {
            Home::Nowhere => {}
            Home::Conversation(turn) => match session.close_answer() {
                Ok(()) => {
                    let conversation = Conversation { session, past: turn.past.answered(text) };
                    self.resting.keep(conversation, turn.before);
                }
                // The conversation will be read again.
                Err(error) => tracing::error!("a conversation is lost: {error}"),
            },
            Home::Saved(id) => match session.close_answer() {
                Ok(()) => self.saved.put(id, session),
                Err(error) => tracing::error!("session {:?}: {error}", id.name),
            },
        }
    }

    /// A document was read.
    fn end_document(&mut self, at: usize) {
        let active = self.active.remove(at);
        if let Active { session, home: Home::Saved(id), .. } = active {
            self.saved.put(id, session);
        }
    }

    /// A stream of which something could not be read is in a state that nobody knows: it goes, and
    /// the conversation is as it was before, or the session as its files say. A text that was refused
    /// before anything was read of it changes nothing.
    fn fail(&mut self, at: usize, error: SessionError) {
        let is_refused =
            matches!(error, SessionError::MissingByte { .. } | SessionError::Template(_));
        let Active { session, home, events, .. } = self.active.remove(at);
        match home {
            Home::Conversation(turn) => self.resting.put_back(turn.before),
            Home::Saved(id) if is_refused => self.saved.put(id, session),
            Home::Saved(_) | Home::Nowhere => {}
        }
        let _ = events.send(Event::Failed(error.into()));
    }

    /// Says how much there is to do.
    fn count(&self) {
        self.metrics.active.set(self.active.len() as i64);
        self.metrics.waiting.set(self.waiting.len() as i64);
        self.metrics.conversations.set(self.resting.len() as i64);
        self.metrics.open_sessions.set(self.saved.n_open() as i64);
    }

    /// The names of an owner's sessions, and which of them are being worked on.
    pub(crate) fn sessions(&self, owner: &Owner) -> Result<Vec<(String, bool)>, ApiError> {
        let is_active = |name: String| {
            let id = SessionId { owner: Arc::clone(owner), name };
            let is_active = self.is_active(&id);
            (id.name, is_active)
        };
        Ok(self.saved.names(owner)?.into_iter().map(is_active).collect())
    }
}

impl Task {
    /// The session with a name that it works on.
    fn session(&self) -> Option<&SessionId> {
        match self {
            Self::SessionTurn { id, .. } | Self::Document { id, .. } => Some(id),
            Self::Turn(_) | Self::Completion { .. } => None,
        }
    }
}

impl Past {
    /// This past with an answer to its last turn.
    fn answered(mut self, text: String) -> Self {
        self.turns.push(Turn { speaker: crate::conversation::Speaker::Assistant, text });
        self
    }
}
