//! Sessions that survive: what is saved of a stream, when, and how it is resumed.
//!
//! Three things lie in a session's folder. The *blocks* are everything that left the window or
//! will ([`DiskStore`]). The *state* is everything else: the rows of the cache that a later token
//! may see, the open block, the prediction; some tens of megabytes, written every
//! [`SAVE_TOKENS`] tokens and when a chat ends. The *journal* is what happened since the last
//! state: token ids and recall decisions, written before they take effect.
//!
//! A session is resumed by loading the newest state that is whole and replaying the journals since
//! then. Since a row's result depends on neither chunk nor thread, the stream continues with the
//! bits that it would have had. The state before the newest is kept, too, so that one damaged file
//! costs a longer replay and nothing else.

mod journal;
mod maker;
mod state;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use everstream_kv_cache::TokenPos;
use everstream_memory::{
    BlockMeta, BlockStore, DiskOptions, DiskStore, Embedder, Keep, Maker, MemoryError, Recall,
    RecalledBlock, Role, SessionFolder, StoreError,
};
use everstream_model::{Model, Sequence};

use crate::recent::{Recent, SEARCHED_TOKENS};
use crate::session::system_tokens;
use crate::{Origin, Policy, Session, SessionConfig, SessionError};
pub(crate) use journal::{Event, Journal};
use journal::{RecallRef, recall_ref};
pub(crate) use maker::maker;
use state::{Header, State};

pub use state::Geometry;

/// Tokens after which the state is saved: what a crash makes the next start read again.
pub const SAVE_TOKENS: u64 = 8192;

/// Where a session lives.
#[derive(Clone, Debug)]
pub struct Storage {
    /// The session's folder, locked.
    pub folder: Arc<SessionFolder>,
    /// Bytes of stored blocks at most.
    pub max_bytes: Option<u64>,
    /// What stays of more than that.
    pub keep: Keep,
    /// Whether to go on without what was read after a damage to a journal; otherwise that is refused.
    pub accepts_loss: bool,
}

/// How a session came back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resumed {
    /// Tokens that were read again.
    pub n_replayed: u64,
    /// Recalled blocks that could not be read again: they are damaged, forgotten or dropped.
    pub n_lost_blocks: usize,
    /// Blocks that were dropped at this start to keep within [`Storage::max_bytes`].
    pub n_over_limit: usize,
    /// Whether the newest state was damaged and an older one was used.
    pub is_older_state: bool,
    /// Stored blocks of tokens that nothing could read again, and that were forgotten.
    pub n_dropped_blocks: usize,
}

/// The files of a session, without its blocks.
#[derive(Debug)]
pub(crate) struct Saved {
    folder: Arc<SessionFolder>,
    maker: Maker,
    /// Number of the newest state.
    generation: u64,
    /// Number of the newest state that is known to be whole.
    whole: u64,
    pub(crate) journal: Journal,
}

impl Saved {
    /// Writes a state; the journal begins anew.
    fn write(&mut self, header: &Header, state: &State) -> Result<(), SessionError> {
        let next = self.generation + 1;
        // The journal first: a state without one would look like a state that was never left.
        let journal = Journal::create(&journal_path(&self.folder, next))?;
        state::write(&state_path(&self.folder, next), header, state)?;
        let kept = std::mem::replace(&mut self.whole, next);
        (self.generation, self.journal) = (next, journal);
        let journals = numbers(&self.folder, "journal-", journal_path)?;
        for old in generations(&self.folder)?.into_iter().chain(journals).filter(|&old| old < kept)
        {
            for path in [state_path(&self.folder, old), journal_path(&self.folder, old)] {
                if path.exists() {
                    fs_err::remove_file(path)?;
                }
            }
        }
        Ok(())
    }
}

fn state_path(folder: &SessionFolder, generation: u64) -> PathBuf {
    folder.path().join(format!("state-{generation:06}"))
}

fn journal_path(folder: &SessionFolder, generation: u64) -> PathBuf {
    folder.path().join(format!("journal-{generation:06}"))
}

/// Forgets tokens of a session that nobody works with, in its journal: a replay must not write their
/// blocks again. The blocks themselves are the store's.
///
/// # Errors
///
/// [`SessionError::File`].
pub fn log_forgotten(folder: &SessionFolder, range: &Range<TokenPos>) -> Result<(), SessionError> {
    let Some(&newest) = generations(folder)?.last() else { return Ok(()) };
    let newest =
        numbers(folder, "journal-", journal_path)?.last().map_or(newest, |&n| n.max(newest));
    let path = journal_path(folder, newest);
    if path.exists() {
        let read = Journal::read(&path)?;
        if !read.is_whole {
            return Err(SessionError::DamagedJournal { path, at: read.len });
        }
    }
    let mut journal = if path.exists() { Journal::resume(&path)? } else { Journal::create(&path)? };
    journal.append(&Event::Forget(range.clone()))?;
    Ok(journal.sync()?)
}

/// Numbers of the states, oldest first.
fn generations(folder: &SessionFolder) -> Result<Vec<u64>, SessionError> {
    numbers(folder, "state-", state_path)
}

/// The numbers of files that are called so, in their order.
fn numbers(
    folder: &SessionFolder,
    prefix: &str,
    path: fn(&SessionFolder, u64) -> PathBuf,
) -> Result<Vec<u64>, SessionError> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(folder.path())? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(prefix));
        let number = number.and_then(|number| number.parse::<u64>().ok());
        // Other spellings of a number are other files, and not ours.
        found.extend(number.filter(|&n| path(folder, n).file_name() == Some(&name)));
    }
    found.sort_unstable();
    Ok(found)
}

/// What is damaged of a session besides its blocks: states and journals, each with what is wrong.
///
/// # Errors
///
/// [`SessionError::StateVersion`], [`SessionError::File`].
pub fn damaged_files(folder: &SessionFolder) -> Result<Vec<(PathBuf, String)>, SessionError> {
    let mut damaged = Vec::new();
    for generation in generations(folder)? {
        let path = state_path(folder, generation);
        if state::read(&path)?.is_none_or(|(header, state)| !is_sound(&header, &state)) {
            damaged.push((path, "a damaged state".to_owned()));
        }
    }
    for generation in numbers(folder, "journal-", journal_path)? {
        let path = journal_path(folder, generation);
        let read = Journal::read(&path)?;
        if !read.is_whole {
            damaged.push((path, format!("a damaged journal, from byte {} on", read.len)));
        }
    }
    Ok(damaged)
}

/// The settings of the session in `folder` that cannot change; `None` for a new one.
///
/// # Errors
///
/// [`SessionError::StateVersion`], [`SessionError::File`].
pub fn saved_geometry(folder: &SessionFolder) -> Result<Option<Geometry>, SessionError> {
    for generation in generations(folder)?.into_iter().rev() {
        if let Some(header) = state::read_header(&state_path(folder, generation))? {
            return Ok(Some(header.geometry));
        }
    }
    Ok(None)
}

impl Session {
    /// A stream that lives in a folder: a new one, or the one that is there, which continues bit
    /// for bit as if it had never stopped.
    ///
    /// # Errors
    ///
    /// [`SessionError::Geometry`] if settings differ from those that it was made with (see
    /// [`saved_geometry`]); [`SessionError::Memory`] with [`StoreError::Maker`] if another model
    /// made it; [`SessionError::LostState`] if no state can be read; others as [`Session::new`].
    pub fn open(
        model: Arc<Model>,
        embedder: Arc<dyn Embedder>,
        config: SessionConfig,
        storage: &Storage,
    ) -> Result<Self, SessionError> {
        if config.policy != Policy::Remember {
            return Err(SessionError::NotSaved { policy: config.policy });
        }
        let config = SessionConfig { name: storage.folder.name().to_owned(), ..config };
        let footprint = config.footprint(model.config())?;
        footprint.check_room()?;
        // All rows, the newest tokens and the prediction go into one record.
        let bytes =
            footprint.bytes() + 8 * model.config().vocab_size as u64 + 4 * SEARCHED_TOKENS as u64;
        if u32::try_from(bytes).is_err() {
            return Err(SessionError::StateTooLarge { bytes });
        }
        let maker = maker(&model);
        let found = find(&storage.folder)?;
        let options = DiskOptions {
            maker: Some(maker.clone()),
            encoder: Some(embedder.name()),
            max_bytes: storage.max_bytes,
            keep: storage.keep,
            ..DiskOptions::default()
        };
        if let Some(found) = &found
            && let Some(difference) = maker.difference(&found.header.maker)
        {
            let (session, found) = (config.name, found.header.maker.model.clone());
            return Err(StoreError::Maker { session, found, difference }.into());
        }
        let open_store = || DiskStore::open(Arc::clone(&storage.folder), options.clone());
        let Some(found) = found else {
            let store = open_store()?;
            if !store.metas().is_empty() {
                return Err(SessionError::LostState { session: config.name });
            }
            let mut session = Self::with_store(model, embedder, config, Box::new(store))?;
            session.begin_saving(storage, maker, None)?;
            return Ok(session);
        };
        found.header.geometry.check(&Geometry::of(&config))?;
        // Where a power failure or damage cut the journal short, blocks may lie in the store of
        // tokens that it lacks, or that end elsewhere. They are written again.
        let mut end = TokenPos(found.n_tokens_after_replay());
        let (mut n_dropped, mut n_over_limit) = (None, 0);
        let mut session = loop {
            let mut store = open_store()?;
            n_over_limit += store.n_dropped();
            // Those that are cut off later are written again.
            let n_beyond = *n_dropped.get_or_insert_with(|| {
                let beyond = |meta: &&BlockMeta| meta.range.start >= end && !meta.is_forgotten;
                store.metas().iter().filter(beyond).count()
            });
            if let Some(broken) = &found.broken
                && !storage.accepts_loss
                && (broken.has_more || n_beyond > 0)
            {
                return Err(SessionError::BrokenJournal {
                    session: config.name,
                    path: broken.path.clone(),
                    at: broken.at,
                    n_tokens: end.0,
                    n_blocks: n_beyond,
                });
            }
            store.truncate(end)?;
            // Blocks are named after the folder that they were first stored in.
            let config = SessionConfig { name: store.session().to_owned(), ..config.clone() };
            let (model, embedder) = (Arc::clone(&model), Arc::clone(&embedder));
            let mut session = Self::with_store(model, embedder, config, Box::new(store))?;
            match session.resume(&found) {
                Ok(()) => match session.first_surplus_block() {
                    None => break session,
                    Some(start) => end = start,
                },
                Err(SessionError::Memory(MemoryError::Store(StoreError::OutOfOrder {
                    start,
                    ..
                }))) if start < end.0 => end = TokenPos(start),
                Err(error) => return Err(error),
            }
        };
        if let Some(resumed) = &mut session.resumed {
            resumed.n_dropped_blocks = n_dropped.unwrap_or(0);
            resumed.n_over_limit = n_over_limit;
        }
        if let Some(broken) = &found.broken {
            // What was given up does not come back, should an older state be needed.
            let journals = numbers(&storage.folder, "journal-", journal_path)?;
            for number in journals.into_iter().filter(|&number| number >= broken.number) {
                let path = journal_path(&storage.folder, number);
                match number == broken.number {
                    true => drop(Journal::resume(&path)?),
                    false => drop(Journal::create(&path)?),
                }
            }
        }
        session.begin_saving(storage, maker, Some(&found))?;
        let is_whole = |(closing, n): (Vec<u32>, usize)| n > 0 && n == closing.len();
        if session.awaits_answer && session.closing().is_ok_and(is_whole) {
            // Only the end of its turn was not noted any more.
            session.end_turn()?;
        }
        Ok(session)
    }

    /// As [`Session::open`]; a new stream begins with the model's system turn, pinned as in
    /// [`Session::with_system`]. One that exists keeps the turn that it began with.
    ///
    /// # Errors
    ///
    /// As [`Session::open`], and if the template refuses a system turn.
    pub fn open_with_system(
        model: Arc<Model>,
        embedder: Arc<dyn Embedder>,
        mut config: SessionConfig,
        storage: &Storage,
        system: Option<&str>,
    ) -> Result<Self, SessionError> {
        let tokens = system_tokens(&model, system)?;
        if saved_geometry(&storage.folder)?.is_none() {
            config.n_sink = config.n_sink.max(tokens.len());
        }
        let mut session = Self::open(model, embedder, config, storage)?;
        if session.n_tokens == 0 {
            session.append(&tokens, Origin::turn(Role::System))?;
        }
        Ok(session)
    }

    /// Loads a state and does again what was done since.
    fn resume(&mut self, found: &FoundState) -> Result<(), SessionError> {
        let mut resumed = Resumed { is_older_state: found.is_older, ..Resumed::default() };
        self.load(&found.state, &mut resumed)?;
        let mut events = &found.events[..];
        while let Some(event) = events.first() {
            let steps: Vec<_> = events.iter().map_while(Event::decode_step).collect();
            match steps.len() {
                0 | 1 => self.replay(event, &mut resumed)?,
                n => {
                    resumed.n_replayed += n as u64;
                    self.read_steps(&steps)?;
                }
            }
            events = &events[steps.len().max(1)..];
        }
        self.settle()?;
        // Blocks that were forgotten by another program, or before a replay wrote them again.
        for event in &found.events {
            if let (Event::Forget(range), Some(recorder)) = (event, &mut self.recorder) {
                recorder.memory.forget(range)?;
            }
        }
        self.predict()?;
        self.resumed = Some(resumed);
        Ok(())
    }

    /// Where the first stored block begins that holds tokens which are still open.
    fn first_surplus_block(&self) -> Option<TokenPos> {
        let recorder = self.recorder.as_ref()?;
        let (first_open, _) = recorder.open_tokens();
        let metas = recorder.memory.metas();
        let at = metas.partition_point(|meta| meta.range.end <= first_open);
        metas.get(at).map(|meta| meta.range.start)
    }

    /// How the session came back; `None` for a new one.
    #[must_use]
    pub fn resumed(&self) -> Option<Resumed> {
        self.resumed
    }

    /// Saves everything, so that the next start replays nothing and a power failure loses nothing.
    /// A session in RAM has nothing to save.
    ///
    /// # Errors
    ///
    /// [`SessionError`]; what was saved before is as it was.
    pub fn save(&mut self) -> Result<(), SessionError> {
        match &self.saved {
            Some(saved) if !saved.journal.is_empty() => self.save_state(),
            // Nothing happened since the last time.
            _ => Ok(()),
        }
    }

    fn save_state(&mut self) -> Result<(), SessionError> {
        self.settle()?;
        self.predict()?;
        if let Some(recorder) = &mut self.recorder {
            recorder.memory.sync()?;
        }
        let state = self.state();
        let Some(saved) = &mut self.saved else { return Ok(()) };
        let header = Header {
            maker: saved.maker.clone(),
            geometry: Geometry::of(&self.config),
            n_tokens: self.n_tokens,
        };
        saved.write(&header, &state)
    }

    /// Saves if so many tokens were read since the last time that replaying them would take long.
    pub(crate) fn save_if_due(&mut self) -> Result<(), SessionError> {
        match &self.saved {
            Some(saved) if saved.journal.n_tokens >= SAVE_TOKENS => self.save(),
            _ => Ok(()),
        }
    }

    /// Makes what was read survive a power failure.
    pub(crate) fn sync(&mut self) -> Result<(), SessionError> {
        if let Some(saved) = &self.saved {
            saved.journal.sync()?;
            if let Some(recorder) = &mut self.recorder {
                recorder.memory.sync()?;
            }
        }
        Ok(())
    }

    /// Writes down what is about to happen; returns where that begins in the journal.
    pub(crate) fn log(&mut self, event: impl FnOnce() -> Event) -> Result<u64, SessionError> {
        match &mut self.saved {
            Some(saved) => Ok(saved.journal.append(&event())?),
            None => Ok(0),
        }
    }

    fn begin_saving(
        &mut self,
        storage: &Storage,
        maker: Maker,
        found: Option<&FoundState>,
    ) -> Result<(), SessionError> {
        let folder = Arc::clone(&storage.folder);
        let (generation, whole) = found.map_or((0, 0), |found| (found.newest, found.generation));
        // Nothing happened since the newest state: it need not be written again.
        let path = journal_path(&folder, generation);
        let is_saved = found.is_some_and(|found| found.generation == found.newest)
            && path.exists()
            && fs_err::metadata(&path)?.len() == 0;
        let path = if is_saved { path } else { journal_path(&folder, generation + 1) };
        let journal = Journal::create(&path)?;
        self.saved = Some(Saved { folder, maker, generation, whole, journal });
        if is_saved { Ok(()) } else { self.save_state() }
    }

    fn state(&self) -> State {
        let mut rows = Vec::new();
        self.cache.save_rows(&mut rows);
        let (first_open, open) = match &self.recorder {
            Some(recorder) => recorder.open_tokens(),
            None => (TokenPos(self.n_tokens), Vec::new()),
        };
        State {
            timeline: self.cache.timeline().state(),
            awaits_answer: self.awaits_answer,
            last_turn: self.last_turn,
            documents: self.documents.clone(),
            reading: self.reading,
            recent: self.recent.newest(SEARCHED_TOKENS).to_vec(),
            logits: self.logits.clone(),
            first_open,
            open,
            recalled: self.last_recall.as_ref().map(recall_ref),
            pins: self.pins.clone(),
            recalled_at: self.recalled_at,
            recalled_as: self.recalled_as,
            rows,
        }
    }

    fn load(&mut self, state: &State, resumed: &mut Resumed) -> Result<(), SessionError> {
        self.cache.restore(&state.timeline, &state.rows)?;
        self.n_tokens = state.timeline.next.0;
        self.recent = Recent::new(&state.recent);
        self.logits.clone_from(&state.logits);
        self.awaits_answer = state.awaits_answer;
        self.last_turn = state.last_turn;
        self.pins.clone_from(&state.pins);
        self.documents.clone_from(&state.documents);
        self.reading = state.reading;
        (self.recalled_at, self.recalled_as) = (state.recalled_at, state.recalled_as);
        let recalled = state.recalled.as_ref();
        self.last_recall = recalled.map(|r| self.recall_of(r, resumed)).transpose()?;
        if let Some(recorder) = &mut self.recorder {
            recorder.restore(state.first_open, &state.open, self.model.tokenizer());
        }
        Ok(())
    }

    /// Does again what was done.
    fn replay(&mut self, event: &Event, resumed: &mut Resumed) -> Result<(), SessionError> {
        match event {
            Event::Tokens { tokens, starts, origin } => {
                resumed.n_replayed += tokens.len() as u64;
                self.read_all(tokens, starts, origin.clone(), None)
            }
            Event::Recall(how, recalled) => {
                self.settle()?;
                let recall = self.recall_of(recalled, resumed)?;
                self.insert_as(*how, recall)
            }
            Event::EndRecall => {
                self.end_recall();
                Ok(())
            }
            Event::BeginAnswer => {
                self.note_turn();
                Ok(())
            }
            Event::EndTurn => self.end_turn(),
            Event::Document(digest) => self.begin_document(*digest),
            Event::Forget(range) => self.forget(range).map(drop),
            Event::Pin(text) => {
                self.pins.push(text.clone());
                Ok(())
            }
            Event::Unpin(number) => self.unpin(*number).map(drop),
        }
    }

    /// Reads tokens again that were generated one by one, in as few passes over the weights as the
    /// cache allows: a row's result does not depend on the rows beside it.
    fn read_steps(&mut self, steps: &[(u32, &Origin)]) -> Result<(), SessionError> {
        let mut rest = steps;
        while !rest.is_empty() {
            self.settle()?;
            if let Some(recorder) = &mut self.recorder {
                recorder.keep_pace()?;
            }
            let (chunk, later) = rest.split_at(self.next_chunk(rest.len()));
            let tokens: Vec<u32> = chunk.iter().map(|&(token, _)| token).collect();
            let sequence = Sequence::new(&tokens, &mut self.cache);
            self.model.forward(&mut self.workspace, &mut [sequence])?;
            self.keep_newest(&tokens);
            for &(token, origin) in chunk {
                let first = TokenPos(self.n_tokens);
                self.count(&[token], origin);
                self.record(&[token], first, &mut origin.clone());
            }
            rest = later;
        }
        Ok(())
    }

    fn recall_of(
        &self,
        recalled: &RecallRef,
        resumed: &mut Resumed,
    ) -> Result<Recall, SessionError> {
        let mut recall = Recall::default();
        let Some(recorder) = &self.recorder else { return Ok(recall) };
        recall.texts.clone_from(&recalled.texts);
        for of in &recalled.blocks {
            match recorder.memory.block_by_id(of.id) {
                Ok(block)
                    if of.part.start >= block.range().start
                        && of.part.start <= of.part.end
                        && of.part.end <= block.range().end =>
                {
                    let mut block = RecalledBlock::whole(block, of.distance);
                    block.part = of.part.clone();
                    recall.blocks.push(block);
                }
                Ok(_)
                | Err(MemoryError::Store(
                    StoreError::Damaged { .. }
                    | StoreError::Forgotten { .. }
                    | StoreError::NoSuchBlock { .. },
                )) => resumed.n_lost_blocks += 1,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(recall)
    }
}

/// The newest state that is whole, and what happened since.
struct FoundState {
    header: Header,
    state: State,
    events: Vec<Event>,
    is_older: bool,
    /// Its number.
    generation: u64,
    /// Number of the newest state or journal, whole or not.
    newest: u64,
    /// The journal that cannot be read to its end; `events` end there.
    broken: Option<Broken>,
}

/// A journal that is damaged or missing.
struct Broken {
    path: PathBuf,
    number: u64,
    /// The first byte that cannot be read.
    at: u64,
    /// Whether more was read by the session than the journals up to there say.
    has_more: bool,
}

impl FoundState {
    fn n_tokens_after_replay(&self) -> u64 {
        let read = |event: &Event| match event {
            Event::Tokens { tokens, .. } => tokens.len() as u64,
            _ => 0,
        };
        self.header.n_tokens.saturating_add(self.events.iter().map(read).sum::<u64>())
    }
}

/// `None` for a session that was never saved.
fn find(folder: &SessionFolder) -> Result<Option<FoundState>, SessionError> {
    let generations = generations(folder)?;
    // A state that is gone leaves its journal.
    let journals = numbers(folder, "journal-", journal_path)?;
    let is_filled = |number: u64| -> Result<bool, SessionError> {
        let path = journal_path(folder, number);
        Ok(path.exists() && fs_err::metadata(path)?.len() > 0)
    };
    let Some(&newest_state) = generations.last() else {
        for number in journals {
            if is_filled(number)? {
                return Err(SessionError::LostState { session: folder.name().to_owned() });
            }
        }
        return Ok(None);
    };
    let newest = journals.last().map_or(newest_state, |&newest| newest.max(newest_state));
    for &generation in generations.iter().rev() {
        let read = state::read(&state_path(folder, generation))?;
        if let Some((header, state)) = read.filter(|(header, state)| is_sound(header, state)) {
            let (mut events, mut broken) = (Vec::new(), None);
            for number in generation..=newest {
                let path = journal_path(folder, number);
                // A state is written behind its journal, so there is one.
                let read = if path.exists() { Some(Journal::read(&path)?) } else { None };
                let (at, is_whole, has_more) =
                    read.as_ref().map_or((0, false, false), |r| (r.len, r.is_whole, r.has_more));
                events.extend(read.into_iter().flat_map(|read| read.events));
                if !is_whole {
                    // What comes later belongs to another stream than this one would be.
                    let mut has_more = has_more;
                    for later in number + 1..=newest {
                        has_more |= is_filled(later)?;
                    }
                    broken = Some(Broken { path, number, at, has_more });
                    break;
                }
            }
            let is_older = generation != newest_state;
            let found = FoundState { header, state, events, is_older, generation, newest, broken };
            return Ok(Some(found));
        }
    }
    Err(SessionError::LostState { session: folder.name().to_owned() })
}

/// Whether a state can be gone on from.
fn is_sound(header: &Header, state: &State) -> bool {
    let next = state.timeline.next;
    let first = TokenPos(header.geometry.n_sink as u64);
    header.n_tokens == next.0 && state.first_open <= next.max(first)
}

impl Origin {
    /// Says when the tokens were read, if nobody did.
    pub(crate) fn stamp(&mut self) {
        self.written_at.get_or_insert_with(std::time::SystemTime::now);
    }
}
