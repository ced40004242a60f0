//! QMSum: long meetings, and questions that are answered by a summary of a part of one.

use super::{Reads, Task, TaskOptions, rouge_scores, up_to};
use crate::data::{Record, records};
use crate::rng::for_stream;
use crate::{EvalError, Form, Question, Stream};

/// A stream for each meeting, a document for each turn of it; at the end all questions about certain parts. Those
/// about the whole meeting name no part, and are left out.
///
/// Source: Zhong et al., "QMSum: A New Benchmark for Query-based Multi-domain Meeting Summarization", 2021,
/// arXiv:2104.05938. Reads JSON Lines as they are distributed, or with one list `queries` of both kinds.
#[derive(Clone, Copy, Debug)]
pub(super) struct QmSum;

impl Task for QmSum {
    fn name(&self) -> &'static str {
        "qmsum"
    }

    fn reads(&self) -> Reads {
        Reads::Streams
    }

    fn streams(&self, options: &TaskOptions) -> Result<Vec<Stream>, EvalError> {
        let mut meetings = Vec::new();
        for (i, record) in records(options.data()?)?.iter().enumerate() {
            meetings.push(meeting(record, i)?);
        }
        for_stream(options.seed, 0).shuffle(&mut meetings);
        Ok(up_to(options.limit, meetings))
    }

    fn score(&self, answer: &str, question: &Question) -> Vec<(&'static str, f64)> {
        rouge_scores(answer, question)
    }
}

fn meeting(record: &Record, number: usize) -> Result<Stream, EvalError> {
    let turns =
        ["turns", "meeting_transcripts"].into_iter().find(|f| record.value.get(f).is_some());
    let mut stream = Stream::default();
    for turn in record.list(turns.unwrap_or("turns"))? {
        let turn = record.part(turn);
        stream.documents.push(format!("{}: {}\n\n", turn.text("speaker")?, turn.text("content")?));
    }
    let queries =
        ["queries", "specific_query_list"].into_iter().find(|f| record.value.get(f).is_some());
    for (i, query) in record.list(queries.unwrap_or("queries"))?.iter().enumerate() {
        let query = record.part(query);
        if query.value.get("relevant_text_span").is_none() {
            continue;
        }
        let text = query.text("query")?;
        stream.questions.push(Question {
            id: format!("{number}/{i}"),
            group: String::new(),
            after: stream.documents.len(),
            query: text.to_owned(),
            prompt: format!("{text} Answer in one paragraph, from what was said in the meeting."),
            references: vec![query.text("answer")?.to_owned()],
            evidence: evidence(&query, stream.documents.len())?,
            form: Form::turn(128),
        });
    }
    Ok(stream)
}

/// `[[first, last], …]`, numbers of turns, often as texts.
fn evidence(query: &Record, n_turns: usize) -> Result<Vec<usize>, EvalError> {
    let wrong = || query.error("`relevant_text_span` is no list of pairs of numbers of turns");
    let mut evidence = Vec::new();
    for span in query.list("relevant_text_span")? {
        let number = |i: usize| -> Option<usize> {
            let value = span.get(i)?;
            value.as_u64().map(|n| n as usize).or_else(|| value.as_str()?.trim().parse().ok())
        };
        let (Some(first), Some(last)) = (number(0), number(1)) else { return Err(wrong()) };
        if first > last {
            return Err(wrong());
        }
        evidence.extend(first..last.saturating_add(1).min(n_turns));
    }
    evidence.sort_unstable();
    evidence.dedup();
    Ok(evidence)
}
