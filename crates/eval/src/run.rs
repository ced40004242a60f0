//! Reads streams, asks questions, keeps answers.

use std::collections::HashSet;
use std::io::{ErrorKind, Write};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use everstream_runtime::memory::{Embedder, Recall, Role, write_whole};
use everstream_runtime::model::Model;
use everstream_runtime::{
    Drafts, GenerateOptions, Generated, Origin, RecallConfig, Session, SessionConfig, SessionError,
    encode,
};
use serde::{Deserialize, Serialize};

use crate::method::Reading;
use crate::{EvalError, Method, Question, Stream, Task, TaskOptions};

/// Files of a folder of answers.
pub(crate) const ANSWERS: &str = "answers.jsonl";
pub(crate) const TIMINGS: &str = "timings.jsonl";
pub(crate) const SETTINGS: &str = "run.json";
/// Locked by the process that writes into the folder.
const LOCK: &str = "lock";

/// Characters by which a document is known.
const ABOUT_CHARS: usize = 60;

/// One question, answered. The same settings give the same answers, byte for byte; how long they took is
/// kept in a file of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// What was drawn.
    pub seed: u64,
    /// The stream's number, from 0.
    pub stream: usize,
    /// The question's name in the stream.
    pub question: String,
    /// [`Method::label`].
    pub method: String,
    /// [`Question::group`].
    pub group: String,
    /// What the model read last.
    pub prompt: String,
    /// What would have been right.
    pub references: Vec<String>,
    /// What the model said.
    pub answer: String,
    /// How the first document with evidence begins; empty without evidence. Answers that share it are no
    /// independent ones.
    #[serde(default)]
    pub about: String,
    /// Tokens between the end of the evidence and the question.
    pub distance: u64,
    /// What was recalled, first and one past the last token of each block.
    pub recalled: Vec<(u64, u64)>,
    /// The share, from 0 to 1, of the documents of the evidence of which something was recalled; `None` if
    /// nothing could be recalled, or there is no evidence.
    pub found: Option<f64>,
    /// Tokens that the model saw besides the question.
    pub seen: usize,
    /// Metrics by name, each from 0 to 1.
    pub scores: Vec<(String, f64)>,
    /// Tokens of the first reference and the sum of their negative log likelihoods, in nats, where the
    /// question asks for them.
    pub loss: Option<(usize, f64)>,
    /// The mean negative log likelihood of the answer's own tokens; `None` if there are none.
    pub doubt: Option<f64>,
}

/// How long an answer took, or the reading between two questions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Timing {
    /// What was drawn.
    pub seed: u64,
    /// The stream's number, from 0.
    pub stream: usize,
    /// The question's name in the stream; `None` for reading.
    pub question: Option<String>,
    /// [`Method::label`]; for reading, of the first method that reads so.
    pub method: String,
    /// Tokens read or generated.
    pub tokens: u64,
    /// How long it took; for an answer, with recall and prompt.
    pub seconds: f64,
    /// Of an answer: the time of its tokens alone.
    #[serde(default)]
    pub decode_seconds: f64,
    /// Of an answer: tokens that were guessed ahead, and those of them that were right.
    #[serde(default)]
    pub drafted: (u64, u64),
}

/// How far a run is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Answers that exist.
    pub answered: usize,
    /// Answers that there will be.
    pub total: usize,
    /// Of them, answers that an earlier run left.
    pub resumed: usize,
}

/// A comparison of methods on one task.
pub struct Run<'a> {
    /// What is asked.
    pub task: &'a dyn Task,
    /// How its streams are made; one seed of `seeds` at a time.
    pub options: TaskOptions,
    /// What is drawn, one set of streams for each.
    pub seeds: Vec<u64>,
    /// Who answers.
    pub model: Arc<Model>,
    /// Finds what is recalled; needed if a method recalls.
    pub encoder: Option<Arc<dyn Embedder>>,
    /// Settings of the sessions that remember, so its policy is `remember`. Others get as many tokens in all.
    pub config: SessionConfig,
    /// What is compared.
    pub methods: Vec<Method>,
    /// Where answers are kept; an interrupted run goes on from there. `None` keeps them nowhere.
    pub folder: Option<PathBuf>,
    /// Streams that are read at the same time; the answers are the same for any number.
    pub n_jobs: NonZeroUsize,
}

impl Run<'_> {
    /// Answers all questions that are not answered yet, and returns all answers in the order of seeds,
    /// streams, questions and methods.
    ///
    /// # Errors
    ///
    /// [`EvalError`]; what was answered before it is kept.
    pub fn answers(
        &self,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Vec<Answer>, EvalError> {
        let mut streams = Vec::new();
        for &seed in &self.seeds {
            let options = TaskOptions { seed, ..self.options.clone() };
            for (number, stream) in self.task.streams(&options)?.into_iter().enumerate() {
                streams.push((seed, number, stream));
            }
        }
        if streams.iter().all(|(_, _, stream)| stream.questions.is_empty()) {
            return Err(EvalError::Setting(
                "there is no question that could be asked: see what the task reads, and --unanswerable"
                    .to_owned(),
            ));
        }
        self.check(&streams)?;
        let mut kept = Kept::open(self.folder.as_deref(), &self.settings()?)?;
        let total = self.methods.len()
            * streams.iter().map(|(_, _, stream)| stream.questions.len()).sum::<usize>();
        let wanted = self.wanted(&streams);
        let (wanted, others): (Vec<_>, Vec<_>) =
            kept.answers.into_iter().partition(|answer| wanted.contains(&key(answer)));
        kept.answers = wanted;
        let resumed = kept.answers.len();
        progress(Progress { answered: resumed, total, resumed });
        let mut answered = |answered| progress(Progress { answered, total, resumed });
        let shared = Mutex::new(Shared { kept, answered: &mut answered });
        let next = AtomicUsize::new(0);
        let work = || -> Result<(), EvalError> {
            while let Some((seed, number, stream)) = streams.get(next.fetch_add(1, Relaxed)) {
                let read = self.read_stream((*seed, *number), stream, &shared);
                if read.is_err() {
                    // Nobody needs to begin another one.
                    next.store(streams.len(), Relaxed);
                }
                read?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let n_jobs = self.n_jobs.get().min(streams.len());
            let others: Vec<_> = (1..n_jobs).map(|_| scope.spawn(work)).collect();
            let results = std::iter::once(work())
                .chain(others.into_iter().map(|o| o.join().unwrap_or_else(|p| resume_unwind(p))));
            results.collect::<Result<Vec<()>, _>>()
        })?;
        let kept = shared.into_inner().unwrap_or_else(PoisonError::into_inner).kept;
        let mut answers = kept.answers;
        let place = |answer: &Answer| {
            let stream = streams.iter().position(|s| (s.0, s.1) == (answer.seed, answer.stream));
            let questions = stream.map(|i| &streams[i].2.questions);
            let question =
                questions.and_then(|all| all.iter().position(|q| q.id == answer.question));
            let method = self.methods.iter().position(|m| m.label() == answer.method);
            (stream, question, method)
        };
        if let Some(folder) = self.folder.as_deref().filter(|_| self.n_jobs.get() > 1) {
            // In the order in which one job would have answered.
            answers.sort_by_cached_key(|answer| {
                let (stream, question, method) = place(answer);
                let reading = method.map(|i| self.methods[i].reading());
                (stream, self.readings().iter().position(|&r| Some(r) == reading), question, method)
            });
            let lines = others.iter().chain(&answers).map(line).collect::<Result<Vec<_>, _>>()?;
            write_whole(&folder.join(ANSWERS), &lines.concat())?;
        }
        answers.sort_by_cached_key(place);
        Ok(answers)
    }

    /// How the methods read, each once.
    fn readings(&self) -> Vec<Reading> {
        let mut readings: Vec<Reading> = Vec::new();
        for method in &self.methods {
            if !readings.contains(&method.reading()) {
                readings.push(method.reading());
            }
        }
        readings
    }

    /// What all answers of a folder must share: everything but seeds and methods, of which there may
    /// be more another time.
    fn settings(&self) -> Result<String, EvalError> {
        let TaskOptions { data, limit, distractors, unanswerable, distances, seed: _ } =
            &self.options;
        let model = self.model.config();
        let name = data.as_ref().and_then(|path| path.file_name()).map(|n| n.to_string_lossy());
        let data_crc = match data {
            Some(path) => Some(crc_of(path)?),
            None => None,
        };
        let settings = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "task": self.task.name(),
            "data": name,
            "data_crc": data_crc,
            "limit": limit,
            "distractors": distractors,
            "unanswerable": unanswerable,
            "distances": distances,
            "model": model.name,
            "weight_bytes": self.model.weight_bytes(),
            "sinks": self.config.n_sink,
            "context_tokens": self.config.context_tokens,
            "window": self.config.window_tokens,
            "clusters": self.config.clusters.map(|clusters| clusters.to_string()),
            "cache_type": format!("{:?}", self.config.kv_type),
            "ingest_context": format!("{:?}", self.config.document_context),
            "recall": recall_settings(&self.config.recall),
            // Names of methods leave it out.
            "insertion": RecallConfig::default().insertion_name(),
        });
        Ok(format!("{settings:#}\n"))
    }

    fn wanted(&self, streams: &[(u64, usize, Stream)]) -> HashSet<Key> {
        let mut wanted = HashSet::new();
        for (seed, number, stream) in streams {
            for question in &stream.questions {
                for method in &self.methods {
                    wanted.insert((*seed, *number, question.id.clone(), method.label()));
                }
            }
        }
        wanted
    }

    /// Reads a stream once for all methods that read alike.
    fn read_stream(
        &self,
        place: (u64, usize),
        stream: &Stream,
        shared: &Mutex<Shared<'_>>,
    ) -> Result<(), EvalError> {
        let shared = || shared.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = self.ends(stream)?;
        for reading in self.readings() {
            let methods: Vec<&Method> =
                self.methods.iter().filter(|method| method.reading() == reading).collect();
            let is_open = |question: &Question| {
                let key = |m: &&Method| (place.0, place.1, question.id.clone(), m.label());
                methods.iter().any(|method| !shared().kept.known.contains(&key(method)))
            };
            let open: Vec<&Question> = stream.questions.iter().filter(|q| is_open(q)).collect();
            if open.is_empty() {
                continue;
            }
            let dense_tokens = match reading {
                Reading::Nothing | Reading::Full => self.dense_tokens(reading, stream, &ends)?,
                _ => 0,
            };
            let mut session = self.session(reading, dense_tokens)?;
            let mut n_read = 0;
            for question in open {
                if !matches!(reading, Reading::Nothing | Reading::Recompute) {
                    let (start, n_before) = (Instant::now(), session.n_tokens());
                    read(&mut session, &stream.documents[n_read..question.after])?;
                    n_read = question.after;
                    shared().kept.time(&Timing {
                        seed: place.0,
                        stream: place.1,
                        question: None,
                        method: methods[0].label(),
                        tokens: session.n_tokens() - n_before,
                        seconds: start.elapsed().as_secs_f64(),
                        decode_seconds: 0.0,
                        drafted: (0, 0),
                    })?;
                }
                for method in &methods {
                    let known = (place.0, place.1, question.id.clone(), method.label());
                    if shared().kept.known.contains(&known) {
                        continue;
                    }
                    let start = Instant::now();
                    let (mut answer, generated, drafts) =
                        self.answer(method, &session, stream, question, &ends)?;
                    (answer.seed, answer.stream) = place;
                    let seconds = start.elapsed().as_secs_f64();
                    let mut shared = shared();
                    shared.kept.time(&Timing {
                        seed: place.0,
                        stream: place.1,
                        question: Some(answer.question.clone()),
                        method: answer.method.clone(),
                        tokens: generated.tokens.len() as u64,
                        seconds,
                        decode_seconds: generated.elapsed.as_secs_f64(),
                        drafted: (drafts.drafted, drafts.accepted),
                    })?;
                    shared.kept.add(answer)?;
                    let n_answers = shared.kept.answers.len();
                    (shared.answered)(n_answers);
                }
            }
        }
        Ok(())
    }

    /// Where each document ends, in tokens.
    fn ends(&self, stream: &Stream) -> Result<Vec<u64>, EvalError> {
        let mut end = u64::from(self.model.tokenizer().first_token().is_some());
        let mut ends = Vec::new();
        for document in &stream.documents {
            end += encode(&self.model, document)?.len() as u64;
            ends.push(end);
        }
        Ok(ends)
    }

    /// Refuses what cannot be asked before anything is.
    fn check(&self, streams: &[(u64, usize, Stream)]) -> Result<(), EvalError> {
        let is_full = |method: &Method| method.reading() == Reading::Full;
        let mut known = HashSet::new();
        for (seed, number, stream) in streams {
            if self.methods.iter().any(is_full) {
                self.dense_tokens(Reading::Full, stream, &self.ends(stream)?)?;
            }
            for question in &stream.questions {
                if !known.insert((*seed, *number, &question.id)) {
                    return Err(EvalError::Setting(format!(
                        "question {} is there twice: give each seed once, and each record an id of its own",
                        question.id
                    )));
                }
            }
        }
        Ok(())
    }

    /// Tokens that a session which keeps everything must hold.
    fn dense_tokens(
        &self,
        reading: Reading,
        stream: &Stream,
        ends: &[u64],
    ) -> Result<usize, EvalError> {
        let budget = self.config.budget_tokens();
        let of = |question: &Question| -> u64 {
            let evidence = question.evidence.iter().map(|&i| ends[i] - end_of(ends, i)).sum();
            match reading {
                Reading::Full => end_of(ends, question.after),
                _ => u64::max(evidence, budget as u64),
            }
        };
        // The question and its answer.
        let asked = stream.questions.iter().map(|question| question.form.max_tokens).max();
        let longest = stream.questions.iter().max_by_key(|question| of(question));
        let needed = longest.map_or(0, of) as usize + asked.unwrap_or(0) + 1024;
        let trained = self.model.config().context_length;
        if needed > trained {
            return Err(EvalError::Setting(format!(
                "question {}: {needed} tokens would be seen at once, and the model was trained on {trained}: {}",
                longest.map_or("", |question| &question.id),
                match reading {
                    Reading::Full => "leave out `full`, or use a shorter stream",
                    _ => "leave out `evidence`, or use a smaller budget or data with shorter items",
                }
            )));
        }
        Ok(needed)
    }

    fn session(&self, reading: Reading, dense_tokens: usize) -> Result<Session, EvalError> {
        let config = reading.config(&self.config, dense_tokens);
        let encoder = self.encoder.clone().filter(|_| reading.remembers());
        let mut session = Session::new(Arc::clone(&self.model), encoder, config)?;
        session.begin()?;
        Ok(session)
    }

    /// An answer, and how it was made.
    fn answer(
        &self,
        method: &Method,
        read_before: &Session,
        stream: &Stream,
        question: &Question,
        ends: &[u64],
    ) -> Result<(Answer, Generated, Drafts), EvalError> {
        let mut session = read_before.branch()?;
        let (mut recalled, mut found) = (Vec::new(), None);
        match method {
            Method::ClosedBook | Method::Full | Method::Kept(_) => {}
            Method::Evidence => {
                let documents = question.evidence.iter().map(|&i| stream.documents[i].clone());
                read(&mut session, &documents.collect::<Vec<_>>())?;
            }
            Method::Truncate | Method::Recompute => {
                let text = stream.documents[..question.after].concat();
                let tokens = session.encode(&text)?;
                let budget = self.config.budget_tokens();
                let newest = &tokens[tokens.len().saturating_sub(budget)..];
                session.append(newest, Origin::turn(Role::Document))?;
            }
            Method::RagText(recall) | Method::Remember(recall) => {
                session.set_recall(recall.clone());
                // A text that merely goes on has no question, and needs its window.
                let recall = match &*question.prompt {
                    "" => session.recall_beside_window(&question.query)?.clone(),
                    _ => session.recall(&question.query)?.clone(),
                };
                recalled = recall.blocks.iter().map(|b| (b.part.start.0, b.part.end.0)).collect();
                found = share_found(question, ends, &recalled);
                if matches!(method, Method::RagText(_)) {
                    read_recalled(&mut session, &recall)?;
                }
            }
        }
        let seen = session.sections();
        let seen = (session.n_tokens() as usize).min(seen.sinks + seen.recalled + seen.window);
        // A model that has read nothing predicts nothing: it begins a line.
        let is_blank = session.n_tokens() == 0 && question.prompt.is_empty();
        let prompt = if is_blank { "\n" } else { &*question.prompt };
        let (tokens, origin) = match question.form.is_turn {
            true => session.encode_user_turn(prompt)?,
            false => (session.encode(prompt)?, Origin::turn(Role::User)),
        };
        session.append(&tokens, origin)?;
        let loss = match question.references.first().filter(|_| question.form.scores_reference) {
            Some(reference) => {
                let tokens = session.encode(reference)?;
                let mut other = session.branch()?;
                let score = other.score_next(&tokens, Origin::turn(Role::Document))?;
                Some((score.tokens, score.total))
            }
            None => None,
        };
        let options = GenerateOptions {
            max_tokens: question.form.max_tokens,
            stop: if question.form.one_line { vec!["\n".to_owned()] } else { Vec::new() },
            log_probs: true,
            ..GenerateOptions::default()
        };
        let generated = session.generate(&options, &mut |_| ControlFlow::Continue(()))?;
        let n_probs = generated.log_probs.len();
        let doubt = -generated.log_probs.iter().map(|of| of.log_prob).sum::<f64>() / n_probs as f64;
        let scores = self.task.score(&generated.text, question);
        let last = question.evidence.iter().map(|&i| ends[i]).max();
        let asked_at = end_of(ends, question.after);
        let about = question.evidence.first().map(|&i| &stream.documents[i]);
        let answer = Answer {
            seed: 0,
            stream: 0,
            question: question.id.clone(),
            method: method.label(),
            group: question.group.clone(),
            prompt: question.prompt.clone(),
            references: question.references.clone(),
            answer: generated.text.clone(),
            about: about.map_or(String::new(), |text| text.chars().take(ABOUT_CHARS).collect()),
            distance: last.map_or(0, |last| asked_at.saturating_sub(last)),
            recalled,
            found,
            seen,
            scores: scores.into_iter().map(|(name, score)| (name.to_owned(), score)).collect(),
            loss,
            doubt: (n_probs > 0).then_some(doubt),
        };
        Ok((answer, generated, session.drafts()))
    }
}

/// The share of a question's documents of which something was recalled.
fn share_found(question: &Question, ends: &[u64], recalled: &[(u64, u64)]) -> Option<f64> {
    let is_found = |&&document: &&usize| {
        let (start, end) = (end_of(ends, document), ends[document]);
        recalled.iter().any(|&(first, last)| first < end && start < last)
    };
    let n = question.evidence.len();
    (n > 0).then(|| question.evidence.iter().filter(is_found).count() as f64 / n as f64)
}

/// Everything but strategy, place and insertion, which are part of a method's name.
fn recall_settings(recall: &RecallConfig) -> String {
    let RecallConfig { order, max_blocks, neighbours, gate, window, sizes, .. } = recall;
    format!(
        "{order:?}, {max_blocks} blocks, {neighbours:?}, {gate:?}, window \
         {window:?}, {sizes:?}"
    )
}

/// Where the first `n` documents end.
fn end_of(ends: &[u64], n: usize) -> u64 {
    n.checked_sub(1).map_or(0, |last| ends[last])
}

fn read(session: &mut Session, documents: &[String]) -> Result<(), SessionError> {
    for document in documents {
        let origin = Origin::turn(Role::Document);
        session.ingest(document, origin, &mut |_, _, _| ControlFlow::Continue(()))?;
    }
    Ok(())
}

/// Takes back what was recalled, and reads its text behind the window.
fn read_recalled(session: &mut Session, recall: &Recall) -> Result<(), SessionError> {
    let mut text = String::new();
    for run in recall.runs() {
        let blocks = recall.blocks[run].iter().map(|block| block.block.text());
        text += blocks.collect::<String>().trim();
        text += "\n\n";
    }
    session.insert(Recall::default())?;
    let tokens = session.encode(&text)?;
    session.append(&tokens, Origin::turn(Role::Document))
}

pub(crate) type Key = (u64, usize, String, String);

pub(crate) fn key(answer: &Answer) -> Key {
    (answer.seed, answer.stream, answer.question.clone(), answer.method.clone())
}

/// What all jobs of a run add to.
struct Shared<'a> {
    kept: Kept,
    /// Hears how many answers there are.
    answered: &'a mut (dyn FnMut(usize) + Send),
}

/// The answers of a run and of the ones before it.
struct Kept {
    answers: Vec<Answer>,
    known: HashSet<Key>,
    files: Option<[fs_err::File; 2]>,
    /// Held until the run ends.
    _lock: Option<fs_err::File>,
}

impl Kept {
    fn open(folder: Option<&Path>, settings: &str) -> Result<Self, EvalError> {
        let mut kept =
            Self { answers: Vec::new(), known: HashSet::new(), files: None, _lock: None };
        let Some(folder) = folder else { return Ok(kept) };
        fs_err::create_dir_all(folder)?;
        let lock = fs_err::OpenOptions::new().create(true).append(true).open(folder.join(LOCK))?;
        if lock.file().try_lock().is_err() {
            return Err(EvalError::Setting(format!(
                "another process writes into {}: end it, or use another folder",
                folder.display()
            )));
        }
        let (answers, text) = whole_lines(&folder.join(ANSWERS))?;
        let (timings, _) = whole_lines(&folder.join(TIMINGS))?;
        let path = folder.join(SETTINGS);
        match fs_err::read_to_string(&path) {
            // In whatever order a build writes them.
            Ok(others) if differences(&others, settings).is_empty() => {}
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            // Nothing was answered under other settings, or before there were any.
            _ if text.is_empty() => write_whole(&path, settings.as_bytes())?,
            _ => {
                return Err(EvalError::Setting(format!(
                    "{} holds answers of other settings than these ({} differ): use another folder",
                    folder.display(),
                    differences(&fs_err::read_to_string(&path)?, settings)
                )));
            }
        }
        for (i, line) in text.lines().enumerate() {
            let Ok(answer) = serde_json::from_str::<Answer>(line) else {
                return Err(EvalError::Setting(format!(
                    "{}: line {} is no answer of this version: use another folder, or delete it",
                    folder.join(ANSWERS).display(),
                    i + 1
                )));
            };
            if kept.known.insert(key(&answer)) {
                kept.answers.push(answer);
            }
        }
        kept.files = Some([answers, timings]);
        kept._lock = Some(lock);
        Ok(kept)
    }

    fn add(&mut self, answer: Answer) -> Result<(), EvalError> {
        if let Some([answers, _]) = &mut self.files {
            answers.write_all(&line(&answer)?)?;
        }
        self.known.insert(key(&answer));
        self.answers.push(answer);
        Ok(())
    }

    fn time(&mut self, timing: &Timing) -> Result<(), EvalError> {
        if let Some([_, timings]) = &mut self.files {
            timings.write_all(&line(timing)?)?;
        }
        Ok(())
    }
}

/// A checksum of a file's bytes.
fn crc_of(path: &Path) -> Result<u32, EvalError> {
    let mut crc = flate2::Crc::new();
    crc.update(&fs_err::read(path)?);
    Ok(crc.sum())
}

/// The names of settings that differ.
fn differences(kept: &str, settings: &str) -> String {
    let read = |text: &str| serde_json::from_str::<serde_json::Map<_, _>>(text).unwrap_or_default();
    let (kept, settings) = (read(kept), read(settings));
    // A setting that a version did not have yet is one that was not used.
    let used = |name: &String, of: &serde_json::Map<String, serde_json::Value>| {
        of.get(name).filter(|value| !value.is_null()).cloned()
    };
    let differs = |name: &&String| used(name, &kept) != used(name, &settings);
    let mut names: Vec<&str> =
        settings.keys().chain(kept.keys()).filter(differs).map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    names.join(", ")
}

/// A file to append to, and its lines; what a killed run left of one is cut off.
fn whole_lines(path: &Path) -> Result<(fs_err::File, String), EvalError> {
    let mut options = fs_err::OpenOptions::new();
    let file = options.create(true).append(true).open(path)?;
    let mut bytes = fs_err::read(path)?;
    let n_whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
    bytes.truncate(n_whole);
    file.set_len(n_whole as u64)?;
    Ok((file, String::from_utf8_lossy(&bytes).into_owned()))
}

fn line(value: &impl Serialize) -> Result<Vec<u8>, EvalError> {
    let mut line = serde_json::to_vec(value).map_err(std::io::Error::from)?;
    line.push(b'\n');
    Ok(line)
}
