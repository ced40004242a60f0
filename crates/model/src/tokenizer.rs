//! Text to tokens and back: byte-level BPE and SentencePiece's BPE, built from the metadata of the
//! model's own file.
//!
//! The steps of [`Tokenizer::encode`]: special tokens are found and cut out (if asked for), the
//! rest is cut into words by the model's pre-tokenizer, and the bytes of each word are merged pair
//! by pair as the vocabulary's merge list says. SentencePiece has no words: tokens with a fixed
//! spelling, such as Gemma's line breaks, are cut out of any text, and the characters of what lies
//! between are merged.
//!
//! # Why not the `tokenizers` crate
//!
//! It computes the same and is the oracle of this module's tests. But it wants vocabulary and
//! merges as maps and lists of owned strings: half a million allocations for Qwen's 151,936 tokens
//! and 151,387 merges, where this module keeps one byte buffer and one table of integers, and is
//! built in less than a third of the time. Its splitter backtracks, which input can make expensive;
//! here every step is linear in the text, or nearly so (merging is `n log n` in the length of a
//! word).
//!
//! # Where it differs from Hugging Face's tokenizers
//!
//! - Qwen's tokenizer normalizes text to NFC first. That changes bytes, so a stream could not be
//!   given back as it came; this one does not normalize.
//! - A vocabulary may lack bytes: SmolLM2's has no token for the control characters 04, 06, 13, 14,
//!   16 and 1D, nor for bytes that lead no assigned character. No encoder can represent them.
//!   Hugging Face drops such bytes; this tokenizer drops the whole characters, so that valid text
//!   stays valid, and [`missing_bytes`](Tokenizer::missing_bytes) tells which they are.
//!   Everything else survives `decode(encode(text))` byte for byte.

mod bpe;
mod split;
mod stream;
#[cfg(test)]
mod tests;
mod vocab;

use std::ops::Range;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

pub use stream::TextStream;

use crate::error::LoadError;
use crate::gguf::GgufFile;
use crate::template::TurnText;
use bpe::Merges;
use split::Splitter;
use vocab::{Spelling, TokenKind, Vocab};

/// Most special tokens that are looked for in text. Gemma has about 6,400, others some dozens.
const MAX_SPECIAL_TOKENS: usize = 1 << 15;
/// Longest special token that is looked for in text, in bytes.
const MAX_SPECIAL_BYTES: usize = 256;

/// What becomes of a special token that is spelled out in the text, such as `<|im_end|>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialTokens {
    /// It becomes that token. For rendered chat templates, never for text from outside: whoever
    /// wrote it could end the turn and speak with the voice of the system.
    Parse,
    /// It is text like any other.
    AsText,
}

/// What text is cut into before its bytes or characters are merged.
#[derive(Debug)]
enum Cut {
    /// Words.
    Words(Splitter),
    /// Tokens with a fixed spelling, and what lies between them.
    Fixed(Finder),
}

/// Finds tokens in text by their spelling.
#[derive(Debug)]
struct Finder {
    automaton: AhoCorasick,
    /// In the order of its patterns.
    ids: Vec<u32>,
}

/// Encodes text as token ids and decodes them.
#[derive(Debug)]
pub struct Tokenizer {
    vocab: Vocab,
    merges: Merges,
    cut: Cut,
    /// The tokens that [`SpecialTokens::Parse`] finds.
    special: Finder,
    bos: Option<u32>,
    add_bos: bool,
    eos: Vec<u32>,
}

impl Tokenizer {
    /// Builds the tokenizer that the file describes.
    ///
    /// Cost: for 150,000 tokens about a tenth of a second and 10 MB.
    ///
    /// # Errors
    ///
    /// [`LoadError::UnsupportedTokenizer`] if it is neither byte-level BPE with a known
    /// pre-tokenizer nor SentencePiece's BPE, [`LoadError::InvalidVocabulary`] if tokens and merges
    /// do not fit together, and the errors of missing or mistyped metadata.
    pub fn from_gguf(gguf: &GgufFile) -> Result<Self, LoadError> {
        use TokenKind::{Control, UserDefined};
        let (vocab, merges, cut, special, expects_bos);
        if require(gguf, "tokenizer.ggml.model", &["gpt2", "llama"])? == "gpt2" {
            let pre = require(gguf, "tokenizer.ggml.pre", Splitter::NAMES)?;
            vocab = Vocab::from_gguf(gguf, Spelling::Gpt2)?;
            let splitter = Splitter::new(pre);
            expects_bos = matches!(pre, "llama-bpe" | "tekken");
            merges = Merges::from_gguf(gguf, &vocab, splitter.keeps_tokens())?;
            cut = Cut::Words(splitter);
            special = Finder::new(&vocab, &[Control, UserDefined]);
        } else {
            refuse_space_prefix(gguf)?;
            expects_bos = true;
            vocab = Vocab::from_gguf(gguf, Spelling::SentencePiece)?;
            merges = Merges::from_scores(gguf, &vocab)?;
            cut = Cut::Fixed(Finder::new(&vocab, &[UserDefined]));
            special = Finder::new(&vocab, &[Control]);
        }
        let bos = token_id(gguf, "tokenizer.ggml.bos_token_id", &vocab)?;
        // Files that do not say are taken as llama.cpp takes them.
        let add_bos = gguf.find_bool("tokenizer.ggml.add_bos_token")?;
        let add_bos = add_bos.unwrap_or(expects_bos && bos.is_some());
        if add_bos && bos.is_none() {
            let key = "tokenizer.ggml.bos_token_id".to_owned();
            return Err(LoadError::MissingKey { path: gguf.path().to_owned(), key });
        }
        let eos = end_tokens(gguf, &vocab)?;
        Ok(Self { vocab, merges, cut, special, bos, add_bos, eos })
    }

    /// Number of tokens; ids are below it.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// The tokens of `text`. Adds nothing: see [`bos`](Self::bos) and [`add_bos`](Self::add_bos).
    ///
    /// With [`SpecialTokens::AsText`] the bytes of the tokens, put together, are the bytes of the
    /// text, but for characters that the vocabulary lacks (see [`missing_bytes`](Self::missing_bytes)).
    #[must_use]
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Vec<u32> {
        let mut out = Vec::with_capacity(text.len() / 3);
        match special {
            SpecialTokens::AsText => self.encode_plain(text, &mut out),
            SpecialTokens::Parse => self.encode_parsing(text, &(0..0), &mut out),
        }
        out
    }

    /// The tokens of text that a chat template rendered around someone's words.
    ///
    /// The template's own special tokens are parsed; those that stand in the quoted words are text.
    /// Otherwise it equals [`encode`](Self::encode) with [`SpecialTokens::Parse`].
    #[must_use]
    pub fn encode_turn(&self, turn: &TurnText) -> Vec<u32> {
        let mut out = Vec::with_capacity(turn.as_str().len() / 3);
        self.encode_parsing(turn.as_str(), &turn.quoted(), &mut out);
        out
    }

    /// The bytes that a token stands for; special tokens give their own spelling.
    ///
    /// They need not be valid UTF-8: a character may be spread over several tokens. Empty for ids
    /// that are not in the vocabulary.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.vocab.bytes(id)
    }

    /// The bytes of all tokens, one after the other.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        ids.iter().flat_map(|&id| self.token_bytes(id)).copied().collect()
    }

    /// Whether a token is a signal and no text: a control token, or a place that is not in use.
    ///
    /// Visible tokens with a fixed spelling, such as Qwen's `<tool_call>`, are not special.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.vocab.kind(id).is_some_and(|kind| {
            matches!(kind, TokenKind::Control | TokenKind::Unknown | TokenKind::Unused)
        })
    }

    /// The token that is spelled exactly so and that [`SpecialTokens::Parse`] finds in text.
    #[must_use]
    pub fn special_id(&self, spelling: &str) -> Option<u32> {
        self.special.ids.iter().copied().find(|&id| self.vocab.bytes(id) == spelling.as_bytes())
    }

    /// The tokens that end an answer, sorted: end of sequence, end of turn, end of text.
    #[must_use]
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    /// The token that begins a sequence, if the file names one.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Whether the model expects [`bos`](Self::bos) before the first token of a stream.
    ///
    /// Chat templates may write it themselves: do not add it twice.
    #[must_use]
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// The token that a stream is to begin with: [`bos`](Self::bos), if the model expects it.
    #[must_use]
    pub fn first_token(&self) -> Option<u32> {
        self.bos.filter(|_| self.add_bos)
    }

    /// The bytes that no token stands for, sorted. Characters that contain one are lost.
    #[must_use]
    pub fn missing_bytes(&self) -> Vec<u8> {
        self.merges.missing_bytes()
    }

    /// Encodes `text`, parsing special tokens everywhere but in `quoted`.
    fn encode_parsing(&self, text: &str, quoted: &Range<usize>, out: &mut Vec<u32>) {
        // The parts before and behind the quotation are searched one by one, so that no special
        // token can be pieced together across its border. The text between two special tokens is
        // encoded as a whole, quoted or not, as it is when a template is encoded at once.
        let mut plain_from = 0;
        for part in [0..quoted.start, quoted.end..text.len()] {
            for (found, id) in self.special.find_iter(&text[part.clone()]) {
                self.encode_plain(&text[plain_from..part.start + found.start], out);
                out.push(id);
                plain_from = part.start + found.end;
            }
        }
        self.encode_plain(&text[plain_from..], out);
    }

    fn encode_plain(&self, text: &str, out: &mut Vec<u32>) {
        let mut merger = self.merges.merger();
        match &self.cut {
            Cut::Words(splitter) => {
                splitter.for_each_word(text, |word| merger.encode_word(word, out));
            }
            Cut::Fixed(fixed) => {
                let mut from = 0;
                for (found, id) in fixed.find_iter(text) {
                    merger.encode_word(&text[from..found.start], out);
                    out.push(id);
                    from = found.end;
                }
                merger.encode_word(&text[from..], out);
            }
        }
    }
}

impl Finder {
    /// The tokens of some kinds.
    fn new(vocab: &Vocab, kinds: &[TokenKind]) -> Self {
        let is_one = |&id: &u32| {
            vocab.kind(id).is_some_and(|kind| kinds.contains(&kind))
                && (1..=MAX_SPECIAL_BYTES).contains(&vocab.bytes(id).len())
        };
        let ids: Vec<u32> =
            (0..vocab.len() as u32).filter(is_one).take(MAX_SPECIAL_TOKENS).collect();
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(ids.iter().map(|&id| vocab.bytes(id)))
            .expect("at most 8 MiB of patterns, far below the automaton's limit of 2^31 states");
        Self { automaton, ids }
    }

    /// Where tokens are found, from left to right, the longest first where several begin.
    fn find_iter<'t>(&'t self, text: &'t str) -> impl Iterator<Item = (Range<usize>, u32)> + 't {
        let found = self.automaton.find_iter(text);
        found.map(|found| (found.range(), self.ids[found.pattern().as_usize()]))
    }
}

/// Refuses a vocabulary that wants a space before any text: a stream could not be given back as it
/// came. That is the default of files that do not say.
fn refuse_space_prefix(gguf: &GgufFile) -> Result<(), LoadError> {
    const KEY: &str = "tokenizer.ggml.add_space_prefix";
    if gguf.find_bool(KEY)?.unwrap_or(true) {
        return Err(LoadError::UnsupportedFeature {
            path: gguf.path().to_owned(),
            feature: "a tokenizer that writes a space before a text",
            detail: format!("`{KEY}` is true, or missing"),
        });
    }
    Ok(())
}

/// The value of `key`, which must be one of `supported`.
fn require<'a>(
    gguf: &'a GgufFile,
    key: &'static str,
    supported: &'static [&'static str],
) -> Result<&'a str, LoadError> {
    let found = gguf.get_str(key)?;
    if supported.contains(&found) {
        return Ok(found);
    }
    let (path, found) = (gguf.path().to_owned(), found.to_owned());
    Err(LoadError::UnsupportedTokenizer { path, key, found, supported })
}

/// The token id under `key`, if present; it must be in the vocabulary.
fn token_id(gguf: &GgufFile, key: &str, vocab: &Vocab) -> Result<Option<u32>, LoadError> {
    let id = gguf.find_u32(key)?;
    match id {
        Some(id) if id as usize >= vocab.len() => Err(LoadError::InvalidValue {
            path: gguf.path().to_owned(),
            key: key.to_owned(),
            value: id.to_string(),
            rule: format!("below the {} tokens of the vocabulary", vocab.len()),
        }),
        _ => Ok(id),
    }
}

/// The tokens that end an answer: those that the file names, and those that are known by spelling,
/// because files name only one and models trained on several templates emit others.
fn end_tokens(gguf: &GgufFile, vocab: &Vocab) -> Result<Vec<u32>, LoadError> {
    const KEYS: [&str; 3] = [
        "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.eot_token_id",
        "tokenizer.ggml.eom_token_id",
    ];
    const SPELLINGS: [&[u8]; 8] = [
        b"<|endoftext|>",
        b"<|im_end|>",
        b"<|eot_id|>",
        b"<|eom_id|>",
        b"<|end_of_text|>",
        b"<|end|>",
        b"<end_of_turn>",
        b"</s>",
    ];
    let mut ids = Vec::new();
    for key in KEYS {
        ids.extend(token_id(gguf, key, vocab)?);
    }
    ids.extend((0..vocab.len() as u32).filter(|&id| {
        vocab.kind(id) == Some(TokenKind::Control) && SPELLINGS.contains(&vocab.bytes(id))
    }));
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}
