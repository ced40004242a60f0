//! `everstream chat`: a conversation over a stream that never ends.
//!
//! On a terminal there is a prompt with line editing and history, answers are streamed, and lines
//! that begin with `/` are commands. With piped input each line is a turn and each answer exactly
//! one line, so that n turns in give n lines out. Blank lines are no turns, and commands work there
//! too, since a script has the same questions; one that does not exist ends the run, so that no
//! turn is lost without a word. Either way recalls, progress and the output of commands go to
//! standard error, and `--json` replaces an answer by one object.

mod answer;
mod documents;
mod input;
mod one_line;
mod slash;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use everstream_runtime::memory::Embedder;
use everstream_runtime::model::Model;
use everstream_runtime::{
    Origin, Policy, Sampler, Session, SessionConfig, SessionError, Storage, saved_geometry,
};

use crate::args::{ChatArgs, Common};
use crate::{load, output};
use documents::Document;
use input::Input;
use slash::Line;

/// Time between lines about progress where there is no terminal for a bar.
const SAY_EVERY: Duration = Duration::from_secs(2);

/// Exit code of a program that Ctrl-C has ended.
pub(super) const INTERRUPTED: i32 = 130;

pub(crate) fn run(common: &Common, args: &ChatArgs) -> anyhow::Result<()> {
    // What can be wrong without a model is found before one is loaded.
    let mut config = args.cache.session(args.policy.unwrap_or(Policy::Remember));
    config.max_tokens = args.dense.context_limit;
    if args.session.session.is_some() {
        config.memory_type = load::SAVED_MEMORY_TYPE;
    }
    args.recall.apply(&mut config);
    config.draft_tokens = args.draft.draft_tokens;
    config.check()?;
    Sampler::new(args.sample.options().sampler)?;
    if args.session.session.is_some() && config.policy != Policy::Remember {
        bail!("--session keeps streams of policy remember: leave --policy {} out", config.policy);
    }
    let is_stdin_read = args.ingest.iter().any(|path| documents::is_stdin(path));
    if is_stdin_read && args.session.session.is_none() {
        bail!("--ingest - leaves no input for turns: give --session NAME, and chat with it later");
    }
    let storage = load::storage(common, &args.session)?;
    if let Some(storage) = &storage {
        keep_geometry(&mut config, storage, args)?;
    }
    config.document_context = args.ingest_context;
    let documents = documents::read(&args.ingest)?;
    let mut input = match is_stdin_read {
        true => None,
        false => Some(Input::open(&load::cache_dir(common)?)?),
    };
    let is_terminal = input.as_ref().is_some_and(Input::is_terminal);

    // What is kept must not depend on whether an encoder was there today.
    let asked = args.policy.or(storage.is_some().then_some(Policy::Remember));
    let (name, clusters) = (&args.model.model, &args.cache.clusters);
    let (model, encoder) = load::model_and_encoder(common, name, clusters, asked, &mut config)?;
    let name = args.session.session.as_deref();
    load::index(&args.recall.index, name, encoder.as_deref(), &mut config)?;
    let stop = Arc::new(AtomicBool::new(false));
    if is_terminal {
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
    let session = open(model, encoder, config, args, storage, documents.is_empty());
    let session = session.map_err(|error| match error.downcast_ref() {
        Some(SessionError::BrokenJournal { session, .. }) => anyhow::anyhow!(
            "{error}: save their texts with `everstream memory export --session {session}`, then go on without \
             them by --accept-loss"
        ),
        _ => error,
    })?;
    let mut chat = Chat { args, session, stop, is_terminal, n_turns: 0, next_query: None };
    chat.welcome_back()?;
    let done = chat.ingest(&documents).and_then(|is_whole| {
        if !is_whole {
            output::dim_note("reading stopped; the chat goes on with what was read");
        }
        if chat.is_terminal {
            chat.greet();
        }
        input.as_mut().map_or(Ok(()), |input| chat.talk(input))
    });
    // Also behind an error: what was said before it is not to be replayed.
    let saved = chat.session.save();
    done?;
    Ok(saved?)
}

/// Takes the settings that a session cannot change from the session, unless others were asked for.
fn keep_geometry(
    config: &mut SessionConfig,
    storage: &Storage,
    args: &ChatArgs,
) -> anyhow::Result<()> {
    let Some(saved) = saved_geometry(&storage.folder)? else { return Ok(()) };
    let name = storage.folder.name();
    if args.system.is_some() {
        bail!("session {name:?} has begun with its system prompt: leave --system out");
    }
    let default = SessionConfig::default();
    let (asked, sinks) = (config.clone(), saved.n_sink);
    saved.apply(config);
    // A system prompt has more sinks than were asked for, so any number passes.
    if asked.n_sink != default.n_sink && asked.n_sink > sinks {
        bail!("session {name:?} has {sinks} sinks, not {}: leave --sinks out", asked.n_sink);
    }
    if asked.window_tokens != default.window_tokens {
        config.window_tokens = asked.window_tokens;
    }
    if asked.context_tokens != default.context_tokens {
        config.context_tokens = asked.context_tokens;
    }
    if args.cache.clusters.n_clusters.is_some() {
        config.clusters = asked.clusters;
    }
    if asked.kv_type != default.kv_type {
        config.kv_type = asked.kv_type;
    }
    if args.recall.memory_type.is_some() {
        config.memory_type = asked.memory_type;
    }
    Ok(())
}

/// The stream before its first turn, or as it was left.
fn open(
    model: Arc<Model>,
    encoder: Option<Arc<dyn Embedder>>,
    config: SessionConfig,
    args: &ChatArgs,
    storage: Option<Storage>,
    has_no_documents: bool,
) -> anyhow::Result<Session> {
    let (system, has_system_turn) =
        (args.system.as_deref(), has_no_documents || args.system.is_some());
    let mut session = match (storage, encoder) {
        (Some(storage), Some(encoder)) if has_system_turn => {
            return Ok(Session::open_with_system(model, encoder, config, &storage, system)?);
        }
        (Some(storage), Some(encoder)) => Session::open(model, encoder, config, &storage)?,
        (_, encoder) if has_system_turn => {
            return Ok(Session::with_system(model, encoder, config, system)?);
        }
        (_, encoder) => Session::new(model, encoder, config)?,
    };
    // Small models were measured to answer best when the sinks are the text's own first tokens.
    session.begin()?;
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
    /// What the next turn recalls for, if not for itself.
    next_query: Option<String>,
}

impl Chat<'_> {
    /// Says how a session came back, and ends an answer that a crash cut off.
    fn welcome_back(&mut self) -> anyhow::Result<()> {
        let Some(resumed) = self.session.resumed() else { return Ok(()) };
        let (name, n_tokens) = (&self.session.config().name, self.session.n_tokens());
        let n_blocks = self.session.memory().map_or(0, |memory| memory.stats().n_blocks);
        let mut line = format!("session {name}: {n_tokens} tokens, {n_blocks} blocks remembered");
        if resumed.n_replayed > 0 {
            line += &format!("; read {} tokens again after a crash", resumed.n_replayed);
        }
        if resumed.n_over_limit > 0 {
            line += &format!("; {} were dropped to keep --memory-max", resumed.n_over_limit);
        }
        output::dim_note(&line);
        if resumed.is_older_state {
            output::note("the newest saved state was damaged: an older one was used");
        }
        if resumed.n_lost_blocks > 0 {
            output::note(&format!(
                "of what was recalled, {} blocks are gone: dropped, forgotten or damaged",
                resumed.n_lost_blocks
            ));
        }
        if resumed.n_dropped_blocks > 0 {
            output::note(&format!(
                "{} blocks were forgotten: what they were of cannot be read again",
                resumed.n_dropped_blocks
            ));
        }
        if self.session.awaits_answer() {
            output::dim_note("the last answer was cut off; it stays as far as it came");
            self.session.close_answer()?;
        }
        Ok(())
    }

    /// Reads the documents; returns whether it was left to finish.
    fn ingest(&mut self, documents: &[Document]) -> anyhow::Result<bool> {
        for Document { name, text } in documents {
            let (bar, start) = (output::token_bar(0, name), Instant::now());
            let (mut n_all, mut n_last, stop) = (0, 0, Arc::clone(&self.stop));
            let mut said = Instant::now();
            let origin = Origin::file(name);
            let n_read = self.session.ingest_rest(text, origin, &mut |session, n_read, n_tokens| {
                (n_last, n_all) = (n_read, n_tokens);
                bar.set_length(n_tokens as u64);
                bar.set_position(n_read as u64);
                if bar.is_hidden() && said.elapsed() >= SAY_EVERY {
                    said = Instant::now();
                    let stored = session.memory().and_then(|memory| memory.metas().last());
                    let stored = stored.map_or(0, |meta| meta.range.end.0);
                    output::dim_note(&format!(
                        "read {name}: {n_read} of {n_tokens} tokens; stored up to token {stored}"
                    ));
                }
                match stop.load(Ordering::Relaxed) {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            })?;
            bar.finish_and_clear();
            let seconds = start.elapsed().as_secs_f64();
            let speed = n_read as f64 / seconds;
            match n_read {
                0 => output::dim_note(&format!("{name} was read before")),
                _ => output::dim_note(&format!(
                    "read {name}: {n_read} tokens in {seconds:.1} s, {speed:.0} tokens/s"
                )),
            }
            if n_last < n_all {
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
        if let slash::Command::Recall(query) = command {
            self.next_query = Some(query.to_owned());
        }
        let text = slash::run(&mut self.session, command)?;
        output::note(text.trim_end());
        Ok(())
    }
}
