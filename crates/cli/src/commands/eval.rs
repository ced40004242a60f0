//! `everstream eval`: compares what a model answers by what it may see.

use std::io::Write;

use anyhow::{Context, bail};
use everstream_eval::{Method, MethodSummary, Run, Summary, TaskOptions, summarise, task};
use everstream_runtime::Policy;
use serde_json::{Value, json};

use crate::args::{Common, EvalArgs};
use crate::{load, output};

pub(crate) fn run(common: &Common, args: &EvalArgs) -> anyhow::Result<()> {
    let task = task::by_name(&args.task).context("an unknown task")?;
    let config = args.session();
    config.check()?;
    let methods = args.methods(&config);
    let labels: Vec<String> = methods.iter().map(Method::label).collect();
    if let Some(twice) = labels.iter().enumerate().find(|(i, l)| labels[..*i].contains(l)) {
        bail!("{} is asked for twice", twice.1);
    }
    let options = TaskOptions {
        data: args.data.clone(),
        limit: args.limit as usize,
        distractors: args.distractors,
        distances: args.distance.clone(),
        seed: 0,
    };
    // What the data lacks shows before a model is loaded.
    task.streams(&options)?;
    let recalls = methods.iter().any(|method| method.recall().is_some());
    let encoder = load::encoder(common, if recalls { Policy::Remember } else { Policy::Sink })?;
    let run = Run {
        task: &*task,
        options,
        seeds: args.seeds.clone(),
        model: load::model(common, &args.model.model)?,
        encoder,
        config,
        methods,
        folder: args.out.clone(),
    };
    let bar = output::bar(0, "{msg} {wide_bar} {pos}/{len} answers {eta}");
    bar.set_message(args.task.clone());
    let answers = run.answers(&mut |progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.answered as u64);
    })?;
    bar.finish_and_clear();
    let summary = summarise(&answers, args.seeds.first().copied().unwrap_or(0));
    let out = &mut std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", json(args, &run, &summary))?;
    } else {
        table(args, &run, &summary, out)?;
    }
    Ok(())
}

/// A table in Markdown.
fn table(
    args: &EvalArgs,
    run: &Run<'_>,
    summary: &Summary,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let c = &run.config;
    let n = summary.methods.first().map_or(0, |method| method.n);
    writeln!(
        out,
        "{}, {}, {n} questions, cache {} + {} + {}\n",
        args.task, args.model.model, c.n_sink, c.context_tokens, c.window_tokens
    )?;
    rows(&summary.methods, out)?;
    for (name, methods) in &summary.groups {
        writeln!(out, "\n{name} tokens\n")?;
        rows(methods, out)?;
    }
    Ok(())
}

fn rows(methods: &[MethodSummary], out: &mut impl Write) -> anyhow::Result<()> {
    let names = methods.first().map_or(&[][..], |method| &method.metrics);
    let head: String =
        names.iter().map(|metric| format!(" {} | difference |", metric.name)).collect();
    writeln!(out, "| what the model sees |{head} evidence recalled | tokens seen |")?;
    writeln!(out, "|---|{}---|---|", "---|---|".repeat(names.len()))?;
    for method in methods {
        write!(out, "| {} |", method.method)?;
        for metric in &method.metrics {
            let [low, high] = metric.interval;
            write!(out, " {:.1} ({low:.1} .. {high:.1}) |", metric.mean)?;
            match metric.difference {
                Some((mean, [low, high])) => {
                    write!(out, " {mean:+.1} ({low:+.1} .. {high:+.1}) |")?
                }
                None => write!(out, " |")?,
            }
        }
        let found = method.found.map_or(String::new(), |found| format!("{found:.0} %"));
        writeln!(out, " {found} | {:.0} |", method.seen)?;
    }
    Ok(())
}

fn json(args: &EvalArgs, run: &Run<'_>, summary: &Summary) -> Value {
    let c = &run.config;
    let of = |methods: &[MethodSummary]| -> Value {
        run.methods.iter().zip(methods).map(result).collect()
    };
    let results = of(&summary.methods);
    let groups = summary.groups.iter().map(|(name, methods)| (name.clone(), of(methods)));
    let groups: Value = groups.collect::<serde_json::Map<_, _>>().into();
    json!({
        "task": args.task,
        "model": args.model.model,
        "seeds": args.seeds,
        "sinks": c.n_sink,
        "context_tokens": c.context_tokens,
        "window": c.window_tokens,
        "distractors": args.distractors,
        "distance": args.distance,
        "results": results,
        "groups": groups,
    })
}

fn result((method, summary): (&Method, &MethodSummary)) -> Value {
    let of = |value: fn(&everstream_eval::Metric) -> Value| -> Value {
        summary.metrics.iter().map(|metric| (metric.name.clone(), value(metric))).collect()
    };
    json!({
        "policy": method.policy(),
        "strategy": method.recall().map(|recall| recall.strategy.name()),
        "n": summary.n,
        "metrics": of(|metric| json!(metric.mean)),
        "interval": of(|metric| json!(metric.interval)),
        "difference": of(|metric| json!(metric.difference)),
        "evidence_recalled": summary.found,
        "tokens_seen": summary.seen,
    })
}
