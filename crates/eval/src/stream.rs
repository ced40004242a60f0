//! What is read, and what is asked.

/// A stream of text with questions about it.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    /// Read in this order.
    pub documents: Vec<String>,
    /// In the order in which they are asked.
    pub questions: Vec<Question>,
}

/// Something that is asked at some place of a stream. The stream goes on as if it had not been asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// A name that no other question of the stream has.
    pub id: String,
    /// What it is reported with, beside all together: a distance; empty if there is one kind only.
    pub group: String,
    /// Documents that have been read when it is asked.
    pub after: usize,
    /// What is asked, and what a recall looks for.
    pub query: String,
    /// What the model reads; it answers with what comes next.
    pub prompt: String,
    /// Every answer that is right; none if the stream does not say.
    pub references: Vec<String>,
    /// Numbers of the documents that say it.
    pub evidence: Vec<usize>,
    /// Tokens of an answer at most.
    pub max_tokens: usize,
}
