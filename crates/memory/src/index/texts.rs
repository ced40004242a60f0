//! Texts that are not of this stream: no keys and values, and nobody's turn.

use std::fmt::Debug;

use super::IndexError;

/// A text that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct FoundText {
    /// What its collection calls it.
    pub id: String,
    /// What it says.
    pub text: String,
    /// Its distance from the query, as the session's index measures it.
    pub distance: f32,
}

/// A collection of texts that somebody else filled, to be recalled besides blocks.
pub trait TextSource: Debug + Send + Sync {
    /// Its name, for those who see what was recalled.
    fn name(&self) -> &str;

    /// Up to `n` texts near to an embedding, nearest first.
    ///
    /// # Errors
    ///
    /// [`IndexError::Remote`] if it cannot be searched now.
    fn search(&self, embedding: &[f32], n: usize) -> Result<Vec<FoundText>, IndexError>;
}
