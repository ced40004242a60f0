//! What people see: progress bars, one-line errors, sizes.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use everstream_hub::Progress;
use everstream_runtime::SessionConfig;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// An error and its causes on one line.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // Transparent errors repeat their source.
        if !line.ends_with(&cause) {
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(&cause);
        }
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The clusters of a cache and a plus sign, where its sections are added up; nothing if it has none.
pub(crate) fn clusters_and(config: &SessionConfig) -> String {
    config.clusters.map_or(String::new(), |clusters| format!("{clusters} + "))
}

/// Whether an error says that nobody reads the output any more.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// A bar on standard error; hidden where that is no terminal.
pub(crate) fn bar(total: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), target());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A bar that counts tokens.
pub(crate) fn token_bar(total: usize, what: &str) -> ProgressBar {
    let bar = bar(total as u64, "{msg} {wide_bar} {pos}/{len} tokens {per_sec} {eta}");
    bar.set_message(what.to_owned());
    bar
}

fn target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    }
}

/// Shows a pull: a bar for each step, notes on lines of their own.
pub(crate) struct PullProgress {
    bar: Option<ProgressBar>,
}

impl PullProgress {
    /// Nothing is shown until a step begins.
    pub(crate) fn new() -> Self {
        Self { bar: None }
    }
}

impl Progress for PullProgress {
    fn begin(&mut self, what: &str, total_bytes: Option<u64>) {
        let template = match total_bytes {
            Some(_) => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}",
            None => "{msg} {spinner} {bytes} {bytes_per_sec}",
        };
        let bar = bar(total_bytes.unwrap_or(0), template);
        bar.set_message(what.to_owned());
        self.bar = Some(bar);
    }

    fn advance(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn note(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(text)),
            None => note(text),
        }
    }
}

/// A size in the unit that fits.
pub(crate) fn size(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64, "B");
    for next in ["KB", "MB", "GB"] {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

/// Resident memory of this process, where the system tells.
pub(crate) fn resident_bytes() -> Option<u64> {
    status_kb("VmRSS:")
}

/// Largest resident memory so far, where the system tells.
pub(crate) fn peak_resident_bytes() -> Option<u64> {
    status_kb("VmHWM:")
}

fn status_kb(key: &str) -> Option<u64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(key))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// The first words of a text on one line, as a terminal may see them: without control characters.
pub(crate) fn first_words(text: &str, n_chars: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line: String = line.chars().map(visible).collect();
    match line.char_indices().nth(n_chars) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// A character, or what stands for one that a terminal would act on.
pub(crate) fn visible(c: char) -> char {
    if c.is_control() { '\u{fffd}' } else { c }
}

/// A line on standard error. That nobody reads it is no reason to stop, so errors are dropped.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// As [`note`], in grey on a terminal.
pub(crate) fn dim_note(text: &str) {
    note(&dim(text));
}

/// `text` in grey on a terminal.
fn dim(text: &str) -> String {
    if std::io::stderr().is_terminal() { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
}
