//! Texts of a collection that somebody else filled.

use everstream_memory::{Distance, FoundText, IndexError, TextSource};

use crate::client::{Chroma, ChromaConfig, Collection};

/// A collection of texts, found by their vectors: those of the session's own sentence encoder, or
/// what is found means nothing.
#[derive(Debug)]
pub struct ChromaTexts {
    chroma: Chroma,
    collection: Collection,
    distance: Distance,
}

impl ChromaTexts {
    /// Opens a collection with vectors of `dim` components. Whatever it measures by, what is found
    /// carries distances of the session's kind.
    ///
    /// # Errors
    ///
    /// [`IndexError::Remote`] if the server does not answer or does not have it, or if its vectors
    /// have another dimension or are known to be another encoder's.
    pub fn open(
        config: &ChromaConfig,
        name: &str,
        dim: usize,
        distance: Distance,
        encoder: &str,
    ) -> Result<Self, IndexError> {
        let chroma = Chroma::new(config.clone());
        let collection = chroma.collection(name)?;
        collection.check(dim, None, encoder)?;
        Ok(Self { chroma, collection, distance })
    }
}

impl TextSource for ChromaTexts {
    fn name(&self) -> &str {
        &self.collection.name
    }

    fn search(&self, embedding: &[f32], n: usize) -> Result<Vec<FoundText>, IndexError> {
        if n == 0 {
            return Ok(Vec::new());
        }
        let include = ["embeddings", "documents"];
        let rows = self.chroma.query(&self.collection, embedding, n, &include)?;
        let text = |row: crate::client::Row| {
            let text = row.document.filter(|text| !text.trim().is_empty())?;
            let distance = self.distance.between(embedding, &row.embedding?);
            Some(FoundText { id: row.id, text, distance })
        };
        let mut texts: Vec<FoundText> = rows.into_iter().filter_map(text).collect();
        texts.sort_by(|a, b| a.distance.total_cmp(&b.distance));
        Ok(texts)
    }
}
