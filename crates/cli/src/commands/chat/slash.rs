//! The commands of a chat: lines that begin with `/`.

use std::fmt::Write;

use anyhow::Context;
use everstream_runtime::kv_cache::Place;
use everstream_runtime::memory::RecallOrder;
use everstream_runtime::{Policy, Session};

use crate::args::token_range;
use crate::{output, recalled};

const HELP: &str = "\
/help            this list
/stats           tokens, cache, memory, times
/policy          the policy and the sections of the cache
/memory          what the memory holds
/memory QUERY    the blocks nearest to a query, recalled or not
/recall QUERY    the next turn recalls what is relevant to a query, and not to itself
/forget A..B     forgets the blocks with these tokens; a recall of them ends
/pin             texts that are in every recall
/pin TEXT        puts a text into every recall from the next turn on
/unpin N         takes the N-th of them back
/quit            ends the chat, as Ctrl-D does
Ctrl-C stops an answer. A line that begins with // is a turn that begins with /.";

/// Blocks that a search shows.
const N_FOUND: usize = 5;
/// Characters of a block that a search shows.
const SHOWN_CHARS: usize = 100;

/// What a line is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    Blank,
    Turn(&'a str),
    Command(Command<'a>),
    /// A word that looks like a command.
    Unknown(&'a str),
    /// A command with something behind it that it does not take.
    Surplus(&'a str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command<'a> {
    Help,
    Stats,
    Policy,
    /// The query may be empty.
    Memory(&'a str),
    Recall(&'a str),
    /// Still to be parsed.
    Forget(&'a str),
    /// The text may be empty.
    Pin(&'a str),
    /// Still to be parsed.
    Unpin(&'a str),
    Quit,
}

/// `/` and letters make a command; a path such as `/etc/hosts` is part of a turn.
pub(super) fn parse(line: &str) -> Line<'_> {
    let line = line.trim();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    match word.strip_prefix('/') {
        None if line.is_empty() => Line::Blank,
        Some(name) if name.starts_with('/') => Line::Turn(&line[1..]),
        Some("memory") => Line::Command(Command::Memory(rest.trim())),
        Some("recall") => Line::Command(Command::Recall(rest.trim())),
        Some("forget") => Line::Command(Command::Forget(rest.trim())),
        Some("pin") => Line::Command(Command::Pin(rest.trim())),
        Some("unpin") => Line::Command(Command::Unpin(rest.trim())),
        // The others take nothing, and would ignore it without a word.
        Some("help" | "stats" | "policy" | "quit") if !rest.is_empty() => Line::Surplus(word),
        Some("help") => Line::Command(Command::Help),
        Some("stats") => Line::Command(Command::Stats),
        Some("policy") => Line::Command(Command::Policy),
        Some("quit") => Line::Command(Command::Quit),
        Some(name) if name.chars().all(|c| c.is_ascii_alphabetic()) => Line::Unknown(word),
        _ => Line::Turn(line),
    }
}

/// The answer to a command.
pub(super) fn run(session: &mut Session, command: Command<'_>) -> anyhow::Result<String> {
    Ok(match command {
        Command::Help | Command::Quit => HELP.to_owned(),
        Command::Stats => stats(session),
        Command::Policy => policy(session),
        Command::Memory("") => memory(session),
        Command::Memory(query) => search(session, query)?,
        Command::Recall(query) => recall(session, query)?,
        Command::Forget(range) => forget(session, range)?,
        Command::Pin("") => pins(session),
        Command::Pin(text) => {
            session.pin(text)?;
            pins(session)
        }
        Command::Unpin(number) => unpin(session, number)?,
    })
}

/// The policy and the capacities of the sections, on one line.
pub(super) fn policy(session: &Session) -> String {
    let c = session.config();
    let name = c.policy;
    match name {
        Policy::Dense => format!("policy {name}: all of up to {} tokens", c.max_tokens),
        Policy::Window => format!("policy {name}: {} recent tokens", c.window_tokens),
        Policy::Recompute => {
            format!("policy {name}: {} recent tokens, computed anew", c.window_tokens)
        }
        Policy::Sink => format!(
            "policy {name}: {} sinks + {} clusters + {} recent",
            c.n_sink,
            c.n_clusters(),
            c.window_tokens
        ),
        Policy::Remember => {
            let place = match c.recall.place {
                Place::Near => "near",
                Place::Between => "between",
            };
            let order = match c.recall.order {
                RecallOrder::BestLast => "best last",
                RecallOrder::Stream => "in stream order",
            };
            format!(
                "policy {name}: {} sinks + {} clusters + {} recalled + {} recent; strategy {}, up to {} blocks, \
                 {place} as {}, {order}, distance up to {}",
                c.n_sink,
                c.n_clusters(),
                c.context_tokens,
                c.window_tokens,
                c.recall.strategy.name(),
                c.recall.max_blocks,
                c.recall.insertion_name(),
                c.recall.gate.max_distance.map_or("any".to_owned(), |d| d.to_string()),
            )
        }
    }
}

fn pins(session: &Session) -> String {
    if session.pins().is_empty() {
        return "nothing is pinned: /pin TEXT puts a text into every recall".to_owned();
    }
    let line = |(i, text): (usize, &String)| format!("pin {}: {text}", i + 1);
    session.pins().iter().enumerate().map(line).collect::<Vec<_>>().join("\n")
}

fn unpin(session: &mut Session, number: &str) -> anyhow::Result<String> {
    let place = number.parse::<usize>().ok().and_then(|n| n.checked_sub(1));
    let text = place.map(|place| session.unpin(place)).transpose()?.flatten();
    let text = text.with_context(|| format!("there is no pin {number:?}: /pin lists them"))?;
    Ok(format!("no longer pinned: {text}"))
}

fn stats(session: &Session) -> String {
    let (s, t) = (session.sections(), session.timings());
    let evicted = session.evicted();
    let (kv, raw) = session.cache_bytes();
    let size = |bytes: usize| output::size(bytes as u64);
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<10} {value}");
    };
    let n_evicted = evicted.end.since(evicted.start);
    line("tokens", format!("{} read, {n_evicted} evicted", session.n_tokens()));
    line(
        "cache",
        format!(
            "{} sinks + {} clusters + {} recalled + {} recent",
            s.sinks, s.clusters, s.recalled, s.window
        ),
    );
    line("", format!("{}, and {} of keys before rotation", size(kv), size(raw)));
    if let Some(memory) = session.memory() {
        let stats = memory.stats();
        line("blocks", format!("{} in memory, {}", stats.n_blocks, size(stats.kv_bytes)));
    }
    let drafts = session.drafts();
    if drafts.drafted > 0 {
        let (right, all) = (drafts.accepted, drafts.drafted);
        line("ahead", format!("{all} tokens of answers guessed, {right} of them right"));
    }
    if let Some(bytes) = output::resident_bytes() {
        line("resident", output::size(bytes));
    }
    line(
        "time",
        format!(
            "{:.1} s in the model, {:.1} s remembering, {:.1} s recalling",
            t.forward.as_secs_f64(),
            t.remember.as_secs_f64(),
            t.recall.as_secs_f64()
        ),
    );
    text
}

/// What the memory holds and has done.
fn memory(session: &Session) -> String {
    let Some(memory) = session.memory() else { return no_memory(session) };
    let s = memory.stats();
    format!(
        "blocks     {} ({} tokens, {}): {} indexed, {} waiting\n\
         recalls    {}: {} blocks ({} tokens) recalled, {} turned away by the gate, {} too long\n",
        s.n_blocks,
        s.n_tokens,
        output::size(s.kv_bytes as u64),
        s.n_indexed,
        s.n_pending,
        s.recalls_total,
        s.recalled_blocks_total,
        s.recalled_tokens_total,
        s.gated_blocks_total,
        s.skipped_blocks_total,
    )
}

fn search(session: &mut Session, query: &str) -> anyhow::Result<String> {
    if session.memory().is_none() {
        return Ok(no_memory(session));
    }
    let mut text = String::new();
    for found in session.search(query, N_FOUND)? {
        let (source, range) = (&found.meta.source, &found.meta.range);
        let source = source.as_ref().map_or(String::new(), |s| format!("{}:{} ", s.file, s.line));
        let words = output::first_words(&found.text.text, SHOWN_CHARS);
        let (start, end) = (range.start.0, range.end.0);
        let _ =
            writeln!(text, "distance {:.3}, tokens {start}..{end} {source}{words}", found.distance);
    }
    Ok(if text.is_empty() { "the memory is empty\n".to_owned() } else { text })
}

/// Shows what the next turn will recall.
fn recall(session: &mut Session, query: &str) -> anyhow::Result<String> {
    if session.memory().is_none() {
        return Ok(no_memory(session));
    }
    let recall = session.recall(query)?.clone();
    let lines = recalled::lines(session.model().tokenizer(), &recall);
    Ok(if lines.is_empty() {
        match session.evicted().is_empty() {
            true => "nothing has left the window yet\n".to_owned(),
            false => "the memory is empty\n".to_owned(),
        }
    } else {
        lines.join("\n")
    })
}

fn forget(session: &mut Session, range: &str) -> anyhow::Result<String> {
    if session.memory().is_none() {
        return Ok(no_memory(session));
    }
    let range = token_range(range).map_err(|problem| anyhow::anyhow!("/forget: {problem}"))?;
    let forgotten = session.forget(&range)?;
    let mut text = String::new();
    for range in &forgotten {
        let _ = writeln!(text, "forgot tokens {}..{}", range.start.0, range.end.0);
    }
    if forgotten.is_empty() {
        text = "nothing is remembered of these tokens\n".to_owned();
    }
    if session.evicted().end < range.end && range.start.0 < session.n_tokens() {
        text += "what is still in the window stays there until it leaves\n";
    }
    Ok(text)
}

fn no_memory(session: &Session) -> String {
    format!("policy {} has no memory: start with --policy remember\n", session.config().policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart() {
        let check = |line, expected| assert_eq!(parse(line), expected, "{line:?}");
        check("", Line::Blank);
        check(" \t", Line::Blank);
        check(" Who? ", Line::Turn("Who?"));
        check("/quit", Line::Command(Command::Quit));
        check(" /memory  the gate ", Line::Command(Command::Memory("the gate")));
        check("/memory", Line::Command(Command::Memory("")));
        check("/recall the gate", Line::Command(Command::Recall("the gate")));
        check("/forget 1..2", Line::Command(Command::Forget("1..2")));
        check("/stats now", Line::Surplus("/stats"));
        check("/quit ", Line::Command(Command::Quit));
        check("/exit", Line::Unknown("/exit"));
        check("/", Line::Unknown("/"));
        check("/etc/hosts is a file", Line::Turn("/etc/hosts is a file"));
        check("//quit", Line::Turn("/quit"));
        check("1 / 2", Line::Turn("1 / 2"));
    }
}
