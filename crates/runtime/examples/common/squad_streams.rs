//! Streams of SQuAD paragraphs and questions about them.

use anyhow::bail;
use serde::Deserialize;

/// Paragraphs of a stream.
const PARAGRAPHS: usize = 40;

#[derive(Clone, Deserialize)]
pub(crate) struct Record {
    pub(crate) title: String,
    pub(crate) context: String,
    pub(crate) question: String,
    /// None if the paragraph does not say it.
    pub(crate) answers: Vec<String>,
}

pub(crate) struct Stream {
    pub(crate) paragraphs: Vec<String>,
    /// Question and the number of its paragraph.
    pub(crate) questions: Vec<(Record, usize)>,
}

/// The questions about every second article.
pub(crate) fn half_of(records: Vec<Record>, half: &str) -> anyhow::Result<Vec<Record>> {
    let rest = match half {
        "tune" => 0,
        "report" => 1,
        _ => bail!("unknown half {half}: use tune or report"),
    };
    let mut titles: Vec<String> = Vec::new();
    for record in &records {
        if !titles.contains(&record.title) {
            titles.push(record.title.clone());
        }
    }
    let number = |title: &String| titles.iter().position(|t| t == title).unwrap_or(0);
    Ok(records.into_iter().filter(|record| number(&record.title) % 2 == rest).collect())
}

/// Streams of paragraphs from several articles, drawn by seed; answerable questions, spread evenly.
pub(crate) fn streams(
    records: &[Record],
    n_streams: usize,
    per_stream: usize,
    seed: u64,
) -> Vec<Stream> {
    let mut paragraphs: Vec<(String, Vec<Record>)> = Vec::new();
    for record in records {
        let known = paragraphs.last().is_some_and(|p| p.0 == record.context);
        if !known {
            paragraphs.push((record.context.clone(), Vec::new()));
        }
        if let Some((_, questions)) = paragraphs.last_mut()
            && !record.answers.is_empty()
        {
            questions.push(record.clone());
        }
    }
    fastrand::Rng::with_seed(seed).shuffle(&mut paragraphs);
    let draw = |chosen: &[(String, Vec<Record>)]| {
        let mut questions = Vec::new();
        // The last paragraphs are still in the window.
        let asked = &chosen[..chosen.len() - 6];
        for round in 0..20 {
            for (i, (_, all)) in asked.iter().enumerate() {
                questions.extend(all.get(round).map(|q| (q.clone(), i)));
            }
        }
        questions.truncate(per_stream);
        Stream { paragraphs: chosen.iter().map(|p| p.0.clone()).collect(), questions }
    };
    // Each paragraph is in one stream of a seed.
    paragraphs.chunks_exact(PARAGRAPHS).take(n_streams).map(draw).collect()
}
