//! What the answers of a run say together.

use serde::Serialize;

use crate::Answer;
use crate::metrics::{Interval, mean_interval};

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
    /// Means of the metrics, from 0 to 100, with their 95 % intervals.
    pub metrics: Vec<Metric>,
    /// Per cent of the questions for which evidence was recalled, of those that recall.
    pub found: Option<f64>,
    /// Tokens seen besides the question, mean.
    pub seen: f64,
}

/// A mean over all questions.
#[derive(Clone, Debug, Serialize)]
pub struct Metric {
    /// Its name.
    pub name: String,
    /// From 0 to 100.
    pub mean: f64,
    /// 95 % of bootstrap samples lie in it.
    pub interval: [f64; 2],
    /// The mean difference from the first method of the run, question by question, and its interval;
    /// `None` for that method.
    pub difference: Option<(f64, [f64; 2])>,
}

/// Means, intervals and paired differences. Questions count as independent of each other, which those
/// about one paragraph are not quite: true intervals are somewhat wider.
#[must_use]
pub fn summarise(answers: &[Answer], seed: u64) -> Summary {
    let mut names: Vec<&str> = Vec::new();
    for answer in answers {
        if !names.contains(&&*answer.group) {
            names.push(&answer.group);
        }
    }
    let all: Vec<&Answer> = answers.iter().collect();
    let of = |name: &str| all.iter().copied().filter(|a| a.group == name).collect::<Vec<_>>();
    let groups = names.iter().map(|name| ((*name).to_owned(), methods(&of(name), seed)));
    let groups = if names.len() > 1 { groups.collect() } else { Vec::new() };
    Summary { methods: methods(&all, seed), groups }
}

fn methods(answers: &[&Answer], seed: u64) -> Vec<MethodSummary> {
    let mut labels: Vec<&str> = Vec::new();
    for answer in answers {
        if !labels.contains(&&*answer.method) {
            labels.push(&answer.method);
        }
    }
    let of =
        |label: &str| answers.iter().copied().filter(|a| a.method == label).collect::<Vec<_>>();
    let first = labels.first().map_or(Vec::new(), |label| of(label));
    let methods = labels.iter().enumerate().map(|(i, label)| {
        let base = if i == 0 { None } else { Some(&first[..]) };
        summarise_method(label, &of(label), base, seed)
    });
    methods.collect()
}

fn summarise_method(
    label: &str,
    answers: &[&Answer],
    base: Option<&[&Answer]>,
    seed: u64,
) -> MethodSummary {
    let n = answers.len();
    let names = answers.first().map_or(&[][..], |answer| &answer.scores);
    let metrics = names.iter().enumerate().map(|(i, (name, _))| {
        let scores: Vec<f64> = answers.iter().map(|answer| 100.0 * answer.scores[i].1).collect();
        let pairs = base.filter(|base| base.len() == n).map(|base| {
            let both = scores.iter().zip(base);
            both.map(|(score, base)| score - 100.0 * base.scores[i].1).collect::<Vec<f64>>()
        });
        Metric {
            name: name.clone(),
            mean: mean(&scores),
            interval: interval(&scores, seed),
            difference: pairs.map(|pairs| (mean(&pairs), interval(&pairs, seed))),
        }
    });
    let found: Vec<f64> =
        answers.iter().filter_map(|a| a.found).map(|found| 100.0 * f64::from(found)).collect();
    let seen: Vec<f64> = answers.iter().map(|answer| answer.seen as f64).collect();
    MethodSummary {
        method: label.to_owned(),
        n,
        metrics: metrics.collect(),
        found: (!found.is_empty()).then(|| mean(&found)),
        seen: mean(&seen),
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn interval(values: &[f64], seed: u64) -> [f64; 2] {
    mean_interval(values, seed).map_or([0.0, 0.0], |Interval { low, high }| [low, high])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(question: usize, method: &str, f1: f64, found: Option<bool>) -> Answer {
        Answer {
            seed: 1,
            stream: 0,
            question: question.to_string(),
            method: method.to_owned(),
            group: ["near", "far"][question % 2].to_owned(),
            prompt: String::new(),
            references: Vec::new(),
            answer: String::new(),
            distance: 0,
            recalled: Vec::new(),
            found,
            seen: 10 * question,
            scores: vec![("f1".to_owned(), f1)],
        }
    }

    #[test]
    fn methods_are_compared_question_by_question() {
        let mut answers = Vec::new();
        for (i, (ceiling, ours)) in
            [(1.0, 1.0), (0.5, 0.0), (1.0, 0.5), (0.0, 0.0)].into_iter().enumerate()
        {
            answers.push(answer(i, "evidence", ceiling, None));
            answers.push(answer(i, "remember", ours, Some(i < 3)));
        }
        let summary = summarise(&answers, 1);
        let [evidence, remember] = &summary.methods[..] else { panic!("two methods") };
        assert_eq!((evidence.n, evidence.found, evidence.seen), (4, None, 15.0));
        assert_eq!((evidence.metrics[0].mean, remember.metrics[0].mean), (62.5, 37.5));
        assert!(evidence.metrics[0].difference.is_none());
        let (mean, [low, high]) = remember.metrics[0].difference.unwrap();
        assert_eq!((mean, remember.found), (-25.0, Some(75.0)));
        // Every difference lies between these.
        assert!((-50.0..-25.0).contains(&low), "{low}");
        assert!((-24.9..=0.0).contains(&high), "{high}");
        let groups: Vec<_> =
            summary.groups.iter().map(|(name, all)| (&**name, all[1].metrics[0].mean)).collect();
        assert_eq!(groups, [("near", 75.0), ("far", 0.0)]);
    }
}
