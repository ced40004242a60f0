//! One turn: what is recalled, the answer, and what both cost.

use std::io::Write;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use everstream_runtime::memory::Recall;
use everstream_runtime::{Generated, StopReason, Timings};
use serde_json::{Value, json};

use super::Chat;
use super::one_line::OneLine;
use crate::{output, recalled};

/// What a turn took.
struct Turn {
    n_prompt: u64,
    recall: Recall,
    /// Times of the session before the turn.
    before: Timings,
    /// Until the prompt was read, recall included.
    prefill: Duration,
    /// Until the first piece of the answer.
    ttft: Option<Duration>,
    total: Duration,
}

impl Chat<'_> {
    /// Reads a turn and answers it.
    pub(super) fn turn(&mut self, text: &str) -> anyhow::Result<()> {
        self.stop.store(false, Ordering::Relaxed);
        let (start, before) = (Instant::now(), self.session.timings());
        let n_before = self.session.n_tokens();
        let query = self.next_query.take();
        let query = query.as_deref().unwrap_or(text);
        let recall = self.session.turn_about(text, query)?.clone();
        let (n_prompt, prefill) = (self.session.n_tokens() - n_before, start.elapsed());
        recalled::note(self.session.model().tokenizer(), &recall);
        let (generated, ttft) = self.answer(start)?;
        self.n_turns += 1;
        match generated.stop {
            StopReason::Interrupted if self.is_terminal => output::dim_note("(stopped)"),
            StopReason::MaxTokens if generated.tokens.len() < self.args.sample.max_tokens => {
                output::dim_note("(cut off where the cache ends: --context-limit)");
            }
            StopReason::MaxTokens => {
                let limit = self.args.sample.max_tokens;
                output::dim_note(&format!("(cut off at --max-tokens {limit})"));
            }
            _ => {}
        }
        if self.args.json {
            let total = start.elapsed();
            let turn = Turn { n_prompt, recall, before, prefill, ttft, total };
            writeln!(std::io::stdout(), "{}", self.json(&turn, &generated))?;
        }
        Ok(())
    }

    /// Answers, writing the text as it comes unless an object will hold it.
    fn answer(&mut self, start: Instant) -> anyhow::Result<(Generated, Option<Duration>)> {
        let (is_json, is_terminal) = (self.args.json, self.is_terminal);
        let mut line = OneLine::new(std::io::stdout().lock());
        let (mut ttft, mut failed) = (None, None);
        let stop = std::sync::Arc::clone(&self.stop);
        let generated = self.session.answer(&self.args.sample.options(), &mut |piece| {
            ttft.get_or_insert_with(|| start.elapsed());
            let written = match (is_json, is_terminal) {
                (true, _) => Ok(()),
                (false, true) => line.write_as_it_is(piece),
                (false, false) => line.write(piece),
            };
            failed = written.err();
            match failed.is_some() || stop.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        // Also behind an answer that failed: what is said next stands on a line of its own.
        if !is_json {
            line.finish()?;
        }
        Ok((generated?, ttft))
    }

    fn json(&self, turn: &Turn, generated: &Generated) -> Value {
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        let (before, after) = (turn.before, self.session.timings());
        let recall = after.recall.saturating_sub(before.recall);
        let sections = self.session.sections();
        json!({
            "turn": self.n_turns,
            "text": generated.text,
            "stop": generated.stop.name(),
            "prompt_tokens": turn.n_prompt,
            "generated_tokens": generated.tokens.len(),
            "recalled": recalled::json(self.session.model().tokenizer(), &turn.recall),
            "gated": turn.recall.gated.len(),
            "skipped": turn.recall.skipped.len(),
            "timings_ms": {
                "recall": ms(recall),
                "prefill": ms(turn.prefill.saturating_sub(recall)),
                "ttft": turn.ttft.map(ms),
                "decode": ms(generated.elapsed),
                "remember": ms(after.remember.saturating_sub(before.remember)),
                "total": ms(turn.total),
            },
            "sections": {
                "sinks": sections.sinks,
                "clusters": sections.clusters,
                "recalled": sections.recalled,
                "window": sections.window,
            },
        })
    }
}
