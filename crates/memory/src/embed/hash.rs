//! An embedder without a model, for tests and examples.

use super::{EmbedError, Embedder};

/// A bag of hashed words: two texts are near if they share words.
///
/// A test double. It knows nothing of meaning, "car" and "automobile" are as far apart as any two
/// words, but it is deterministic, needs no files, and ranks a text first that repeats the query's
/// words. Do not use it for anything that people read.
///
/// ```
/// use everstream_memory::{Distance, Embedder, HashEmbedder};
///
/// let texts = ["the key is under the mat", "Where is the key?", "rain tomorrow"];
/// let embeddings = HashEmbedder.embed(&texts)?;
/// let distance = |a: usize, b: usize| Distance::Cosine.between(&embeddings[a], &embeddings[b]);
/// assert!(distance(0, 1) < distance(0, 2));
/// # Ok::<(), everstream_memory::EmbedError>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct HashEmbedder;

impl HashEmbedder {
    const DIM: usize = 64;

    fn embed_one(text: &str) -> Vec<f32> {
        let mut embedding = vec![0.0_f32; Self::DIM];
        for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
            let hash = fnv1a(&word.to_lowercase());
            // The sign lets words that share a component cancel each other as often as not.
            let sign = if hash >> 63 == 0 { 1.0 } else { -1.0 };
            embedding[(hash % Self::DIM as u64) as usize] += sign;
        }
        let norm = embedding.iter().map(|c| c * c).sum::<f32>().sqrt();
        if norm > 0.0 {
            embedding.iter_mut().for_each(|c| *c /= norm);
        }
        embedding
    }
}

/// FNV-1a, 64 bits: short, stable, and good enough to spread words.
fn fnv1a(word: &str) -> u64 {
    word.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl Embedder for HashEmbedder {
    fn name(&self) -> String {
        "hashed words".to_owned()
    }

    fn dim(&self) -> usize {
        Self::DIM
    }

    /// A text without words gets the zero vector.
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        Ok(texts.iter().map(|text| Self::embed_one(text)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_words_count() {
        let embedded =
            HashEmbedder.embed(&["Red fox!", "fox, RED", "", "red red fox fox"]).unwrap();
        assert_eq!(embedded[0], embedded[1]);
        assert_eq!(embedded[0], embedded[3]);
        assert!(embedded[2].iter().all(|c| *c == 0.0));
        let norm: f32 = embedded[0].iter().map(|c| c * c).sum();
        assert!((norm - 1.0).abs() < 1e-6);
    }
}
