//! The tokens of a vocabulary: their bytes and kinds.
//!
//! Byte-level BPE files spell bytes with GPT-2's alphabet: each of the 256 bytes has a printable
//! character, so `Ġthe` is the token ` the`. SentencePiece spells a space `▁` and bytes of which no
//! character is a token `<0xE2>`. Both are translated once, when the file is loaded.

use crate::error::LoadError;
use crate::gguf::GgufFile;

pub(super) const TOKENS_KEY: &str = "tokenizer.ggml.tokens";
const TYPES_KEY: &str = "tokenizer.ggml.token_type";

/// How a file spells the bytes of its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// In GPT-2's alphabet.
    Gpt2,
    /// As they are, but for spaces.
    SentencePiece,
}

/// llama.cpp's token types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl TokenKind {
    fn from_id(id: u64) -> Option<Self> {
        Some(match id {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// All tokens, in one buffer.
#[derive(Debug)]
pub(super) struct Vocab {
    /// The bytes of all tokens, one after the other.
    bytes: Vec<u8>,
    /// Where each token ends in `bytes`.
    ends: Vec<usize>,
    kinds: Vec<TokenKind>,
}

impl Vocab {
    pub(super) fn from_gguf(gguf: &GgufFile, by: Spelling) -> Result<Self, LoadError> {
        let spellings = gguf.get_arr_str(TOKENS_KEY)?;
        let n_tokens = spellings.len();
        if u32::try_from(n_tokens).is_err() {
            return Err(invalid(gguf, TOKENS_KEY, n_tokens, "has no 32-bit id"));
        }
        let kinds = kinds(gguf, n_tokens)?;
        let alphabet = Alphabet::new();
        let mut vocab = Self { bytes: Vec::new(), ends: Vec::with_capacity(n_tokens), kinds };
        for (id, (spelling, kind)) in spellings.zip(&vocab.kinds).enumerate() {
            match (by, kind) {
                (Spelling::Gpt2, TokenKind::Normal) => {
                    alphabet.decode(spelling, &mut vocab.bytes);
                }
                (Spelling::SentencePiece, TokenKind::Normal) => {
                    with_spaces(spelling, &mut vocab.bytes);
                }
                (Spelling::SentencePiece, TokenKind::Byte) => {
                    let byte = named_byte(spelling)
                        .ok_or_else(|| invalid(gguf, TOKENS_KEY, id, "names no byte"))?;
                    vocab.bytes.push(byte);
                }
                _ => vocab.bytes.extend_from_slice(spelling),
            }
            vocab.ends.push(vocab.bytes.len());
        }
        Ok(vocab)
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of a token; empty if there is none with this id.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start..end]
    }

    pub(super) fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }
}

/// Appends a spelling of SentencePiece with spaces where it has `▁`.
fn with_spaces(mut spelling: &[u8], out: &mut Vec<u8>) {
    const SPACE: &[u8] = "▁".as_bytes();
    while let Some((&first, rest)) = spelling.split_first() {
        match spelling.strip_prefix(SPACE) {
            Some(behind) => {
                out.push(b' ');
                spelling = behind;
            }
            None => {
                out.push(first);
                spelling = rest;
            }
        }
    }
}

/// The byte that `<0xE2>` stands for.
fn named_byte(spelling: &[u8]) -> Option<u8> {
    let digits = spelling.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// The kind of each token; all are normal if the file does not say.
fn kinds(gguf: &GgufFile, n_tokens: usize) -> Result<Vec<TokenKind>, LoadError> {
    let Some(types) = gguf.find_arr_scalar(TYPES_KEY)? else {
        return Ok(vec![TokenKind::Normal; n_tokens]);
    };
    let mut kinds = Vec::with_capacity(n_tokens);
    for (index, id) in types.enumerate() {
        let kind = id.as_u64().and_then(TokenKind::from_id);
        kinds.push(kind.ok_or_else(|| invalid(gguf, TYPES_KEY, index, "is no token type"))?);
    }
    if kinds.len() != n_tokens {
        let index = kinds.len().min(n_tokens);
        return Err(invalid(gguf, TYPES_KEY, index, "has no counterpart in the list of tokens"));
    }
    Ok(kinds)
}

pub(super) fn invalid(
    gguf: &GgufFile,
    key: &'static str,
    index: usize,
    problem: &'static str,
) -> LoadError {
    LoadError::InvalidVocabulary { path: gguf.path().to_owned(), key, index, problem }
}

/// GPT-2's alphabet: a printable character for each byte.
///
/// Source: openai/gpt-2, `src/encoder.py`, `bytes_to_unicode`.
pub(super) struct Alphabet {
    byte_of: [Option<u8>; Self::END],
}

impl Alphabet {
    /// One more than the last character: 256 and the 68 bytes that are not printable themselves.
    const END: usize = 256 + 68;

    pub(super) fn new() -> Self {
        let mut byte_of = [None; Self::END];
        let mut next_free = 256;
        for byte in 0..=u8::MAX {
            let printable = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
            let character = if printable { usize::from(byte) } else { next_free };
            next_free += usize::from(!printable);
            byte_of[character] = Some(byte);
        }
        Self { byte_of }
    }

    /// The byte that a character stands for.
    fn byte(&self, character: char) -> Option<u8> {
        self.byte_of.get(character as usize).copied().flatten()
    }

    /// Appends the bytes of `spelling`; a spelling with other characters stands for itself.
    fn decode(&self, spelling: &[u8], out: &mut Vec<u8>) {
        let before = out.len();
        let text = std::str::from_utf8(spelling).unwrap_or("");
        for character in text.chars() {
            match self.byte(character) {
                Some(byte) => out.push(byte),
                None => break,
            }
        }
        if out.len() - before != text.chars().count() || text.is_empty() {
            out.truncate(before);
            out.extend_from_slice(spelling);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(spelling: &[u8]) -> Vec<u8> {
        let mut out = b"before".to_vec();
        Alphabet::new().decode(spelling, &mut out);
        out.split_off(6)
    }

    #[test]
    fn spellings_give_the_bytes_they_stand_for() {
        assert_eq!(decoded("Ġthe".as_bytes()), b" the");
        assert_eq!(decoded("Ċ".as_bytes()), b"\n");
        assert_eq!(decoded("Ã¤".as_bytes()), "ä".as_bytes());
        assert_eq!(decoded("Ń".as_bytes()), [0xAD]);
    }

    #[test]
    fn spellings_outside_the_alphabet_stand_for_themselves() {
        assert_eq!(decoded("日本".as_bytes()), "日本".as_bytes());
        assert_eq!(decoded("a b".as_bytes()), b"a b");
        assert_eq!(decoded(b"\xFF\xFE"), [0xFF, 0xFE]);
        assert_eq!(decoded(b""), b"");
    }

    #[test]
    fn sentencepiece_spells_spaces_and_bytes() {
        let mut out = Vec::new();
        with_spaces("▁the▁▁é".as_bytes(), &mut out);
        assert_eq!(out, " the  é".as_bytes());
        assert_eq!([b"<0xE2>", b"<0x0a>"].map(|s| named_byte(s)), [Some(0xE2), Some(0x0A)]);
        for wrong in ["<0x>", "<0x100>", "0xE2", "<0xE2", "<0xzz>", ""] {
            assert_eq!(named_byte(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn every_byte_has_one_character() {
        let alphabet = Alphabet::new();
        let mut bytes: Vec<u8> = alphabet.byte_of.iter().copied().flatten().collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
    }
}
