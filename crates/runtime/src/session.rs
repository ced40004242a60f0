//! One endless stream: read, evict, remember, recall, continue.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::ingest::DocumentProgress;
use crate::recent::{Recent, SEARCHED_TOKENS};
use crate::recorder::Recorder;
use crate::saved::{Event, Resumed, Saved};
use crate::together::{Ahead, Drafts};
use crate::{Insertion, Origin, Policy, Prefill, SessionConfig, SessionError};
use everstream_kv_cache::{
    CacheError, ClusterConfig, ClusterPlace, KvCache, RawKeys, Sections, TokenPos,
};
use everstream_memory::{
    BlockStore, Embedder, KvShape, Memory, MemoryConfig, MemoryError, RamStore, Recall,
    RecalledBlock, Role,
};
use everstream_model::{Model, Sequence, SpecialTokens, TurnText, Workspace};

/// Tokens of a query when a turn has no words of its own; what stands before so many tokens of a prompt's
/// end is recalled in front of that end ([`Session::read_prompt`]).
pub const QUERY_TOKENS: usize = 64;
/// Rows whose logits are computed at once when every token is scored.
const SCORED_ROWS: usize = 32;

/// Sees the logits after a token: its position, and the prediction of the next one.
pub type Observer<'a> = dyn FnMut(TokenPos, &[f32]) + 'a;

/// A stream with its cache and its memory.
#[derive(Debug)]
pub struct Session {
    pub(crate) model: Arc<Model>,
    pub(crate) config: SessionConfig,
    pub(crate) cache: KvCache,
    pub(crate) recorder: Option<Recorder>,
    pub(crate) workspace: Workspace,
    /// The newest tokens: what `recompute` computes again, what a blank turn asks for, and where
    /// what may follow is looked up.
    pub(crate) recent: Recent,
    /// Prediction of the token after the newest one; empty at the start.
    pub(crate) logits: Vec<f32>,
    /// What may come next, computed already.
    pub(crate) ahead: Ahead,
    pub(crate) drafts: Drafts,
    pub(crate) n_tokens: u64,
    /// Why the last turn recalled what it did.
    pub(crate) last_recall: Option<Recall>,
    /// Length of the stream when it was put into the cache.
    pub(crate) recalled_at: u64,
    /// And with which keys and values.
    pub(crate) recalled_as: Insertion,
    /// Texts that are in every recall.
    pub(crate) pins: Vec<String>,
    /// Whether the model's turn has begun and not ended.
    pub(crate) awaits_answer: bool,
    /// Where the newest turn began, unless a document was read since: the next may go on with it.
    pub(crate) last_turn: Option<TokenPos>,
    /// How far each document was read.
    pub(crate) documents: Vec<DocumentProgress>,
    /// The document that is being read.
    pub(crate) reading: Option<usize>,
    /// Where the session is saved, if it is.
    pub(crate) saved: Option<Saved>,
    pub(crate) resumed: Option<Resumed>,
    pub(crate) timings: Timings,
}

/// Where a session's time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// In the forward pass.
    pub forward: Duration,
    /// Copying, embedding and indexing blocks.
    pub remember: Duration,
    /// Searching, and putting keys and values back.
    pub recall: Duration,
}

impl Session {
    /// An empty stream. `embedder` is what `remember` finds text with; other policies ignore it.
    ///
    /// # Errors
    ///
    /// [`SessionError`] for settings out of range, or `remember` without an embedder.
    pub fn new(
        model: Arc<Model>,
        embedder: Option<Arc<dyn Embedder>>,
        config: SessionConfig,
    ) -> Result<Self, SessionError> {
        config.footprint(model.config())?.check_room()?;
        config.check_reach(model.config())?;
        let memory = match (config.policy, embedder) {
            (Policy::Remember, None) => return Err(SessionError::NoEmbedder),
            (Policy::Remember, Some(embedder)) => {
                Some(memory(&model, embedder, &config, Box::new(RamStore::new()))?)
            }
            _ => None,
        };
        Self::with_memory(model, config, memory)
    }

    /// An empty stream over a store, whose blocks it may recall.
    pub(crate) fn with_store(
        model: Arc<Model>,
        embedder: Arc<dyn Embedder>,
        config: SessionConfig,
        store: Box<dyn BlockStore>,
    ) -> Result<Self, SessionError> {
        let memory = memory(&model, embedder, &config, store)?;
        Self::with_memory(model, config, Some(memory))
    }

    fn with_memory(
        model: Arc<Model>,
        config: SessionConfig,
        memory: Option<Memory>,
    ) -> Result<Self, SessionError> {
        let recall_tokens = config.recall_capacity();
        let mut cache_config =
            model.cache_config(config.eviction(), recall_tokens, config.chunk_tokens);
        cache_config.kv_type = config.kv_type;
        if let Some(clusters) = config.clusters {
            let reach_tokens = clusters.reach_tokens.min(model.config().context_length);
            cache_config.clusters = Some(ClusterConfig { reach_tokens, ..clusters });
            cache_config.raw_keys = RawKeys::Keep;
        }
        let cache = KvCache::new(&cache_config)?;
        let pinned = TokenPos(config.pinned() as u64);
        let recorder =
            memory.map(|memory| Recorder::new(memory, pinned, shape(&model), config.memory_type));
        Ok(Self {
            model,
            config,
            cache,
            recorder,
            workspace: Workspace::default(),
            recent: Recent::new(&[]),
            logits: Vec::new(),
            ahead: Ahead::default(),
            drafts: Drafts::default(),
            n_tokens: 0,
            last_recall: None,
            recalled_at: 0,
            recalled_as: Insertion::Kv,
            pins: Vec::new(),
            awaits_answer: false,
            last_turn: None,
            documents: Vec::new(),
            reading: None,
            saved: None,
            resumed: None,
            timings: Timings::default(),
        })
    }

    /// A stream that begins with the model's system turn, pinned: all its tokens are sinks.
    ///
    /// # Errors
    ///
    /// As [`Session::new`], and if the template refuses a system turn.
    pub fn with_system(
        model: Arc<Model>,
        embedder: Option<Arc<dyn Embedder>>,
        config: SessionConfig,
        system: Option<&str>,
    ) -> Result<Self, SessionError> {
        let mut prefill = Prefill::system(&model, system)?;
        let mut session = Self::with_pinned(model, embedder, config, &prefill)?;
        while session.prefill(&mut prefill)? {}
        Ok(session)
    }

    /// An empty stream whose first tokens, which are still to be read by [`Session::prefill`], will all
    /// be sinks.
    ///
    /// # Errors
    ///
    /// As [`Session::new`].
    pub fn with_pinned(
        model: Arc<Model>,
        embedder: Option<Arc<dyn Embedder>>,
        mut config: SessionConfig,
        first: &Prefill,
    ) -> Result<Self, SessionError> {
        let takes_sinks = config.clusters.is_some_and(|c| c.place == ClusterPlace::Sinks);
        if takes_sinks && first.n_tokens() > config.n_sink {
            let rule = format!("at most the {} sinks, whose place clusters take", config.n_sink);
            let (what, value) = ("the pinned prompt", first.n_tokens());
            return Err(SessionError::Setting { what, value, rule });
        }
        config.n_sink = config.n_sink.max(first.n_tokens());
        Self::new(model, embedder, config)
    }

    /// Reads a text that the model is to continue. What has left the window by then and is relevant
    /// to the end of the text is recalled in front of that end.
    ///
    /// # Errors
    ///
    /// As [`Session::append`].
    pub fn read_prompt(&mut self, tokens: &[u32], origin: Origin) -> Result<(), SessionError> {
        self.end_document()?;
        // Nothing can be recalled before the sinks are filled.
        let n_sink = self.config.pinned().saturating_sub(self.n_tokens as usize);
        let n_begin = tokens.len().saturating_sub(QUERY_TOKENS).max(n_sink).min(tokens.len());
        let (begin, end) = tokens.split_at(n_begin);
        let mut end_origin = origin.clone();
        begin.iter().for_each(|&id| end_origin.move_past(self.model.tokenizer().token_bytes(id)));
        self.append(begin, origin)?;
        let query = self.text_of(&tokens[tokens.len().saturating_sub(QUERY_TOKENS)..]);
        self.recall_beside_window(&query)?;
        self.append(end, end_origin)
    }

    /// Begins an empty stream with the token that the model expects there, if it expects one; chat
    /// templates write it themselves.
    ///
    /// # Errors
    ///
    /// As [`Session::append`].
    pub fn begin(&mut self) -> Result<(), SessionError> {
        match self.model.tokenizer().first_token() {
            Some(bos) if self.n_tokens() == 0 => self.append(&[bos], Origin::turn(Role::Document)),
            _ => Ok(()),
        }
    }

    /// Appends tokens to the stream and predicts what follows.
    ///
    /// # Errors
    ///
    /// [`SessionError`]; tokens before the chunk that failed stay in the stream, as
    /// [`Session::n_tokens`] says, and the prediction is what follows them.
    pub fn append(&mut self, tokens: &[u32], origin: Origin) -> Result<(), SessionError> {
        let read = self.read_all(tokens, &[], origin, None);
        self.predict_after(read)
    }

    /// As [`Session::append`], showing the prediction after every token.
    ///
    /// # Errors
    ///
    /// As [`Session::append`].
    pub fn append_observed(
        &mut self,
        tokens: &[u32],
        origin: Origin,
        observer: &mut Observer<'_>,
    ) -> Result<(), SessionError> {
        let read = self.read_all(tokens, &[], origin, Some(observer));
        // Whoever observes has the last prediction made already.
        if read.is_ok() { read } else { self.predict_after(read) }
    }

    /// Lets tokens pass through the window of `recompute`, which computes nothing for them.
    pub(crate) fn pass(&mut self, tokens: &[u32]) {
        debug_assert_eq!(self.config.policy, Policy::Recompute);
        self.recent.push(tokens, self.recomputed_tokens());
        self.n_tokens += tokens.len() as u64;
    }

    /// The prediction of the next token: `[vocab_size]`, empty if nothing was read.
    #[must_use]
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Closes the block of a turn that has ended, and embeds what waits.
    ///
    /// # Errors
    ///
    /// [`SessionError::Memory`].
    pub fn end_turn(&mut self) -> Result<(), SessionError> {
        self.log(|| Event::EndTurn)?;
        (self.awaits_answer, self.reading) = (false, None);
        self.ahead = Ahead::default();
        if self.sections().recalled == 0 {
            // What follows a document sees all of its end again.
            self.cache.hide_before(TokenPos(0));
        }
        let Some(recorder) = &mut self.recorder else { return Ok(()) };
        recorder.end_turn();
        recorder.settle(self.model.tokenizer(), &self.cache)?;
        recorder.embed()?;
        self.sync()
    }

    /// Forgets all blocks with tokens in `range`, and ends a recall that holds one of them. Returns
    /// the ranges of the blocks. What is still in the window stays there until it leaves, and is in
    /// no block then.
    ///
    /// # Errors
    ///
    /// [`SessionError`].
    pub fn forget(
        &mut self,
        range: &Range<TokenPos>,
    ) -> Result<Vec<Range<TokenPos>>, SessionError> {
        self.settle()?;
        self.log(|| Event::Forget(range.clone()))?;
        let Some(recorder) = &mut self.recorder else { return Ok(Vec::new()) };
        let forgotten = recorder.memory.forget(range)?;
        if let Some(end) = forgotten.iter().map(|range| range.end).max() {
            // Nor is it quoted, or kept as token ids.
            self.recent.forget_before(TokenPos(self.n_tokens).since(end));
        }
        let is_forgotten = |block: &RecalledBlock| forgotten.contains(&block.block.range());
        if self.last_recall.as_ref().is_some_and(|recall| recall.blocks.iter().any(is_forgotten)) {
            self.end_recall();
        }
        self.save()?;
        Ok(forgotten)
    }

    /// Stores all blocks that are complete.
    pub(crate) fn settle(&mut self) -> Result<(), SessionError> {
        match &mut self.recorder {
            Some(recorder) => recorder.settle(self.model.tokenizer(), &self.cache),
            None => Ok(()),
        }
    }

    /// A stream with the same past that goes its own way from here. It is not saved, wherever the
    /// original is.
    ///
    /// # Errors
    ///
    /// [`SessionError::Memory`] if the memory cannot be shared.
    pub fn branch(&self) -> Result<Self, SessionError> {
        Ok(Self {
            model: Arc::clone(&self.model),
            config: self.config.clone(),
            cache: self.cache.clone(),
            recorder: self.recorder.as_ref().map(Recorder::branch).transpose()?,
            workspace: Workspace::default(),
            recent: self.recent.clone(),
            logits: self.logits.clone(),
            ahead: Ahead::default(),
            drafts: self.drafts,
            n_tokens: self.n_tokens,
            last_recall: self.last_recall.clone(),
            recalled_at: self.recalled_at,
            recalled_as: self.recalled_as,
            pins: self.pins.clone(),
            awaits_answer: self.awaits_answer,
            last_turn: self.last_turn,
            documents: self.documents.clone(),
            reading: self.reading,
            saved: None,
            resumed: None,
            timings: self.timings,
        })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &SessionConfig {
        &self.config
    }

    /// Tokens read so far.
    #[must_use]
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// Tokens in the cache, by section.
    #[must_use]
    pub fn sections(&self) -> Sections {
        self.cache.sections()
    }

    /// What has left the window.
    #[must_use]
    pub fn evicted(&self) -> Range<TokenPos> {
        self.cache.timeline().evicted()
    }

    /// Bytes of the cache: rotated keys and values, and un-rotated keys.
    #[must_use]
    pub fn cache_bytes(&self) -> (usize, usize) {
        self.cache.bytes()
    }

    /// The memory, if the policy has one.
    #[must_use]
    pub fn memory(&self) -> Option<&Memory> {
        self.recorder.as_ref().map(|r| &r.memory)
    }

    /// Where the time went.
    #[must_use]
    pub fn timings(&self) -> Timings {
        let remember = self.recorder.as_ref().map_or(Duration::ZERO, |r| r.elapsed);
        Timings { remember, ..self.timings }
    }

    /// The tokens of a text, without special tokens.
    ///
    /// # Errors
    ///
    /// [`SessionError::MissingByte`] for text that the vocabulary cannot represent.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, SessionError> {
        encode(&self.model, text)
    }

    /// The tokens of a user's turn in the model's template, and which of them are the user's words.
    ///
    /// # Errors
    ///
    /// As [`Session::encode`], and if the template refuses the turn.
    pub fn encode_user_turn(&self, text: &str) -> Result<(Vec<u32>, Origin), SessionError> {
        let turn = self.model.template().user_turn(text)?;
        let tokens = encode_turn(&self.model, &turn)?;
        let (quoted, mut end, mut words) = (turn.quoted(), 0, 0..0);
        for (i, &id) in tokens.iter().enumerate() {
            let start = end;
            end += self.model.tokenizer().token_bytes(id).len();
            if start < quoted.end && end > quoted.start {
                words = if words.is_empty() { i..i + 1 } else { words.start..i + 1 };
            }
        }
        Ok((tokens, Origin::turn(Role::User).with_words(words)))
    }

    pub(crate) fn read_all(
        &mut self,
        tokens: &[u32],
        starts: &[usize],
        mut origin: Origin,
        mut observer: Option<&mut Observer<'_>>,
    ) -> Result<(), SessionError> {
        self.check_dense(tokens.len())?;
        let mut n_read = 0;
        while n_read < tokens.len() {
            let range = n_read..n_read + self.next_chunk(tokens.len() - n_read);
            n_read = range.end;
            let starts = within(starts, &range);
            self.read_chunk(&tokens[range], &starts, &mut origin, observer.as_deref_mut())?;
        }
        Ok(())
    }

    /// Whether a dense cache has no room for another token.
    pub(crate) fn is_full(&self) -> bool {
        self.check_dense(1).is_err()
    }

    /// Refuses at once what would fill a dense cache after minutes.
    pub(crate) fn check_dense(&self, n_new: usize) -> Result<(), SessionError> {
        let (n_tokens, capacity) = (self.n_tokens + n_new as u64, self.config.max_tokens);
        if self.config.policy == Policy::Dense && n_tokens > capacity as u64 {
            return Err(CacheError::Full { n_tokens, capacity }.into());
        }
        Ok(())
    }

    pub(crate) fn next_chunk(&self, n_tokens: usize) -> usize {
        match self.config.policy {
            Policy::Recompute => 1,
            _ => self.cache.timeline().next_chunk(n_tokens),
        }
    }

    /// Runs one chunk through the model and records it. The tokens of number `starts` see nothing of
    /// the window before them.
    pub(crate) fn read_chunk(
        &mut self,
        tokens: &[u32],
        starts: &[usize],
        origin: &mut Origin,
        observer: Option<&mut Observer<'_>>,
    ) -> Result<(), SessionError> {
        let logged = self.before_chunk(tokens, starts, origin)?;
        let start = Instant::now();
        let first = TokenPos(self.n_tokens);
        if self.config.policy == Policy::Recompute {
            self.model.check_tokens(tokens)?;
            self.recent.push(tokens, self.recomputed_tokens());
            if observer.is_some() {
                self.recompute()?;
            }
        } else {
            let starts: Vec<TokenPos> = starts.iter().map(|&i| first.after(i)).collect();
            let sequence = Sequence::new(tokens, &mut self.cache).with_starts(&starts);
            if let Err(error) = self.model.forward(&mut self.workspace, &mut [sequence]) {
                self.undo_chunk(tokens, logged)?;
                return Err(error.into());
            }
            self.keep_newest(tokens);
        }
        self.count(tokens, origin);
        if let Some(observer) = observer {
            self.observe(first, tokens.len(), observer);
        }
        self.timings.forward += start.elapsed();
        self.record(tokens, first, origin);
        Ok(())
    }

    /// Stores what is complete, and logs the tokens that are about to be read.
    pub(crate) fn before_chunk(
        &mut self,
        tokens: &[u32],
        starts: &[usize],
        origin: &mut Origin,
    ) -> Result<u64, SessionError> {
        // What is complete is stored before more is read: if that fails, nothing was read, and no
        // block outlives its rows in the cache. No decode step waits for the encoder.
        self.settle()?;
        if let Some(recorder) = &mut self.recorder
            && tokens.len() > 1
        {
            recorder.keep_pace()?;
        }
        self.save_if_due()?;
        origin.stamp();
        self.log(|| Event::tokens(tokens, starts, origin))
    }

    /// Takes back what [`before_chunk`](Self::before_chunk) logged.
    pub(crate) fn undo_chunk(&mut self, tokens: &[u32], logged: u64) -> Result<(), SessionError> {
        if let Some(saved) = &mut self.saved {
            saved.journal.undo(logged, tokens.len())?;
        }
        Ok(())
    }

    /// The cache has taken these tokens.
    pub(crate) fn count(&mut self, tokens: &[u32], origin: &Origin) {
        self.n_tokens += tokens.len() as u64;
        if origin.role == Role::Document {
            self.last_turn = None;
        }
        if let Some(document) = self.reading.and_then(|i| self.documents.get_mut(i)) {
            document.n_read += tokens.len() as u64;
        }
    }

    /// Hands tokens that were read from `first` on to the recorder, but for those that stay.
    pub(crate) fn record(&mut self, tokens: &[u32], first: TokenPos, origin: &mut Origin) {
        let Some(recorder) = &mut self.recorder else { return };
        let n_pinned = TokenPos(self.config.pinned() as u64).since(first).min(tokens.len());
        let (pinned, tokens) = tokens.split_at(n_pinned);
        let tokenizer = self.model.tokenizer();
        pinned.iter().for_each(|&id| origin.move_past(tokenizer.token_bytes(id)));
        recorder.read(tokens, tokenizer, origin);
    }

    fn observe(&mut self, first: TokenPos, n_rows: usize, observer: &mut Observer<'_>) {
        // The rows of `recompute` are the whole window, of which only the last is new.
        let last_row = match self.config.policy {
            Policy::Recompute => self.recent.newest(self.recomputed_tokens()).len() - 1,
            _ => n_rows - 1,
        };
        let vocab_size = self.model.config().vocab_size;
        for from in (0..n_rows).step_by(SCORED_ROWS) {
            let to = n_rows.min(from + SCORED_ROWS);
            let row = last_row + 1 - n_rows;
            let logits = self.model.logits(&mut self.workspace, row + from..row + to);
            for (i, logits) in logits.chunks_exact(vocab_size).enumerate() {
                observer(first.after(from + i), logits);
            }
            if to == n_rows {
                self.logits.clear();
                self.logits.extend_from_slice(&logits[logits.len() - vocab_size..]);
            }
        }
    }

    /// Sets the logits after the newest token, whatever came of reading it; returns the first error.
    pub(crate) fn predict_after(
        &mut self,
        read: Result<(), SessionError>,
    ) -> Result<(), SessionError> {
        let predicted = self.predict();
        read.and(predicted)
    }

    /// Sets the logits after the newest token.
    pub(crate) fn predict(&mut self) -> Result<(), SessionError> {
        if self.n_tokens == 0 {
            return Ok(());
        }
        let start = Instant::now();
        let last = match self.config.policy {
            Policy::Recompute => {
                self.recompute()?;
                self.recent.newest(self.recomputed_tokens()).len() - 1
            }
            _ => match self.workspace.n_rows().checked_sub(1) {
                Some(last) => last,
                // Nothing was read since they were computed: in a branch, or after a recall.
                None => return Ok(()),
            },
        };
        let logits = self.model.logits(&mut self.workspace, last..last + 1);
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        self.timings.forward += start.elapsed();
        Ok(())
    }

    /// Runs the window through an empty cache.
    fn recompute(&mut self) -> Result<(), SessionError> {
        let tokens = self.recent.newest(self.recomputed_tokens());
        let mut config = self.model.cache_config(self.config.eviction(), 0, tokens.len());
        config.kv_type = self.config.kv_type;
        self.cache = KvCache::new(&config)?;
        let sequence = Sequence::new(tokens, &mut self.cache);
        self.model.forward(&mut self.workspace, &mut [sequence])?;
        Ok(())
    }

    /// How many tokens `recompute` computes again.
    fn recomputed_tokens(&self) -> usize {
        self.config.window_tokens + 1
    }

    /// Keeps what a blank turn asks for, and what may be quoted.
    pub(crate) fn keep_newest(&mut self, tokens: &[u32]) {
        self.recent.push(tokens, SEARCHED_TOKENS);
    }

    /// Tokens as text, without those that are signals.
    #[must_use]
    pub fn text_of(&self, tokens: &[u32]) -> String {
        let tokenizer = self.model.tokenizer();
        let words: Vec<u32> =
            tokens.iter().copied().filter(|&id| !tokenizer.is_special(id)).collect();
        String::from_utf8_lossy(&tokenizer.decode(&words)).into_owned()
    }
}

/// The memory of a session over a store.
fn memory(
    model: &Model,
    embedder: Arc<dyn Embedder>,
    config: &SessionConfig,
    store: Box<dyn BlockStore>,
) -> Result<Memory, SessionError> {
    let settings = MemoryConfig {
        sizes: config.recall.sizes,
        gate: config.recall.gate,
        strategy: Arc::clone(&config.recall.strategy),
        ..MemoryConfig::new(&config.name, shape(model))
    };
    let n_threads = NonZeroUsize::new(model.n_threads()).unwrap_or(NonZeroUsize::MIN);
    let index = config.index.make(embedder.dim(), n_threads).map_err(MemoryError::from)?;
    Ok(Memory::new(settings, store, index, embedder)?)
}

/// Shape of a model's keys and values per token.
pub(crate) fn shape(model: &Model) -> KvShape {
    let c = model.config();
    KvShape { n_layers: c.n_layers, n_kv_heads: c.n_kv_heads, head_dim: c.head_dim }
}

/// The tokens of a text, without special tokens.
///
/// # Errors
///
/// [`SessionError::MissingByte`] for text that the vocabulary cannot represent.
pub fn encode(model: &Model, text: &str) -> Result<Vec<u32>, SessionError> {
    check_bytes(model, text)?;
    Ok(model.tokenizer().encode(text, SpecialTokens::AsText))
}

fn encode_turn(model: &Model, turn: &TurnText) -> Result<Vec<u32>, SessionError> {
    check_bytes(model, turn.as_str())?;
    Ok(model.tokenizer().encode_turn(turn))
}

/// The tokens of the system turn that a stream begins with.
pub(crate) fn system_tokens(model: &Model, system: Option<&str>) -> Result<Vec<u32>, SessionError> {
    encode_turn(model, &model.template().system_prefix(system)?)
}

/// Refuses text that the tokenizer would silently lose.
fn check_bytes(model: &Model, text: &str) -> Result<(), SessionError> {
    let missing = model.missing_bytes();
    match text.bytes().enumerate().find(|(_, byte)| missing.contains(byte)) {
        Some((at, byte)) => Err(SessionError::MissingByte { byte, at }),
        None => Ok(()),
    }
}

/// Those of `starts` that lie in `range`, counted from its start.
pub(crate) fn within(starts: &[usize], range: &Range<usize>) -> Vec<usize> {
    starts.iter().filter(|start| range.contains(start)).map(|start| start - range.start).collect()
}
