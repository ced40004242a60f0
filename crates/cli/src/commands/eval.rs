//! `everstream eval`: compares what a model answers by what it may see.

use std::collections::BTreeSet;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use everstream_eval::{
    KeptRun, Method, MethodSummary, Run, Summary, Task, TaskOptions, markdown, summarise, tables,
    task, write_report,
};
use everstream_runtime::{Policy, RecallConfig};
use serde_json::{Value, json};

use super::eval_all;
use crate::args::{Common, EvalArgs, EvalCommand, ReportArgs, RunArgs};
use crate::{load, output};

pub(crate) fn run(common: &Common, args: &EvalArgs) -> anyhow::Result<()> {
    match &args.command {
        None => run_one(common, &args.run, &mut std::io::stdout().lock()),
        Some(EvalCommand::All(args)) => eval_all::run(common, args),
        Some(EvalCommand::Report(args)) => report(args),
    }
}

/// Answers all questions of one task, and prints what came of it.
pub(super) fn run_one(common: &Common, args: &RunArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let task = task_of(args)?;
    let config = args.session();
    config.check()?;
    let methods = args.methods(&config);
    let labels: Vec<String> = methods.iter().map(Method::label).collect();
    if let Some(twice) = labels.iter().enumerate().find(|(i, l)| labels[..*i].contains(l)) {
        bail!("{} is asked for twice", twice.1);
    }
    let data = args.data.as_deref().map(|path| load::data(common, path)).transpose()?;
    let options = TaskOptions {
        data,
        limit: args.limit as usize,
        distractors: args.distractors,
        unanswerable: args.unanswerable,
        distances: args.distance.clone(),
        seed: 0,
    };
    // What the data lacks shows before a model is loaded.
    task.streams(&options)?;
    let recalls = methods.iter().any(|method| method.recall().is_some());
    // Each job computes with its share of the threads.
    let mut common = common.clone();
    if args.jobs.get() > 1 {
        let n_threads = load::options(&common)?.n_threads.get() / args.jobs;
        common.threads = Some(NonZeroUsize::new(n_threads).unwrap_or(NonZeroUsize::MIN));
    }
    let encoder = load::encoder(&common, if recalls { Policy::Remember } else { Policy::Sink })?;
    let run = Run {
        task: &*task,
        options,
        seeds: args.seeds.clone(),
        model: load::model(&common, &args.model.model)?,
        encoder,
        config,
        methods,
        folder: args.out.clone(),
        n_jobs: args.jobs,
    };
    let bar = output::bar(0, "{msg} {wide_bar} {pos}/{len} answers {eta}");
    bar.set_message(task.name());
    let answers = run.answers(&mut |progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.answered as u64);
    })?;
    bar.finish_and_clear();
    let summary = summarise(&answers, &*task, args.seeds.first().copied().unwrap_or(0));
    if args.json {
        writeln!(out, "{}", json(args, &run, &summary))?;
    } else {
        table(args, &run, &summary, out)?;
    }
    Ok(())
}

/// The task of a run whose settings fit it.
pub(super) fn task_of(args: &RunArgs) -> anyhow::Result<Box<dyn Task>> {
    let task = args.task.as_deref().and_then(task::by_name).context("an unknown task")?;
    args.check(&*task).map_err(anyhow::Error::msg)?;
    Ok(task)
}

fn table(
    args: &RunArgs,
    run: &Run<'_>,
    summary: &Summary,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let c = &run.config;
    let n = summary.methods.first().map_or(0, |method| method.n);
    writeln!(
        out,
        "{}, {}, {n} questions, cache {} + {}{} + {}\n",
        run.task.name(),
        args.model.model,
        c.n_sink,
        output::clusters_and(c),
        c.context_tokens,
        c.window_tokens
    )?;
    for (title, rows) in tables(run.task, summary) {
        if let Some(title) = title {
            writeln!(out, "\n{title}\n")?;
        }
        write!(out, "{}", markdown(&rows))?;
    }
    Ok(())
}

fn report(args: &ReportArgs) -> anyhow::Result<()> {
    let mut folders = BTreeSet::new();
    for folder in &args.folders {
        folders.extend(runs_below(folder)?);
    }
    let to = args.to.as_ref().or(args.folders.first()).context("no folder is named")?;
    report_of(&folders.into_iter().collect::<Vec<_>>(), to)
}

/// The folder itself, if it holds a run, or those in it that do.
pub(super) fn runs_below(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let holds_run = |folder: &Path| folder.join("run.json").is_file();
    if holds_run(folder) {
        return Ok(vec![folder.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        found.extend(holds_run(&path).then_some(path));
    }
    found.sort();
    if found.is_empty() {
        bail!("{} holds no run: `everstream eval TASK --out DIR` makes one", folder.display());
    }
    Ok(found)
}

/// Writes the report of these runs.
pub(super) fn report_of(folders: &[PathBuf], to: &Path) -> anyhow::Result<()> {
    let runs = folders.iter().map(|folder| KeptRun::open(folder)).collect::<Result<Vec<_>, _>>()?;
    write_report(&runs, to)?;
    output::note(&format!("report: {}", to.join("report.html").display()));
    Ok(())
}

fn json(args: &RunArgs, run: &Run<'_>, summary: &Summary) -> Value {
    let c = &run.config;
    let of = |methods: &[MethodSummary]| -> Value {
        run.methods.iter().zip(methods).map(result).collect()
    };
    let results = of(&summary.methods);
    let groups = summary.groups.iter().map(|(name, methods)| (name.clone(), of(methods)));
    let groups: Value = groups.collect::<serde_json::Map<_, _>>().into();
    json!({
        "task": run.task.name(),
        "model": args.model.model,
        "seeds": args.seeds,
        "sinks": c.n_sink,
        "clusters": c.clusters.map(|clusters| clusters.to_string()),
        "context_tokens": c.context_tokens,
        "window": c.window_tokens,
        "distractors": args.distractors,
        "unanswerable": args.unanswerable,
        "distance": args.distance,
        "results": results,
        "groups": groups,
    })
}

fn result((method, summary): (&Method, &MethodSummary)) -> Value {
    let of = |value: fn(&everstream_eval::Metric) -> Value| -> Value {
        summary.metrics.iter().map(|metric| (metric.name.clone(), value(metric))).collect()
    };
    let put_back = method.recall().filter(|_| matches!(method, Method::Remember(_)));
    json!({
        "policy": method.policy(),
        "strategy": method.recall().map(|recall| recall.strategy.name()),
        "place": put_back.map(|recall| recall.place.name()),
        "insertion": put_back.map(RecallConfig::insertion_name),
        "n": summary.n,
        "metrics": of(|metric| json!(metric.value)),
        "interval": of(|metric| json!(metric.interval)),
        "difference": of(|metric| json!(metric.difference)),
        "evidence_recalled": summary.found,
        "tokens_seen": summary.seen,
    })
}
