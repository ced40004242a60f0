//! Which known conversation a request goes on with.
//!
//! A request has all turns. A conversation that the server has answered before is known by its
//! system prompt and by what was said, word for word; the longest one that the request begins with is
//! continued. Anything else (an answer that the client has changed, a turn that was edited) has no
//! known past and is read from its beginning.

use everstream_runtime::{Session, SessionError};

/// Who said something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaker {
    User,
    Assistant,
}

/// A turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) speaker: Speaker,
    pub(crate) text: String,
}

/// A stream, and what was said in it.
#[derive(Debug)]
pub(crate) struct Conversation {
    pub(crate) session: Session,
    pub(crate) system: Option<String>,
    pub(crate) turns: Vec<Turn>,
}

impl Conversation {
    /// The same conversation, to be continued apart from this one.
    pub(crate) fn branch(&self) -> Result<Self, SessionError> {
        let (system, turns) = (self.system.clone(), self.turns.clone());
        Ok(Self { session: self.session.branch()?, system, turns })
    }
}

/// Conversations that rest, the one that was used last at the end.
#[derive(Debug)]
pub(crate) struct Resting {
    conversations: Vec<Conversation>,
    capacity: usize,
}

impl Resting {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { conversations: Vec::new(), capacity }
    }

    /// Takes out the conversation with the longest past that `turns` begin with, and which has not
    /// all of them.
    pub(crate) fn take(&mut self, system: Option<&str>, turns: &[Turn]) -> Option<Conversation> {
        let goes_on = |c: &Conversation| {
            c.system.as_deref() == system
                && c.turns.len() < turns.len()
                && turns.starts_with(&c.turns)
        };
        let known = self.conversations.iter().enumerate().filter(|(_, c)| goes_on(c));
        let (at, _) = known.max_by_key(|(_, c)| c.turns.len())?;
        Some(self.conversations.remove(at))
    }

    /// Keeps a conversation, if there is one.
    pub(crate) fn keep_some(&mut self, conversation: Option<Conversation>) {
        if let Some(conversation) = conversation {
            self.keep(conversation);
        }
    }

    /// Keeps a conversation; the one that has rested longest is forgotten if there are too many.
    pub(crate) fn keep(&mut self, conversation: Conversation) {
        self.conversations.push(conversation);
        while self.conversations.len() > self.capacity {
            self.conversations.remove(0);
        }
    }
}
