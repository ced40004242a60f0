//! Turns the bytes of a stream of tokens into text.

/// Puts tokens together to valid UTF-8, piece by piece.
///
/// A character may be spread over several tokens, so its first bytes are held back until it is
/// complete. Bytes that can no longer become a character are replaced by U+FFFD. All pieces
/// together equal [`String::from_utf8_lossy`] of all bytes.
///
/// ```
/// use everstream_model::TextStream;
///
/// let mut stream = TextStream::new();
/// assert_eq!(stream.push(b"caf\xC3"), "caf");
/// assert_eq!(stream.push(b"\xA9"), "é");
/// assert_eq!(stream.push(b"\xF0\x9F"), "");
/// assert_eq!(stream.finish(), "\u{FFFD}");
/// ```
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    /// The beginning of a character: at most three bytes between calls.
    held: Vec<u8>,
}

impl TextStream {
    /// A stream of which nothing was read yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the bytes of one token and returns the text that is now complete.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.held.len());
        let mut used = 0;
        for chunk in self.held.utf8_chunks() {
            text.push_str(chunk.valid());
            used += chunk.valid().len();
            let invalid = chunk.invalid();
            let is_last = used + invalid.len() == self.held.len();
            if is_last && may_continue(invalid) {
                break;
            }
            if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
                used += invalid.len();
            }
        }
        self.held.drain(..used);
        text
    }

    /// Ends the stream: what is held back will not be completed any more.
    ///
    /// Returns one U+FFFD if something was held back, else nothing. The stream can be used again.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        rest
    }
}

/// Whether more bytes could make a character of these.
fn may_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of `bytes`, pushed in pieces of `step`.
    fn streamed(bytes: &[u8], step: usize) -> String {
        let mut stream = TextStream::new();
        let mut text = String::new();
        for piece in bytes.chunks(step) {
            text.push_str(&stream.push(piece));
            assert!(stream.held.len() < 4);
        }
        text + &stream.finish()
    }

    #[test]
    fn equals_the_lossy_decoding_of_all_bytes_however_they_are_cut() {
        let texts: [&[u8]; 7] = [
            b"",
            "plain ä € 😀 text".as_bytes(),
            b"cut \xF0\x9F\x98",
            b"\xFF\xFE\x80 lone",
            b"\xE2\x82 then text",
            b"\xF0\x9F\xF0\x9F\x98\x80",
            b"\xED\xA0\x80\xC0\x80\xF4\x90\x80\x80",
        ];
        for text in texts {
            for step in 1..=5 {
                assert_eq!(streamed(text, step), String::from_utf8_lossy(text), "{text:?} {step}");
            }
        }
    }

    #[test]
    fn all_sequences_of_four_bytes_from_the_edges_of_utf8_agree() {
        const EDGES: [u8; 14] =
            [0x00, 0x7F, 0x80, 0x8F, 0x90, 0xA0, 0xBF, 0xC2, 0xDF, 0xE0, 0xED, 0xF0, 0xF4, 0xFF];
        for index in 0..EDGES.len().pow(4) {
            let digit = |place: u32| EDGES[index / EDGES.len().pow(place) % EDGES.len()];
            let bytes = [digit(0), digit(1), digit(2), digit(3)];
            assert_eq!(streamed(&bytes, 1), String::from_utf8_lossy(&bytes), "{bytes:?}");
        }
    }

    #[test]
    fn a_complete_character_is_not_held_back() {
        let mut stream = TextStream::new();
        assert_eq!(stream.push("😀".as_bytes()), "😀");
        assert_eq!(stream.finish(), "");
    }
}
