//! What made keys and values.

use sha2::{Digest, Sha256};

use super::head::MakerId;
use crate::codec::{Decoder, Encoder};

/// What made the keys and values of a block. Those of another maker mean nothing to a model, and
/// would be worse than none: they would fit in shape and change what it says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maker {
    /// The model's name, for messages.
    pub model: String,
    /// SHA-256 of the weights.
    pub weights: [u8; 32],
    /// SHA-256 of the tokenizer.
    pub tokenizer: [u8; 32],
    /// SHA-256 of everything else that keys and values depend on: shape, rotary settings.
    pub layout: [u8; 32],
}

impl Maker {
    /// What differs from `other`, if anything does; names do not count.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        if self.layout != other.layout {
            Some("architecture")
        } else if self.tokenizer != other.tokenizer {
            Some("tokenizer")
        } else if self.weights != other.weights {
            Some("weights")
        } else {
            None
        }
    }

    pub(super) fn id(&self) -> MakerId {
        let mut hash = Sha256::new();
        [self.weights, self.tokenizer, self.layout].iter().for_each(|part| hash.update(part));
        let digest: [u8; 32] = hash.finalize().into();
        *digest.first_chunk().expect("a SHA-256 digest has 32 bytes")
    }

    /// Appends it to a record.
    pub fn encode(&self, to: &mut Encoder) {
        to.bytes(self.model.as_bytes());
        [self.weights, self.tokenizer, self.layout].iter().for_each(|p| to.0.extend_from_slice(p));
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` for anything else.
    #[must_use]
    pub fn decode(from: &mut Decoder<'_>) -> Option<Self> {
        let model = from.text()?.to_owned();
        let mut digest = || from.take(32)?.try_into().ok();
        Some(Self { model, weights: digest()?, tokenizer: digest()?, layout: digest()? })
    }
}
