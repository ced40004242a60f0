//! What enters the recalled section: found, chosen, and put there with stored keys and values or
//! with new ones.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use everstream_kv_cache::{KvCache, KvSource, NeverEvict, Place, TimelineState, TokenPos};
use everstream_memory::{
    Found, IndexError, MemoryError, ModelQueries, NotRecalled, Recall, RecallOrder, RecallRequest,
    RecalledBlock, RecalledText, Role, TextSource,
};
use everstream_model::{Sequence, Workspace};

use crate::recorder::{Recorder, Rows};
use crate::saved::Event;
use crate::session::{QUERY_TOKENS, Session, shape};
use crate::{DocumentContext, Insertion, RecallConfig, SessionError};

/// Tokens at the start of each block that [`Insertion::Repair`] computes again.
///
/// Source: Hu et al., "EPIC: Efficient Position-Independent Caching for Serving Large Language
/// Models", 2024, arXiv:2410.15332, whose LegoLink does so for the first tokens of each chunk.
pub const REPAIR_TOKENS: usize = 16;

/// Of a text that must be cut, at least so many tokens are recalled.
const MIN_TEXT_TOKENS: usize = 16;
/// What pinned texts name as their source.
const PIN: &str = "pin";

/// How a recall entered the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reinsertion {
    pub(crate) place: Place,
    pub(crate) insertion: Insertion,
    /// Tokens of the window before this one are hidden as long as something is recalled.
    pub(crate) hidden_before: TokenPos,
}

impl Session {
    /// Ends the last recall and puts into the cache what is relevant to `query`; a blank query
    /// stands for the newest tokens. Only `remember` recalls anything. What [`RecallConfig::window`]
    /// hides can be recalled like what has left.
    ///
    /// # Errors
    ///
    /// [`SessionError`]; the cache is then as it was.
    pub fn recall(&mut self, query: &str) -> Result<&Recall, SessionError> {
        self.recall_up_to(query, self.config.recall.max_blocks)
    }

    /// As [`Session::recall`], for text that goes on with what the window holds: nothing is hidden.
    ///
    /// # Errors
    ///
    /// As [`Session::recall`].
    pub fn recall_beside_window(&mut self, query: &str) -> Result<&Recall, SessionError> {
        self.recall_hiding(query, self.config.recall.max_blocks, TokenPos(0))
    }

    /// As [`Session::recall`], in the middle of what a turn began: no more is hidden than was.
    pub(crate) fn recall_again(&mut self, query: &str) -> Result<&Recall, SessionError> {
        let hidden_before = self.cache.timeline().state().hidden_before;
        self.recall_hiding(query, self.config.recall.max_blocks, hidden_before)
    }

    /// As [`Session::recall`], with at most `max_blocks` blocks.
    ///
    /// # Errors
    ///
    /// As [`Session::recall`].
    pub fn recall_up_to(
        &mut self,
        query: &str,
        max_blocks: usize,
    ) -> Result<&Recall, SessionError> {
        self.settle()?;
        self.recall_hiding(query, max_blocks, self.first_in_focus())
    }

    /// The oldest token of the window that is not hidden if something is recalled now: neither is
    /// the last turn with its answer, which this one may go on with, nor what is in no stored block
    /// and could not be recalled.
    fn first_in_focus(&self) -> TokenPos {
        let Some(n_tokens) = self.config.recall.window else { return TokenPos(0) };
        let first_open = self.recorder.as_ref().map(|recorder| recorder.open_tokens().0);
        let newest = TokenPos(self.n_tokens).before(n_tokens);
        [self.last_turn, first_open].into_iter().flatten().fold(newest, TokenPos::min)
    }

    fn recall_hiding(
        &mut self,
        query: &str,
        max_blocks: usize,
        hidden_before: TokenPos,
    ) -> Result<&Recall, SessionError> {
        let start = Instant::now();
        let newest = self.recent.newest(QUERY_TOKENS);
        let query = if query.trim().is_empty() { self.text_of(newest) } else { query.to_owned() };
        let has_sinks = self.n_tokens >= self.config.pinned() as u64;
        let pins = if has_sinks { self.pinned_texts()? } else { Vec::new() };
        let searches_texts = has_sinks && max_blocks > 0 && !query.trim().is_empty();
        let source = self.config.recall.texts.clone().filter(|_| searches_texts);
        let evicted = self.cache.timeline().evicted();
        let may_return = evicted.start..evicted.end.max(hidden_before);
        let queries = match max_blocks > 0 && may_return.start < may_return.end {
            true => self.queries_of(&query)?,
            false => None,
        };
        if let Some(recorder) = &mut self.recorder {
            recorder.settle(self.model.tokenizer(), &self.cache)?;
            let embedding = match source {
                Some(_) => Some(recorder.memory.embed_query(&query)?),
                None => None,
            };
            let n_pinned = n_tokens(&pins);
            let request = RecallRequest {
                embedding: embedding.as_deref(),
                queries: queries.as_ref(),
                max_tokens: self.config.context_tokens.saturating_sub(n_pinned),
                max_blocks,
                order: self.config.recall.order,
                neighbours: self.config.recall.neighbours,
                filter: self.config.recall.filter.clone(),
                ..RecallRequest::new(&query, may_return)
            };
            let mut recall = recorder.memory.recall(&request)?;
            if let (Some(source), Some(embedding)) = (&source, &embedding) {
                self.add_texts(&**source, embedding, &request, &mut recall)?;
            }
            // Pinned texts are there in any case: they ask for nothing to be hidden.
            let hidden_before = if recall.is_empty() { TokenPos(0) } else { hidden_before };
            recall.texts.splice(0..0, pins);
            self.insert_hiding(recall, hidden_before)?;
        } else {
            self.last_recall = Some(Recall::default());
        }
        self.timings.recall += start.elapsed();
        Ok(self.last_recall.get_or_insert_default())
    }

    /// What the model asks for when it reads `text` alone, if the strategy looks at that.
    fn queries_of(&self, text: &str) -> Result<Option<ModelQueries>, SessionError> {
        let is_wanted = |recorder: &Recorder| recorder.memory.needs_queries();
        if text.trim().is_empty() || !self.recorder.as_ref().is_some_and(is_wanted) {
            return Ok(None);
        }
        // The first tokens of a text are sinks: they ask for nothing.
        let first = self.encode("\n\n")?;
        let mut tokens = self.encode(text)?;
        tokens.truncate(QUERY_TOKENS);
        tokens.splice(0..0, first.iter().copied());
        let policy = Arc::new(NeverEvict { n_sink: 0, max_tokens: tokens.len() });
        let mut cache = KvCache::new(&self.model.cache_config(policy, 0, tokens.len()))?;
        let mut workspace = Workspace::default();
        workspace.set_keep_queries(true);
        self.model.forward(&mut workspace, &mut [Sequence::new(&tokens, &mut cache)])?;
        let (n_heads, head_dim) = (self.model.config().n_heads, self.model.config().head_dim);
        let of_text = |layer: &Vec<f32>| layer[first.len() * n_heads * head_dim..].to_vec();
        let layers = workspace.queries().iter().map(of_text).collect();
        Ok(Some(ModelQueries { n_heads, head_dim, layers }))
    }

    /// Adds what `source` has of the query. Of blocks and texts the nearest stay, as many and as long
    /// as the request says; the last text is cut where there is no more room, and says so.
    fn add_texts(
        &self,
        source: &dyn TextSource,
        embedding: &[f32],
        request: &RecallRequest<'_>,
        recall: &mut Recall,
    ) -> Result<(), SessionError> {
        let mut found = match source.search(embedding, request.max_blocks) {
            Ok(found) => found,
            // A server that does not answer costs its texts, not the conversation.
            Err(IndexError::Remote { what }) => {
                recall.failure.get_or_insert(what);
                return Ok(());
            }
            Err(error) => return Err(MemoryError::from(error).into()),
        };
        found.retain(|text| self.config.recall.gate.passes(text.distance));
        let mut found = found.into_iter().peekable();
        // The least relevant of what was found here make room for texts that are nearer: a block
        // with the neighbours that came with it.
        while let Some(text) = found.peek() {
            let runs: Vec<Range<usize>> = recall.runs();
            let n_items = recall.texts.len() + runs.len();
            let room = request.max_tokens.saturating_sub(recall.n_tokens());
            let nearest = |run: &Range<usize>| {
                let distances = recall.blocks[run.clone()].iter().map(|block| block.distance);
                distances.fold(f32::INFINITY, f32::min)
            };
            let farthest = runs.into_iter().map(|run| (nearest(&run), run));
            let farthest = farthest.max_by(|a, b| a.0.total_cmp(&b.0));
            if n_items < request.max_blocks && room >= MIN_TEXT_TOKENS {
                let tokens = self.encode(&format!("{}\n\n", text.text.trim()))?;
                let text = RecalledText {
                    source: source.name().to_owned(),
                    id: text.id.clone(),
                    n_cut: tokens.len().saturating_sub(room),
                    text: self.text_of(&tokens[..tokens.len().min(room)]),
                    tokens: tokens.into_iter().take(room).collect(),
                    distance: text.distance,
                };
                recall.texts.push(text);
                found.next();
            } else if let Some((_, run)) = farthest.filter(|run| run.0 > text.distance) {
                for RecalledBlock { block, part, distance, .. } in recall.blocks.drain(run) {
                    recall.skipped.push(NotRecalled { id: block.id(), part, distance });
                }
            } else {
                break;
            }
        }
        if self.config.recall.order == RecallOrder::BestLast {
            recall.texts.reverse();
        }
        Ok(())
    }

    /// What somebody asked to have in every recall.
    fn pinned_texts(&self) -> Result<Vec<RecalledText>, SessionError> {
        let pinned = |(i, text): (usize, &String)| {
            Ok(RecalledText {
                source: PIN.to_owned(),
                id: (i + 1).to_string(),
                text: text.clone(),
                tokens: self.pin_tokens(text)?,
                n_cut: 0,
                distance: 0.0,
            })
        };
        self.pins.iter().enumerate().map(pinned).collect()
    }

    fn pin_tokens(&self, text: &str) -> Result<Vec<u32>, SessionError> {
        self.encode(&format!("{}\n", text.trim()))
    }

    /// Puts a text into every recall from now on. Half of the recalled context stays for what is
    /// found.
    ///
    /// # Errors
    ///
    /// [`SessionError::Pin`] if there is no room for it, or the policy recalls nothing.
    pub fn pin(&mut self, text: &str) -> Result<(), SessionError> {
        let capacity = if self.recorder.is_some() { self.config.context_tokens / 2 } else { 0 };
        let n_tokens = n_tokens(&self.pinned_texts()?) + self.pin_tokens(text)?.len();
        if text.trim().is_empty() || n_tokens > capacity {
            return Err(SessionError::Pin { n_tokens, capacity });
        }
        self.log(|| Event::Pin(text.trim().to_owned()))?;
        self.pins.push(text.trim().to_owned());
        Ok(())
    }

    /// Takes back a pinned text, by its number from 0; returns it, if there is one.
    ///
    /// # Errors
    ///
    /// [`SessionError::File`].
    pub fn unpin(&mut self, number: usize) -> Result<Option<String>, SessionError> {
        if number >= self.pins.len() {
            return Ok(None);
        }
        self.log(|| Event::Unpin(number))?;
        Ok(Some(self.pins.remove(number)))
    }

    /// The texts that are in every recall.
    #[must_use]
    pub fn pins(&self) -> &[String] {
        &self.pins
    }

    /// Ends the last recall and puts blocks into the cache that somebody else chose, in the order
    /// given; of the window is hidden what [`RecallConfig::window`] says.
    ///
    /// # Errors
    ///
    /// [`SessionError::Memory`] if a block is of another shape, [`SessionError::Cache`] if the
    /// blocks do not fit; the cache is then as it was.
    pub fn insert(&mut self, recall: Recall) -> Result<(), SessionError> {
        self.settle()?;
        self.insert_hiding(recall, self.first_in_focus())
    }

    fn insert_hiding(
        &mut self,
        recall: Recall,
        hidden_before: TokenPos,
    ) -> Result<(), SessionError> {
        let RecallConfig { place, insertion, .. } = self.config.recall;
        let insertion = insertion.unwrap_or_else(|| self.insertion_of(&recall));
        let hidden_before = if recall.is_empty() { TokenPos(0) } else { hidden_before };
        self.insert_as(Reinsertion { place, insertion, hidden_before }, recall)
    }

    /// Stored keys and values serve where all that comes back saw what stands before it, as if it
    /// were read behind the sinks now.
    fn insertion_of(&self, recall: &Recall) -> Insertion {
        let reads_apart = self.config.document_context == DocumentContext::Paragraph;
        let runs = recall.runs();
        let is_one = match &runs[..] {
            [run] if recall.texts.is_empty() => {
                let blocks = &recall.blocks[run.clone()];
                let are_read = blocks.iter().all(|block| block.block.role() == Role::Document);
                !(reads_apart && are_read && has_blank_line(blocks))
            }
            _ => runs.is_empty(),
        };
        if is_one { Insertion::Kv } else { Insertion::Tokens }
    }

    pub(crate) fn insert_as(
        &mut self,
        how: Reinsertion,
        recall: Recall,
    ) -> Result<(), SessionError> {
        let expected = shape(&self.model);
        for block in &recall.blocks {
            let found = block.block.kv().shape();
            if found != expected {
                return Err(MemoryError::Shape { expected, found }.into());
            }
        }
        if self.is_in_cache(how, &recall) {
            self.last_recall = Some(recall);
            return Ok(());
        }
        let tokens: Vec<u32> = recall.tokens().collect();
        self.model.check_tokens(&tokens)?;
        // Tried on the positions alone, so that the last recall ends only if this one begins.
        let mut trial = self.cache.timeline().clone();
        trial.end_recall();
        trial.begin_recall(how.place, tokens.len())?;
        self.log(|| Event::recall(how, &recall))?;
        self.end_recall();
        let computed = rows_to_compute(how.insertion, &recall);
        if computed.len() == tokens.len() {
            self.cache.open_recall(tokens.len())?;
        } else {
            let texts = Unknown { n_tokens: recall.n_text_tokens() };
            let rows: Vec<Rows<'_>> = recall.blocks.iter().map(Rows).collect();
            let mut sources: Vec<&dyn KvSource> = vec![&texts];
            sources.extend(rows.iter().map(|rows| rows as &dyn KvSource));
            let place = if computed.is_empty() { how.place } else { Place::Between };
            self.cache.recall(place, &sources)?;
        }
        if !computed.is_empty() {
            self.compute_recalled(&tokens, &computed, how.place)?;
        }
        self.cache.hide_before(how.hidden_before);
        (self.last_recall, self.recalled_at, self.recalled_as) =
            (Some(recall), self.n_tokens, how.insertion);
        Ok(())
    }

    /// Computes rows of the recalled section again, behind the sinks, then moves all of it to where
    /// it belongs. `tokens` are those of the whole section.
    fn compute_recalled(
        &mut self,
        tokens: &[u32],
        rows: &[usize],
        place: Place,
    ) -> Result<(), SessionError> {
        // The rows of the last batch are about to go.
        self.predict()?;
        for rows in rows.chunks(self.config.chunk_tokens) {
            let tokens: Vec<u32> = rows.iter().map(|&row| tokens[row]).collect();
            let sequence = Sequence::recalled(&tokens, rows, &mut self.cache);
            self.model.forward(&mut self.workspace, &mut [sequence])?;
        }
        self.workspace.clear();
        if place == Place::Near {
            self.cache.move_near();
        }
        Ok(())
    }

    /// Whether just this was recalled here, and nothing read since. Doing it again would change
    /// positions, and so the last bits: a stream that was killed between a recall and what follows
    /// it would not go on as it would have.
    fn is_in_cache(&self, how: Reinsertion, recall: &Recall) -> bool {
        let TimelineState { recalled: held, hidden_before, .. } = self.cache.timeline().state();
        let parts = |recall: &Recall| -> Vec<_> {
            recall.blocks.iter().map(|b| (b.block.id(), b.part.clone())).collect()
        };
        let is_same = |last: &Recall| parts(last) == parts(recall) && last.texts == recall.texts;
        held.is_none_or(|held| held == (how.place, recall.n_tokens()))
            && self.recalled_as == how.insertion
            && hidden_before == how.hidden_before
            && self.recalled_at == self.n_tokens
            && self.last_recall.as_ref().is_some_and(is_same)
    }

    pub(crate) fn end_recall(&mut self) {
        self.cache.end_recall();
        self.last_recall = None;
    }

    /// Recalls in another way from now on. Block sizes stay those of the stream.
    pub fn set_recall(&mut self, recall: RecallConfig) {
        let sizes = self.config.recall.sizes;
        if let Some(recorder) = &mut self.recorder {
            recorder.memory.set_gate(recall.gate);
            recorder.memory.set_strategy(Arc::clone(&recall.strategy));
        }
        self.config.recall = RecallConfig { sizes, ..recall };
    }

    /// The `n` blocks nearest to `query`, nearest first, evicted or not and without the gate, as
    /// far as the filter lets them be found: for people who look what is there. Empty if the policy
    /// has no memory.
    ///
    /// # Errors
    ///
    /// [`SessionError::Memory`].
    pub fn search(&mut self, query: &str, n: usize) -> Result<Vec<Found>, SessionError> {
        let Some(recorder) = &mut self.recorder else { return Ok(Vec::new()) };
        recorder.settle(self.model.tokenizer(), &self.cache)?;
        Ok(recorder.memory.search(query, n, &self.config.recall.filter)?)
    }

    /// What is in the recalled section, and what was turned away.
    #[must_use]
    pub fn last_recall(&self) -> Option<&Recall> {
        self.last_recall.as_ref()
    }
}

/// Whether what follows each other here is more than one paragraph.
fn has_blank_line(blocks: &[RecalledBlock]) -> bool {
    let text: String = blocks.iter().map(|block| block.block.text()).collect();
    text.trim().lines().any(|line| line.trim().is_empty())
}

fn n_tokens(texts: &[RecalledText]) -> usize {
    texts.iter().map(|text| text.tokens.len()).sum()
}

/// Which rows of the recalled section nobody has keys and values of, or are to have new ones.
fn rows_to_compute(insertion: Insertion, recall: &Recall) -> Vec<usize> {
    let mut start = recall.n_text_tokens();
    let mut rows: Vec<usize> = (0..start).collect();
    for block in &recall.blocks {
        let n_computed = match insertion {
            Insertion::Kv => 0,
            Insertion::Tokens => block.n_tokens(),
            Insertion::Repair => REPAIR_TOKENS.min(block.n_tokens()),
        };
        rows.extend(start..start + n_computed);
        start += block.n_tokens();
    }
    rows
}

/// Rows that are about to be computed.
struct Unknown {
    n_tokens: usize,
}

impl KvSource for Unknown {
    fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    fn read(&self, _layer: usize, _kv_head: usize, keys: &mut [f32], values: &mut [f32]) {
        keys.fill(0.0);
        values.fill(0.0);
    }
}
