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
    /// What it is reported with, beside all together, as [`Task::group_name`](crate::Task::group_name) calls
    /// it: a distance in tokens, a category; empty if there is one kind only.
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
    /// How it is answered.
    pub form: Form,
}

/// How a question is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Tokens at most; none are generated if it is 0.
    pub max_tokens: usize,
    /// Whether the answer ends with its first line.
    pub one_line: bool,
    /// Whether the prompt is a turn of a conversation, in the model's template; otherwise the model goes on
    /// with its text.
    pub is_turn: bool,
    /// Whether it is measured how surprised the model is by the first reference in the answer's place.
    pub scores_reference: bool,
}

impl Form {
    /// One line that completes the prompt.
    #[must_use]
    pub fn line(max_tokens: usize) -> Self {
        Self { max_tokens, one_line: true, is_turn: false, scores_reference: false }
    }

    /// Text that answers a turn.
    #[must_use]
    pub fn turn(max_tokens: usize) -> Self {
        Self { one_line: false, is_turn: true, ..Self::line(max_tokens) }
    }

    /// Text that goes on with the prompt; the reference is scored in its place as well.
    #[must_use]
    pub fn scored(max_tokens: usize) -> Self {
        Self { one_line: false, scores_reference: true, ..Self::line(max_tokens) }
    }
}
