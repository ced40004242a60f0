//! `everstream eval all`: a comparison that a file describes.

use std::path::Path;

use anyhow::{Context, bail};
use clap::Parser;
use toml::{Table, Value};

use super::eval;
use crate::args::{AllArgs, Cli, Command, Common, RunArgs};
use crate::output;

pub(crate) fn run(common: &Common, args: &AllArgs) -> anyhow::Result<()> {
    let folder = args.file.parent().unwrap_or(Path::new(""));
    let text = fs_err::read_to_string(&args.file)?;
    let name = args.file.display();
    let all = comparison(&text, args.data.as_deref().unwrap_or(folder))
        .with_context(|| name.to_string())?;
    let known = all.iter().map(|(name, _)| name);
    if let Some(unknown) = args.only.iter().find(|&only| !known.clone().any(|name| name == only)) {
        bail!("{name} has no run {unknown:?}");
    }
    let mut runs = Vec::new();
    for (name, words) in all {
        let mut run =
            parse(&words).with_context(|| format!("{}: run {name}", args.file.display()))?;
        if let Some(limit) = args.limit {
            run.limit = limit;
        }
        if !args.only.is_empty() && !args.only.contains(&name) {
            continue;
        }
        let problem = || format!("{}: run {name}", args.file.display());
        if run.out.is_some() || run.json {
            bail!("{}: `out` and `json` are no keys: the folder is --out", problem());
        }
        eval::task_of(&run).with_context(problem)?;
        // A long comparison should not find in its middle that a file is missing.
        if let Some(path) =
            run.data.as_ref().filter(|p| !p.to_string_lossy().starts_with("hf:") && !p.exists())
        {
            let path = path.display();
            bail!(
                "{}: run {name}: {path} does not exist: say where by --data",
                args.file.display()
            );
        }
        run.out = Some(args.out.join(&name));
        runs.push((name, run));
    }
    for (name, run) in runs {
        output::note(&name);
        eval::run_one(common, &run, &mut std::io::sink()).with_context(|| format!("run {name}"))?;
    }
    // Also of the runs that an earlier command made.
    eval::report_of(&eval::runs_below(&args.out)?, &args.out)
}

/// The runs of a comparison by name, each as the words of a command line.
fn comparison(text: &str, data: &Path) -> anyhow::Result<Vec<(String, Vec<String>)>> {
    let mut table: Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(0, |span| text[..span.start].lines().count().max(1));
        anyhow::anyhow!("line {line}: {}", error.message())
    })?;
    let Some(Value::Array(runs)) = table.remove("run") else {
        bail!("it describes no run: write a table [[run]] for each");
    };
    let mut all: Vec<(String, Vec<String>)> = Vec::new();
    for (i, run) in runs.into_iter().enumerate() {
        let Value::Table(run) = run else { bail!("run {} is no table", i + 1) };
        let mut keys = table.clone();
        keys.extend(run);
        let Some(Value::String(task)) = keys.remove("task") else {
            bail!("run {} does not say its `task`", i + 1);
        };
        let name = match keys.remove("name") {
            None => task.clone(),
            Some(Value::String(name)) => name,
            Some(_) => bail!("the `name` of run {} is no text", i + 1),
        };
        let is_file_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty()
            || name.starts_with(['.'])
            || name.starts_with("report.")
            || !name.chars().all(is_file_name)
        {
            bail!("run {name:?}: a name is of letters, digits, '-', '_' and '.', and not report.*");
        }
        if all.iter().any(|(other, _)| *other == name) {
            bail!("two runs are called {name:?}: give each a `name`");
        }
        let mut words = vec![task];
        for (key, value) in keys {
            words.extend(flag(&key, value, data).with_context(|| format!("run {name}"))?);
        }
        all.push((name, words));
    }
    Ok(all)
}

/// A key as the flag of that name.
fn flag(key: &str, value: Value, data: &Path) -> anyhow::Result<Option<String>> {
    let text = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        _ => bail!("`{key}` is neither a text nor a number, nor a list of them"),
    };
    let text = match value {
        Value::Boolean(false) => return Ok(None),
        Value::Boolean(true) => return Ok(Some(format!("--{key}"))),
        Value::Array(values) => values.iter().map(text).collect::<Result<Vec<_>, _>>()?.join(","),
        // A path that is absolute stays as it is, and so does a file of the hub.
        value if key == "data" => match text(&value)? {
            hub if hub.starts_with("hf:") => hub,
            path => data.join(path).display().to_string(),
        },
        value => text(&value)?,
    };
    Ok(Some(format!("--{key}={text}")))
}

fn parse(words: &[String]) -> anyhow::Result<RunArgs> {
    let line = ["everstream", "eval"].into_iter().chain(words.iter().map(String::as_str));
    let cli = Cli::try_parse_from(line).map_err(|error| {
        let text = error.to_string();
        let text = text.lines().next().unwrap_or("").trim_start_matches("error: ");
        anyhow::anyhow!("{text}")
    })?;
    match cli.command {
        Command::Eval(args) if args.command.is_none() => Ok(args.run),
        _ => bail!("`{}` is no task", words[0]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(text: &str) -> anyhow::Result<Vec<(String, RunArgs)>> {
        let runs = comparison(text, Path::new("data"))?;
        runs.into_iter().map(|(name, words)| Ok((name, parse(&words)?))).collect()
    }

    #[test]
    fn keys_are_flags() {
        let runs = runs(
            "model = \"a\"\nseeds = [1, 2]\n[[run]]\ntask = \"squad\"\ndata = \"d.json\"\nunanswerable = true\n\
             [[run]]\nname = \"far\"\ntask = \"passkey\"\nmodel = \"b\"\ndistance = 4000\npolicy = [\"sink\", \"full\"]",
        )
        .unwrap();
        let [(squad, a), (far, b)] = &runs[..] else { panic!("two runs") };
        assert_eq!((&**squad, &**far), ("squad", "far"));
        assert_eq!((&*a.model.model, &*b.model.model), ("a", "b"));
        assert_eq!((&a.seeds[..], a.unanswerable, b.unanswerable), (&[1, 2][..], true, false));
        assert_eq!(a.data.as_deref(), Some(Path::new("data/d.json")));
        assert_eq!(
            (&b.distance[..], &b.policy[..]),
            (&[4000][..], &["sink".to_owned(), "full".to_owned()][..])
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            ("", "no run"),
            ("a = = 1", "line 1: "),
            ("[[run]]\nmodel = \"a\"", "run 1 does not say its `task`"),
            ("[[run]]\ntask = \"squad\"\n[[run]]\ntask = \"squad\"", "two runs are called"),
            ("[[run]]\ntask = \"squad\"\nname = \"../x\"", "a name is of letters"),
            ("[[run]]\ntask = \"squad\"\ncolour = \"red\"", "--colour"),
            ("[[run]]\ntask = \"squad\"\nwindow = \"red\"", "--window"),
            ("[[run]]\ntask = \"chess\"", "chess"),
            ("[[run]]\ntask = \"report\"", "required arguments"),
            ("[[run]]\ntask = \"squad\"\nwindow = { a = 1 }", "neither a text nor a number"),
        ] {
            let error = format!("{:#}", runs(text).unwrap_err());
            assert!(error.contains(expected), "{error:?}, not {expected:?}");
        }
    }
}
