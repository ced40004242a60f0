//! Which known conversation a request goes on with.
//!
//! A request has all turns. A conversation that the server has answered before is known by its
//! owner, its system prompt and by what was said, word for word; the longest one that the request
//! begins with is continued. Each is also kept as it was before its last turn, so that a turn can be
//! said in other words, or answered once more. Anything else (an answer that the client has changed,
//! an older turn that was edited) has no known past and is read from its beginning.

use std::sync::Arc;

use everstream_runtime::{Session, SessionError};

/// Whose key a request carries; empty if there is but one, or none.
pub(crate) type Owner = Arc<str>;

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

/// What a conversation is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Past {
    pub(crate) owner: Owner,
    pub(crate) system: Option<String>,
    pub(crate) turns: Vec<Turn>,
}

impl Past {
    /// Whether it goes on with `other`, by at least a turn.
    fn goes_on_with(&self, other: &Self) -> bool {
        self.owner == other.owner
            && self.system == other.system
            && other.turns.len() < self.turns.len()
            && self.turns.starts_with(&other.turns)
    }
}

/// A stream, and what was said in it.
#[derive(Debug)]
pub(crate) struct Conversation {
    pub(crate) session: Session,
    pub(crate) past: Past,
}

impl Conversation {
    /// The same conversation, to be continued apart from this one.
    pub(crate) fn branch(&self) -> Result<Self, SessionError> {
        Ok(Self { session: self.session.branch()?, past: self.past.clone() })
    }

    /// Bytes of its keys and values.
    fn bytes(&self) -> u64 {
        let (rotated, raw) = self.session.cache_bytes();
        let stored = self.session.memory().map_or(0, |memory| memory.stats().kv_bytes);
        (rotated + raw + stored) as u64
    }
}

/// How many conversations rest, and how large they may be together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RestingLimits {
    pub(crate) n_conversations: usize,
    pub(crate) n_bytes: u64,
}

/// A conversation as it was before the turn that is worked on.
#[derive(Debug)]
pub(crate) struct Before {
    conversation: Conversation,
    /// Whether it was answered once already, in other words or from here.
    is_earlier: bool,
}

impl Before {
    /// The same conversation, to be continued apart from this one.
    pub(crate) fn branch(&self) -> Result<Conversation, SessionError> {
        self.conversation.branch()
    }
}

/// Conversations that rest, the one that was used last at the end.
#[derive(Debug)]
pub(crate) struct Resting {
    conversations: Vec<Conversation>,
    /// Conversations as they were before their last turn.
    earlier: Vec<Conversation>,
    limits: RestingLimits,
}

impl Resting {
    pub(crate) fn new(limits: RestingLimits) -> Self {
        Self { conversations: Vec::new(), earlier: Vec::new(), limits }
    }

    /// Conversations that rest.
    pub(crate) fn len(&self) -> usize {
        self.conversations.len()
    }

    /// Takes out the conversation with the longest past that `past` goes on with.
    pub(crate) fn take(&mut self, past: &Past) -> Option<Before> {
        let longest = |of: &[Conversation]| {
            let known = of.iter().enumerate().filter(|(_, c)| past.goes_on_with(&c.past));
            known.map(|(at, c)| (c.past.turns.len(), at)).max()
        };
        let (newest, earlier) = (longest(&self.conversations), longest(&self.earlier));
        let is_earlier = earlier.map(|(n, _)| n) > newest.map(|(n, _)| n);
        let (list, found) = match is_earlier {
            true => (&mut self.earlier, earlier),
            false => (&mut self.conversations, newest),
        };
        found.map(|(_, at)| Before { conversation: list.remove(at), is_earlier })
    }

    /// Puts a conversation back where it was: nothing came of its turn.
    pub(crate) fn put_back(&mut self, before: Option<Before>) {
        let Some(Before { conversation, is_earlier }) = before else { return };
        match is_earlier {
            true => self.earlier.push(conversation),
            false => self.conversations.push(conversation),
        }
        self.forget_surplus();
    }

    /// Keeps a conversation, and how it was before its last turn if that is known. Those that have
    /// rested longest are forgotten if there are too many; the newest stays however large it is.
    pub(crate) fn keep(&mut self, conversation: Conversation, before: Option<Before>) {
        self.conversations.push(conversation);
        self.earlier.extend(before.map(|before| before.conversation));
        self.forget_surplus();
    }

    /// Earlier states go first: whoever wants one back has its turns read again.
    fn forget_surplus(&mut self) {
        let RestingLimits { n_conversations, n_bytes } = self.limits;
        let bytes = |of: &[Conversation]| of.iter().map(Conversation::bytes).sum::<u64>();
        let mut n_left = n_bytes;
        for (list, n_kept) in [(&mut self.conversations, 1), (&mut self.earlier, 0)] {
            while list.len() > n_conversations || (list.len() > n_kept && bytes(list) > n_left) {
                list.remove(0);
            }
            n_left = n_left.saturating_sub(bytes(list));
        }
    }
}
