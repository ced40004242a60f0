//! What was recalled, for people and for programs; the same in every command.

use everstream_runtime::memory::{Recall, RecalledBlock, RecalledText};
use everstream_runtime::model::Tokenizer;
use serde_json::{Value, json};

use crate::output;

/// Characters of a recalled block that are shown.
const SHOWN_CHARS: usize = 72;

/// Says on standard error what was recalled, or why nothing was.
pub(crate) fn note(tokenizer: &Tokenizer, recall: &Recall) {
    lines(tokenizer, recall).iter().for_each(|line| output::dim_note(line));
}

/// What was recalled, or why nothing was.
pub(crate) fn lines(tokenizer: &Tokenizer, recall: &Recall) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(failure) = &recall.failure {
        lines.push(format!("recalled without a server: {failure}"));
    }
    for text in &recall.texts {
        let cut = match text.n_cut {
            0 => String::new(),
            n => format!(" (without its last {n} tokens)"),
        };
        let words = output::first_words(&text.text, SHOWN_CHARS);
        let RecalledText { source, id, distance, .. } = text;
        lines.push(format!("recalled {source} {id}{cut}, distance {distance:.3}: {words}"));
    }
    for block in &recall.blocks {
        let (start, end) = (block.part.start.0, block.part.end.0);
        let part = if block.is_partial() { " (part of a block)" } else { "" };
        let words = output::first_words(&text(tokenizer, block), SHOWN_CHARS);
        let line = format!(
            "recalled tokens {start}..{end}{part}, distance {:.3}: {words}",
            block.distance
        );
        lines.push(line);
    }
    for block in &recall.unreadable {
        let (start, end) = (block.part.start.0, block.part.end.0);
        lines.push(format!("not recalled, damaged on disk: tokens {start}..{end}"));
    }
    for (blocks, why) in
        [(&recall.gated, "too far from the question"), (&recall.skipped, "no room for")]
    {
        if let Some(nearest) = blocks.first().filter(|_| recall.blocks.is_empty()) {
            lines.push(format!(
                "nothing recalled, {why}: {} blocks, the nearest at distance {:.3}",
                blocks.len(),
                nearest.distance
            ));
        }
    }
    lines
}

/// One object for each recalled text and block.
pub(crate) fn json(tokenizer: &Tokenizer, recall: &Recall) -> Vec<Value> {
    let block = |block: &RecalledBlock| {
        json!({
            "block": block.block.id().to_string(),
            "range": [block.part.start.0, block.part.end.0],
            "partial": block.is_partial(),
            "distance": block.distance,
            "text": text(tokenizer, block),
        })
    };
    let text = |text: &RecalledText| {
        json!({
            "source": text.source,
            "id": text.id,
            "partial": text.n_cut > 0,
            "distance": text.distance,
            "text": text.text,
        })
    };
    recall.texts.iter().map(text).chain(recall.blocks.iter().map(block)).collect()
}

/// The words of what is recalled of a block.
fn text(tokenizer: &Tokenizer, block: &RecalledBlock) -> String {
    if !block.is_partial() {
        return block.block.text().to_owned();
    }
    String::from_utf8_lossy(&tokenizer.decode(block.tokens())).into_owned()
}
