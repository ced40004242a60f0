//! Reports of runs that were kept: Markdown, CSV, plots, and one page with all of it.

use std::collections::HashSet;
use std::fmt::Write;
use std::path::Path;

use everstream_runtime::memory::write_whole;
use serde_json::Value;

use crate::plot::{Row, Series, dots, escape, lines};
use crate::run::{ANSWERS, SETTINGS, TIMINGS, key};
use crate::{Answer, EvalError, Method, MethodSummary, Summary, Task, Timing, summarise, task};

/// What a run left in its folder.
#[derive(Clone, Debug)]
pub struct KeptRun {
    /// The folder's name.
    pub name: String,
    /// What was set.
    pub settings: Value,
    /// In the order of the methods' names in the documentation.
    pub answers: Vec<Answer>,
    /// Of reading and of answers.
    pub timings: Vec<Timing>,
}

impl KeptRun {
    /// Reads the folder of a run.
    ///
    /// # Errors
    ///
    /// [`EvalError`] if it holds none, or one of another version.
    pub fn open(folder: &Path) -> Result<Self, EvalError> {
        let path = folder.join(SETTINGS);
        let wrong = |what: &str| {
            EvalError::Setting(format!("{} holds no run of this version: {what}", folder.display()))
        };
        let settings = fs_err::read_to_string(&path).map_err(|error| wrong(&error.to_string()))?;
        let settings: Value = serde_json::from_str(&settings)
            .map_err(|error| wrong(&format!("{SETTINGS}: {error}")))?;
        let mut answers: Vec<Answer> = read_lines(&folder.join(ANSWERS), &wrong)?;
        let place = |answer: &Answer| {
            let policy = answer.method.split(' ').next().unwrap_or("");
            Method::ALL.iter().position(|&name| name == policy)
        };
        // Of methods with one policy, the one that comes first in the file stays first.
        let mut known = HashSet::new();
        answers.retain(|answer| known.insert(key(answer)));
        answers.sort_by_key(place);
        let timings = read_lines(&folder.join(TIMINGS), &wrong)?;
        let name =
            folder.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        Ok(Self { name, settings, answers, timings })
    }

    /// What was asked.
    ///
    /// # Errors
    ///
    /// [`EvalError::Setting`] if there is no such task.
    pub fn task(&self) -> Result<Box<dyn Task>, EvalError> {
        let name = self.settings["task"].as_str().unwrap_or("");
        let message = || EvalError::Setting(format!("{}: there is no task {name:?}", self.name));
        task::by_name(name).ok_or_else(message)
    }

    /// The run in numbers.
    ///
    /// # Errors
    ///
    /// As [`Self::task`].
    pub fn summary(&self) -> Result<Summary, EvalError> {
        Ok(summarise(&self.answers, &*self.task()?, 1))
    }

    /// One line about model, questions and budget.
    fn heading(&self, summary: &Summary) -> String {
        let text = |field: &str| match &self.settings[field] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let n = summary.methods.iter().map(|method| method.n).max().unwrap_or(0);
        let is_whole = summary.methods.iter().all(|method| method.n == n);
        let mut seeds: Vec<u64> = self.answers.iter().map(|answer| answer.seed).collect();
        seeds.sort_unstable();
        seeds.dedup();
        let seeds: Vec<String> = seeds.iter().map(u64::to_string).collect();
        format!(
            "{}{} on {}: {n} questions, seeds {}, cache {} + {}{} + {}",
            if is_whole { "" } else { "UNFINISHED, means are of different questions: " },
            text("task"),
            text("model"),
            seeds.join(", "),
            text("sinks"),
            self.settings["clusters"].as_str().map_or(String::new(), |c| format!("{c} + ")),
            text("context_tokens"),
            text("window")
        )
    }

    /// Seconds for a token of reading and of answers, by method.
    fn seconds(&self, label: &str, reads: bool) -> Option<f64> {
        let of = |timing: &&Timing| timing.method == label && timing.question.is_none() == reads;
        let (mut seconds, mut tokens) = (0.0, 0);
        for timing in self.timings.iter().filter(of) {
            seconds += timing.seconds;
            tokens += timing.tokens;
        }
        (tokens > 0).then(|| seconds / tokens as f64)
    }
}

/// The whole lines of a file; a run that is still going on may be writing the last one.
fn read_lines<T: serde::de::DeserializeOwned>(
    path: &Path,
    wrong: &dyn Fn(&str) -> EvalError,
) -> Result<Vec<T>, EvalError> {
    let text = fs_err::read_to_string(path).map_err(|error| wrong(&error.to_string()))?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let read = |(i, line): (usize, &str)| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        serde_json::from_str(line)
            .map_err(|error| wrong(&format!("{name}: line {}: {error}", i + 1)))
    };
    whole.lines().enumerate().map(read).collect()
}

/// Writes `report.md`, `report.csv`, `report.html` and the plots of all runs into a folder.
///
/// # Errors
///
/// [`EvalError`] if a run's task is unknown, or a file cannot be written.
pub fn write_report(runs: &[KeptRun], folder: &Path) -> Result<(), EvalError> {
    fs_err::create_dir_all(folder)?;
    let mut text = String::new();
    let mut page = String::new();
    let mut table = csv::Writer::from_writer(Vec::new());
    let wrong = |error: csv::Error| EvalError::Io(error.into());
    table.write_record(CSV_FIELDS).map_err(wrong)?;
    let mut names: Vec<String> = Vec::new();
    for run in runs {
        let name = own_name(&run.name, &names);
        let task = run.task()?;
        if run.answers.is_empty() {
            let _ = writeln!(text, "## {name}\n\nUNFINISHED: nothing was answered yet.\n");
            let _ = writeln!(page, "<h2>{name}</h2>\n<p>UNFINISHED: nothing was answered yet.</p>");
            names.push(name);
            continue;
        }
        let summary = run.summary()?;
        let heading = run.heading(&summary);
        let plots = plots(run, &*task, &summary);
        let _ = writeln!(text, "## {name}\n\n{heading}\n");
        let _ = writeln!(page, "<h2>{name}</h2>\n<p>{}</p>", escape(&heading));
        for (title, rows) in tables(&*task, &summary) {
            if let Some(title) = title {
                let _ = writeln!(text, "\n{title}\n");
                let _ = writeln!(page, "<h3>{}</h3>", escape(&title));
            }
            text += &markdown(&rows);
            page += &html(&rows);
        }
        let _ = writeln!(text);
        for (plot, svg) in plots {
            let file = format!("{name}-{plot}.svg");
            write_whole(&folder.join(&file), svg.as_bytes())?;
            let _ = writeln!(text, "![{plot} of {name}]({file})\n");
            let _ = writeln!(page, "<figure>{svg}</figure>");
        }
        for (group, methods) in
            std::iter::once((String::new(), summary.methods)).chain(summary.groups)
        {
            for record in csv_records(run, &name, &group, &methods) {
                table.write_record(record).map_err(wrong)?;
            }
        }
        names.push(name);
    }
    let table = table.into_inner().map_err(|error| EvalError::Io(error.into_error()))?;
    write_whole(&folder.join("report.md"), format!("# Evaluation\n\n{text}").as_bytes())?;
    write_whole(&folder.join("report.csv"), &table)?;
    write_whole(&folder.join("report.html"), whole_page(&page).as_bytes())?;
    Ok(())
}

/// A name of letters, digits, '-', '_' and '.' that none of `others` is.
fn own_name(name: &str, others: &[String]) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let name: String = name.chars().map(plain).collect();
    let numbered = (2..).map(|i| format!("{name}-{i}"));
    let mut names = std::iter::once(name.clone()).chain(numbered);
    names.find(|name| !others.contains(name)).unwrap_or(name)
}

/// The tables of a run, each under its title: all questions, then its groups.
///
/// Where the groups are numbers, they are columns of one table, of the first metric.
#[must_use]
pub fn tables(task: &dyn Task, summary: &Summary) -> Vec<(Option<String>, Vec<Vec<String>>)> {
    let mut tables = vec![(None, rows(&summary.methods))];
    if is_curve(summary) {
        let first = summary.methods.first().and_then(|method| method.metrics.first());
        let title =
            format!("{} by {}", first.map_or("", |metric| &*metric.name), task.group_name());
        let mut curve = vec![vec!["what the model sees".to_owned()]];
        curve[0].extend(summary.groups.iter().map(|(name, _)| name.clone()));
        for method in &summary.methods {
            let mut row = vec![method.method.clone()];
            row.extend(summary.groups.iter().map(|(_, methods)| {
                value_of(methods, &method.method).map_or_else(String::new, |v| format!("{v:.1}"))
            }));
            curve.push(row);
        }
        tables.push((Some(title), curve));
    } else {
        let groups = summary.groups.iter();
        let groups =
            groups.map(|(name, all)| (Some(format!("{}: {name}", task.group_name())), rows(all)));
        tables.extend(groups);
    }
    tables
}

/// Whether the groups are numbers, as distances are.
fn is_curve(summary: &Summary) -> bool {
    !summary.groups.is_empty() && summary.groups.iter().all(|(name, _)| name.parse::<u64>().is_ok())
}

/// The first metric of a method.
fn value_of(methods: &[MethodSummary], label: &str) -> Option<f64> {
    let method = methods.iter().find(|method| method.method == label)?;
    Some(method.metrics.first()?.value)
}

fn rows(methods: &[MethodSummary]) -> Vec<Vec<String>> {
    let names = methods.first().map_or(&[][..], |method| &method.metrics);
    let mut head = vec!["what the model sees".to_owned()];
    for metric in names {
        head.push(metric.name.clone());
        if metric.interval.is_some() {
            head.push("difference".to_owned());
        }
    }
    head.extend(["evidence recalled", "tokens seen", "questions"].map(str::to_owned));
    let mut rows = vec![head];
    for method in methods {
        let mut row = vec![method.method.clone()];
        for metric in &method.metrics {
            row.push(match metric.interval {
                Some([low, high]) => format!("{:.1} ({low:.1} .. {high:.1})", metric.value),
                None => format!("{:.1}", metric.value),
            });
            if metric.interval.is_some() {
                row.push(metric.difference.map_or_else(String::new, |(mean, [low, high])| {
                    format!("{mean:+.1} ({low:+.1} .. {high:+.1})")
                }));
            }
        }
        row.push(method.found.map_or_else(String::new, |found| format!("{found:.0} %")));
        row.push(format!("{:.0}", method.seen));
        row.push(method.n.to_string());
        rows.push(row);
    }
    rows
}

/// A table in Markdown; its first row is the head.
#[must_use]
pub fn markdown(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
        if i == 0 {
            let _ = writeln!(text, "|{}", "---|".repeat(row.len()));
        }
    }
    text
}

fn html(rows: &[Vec<String>]) -> String {
    let mut text = "<div class=\"table\"><table>\n".to_owned();
    for (i, row) in rows.iter().enumerate() {
        let tag = if i == 0 { "th" } else { "td" };
        let cells = row.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell)));
        let _ = writeln!(text, "<tr>{}</tr>", cells.collect::<String>());
    }
    text + "</table></div>\n"
}

const CSV_FIELDS: [&str; 15] = [
    "run",
    "task",
    "model",
    "group",
    "method",
    "metric",
    "value",
    "low",
    "high",
    "difference",
    "difference_low",
    "difference_high",
    "n",
    "evidence_recalled",
    "tokens_seen",
];

fn csv_records(
    run: &KeptRun,
    name: &str,
    group: &str,
    methods: &[MethodSummary],
) -> Vec<[String; 15]> {
    let text = |field: &str| run.settings[field].as_str().unwrap_or("").to_owned();
    let number = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    let mut records = Vec::new();
    for method in methods {
        for metric in &method.metrics {
            records.push([
                name.to_owned(),
                text("task"),
                text("model"),
                group.to_owned(),
                method.method.clone(),
                metric.name.clone(),
                metric.value.to_string(),
                number(metric.interval.map(|interval| interval[0])),
                number(metric.interval.map(|interval| interval[1])),
                number(metric.difference.map(|difference| difference.0)),
                number(metric.difference.map(|difference| difference.1[0])),
                number(metric.difference.map(|difference| difference.1[1])),
                method.n.to_string(),
                number(method.found),
                method.seen.to_string(),
            ]);
        }
    }
    records
}

/// Plots by name: the first metric of all methods, along its groups where they are numbers, and time.
fn plots(run: &KeptRun, task: &dyn Task, summary: &Summary) -> Vec<(&'static str, String)> {
    let mut plots = Vec::new();
    let first = summary.methods.first().and_then(|method| method.metrics.first());
    let name = first.map_or("", |metric| &*metric.name);
    let title = format!("{}: {name}", run.name);
    let rows: Vec<Row> = summary
        .methods
        .iter()
        .filter_map(|method| {
            let metric = method.metrics.first()?;
            let (value, interval) = (metric.value, metric.interval);
            Some(Row { name: method.method.clone(), value, interval })
        })
        .collect();
    plots.push(("methods", dots(&title, name, &rows)));
    if is_curve(summary) {
        let categories: Vec<String> = summary.groups.iter().map(|group| group.0.clone()).collect();
        let series = summary.methods.iter().map(|method| Series {
            name: method.method.clone(),
            values: summary.groups.iter().map(|group| value_of(&group.1, &method.method)).collect(),
        });
        let series: Vec<Series> = series.collect();
        plots.push(("curve", lines(&title, task.group_name(), &categories, &series)));
    }
    for (file, reads, what) in [
        ("reading-time", true, "milliseconds a token of reading"),
        ("answer-time", false, "milliseconds a token of an answer, with recall and prompt"),
    ] {
        let row = |method: &MethodSummary| {
            let value = 1000.0 * run.seconds(&method.method, reads)?;
            Some(Row { name: method.method.clone(), value, interval: None })
        };
        let rows: Vec<Row> = summary.methods.iter().filter_map(row).collect();
        if !rows.is_empty() {
            plots.push((file, dots(&format!("{}: {what}", run.name), what, &rows)));
        }
    }
    plots
}

fn whole_page(body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Evaluation</title>\n<style>{PAGE_STYLE}</style>\n</head>\n<body>\n\
         <h1>Evaluation</h1>\n{body}</body>\n</html>\n"
    )
}

const PAGE_STYLE: &str = ":root{color-scheme:light dark}\
    body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}\
    .table{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
    th,td{padding:.2rem .7rem;border-bottom:1px solid #8a8f9855;text-align:right;white-space:nowrap}\
    th:first-child,td:first-child{text-align:left}\
    figure{margin:1.5rem 0;max-width:760px}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_stays_a_cell() {
        let rows = [vec!["a".to_owned(), "b|c".to_owned()], vec!["<1>".to_owned(), "2".to_owned()]];
        assert_eq!(markdown(&rows), "| a | b\\|c |\n|---|---|\n| <1> | 2 |\n");
        assert!(html(&rows).contains("<tr><td>&lt;1&gt;</td><td>2</td></tr>"));
    }
}
