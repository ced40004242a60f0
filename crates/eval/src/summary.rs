//! What the answers of a run say together.

use serde::Serialize;

use crate::metrics::{Bleu, Doubt, Statistic, best_with_silence, distinct_n};
use crate::task::Total;
use crate::{Answer, Task};

/// A run in numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// One for each method, in the order of the run.
    pub methods: Vec<MethodSummary>,
    /// The same for each [`Question::group`](crate::Question::group), if there are several.
    pub groups: Vec<(String, Vec<MethodSummary>)>,
}

/// What a method reached.
#[derive(Clone, Debug, Serialize)]
pub struct MethodSummary {
    /// [`Method::label`](crate::Method::label).
    pub method: String,
    /// Questions.
    pub n: usize,
    /// In the order of the task: means of scores, then what is said of all answers together.
    pub metrics: Vec<Metric>,
    /// Per cent of the documents with evidence of which something was recalled, mean over the questions;
    /// `None` if nothing is recalled.
    pub found: Option<f64>,
    /// Tokens seen besides the question, mean.
    pub seen: f64,
}

/// A number that all questions give together.
#[derive(Clone, Debug, Serialize)]
pub struct Metric {
    /// Its name.
    pub name: String,
    /// A perplexity, or from 0 to 100.
    pub value: f64,
    /// 95 % of bootstrap samples lie in it; `None` where samples say nothing, as of distinct words.
    pub interval: Option<[f64; 2]>,
    /// The difference from the first method of the run on the same questions, and its interval; `None` for
    /// that method, and without intervals.
    pub difference: Option<(f64, [f64; 2])>,
}

/// Means, intervals and paired differences. For intervals, questions about one document count as one.
#[must_use]
pub fn summarise(answers: &[Answer], task: &dyn Task, seed: u64) -> Summary {
    let mut names: Vec<&str> = Vec::new();
    for answer in answers {
        if !names.contains(&&*answer.group) {
            names.push(&answer.group);
        }
    }
    // Distances in their order, not in that in which they were drawn.
    if names.iter().all(|name| name.parse::<u64>().is_ok()) {
        names.sort_by_key(|name| name.parse::<u64>().unwrap_or(0));
    }
    let all: Vec<&Answer> = answers.iter().collect();
    let of = |name: &str| all.iter().copied().filter(|a| a.group == name).collect::<Vec<_>>();
    let groups = names.iter().map(|name| ((*name).to_owned(), methods(&of(name), task, seed)));
    let groups = if names.len() > 1 { groups.collect() } else { Vec::new() };
    Summary { methods: methods(&all, task, seed), groups }
}

fn methods(answers: &[&Answer], task: &dyn Task, seed: u64) -> Vec<MethodSummary> {
    let mut labels: Vec<&str> = Vec::new();
    for answer in answers {
        if !labels.contains(&&*answer.method) {
            labels.push(&answer.method);
        }
    }
    let of =
        |label: &str| answers.iter().copied().filter(|a| a.method == label).collect::<Vec<_>>();
    let base: Vec<Measure> =
        labels.first().map_or_else(Vec::new, |label| measures(&of(label), task));
    let methods = labels.iter().enumerate().map(|(i, label)| {
        let answers = of(label);
        let measures = measures(&answers, task).into_iter().enumerate();
        let metrics = measures.map(|(m, measure)| {
            let base = if i == 0 { None } else { base.get(m) };
            measure.metric(base, seed)
        });
        let found: Vec<f64> = answers.iter().filter_map(|a| a.found.map(|f| 100.0 * f)).collect();
        MethodSummary {
            method: (*label).to_owned(),
            n: answers.len(),
            metrics: metrics.collect(),
            found: Statistic::mean(found).value(),
            seen: Statistic::mean(answers.iter().map(|a| a.seen as f64)).value().unwrap_or(0.0),
        }
    });
    methods.collect()
}

/// A metric of some answers, before samples are drawn.
struct Measure {
    name: String,
    number: Number,
}

enum Number {
    Sums(Statistic),
    Whole(f64),
}

impl Measure {
    fn metric(self, base: Option<&Self>, seed: u64) -> Metric {
        let statistic = match self.number {
            Number::Whole(value) => {
                return Metric { name: self.name, value, interval: None, difference: None };
            }
            Number::Sums(statistic) => statistic,
        };
        let value = statistic.value().unwrap_or(0.0);
        let pair = |interval: crate::metrics::Interval| [interval.low, interval.high];
        let base = base.and_then(|base| match &base.number {
            Number::Sums(base) => Some(base),
            Number::Whole(_) => None,
        });
        let difference = base.and_then(|base| {
            let interval = statistic.interval(Some(base), seed)?;
            Some((value - base.value()?, pair(interval)))
        });
        Metric {
            name: self.name,
            value,
            interval: statistic.interval(None, seed).map(pair),
            difference,
        }
    }
}

fn measures(answers: &[&Answer], task: &dyn Task) -> Vec<Measure> {
    let names = answers.first().map_or(&[][..], |answer| &answer.scores);
    let mut measures: Vec<Measure> = names
        .iter()
        .enumerate()
        .map(|(i, (name, _))| {
            let scores = answers.iter().map(|answer| 100.0 * answer.scores[i].1);
            Measure { name: name.clone(), number: Number::Sums(Statistic::mean(scores)) }
        })
        .collect();
    for &total in task.totals() {
        measures.extend(total_measures(total, answers));
    }
    for measure in &mut measures {
        if let Number::Sums(statistic) = &mut measure.number
            && statistic.parts.len() == answers.len()
        {
            let keys = answers.iter().map(|answer| cluster(answer));
            *statistic = statistic.clustered(keys);
        }
    }
    measures
}

/// What answers share that are not independent: the document that they are about, or nothing.
fn cluster(answer: &Answer) -> (&str, Option<(u64, usize, &str)>) {
    let own = || (answer.seed, answer.stream, &*answer.question);
    (&answer.about, answer.about.is_empty().then(own))
}

fn total_measures(total: Total, answers: &[&Answer]) -> Vec<Measure> {
    let one = |name: &str, number: Number| vec![Measure { name: name.to_owned(), number }];
    match total {
        Total::Perplexity => {
            let parts = answers.iter().filter_map(|answer| answer.loss);
            let parts = parts.map(|(tokens, nats)| vec![nats, tokens as f64]).collect();
            let value: fn(&[f64]) -> f64 = |sums| (sums[0] / sums[1]).exp();
            one("perplexity", Number::Sums(Statistic { parts, value }))
        }
        Total::Bleu => {
            let counts = |answer: &&Answer| {
                let mut bleu = Bleu::default();
                bleu.add(&answer.answer, answer.references.first().map_or("", String::as_str));
                bleu.counts()
            };
            let parts = answers.iter().map(counts).collect();
            one("bleu", Number::Sums(Statistic { parts, value: Bleu::score_of }))
        }
        Total::Distinct(n) => {
            let texts = answers.iter().map(|answer| &*answer.answer);
            one(&format!("distinct-{n}"), Number::Whole(100.0 * distinct_n(texts, n)))
        }
        Total::NoAnswer => no_answer(answers),
    }
}

/// Says something only where some questions have no answer.
fn no_answer(answers: &[&Answer]) -> Vec<Measure> {
    let has_answer = |answer: &&Answer| !answer.references.is_empty();
    let n_with = answers.iter().filter(|answer| has_answer(answer)).count();
    if n_with == 0 || n_with == answers.len() {
        return Vec::new();
    }
    let names = answers.first().map_or(&[][..], |answer| &answer.scores);
    let best = |(i, (name, _)): (usize, &(String, f64))| {
        let doubts = answers.iter().map(|answer| Doubt {
            score: answer.scores[i].1,
            has_answer: has_answer(answer),
            says_something: !answer.answer.trim().is_empty(),
            doubt: answer.doubt.unwrap_or(0.0),
        });
        let value = 100.0 * best_with_silence(&doubts.collect::<Vec<_>>());
        Measure { name: format!("best {name}"), number: Number::Whole(value) }
    };
    names.iter().enumerate().map(best).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(question: usize, method: &str, f1: f64, found: Option<f64>) -> Answer {
        Answer {
            seed: 1,
            stream: 0,
            question: question.to_string(),
            method: method.to_owned(),
            group: ["near", "far"][question % 2].to_owned(),
            prompt: String::new(),
            references: Vec::new(),
            answer: String::new(),
            about: String::new(),
            distance: 0,
            recalled: Vec::new(),
            found,
            seen: 10 * question,
            scores: vec![("f1".to_owned(), f1)],
            loss: Some((10 + question, 20.0 + 4.0 * f1)),
            doubt: Some(1.0 - f1),
        }
    }

    #[test]
    fn methods_are_compared_question_by_question() {
        let mut answers = Vec::new();
        for (i, (ceiling, ours)) in
            [(1.0, 1.0), (0.5, 0.0), (1.0, 0.5), (0.0, 0.0)].into_iter().enumerate()
        {
            answers.push(answer(i, "evidence", ceiling, None));
            answers.push(answer(i, "remember", ours, Some(f64::from(i < 3))));
        }
        let summary = summarise(&answers, &*crate::task::by_name("squad").unwrap(), 1);
        let [evidence, remember] = &summary.methods[..] else { panic!("two methods") };
        assert_eq!((evidence.n, evidence.found, evidence.seen), (4, None, 15.0));
        assert_eq!((evidence.metrics[0].value, remember.metrics[0].value), (62.5, 37.5));
        assert!(evidence.metrics[0].difference.is_none());
        let (mean, [low, high]) = remember.metrics[0].difference.unwrap();
        assert_eq!((mean, remember.found), (-25.0, Some(75.0)));
        // Every difference lies between these.
        assert!((-50.0..-25.0).contains(&low), "{low}");
        assert!((-24.9..=0.0).contains(&high), "{high}");
        let groups: Vec<_> =
            summary.groups.iter().map(|(name, all)| (&**name, all[1].metrics[0].value)).collect();
        assert_eq!(groups, [("near", 75.0), ("far", 0.0)]);
    }

    #[test]
    fn totals_are_of_sums_and_not_of_means() {
        let texts = ["the cat sat on a mat", "a dog"];
        let answers: Vec<Answer> = (0..2)
            .map(|i| Answer {
                answer: texts[i].to_owned(),
                references: vec!["the cat sat on the mat".to_owned()],
                scores: Vec::new(),
                loss: Some(([10, 30][i], [20.0, 30.0][i])),
                ..answer(i, "sink", 0.0, None)
            })
            .collect();
        let summary = summarise(&answers, &*crate::task::by_name("fandom").unwrap(), 1);
        let metric = |name: &str| {
            let metric = summary.methods[0].metrics.iter().find(|metric| metric.name == name);
            metric.unwrap().clone()
        };
        assert!((metric("perplexity").value - 1.25_f64.exp()).abs() < 1e-12);
        let mut bleu = Bleu::default();
        texts.iter().for_each(|text| bleu.add(text, "the cat sat on the mat"));
        assert_eq!(metric("bleu").value, bleu.score());
        assert!(metric("bleu").interval.is_some());
        assert_eq!(metric("distinct-1").value, 100.0 * 7.0 / 8.0);
        assert_eq!(metric("distinct-1").interval, None);
    }

    #[test]
    fn silence_is_scored_where_some_questions_have_no_answer() {
        let task = crate::task::by_name("squad").unwrap();
        let mut answers: Vec<Answer> = [1.0, 0.2, 0.9]
            .iter()
            .enumerate()
            .map(|(i, &f1)| answer(i, "sink", f1, None))
            .collect();
        answers.iter_mut().for_each(|answer| answer.answer = "something".to_owned());
        answers[0].references.push("something".to_owned());
        answers[2].references.push("something".to_owned());
        answers[1].scores[0].1 = 0.0;
        let summary = summarise(&answers, &*task, 1);
        let names: Vec<&str> = summary.methods[0].metrics.iter().map(|m| &*m.name).collect();
        assert_eq!(names, ["f1", "best f1"]);
        assert!((summary.methods[0].metrics[1].value - 100.0 * 2.9 / 3.0).abs() < 1e-9);
        // Where all have one, nothing is said.
        answers[1].references.push("nothing".to_owned());
        assert_eq!(summarise(&answers, &*task, 1).methods[0].metrics.len(), 1);
    }
}
