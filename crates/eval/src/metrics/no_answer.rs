//! When it would have been better not to answer.

/// An answer with what speaks against giving it.
#[derive(Clone, Copy, Debug)]
pub struct Doubt {
    /// What the answer scores, if it is given.
    pub score: f64,
    /// Whether there is a right answer. Where there is none, only silence is right.
    pub has_answer: bool,
    /// Whether it says anything.
    pub says_something: bool,
    /// The larger, the sooner is the answer withheld.
    pub doubt: f64,
}

/// The best mean score, from 0 to 1, that withholding all answers above some doubt reaches: the threshold that
/// the evaluation script of SQuAD v2.0 looks for. It is chosen on the answers that it is applied to.
///
/// Source: Rajpurkar, Jia and Liang, "Know What You Don't Know: Unanswerable Questions for SQuAD", 2018,
/// arXiv:1806.03822; `find_best_thresh` of its evaluation script.
#[must_use]
pub fn best_with_silence(answers: &[Doubt]) -> f64 {
    let mut order: Vec<&Doubt> = answers.iter().collect();
    order.sort_by(|a, b| a.doubt.total_cmp(&b.doubt));
    // Nothing is answered at first; then one after the other, the least doubtful first.
    let mut sum = answers.iter().filter(|answer| !answer.has_answer).count() as f64;
    let mut best = sum;
    for answer in order {
        sum += match (answer.has_answer, answer.says_something) {
            (true, _) => answer.score,
            (false, true) => -1.0,
            (false, false) => 0.0,
        };
        best = best.max(sum);
    }
    best / answers.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubtful_answers_are_withheld() {
        let answer =
            |score, has_answer, doubt| Doubt { score, has_answer, says_something: true, doubt };
        // Right and sure, wrong where there is none and less sure, half right and least sure.
        let answers = [answer(0.5, true, 0.9), answer(1.0, true, 0.1), answer(0.0, false, 0.5)];
        assert_eq!(best_with_silence(&answers), 2.0 / 3.0);
        assert_eq!(best_with_silence(&[]), 0.0);
        // If nothing is sure, silence is worth what has no answer.
        assert_eq!(best_with_silence(&[answer(0.0, true, 0.2), answer(0.0, false, 0.1)]), 0.5);
    }
}
