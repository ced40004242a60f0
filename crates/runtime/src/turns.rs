//! Turns of a conversation: what is recalled for them, and how they are read, chunk by chunk.

use everstream_kv_cache::TokenPos;
use everstream_memory::{Recall, Role};
use everstream_model::Model;

use crate::saved::Event;
use crate::session::system_tokens;
use crate::{Observer, Origin, Session, SessionError};

/// Tokens that are read chunk by chunk, by [`Session::prefill`].
#[derive(Debug)]
pub struct Prefill {
    tokens: Vec<u32>,
    origin: Origin,
    n_read: usize,
}

impl Prefill {
    /// All of them are still to be read.
    #[must_use]
    pub fn new(tokens: Vec<u32>, origin: Origin) -> Self {
        Self { tokens, origin, n_read: 0 }
    }

    /// The system turn of a model, its own if none is given.
    ///
    /// # Errors
    ///
    /// If the template refuses a system turn, or the vocabulary lacks a byte of it.
    pub fn system(model: &Model, system: Option<&str>) -> Result<Self, SessionError> {
        Ok(Self::new(system_tokens(model, system)?, Origin::turn(Role::System)))
    }

    /// Those that are still to be read.
    #[must_use]
    pub fn rest(&self) -> &[u32] {
        &self.tokens[self.n_read..]
    }

    /// Tokens in all.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        self.tokens.len()
    }
}

impl Session {
    /// Begins a user's turn: recalls what is relevant to it, then reads it. The model is to answer
    /// next.
    ///
    /// # Errors
    ///
    /// [`SessionError`].
    pub fn turn(&mut self, text: &str) -> Result<&Recall, SessionError> {
        self.turn_about(text, text)
    }

    /// As [`Session::turn`], recalling what is relevant to another text than the turn's.
    ///
    /// # Errors
    ///
    /// As [`Session::turn`].
    pub fn turn_about(&mut self, text: &str, query: &str) -> Result<&Recall, SessionError> {
        let mut prefill = self.begin_turn(text, query)?;
        while self.prefill(&mut prefill)? {}
        Ok(self.last_recall.get_or_insert_default())
    }

    /// Recalls what is relevant to `query` for a user's turn, whose tokens are then to be read by
    /// [`Session::prefill`] before anything else is: for those who serve several streams and let none
    /// wait for another's long turn.
    ///
    /// # Errors
    ///
    /// As [`Session::turn`].
    pub fn begin_turn(&mut self, text: &str, query: &str) -> Result<Prefill, SessionError> {
        let (tokens, origin) = self.encode_user_turn(text)?;
        self.check_dense(tokens.len())?;
        self.end_document()?;
        self.recall(query)?;
        self.begin_answer()?;
        Ok(Prefill::new(tokens, origin))
    }

    /// Reads the next chunk of what is to be read, and predicts what follows when all of it was.
    /// Returns whether there is more.
    ///
    /// # Errors
    ///
    /// As [`Session::append`].
    pub fn prefill(&mut self, prefill: &mut Prefill) -> Result<bool, SessionError> {
        self.prefill_observed(prefill, None)
    }

    /// As [`Session::prefill`], showing the prediction after every token.
    ///
    /// # Errors
    ///
    /// As [`Session::append`].
    pub fn prefill_observed(
        &mut self,
        prefill: &mut Prefill,
        observer: Option<&mut Observer<'_>>,
    ) -> Result<bool, SessionError> {
        let rest = &prefill.tokens[prefill.n_read..];
        if !rest.is_empty() {
            let chunk = &rest[..self.next_chunk(rest.len())];
            let read = self.read_chunk(chunk, &[], &mut prefill.origin, observer);
            prefill.n_read += if read.is_ok() { chunk.len() } else { 0 };
            if read.is_err() || prefill.n_read == prefill.tokens.len() {
                self.predict_after(read)?;
            }
        }
        Ok(prefill.n_read < prefill.tokens.len())
    }

    /// Reads a user's turn and recalls nothing for it; the last recall ends.
    ///
    /// # Errors
    ///
    /// [`SessionError`].
    pub fn read_turn(&mut self, text: &str) -> Result<(), SessionError> {
        let mut prefill = self.begin_past_turn(text)?;
        while self.prefill(&mut prefill)? {}
        Ok(())
    }

    /// As [`Session::begin_turn`] for a turn that has been answered already: nothing is recalled
    /// for it, and the last recall ends.
    ///
    /// # Errors
    ///
    /// [`SessionError`].
    pub fn begin_past_turn(&mut self, text: &str) -> Result<Prefill, SessionError> {
        let (tokens, origin) = self.encode_user_turn(text)?;
        self.check_dense(tokens.len())?;
        self.end_document()?;
        self.log(|| Event::EndRecall)?;
        self.end_recall();
        self.begin_answer()?;
        Ok(Prefill::new(tokens, origin))
    }

    /// Logged before the turn's tokens: of a turn that was cut off, the end is still to come.
    fn begin_answer(&mut self) -> Result<(), SessionError> {
        self.log(|| Event::BeginAnswer)?;
        self.note_turn();
        Ok(())
    }

    /// A turn begins with the next token.
    pub(crate) fn note_turn(&mut self) {
        self.awaits_answer = true;
        self.last_turn = Some(TokenPos(self.n_tokens));
    }

    /// Whether the model's turn has begun and not ended, as after a crash in the middle of an
    /// answer: [`Session::close_answer`] ends it.
    #[must_use]
    pub fn awaits_answer(&self) -> bool {
        self.awaits_answer
    }
}
