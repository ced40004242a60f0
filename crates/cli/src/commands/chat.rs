//! `everstream chat`: a conversation over a stream that never ends.
//!
//! On a terminal there is a prompt with line editing and history, answers are streamed, and lines
//! that begin with `/` are commands. With piped input each line is a turn and each answer exactly
//! one line, so that n turns in give n lines out. Blank lines are no turns, and commands work there
//! too, since a script has the same questions; one that does not exist ends the run, so that no
//! turn is lost without a word. Either way recalls, progress and the output of commands go to
//! standard error, and `--json` replaces an answer by one object.

mod answer;
mod input;
mod one_line;
mod slash;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, bail};
use everstream_runtime::memory::{Embedder, Role};
use everstream_runtime::model::Model;
use everstream_runtime::{Origin, Sampler, Session, SessionConfig};

use crate::args::{ChatArgs, Common};
use crate::{load, output};
use input::Input;
use slash::Line;

/// Names of what the turns of a chat come from.
const STANDARD_INPUT: [&str; 4] = ["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"];

/// Exit code of a program that Ctrl-C has ended.
const INTERRUPTED: i32 = 130;

/// A text to read before the first turn.
struct Document {
    name: String,
    text: String,
}

pub(crate) fn run(common: &Common, args: &ChatArgs) -> anyhow::Result<()> {
    // What can be wrong without a model is found before one is loaded.
    let mut config = args.cache.session(args.policy);
    args.recall.apply(&mut config);
    config.check()?;
    Sampler::new(args.sample.options().sampler)?;
    let documents = read_documents(&args.ingest)?;
    let mut input = Input::open(&load::cache_dir(common)?)?;

    let model = load::model(common, &args.model.model)?;
    let encoder = load::encoder(common, args.policy)?;
    let stop = Arc::new(AtomicBool::new(false));
    if input.is_terminal() {
        // Piped input is a script's, and a script that is interrupted should end.
        let stop = Arc::clone(&stop);
        let handler = move || {
            // Asked a second time before anything came of the first.
            if stop.swap(true, Ordering::Relaxed) {
                std::process::exit(INTERRUPTED);
            }
        };
        ctrlc::set_handler(handler).context("cannot listen for Ctrl-C")?;
    }
    let session = open(model, encoder, config, args, &documents)?;
    let mut chat = Chat { args, session, stop, is_terminal: input.is_terminal(), n_turns: 0 };
    if !chat.ingest(&documents)? {
        output::dim_note("reading stopped; the chat goes on with what was read");
    }
    if chat.is_terminal {
        chat.greet();
    }
    chat.talk(&mut input)
}

fn read_documents(files: &[PathBuf]) -> anyhow::Result<Vec<Document>> {
    let read = |path: &PathBuf| {
        if STANDARD_INPUT.iter().any(|name| path == Path::new(name)) {
            bail!("--ingest {} would read the turns of the chat: give a file", path.display());
        }
        let (name, text) = (path.display().to_string(), load::text(path)?);
        if text.trim().is_empty() {
            bail!("{name} is empty: leave it out of --ingest");
        }
        Ok(Document { name, text })
    };
    files.iter().map(read).collect()
}

/// The stream before its first turn.
fn open(
    model: Arc<Model>,
    encoder: Option<Arc<dyn Embedder>>,
    config: SessionConfig,
    args: &ChatArgs,
    documents: &[Document],
) -> anyhow::Result<Session> {
    if args.system.is_some() || documents.is_empty() {
        return Ok(Session::with_system(model, encoder, config, args.system.as_deref())?);
    }
    // Small models were measured to answer best when the sinks are the text's own first tokens.
    let mut session = Session::new(model, encoder, config)?;
    let tokenizer = session.model().tokenizer();
    if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.add_bos()) {
        session.append(&[bos], Origin::turn(Role::Document))?;
    }
    Ok(session)
}

/// A conversation.
struct Chat<'a> {
    args: &'a ChatArgs,
    session: Session,
    /// Set by Ctrl-C, cleared when an answer begins.
    stop: Arc<AtomicBool>,
    is_terminal: bool,
    n_turns: usize,
}

impl Chat<'_> {
    /// Reads the documents; returns whether it was left to finish.
    fn ingest(&mut self, documents: &[Document]) -> anyhow::Result<bool> {
        for Document { name, text } in documents {
            let (bar, start) = (output::token_bar(0, name), Instant::now());
            let (mut n_all, stop) = (0, Arc::clone(&self.stop));
            let origin = Origin::file(name);
            let n_read = self.session.ingest(text, origin, &mut |_, n_read, n_tokens| {
                n_all = n_tokens;
                bar.set_length(n_tokens as u64);
                bar.set_position(n_read as u64);
                match stop.load(Ordering::Relaxed) {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            })?;
            bar.finish_and_clear();
            let seconds = start.elapsed().as_secs_f64();
            let speed = n_read as f64 / seconds;
            output::dim_note(&format!(
                "read {name}: {n_read} tokens in {seconds:.1} s, {speed:.0} tokens/s"
            ));
            if n_read < n_all {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn greet(&self) {
        let model = &self.args.model.model;
        output::dim_note(&format!("{model}, {}", slash::policy(&self.session)));
        if self.session.model().template().is_fallback() {
            output::dim_note("this model has no chat template: ChatML stands in");
        }
        output::dim_note("/help lists commands, Ctrl-D ends");
    }

    /// Turn after turn until the input ends.
    fn talk(&mut self, input: &mut Input) -> anyhow::Result<()> {
        while let Some(line) = input.next_line()? {
            let result = match slash::parse(&line) {
                Line::Blank => Ok(()),
                Line::Command(slash::Command::Quit) => return Ok(()),
                Line::Command(command) => self.run(command),
                Line::Unknown(name) => Err(anyhow::anyhow!(
                    "unknown command {name}: try /help, or begin the line with // for a turn"
                )),
                Line::Surplus(name) => Err(anyhow::anyhow!(
                    "{name} takes nothing behind it; begin the line with // for a turn"
                )),
                Line::Turn(text) => self.turn(text),
            };
            match result {
                // A person can try something else; a script's next line would not fit.
                Err(error) if self.is_terminal && !output::is_broken_pipe(&error) => {
                    output::note(&format!("everstream: {}", output::one_line(&error)));
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// Runs a command. Its output must not be taken for an answer.
    fn run(&mut self, command: slash::Command<'_>) -> anyhow::Result<()> {
        let text = slash::run(&mut self.session, command)?;
        output::note(text.trim_end());
        Ok(())
    }
}
