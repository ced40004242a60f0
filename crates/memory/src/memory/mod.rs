//! The memory of one session: blocks go in, relevant ones come out.
//!
//! It puts store, index, embedder, strategy and gate together and keeps them in step. It decides
//! nothing about positions or the cache: the caller says what has left the window, and puts what
//! is recalled where it belongs.

mod config;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use everstream_kv_cache::{TokenPos, range_len};

use crate::block::{Block, BlockId, NewBlock};
use crate::cutter::BlockCutter;
use crate::embed::Embedder;
use crate::gate::Gate;
use crate::index::{Distance, Hit, IndexError, VectorIndex};
use crate::key_clusters::KeyClusters;
use crate::recall::{BlockFilter, Neighbours, NotRecalled, Recall, RecallRequest, RecalledBlock};
use crate::store::{BlockMeta, BlockStore, BlockText, StoreError};
use crate::strategy::{Query, Strategy};
use crate::words::{WordIndex, WordScores};

pub use config::{MemoryConfig, MemoryError, MemoryStats};

/// Blocks that are read while a query is embedded.
const PREFETCHED_BLOCKS: usize = 8;

/// A block that a person's search found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its range, role, source and time.
    pub meta: BlockMeta,
    /// What it says.
    pub text: BlockText,
    /// Its distance from the query.
    pub distance: f32,
}

/// A part of a block with fewer tokens says nothing; it comes last, whatever the block's distance.
const SCRAP_TOKENS: usize = 8;
/// So many more blocks are looked for than asked for: the window begins and ends inside of one each.
const N_SCRAPS: usize = 2;

/// The memory of one session.
#[derive(Debug)]
pub struct Memory {
    config: MemoryConfig,
    session: Arc<str>,
    store: Box<dyn BlockStore>,
    index: Box<dyn VectorIndex>,
    embedder: Arc<dyn Embedder>,
    /// The words of the first blocks of the store, as many as it has; made for strategies that look
    /// at words, and shared by branches until one of them remembers.
    words: Arc<WordIndex>,
    /// Clusters of the keys of the first blocks, in the same way.
    clusters: Arc<KeyClusters>,
    /// Each block's number in the store. Shared by branches until one of them remembers.
    order: Arc<HashMap<BlockId, usize>>,
    /// Numbers of blocks that are stored and not indexed yet, oldest first.
    pending: VecDeque<usize>,
    stats: MemoryStats,
}

impl Memory {
    /// A memory over `store`, whose blocks, if it has any, are embedded where they are not yet,
    /// and indexed.
    ///
    /// # Errors
    ///
    /// [`MemoryError`] if the settings are wrong, the parts do not fit together, or reading and
    /// embedding what the store holds fails.
    pub fn new(
        config: MemoryConfig,
        store: Box<dyn BlockStore>,
        index: Box<dyn VectorIndex>,
        embedder: Arc<dyn Embedder>,
    ) -> Result<Self, MemoryError> {
        config.check()?;
        if embedder.dim() != index.dim() {
            return Err(MemoryError::Dim { embedder: embedder.dim(), index: index.dim() });
        }
        if !index.is_empty() {
            return Err(MemoryError::IndexNotEmpty { n_vectors: index.len() });
        }
        let session = Arc::from(config.session.as_str());
        let order = Arc::default();
        let (pending, stats) = (VecDeque::new(), MemoryStats::default());
        let (words, clusters) = <(Arc<WordIndex>, Arc<KeyClusters>)>::default();
        let mut memory = Self {
            config,
            session,
            store,
            index,
            embedder,
            words,
            clusters,
            order,
            pending,
            stats,
        };
        memory.adopt_stored_blocks()?;
        Ok(memory)
    }

    /// A cutter with this memory's block sizes, for the start of a stream.
    #[must_use]
    pub fn cutter(&self) -> BlockCutter {
        BlockCutter::new(self.config.sizes)
    }

    /// Stores a block; its text waits until [`flush`](Self::flush) embeds it. Storing never waits
    /// for the encoder, so that an encoder that fails costs no keys and values. A caller that reads
    /// faster than the encoder calls `flush` whenever [`MemoryConfig::embed_batch`] blocks wait.
    ///
    /// A block that is stored already is not stored twice, so a stream may be replayed.
    ///
    /// # Errors
    ///
    /// [`MemoryError`] if the block is malformed, of another shape, too long, starts before the
    /// end of the last one, or if storing fails. The block is then not stored.
    pub fn remember(&mut self, block: NewBlock) -> Result<BlockId, MemoryError> {
        let block = Arc::new(Block::new(self.session.clone(), block)?);
        self.check_block(&block)?;
        let id = block.id();
        if self.order.contains_key(&id) {
            return Ok(id);
        }
        let meta = BlockMeta::from(&*block);
        self.store.append(block)?;
        self.register(self.store.metas().len() - 1, &meta);
        Ok(id)
    }

    /// Embeds and indexes all blocks that wait, and says how many they were. Call it where time is
    /// to spare: between chunks, or after an answer.
    ///
    /// # Errors
    ///
    /// [`MemoryError`] if embedding, storing or indexing fails. Blocks that were not indexed wait
    /// on, and the call may be repeated.
    pub fn flush(&mut self) -> Result<usize, MemoryError> {
        let mut n_indexed = 0;
        while !self.pending.is_empty() {
            n_indexed += self.flush_batch()?;
        }
        Ok(n_indexed)
    }

    /// Embeds and indexes the oldest blocks that wait, at most a batch of them.
    fn flush_batch(&mut self) -> Result<usize, MemoryError> {
        let orders: Vec<usize> =
            self.pending.iter().copied().take(self.config.embed_batch).collect();
        let mut embeddings = Vec::new();
        let (mut bare, mut texts) = (Vec::new(), Vec::new());
        for (i, &order) in orders.iter().enumerate() {
            // A branch or an earlier process may have made it.
            let known = present(self.store.embedding(order))?.flatten();
            if known.is_none()
                && let Some(text) = present(self.store.text(order))?
            {
                bare.push(i);
                texts.push(text.text);
            }
            embeddings.push(known);
        }
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        for (&i, embedding) in bare.iter().zip(self.embed(&texts)?) {
            self.store.set_embedding(orders[i], &embedding)?;
            embeddings[i] = Some(embedding);
        }
        for (&order, embedding) in orders.iter().zip(&embeddings) {
            if let Some(embedding) = embedding {
                self.index.add(self.store.metas()[order].id, embedding)?;
            }
            self.pending.pop_front();
        }
        Ok(orders.len())
    }

    /// Finds what has left the window and is relevant to the query. Waits until every block is
    /// embedded, so that what is found depends on the stream and not on timing.
    ///
    /// The strategy proposes up to `max_blocks` blocks; those that the gate turns away or that do
    /// not fit are reported and not replaced by less relevant ones. Only whole eligible parts are
    /// recalled.
    ///
    /// # Errors
    ///
    /// [`MemoryError`] if the evicted range is reversed or embedding, searching or reading fails.
    pub fn recall(&mut self, request: &RecallRequest<'_>) -> Result<Recall, MemoryError> {
        let Range { start, end } = request.evicted;
        if start > end {
            return Err(MemoryError::Range { start: start.0, end: end.0 });
        }
        if !self.could_recall(request) {
            self.count(&Recall::default());
            return Ok(Recall::default());
        }
        self.flush()?;
        if self.config.strategy.needs_words() {
            self.index_words()?;
        }
        if self.config.strategy.needs_clusters() && request.queries.is_some() {
            self.cluster_keys()?;
        }
        let words = Arc::clone(&self.words);
        let words = words.scores(request.query);
        let embedding = match request.embedding {
            Some(embedding) => embedding.to_vec(),
            None => self.embed_while_reading(request, &words)?,
        };
        let found = self.proposed(request, &embedding, &words);
        let recall = match found.and_then(|hits| self.pick(request, &hits, &embedding)) {
            // A server that does not answer costs the recall, not the conversation.
            Err(MemoryError::Index(IndexError::Remote { what })) => {
                Recall { failure: Some(what), ..Recall::default() }
            }
            recall => recall?,
        };
        self.count(&recall);
        Ok(recall)
    }

    /// The `n` blocks nearest to `query`, nearest first, evicted or not and without the gate: for
    /// people who look what is there.
    ///
    /// # Errors
    ///
    /// [`MemoryError`] if embedding, searching or reading fails.
    pub fn search(
        &mut self,
        query: &str,
        n: usize,
        filter: &BlockFilter,
    ) -> Result<Vec<Found>, MemoryError> {
        self.flush()?;
        let embedding = self.embed_query(query)?;
        let mut hits = Vec::new();
        let may_be_found = |id| {
            let meta = self.order.get(&id).and_then(|&order| self.store.metas().get(order));
            meta.is_some_and(|meta| !meta.is_forgotten && filter.passes(meta))
        };
        self.index.search(&embedding, n, &may_be_found, &mut hits)?;
        let mut found = Vec::new();
        for hit in &hits {
            let order = self.order_of(hit);
            if let Some(text) = present(self.store.text(order))? {
                let meta = self.store.metas()[order].clone();
                found.push(Found { meta, text, distance: hit.distance });
            }
        }
        Ok(found)
    }

    /// A memory with the same blocks, shared and not copied, that goes its own way from here: one
    /// long stream is read once and continued in several ways.
    ///
    /// # Errors
    ///
    /// [`MemoryError`] if store or index cannot be shared.
    pub fn branch(&self) -> Result<Self, MemoryError> {
        Ok(Self {
            config: self.config.clone(),
            session: self.session.clone(),
            store: self.store.branch()?,
            index: self.index.branch()?,
            embedder: self.embedder.clone(),
            words: self.words.clone(),
            clusters: self.clusters.clone(),
            order: self.order.clone(),
            pending: self.pending.clone(),
            stats: self.stats,
        })
    }

    /// What is known of every block, in stream order.
    #[must_use]
    pub fn metas(&self) -> &[BlockMeta] {
        self.store.metas()
    }

    /// The block number `order`: the one that [`metas`](Self::metas) describes at that index.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Store`] if there is none or it cannot be read.
    pub fn block(&self, order: usize) -> Result<Arc<Block>, MemoryError> {
        Ok(self.store.get(order)?)
    }

    /// What the block number `order` says; its keys and values are not read.
    ///
    /// # Errors
    ///
    /// As [`block`](Self::block).
    pub fn text(&self, order: usize) -> Result<BlockText, MemoryError> {
        Ok(self.store.text(order)?)
    }

    /// Forgets all blocks with tokens in `range`: nothing of them is found or recalled any more.
    /// Returns the ranges of the blocks.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Store`]; blocks before the one that failed are forgotten.
    pub fn forget(&mut self, range: &Range<TokenPos>) -> Result<Vec<Range<TokenPos>>, MemoryError> {
        let orders: Vec<usize> = (0..self.store.metas().len())
            .filter(|&order| self.is_held(order) && self.store.metas()[order].overlaps(range))
            .collect();
        let mut forgotten = Vec::new();
        for order in orders {
            self.store.forget(order)?;
            self.index.remove(self.store.metas()[order].id)?;
            forgotten.push(self.store.metas()[order].range.clone());
        }
        Ok(forgotten)
    }

    /// Waits until all that was remembered would survive a power failure, as far as the store can.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Store`].
    pub fn sync(&mut self) -> Result<(), MemoryError> {
        Ok(self.store.sync()?)
    }

    /// The block of this id.
    ///
    /// # Errors
    ///
    /// As [`block`](Self::block).
    pub fn block_by_id(&self, id: BlockId) -> Result<Arc<Block>, MemoryError> {
        self.block(self.order.get(&id).copied().unwrap_or(usize::MAX))
    }

    /// Whether a recall wants [`RecallRequest::queries`].
    #[must_use]
    pub fn needs_queries(&self) -> bool {
        self.config.strategy.needs_queries()
    }

    /// How the index measures.
    #[must_use]
    pub fn distance(&self) -> Distance {
        self.index.distance()
    }

    /// Settings it was made with.
    #[must_use]
    pub fn config(&self) -> &MemoryConfig {
        &self.config
    }

    /// Turns away more or less from now on.
    pub fn set_gate(&mut self, gate: Gate) {
        self.config.gate = gate;
    }

    /// Proposes by another strategy from now on.
    pub fn set_strategy(&mut self, strategy: Arc<dyn Strategy>) {
        self.config.strategy = strategy;
    }

    /// What it holds and what it has done. Looks at every block.
    #[must_use]
    pub fn stats(&self) -> MemoryStats {
        let held = || self.store.metas().iter().filter(|meta| !meta.is_forgotten);
        MemoryStats {
            n_blocks: held().count(),
            n_tokens: held().map(BlockMeta::n_tokens).sum(),
            kv_bytes: held().map(|meta| meta.kv_bytes).sum(),
            n_indexed: self.index.len(),
            n_pending: self.pending.len(),
            ..self.stats
        }
    }

    /// Blocks that wait for their embedding.
    #[must_use]
    pub fn n_pending(&self) -> usize {
        self.pending.len()
    }

    fn adopt_stored_blocks(&mut self) -> Result<(), MemoryError> {
        let metas = self.store.metas().to_vec();
        for (order, meta) in metas.iter().enumerate() {
            self.register(order, meta);
        }
        self.flush()?;
        Ok(())
    }

    fn check_block(&self, block: &Block) -> Result<(), MemoryError> {
        let (expected, found) = (self.config.shape, block.kv().shape());
        if expected != found {
            return Err(MemoryError::Shape { expected, found });
        }
        let (n_tokens, max) = (block.tokens().len(), self.config.sizes.max());
        if n_tokens > max {
            return Err(MemoryError::BlockTooLong { n_tokens, max });
        }
        Ok(())
    }

    fn register(&mut self, order: usize, meta: &BlockMeta) {
        Arc::make_mut(&mut self.order).insert(meta.id, order);
        self.pending.push_back(order);
    }

    fn is_held(&self, order: usize) -> bool {
        self.store.metas().get(order).is_some_and(|meta| !meta.is_forgotten)
    }

    /// The embedding of a text that is no block's.
    ///
    /// # Errors
    ///
    /// [`MemoryError`] if embedding fails.
    pub fn embed_query(&mut self, query: &str) -> Result<Vec<f32>, MemoryError> {
        Ok(self.embed(&[query])?.swap_remove(0))
    }

    /// The embedding of a query. With a strategy that looks at words, what fits them best is read
    /// meanwhile, as it is likely to be wanted next: a disk and an encoder do not wait for each other.
    fn embed_while_reading(
        &mut self,
        request: &RecallRequest<'_>,
        words: &WordScores<'_>,
    ) -> Result<Vec<f32>, MemoryError> {
        let may_be_found = |id| self.eligible_part(request, id).is_some();
        let likely = words.best(PREFETCHED_BLOCKS, &may_be_found);
        let this = &*self;
        let embeddings = std::thread::scope(|scope| {
            if !likely.is_empty() {
                // What cannot be read is said when it is recalled; without a thread it is read then.
                let read = || likely.iter().for_each(|hit| drop(this.block_by_id(hit.id)));
                drop(std::thread::Builder::new().spawn_scoped(scope, read));
            }
            this.embedder.embed(&[request.query])
        })?;
        Ok(self.check_embeddings(1, embeddings)?.swap_remove(0))
    }

    fn embed(&mut self, texts: &[&str]) -> Result<Vec<Vec<f32>>, MemoryError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let embeddings = self.embedder.embed(texts)?;
        self.check_embeddings(texts.len(), embeddings)
    }

    /// Checks the embedder's promise.
    fn check_embeddings(
        &mut self,
        n_texts: usize,
        embeddings: Vec<Vec<f32>>,
    ) -> Result<Vec<Vec<f32>>, MemoryError> {
        let dim = self.index.dim();
        let wrong = embeddings.iter().map(Vec::len).find(|&found| found != dim);
        if embeddings.len() != n_texts || wrong.is_some() {
            let (found_texts, found_dim) = (embeddings.len(), wrong.unwrap_or(dim));
            return Err(MemoryError::EmbedderOutput { n_texts, dim, found_texts, found_dim });
        }
        self.stats.embedded_texts_total += n_texts as u64;
        Ok(embeddings)
    }

    /// Saves the embedding of a query that cannot find anything, as in every early turn.
    fn could_recall(&self, request: &RecallRequest<'_>) -> bool {
        let metas = self.store.metas();
        // Blocks stand in stream order: if the first one has not left the window, none has.
        let mut evicted = metas.iter().take_while(|meta| meta.range.start < request.evicted.end);
        request.max_blocks > 0
            && !request.query.trim().is_empty()
            && evicted.any(|meta| request.part_of(meta).is_some())
    }

    fn proposed(
        &self,
        request: &RecallRequest<'_>,
        embedding: &[f32],
        words: &WordScores<'_>,
    ) -> Result<Vec<Hit>, MemoryError> {
        let query = Query {
            text: request.query,
            embedding,
            index: self.index.as_ref(),
            words,
            blocks: self.store.metas(),
            eligible: &|id| self.eligible_part(request, id).is_some(),
            clusters: &self.clusters,
            queries: request.queries,
            block: &|id| self.block_by_id(id).ok(),
            block_text: &|id| Some(self.store.text(*self.order.get(&id)?).ok()?.text),
        };
        let mut hits = Vec::new();
        self.config.strategy.rank(
            &query,
            request.max_blocks.saturating_add(N_SCRAPS),
            &mut hits,
        )?;
        let (mut hits, scraps): (Vec<Hit>, _) =
            hits.into_iter().partition(|hit| !self.is_scrap(request, hit.id));
        hits.extend::<Vec<Hit>>(scraps);
        Ok(hits)
    }

    /// Whether hardly anything of a block may be recalled: it was found for what is seen anyway.
    fn is_scrap(&self, request: &RecallRequest<'_>, id: BlockId) -> bool {
        let Some(meta) = self.order.get(&id).and_then(|&order| self.store.metas().get(order))
        else {
            return false;
        };
        let part = request.part_of(meta).map_or(0, |part| range_len(&part));
        part < SCRAP_TOKENS && part < meta.n_tokens()
    }

    /// Indexes the words of blocks that are new since the last time.
    fn index_words(&mut self) -> Result<(), MemoryError> {
        let n_blocks = self.store.metas().len();
        if self.words.len() == n_blocks {
            return Ok(());
        }
        let words = Arc::make_mut(&mut self.words);
        for order in words.len()..n_blocks {
            let text = present(self.store.text(order))?.map_or(String::new(), |text| text.text);
            words.add(self.store.metas()[order].id, &text);
        }
        Ok(())
    }

    /// Clusters the keys of blocks that are new since the last time, or of others than then.
    fn cluster_keys(&mut self) -> Result<(), MemoryError> {
        let metas = self.store.metas();
        // Branches share them for as long as nothing changes.
        if !self.clusters.are_of_blocks(metas) {
            let read = |order| present(self.store.get(order));
            Arc::make_mut(&mut self.clusters).update(metas, &read)?;
        }
        Ok(())
    }

    fn eligible_part(&self, request: &RecallRequest<'_>, id: BlockId) -> Option<Range<TokenPos>> {
        let meta = self.store.metas().get(*self.order.get(&id)?)?;
        request.part_of(meta)
    }

    /// Sorts what was proposed into recalled, gated and skipped.
    fn pick(
        &self,
        request: &RecallRequest<'_>,
        hits: &[Hit],
        embedding: &[f32],
    ) -> Result<Recall, MemoryError> {
        let mut recall = Recall::default();
        for hit in hits.iter().take(request.max_blocks) {
            // A strategy that breaks its promise may cost blocks, not put one in twice or put in
            // what is in the window already.
            let Some(part) = self.eligible_part(request, hit.id) else { continue };
            if recall.blocks.iter().any(|recalled| recalled.block.id() == hit.id) {
                continue;
            }
            let n_tokens = range_len(&part);
            let distance = hit.distance;
            if !self.config.gate.passes(distance) {
                recall.gated.push(NotRecalled { id: hit.id, part, distance });
            } else if recall.n_tokens() + n_tokens > request.max_tokens {
                recall.skipped.push(NotRecalled { id: hit.id, part, distance });
            } else {
                self.take(hit, part, &mut recall)?;
            }
        }
        if request.neighbours == Neighbours::NONE {
            recall.sort(request.order);
        } else {
            self.add_neighbours(request, embedding, &mut recall)?;
            recall.sort_runs(request.order);
        }
        Ok(recall)
    }

    /// Reads a block that is to be recalled.
    fn take(
        &self,
        hit: &Hit,
        part: Range<TokenPos>,
        recall: &mut Recall,
    ) -> Result<(), MemoryError> {
        let (id, distance) = (hit.id, hit.distance);
        match self.store.get(self.order_of(hit)) {
            Ok(block) => recall.blocks.push(RecalledBlock { block, part, distance }),
            // Damage costs the block that it hit, and nothing else.
            Err(StoreError::Damaged { .. }) => {
                recall.unreadable.push(NotRecalled { id, part, distance });
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Adds what stands around each block, nearest first and around the most relevant first, as far
    /// as it fits. What would not touch the block is left out.
    fn add_neighbours(
        &self,
        request: &RecallRequest<'_>,
        embedding: &[f32],
        recall: &mut Recall,
    ) -> Result<(), MemoryError> {
        let mut vector = Vec::new();
        // The run around each chosen block, and whether it may grow on.
        let mut runs: Vec<_> =
            recall.blocks.iter().map(|b| (b.block.id(), b.part.clone())).collect();
        for reach in 1..=request.neighbours.reach() {
            let mut has_grown = false;
            for (id, run) in &mut runs {
                let Some(&order) = self.order.get(id) else { continue };
                let before = order.checked_sub(reach).map(|next| (next, next));
                let after = order.checked_add(reach).map(|next| (next, next - 1));
                for (next, border) in before.into_iter().chain(after) {
                    let metas = self.store.metas();
                    let Some(meta) = metas.get(next) else { continue };
                    let Some(part) = request.part_of(meta) else { continue };
                    let touches = part.end == run.start || part.start == run.end;
                    if !touches || !self.goes_on_behind(border, request.neighbours)? {
                        continue;
                    }
                    if !recall.blocks.iter().any(|b| b.block.id() == meta.id) {
                        if recall.n_tokens() + range_len(&part) > request.max_tokens {
                            continue;
                        }
                        match self.index.vectors(&[meta.id], &mut vector) {
                            // Damaged text has no vector.
                            Err(IndexError::Unknown { .. }) => continue,
                            found => found?,
                        }
                        let distance = self.index.distance().between(embedding, &vector);
                        let n_blocks = recall.blocks.len();
                        self.take(&Hit { id: meta.id, distance }, part.clone(), recall)?;
                        if recall.blocks.len() == n_blocks {
                            continue;
                        }
                    }
                    *run = run.start.min(part.start)..run.end.max(part.end);
                    has_grown = true;
                }
            }
            if !has_grown {
                break;
            }
        }
        Ok(())
    }

    /// Whether the next block belongs to block number `order`, as far as `neighbours` ask.
    fn goes_on_behind(&self, order: usize, neighbours: Neighbours) -> Result<bool, MemoryError> {
        let [meta, next] = &self.store.metas()[order..order + 2] else { return Ok(false) };
        let file = |meta: &BlockMeta| meta.source.as_ref().map(|source| Arc::clone(&source.file));
        if file(meta) != file(next) {
            return Ok(false);
        }
        if let Neighbours::Blocks(_) = neighbours {
            return Ok(true);
        }
        let texts = (present(self.store.text(order))?, present(self.store.text(order + 1))?);
        let (Some(text), Some(next_text)) = texts else { return Ok(false) };
        let (text, next_text) = (text.text, next_text.text);
        let space = [
            &text[text.trim_end().len()..],
            &next_text[..next_text.len() - next_text.trim_start().len()],
        ];
        let n_lines = space.concat().matches('\n').count();
        Ok(meta.role == next.role && n_lines < 2)
    }

    /// The number of a block that was found; one that is no block's for an unknown one.
    fn order_of(&self, hit: &Hit) -> usize {
        self.order.get(&hit.id).copied().unwrap_or(usize::MAX)
    }

    fn count(&mut self, recall: &Recall) {
        self.stats.recalls_total += 1;
        self.stats.recalled_blocks_total += recall.blocks.len() as u64;
        self.stats.recalled_tokens_total += recall.n_tokens() as u64;
        self.stats.gated_blocks_total += recall.gated.len() as u64;
        self.stats.skipped_blocks_total += recall.skipped.len() as u64;
        self.stats.unreadable_blocks_total += recall.unreadable.len() as u64;
    }
}

/// What the store gave; `None` for a block that was forgotten or is damaged: it costs itself, and
/// nothing else.
fn present<T>(read: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::Forgotten { .. } | StoreError::Damaged { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
