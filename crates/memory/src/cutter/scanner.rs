//! Reads token bytes and says how good a place each token's start is for a cut.
//!
//! It decides what a place looks like and leaves to the cutter which place to take. It works on
//! bytes because a token may hold half a character, and on characters because a sentence may end
//! in `。` or `?”`.

/// How good a place is for a cut, from the worst to the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Boundary {
    /// Inside a character: its halves would both be unreadable.
    MidChar,
    /// Between two characters of a word, or between whitespace and more whitespace.
    Char,
    /// Between two words.
    Word,
    /// A line break that ends no sentence.
    Line,
    /// The end of a sentence.
    Sentence,
    /// The end of a sentence that is also the end of a line.
    SentenceLine,
    /// A blank line.
    Paragraph,
    /// The end of a turn.
    Turn,
}

/// The mark, if any, with which the text before a place ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    #[default]
    None,
    /// `.`, `!`, `?` or `…`: ends a sentence if whitespace follows.
    Mark,
    /// A full-width mark: ends a sentence by itself.
    Wide,
}

/// Words whose full stop is part of the word. Only what stands before a capital letter needs to
/// be here: a full stop before a small letter never ends a sentence.
const ABBREVIATIONS: [&str; 16] = [
    "mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "vs", "cf", "fig", "gen", "col", "capt",
    "lt", "rev",
];

/// Longer words than the longest abbreviation need not be remembered.
const WORD_BYTES: usize = 8;

/// Reads one block's tokens in order; a new block begins with a new scanner, so what it says
/// depends on that block's tokens alone.
#[derive(Clone, Debug, Default)]
pub(super) struct Scanner {
    /// Bytes of a character that is not complete yet.
    partial: Vec<u8>,
    tail: Tail,
}

impl Scanner {
    /// Reads one token and returns how good a cut right before it would be.
    pub(super) fn push(&mut self, token: &[u8]) -> Boundary {
        let mut before = (!self.partial.is_empty()).then_some(Boundary::MidChar);
        for &byte in token {
            self.partial.push(byte);
            while let Some(c) = take_char(&mut self.partial) {
                // Whitespace at a token's start still belongs to what came before.
                if before.is_none() && !c.is_whitespace() {
                    before = Some(self.tail.boundary(Some(c)));
                }
                self.tail.push(c);
            }
        }
        match before {
            Some(boundary) => boundary,
            None if self.partial.is_empty() => Boundary::Char,
            None => self.tail.boundary(Some(char::REPLACEMENT_CHARACTER)),
        }
    }

    /// How good a cut after the last token would be, without knowing what follows.
    pub(super) fn at_end(&self) -> Boundary {
        if self.partial.is_empty() { self.tail.boundary(None) } else { Boundary::MidChar }
    }
}

/// Takes the first character off `bytes` if it is complete; what is not UTF-8 comes out as U+FFFD.
fn take_char(bytes: &mut Vec<u8>) -> Option<char> {
    let (c, n_bytes) = match std::str::from_utf8(bytes) {
        Ok(text) => text.chars().next().map(|c| (c, c.len_utf8()))?,
        // At most four bytes are ever held, so valid ones before the error cannot pile up.
        Err(error) => (char::REPLACEMENT_CHARACTER, error.error_len()?),
    };
    bytes.drain(..n_bytes);
    Some(c)
}

/// What the text read so far ends with.
#[derive(Clone, Debug, Default)]
struct Tail {
    end: End,
    /// Whitespace follows the last visible character.
    space: bool,
    newlines: usize,
    /// The last word's first bytes in lower case, without its closing marks.
    word: String,
}

impl Tail {
    fn push(&mut self, c: char) {
        if c.is_whitespace() {
            self.space = true;
            self.newlines += usize::from(c == '\n');
            return;
        }
        if self.space {
            *self = Self::default();
        }
        self.end = match c {
            '.' if self.word_keeps_its_stop() => End::None,
            '.' | '!' | '?' | '…' => End::Mark,
            '。' | '！' | '？' => End::Wide,
            _ if closes(c) => self.end,
            _ => End::None,
        };
        if self.word.len() < WORD_BYTES && !wraps(c) {
            self.word.extend(c.to_lowercase());
        }
    }

    /// `J.` of `J. Smith`, `Mr.`, `e.g.`
    fn word_keeps_its_stop(&self) -> bool {
        if self.word.starts_with(|c: char| c.is_ascii_digit()) {
            return false;
        }
        let initial = self.word.chars().count() == 1 && self.word != "i";
        let inner_stop = self.word.len() == 3 && self.word.as_bytes()[1] == b'.';
        initial || inner_stop || ABBREVIATIONS.contains(&self.word.as_str())
    }

    fn boundary(&self, next: Option<char>) -> Boundary {
        let ended = match self.end {
            End::None => false,
            End::Mark => self.space && !next.is_some_and(char::is_lowercase),
            End::Wide => !next.is_some_and(|c| !self.space && (closes(c) || ends(c))),
        };
        match (ended, self.newlines, self.space) {
            (_, 2.., _) => Boundary::Paragraph,
            (true, 1, _) => Boundary::SentenceLine,
            (true, 0, _) => Boundary::Sentence,
            (false, 1, _) => Boundary::Line,
            (false, 0, true) => Boundary::Word,
            (false, 0, false) => Boundary::Char,
        }
    }
}

fn ends(c: char) -> bool {
    matches!(c, '.' | '!' | '?' | '…' | '。' | '！' | '？')
}

/// Marks that may stand between the end of a sentence and the space after it.
fn closes(c: char) -> bool {
    matches!(c, '"' | '\'' | ')' | ']' | '}' | '”' | '’' | '»' | '」' | '』' | '）' | '*' | '_')
}

fn wraps(c: char) -> bool {
    closes(c) || matches!(c, '(' | '[' | '{' | '“' | '‘' | '«' | '「' | '『' | '（')
}

#[cfg(test)]
mod tests {
    use super::Boundary::{Char, Line, MidChar, Paragraph, Sentence, SentenceLine, Word};
    use super::*;

    /// Scans `tokens` and compares the place before each but the first, and the end.
    fn check(tokens: &[&[u8]], expected: &[Boundary]) {
        let mut scanner = Scanner::default();
        let mut found: Vec<Boundary> = tokens.iter().map(|token| scanner.push(token)).collect();
        found.push(scanner.at_end());
        assert_eq!(&found[1..], expected, "{:?}", String::from_utf8_lossy(&tokens.concat()));
    }

    fn check_text(tokens: &[&str], expected: &[Boundary]) {
        check(&tokens.iter().map(|t| t.as_bytes()).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn sentences_end_at_marks_before_whitespace() {
        check_text(&["One", ".", " Two"], &[Char, Sentence, Char]);
        check_text(&["One", "!", " Two", "?"], &[Char, Sentence, Char, Char]);
        check_text(&["One", ".”", " Two"], &[Char, Sentence, Char]);
        check_text(&["3", ".", "14", " is"], &[Char, Char, Word, Char]);
        check_text(&["“Oh", "!”", " he", " said"], &[Char, Word, Word, Char]);
    }

    #[test]
    fn some_full_stops_belong_to_their_word() {
        check_text(&["(Mr", ".", " Smith"], &[Char, Word, Char]);
        check_text(&["by J", ".", " Smith"], &[Char, Word, Char]);
        check_text(&["e.g", ".", " Rome"], &[Char, Word, Char]);
        check_text(&["so did I", ".", " We"], &[Char, Sentence, Char]);
        check_text(&["in part 4", ".", " We"], &[Char, Sentence, Char]);
    }

    #[test]
    fn lines_and_paragraphs_own_their_line_breaks() {
        check_text(&["One", "\n", "Two"], &[Char, Line, Char]);
        check_text(&["One.", "\n", "Two"], &[Char, SentenceLine, Char]);
        check_text(&["One.", "\n", "\n", "Two"], &[Char, Char, Paragraph, Char]);
        check_text(&["One.\r\n\r\n", "Two"], &[Paragraph, Char]);
        check_text(&["One", "\n \n", " Two"], &[Char, Paragraph, Char]);
        check_text(&["One.\n"], &[SentenceLine]);
    }

    #[test]
    fn full_width_marks_need_no_space() {
        check_text(&["你好", "。", "再见"], &[Char, Sentence, Char]);
        check_text(&["「你好。", "」", "再见"], &[Char, Sentence, Char]);
    }

    #[test]
    fn characters_are_not_cut() {
        let bytes = "é".as_bytes();
        check(&[b"a", &bytes[..1], &bytes[1..], b" b"], &[Char, MidChar, Word, Char]);
        check(&[b"One. ", &bytes[..1]], &[Sentence, MidChar]);
    }

    #[test]
    fn any_bytes_are_read_without_growing() {
        let mut scanner = Scanner::default();
        for round in 0..2000_u32 {
            let token: Vec<u8> = (0..7).map(|i| (round.wrapping_mul(97) + i * 31) as u8).collect();
            scanner.push(&token);
            assert!(scanner.partial.len() < 4);
        }
    }

    #[test]
    fn empty_tokens_are_poor_places() {
        check_text(&["One.", "", " Two"], &[Char, Sentence, Char]);
    }
}
