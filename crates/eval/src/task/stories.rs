//! Stories that go on: what happens next, after much else was read.

use super::{Draw, Reads, Task, TaskOptions, Total};
use crate::data::records;
use crate::{EvalError, Form, Question, Stream};

/// Streams of beginnings of stories; at the end, the first ones are to be told on from their last sentence. An
/// answer is compared with how the story does go on, and it is measured how likely the model finds that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stories {
    name: &'static str,
    read: fn(&TaskOptions) -> Result<Vec<Story>, EvalError>,
}

/// Source: Fan, Lewis and Dauphin, "Hierarchical Neural Story Generation", 2018, arXiv:1805.04833. Reads JSON Lines
/// with `prompt` and `story`, or a file `….wp_source` beside `….wp_target` as they are distributed.
pub(super) const WRITING_PROMPTS: Stories =
    Stories { name: "writing-prompts", read: writing_prompts };

/// Source: Ammanabrolu et al., "Story Realization: Expanding Plot Events into Sentences", 2020, arXiv:1909.03480,
/// whose plots come from Fandom's wikis. Reads plain text: a sentence a line, an empty line or one of `%` between
/// stories; of a line with fields between `|||`, the third is the sentence.
pub(super) const FANDOM: Stories = Stories { name: "fandom", read: fandom };

/// Stories of a stream that are told on.
const ASKED: usize = 4;
/// Words of a beginning, at most, of an ending, and of a story with both at least.
const BEGINNING_WORDS: usize = 160;
const ENDING_WORDS: usize = 60;

/// A story in two parts.
struct Story {
    id: String,
    /// Sentences.
    beginning: Vec<String>,
    /// What comes next.
    ending: String,
}

impl Task for Stories {
    fn name(&self) -> &'static str {
        self.name
    }

    fn reads(&self) -> Reads {
        Reads::Items
    }

    fn streams(&self, options: &TaskOptions) -> Result<Vec<Stream>, EvalError> {
        let stories = (self.read)(options)?;
        options.draw(stories, Draw { asked: ASKED, distractors: 8, what: "long stories" }, stream)
    }

    fn score(&self, _answer: &str, _question: &Question) -> Vec<(&'static str, f64)> {
        Vec::new()
    }

    fn totals(&self) -> &'static [Total] {
        &[Total::Bleu, Total::Distinct(1), Total::Distinct(2), Total::Perplexity]
    }
}

fn stream(stories: &[Story], limit: usize) -> Stream {
    let beginnings = stories.iter().map(|story| story.beginning.join(" ") + "\n\n");
    let documents: Vec<String> = beginnings.collect();
    let questions = stories.iter().take(ASKED.min(limit)).enumerate().map(|(i, story)| {
        let last = story.beginning.last().cloned().unwrap_or_default();
        Question {
            id: story.id.clone(),
            group: String::new(),
            after: documents.len(),
            prompt: format!("Go on with the story that stopped here:\n\n{last}"),
            query: last,
            references: vec![format!(" {}", story.ending)],
            evidence: vec![i],
            form: Form::scored(80),
        }
    });
    let questions = questions.collect();
    Stream { documents, questions }
}

/// A story whose beginning has at most so many words, and at least a third of them; `None` if it is too short.
fn cut(id: String, sentences: &[String]) -> Option<Story> {
    let n_words = |sentences: &[String]| -> usize {
        sentences.iter().map(|sentence| sentence.split_whitespace().count()).sum()
    };
    let n_beginning = (1..sentences.len())
        .take_while(|&n| {
            n_words(&sentences[..n]) <= BEGINNING_WORDS && n_words(&sentences[n..]) >= ENDING_WORDS
        })
        .last()?;
    let (beginning, rest) = sentences.split_at(n_beginning);
    if n_words(beginning) < BEGINNING_WORDS / 3 {
        return None;
    }
    let n_ending = (1..=rest.len()).find(|&n| n_words(&rest[..n]) >= ENDING_WORDS)?;
    Some(Story { id, beginning: beginning.to_vec(), ending: rest[..n_ending].join(" ") })
}

/// Where `.`, `!` or `?` ends a word, with the marks that close around it.
fn sentences(text: &str) -> Vec<String> {
    let mut sentences = vec![String::new()];
    for word in text.split_whitespace() {
        let mut sentence = sentences.pop().unwrap_or_default();
        if !sentence.is_empty() {
            sentence.push(' ');
        }
        sentence.push_str(word);
        let ends =
            word.trim_end_matches(['"', '\'', '”', '’', ')']).ends_with(['.', '!', '?', '…']);
        sentences.push(sentence);
        if ends {
            sentences.push(String::new());
        }
    }
    sentences.retain(|sentence| !sentence.is_empty());
    sentences
}

fn writing_prompts(options: &TaskOptions) -> Result<Vec<Story>, EvalError> {
    let path = options.data()?;
    let mut stories = Vec::new();
    let mut add = |id: String, prompt: &str, story: &str| {
        let text: Vec<String> =
            std::iter::once(prompt.trim().to_owned()).chain(sentences(story)).collect();
        stories.extend(cut(id, &text));
    };
    if path.extension().is_some_and(|extension| extension == "wp_source") {
        let (prompts, texts) = (
            fs_err::read_to_string(path)?,
            fs_err::read_to_string(path.with_extension("wp_target"))?,
        );
        if prompts.lines().count() != texts.lines().count() {
            let message =
                format!("{}: it and its .wp_target have not the same lines", path.display());
            return Err(EvalError::Setting(message));
        }
        for (i, (prompt, text)) in prompts.lines().zip(texts.lines()).enumerate() {
            add(i.to_string(), prompt, &text.replace("<newline>", " "));
        }
    } else {
        for record in records(path)? {
            add(record.text("id")?.to_owned(), record.text("prompt")?, record.text("story")?);
        }
    }
    Ok(stories)
}

fn fandom(options: &TaskOptions) -> Result<Vec<Story>, EvalError> {
    let text = fs_err::read_to_string(options.data()?)?;
    let mut stories: Vec<Vec<String>> = vec![Vec::new()];
    for line in text.lines() {
        let is_border = line.trim().chars().all(|c| c == '%');
        let sentence = line.split("|||").nth(2).unwrap_or(line).trim();
        match stories.last_mut().filter(|_| !is_border) {
            Some(story) => story.push(sentence.to_owned()),
            None => stories.push(Vec::new()),
        }
    }
    let stories = stories.iter().enumerate();
    Ok(stories.filter_map(|(i, story)| cut(i.to_string(), story)).collect())
}
