//! Text of any shape as exactly one line.

use std::io::{self, Write};

/// Writes text piece by piece as one line: white space with a line break in it becomes one space,
/// and so do control characters; white space at both ends is dropped.
pub(super) struct OneLine<W> {
    out: W,
    /// White space that is written if something follows.
    held: String,
    has_begun: bool,
}

impl<W: Write> OneLine<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, held: String::new(), has_begun: false }
    }

    pub(super) fn write(&mut self, piece: &str) -> io::Result<()> {
        for c in piece.chars() {
            if c.is_whitespace() || c.is_control() {
                self.held.push(c);
                continue;
            }
            if self.has_begun && self.held.contains(is_break) {
                self.out.write_all(b" ")?;
            } else if self.has_begun {
                self.out.write_all(self.held.as_bytes())?;
            }
            self.held.clear();
            self.has_begun = true;
            write!(self.out, "{c}")?;
        }
        self.out.flush()
    }

    /// Writes text for a terminal, line breaks and all, but nothing that it would act on.
    pub(super) fn write_as_it_is(&mut self, piece: &str) -> io::Result<()> {
        let shown = |c| if matches!(c, '\n' | '\t') { c } else { crate::output::visible(c) };
        self.out.write_all(piece.chars().map(shown).collect::<String>().as_bytes())?;
        self.out.flush()
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.out.write_all(b"\n")?;
        self.out.flush()
    }
}

/// Whether some program takes the character for the end of a line, or a terminal acts on it.
fn is_break(c: char) -> bool {
    c.is_control() && c != '\t' || matches!(c, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pieces: &[&str], expected: &str) {
        let mut out = Vec::new();
        let mut line = OneLine::new(&mut out);
        for piece in pieces {
            line.write(piece).unwrap();
        }
        line.finish().unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn there_is_one_line_whatever_comes() {
        check(&[], "\n");
        check(&["\n\n"], "\n");
        check(&[" a  b\tc "], "a  b\tc\n");
        check(&["a\n", "\n", "  b\r\n"], "a b\n");
        check(&["a\u{2028}b\u{85}c\u{b}d\u{1b}[31me\0f"], "a b c d [31me f\n");
        check(&["é", "\n", "ü"], "é ü\n");
    }
}
