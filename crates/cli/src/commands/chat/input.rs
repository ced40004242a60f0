//! Lines from a terminal or a pipe.

use std::io::{BufRead, IsTerminal, StdinLock};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

/// The file of the cache folder that remembers what was typed.
const HISTORY: &str = "chat_history.txt";
const PROMPT: &str = "> ";

/// Where turns come from.
pub(super) enum Input {
    Terminal {
        editor: Box<DefaultEditor>,
        /// `None` once it could not be written.
        history: Option<PathBuf>,
    },
    Pipe {
        stdin: StdinLock<'static>,
        n_lines: usize,
    },
}

impl Input {
    /// Standard input; what is typed at a terminal is remembered in `cache_dir`.
    pub(super) fn open(cache_dir: &Path) -> anyhow::Result<Self> {
        if !std::io::stdin().is_terminal() {
            return Ok(Self::Pipe { stdin: std::io::stdin().lock(), n_lines: 0 });
        }
        let mut editor = Box::new(DefaultEditor::new().context("cannot use this terminal")?);
        let history = cache_dir.join(HISTORY);
        // The first chat has none.
        let _ = editor.load_history(&history);
        Ok(Self::Terminal { editor, history: Some(history) })
    }

    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    /// The next line without its end; `None` at the end of input.
    pub(super) fn next_line(&mut self) -> anyhow::Result<Option<String>> {
        match self {
            Self::Terminal { editor, history } => edited_line(editor, history),
            Self::Pipe { stdin, n_lines } => {
                *n_lines += 1;
                piped_line(stdin, *n_lines)
            }
        }
    }
}

fn edited_line(
    editor: &mut DefaultEditor,
    history: &mut Option<PathBuf>,
) -> anyhow::Result<Option<String>> {
    loop {
        match editor.readline(PROMPT) {
            Ok(line) => {
                remember(editor, history, &line);
                return Ok(Some(line));
            }
            // Ctrl-C drops the line that was begun.
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => return Ok(None),
            Err(error) => return Err(error).context("cannot read from the terminal"),
        }
    }
}

/// Adds a line to the history; a folder that cannot be written costs the history, not the chat.
fn remember(editor: &mut DefaultEditor, history: &mut Option<PathBuf>, line: &str) {
    let is_new = editor.add_history_entry(line).unwrap_or(false);
    let Some(path) = history.as_ref().filter(|_| is_new) else { return };
    let written = path.parent().map_or(Ok(()), fs_err::create_dir_all);
    let written = written.map_err(ReadlineError::from).and_then(|()| editor.append_history(path));
    if let Err(error) = written {
        let text = format!("the history is not saved in {}: {error}", path.display());
        crate::output::dim_note(&text);
        *history = None;
    }
}

fn piped_line(stdin: &mut impl BufRead, number: usize) -> anyhow::Result<Option<String>> {
    let mut bytes = Vec::new();
    if stdin.read_until(b'\n', &mut bytes).context("cannot read standard input")? == 0 {
        return Ok(None);
    }
    match String::from_utf8(bytes) {
        Ok(line) => Ok(Some(line.trim_end_matches(['\n', '\r']).to_owned())),
        Err(error) => bail!(
            "line {number} of standard input is not UTF-8 (byte {}): convert it, for instance \
             with iconv",
            error.utf8_error().valid_up_to()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_with_the_input() {
        let mut input: &[u8] = b"one\r\n\ntwo";
        let mut next = || piped_line(&mut input, 1).unwrap();
        assert_eq!(
            [next(), next(), next()],
            [Some("one".into()), Some("".into()), Some("two".into())]
        );
        assert_eq!(next(), None);
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        let error = piped_line(&mut &b"ab\xff\n"[..], 7).unwrap_err().to_string();
        assert!(error.starts_with("line 7 ") && error.contains("(byte 2)"), "{error}");
    }
}
