//! SQuAD v2.0: questions about paragraphs of Wikipedia.

use super::{Draw, Reads, Task, TaskOptions, Total, best_match};
use crate::data::{Record, records};
use crate::metrics::Normalisation;
use crate::rng::for_stream;
use crate::{EvalError, Form, Question, Stream};

/// Streams of paragraphs, in an order drawn by seed; questions at the end about the first ones.
///
/// Source: Rajpurkar, Jia and Liang, "Know What You Don't Know: Unanswerable Questions for SQuAD", 2018,
/// arXiv:1806.03822. Reads the official JSON and JSON Lines with a question a line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Squad;

/// Paragraphs of a stream that questions are about; the distractors come after them.
const ASKED: usize = 20;

struct Paragraph {
    text: String,
    /// Id, question, answers.
    questions: Vec<(String, String, Vec<String>)>,
}

impl Task for Squad {
    fn name(&self) -> &'static str {
        "squad"
    }

    fn reads(&self) -> Reads {
        Reads::Items
    }

    fn streams(&self, options: &TaskOptions) -> Result<Vec<Stream>, EvalError> {
        let mut paragraphs = paragraphs(&records(options.data()?)?)?;
        if options.unanswerable {
            // The first question about a paragraph is nearly always one with an answer.
            let mut rng = for_stream(options.seed, 1);
            paragraphs.iter_mut().for_each(|p| rng.shuffle(&mut p.questions));
        } else {
            paragraphs.iter_mut().for_each(|p| p.questions.retain(|(.., gold)| !gold.is_empty()));
        }
        let draw = Draw { asked: ASKED, distractors: 20, what: "paragraphs" };
        options.draw(paragraphs, draw, |chosen, limit| stream(chosen, limit, options.unanswerable))
    }

    fn score(&self, answer: &str, question: &Question) -> Vec<(&'static str, f64)> {
        best_match(answer, question, Normalisation::Squad)
    }

    fn totals(&self) -> &'static [Total] {
        &[Total::NoAnswer]
    }

    fn group_name(&self) -> &'static str {
        "questions"
    }
}

/// One question about each paragraph, then the next one, and so on.
fn stream(paragraphs: &[Paragraph], limit: usize, unanswerable: bool) -> Stream {
    let documents: Vec<String> = paragraphs.iter().map(|p| format!("{}\n\n", p.text)).collect();
    let mut questions = Vec::new();
    let most = paragraphs.iter().map(|p| p.questions.len()).max().unwrap_or(0);
    for round in 0..most {
        for (i, paragraph) in paragraphs[..ASKED].iter().enumerate() {
            let Some((id, text, answers)) = paragraph.questions.get(round) else { continue };
            questions.push(Question {
                id: id.clone(),
                group: match (unanswerable, answers.is_empty()) {
                    (true, true) => "unanswerable".to_owned(),
                    (true, false) => "answerable".to_owned(),
                    (false, _) => String::new(),
                },
                after: documents.len(),
                query: text.clone(),
                prompt: format!("Question: {text}\nShort answer:"),
                references: answers.clone(),
                evidence: vec![i],
                form: Form::line(24),
            });
        }
    }
    questions.truncate(limit);
    Stream { documents, questions }
}

/// The paragraphs with their answerable questions.
fn paragraphs(records: &[Record]) -> Result<Vec<Paragraph>, EvalError> {
    match records {
        [record] if record.value.get("data").is_some() => official(record),
        _ => lines(records),
    }
}

/// `{"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers": [{"text"}]}]}]}]}`
fn official(record: &Record) -> Result<Vec<Paragraph>, EvalError> {
    let mut out = Vec::new();
    for article in record.list("data")? {
        for paragraph in record.part(article).list("paragraphs")? {
            let paragraph = record.part(paragraph);
            let mut questions = Vec::new();
            for question in paragraph.list("qas")? {
                let question = record.part(question);
                let mut answers = Vec::new();
                for answer in question.list("answers")? {
                    answers.push(record.part(answer).text("text")?.to_owned());
                }
                let (id, text) = (question.name("id")?, question.text("question")?);
                questions.push((id, text.to_owned(), answers));
            }
            out.push(Paragraph { text: paragraph.text("context")?.to_owned(), questions });
        }
    }
    Ok(out)
}

/// `{"id", "context", "question", "answers": [text]}`, questions about a paragraph one after the other; `answers`
/// may be `{"text": [text]}`, as the hub has it.
fn lines(records: &[Record]) -> Result<Vec<Paragraph>, EvalError> {
    let mut out: Vec<Paragraph> = Vec::new();
    for record in records {
        let text = record.text("context")?;
        if out.last().is_none_or(|paragraph| paragraph.text != text) {
            out.push(Paragraph { text: text.to_owned(), questions: Vec::new() });
        }
        let answers = match record.value.get("answers") {
            Some(object @ serde_json::Value::Object(_)) => record.part(object).texts("text")?,
            _ => record.texts("answers")?,
        };
        let question = (record.name("id")?, record.text("question")?.to_owned(), answers);
        if let Some(paragraph) = out.last_mut() {
            paragraph.questions.push(question);
        }
    }
    Ok(out)
}
