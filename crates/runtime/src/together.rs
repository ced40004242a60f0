//! Decode steps of several streams in one pass over the weights.
//!
//! A step reads every weight once, whoever it is for, and that is what it costs; so the steps of
//! streams that generate at the same time are taken together. A row's result does not depend on the
//! rows beside it, so each stream goes on as it would alone, bit for bit.

use std::sync::Arc;
use std::time::Instant;

use everstream_kv_cache::TokenPos;
use everstream_memory::{Recall, Role};
use everstream_model::{Sequence, Workspace};

use crate::recent::{MAX_GUESSED, MAX_MATCH, SEARCHED_TOKENS, look_up};
use crate::{Origin, Policy, Session, SessionError};

/// A token that a stream takes next.
#[derive(Debug)]
pub struct Step<'a> {
    /// The stream.
    pub session: &'a mut Session,
    /// The token, as an answer of the model.
    pub token: u32,
}

/// Tokens that were computed ahead of a stream as a guess, and what may follow each of them.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// The token that was appended last, and the guess: its last [`KvCache::n_ahead`] tokens stand ahead.
    ///
    /// [`KvCache::n_ahead`]: everstream_kv_cache::KvCache::n_ahead
    tokens: Vec<u32>,
    /// Predictions after each token of the guess: `[tokens.len() - 1, vocab_size]`.
    logits: Vec<f32>,
}

/// How well answers were guessed by what stood in the stream before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drafts {
    /// Tokens that were guessed, and computed beside the token before them.
    pub drafted: u64,
    /// Those that the model chose as well, and that cost no step of their own.
    pub accepted: u64,
}

/// Appends one token to each of several streams of the same model, as [`Session::append`] would one
/// after the other. Returns what came of each; a stream that fails is as it was.
///
/// What may follow a token is guessed, and computed with it ([`SessionConfig::draft_tokens`]): if a later
/// step asks for just that, it is there already. A step gives the same in any case, bit for bit.
///
/// Streams with policy `recompute` share nothing, and take their steps alone.
///
/// # Panics
///
/// If the streams have different models.
///
/// [`SessionConfig::draft_tokens`]: crate::SessionConfig::draft_tokens
pub fn append_each(
    steps: &mut [Step<'_>],
    workspace: &mut Workspace,
) -> Vec<Result<(), SessionError>> {
    let Some(first) = steps.first() else { return Vec::new() };
    let model = Arc::clone(&first.session.model);
    let n_steps = steps.len();
    let mut origins = vec![Origin::turn(Role::Assistant); n_steps];
    let mut results: Vec<Result<Option<u64>, SessionError>> = steps
        .iter_mut()
        .zip(&mut origins)
        .map(|(step, origin)| {
            let Step { session, token } = step;
            assert!(Arc::ptr_eq(&model, &session.model), "streams of different models");
            if session.config.policy == Policy::Recompute {
                session.append(&[*token], origin.clone())?;
                return Ok(None);
            }
            // Whatever would be refused is refused here, and refuses nobody else's step.
            session.check_dense(1)?;
            session.cache.check(1)?;
            session.model.check_tokens(&[*token])?;
            let logged = session.before_chunk(&[*token], &[], origin)?;
            if session.take_ahead(*token) {
                session.appended(*token, origin);
                return Ok(None);
            }
            session.draft(*token, session.config.draft_tokens / n_steps);
            Ok(Some(logged))
        })
        .collect();

    let start = Instant::now();
    let is_shared = |result: &Result<Option<u64>, SessionError>| matches!(result, Ok(Some(_)));
    let mut batch: Vec<Sequence<'_>> = steps
        .iter_mut()
        .zip(&results)
        .filter(|(_, result)| is_shared(result))
        .map(|(step, _)| {
            let Session { ahead, cache, .. } = &mut *step.session;
            Sequence::new(&ahead.tokens, cache).with_ahead(ahead.tokens.len() - 1)
        })
        .collect();
    let n_shared = batch.len();
    let forward = if n_shared == 0 { Ok(()) } else { model.forward(workspace, &mut batch) };
    let mut logits = match (&forward, n_shared) {
        (Ok(()), 1..) => model.logits(workspace, 0..workspace.n_rows()),
        _ => &[],
    };
    let elapsed = start.elapsed() / n_shared.max(1) as u32;
    for ((step, origin), result) in steps.iter_mut().zip(&mut origins).zip(&mut results) {
        let session = &mut *step.session;
        let Ok(Some(logged)) = *result else { continue };
        if let Err(error) = &forward {
            let undone = session.undo_chunk(&[step.token], logged);
            *result = Err(undone.err().unwrap_or_else(|| error.clone().into()));
            continue;
        }
        let vocab_size = model.config().vocab_size;
        let rows;
        (rows, logits) = logits.split_at(session.ahead.tokens.len() * vocab_size);
        let (next, ahead) = rows.split_at(vocab_size);
        session.timings.forward += elapsed;
        session.drafts.drafted += session.ahead.tokens.len() as u64 - 1;
        session.ahead.logits.clear();
        session.ahead.logits.extend_from_slice(ahead);
        session.logits.clear();
        session.logits.extend_from_slice(next);
        // What its own buffers hold is the prediction before this one.
        session.workspace.clear();
        session.appended(step.token, origin);
    }
    results.into_iter().map(|result| result.map(|_| ())).collect()
}

impl Session {
    /// Appends a token of the model's answer.
    pub(crate) fn append_answer(&mut self, token: u32) -> Result<(), SessionError> {
        if self.config.policy == Policy::Recompute {
            return self.append(&[token], Origin::turn(Role::Assistant));
        }
        let mut workspace = std::mem::take(&mut self.workspace);
        let results = append_each(&mut [Step { session: self, token }], &mut workspace);
        workspace.clear();
        self.workspace = workspace;
        results.into_iter().collect()
    }

    /// How well answers were guessed.
    #[must_use]
    pub fn drafts(&self) -> Drafts {
        self.drafts
    }

    /// Guesses at most `limit` tokens that may follow `token`, as far as the cache can take them.
    fn draft(&mut self, token: u32, limit: usize) {
        self.cache.drop_ahead();
        self.ahead.tokens.clear();
        self.ahead.tokens.push(token);
        let timeline = self.cache.timeline();
        let mut limit = timeline.next_chunk(1 + limit.min(MAX_GUESSED)) - 1;
        if self.config.policy == Policy::Dense {
            limit = limit.min(self.config.max_tokens - self.n_tokens as usize - 1);
        }
        if limit == 0 || timeline.clusters().is_some() {
            return;
        }
        let recall = self.last_recall.as_ref().filter(|_| self.sections().recalled > 0);
        let recalled: Vec<u32> = recall.into_iter().flat_map(Recall::tokens).collect();
        let texts = [&*recalled, self.recent.newest(SEARCHED_TOKENS)];
        let guess = look_up(self.recent.newest(MAX_MATCH), token, texts, limit);
        let is_end = |id: &u32| self.model.tokenizer().eos_ids().contains(id);
        self.ahead.tokens.extend(guess.iter().copied().take_while(|id| !is_end(id)));
    }

    /// Appends `token` if it was guessed and computed.
    fn take_ahead(&mut self, token: u32) -> bool {
        let Ahead { tokens, logits } = &self.ahead;
        let next = tokens.len().checked_sub(self.cache.n_ahead());
        let Some(at) = next.filter(|&at| tokens.get(at) == Some(&token)) else { return false };
        let vocab_size = self.model.config().vocab_size;
        self.logits.clear();
        self.logits.extend_from_slice(&logits[(at - 1) * vocab_size..][..vocab_size]);
        self.drafts.accepted += 1;
        self.cache.take_ahead()
    }

    /// The cache has taken `token`.
    fn appended(&mut self, token: u32, origin: &mut Origin) {
        let first = TokenPos(self.n_tokens);
        self.keep_newest(&[token]);
        self.count(&[token], origin);
        self.record(&[token], first, origin);
    }
}
