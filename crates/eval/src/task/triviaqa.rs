//! TriviaQA: questions of quizzes, with passages that say the answer.

use std::collections::HashSet;
use std::path::Path;

use super::{Draw, Reads, Task, TaskOptions, asked_at_end, best_match};
use crate::data::{Record, records};
use crate::metrics::Normalisation;
use crate::{EvalError, Form, Question, Stream};

/// Streams of passages; questions at the end about the first ones.
///
/// Source: Joshi et al., "TriviaQA: A Large Scale Distantly Supervised Challenge Dataset for Reading
/// Comprehension", 2017, arXiv:1705.03551. Reads its JSON, with the evidence in the folders beside it where the
/// archive has it, or JSON Lines with a question a line and its passages.
#[derive(Clone, Copy, Debug)]
pub(super) struct TriviaQa;

/// Items of a stream that are asked; the distractors come after them.
const ASKED: usize = 10;

struct Item {
    id: String,
    question: String,
    answers: Vec<String>,
    /// The first that names an answer.
    passage: String,
}

impl Task for TriviaQa {
    fn name(&self) -> &'static str {
        "triviaqa"
    }

    fn reads(&self) -> Reads {
        Reads::Items
    }

    fn streams(&self, options: &TaskOptions) -> Result<Vec<Stream>, EvalError> {
        let path = options.data()?;
        let records = records(path)?;
        let items = match &records[..] {
            [record] if record.value.get("Data").is_some() => official(record, path)?,
            _ => lines(&records)?,
        };
        let what = "items with an answer";
        options.draw(items, Draw { asked: ASKED, distractors: 20, what }, stream)
    }

    fn score(&self, answer: &str, question: &Question) -> Vec<(&'static str, f64)> {
        best_match(answer, question, Normalisation::TriviaQa)
    }
}

/// `{"id", "question", "answers": [text], "passages": [{"text"}]}`
fn lines(records: &[Record]) -> Result<Vec<Item>, EvalError> {
    let mut items = Vec::new();
    for record in records {
        let answers = record.texts("answers")?;
        let mut passages = Vec::new();
        for passage in record.list("passages")? {
            passages.push(record.part(passage).text("text")?.to_owned());
        }
        let (id, question) = (record.name("id")?, record.text("question")?.to_owned());
        // An item whose passages do not say it has no evidence.
        let evidence = passages.into_iter().find(|p| answers.iter().any(|a| says(p, a)));
        items.extend(evidence.map(|passage| Item { id, question, answers, passage }));
    }
    Ok(items)
}

/// `{"Data": [{"QuestionId", "Question", "Answer": {"Aliases"}, "EntityPages": [{"Filename"}]}]}`, as it lies in
/// `qa/`; the files lie in `evidence/wikipedia/`. Of each, the first paragraph that names an answer counts.
fn official(record: &Record, path: &Path) -> Result<Vec<Item>, EvalError> {
    let archive = path.parent().and_then(Path::parent).unwrap_or(Path::new(""));
    let folder = archive.join("evidence").join("wikipedia");
    let mut items = Vec::new();
    for item in record.list("Data")? {
        let item = record.part(item);
        let (id, question) =
            (item.text("QuestionId")?.to_owned(), item.text("Question")?.to_owned());
        let answer = item.value.get("Answer").ok_or_else(|| item.error("`Answer` is missing"))?;
        let answers = item.part(answer).texts("Aliases")?;
        let mut evidence = None;
        for page in item.list("EntityPages")? {
            let page = item.part(page);
            let name = page.text("Filename")?;
            if !Path::new(name)
                .components()
                .all(|part| matches!(part, std::path::Component::Normal(_)))
            {
                return Err(page.error("`Filename` leads out of its folder"));
            }
            let text = fs_err::read_to_string(folder.join(name))?;
            let mut paragraphs = text.lines().map(str::trim).filter(|line| !line.is_empty());
            let found = paragraphs.find(|p| answers.iter().any(|answer| says(p, answer)));
            evidence = evidence.or_else(|| found.map(str::to_owned));
        }
        items.extend(evidence.map(|passage| Item { id, question, answers, passage }));
    }
    Ok(items)
}

/// One passage with an answer for each item, no passage twice.
fn stream(items: &[Item], limit: usize) -> Stream {
    let mut stream = Stream::default();
    let mut known = HashSet::new();
    for (i, item) in items.iter().enumerate() {
        let passage = &item.passage;
        if !known.insert(passage) {
            continue;
        }
        if i < ASKED && stream.questions.len() < limit {
            stream.questions.push(Question {
                id: item.id.clone(),
                group: String::new(),
                after: 0,
                query: item.question.clone(),
                prompt: format!("Question: {}\nShort answer:", item.question),
                references: item.answers.clone(),
                evidence: vec![stream.documents.len()],
                form: Form::line(24),
            });
        }
        stream.documents.push(format!("{passage}\n\n"));
    }
    asked_at_end(stream)
}

/// Whether a passage names an answer, as words of their own.
fn says(passage: &str, answer: &str) -> bool {
    let (passage, answer) = (passage.to_lowercase(), answer.to_lowercase());
    let is_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    !answer.is_empty()
        && passage.match_indices(&answer).any(|(start, found)| {
            let (before, after) = (&passage[..start], &passage[start + found.len()..]);
            !is_word(before.chars().next_back()) && !is_word(after.chars().next())
        })
}
