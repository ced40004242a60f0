//! LoCoMo: conversations of two people over months, and questions about what was said.

use std::collections::HashMap;

use serde_json::Value;

use super::{Reads, Task, TaskOptions, up_to};
use crate::data::{Record, records};
use crate::metrics::{Normalisation, exact_match, f1, f1_of_lists};
use crate::rng::for_stream;
use crate::{EvalError, Form, Question, Stream};

/// A stream for each conversation, a document for each turn, which says who speaks and when; at the end, its
/// questions in an order drawn by seed. Those to which the conversation has no answer are asked if `unanswerable`
/// says so, and want none.
///
/// Source: Maharana et al., "Evaluating Very Long-Term Conversational Memory of LLM Agents", 2024,
/// arXiv:2402.17753. Reads their JSON, or JSON Lines with `sessions` of `turns` in a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct LoCoMo;

/// The category whose questions have no answer.
const ADVERSARIAL: usize = 5;
/// Their categories, by number.
const CATEGORIES: [&str; 6] =
    ["", "multi-hop", "temporal", "open-domain", "single-hop", "adversarial"];

impl Task for LoCoMo {
    fn name(&self) -> &'static str {
        "locomo"
    }

    fn reads(&self) -> Reads {
        Reads::Streams
    }

    fn streams(&self, options: &TaskOptions) -> Result<Vec<Stream>, EvalError> {
        let mut conversations = Vec::new();
        for (i, record) in records(options.data()?)?.iter().enumerate() {
            conversations.push(conversation(record, i, options)?);
        }
        // Every conversation is asked about equally often.
        let n = conversations.len().max(1);
        let mut limit = options.limit;
        for (i, conversation) in conversations.iter_mut().enumerate() {
            conversation.questions.truncate(limit.div_ceil(n - i));
            limit -= conversation.questions.len();
        }
        Ok(up_to(options.limit, conversations))
    }

    /// F1 as their script has it: words are stemmed; several answers to a question of several hops count each.
    fn score(&self, answer: &str, question: &Question) -> Vec<(&'static str, f64)> {
        let gold = question.references.first().map_or("", String::as_str);
        let f = match &*question.group {
            "multi-hop" => f1_of_lists(answer, gold),
            _ => f1(answer, gold, Normalisation::LoCoMo),
        };
        let em = exact_match(answer, gold, Normalisation::LoCoMo);
        vec![("f1", f), ("em", em)]
    }

    fn group_name(&self) -> &'static str {
        "category"
    }
}

fn conversation(
    record: &Record,
    number: usize,
    options: &TaskOptions,
) -> Result<Stream, EvalError> {
    let mut stream = Stream::default();
    let mut turns = HashMap::new();
    for (time, session) in sessions(record)? {
        // "1:56 pm on 8 May, 2023": no question is about the time of day.
        let date = time.split_once(" on ").map_or(&*time, |(_, date)| date);
        for turn in session {
            let turn = record.part(&turn);
            let mut text = format!("{} ({date}): {}", turn.text("speaker")?, turn.text("text")?);
            if let Ok(caption) = turn.text("blip_caption") {
                text += &format!(" [shares {caption}]");
            }
            turns.insert(turn.text("dia_id")?.to_owned(), stream.documents.len());
            stream.documents.push(text + "\n\n");
        }
    }
    for (i, question) in record.list("qa")?.iter().enumerate() {
        let question = record.part(question);
        let category = question.value.get("category").and_then(Value::as_u64);
        let category = category.map(|c| c as usize).filter(|c| (1..CATEGORIES.len()).contains(c));
        let category =
            category.ok_or_else(|| question.error("`category` is no number from 1 to 5"))?;
        if category == ADVERSARIAL && !options.unanswerable {
            continue;
        }
        let references =
            if category == ADVERSARIAL { Vec::new() } else { vec![gold(&question, category)?] };
        // Some name several turns in one text, or none that exists.
        let names = question.texts("evidence")?;
        let names = names.iter().flat_map(|name| name.split([';', ' ', ',']));
        let mut evidence: Vec<usize> = names.filter_map(|name| turns.get(name).copied()).collect();
        evidence.sort_unstable();
        evidence.dedup();
        if evidence.is_empty() {
            continue;
        }
        let text = question.text("question")?;
        let hint = match CATEGORIES[category] {
            "temporal" => " Use the dates of the conversation to answer with an approximate date.",
            _ => "",
        };
        stream.questions.push(Question {
            id: format!("{number}/{i}"),
            group: CATEGORIES[category].to_owned(),
            after: stream.documents.len(),
            query: text.to_owned(),
            prompt: format!("Question: {text}{hint}\nShort answer:"),
            references,
            evidence,
            form: Form::line(32),
        });
    }
    for_stream(options.seed, number).shuffle(&mut stream.questions);
    Ok(stream)
}

/// The right answer. Where there are remarks behind it, without them.
fn gold(question: &Record, category: usize) -> Result<String, EvalError> {
    let gold = match question.value.get("answer") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => return Err(question.error("`answer` is missing, or is neither a text nor a number")),
    };
    let is_open = CATEGORIES[category] == "open-domain";
    Ok(if is_open { gold.split(';').next().unwrap_or("").trim().to_owned() } else { gold })
}

/// Dates and turns, in the order of the sessions.
fn sessions(record: &Record) -> Result<Vec<(String, Vec<Value>)>, EvalError> {
    let mut sessions = Vec::new();
    if let Some(conversation) = record.value.get("conversation") {
        // The distributed form: `session_1`, `session_1_date_time`, and so on.
        let conversation = record.part(conversation);
        for number in 1.. {
            let name = format!("session_{number}");
            let date = format!("{name}_date_time");
            if conversation.value.get(&name).is_none() && conversation.value.get(&date).is_none() {
                break;
            }
            // Some dates have no session.
            let turns = conversation.list(&name).map(<[Value]>::to_vec).unwrap_or_default();
            sessions.push((conversation.text(&date)?.to_owned(), turns));
        }
    } else {
        for session in record.list("sessions")? {
            let session = record.part(session);
            sessions.push((session.text("date_time")?.to_owned(), session.list("turns")?.to_vec()));
        }
    }
    Ok(sessions)
}
