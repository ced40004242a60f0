//! The scorers agree with the public ones.

use std::collections::BTreeMap;

use everstream_eval::metrics::{Bleu, Normalisation, exact_match, f1, rouge, stem};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    tolerance: f64,
    bleu_of_all: f64,
    stems: BTreeMap<String, String>,
    pairs: Vec<Pair>,
}

#[derive(Deserialize)]
struct Pair {
    answer: String,
    gold: String,
    squad: [f64; 2],
    triviaqa: [f64; 2],
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
    let mut all = Bleu::default();
    for pair in &golden.pairs {
        let (answer, gold) = (&*pair.answer, &*pair.gold);
        let check = |found: f64, expected: f64, what: &str| {
            assert!(
                (found - expected).abs() <= golden.tolerance,
                "{what} of {answer:?}, {gold:?}: {found}, not {expected}"
            );
        };
        for (normalisation, [em, f]) in
            [(Normalisation::Squad, pair.squad), (Normalisation::TriviaQa, pair.triviaqa)]
        {
            check(exact_match(answer, gold, normalisation), em, "exact match");
            check(f1(answer, gold, normalisation), f, "F1");
        }
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
