//! all-MiniLM-L6-v2: the sentence encoder that Chroma uses by default.

use std::fmt;
use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::path::Path;

use everstream_kernels::Isa;
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use super::bert::Bert;
use super::minilm_files::ModelFiles;
use super::{EmbedError, Embedder};

/// Word pieces that go through the network together, unless a text alone has more: states and products
/// take some 27 KB a piece.
const BATCH_PIECES: usize = 512;

/// How an encoder computes.
#[derive(Clone, Copy, Debug)]
pub struct MiniLmOptions {
    /// Threads; by default all that the machine runs at once.
    pub n_threads: NonZeroUsize,
    /// Instruction set; by default the widest of the CPU.
    pub isa: Isa,
}

impl Default for MiniLmOptions {
    fn default() -> Self {
        let n_threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self { n_threads, isa: Isa::detect() }
    }
}

/// A sentence encoder of the BERT family, on the CPU, in f32.
///
/// Computes what sentence-transformers computes for all-MiniLM-L6-v2: word pieces (at most 256 with
/// `[CLS]` and `[SEP]`, what is longer is cut), BERT, the mean over the pieces, unit length.
///
/// Source: Reimers and Gurevych, "Sentence-BERT", 2019, arXiv:1908.10084, section 3; weights:
/// Wang et al., "MiniLM", 2020, arXiv:2002.10957.
pub struct MiniLm {
    network: Bert,
    tokenizer: Tokenizer,
    max_pieces: usize,
    pad_id: u32,
    name: String,
}

impl fmt::Debug for MiniLm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MiniLm")
            .field("dim", &self.network.dim())
            .field("max_pieces", &self.max_pieces)
            .finish_non_exhaustive()
    }
}

/// Word pieces of one text.
#[derive(Clone)]
struct Encoded {
    /// Its place among the texts.
    text: usize,
    pieces: Vec<u32>,
}

impl MiniLm {
    /// Opens the model in `dir`: `model.safetensors`, `tokenizer.json`, `config.json`, and, where
    /// they exist, `sentence_bert_config.json` and `1_Pooling/config.json`.
    ///
    /// Other encoders work if they are BERT with GELU, absolute positions, heads and an inner layer of
    /// multiples of 16, mean pooling and unit length.
    ///
    /// # Errors
    ///
    /// [`EmbedError`] if a file is missing, damaged or does not fit the others.
    pub fn open(dir: &Path, options: MiniLmOptions) -> Result<Self, EmbedError> {
        let files = ModelFiles::new(dir);
        let config = files.config()?;
        files.check_pooling()?;
        let max_pieces = files.max_pieces(&config)?;
        let (tokenizer, network) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(|| files.tokenizer(&config, max_pieces));
            let network = files.network(&config, max_pieces, options);
            (tokenizer.join().unwrap_or_else(|panic| resume_unwind(panic)), network)
        });
        let mut model = Self {
            tokenizer: tokenizer?,
            network: network?,
            max_pieces,
            // Below the vocabulary's size, as `config` checked.
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
            // What a template adds is in no vocabulary.
            let wrong = |what| Err(EmbedError::Pieces { text, n_texts: texts.len(), what });
            let vocab_size = self.network.vocab_size();
            if let Some(id) = pieces.iter().find(|&&id| id as usize >= vocab_size) {
                return wrong(format!("piece {id}, where the network knows {vocab_size}"));
            }
            if pieces.len() > self.max_pieces {
                return wrong(format!("{} pieces, more than {}", pieces.len(), self.max_pieces));
            }
            Ok(Encoded { text, pieces })
        };
        texts.iter().enumerate().map(encode_one).collect()
    }
}

fn to_unit_length(mut vector: Vec<f32>) -> Vec<f32> {
    // The floor is the one of PyTorch's `normalize`.
    let norm = vector.iter().map(|c| c * c).sum::<f32>().sqrt().max(1e-12);
    vector.iter_mut().for_each(|c| *c /= norm);
    vector
}

/// Splits texts where a batch would grow too large; every batch has at least one text.
fn batches(texts: &[Encoded]) -> Vec<&[Encoded]> {
    let (mut batches, mut rest) = (Vec::new(), texts);
    while !rest.is_empty() {
        let mut n_pieces = 0;
        let fits = |encoded: &&Encoded| {
            n_pieces += encoded.pieces.len();
            n_pieces <= BATCH_PIECES
        };
        let n_texts = rest.iter().take_while(fits).count().max(1);
        let (batch, others) = rest.split_at(n_texts);
        batches.push(batch);
        rest = others;
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
        self.network.dim()
    }

    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let n_texts = texts.len();
        let mut encoded = self.encode(texts)?;
        // Those of a batch have room for the longest of them.
        encoded.sort_by_key(|encoded| encoded.pieces.len());
        let mut embeddings = vec![Vec::new(); n_texts];
        for batch in batches(&encoded) {
            let pieces: Vec<&[u32]> = batch.iter().map(|encoded| &encoded.pieces[..]).collect();
            for (Encoded { text, .. }, mean) in batch.iter().zip(self.network.means(&pieces)) {
                let embedding = to_unit_length(mean);
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

    #[test]
    fn batches_stay_small_and_have_every_text_once() {
        let sizes = |lengths: &[usize]| -> Vec<usize> {
            let encode = |(text, &n)| Encoded { text, pieces: vec![0; n] };
            let encoded: Vec<Encoded> = lengths.iter().enumerate().map(encode).collect();
            let batches = batches(&encoded);
            assert!(batches.concat().iter().map(|e| e.text).eq(0..lengths.len()));
            batches.iter().map(|batch| batch.len()).collect()
        };
        assert!(sizes(&[]).is_empty());
        assert_eq!(sizes(&[20; 30]), [25, 5]);
        assert_eq!(sizes(&[256; 5]), [2, 2, 1]);
        assert_eq!(sizes(&[5000, 5000, 3]), [1, 1, 1]);
        assert_eq!(sizes(&[512, 1]), [1, 1]);
    }
}
