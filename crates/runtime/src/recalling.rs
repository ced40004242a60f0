//! What enters the recalled section: found, chosen, and put there with stored keys and values or
//! with new ones.

use std::sync::Arc;
use std::time::Instant;

use everstream_kv_cache::{KvSource, Place};
use everstream_memory::{Found, MemoryError, Recall, RecallRequest};
use everstream_model::Sequence;

use crate::recorder::Rows;
use crate::saved::Event;
use crate::session::{QUERY_TOKENS, Session, shape};
use crate::{Insertion, RecallConfig, SessionError};

/// Tokens at the start of each block that [`Insertion::Repair`] computes again.
///
/// Source: Hu et al., "EPIC: Efficient Position-Independent Caching for Serving Large Language
/// Models", 2024, arXiv:2410.15332, whose LegoLink does so for the first tokens of each chunk.
pub const REPAIR_TOKENS: usize = 16;

/// How a recall entered the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reinsertion {
    pub(crate) place: Place,
    pub(crate) insertion: Insertion,
}

impl Session {
    /// Ends the last recall and puts into the cache what is relevant to `query`; a blank query
    /// stands for the newest tokens. Only `remember` recalls anything.
    ///
    /// # Errors
    ///
    /// [`SessionError`]; the cache is then as it was.
    pub fn recall(&mut self, query: &str) -> Result<&Recall, SessionError> {
        self.recall_up_to(query, self.config.recall.max_blocks)
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
        let start = Instant::now();
        let newest = &self.recent[self.recent.len().saturating_sub(QUERY_TOKENS)..];
        let query = if query.trim().is_empty() { self.text_of(newest) } else { query.to_owned() };
        let mut recall = Recall::default();
        if let Some(recorder) = &mut self.recorder {
            recorder.settle(self.model.tokenizer(), &self.cache)?;
            let request = RecallRequest {
                max_tokens: self.config.context_tokens,
                max_blocks,
                order: self.config.recall.order,
                neighbours: self.config.recall.neighbours,
                filter: self.config.recall.filter.clone(),
                ..RecallRequest::new(&query, self.cache.timeline().evicted())
            };
            recall = recorder.memory.recall(&request)?;
            self.insert(recall)?;
        } else {
            self.last_recall = Some(recall);
        }
        self.timings.recall += start.elapsed();
        Ok(self.last_recall.get_or_insert_default())
    }

    /// Ends the last recall and puts blocks into the cache that somebody else chose, in the order
    /// given.
    ///
    /// # Errors
    ///
    /// [`SessionError::Memory`] if a block is of another shape, [`SessionError::Cache`] if the
    /// blocks do not fit; the cache is then as it was.
    pub fn insert(&mut self, recall: Recall) -> Result<(), SessionError> {
        let RecallConfig { place, insertion, .. } = self.config.recall;
        self.insert_as(Reinsertion { place, insertion }, recall)
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
        let tokens: Vec<u32> = recall.blocks.iter().flat_map(|b| b.tokens()).copied().collect();
        self.model.check_tokens(&tokens)?;
        // Tried on the positions alone, so that the last recall ends only if this one begins.
        let mut trial = self.cache.timeline().clone();
        trial.end_recall();
        trial.begin_recall(how.place, tokens.len())?;
        self.log(|| Event::recall(how, &recall))?;
        self.end_recall();
        let rows: Vec<Rows<'_>> = recall.blocks.iter().map(Rows).collect();
        let sources: Vec<&dyn KvSource> = rows.iter().map(|r| r as &dyn KvSource).collect();
        match how.insertion {
            Insertion::Kv => self.cache.recall(how.place, &sources)?,
            Insertion::Tokens => {
                self.cache.open_recall(tokens.len())?;
                self.compute_recalled(&tokens, &(0..tokens.len()).collect::<Vec<_>>(), how.place)?;
            }
            Insertion::Repair => {
                self.cache.recall(Place::Between, &sources)?;
                self.compute_recalled(&tokens, &first_rows(&recall), how.place)?;
            }
        }
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
        let held = self.cache.timeline().state().recalled;
        let parts = |recall: &Recall| -> Vec<_> {
            recall.blocks.iter().map(|b| (b.block.id(), b.part.clone())).collect()
        };
        held.is_none_or(|held| held == (how.place, recall.n_tokens()))
            && self.recalled_as == how.insertion
            && self.recalled_at == self.n_tokens
            && self.last_recall.as_ref().is_some_and(|last| parts(last) == parts(recall))
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

/// The first rows of each recalled block, as rows of the recalled section.
fn first_rows(recall: &Recall) -> Vec<usize> {
    let (mut rows, mut start) = (Vec::new(), 0);
    for block in &recall.blocks {
        rows.extend((start..start + block.n_tokens()).take(REPAIR_TOKENS));
        start += block.n_tokens();
    }
    rows
}
