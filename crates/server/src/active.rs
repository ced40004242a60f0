//! A stream that is being worked on: what is to be read, chunk by chunk, and the answer behind it.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use everstream_runtime::memory::Role;
use everstream_runtime::{
    Constraint, GenerateOptions, Generation, Ingest, Origin, Prefill, QUERY_TOKENS, Session,
    SessionError, TokenLogProb,
};
use tokio::sync::mpsc::UnboundedSender;

use crate::conversation::{Before, Past, Speaker};
use crate::engine::{Begun, DocumentEnd, Event, Piece, Recalled};
use crate::saved::SessionId;

/// Where a stream goes when its work is done.
#[derive(Debug)]
pub(crate) enum Home {
    /// It rests until its next turn.
    Conversation(Box<TurnOf>),
    /// It has a name.
    Saved(SessionId),
    /// Nobody asks for it again.
    Nowhere,
}

/// A turn of a conversation.
#[derive(Debug)]
pub(crate) struct TurnOf {
    pub(crate) past: Past,
    /// The conversation as it was, for the case that nothing comes of this turn.
    pub(crate) before: Option<Before>,
}

/// What is still to be read.
#[derive(Debug)]
enum ToRead {
    /// A turn that has its answer.
    PastTurn(String),
    /// That answer.
    Answer(String),
    /// The turn to be answered.
    Turn(String),
    /// Tokens of a text that is to go on.
    Prompt(Vec<u32>),
    /// The end of it, in front of which is put what it asks for.
    PromptEnd(Vec<u32>),
    /// A document.
    Document(Ingest),
}

/// What is being read.
#[derive(Debug)]
enum Reading {
    /// An answer is to be closed behind it.
    Answer(Prefill),
    Other(Prefill),
    Document(Ingest),
}

/// What comes after a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// There is more to be read.
    Read,
    /// The answer, for which so many blocks were recalled.
    Answer(usize),
    /// Nothing: all that was asked is done.
    End,
}

/// A stream that is being worked on.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) session: Session,
    pub(crate) home: Home,
    pub(crate) generation: Option<Generation>,
    pub(crate) events: UnboundedSender<Event>,
    to_read: VecDeque<ToRead>,
    reading: Option<Reading>,
    options: GenerateOptions,
    constraint: Option<Box<dyn Constraint>>,
    n_known: u64,
    /// How likely the tokens of the prompt were, if somebody asks.
    echo: Option<Vec<TokenLogProb>>,
    /// Tokens of the answer of which the client knows how likely they were.
    n_told: usize,
}

impl Active {
    pub(crate) fn new(
        session: Session,
        options: GenerateOptions,
        events: UnboundedSender<Event>,
    ) -> Self {
        Self {
            n_known: session.n_tokens(),
            session,
            home: Home::Nowhere,
            generation: None,
            events,
            to_read: VecDeque::new(),
            reading: None,
            options,
            constraint: None,
            echo: None,
            n_told: 0,
        }
    }

    /// What the answer must be.
    pub(crate) fn with_constraint(self, constraint: Option<Box<dyn Constraint>>) -> Self {
        Self { constraint, ..self }
    }

    /// What is read first, if the stream is empty.
    pub(crate) fn with_first(self, first: Option<Prefill>) -> Self {
        Self { reading: first.map(Reading::Other), ..self }
    }

    /// The turns of a conversation, of which the first `n_known` are known.
    pub(crate) fn with_turns(self, past: Past, n_known: usize, before: Option<Before>) -> Self {
        let new = &past.turns[n_known..];
        let to_read = new.iter().enumerate().map(|(i, turn)| match turn.speaker {
            Speaker::Assistant => ToRead::Answer(turn.text.clone()),
            Speaker::User if i + 1 == new.len() => ToRead::Turn(turn.text.clone()),
            Speaker::User => ToRead::PastTurn(turn.text.clone()),
        });
        let to_read = to_read.collect();
        Self { to_read, home: Home::Conversation(Box::new(TurnOf { past, before })), ..self }
    }

    /// A turn of a session with a name.
    pub(crate) fn with_turn(self, id: SessionId, text: String) -> Self {
        Self { to_read: [ToRead::Turn(text)].into(), home: Home::Saved(id), ..self }
    }

    /// A document for a session with a name.
    pub(crate) fn with_document(self, id: SessionId, document: Ingest) -> Self {
        Self { to_read: [ToRead::Document(document)].into(), home: Home::Saved(id), ..self }
    }

    /// A text that is to go on. Whoever asks how likely it was gets it read as it stands.
    pub(crate) fn with_prompt(self, mut tokens: Vec<u32>, echo: bool) -> Self {
        let n_sink = self.session.config().n_sink;
        let n_begin = tokens.len().saturating_sub(QUERY_TOKENS);
        let end = if echo || n_begin <= n_sink { Vec::new() } else { tokens.split_off(n_begin) };
        let mut to_read = VecDeque::from([ToRead::Prompt(tokens)]);
        if !end.is_empty() {
            to_read.push_back(ToRead::PromptEnd(end));
        }
        Self { to_read, echo: echo.then(Vec::new), ..self }
    }

    /// Whether nobody waits for what comes of it.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Whether more was read than what every stream begins with, or that is not all there yet.
    pub(crate) fn is_begun(&self) -> bool {
        let is_first = self.n_known == 0 && !self.to_read.is_empty();
        !(is_first && matches!(self.reading, Some(Reading::Other(_))))
    }

    pub(crate) fn has_to_read(&self) -> bool {
        self.generation.is_none()
    }

    /// Reads one chunk; begins the answer when nothing is left.
    pub(crate) fn read_chunk(&mut self) -> Result<Next, SessionError> {
        let reading = match self.reading.take() {
            Some(reading) => reading,
            None => match self.to_read.pop_front() {
                Some(to_read) => self.begin(to_read)?,
                None => return self.begin_answer(),
            },
        };
        match reading {
            Reading::Answer(mut prefill) => match self.session.prefill(&mut prefill)? {
                true => self.reading = Some(Reading::Answer(prefill)),
                false => self.session.close_answer()?,
            },
            Reading::Other(mut prefill) => match self.prefill(&mut prefill)? {
                true => self.reading = Some(Reading::Other(prefill)),
                false if self.to_read.is_empty() => return self.begin_answer(),
                false => {}
            },
            Reading::Document(mut ingest) => {
                let has_more = self.session.ingest_next(&mut ingest)?;
                let (n_read, n_tokens) = (ingest.n_read(), ingest.n_tokens());
                let _ = self.events.send(Event::Read { n_read, n_tokens });
                if !has_more {
                    let (n_known, n_stream) = (ingest.n_before(), self.session.n_tokens());
                    let end = DocumentEnd { n_tokens, n_known, n_stream };
                    let _ = self.events.send(Event::DocumentEnded(end));
                    return Ok(Next::End);
                }
                self.reading = Some(Reading::Document(ingest));
            }
        }
        Ok(Next::Read)
    }

    fn begin(&mut self, to_read: ToRead) -> Result<Reading, SessionError> {
        let session = &mut self.session;
        let prompt = |tokens| Prefill::new(tokens, Origin::turn(Role::Document));
        Ok(match to_read {
            ToRead::PastTurn(text) => Reading::Other(session.begin_past_turn(&text)?),
            ToRead::Turn(text) => Reading::Other(session.begin_turn(&text, &text)?),
            ToRead::Answer(text) => {
                let tokens = session.encode(&text)?;
                Reading::Answer(Prefill::new(tokens, Origin::turn(Role::Assistant)))
            }
            ToRead::Prompt(tokens) => Reading::Other(prompt(tokens)),
            ToRead::PromptEnd(tokens) => {
                session.recall_beside_window(&session.text_of(&tokens))?;
                Reading::Other(prompt(tokens))
            }
            ToRead::Document(mut ingest) => {
                session.begin_ingest(&mut ingest)?;
                Reading::Document(ingest)
            }
        })
    }

    /// Reads a chunk, and notes how likely its tokens were if somebody asks.
    fn prefill(&mut self, prefill: &mut Prefill) -> Result<bool, SessionError> {
        let Some(echo) = &mut self.echo else { return self.session.prefill(prefill) };
        let n_top = self.options.n_top;
        let (rest, n_chunk) = (prefill.rest(), self.session.config().chunk_tokens);
        let next: Vec<u32> = rest.iter().skip(1).take(n_chunk).copied().collect();
        let mut next = next.into_iter();
        self.session.prefill_observed(
            prefill,
            Some(&mut |_, logits| {
                if let Some(next) = next.next() {
                    echo.push(TokenLogProb::new(logits, next, n_top));
                }
            }),
        )
    }

    fn begin_answer(&mut self) -> Result<Next, SessionError> {
        let generation = Generation::new(self.options.clone())?;
        self.generation = Some(match self.constraint.take() {
            Some(constraint) => generation.with_constraint(constraint),
            None => generation,
        });
        let session = &self.session;
        let recalled = session.last_recall().map(|recall| recall.blocks.iter());
        let begun = Begun {
            n_tokens: session.n_tokens(),
            n_known: self.n_known,
            recalled: recalled.into_iter().flatten().map(Recalled::from).collect(),
            log_probs: self.echo.take().unwrap_or_default(),
        };
        let n_recalled = begun.recalled.len();
        let _ = self.events.send(Event::Begun(begun));
        Ok(Next::Answer(n_recalled))
    }

    /// A token has become part of the stream: the client hears what is text by now.
    pub(crate) fn took(&mut self) {
        let Some(generation) = &mut self.generation else { return };
        let mut piece = Piece::default();
        generation.took(&self.session, &mut |text| {
            piece.text.push_str(text);
            ControlFlow::Continue(())
        });
        piece.log_probs.extend_from_slice(&generation.log_probs()[self.n_told..]);
        self.n_told += piece.log_probs.len();
        self.tell(piece);
    }

    /// Ends the answer; returns its text.
    pub(crate) fn end_answer(&mut self) -> Option<String> {
        let mut rest = Piece::default();
        let generated = self.generation.take()?.finish(&mut |text| {
            rest.text.push_str(text);
            ControlFlow::Continue(())
        });
        // One that ended the answer is no token of it.
        let n_tokens = generated.tokens.len().min(generated.log_probs.len());
        rest.log_probs
            .extend_from_slice(generated.log_probs.get(self.n_told..n_tokens).unwrap_or(&[]));
        self.tell(rest);
        let text = generated.text.clone();
        let _ = self.events.send(Event::Ended(generated));
        Some(text)
    }

    fn tell(&self, piece: Piece) {
        if !piece.text.is_empty() || !piece.log_probs.is_empty() {
            let _ = self.events.send(Event::Text(piece));
        }
    }
}
