//! Continues a stream, token by token.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use everstream_kernels::log_sum_exp;
use everstream_kv_cache::TokenPos;
use everstream_memory::Role;
use everstream_model::TextStream;

use crate::perplexity::Score;
use crate::recorder::Recorder;
use crate::{Origin, Sampler, SamplerConfig, Session, SessionError};

/// When to stop, and how to choose.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Tokens at most.
    pub max_tokens: usize,
    /// How to choose tokens.
    pub sampler: SamplerConfig,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Is added to the logits of tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Whether to say how likely each token was.
    pub log_probs: bool,
    /// Of how many tokens to say that at each step, the most likely ones.
    pub n_top: usize,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        let sampler = SamplerConfig::default();
        let (stop, logit_bias) = (Vec::new(), Vec::new());
        Self { max_tokens: 256, sampler, stop, logit_bias, log_probs: false, n_top: 0 }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model ended it.
    EndOfTurn,
    /// A stop text appeared.
    StopText,
    /// It reached its length, or a dense cache its end.
    MaxTokens,
    /// The receiver stopped it.
    Interrupted,
}

impl StopReason {
    /// The name in JSON output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::EndOfTurn => "end_of_turn",
            Self::StopText => "stop_text",
            Self::MaxTokens => "max_tokens",
            Self::Interrupted => "interrupted",
        }
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Generated {
    /// Its text.
    pub text: String,
    /// Its tokens, without the one that ended it.
    pub tokens: Vec<u32>,
    /// If [`GenerateOptions::log_probs`] asked for it, how likely each token was; one more than tokens
    /// if the model ended the answer.
    pub log_probs: Vec<TokenLogProb>,
    /// Why it ended.
    pub stop: StopReason,
    /// Time of all decode steps.
    pub elapsed: Duration,
}

/// How likely a token was, before temperature and penalties.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogProb {
    /// The token.
    pub token: u32,
    /// The logarithm of its probability.
    pub log_prob: f64,
    /// The [`GenerateOptions::n_top`] most likely tokens there, and the logarithms of their probabilities.
    pub top: Vec<(u32, f64)>,
}

impl TokenLogProb {
    /// How likely `token` is by these logits, `[vocab_size]`, and the `n_top` most likely ones.
    #[must_use]
    pub fn new(logits: &[f32], token: u32, n_top: usize) -> Self {
        let total = log_sum_exp(logits);
        let log_prob = |token: u32| f64::from(logits[token as usize]) - total;
        let top = most_likely(logits, n_top);
        Self {
            token,
            log_prob: log_prob(token),
            top: top.into_iter().map(|token| (token, log_prob(token))).collect(),
        }
    }
}

/// What an answer may be: which tokens may come next.
pub trait Constraint: std::fmt::Debug + Send {
    /// Sets the logits of tokens that may not come next to negative infinity; one that ends the answer
    /// may come where the answer may end.
    ///
    /// # Errors
    ///
    /// In words, if nothing may come.
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String>;

    /// A token has been chosen that does not end the answer.
    ///
    /// # Errors
    ///
    /// In words, if it may not come.
    fn took(&mut self, token: u32) -> Result<(), String>;
}

/// An answer in the making: which token comes next, and what has become text. Whoever drives it
/// appends the tokens, so that streams can take their steps together ([`append_each`]).
///
/// [`append_each`]: crate::append_each
#[derive(Debug)]
pub struct Generation {
    options: GenerateOptions,
    sampler: Sampler,
    tokens: Vec<u32>,
    log_probs: Vec<TokenLogProb>,
    stream: TextStream,
    text: StoppableText,
    stop: Option<StopReason>,
    constraint: Option<Box<dyn Constraint>>,
    /// Logits of tokens that may come; reused.
    masked: Vec<f32>,
    start: Instant,
}

impl Generation {
    /// The beginning of an answer.
    ///
    /// # Errors
    ///
    /// [`SessionError::Sampling`] for settings out of range.
    pub fn new(options: GenerateOptions) -> Result<Self, SessionError> {
        Ok(Self {
            sampler: Sampler::new(options.sampler)?.with_bias(options.logit_bias.clone()),
            tokens: Vec::new(),
            log_probs: Vec::new(),
            stream: TextStream::new(),
            text: StoppableText::new(options.stop.clone()),
            stop: None,
            constraint: None,
            masked: Vec::new(),
            start: Instant::now(),
            options,
        })
    }

    /// The answer will be what `constraint` lets it be, as far as its length reaches.
    #[must_use]
    pub fn with_constraint(self, constraint: Box<dyn Constraint>) -> Self {
        Self { constraint: Some(constraint), ..self }
    }

    /// The next token, which is to be appended to the stream and then given to
    /// [`took`](Self::took); `None` if the answer has ended.
    ///
    /// # Errors
    ///
    /// [`SessionError`]: an empty stream, a prediction that is none, a recall in between that fails.
    pub fn next(&mut self, session: &mut Session) -> Result<Option<u32>, SessionError> {
        if self.stop.is_some() {
            return Ok(None);
        }
        if session.logits().is_empty() {
            return Err(SessionError::EmptyStream);
        }
        if self.tokens.len() >= self.options.max_tokens || session.is_full() {
            self.stop = Some(StopReason::MaxTokens);
            return Ok(None);
        }
        if !session.logits().iter().any(|logit| logit.is_finite()) {
            return Err(SessionError::NotFinite { n_tokens: session.n_tokens() });
        }
        let position = TokenPos(session.n_tokens());
        let mut logits = session.logits();
        if let Some(constraint) = &mut self.constraint {
            self.masked.clear();
            self.masked.extend_from_slice(logits);
            constraint
                .mask(&mut self.masked)
                .map_err(|reason| SessionError::Constraint { reason })?;
            logits = &self.masked;
        }
        let token = self.sampler.sample(logits, &self.tokens, position);
        if self.options.log_probs {
            let n_top = self.options.n_top;
            self.log_probs.push(TokenLogProb::new(session.logits(), token, n_top));
        }
        if session.model().tokenizer().eos_ids().contains(&token) {
            self.stop = Some(StopReason::EndOfTurn);
            return Ok(None);
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.took(token).map_err(|reason| SessionError::Constraint { reason })?;
        }
        self.tokens.push(token);
        let every = session.config().recall.every;
        if every > 0 && self.tokens.len() > 1 && (self.tokens.len() - 1).is_multiple_of(every) {
            session.recall_again("")?;
        }
        Ok(Some(token))
    }

    /// The newest token has become part of the stream: `receive` gets what is text by now.
    pub fn took(&mut self, session: &Session, receive: &mut dyn FnMut(&str) -> ControlFlow<()>) {
        let Some(&token) = self.tokens.last() else { return };
        let tokenizer = session.model().tokenizer();
        // A signal is part of the stream, and nothing that anybody reads.
        let bytes = if tokenizer.is_special(token) { &[] } else { tokenizer.token_bytes(token) };
        let piece = self.stream.push(bytes);
        if self.text.push(&piece, receive).is_break() {
            self.stop = Some(match self.text.is_stopped {
                true => StopReason::StopText,
                false => StopReason::Interrupted,
            });
        }
    }

    /// How likely the tokens so far were, if [`GenerateOptions::log_probs`] asked for it.
    #[must_use]
    pub fn log_probs(&self) -> &[TokenLogProb] {
        &self.log_probs
    }

    /// What was generated; `receive` gets the rest of the text, unless it has stopped the answer.
    pub fn finish(mut self, receive: &mut dyn FnMut(&str) -> ControlFlow<()>) -> Generated {
        let stop = self.stop.unwrap_or(StopReason::Interrupted);
        if stop != StopReason::Interrupted {
            self.text.finish(&self.stream.finish(), receive);
        }
        Generated {
            text: self.text.shown,
            tokens: self.tokens,
            log_probs: self.log_probs,
            stop,
            elapsed: self.start.elapsed(),
        }
    }
}

impl Session {
    /// Generates until the model, a stop text, the length or `receive` ends it. `receive` gets the
    /// text piece by piece; what could become a stop text is held back.
    ///
    /// All tokens but one that ends the turn become part of the stream.
    ///
    /// # Errors
    ///
    /// [`SessionError`]; what was generated before stays in the stream.
    pub fn generate(
        &mut self,
        options: &GenerateOptions,
        receive: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated, SessionError> {
        let mut generation = Generation::new(options.clone())?;
        while let Some(token) = generation.next(self)? {
            self.append_answer(token)?;
            generation.took(self, receive);
        }
        Ok(generation.finish(receive))
    }

    /// How surprised the model is by these tokens as what comes next; they become part of the stream.
    ///
    /// # Errors
    ///
    /// As [`Session::append`], and [`SessionError::EmptyStream`].
    pub fn score_next(&mut self, tokens: &[u32], origin: Origin) -> Result<Score, SessionError> {
        let Some((&first, rest)) = tokens.split_first() else { return Ok(Score::default()) };
        if self.logits().is_empty() {
            return Err(SessionError::EmptyStream);
        }
        let mut total = -log_prob(self.logits(), first);
        let mut rest = rest.iter();
        self.append_observed(tokens, origin, &mut |_, logits| {
            total -= rest.next().map_or(0.0, |&token| log_prob(logits, token));
        })?;
        if total.is_nan() {
            return Err(SessionError::NotFinite { n_tokens: self.n_tokens() });
        }
        Ok(Score { tokens: tokens.len(), total })
    }

    /// Answers the turn that was read last and closes the answer, so that the next may follow; an
    /// answer that an error breaks off is closed as well, as far as that goes.
    ///
    /// # Errors
    ///
    /// As [`Session::generate`].
    pub fn answer(
        &mut self,
        options: &GenerateOptions,
        receive: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated, SessionError> {
        let generated = self.generate(options, receive);
        let closed = self.close_answer();
        let generated = generated?;
        closed?;
        Ok(generated)
    }

    /// Ends the model's turn, whatever there is of it.
    ///
    /// # Errors
    ///
    /// As [`Session::generate`].
    pub fn close_answer(&mut self) -> Result<(), SessionError> {
        let (closing, n_there) = self.closing()?;
        let rest = &closing[n_there..];
        // A dense cache that is full takes nothing behind the answer either.
        if self.check_dense(rest.len()).is_ok() {
            self.append(rest, Origin::turn(Role::Assistant).with_words(0..0))?;
        }
        self.end_turn()
    }

    /// What a template writes behind an answer, and how much of it stands there already: a crash may
    /// have come before the end of the turn was noted.
    pub(crate) fn closing(&self) -> Result<(Vec<u32>, usize), SessionError> {
        let closing = self.model().template().after_answer()?;
        let special = everstream_model::SpecialTokens::Parse;
        let closing = self.model().tokenizer().encode(&closing, special);
        let markup = self.recorder.as_ref().map_or_else(Vec::new, Recorder::newest_markup);
        let is_there = |n: &usize| markup.ends_with(&closing[..*n]);
        let n_there = (0..=closing.len()).rev().find(is_there).unwrap_or(0);
        Ok((closing, n_there))
    }
}

/// The logarithm of a token's probability.
fn log_prob(logits: &[f32], token: u32) -> f64 {
    f64::from(logits[token as usize]) - log_sum_exp(logits)
}

/// The `n` most likely tokens, the most likely first; among equals the lower one.
fn most_likely(logits: &[f32], n: usize) -> Vec<u32> {
    let mut best: Vec<u32> = Vec::with_capacity(n + 1);
    for (token, &logit) in (0u32..).zip(logits) {
        if best.len() == n && best.last().is_none_or(|&last| logit <= logits[last as usize]) {
            continue;
        }
        let at = best.partition_point(|&other| logits[other as usize] >= logit);
        best.insert(at, token);
        best.truncate(n);
    }
    best
}

/// Text that ends where a stop text begins.
#[derive(Debug)]
struct StoppableText {
    stop: Vec<String>,
    shown: String,
    /// The end of the text, as long as it could still become a stop text.
    held: String,
    is_stopped: bool,
}

impl StoppableText {
    fn new(stop: Vec<String>) -> Self {
        Self { stop, shown: String::new(), held: String::new(), is_stopped: false }
    }

    fn push(
        &mut self,
        piece: &str,
        receive: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        self.held.push_str(piece);
        let stops = || self.stop.iter().filter(|s| !s.is_empty());
        if let Some(at) = stops().filter_map(|s| self.held.find(s.as_str())).min() {
            self.is_stopped = true;
            self.held.truncate(at);
            let _ = self.release(at, receive);
            return ControlFlow::Break(());
        }
        let begins = |i: usize| stops().any(|s| s.starts_with(&self.held[i..]));
        let keep_from = self.held.char_indices().map(|(i, _)| i).find(|&i| begins(i));
        self.release(keep_from.unwrap_or(self.held.len()), receive)
    }

    fn finish(&mut self, rest: &str, receive: &mut dyn FnMut(&str) -> ControlFlow<()>) {
        if !self.is_stopped {
            self.held.push_str(rest);
            // Nothing follows, so the receiver's wish to stop has no effect.
            let _ = self.release(self.held.len(), receive);
        }
    }

    fn release(
        &mut self,
        n_bytes: usize,
        receive: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let text: String = self.held.drain(..n_bytes).collect();
        if text.is_empty() {
            return ControlFlow::Continue(());
        }
        self.shown.push_str(&text);
        receive(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stop: &[&str], pieces: &[&str]) -> (String, bool) {
        let stop: Vec<String> = stop.iter().map(|s| (*s).to_owned()).collect();
        let mut text = StoppableText::new(stop);
        let mut received = String::new();
        let mut receive = |s: &str| {
            received.push_str(s);
            ControlFlow::Continue(())
        };
        for piece in pieces {
            if text.push(piece, &mut receive).is_break() {
                break;
            }
        }
        text.finish("", &mut receive);
        assert_eq!(received, text.shown);
        (text.shown, text.is_stopped)
    }

    #[test]
    fn the_most_likely_come_first() {
        let logits = [1.0, 3.0, -2.0, 3.0, 2.0];
        assert_eq!(most_likely(&logits, 0), [0u32; 0]);
        assert_eq!(most_likely(&logits, 3), [1, 3, 4]);
        assert_eq!(most_likely(&logits, 9), [1, 3, 4, 0, 2]);
        let of = TokenLogProb::new(&logits, 4, 1);
        assert_eq!(of.top[0].0, 1);
        let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        assert!((of.log_prob - (2.0 - total.ln())).abs() < 1e-6);
        assert!((of.top[0].1 - (3.0 - total.ln())).abs() < 1e-6);
    }

    #[test]
    fn a_stop_text_over_several_pieces_is_never_shown() {
        assert_eq!(run(&["END"], &["a E", "N", "D b"]), ("a ".into(), true));
        assert_eq!(run(&["END"], &["a E", "N", "x"]), ("a ENx".into(), false));
        assert_eq!(run(&["END"], &["a EN"]), ("a EN".into(), false));
        assert_eq!(run(&["\n\n", "Q:"], &["one\n", "Q", ":"]), ("one\n".into(), true));
        assert_eq!(run(&[""], &["all"]), ("all".into(), false));
        assert_eq!(run(&["é!"], &["é", "é", "!"]), ("é".into(), true));
    }
}
