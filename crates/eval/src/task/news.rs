//! Multi-News: articles about one event, and the summary that an editor wrote of them.

use super::{Draw, Reads, Task, TaskOptions, asked_at_end, rouge_scores};
use crate::data::records;
use crate::{EvalError, Form, Question, Stream};

/// Streams of articles; at the end, a summary of those of the first items is asked for, each named by how its
/// first article begins.
///
/// Source: Fabbri et al., "Multi-News: a Large-Scale Multi-Document Summarization Dataset and Abstractive
/// Hierarchical Model", 2019, arXiv:1906.01749. Reads JSON Lines with `documents` and `summary`, or with one text
/// `document` in which "|||||" stands between articles, as the data is distributed.
#[derive(Clone, Copy, Debug)]
pub(super) struct MultiNews;

/// Items of a stream that are asked for; each has some 2,400 tokens.
const ASKED: usize = 2;
/// Words of the first article that name an item.
const NAME_WORDS: usize = 25;

struct Item {
    id: String,
    articles: Vec<String>,
    summary: String,
}

impl Task for MultiNews {
    fn name(&self) -> &'static str {
        "multi-news"
    }

    fn reads(&self) -> Reads {
        Reads::Items
    }

    fn streams(&self, options: &TaskOptions) -> Result<Vec<Stream>, EvalError> {
        let mut items = Vec::new();
        for (i, record) in records(options.data()?)?.into_iter().enumerate() {
            let articles: Vec<String> = match record.value.get("document") {
                Some(_) => record.text("document")?.split("|||||").map(str::to_owned).collect(),
                None => record.texts("documents")?,
            };
            let articles: Vec<String> = articles
                .iter()
                .map(|article| article.replace("NEWLINE_CHAR", "\n").trim().to_owned())
                .filter(|article| !article.is_empty())
                .collect();
            if articles.is_empty() {
                return Err(record.error("it has no articles"));
            }
            let id = record.text("id").map_or_else(|_| i.to_string(), str::to_owned);
            // Summaries of the distributed data begin with a dash.
            let summary = record.text("summary")?.trim_start_matches(['–', ' ']).to_owned();
            items.push(Item { id, articles, summary });
        }
        options.draw(items, Draw { asked: ASKED, distractors: 2, what: "items" }, stream)
    }

    fn score(&self, answer: &str, question: &Question) -> Vec<(&'static str, f64)> {
        rouge_scores(answer, question)
    }
}

fn stream(items: &[Item], limit: usize) -> Stream {
    let mut stream = Stream::default();
    for (i, item) in items.iter().enumerate() {
        let first = stream.documents.len();
        stream.documents.extend(item.articles.iter().map(|article| format!("{article}\n\n")));
        if i >= ASKED.min(limit) {
            continue;
        }
        let name: Vec<&str> = item.articles[0].split_whitespace().take(NAME_WORDS).collect();
        let name = name.join(" ");
        stream.questions.push(Question {
            id: item.id.clone(),
            group: String::new(),
            after: 0,
            prompt: format!(
                "Write a summary, in one paragraph, of all articles about this news: \"{name} …\""
            ),
            query: name,
            references: vec![item.summary.clone()],
            evidence: (first..stream.documents.len()).collect(),
            form: Form::turn(256),
        });
    }
    asked_at_end(stream)
}
