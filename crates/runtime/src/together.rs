//! Decode steps of several streams in one pass over the weights.
//!
//! A step reads every weight once, whoever it is for, and that is what it costs; so the steps of
//! streams that generate at the same time are taken together. A row's result does not depend on the
//! rows beside it, so each stream goes on as it would alone, bit for bit.

use std::sync::Arc;
use std::time::Instant;

use everstream_kv_cache::TokenPos;
use everstream_memory::Role;
use everstream_model::{Sequence, Workspace};

use crate::{Origin, Policy, Session, SessionError};

/// A token that a stream takes next.
#[derive(Debug)]
pub struct Step<'a> {
    /// The stream.
    pub session: &'a mut Session,
    /// The token, as an answer of the model.
    pub token: u32,
}

/// Appends one token to each of several streams of the same model, as [`Session::append`] would one
/// after the other. Returns what came of each; a stream that fails is as it was.
///
/// Streams with policy `recompute` share nothing, and take their steps alone.
///
/// # Panics
///
/// If the streams have different models.
pub fn append_each(
    steps: &mut [Step<'_>],
    workspace: &mut Workspace,
) -> Vec<Result<(), SessionError>> {
    let Some(first) = steps.first() else { return Vec::new() };
    let model = Arc::clone(&first.session.model);
    let start = Instant::now();
    let mut origins = vec![Origin::turn(Role::Assistant); steps.len()];
    let mut results: Vec<Result<Option<u64>, SessionError>> = steps
        .iter_mut()
        .zip(&mut origins)
        .map(|(step, origin)| {
            assert!(Arc::ptr_eq(&model, &step.session.model), "streams of different models");
            if step.session.config.policy == Policy::Recompute {
                step.session.append(&[step.token], origin.clone())?;
                return Ok(None);
            }
            // Whatever would be refused is refused here, and refuses nobody else's step.
            step.session.check_dense(1)?;
            step.session.cache.check(1)?;
            step.session.model.check_tokens(&[step.token])?;
            step.session.before_chunk(&[step.token], &[], origin).map(Some)
        })
        .collect();

    let is_shared = |result: &Result<Option<u64>, SessionError>| matches!(result, Ok(Some(_)));
    let mut batch: Vec<Sequence<'_>> = steps
        .iter_mut()
        .zip(&results)
        .filter(|(_, result)| is_shared(result))
        .map(|(step, _)| Sequence::new(std::slice::from_ref(&step.token), &mut step.session.cache))
        .collect();
    let n_rows = batch.len();
    let forward = if n_rows == 0 { Ok(()) } else { model.forward(workspace, &mut batch) };
    let vocab_size = model.config().vocab_size;
    let logits = match (&forward, n_rows) {
        (Ok(()), 1..) => model.logits(workspace, 0..n_rows),
        _ => &[],
    };
    let mut rows = logits.chunks_exact(vocab_size);
    let elapsed = start.elapsed() / n_rows.max(1) as u32;
    for ((step, origin), result) in steps.iter_mut().zip(&mut origins).zip(&mut results) {
        let Ok(Some(logged)) = *result else { continue };
        let session = &mut *step.session;
        let tokens = [step.token];
        if let Err(error) = &forward {
            let undone = session.undo_chunk(&tokens, logged);
            *result = Err(undone.err().unwrap_or_else(|| error.clone().into()));
            continue;
        }
        let first = TokenPos(session.n_tokens);
        session.keep_newest(&tokens);
        session.count(&tokens, origin);
        session.record(&tokens, first, origin);
        // What its own buffers hold is the prediction before this one.
        session.workspace.clear();
        session.logits.clear();
        session.logits.extend(rows.next().into_iter().flatten());
        session.timings.forward += elapsed;
    }
    results.into_iter().map(|result| result.map(|_| ())).collect()
}
