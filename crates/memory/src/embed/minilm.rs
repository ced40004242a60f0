//! all-MiniLM-L6-v2: the sentence encoder that Chroma uses by default.

use std::fmt;
use std::path::Path;

use candle_core::{Device, Tensor};
use candle_transformers::models::bert::BertModel;
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use super::minilm_files::ModelFiles;
use super::{EmbedError, Embedder};

/// Texts that go through the network together.
const BATCH_TEXTS: usize = 32;
/// Word pieces, padding included, that go through the network together. Attention scores take
/// `n_heads * pieces` floats per padded piece: this keeps a batch below some 50 MB.
const BATCH_PIECES: usize = 4096;

/// A sentence encoder of the BERT family through candle, on the CPU, in f32.
///
/// Computes what sentence-transformers computes for all-MiniLM-L6-v2: word pieces (at most 256 with
/// `[CLS]` and `[SEP]`, what is longer is cut), BERT, the mean over the pieces, unit length.
///
/// Source: Reimers and Gurevych, "Sentence-BERT", 2019, arXiv:1908.10084, section 3; weights:
/// Wang et al., "MiniLM", 2020, arXiv:2002.10957.
pub struct MiniLm {
    network: BertModel,
    tokenizer: Tokenizer,
    dim: usize,
    max_pieces: usize,
    pad_id: u32,
    name: String,
}

impl fmt::Debug for MiniLm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MiniLm")
            .field("dim", &self.dim)
            .field("max_pieces", &self.max_pieces)
            .finish_non_exhaustive()
    }
}

/// Word pieces of one text.
struct Encoded {
    /// Its place among the texts.
    text: usize,
    pieces: Vec<u32>,
}

impl MiniLm {
    /// Opens the model in `dir`: `model.safetensors`, `tokenizer.json`, `config.json`, and, where
    /// they exist, `sentence_bert_config.json` and `1_Pooling/config.json`.
    ///
    /// Other encoders work if they are BERT with mean pooling and unit length.
    ///
    /// # Errors
    ///
    /// [`EmbedError`] if a file is missing, damaged or does not fit the others.
    pub fn open(dir: &Path) -> Result<Self, EmbedError> {
        let files = ModelFiles::new(dir);
        let config = files.config()?;
        files.check_pooling()?;
        let max_pieces = files.max_pieces(&config)?;
        let mut model = Self {
            tokenizer: files.tokenizer(&config, max_pieces)?,
            network: files.network(&config)?,
            dim: config.hidden_size,
            max_pieces,
            // Below the vocabulary's size, as `config` checked; padding is masked anyway.
            pad_id: u32::try_from(config.pad_token_id).unwrap_or(0),
            name: String::new(),
        };
        // Better to find damaged weights now than at the first recall.
        let probe = model.embed(&["probe"])?;
        model.name = name_of(&probe[0]);
        Ok(model)
    }

    fn encode(&self, texts: &[&str]) -> Result<Vec<Encoded>, EmbedError> {
        let encode_one = |(text, &content): (usize, &&str)| {
            let encoding = self
                .tokenizer
                .encode(content, true)
                .map_err(|source| EmbedError::Encode { text, n_texts: texts.len(), source })?;
            let mut pieces = encoding.get_ids().to_vec();
            // A tokenizer without special pieces gives none for an empty text, and a mean over
            // nothing is not a number.
            if pieces.is_empty() {
                pieces.push(self.pad_id);
            }
            Ok(Encoded { text, pieces })
        };
        texts.iter().enumerate().map(encode_one).collect()
    }

    /// Embeddings of shape `[batch.len(), dim]`, in the batch's order.
    fn forward(&self, batch: &[Encoded]) -> Result<Vec<Vec<f32>>, candle_core::Error> {
        let n_pieces = batch.iter().map(|encoded| encoded.pieces.len()).max().unwrap_or(0);
        let shape = (batch.len(), n_pieces);
        let mut ids = Vec::with_capacity(batch.len() * n_pieces);
        let mut mask = Vec::with_capacity(batch.len() * n_pieces);
        for Encoded { pieces, .. } in batch {
            let n_padding = n_pieces - pieces.len();
            ids.extend(pieces.iter().copied().chain(std::iter::repeat_n(self.pad_id, n_padding)));
            mask.extend(std::iter::repeat_n(1.0_f32, pieces.len()));
            mask.extend(std::iter::repeat_n(0.0_f32, n_padding));
        }
        let ids = Tensor::from_vec(ids, shape, &Device::Cpu)?;
        let mask = Tensor::from_vec(mask, shape, &Device::Cpu)?;
        // [n_texts, n_pieces, dim]
        let states = self.network.forward(&ids, &ids.zeros_like()?, Some(&mask))?;
        let sums = states.broadcast_mul(&mask.unsqueeze(2)?)?.sum(1)?;
        let means = sums.broadcast_div(&mask.sum_keepdim(1)?)?;
        Ok(means.to_vec2::<f32>()?.into_iter().map(to_unit_length).collect())
    }
}

fn to_unit_length(mut vector: Vec<f32>) -> Vec<f32> {
    // The floor is the one of PyTorch's `normalize`.
    let norm = vector.iter().map(|c| c * c).sum::<f32>().sqrt().max(1e-12);
    vector.iter_mut().for_each(|c| *c /= norm);
    vector
}

/// Splits texts, sorted by length, where padding would waste more than a fifth of the work or a
/// batch would grow too large; every batch has at least one text.
fn batches(sorted: &[Encoded]) -> Vec<&[Encoded]> {
    let mut batches = Vec::new();
    let mut start = 0;
    let mut n_real = 0;
    for (end, encoded) in sorted.iter().enumerate() {
        let n_texts = end - start + 1;
        let n_padded = n_texts * encoded.pieces.len();
        let wasteful = (n_padded - n_real - encoded.pieces.len()) * 5 > n_padded;
        if n_texts > 1 && (n_texts > BATCH_TEXTS || n_padded > BATCH_PIECES || wasteful) {
            batches.push(&sorted[start..end]);
            (start, n_real) = (end, 0);
        }
        n_real += encoded.pieces.len();
    }
    if start < sorted.len() {
        batches.push(&sorted[start..]);
    }
    batches
}

/// Names an encoder by what it makes of one text. Rounding hides what differs between CPUs; where
/// it does not, embeddings are made again, and nothing else happens.
fn name_of(embedding: &[f32]) -> String {
    let mut hash = Sha256::new();
    embedding.iter().for_each(|c| hash.update(((c * 100.0).round() as i32).to_le_bytes()));
    let digest: [u8; 32] = hash.finalize().into();
    let hex: String = digest[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("bert {} {hex}", embedding.len())
}

impl Embedder for MiniLm {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let n_texts = texts.len();
        let mut encoded = self.encode(texts)?;
        encoded.sort_by_key(|encoded| encoded.pieces.len());
        let mut embeddings = vec![Vec::new(); n_texts];
        for batch in batches(&encoded) {
            let embedded = self.forward(batch).map_err(|source| EmbedError::Forward {
                n_texts: batch.len(),
                source: Box::new(source),
            })?;
            for (Encoded { text, .. }, embedding) in batch.iter().zip(embedded) {
                if !embedding.iter().all(|c| c.is_finite()) {
                    return Err(EmbedError::NotFinite { text: *text, n_texts });
                }
                embeddings[*text] = embedding;
            }
        }
        Ok(embeddings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths_of_batches(lengths: &[usize]) -> Vec<Vec<usize>> {
        let encoded: Vec<Encoded> =
            lengths.iter().map(|&n| Encoded { text: 0, pieces: vec![0; n] }).collect();
        let batches = batches(&encoded);
        batches.iter().map(|batch| batch.iter().map(|e| e.pieces.len()).collect()).collect()
    }

    #[test]
    fn batches_waste_little_and_stay_small() {
        assert!(lengths_of_batches(&[]).is_empty());
        assert_eq!(lengths_of_batches(&[10, 11, 12, 40, 41]), [vec![10, 11, 12], vec![40, 41]]);
        let sizes = |lengths: &[usize]| -> Vec<usize> {
            lengths_of_batches(lengths).iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(&[20; 70]), [32, 32, 6]);
        assert_eq!(sizes(&[256; 33]), [16, 16, 1]);
        assert_eq!(sizes(&[5000, 5000]), [1, 1]);
    }
}
