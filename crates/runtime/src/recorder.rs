//! Cuts what a stream reads into blocks and hands them to the memory, with the keys and values
//! that the cache holds for them.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use everstream_kv_cache::{KvCache, KvSource, TokenPos};
use everstream_memory::{
    BlockCutter, BlockKv, KvShape, KvType, Memory, NewBlock, RecalledBlock, Role, Source,
};
use everstream_model::Tokenizer;

use crate::SessionError;

/// Where tokens come from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Who wrote them.
    pub role: Role,
    /// The file and the line of the next token, if they were read from one.
    pub source: Option<Source>,
    /// When they entered the stream; `None` until they do.
    pub(crate) written_at: Option<SystemTime>,
    /// Which of the tokens to come are words; the others are what a chat template writes around
    /// them.
    pub(crate) words: Range<usize>,
}

impl Origin {
    /// Tokens of a turn.
    #[must_use]
    pub fn turn(role: Role) -> Self {
        Self { role, source: None, written_at: None, words: 0..usize::MAX }
    }

    /// Tokens of a file, from its first line.
    #[must_use]
    pub fn file(name: &str) -> Self {
        let source = Source { file: Arc::from(name), line: 1 };
        Self { source: Some(source), ..Self::turn(Role::Document) }
    }

    /// The same, if only a range of the tokens are words and the others a template's markup: they
    /// are remembered, and are no part of a block's text.
    #[must_use]
    pub fn with_words(self, words: Range<usize>) -> Self {
        Self { words, ..self }
    }

    /// Moves on past a token: it may end lines.
    pub(crate) fn move_past(&mut self, token: &[u8]) {
        if let Some(source) = &mut self.source {
            source.line += token.iter().filter(|&&b| b == b'\n').count() as u64;
        }
        let Range { start, end } = &mut self.words;
        (*start, *end) = (start.saturating_sub(1), end.saturating_sub(1));
    }

    /// Whether the next token is a word.
    pub(crate) fn is_words(&self) -> bool {
        self.words.contains(&0)
    }
}

/// A token of the open block.
#[derive(Clone, Debug)]
struct OpenToken {
    id: u32,
    origin: Origin,
}

impl OpenToken {
    /// What it says: nothing, if it is a template's markup or a signal.
    fn text<'t>(&self, tokenizer: &'t Tokenizer) -> &'t [u8] {
        let is_text = self.origin.is_words() && !tokenizer.is_special(self.id);
        if is_text { tokenizer.token_bytes(self.id) } else { &[] }
    }
}

/// The memory of a stream, and the block that is being written.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub(crate) memory: Memory,
    cutter: BlockCutter,
    /// Lengths of blocks that are complete and not stored yet.
    cut: Vec<usize>,
    /// Tokens that are in no stored block.
    open: Vec<OpenToken>,
    /// Position of the first open token.
    first: TokenPos,
    shape: KvShape,
    kv_type: KvType,
    /// Time spent on copying, embedding and indexing.
    pub(crate) elapsed: Duration,
}

impl Recorder {
    pub(crate) fn new(memory: Memory, first: TokenPos, shape: KvShape, kv_type: KvType) -> Self {
        let cutter = memory.cutter();
        let (cut, open, elapsed) = (Vec::new(), Vec::new(), Duration::ZERO);
        Self { memory, cutter, cut, open, first, shape, kv_type, elapsed }
    }

    /// Reads tokens that the cache has just taken; `origin` moves on past them. What becomes
    /// complete is stored by the next [`settle`](Self::settle).
    pub(crate) fn read(&mut self, tokens: &[u32], tokenizer: &Tokenizer, origin: &mut Origin) {
        for &id in tokens {
            let token = OpenToken { id, origin: origin.clone() };
            let was_words = self.open.last().is_some_and(|t| t.origin.is_words());
            if was_words && !origin.is_words() {
                self.end_turn();
            }
            self.cutter.push(token.text(tokenizer), &mut self.cut);
            self.open.push(token);
            origin.move_past(tokenizer.token_bytes(id));
        }
    }

    /// Ends a turn: a block does not run on into the next one if it is long enough.
    pub(crate) fn end_turn(&mut self) {
        self.cutter.end_turn(&mut self.cut);
    }

    /// Embeds blocks if as many wait as make a batch: a reader that is faster than the encoder is
    /// slowed down.
    pub(crate) fn keep_pace(&mut self) -> Result<(), SessionError> {
        let is_full = self.memory.n_pending() >= self.memory.config().embed_batch;
        if is_full { self.embed() } else { Ok(()) }
    }

    /// Embeds all blocks that wait.
    pub(crate) fn embed(&mut self) -> Result<(), SessionError> {
        let start = Instant::now();
        self.memory.flush()?;
        self.elapsed += start.elapsed();
        Ok(())
    }

    /// The tokens that are in no stored block: where they begin, and each with its origin. All
    /// complete blocks have been stored.
    pub(crate) fn open_tokens(&self) -> (TokenPos, Vec<(u32, Origin)>) {
        (self.first, self.open.iter().map(|token| (token.id, token.origin.clone())).collect())
    }

    /// The newest tokens, as far as a template wrote them behind an answer and they are in no stored
    /// block.
    pub(crate) fn newest_markup(&self) -> Vec<u32> {
        let is_behind_answer =
            |t: &&OpenToken| !t.origin.is_words() && t.origin.role == Role::Assistant;
        let markup = self.open.iter().rev().take_while(is_behind_answer);
        let mut ids: Vec<u32> = markup.map(|token| token.id).collect();
        ids.reverse();
        ids
    }

    /// Continues from open tokens; the cutter depends on nothing else.
    pub(crate) fn restore(
        &mut self,
        first: TokenPos,
        open: &[(u32, Origin)],
        tokenizer: &Tokenizer,
    ) {
        self.first = first;
        self.cutter = self.memory.cutter();
        self.cut.clear();
        self.open = open.iter().map(|(id, o)| OpenToken { id: *id, origin: o.clone() }).collect();
        for token in &self.open {
            self.cutter.push(token.text(tokenizer), &mut self.cut);
        }
    }

    /// A copy for a branch of the stream; blocks are shared.
    pub(crate) fn branch(&self) -> Result<Self, SessionError> {
        Ok(Self {
            memory: self.memory.branch()?,
            cutter: self.cutter.clone(),
            cut: self.cut.clone(),
            open: self.open.clone(),
            first: self.first,
            shape: self.shape,
            kv_type: self.kv_type,
            elapsed: self.elapsed,
        })
    }

    /// Stores all blocks that are complete, while the cache still holds their keys and values.
    pub(crate) fn settle(
        &mut self,
        tokenizer: &Tokenizer,
        cache: &KvCache,
    ) -> Result<(), SessionError> {
        let start = Instant::now();
        while let Some(&len) = self.cut.first() {
            let range = self.first..self.first.after(len);
            let tokens = &self.open[..len];
            let text = text_of(tokens, tokenizer);
            let block = NewBlock {
                kv: read_kv(cache, &range, self.shape, self.kv_type)?,
                role: most_common_role(tokens),
                source: tokens[0].origin.source.clone(),
                written_at: tokens[0].origin.written_at.unwrap_or(SystemTime::UNIX_EPOCH),
                range: range.clone(),
                tokens: tokens.iter().map(|t| t.id).collect(),
                text: String::from_utf8_lossy(&text).into_owned(),
            };
            self.memory.remember(block)?;
            self.cut.remove(0);
            self.open.drain(..len);
            self.first = range.end;
        }
        self.elapsed += start.elapsed();
        Ok(())
    }
}

/// Copies un-rotated keys and values out of the cache.
fn read_kv(
    cache: &KvCache,
    range: &Range<TokenPos>,
    shape: KvShape,
    kv_type: KvType,
) -> Result<BlockKv, SessionError> {
    let n_tokens = range.end.since(range.start);
    let per_head = n_tokens * shape.head_dim;
    let mut keys = vec![0.0; shape.n_layers * shape.n_kv_heads * per_head];
    let mut values = keys.clone();
    let parts = keys.chunks_exact_mut(per_head).zip(values.chunks_exact_mut(per_head));
    for (i, (keys, values)) in parts.enumerate() {
        cache.read_raw(range, i / shape.n_kv_heads, i % shape.n_kv_heads, keys, values)?;
    }
    let kv = BlockKv::new(shape, n_tokens, &keys, &values, kv_type);
    Ok(kv.map_err(everstream_memory::MemoryError::from)?)
}

/// What tokens say. Markup between two turns says nothing, but their words do not run together.
fn text_of(tokens: &[OpenToken], tokenizer: &Tokenizer) -> Vec<u8> {
    let (mut text, mut is_apart) = (Vec::new(), false);
    for token in tokens {
        let words = token.text(tokenizer);
        if words.is_empty() {
            is_apart = !text.is_empty();
            continue;
        }
        if std::mem::take(&mut is_apart) {
            text.push(b'\n');
        }
        text.extend_from_slice(words);
    }
    text
}

fn most_common_role(tokens: &[OpenToken]) -> Role {
    let words = || tokens.iter().filter(|t| t.origin.is_words());
    let count = |role: &Role| words().filter(|t| t.origin.role == *role).count();
    Role::ALL.into_iter().max_by_key(count).unwrap_or(Role::Document)
}

/// A recalled part of a block, as the cache takes it.
pub(crate) struct Rows<'a>(pub(crate) &'a RecalledBlock);

impl KvSource for Rows<'_> {
    fn n_tokens(&self) -> usize {
        self.0.n_tokens()
    }

    fn read(&self, layer: usize, kv_head: usize, keys: &mut [f32], values: &mut [f32]) {
        let (kv, rows) = (self.0.block.kv(), self.0.rows());
        kv.keys(layer, kv_head, rows.clone()).copy_to(keys);
        kv.values(layer, kv_head, rows).copy_to(values);
    }
}
