//! Block: the unit that is stored, indexed and recalled.
//!
//! A block holds everything about 16 to 96 consecutive tokens of a stream: what they are, what
//! they say, who said it, and the keys and values that the model computed for them. Its id is a
//! function of its content, so a stream that is replayed after a crash writes the same blocks.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use everstream_kv_cache::{TokenPos, range_len};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::kv::{BlockKv, KvShape};

/// What is wrong with a block that was to be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BlockError {
    /// The range holds no token or ends before it starts.
    #[error("block range {start}..{end}: a block holds at least one token")]
    Range {
        /// First token.
        start: u64,
        /// One past the last token.
        end: u64,
    },
    /// The range and the token ids disagree.
    #[error("block at token {start}: its range holds {expected} tokens, got {found} token ids")]
    TokenCount {
        /// First token of the range.
        start: u64,
        /// Tokens in the range.
        expected: usize,
        /// Token ids given.
        found: usize,
    },
    /// The range and the keys and values disagree.
    #[error("block at token {start}: expected keys and values of {expected} tokens, got {found}")]
    KvTokens {
        /// First token of the range.
        start: u64,
        /// Tokens in the range.
        expected: usize,
        /// Tokens in the keys and values.
        found: usize,
    },
    /// A dimension is zero, or the dimensions' product does not fit the address space.
    #[error(
        "keys and values of shape [{}, {}, {n_tokens}, {}] cannot be stored",
        shape.n_layers, shape.n_kv_heads, shape.head_dim
    )]
    KvShape {
        /// Shape per token.
        shape: KvShape,
        /// Tokens.
        n_tokens: usize,
    },
    /// A buffer has another length than its shape says.
    #[error(
        "expected {part} of shape [{}, {}, {n_tokens}, {}], that is {expected} components, got {found}",
        shape.n_layers, shape.n_kv_heads, shape.head_dim
    )]
    KvLength {
        /// `keys` or `values`.
        part: &'static str,
        /// Shape per token.
        shape: KvShape,
        /// Tokens.
        n_tokens: usize,
        /// Components that the shape asks for.
        expected: usize,
        /// Components given.
        found: usize,
    },
    /// Stored keys and values have another size than their shape says.
    #[error("expected keys and values of {expected} bytes, got {found}")]
    KvBytes {
        /// Bytes that the shape asks for.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
}

/// Names a block; the same session, place and tokens always give the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u64);

impl BlockId {
    /// The first 8 bytes (little-endian) of the SHA-256 over the session's name with its length,
    /// the first token's position and the token ids.
    #[must_use]
    pub fn of(session: &str, first: TokenPos, tokens: &[u32]) -> Self {
        let mut hash = Sha256::new();
        hash.update((session.len() as u64).to_le_bytes());
        hash.update(session.as_bytes());
        hash.update(first.0.to_le_bytes());
        for token in tokens {
            hash.update(token.to_le_bytes());
        }
        let digest: [u8; 32] = hash.finalize().into();
        let (head, _) = digest.split_first_chunk::<8>().expect("a SHA-256 digest has 32 bytes");
        Self(u64::from_le_bytes(*head))
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Who wrote the tokens of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The system prompt.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// A text that was read, not said.
    Document,
}

impl Role {
    /// All roles; files name one by its place here.
    pub const ALL: [Self; 4] = [Self::System, Self::User, Self::Assistant, Self::Document];

    /// The role of this name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }

    /// The name used in chat templates and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Document => "document",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The place in a file from which a block was read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// The file as the user named it; shared by all blocks of one file.
    pub file: Arc<str>,
    /// Line of the block's first token, counted from 1.
    pub line: u64,
}

/// A block before it has a session and an id: what a caller hands to
/// [`Memory::remember`](crate::Memory::remember).
#[derive(Clone, Debug)]
pub struct NewBlock {
    /// Where in the stream.
    pub range: Range<TokenPos>,
    /// Token ids, one per position of the range.
    pub tokens: Vec<u32>,
    /// The tokens as text.
    pub text: String,
    /// Who wrote them; of a block with a turn end inside, who wrote most of it.
    pub role: Role,
    /// From which file, if from one.
    pub source: Option<Source>,
    /// When they entered the stream. The caller says so: this crate reads no clock.
    pub written_at: SystemTime,
    /// Their keys, before rotation, and values.
    pub kv: BlockKv,
}

/// 16 to 96 consecutive tokens of a stream with everything that recall needs.
#[derive(Debug)]
pub struct Block {
    id: BlockId,
    session: Arc<str>,
    content: NewBlock,
    /// Set once, when the text is embedded. Branches of a memory share their blocks, so what one
    /// branch embedded the others need not embed again.
    embedding: OnceLock<Vec<f32>>,
}

impl Block {
    /// Gives `content` its session and its id.
    ///
    /// # Errors
    ///
    /// [`BlockError`] if range, token ids and keys and values do not hold the same, non-zero
    /// number of tokens.
    pub fn new(session: Arc<str>, content: NewBlock) -> Result<Self, BlockError> {
        let start = content.range.start.0;
        let expected = range_len(&content.range);
        if expected == 0 {
            return Err(BlockError::Range { start, end: content.range.end.0 });
        }
        if content.tokens.len() != expected {
            return Err(BlockError::TokenCount { start, expected, found: content.tokens.len() });
        }
        if content.kv.n_tokens() != expected {
            return Err(BlockError::KvTokens { start, expected, found: content.kv.n_tokens() });
        }
        let id = BlockId::of(&session, content.range.start, &content.tokens);
        Ok(Self { id, session, content, embedding: OnceLock::new() })
    }

    /// The block with an embedding that is already known, as a store reads it back.
    #[must_use]
    pub fn with_embedding(mut self, embedding: Vec<f32>) -> Self {
        self.embedding = OnceLock::from(embedding);
        self
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> BlockId {
        self.id
    }

    /// Name of the session whose stream it is part of.
    #[must_use]
    pub fn session(&self) -> &Arc<str> {
        &self.session
    }

    /// Where in the stream.
    #[must_use]
    pub fn range(&self) -> Range<TokenPos> {
        self.content.range.clone()
    }

    /// Token ids, one per position of the range.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.content.tokens
    }

    /// The tokens as text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.content.text
    }

    /// Who wrote it.
    #[must_use]
    pub fn role(&self) -> Role {
        self.content.role
    }

    /// From which file, if from one.
    #[must_use]
    pub fn source(&self) -> Option<&Source> {
        self.content.source.as_ref()
    }

    /// When it entered the stream.
    #[must_use]
    pub fn written_at(&self) -> SystemTime {
        self.content.written_at
    }

    /// Keys, before rotation, and values.
    #[must_use]
    pub fn kv(&self) -> &BlockKv {
        &self.content.kv
    }

    /// The embedding of its text, once it was made.
    #[must_use]
    pub fn embedding(&self) -> Option<&[f32]> {
        self.embedding.get().map(Vec::as_slice)
    }

    /// Keeps the first embedding that it is given: a text has one embedding.
    pub(crate) fn fill_embedding(&self, embedding: Vec<f32>) {
        self.embedding.get_or_init(|| embedding);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{new_block, session};

    #[test]
    fn ids_are_a_function_of_session_place_and_tokens() {
        let id = BlockId::of("a", TokenPos(7), &[1, 2]);
        assert_eq!(id, BlockId::of("a", TokenPos(7), &[1, 2]));
        assert_ne!(id, BlockId::of("b", TokenPos(7), &[1, 2]));
        assert_ne!(id, BlockId::of("a", TokenPos(8), &[1, 2]));
        assert_ne!(id, BlockId::of("a", TokenPos(7), &[1, 3]));
        assert_ne!(id, BlockId::of("a", TokenPos(7), &[1]));
        // Stored files name blocks by this value, so it may never change.
        assert_eq!(id.to_string(), "02f6b53cc2949f80");
    }

    #[test]
    fn counts_that_disagree_are_refused() {
        let mut wrong = new_block(4..8, "text");
        wrong.tokens.pop();
        assert!(matches!(
            Block::new(session(), wrong),
            Err(BlockError::TokenCount { start: 4, expected: 4, found: 3 })
        ));
        let mut wrong = new_block(4..8, "text");
        wrong.kv = new_block(4..9, "text").kv;
        assert!(matches!(
            Block::new(session(), wrong),
            Err(BlockError::KvTokens { start: 4, expected: 4, found: 5 })
        ));
        for end in [4, 3] {
            let mut wrong = new_block(4..8, "text");
            wrong.range.end = TokenPos(end);
            assert!(matches!(Block::new(session(), wrong), Err(BlockError::Range { .. })));
        }
    }

    #[test]
    fn the_first_embedding_stays() {
        let block = Block::new(session(), new_block(0..4, "text")).unwrap();
        assert_eq!(block.embedding(), None);
        block.fill_embedding(vec![1.0]);
        block.fill_embedding(vec![2.0]);
        assert_eq!(block.embedding(), Some(&[1.0][..]));
    }
}
