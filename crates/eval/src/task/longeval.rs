//! LongEval: a number from a long list of lines, or the first of many subjects that were discussed.

use super::{Reads, Task, TaskOptions, contains, up_to};
use crate::data::{Record, records};
use crate::rng::for_stream;
use crate::{EvalError, Form, Question, Stream};

/// A stream for each record, cut into lines or turns, and one question at its end.
///
/// Source: Li et al., "How Long Can Open-Source LLMs Truly Promise on Context Length?", 2023, the tests of
/// LongChat. Reads their JSON Lines: `prompt`, and `random_idx`, `expected_number` or `topics`; or `answer`.
#[derive(Clone, Copy, Debug)]
pub(super) struct LongEval;

/// What stands between record and question.
const ENDS: [&str; 2] = ["Now the record is over.", "Now the record ends."];

impl Task for LongEval {
    fn name(&self) -> &'static str {
        "longeval"
    }

    fn reads(&self) -> Reads {
        Reads::Streams
    }

    fn streams(&self, options: &TaskOptions) -> Result<Vec<Stream>, EvalError> {
        let mut streams = Vec::new();
        for (i, record) in records(options.data()?)?.iter().enumerate() {
            streams.push(stream(record, i)?);
        }
        for_stream(options.seed, 0).shuffle(&mut streams);
        Ok(up_to(options.limit, streams))
    }

    fn score(&self, answer: &str, question: &Question) -> Vec<(&'static str, f64)> {
        contains(answer, question)
    }

    fn group_name(&self) -> &'static str {
        "test"
    }
}

fn stream(record: &Record, number: usize) -> Result<Stream, EvalError> {
    let prompt = record.text("prompt")?;
    let end = ENDS.iter().find_map(|end| prompt.rfind(end));
    let end = end.ok_or_else(|| record.error("`prompt` does not say where the record ends"))?;
    let (text, question) = prompt.split_at(end);
    let question = question.trim();
    let size = |field: &str| record.value.get(field).and_then(serde_json::Value::as_u64);
    let (is_lines, group) = match (size("num_lines"), size("num_topics")) {
        (None, Some(n)) => (false, format!("{n} topics")),
        (Some(n), _) => (true, format!("{n} lines")),
        // As distributed, records do not say it.
        (None, None) if record.value.get("topics").is_some() => (false, "topics".to_owned()),
        (None, None) => (true, "lines".to_owned()),
    };
    let documents = documents(text, is_lines);
    let answer = answer(record)?;
    let query = question.split_once(". ").map_or(question, |(_, query)| query).to_owned();
    let (evidence, form, lead) = if is_lines {
        let evidence = documents.iter().position(|d| d.contains(&format!("<{answer}>")));
        (evidence, Form::line(16), "The <REGISTER_CONTENT> is <")
    } else {
        let lower = answer.to_lowercase();
        let evidence = documents.iter().position(|d| d.to_lowercase().contains(&lower));
        (evidence, Form::line(24), "The first topic we discussed is")
    };
    let evidence = evidence.ok_or_else(|| record.error("the record does not say the answer"))?;
    let question = Question {
        id: number.to_string(),
        group,
        after: documents.len(),
        query,
        prompt: format!("{question}\n{lead}"),
        references: vec![answer],
        evidence: vec![evidence],
        form,
    };
    Ok(Stream { documents, questions: vec![question] })
}

/// Lines, or the turns of a conversation.
fn documents(text: &str, is_lines: bool) -> Vec<String> {
    if is_lines {
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        return lines.map(|line| format!("{line}\n\n")).collect();
    }
    let turns = text.replace("USER:", "\u{0}USER:").replace("ASSISTANT:", "\u{0}ASSISTANT:");
    let turns = turns.split('\u{0}').map(str::trim).filter(|turn| !turn.is_empty());
    turns.map(|turn| format!("{turn}\n\n")).collect()
}

/// The number, or the first topic without its article.
fn answer(record: &Record) -> Result<String, EvalError> {
    let value = ["answer", "expected_number"].into_iter().find_map(|field| record.value.get(field));
    let text = match value {
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(serde_json::Value::Number(number)) => number.to_string(),
        _ => record.texts("topics")?.first().cloned().unwrap_or_default(),
    };
    let text = text.trim();
    Ok(text.strip_prefix("The ").or_else(|| text.strip_prefix("the ")).unwrap_or(text).to_owned())
}
