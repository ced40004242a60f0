//! The thread on which all streams live.
//!
//! It goes round: take what has been asked, read one chunk of one turn, take one decode step of
//! every stream that generates. So a long turn of one client delays the answers of others by a chunk
//! at a time, and several answers cost one pass over the weights.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};

use everstream_runtime::memory::{Embedder, Role};
use everstream_runtime::model::{Model, Workspace};
use everstream_runtime::{
    GenerateOptions, Generated, Generation, Origin, Prefill, SamplerConfig, Session, SessionConfig,
    SessionError, Step, append_each,
};
use tokio::sync::mpsc::UnboundedSender;

use crate::conversation::{Conversation, Resting, Speaker, Turn};
use crate::error::ApiError;

/// Tokens of a system prompt at most; all of them stay in the cache.
const MAX_SYSTEM_TOKENS: usize = 8192;
/// And bytes, so that no megabytes are encoded to be counted.
const MAX_SYSTEM_BYTES: usize = 64 * MAX_SYSTEM_TOKENS;

/// What the engine keeps, and how much it takes on.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Settings of every stream.
    pub session: SessionConfig,
    /// How to sample where a request does not say.
    pub sampler: SamplerConfig,
    /// Tokens of an answer at most where a request does not say.
    pub max_tokens: usize,
    /// Conversations that are kept for their next turn.
    pub max_resting: NonZeroUsize,
    /// Answers that are worked on at once; more wait.
    pub max_active: NonZeroUsize,
    /// Requests that wait; more are refused.
    pub max_waiting: NonZeroUsize,
}

/// A handle to the thread; it ends when the last handle is dropped and all answers are given.
#[derive(Clone, Debug)]
pub struct Engine {
    jobs: SyncSender<Job>,
    pub(crate) sampler: SamplerConfig,
    pub(crate) max_tokens: usize,
}

/// A turn to be answered.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) system: Option<String>,
    /// The last one is the user's.
    pub(crate) turns: Vec<Turn>,
    pub(crate) options: GenerateOptions,
    pub(crate) events: UnboundedSender<Event>,
}

/// What a client hears of its turn, in this order.
#[derive(Debug)]
pub(crate) enum Event {
    /// The turn was read; the answer begins.
    Begun(Begun),
    /// A piece of the answer.
    Text(String),
    /// The answer has ended.
    Ended(Generated),
    /// Nothing more will come.
    Failed(ApiError),
}

/// What there was before the answer.
#[derive(Debug)]
pub(crate) struct Begun {
    /// Tokens of the stream.
    pub(crate) n_tokens: u64,
    /// Those that had been read before the request.
    pub(crate) n_known: u64,
    pub(crate) recalled: Vec<Recalled>,
}

/// A part of the past that was put back.
#[derive(Clone, Debug)]
pub(crate) struct Recalled {
    pub(crate) range: (u64, u64),
    pub(crate) distance: f32,
    pub(crate) text: String,
}

impl Engine {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// [`SessionError`] if no stream could be made with these settings, and
    /// [`std::io::Error`] if there is no thread to be had.
    pub fn start(
        model: Arc<Model>,
        encoder: Option<Arc<dyn Embedder>>,
        config: EngineConfig,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        // Whatever is wrong with the settings is said before anything listens.
        drop(Session::with_system(
            Arc::clone(&model),
            encoder.clone(),
            config.session.clone(),
            None,
        )?);
        let (sender, jobs) = sync_channel(config.max_waiting.get());
        let engine = Self { jobs: sender, sampler: config.sampler, max_tokens: config.max_tokens };
        let streams = Streams {
            resting: Resting::new(config.max_resting.get()),
            active: Vec::new(),
            next: 0,
            workspace: Workspace::default(),
            model,
            encoder,
            config,
        };
        std::thread::Builder::new()
            .name("everstream-engine".to_owned())
            .spawn(move || streams.run(&jobs))?;
        Ok(engine)
    }

    /// Queues a turn.
    pub(crate) fn submit(&self, job: Job) -> Result<(), ApiError> {
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => ApiError::busy(),
            TrySendError::Disconnected(_) => ApiError::stopped(),
        })
    }
}

/// What is still to be read before the answer begins.
#[derive(Debug)]
enum ToRead {
    /// A turn that has its answer.
    Past(String),
    /// That answer.
    Answer(String),
    /// The turn to be answered.
    Turn(String),
}

/// A stream that is being worked on.
#[derive(Debug)]
struct Active {
    conversation: Conversation,
    to_read: VecDeque<ToRead>,
    /// What is being read, and whether an answer is to be closed behind it.
    reading: Option<(Prefill, bool)>,
    generation: Option<Generation>,
    options: GenerateOptions,
    n_known: u64,
    /// The conversation as it was, for the case that nothing comes of this turn.
    before: Option<Conversation>,
    events: UnboundedSender<Event>,
}

/// The state of the thread.
#[derive(Debug)]
struct Streams {
    resting: Resting,
    active: Vec<Active>,
    /// Whose turn it is to read.
    next: usize,
    workspace: Workspace,
    model: Arc<Model>,
    encoder: Option<Arc<dyn Embedder>>,
    config: EngineConfig,
}

impl Streams {
    fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            while self.active.len() < self.config.max_active.get() {
                let job = match self.active.is_empty() {
                    true => jobs.recv().map_err(|_| TryRecvError::Disconnected),
                    false => jobs.try_recv(),
                };
                match job {
                    Ok(job) => self.accept(job),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) if self.active.is_empty() => return,
                    Err(TryRecvError::Disconnected) => break,
                }
            }
            self.drop_abandoned();
            self.read_chunk();
            self.decode();
        }
    }

    /// Ends the answers of clients that are gone; their conversations are as they were before.
    fn drop_abandoned(&mut self) {
        for at in (0..self.active.len()).rev() {
            if self.active[at].events.is_closed() {
                let active = self.active.remove(at);
                self.resting.keep_some(active.before);
            }
        }
    }

    /// Makes a stream of what is known, with the rest to be read.
    fn accept(&mut self, job: Job) {
        if job.events.is_closed() {
            return;
        }
        let Job { system, turns, options, events } = job;
        let (conversation, before, reading) = match self.resting.take(system.as_deref(), &turns) {
            Some(known) => match known.branch() {
                Ok(branch) => (branch, Some(known), None),
                Err(error) => {
                    self.resting.keep(known);
                    return tell(&events, Event::Failed(error.into()));
                }
            },
            None => match self.begin(system) {
                Ok((conversation, prefill)) => (conversation, None, Some((prefill, false))),
                Err(error) => return tell(&events, Event::Failed(error)),
            },
        };
        let n_known = conversation.session.n_tokens();
        let new = &turns[conversation.turns.len()..];
        let to_read = new.iter().enumerate().map(|(i, turn)| match turn.speaker {
            Speaker::Assistant => ToRead::Answer(turn.text.clone()),
            Speaker::User if i + 1 == new.len() => ToRead::Turn(turn.text.clone()),
            Speaker::User => ToRead::Past(turn.text.clone()),
        });
        let to_read = to_read.collect();
        let conversation = Conversation { turns, ..conversation };
        self.active.push(Active {
            conversation,
            to_read,
            reading,
            generation: None,
            options,
            n_known,
            before,
            events,
        });
    }

    /// A conversation of which nothing is known, and its system turn, which is to be read.
    fn begin(&self, system: Option<String>) -> Result<(Conversation, Prefill), ApiError> {
        let (model, encoder) = (Arc::clone(&self.model), self.encoder.clone());
        let config = self.config.session.clone();
        // All of it stays in the cache, so that its length is what a conversation costs.
        let n_bytes = system.as_ref().map_or(0, String::len);
        let too_long = || {
            let message = format!("a system prompt may have {MAX_SYSTEM_TOKENS} tokens");
            ApiError::invalid("messages", message)
        };
        if n_bytes > MAX_SYSTEM_BYTES {
            return Err(too_long());
        }
        let prefill = Prefill::system(&model, system.as_deref())?;
        if prefill.n_tokens() > MAX_SYSTEM_TOKENS {
            return Err(too_long());
        }
        let session = Session::with_pinned(model, encoder, config, &prefill)?;
        Ok((Conversation { session, system, turns: Vec::new() }, prefill))
    }

    /// Reads one chunk of one turn; who reads next takes turns.
    fn read_chunk(&mut self) {
        let n = self.active.len();
        let reads = |active: &Active| active.generation.is_none();
        let Some(at) = (0..n).map(|i| (self.next + i) % n).find(|&i| reads(&self.active[i])) else {
            return;
        };
        self.next = at + 1;
        if let Err(error) = self.active[at].read_chunk() {
            self.fail(at, error);
        }
    }

    /// Takes one step of every stream that generates.
    fn decode(&mut self) {
        let mut ended = Vec::new();
        let mut steps = Vec::new();
        let mut stepping = Vec::new();
        for (at, active) in self.active.iter_mut().enumerate() {
            let Some(generation) = &mut active.generation else { continue };
            match generation.next(&mut active.conversation.session) {
                Ok(Some(token)) => {
                    steps.push(Step { session: &mut active.conversation.session, token });
                    stepping.push(at);
                }
                Ok(None) => ended.push((at, None)),
                Err(error) => ended.push((at, Some(error))),
            }
        }
        let results = append_each(&mut steps, &mut self.workspace);
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
                None => self.finish(at),
            }
        }
    }

    /// Ends an answer, and keeps the conversation for its next turn.
    fn finish(&mut self, at: usize) {
        let Active { mut conversation, generation, events, .. } = self.active.remove(at);
        let Some(generation) = generation else { return };
        let generated = generation.finish(&mut |piece| {
            tell(&events, Event::Text(piece.to_owned()));
            ControlFlow::Continue(())
        });
        let text = generated.text.clone();
        tell(&events, Event::Ended(generated));
        // The client has its answer; what follows is for the next turn.
        match conversation.session.close_answer() {
            Ok(()) => {
                conversation.turns.push(Turn { speaker: Speaker::Assistant, text });
                self.resting.keep(conversation);
            }
            // The conversation will be read again.
            Err(_) => drop(conversation),
        }
    }

    /// A stream of which something could not be read is in a state that nobody knows: it goes, and
    /// the conversation is as it was before.
    fn fail(&mut self, at: usize, error: SessionError) {
        let active = self.active.remove(at);
        self.resting.keep_some(active.before);
        tell(&active.events, Event::Failed(error.into()));
    }
}

impl Active {
    /// Reads one chunk; begins the answer when nothing is left.
    fn read_chunk(&mut self) -> Result<(), SessionError> {
        let session = &mut self.conversation.session;
        let (mut prefill, is_answer) = match self.reading.take() {
            Some(reading) => reading,
            None => match self.to_read.pop_front() {
                Some(ToRead::Past(text)) => (session.begin_past_turn(&text)?, false),
                Some(ToRead::Turn(text)) => (session.begin_turn(&text, &text)?, false),
                Some(ToRead::Answer(text)) => {
                    let tokens = session.encode(&text)?;
                    (Prefill::new(tokens, Origin::turn(Role::Assistant)), true)
                }
                None => return self.begin(),
            },
        };
        let has_more = session.prefill(&mut prefill)?;
        if has_more {
            self.reading = Some((prefill, is_answer));
        } else if is_answer {
            session.close_answer()?;
        } else if self.to_read.is_empty() {
            return self.begin();
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), SessionError> {
        self.generation = Some(Generation::new(self.options.clone())?);
        let session = &self.conversation.session;
        let recalled = session.last_recall().map(|recall| {
            let block = |b: &everstream_runtime::memory::RecalledBlock| Recalled {
                range: (b.part.start.0, b.part.end.0),
                distance: b.distance,
                text: b.block.text().to_owned(),
            };
            recall.blocks.iter().map(block).collect()
        });
        let begun = Begun {
            n_tokens: session.n_tokens(),
            n_known: self.n_known,
            recalled: recalled.unwrap_or_default(),
        };
        tell(&self.events, Event::Begun(begun));
        Ok(())
    }

    /// A token has become part of the stream. A client that is gone ends its answer.
    fn took(&mut self) {
        let Some(generation) = &mut self.generation else { return };
        let events = &self.events;
        generation.took(&self.conversation.session, &mut |piece| match events
            .send(Event::Text(piece.to_owned()))
        {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        });
    }
}

/// Tells a client something; one that is gone need not know.
fn tell(events: &UnboundedSender<Event>, event: Event) {
    let _ = events.send(event);
}
