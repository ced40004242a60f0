//! Runs with a tiny model, whose answers mean nothing and whose bookkeeping does.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use everstream_eval::{
    Answer, EvalError, KeptRun, Method, Run, TaskOptions, summarise, task, write_report,
};
use everstream_runtime::memory::{Gate, HashEmbedder};
use everstream_runtime::model::{Model, ModelOptions};
use everstream_runtime::{RecallConfig, SessionConfig};

fn model() -> Arc<Model> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/tiny-qwen2.gguf");
    let options = ModelOptions { n_threads: NonZeroUsize::MIN, ..Default::default() };
    Arc::new(Model::open(&path, options).unwrap())
}

fn methods() -> Vec<Method> {
    let recall = RecallConfig { gate: Gate::OPEN, ..RecallConfig::default() };
    let names = [
        "evidence",
        "closed-book",
        "truncate",
        "recompute",
        "window",
        "sink",
        "rag-text",
        "remember",
    ];
    let methods =
        names.iter().filter_map(|name| Method::by_name(name, std::slice::from_ref(&recall)));
    methods.flatten().collect()
}

fn answers(folder: Option<&Path>, stop_after: usize) -> Result<Vec<Answer>, EvalError> {
    answers_by(1, folder, stop_after)
}

fn answers_by(
    n_jobs: usize,
    folder: Option<&Path>,
    stop_after: usize,
) -> Result<Vec<Answer>, EvalError> {
    let task = task::by_name("passkey").unwrap();
    let run = Run {
        task: &*task,
        options: TaskOptions {
            data: None,
            limit: 4,
            distractors: None,
            unanswerable: false,
            distances: vec![300, 600],
            seed: 0,
        },
        seeds: vec![1, 2],
        model: model(),
        encoder: Some(Arc::new(HashEmbedder)),
        config: SessionConfig { window_tokens: 128, context_tokens: 96, ..Default::default() },
        methods: methods(),
        folder: folder.map(Path::to_owned),
        n_jobs: NonZeroUsize::new(n_jobs).unwrap(),
    };
    run.answers(&mut |progress| {
        assert_eq!(progress.total, 2 * 4 * 8);
        // As a run that is killed in the middle.
        assert!(progress.answered < stop_after, "stopped here");
    })
}

fn text(answers: &[Answer]) -> String {
    answers.iter().map(|answer| serde_json::to_string(answer).unwrap() + "\n").collect()
}

#[test]
fn an_interrupted_run_ends_as_one_that_was_not() {
    let folder = tempfile::tempdir().unwrap();
    let whole = text(&answers(None, usize::MAX).unwrap());
    let stopped = std::panic::catch_unwind(|| answers(Some(folder.path()), 23));
    assert!(stopped.is_err());
    // What a killed process leaves: a line that is not whole.
    let path = folder.path().join("answers.jsonl");
    let mut kept = fs_err::read(&path).unwrap();
    kept.extend(b"{\"seed\":1,\"stre");
    fs_err::write(&path, kept).unwrap();
    assert_eq!(text(&answers(Some(folder.path()), usize::MAX).unwrap()), whole);
    let finished = fs_err::read(&path).unwrap();
    // Nothing is left to do: the files stay as they are.
    assert_eq!(text(&answers(Some(folder.path()), usize::MAX).unwrap()), whole);
    assert_eq!(fs_err::read(&path).unwrap(), finished);
    // Settings are the same in whatever order they stand.
    let settings = fs_err::read_to_string(folder.path().join("run.json")).unwrap();
    let fields = settings.trim().trim_matches(['{', '}']).split(",\n").map(str::trim);
    let mut fields: Vec<&str> = fields.collect();
    fields.rotate_left(1);
    let turned = format!("{{{}}}", fields.join(","));
    assert_ne!(turned, settings);
    fs_err::write(folder.path().join("run.json"), turned).unwrap();
    assert_eq!(text(&answers(Some(folder.path()), usize::MAX).unwrap()), whole);
    // Answers of other settings are not mixed with these.
    let others = settings.replace("\"window\": 128", "\"window\": 127");
    assert_ne!(others, settings);
    fs_err::write(folder.path().join("run.json"), others).unwrap();
    let error = answers(Some(folder.path()), usize::MAX).unwrap_err().to_string();
    assert!(error.contains("other settings than these (window differ)"), "{error}");
    fs_err::write(folder.path().join("run.json"), settings).unwrap();
    fs_err::write(&path, "{}\n").unwrap();
    let error = answers(Some(folder.path()), usize::MAX).unwrap_err().to_string();
    assert!(error.contains("line 1 is no answer of this version"), "{error}");
}

/// What a second process writes beside the first would be counted twice.
#[test]
fn a_folder_has_one_writer() {
    let folder = tempfile::tempdir().unwrap();
    let lock = fs_err::File::create(folder.path().join("lock")).unwrap();
    lock.file().lock().unwrap();
    let error = answers(Some(folder.path()), usize::MAX).unwrap_err().to_string();
    assert!(error.contains("another process writes into"), "{error}");
    drop(lock);
    let n_answers = answers(Some(folder.path()), usize::MAX).unwrap().len();
    // Answers that are there twice all the same count once.
    let path = folder.path().join("answers.jsonl");
    let kept = fs_err::read_to_string(&path).unwrap();
    fs_err::write(&path, kept.repeat(2)).unwrap();
    assert_eq!(answers(Some(folder.path()), usize::MAX).unwrap().len(), n_answers);
    assert_eq!(KeptRun::open(folder.path()).unwrap().answers.len(), n_answers);
}

/// Streams that are read at the same time give the same file.
#[test]
fn jobs_change_nothing() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let found = [1, 3].map(|n_jobs| {
        let folder = folders[n_jobs / 2].path();
        let answers = answers_by(n_jobs, Some(folder), usize::MAX).unwrap();
        (text(&answers), fs_err::read_to_string(folder.join("answers.jsonl")).unwrap())
    });
    assert!(!found[0].0.is_empty() && found[0] == found[1]);
}

#[test]
fn a_report_shows_what_a_run_kept() {
    let folder = tempfile::tempdir().unwrap();
    answers(Some(&folder.path().join("near & far")), usize::MAX).unwrap();
    let run = KeptRun::open(&folder.path().join("near & far")).unwrap();
    assert_eq!((run.answers.len(), run.task().unwrap().name()), (2 * 4 * 8, "passkey"));
    // What is read is timed as well.
    assert!(run.timings.len() > run.answers.len());
    let to = folder.path().join("report");
    write_report(std::slice::from_ref(&run), &to).unwrap();
    let read = |file: &str| fs_err::read_to_string(to.join(file)).unwrap();
    let text = read("report.md");
    assert!(text.contains("## near---far") && text.contains("| remember hybrid | "), "{text}");
    assert!(text.contains("| what the model sees | 300 | 600 |"), "{text}");
    // A line for each of 8 methods, of all questions and of two groups, and the head.
    assert_eq!(read("report.csv").lines().count(), 1 + 8 * 3);
    let page = read("report.html");
    assert!(page.contains("<h2>near---far</h2>") && !page.contains("near & far"), "{page}");
    for plot in ["methods", "curve", "reading-time", "answer-time"] {
        let file = format!("near---far-{plot}.svg");
        assert!(read(&file).starts_with("<svg ") && page.contains(&read(&file)), "{plot}");
    }
    // A run that comes twice stands there twice, each with its plots; a half of one says so.
    let mut half = run.clone();
    half.answers.truncate(20);
    write_report(&[run, half], &to).unwrap();
    let text = read("report.md");
    assert!(text.contains("## near---far-2\n\nUNFINISHED"), "{text}");
    assert!(to.join("near---far-2-methods.svg").exists());
    let error = KeptRun::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("holds no run"), "{error}");
}

#[test]
fn what_is_seen_keeps_to_the_budget() {
    let answers = answers(None, usize::MAX).unwrap();
    let budget = 4 + 96 + 128;
    for answer in &answers {
        let (low, high) = match &*answer.method {
            "evidence" => (10, 100),
            "closed-book" => (0, 0),
            "truncate" | "recompute" | "window" | "sink" => (budget, budget),
            // A recall of one paragraph, and at least the sinks.
            "rag-text hybrid" | "remember hybrid" => (4, budget),
            other => panic!("{other}"),
        };
        assert!((low..=high).contains(&answer.seen), "{}: {}", answer.method, answer.seen);
        assert_eq!(answer.found.is_some(), answer.method.contains("hybrid"));
        assert_eq!(answer.recalled.is_empty(), !answer.method.contains("hybrid"), "{answer:?}");
    }
    let summary = summarise(&answers, &*task::by_name("passkey").unwrap(), 1);
    assert_eq!(summary.methods.len(), 8);
    for method in &summary.methods {
        assert_eq!(method.n, 8);
        let metric = &method.metrics[0];
        assert!(
            metric.interval.is_some_and(|[low, high]| low <= metric.value && metric.value <= high)
        );
        assert_eq!(metric.difference.is_none(), method.method == "evidence");
    }
}
