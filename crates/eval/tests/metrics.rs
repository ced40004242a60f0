//! The scorers agree with the public ones.

use std::collections::BTreeMap;

use everstream_eval::metrics::{
    Bleu, Doubt, Normalisation, best_with_silence, exact_match, f1, f1_of_lists, rouge, stem,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    tolerance: f64,
    bleu_of_all: f64,
    stems: BTreeMap<String, String>,
    silence: Vec<Silence>,
    pairs: Vec<Pair>,
}

#[derive(Deserialize)]
struct Silence {
    /// Score, whether there is an answer, whether something is said, doubt.
    answers: Vec<(f64, bool, bool, f64)>,
    best: f64,
}

#[derive(Deserialize)]
struct Pair {
    answer: String,
    gold: String,
    squad: [f64; 2],
    triviaqa: [f64; 2],
    /// Exact match, F1, F1 of lists.
    locomo: [f64; 3],
    /// Precision, recall, F1 of ROUGE-1, -2, -L and -Lsum.
    rouge: [[f64; 3]; 4],
    bleu: f64,
}

#[test]
fn they_agree_with_the_public_scorers() {
    let golden: Golden = serde_json::from_str(include_str!("golden/metrics.json")).unwrap();
    for (word, expected) in &golden.stems {
        assert_eq!(stem(word), *expected, "{word}");
    }
    for Silence { answers, best } in &golden.silence {
        let doubts = answers.iter().map(|&(score, has_answer, says_something, doubt)| Doubt {
            score,
            has_answer,
            says_something,
            doubt,
        });
        let found = best_with_silence(&doubts.collect::<Vec<_>>());
        assert!((found - best).abs() <= golden.tolerance, "{answers:?}: {found}, not {best}");
    }
    let mut all = Bleu::default();
    for pair in &golden.pairs {
        let (answer, gold) = (&*pair.answer, &*pair.gold);
        let check = |found: f64, expected: f64, what: &str| {
            assert!(
                (found - expected).abs() <= golden.tolerance,
                "{what} of {answer:?}, {gold:?}: {found}, not {expected}"
            );
        };
        for (normalisation, [em, f]) in [
            (Normalisation::Squad, pair.squad),
            (Normalisation::TriviaQa, pair.triviaqa),
            (Normalisation::LoCoMo, [pair.locomo[0], pair.locomo[1]]),
        ] {
            check(exact_match(answer, gold, normalisation), em, "exact match");
            check(f1(answer, gold, normalisation), f, "F1");
        }
        check(f1_of_lists(answer, gold), pair.locomo[2], "F1 of lists");
        let scores = rouge(answer, gold);
        let found = [scores.rouge1, scores.rouge2, scores.rouge_l, scores.rouge_lsum];
        for (found, [precision, recall, f]) in found.into_iter().zip(pair.rouge) {
            check(found.precision, precision, "precision");
            check(found.recall, recall, "recall");
            check(found.f1(), f, "F1 of ROUGE");
        }
        let mut bleu = Bleu::default();
        bleu.add(answer, gold);
        check(bleu.score(), pair.bleu, "BLEU");
        all.add(answer, gold);
    }
    assert!((all.score() - golden.bleu_of_all).abs() <= golden.tolerance);
}
