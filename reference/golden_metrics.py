"""Scores of random pairs of texts by the public scorers.

usage: golden_metrics.py OUT.json

ROUGE by rouge-score with stemming, BLEU by sacrebleu. Exact match and F1 follow the definitions that
SQuAD v2.0, TriviaQA and LoCoMo publish with their data, and so does the score of SQuAD v2.0 with the best threshold
for silence; they are a dozen lines each, and written out here.
"""

import random
import re
import string
import sys
from collections import Counter

import sacrebleu
from nltk.stem.porter import PorterStemmer
from rouge_score import rouge_scorer

from common import versions, write_json

N_PAIRS = 1000
N_STEMS = 2000
N_SILENCES = 200
SEED = 20

WORDS = """the a an The A AN and of to in is was he she it they runner running ran runs flies fly skies sky dying
lies tied ties news innings proceed relational conditional rationally hopefulness generalization oscillators
feudalism callousness formality sensibility triplicate electrical revival allowance inference airliner
gyroscopic adjustable replacement adjustment dependent adoption communism activate angularity effective
bowdlerize probate rate cease controlling rolling filing failing sized hopping agreed feed plastered bled
motoring sing conflated troubled falling hissing happy cry by say enjoyed day spied fully carefully biology
geology analogies usefully Berlin Paris 1,000 1000 3.14 -5 1990s 10-12 $20 50% U.S. e.g. Mr. don't it's it’s
naïve café Žižek 北京 東京 Москва Ελλάδα ελλάς straße İstanbul 'quoted' "double" ‘single’ ´acute` (round) [square]
well-known mother-in-law under_score C++ a.b ... -- — – ! ? ; : & &amp; &lt;b&gt; <skipped> 🙂 x y yes you
the-end an-a AnA theatre another ana""".split()
SPECIAL = ["", " ", ".", "...", "the", "The a an", "\n", "’", "a.", "-\n", "word", "word\nword", "!!!\n???"]


def text(rng):
    if rng.random() < 0.06:
        return rng.choice(SPECIAL)
    words = [rng.choice(WORDS) for _ in range(rng.randint(1, 14))]
    return "".join(w + rng.choice([" ", " ", " ", " ", " ", " ", "  ", "\n", ", ", ". "]) for w in words).strip()


def like(rng, other):
    """A text that shares words and runs of words with another one."""
    words = other.split(" ")
    start = rng.randrange(len(words))
    kept = words[start : start + rng.randint(1, len(words))]
    if rng.random() < 0.5:
        kept.insert(rng.randrange(len(kept) + 1), rng.choice(WORDS))
    if rng.random() < 0.3:
        rng.shuffle(kept)
    if rng.random() < 0.3:
        kept = [word.swapcase() for word in kept]
    return " ".join(kept)


def made_up(rng):
    """Words that end as English words do, often in several endings."""
    starts = ["b", "cr", "d", "fl", "h", "m", "pl", "s", "st", "t", "tr", "w", "y", ""]
    vowels = ["a", "e", "i", "o", "u", "y", "ee", "oi"]
    ends = ["b", "ck", "d", "l", "ll", "n", "p", "ss", "t", "x", "z", "w", "v", "g", ""]
    suffixes = """s es ies ied ed ing eed ly y e al ance ence er ic able ible ant ement ment ent ion sion tion ou ism
    ate iti ous ive ize ational tional enci anci izer bli alli entli eli ousli ization ation ator alism iveness fulness
    ousness aliti iviti biliti fulli logi icate ative alize iciti ical ful ness ss sses""".split()
    for _ in range(N_STEMS):
        word = "".join(rng.choice(starts) + rng.choice(vowels) + rng.choice(ends) for _ in range(rng.randint(1, 3)))
        yield word + "".join(rng.choice(suffixes) for _ in range(rng.randint(0, 2)))


def squad_words(text):
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def trivia_words(text):
    marks = set(string.punctuation + "‘’´`")
    text = text.replace("_", " ").lower()
    text = "".join(" " if c in marks else c for c in text)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def locomo_words(text):
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the|and)\b", " ", text).split()


def locomo(answer, gold):
    """Exact match of sets of words, F1 of stems, and F1 of parts between commas."""
    stemmer = PorterStemmer()

    def of(a, g):
        return f1([stemmer.stem(w) for w in locomo_words(a)], [stemmer.stem(w) for w in locomo_words(g)], False)

    parts = [max(of(a, g) for a in answer.split(",")) for g in gold.split(",")]
    exact = float(set(locomo_words(answer)) == set(locomo_words(gold)))
    return [exact, round(of(answer, gold), 6), round(sum(parts) / len(parts), 6)]


def best_with_silence(answers):
    """Each is (score, has an answer, says something, doubt): the best mean if all beyond some doubt are withheld."""
    return max(
        sum(
            score if has_answer and doubt <= limit
            else float(not has_answer and (doubt > limit or not says))
            for score, has_answer, says, doubt in answers
        )
        / len(answers)
        for limit in [-1.0] + [doubt for _, _, _, doubt in answers]
    )


def silence(rng):
    answers = []
    for _ in range(rng.randint(1, 12)):
        has_answer = rng.random() < 0.6
        score = rng.choice([0.0, 1.0, round(rng.random(), 3)]) if has_answer else 0.0
        answers.append([score, has_answer, rng.random() < 0.9, round(rng.random(), 6)])
    return {"answers": answers, "best": best_with_silence(answers)}


def f1(answer, gold, if_one_is_empty):
    if if_one_is_empty and (not answer or not gold):
        return float(answer == gold)
    common = sum((Counter(answer) & Counter(gold)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(answer), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def main():
    rng = random.Random(SEED)
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    pairs, systems, references = [], [], []
    for _ in range(N_PAIRS):
        gold = text(rng)
        answer = like(rng, gold) if rng.random() < 0.75 else text(rng)
        if rng.random() < 0.05:
            answer = gold
        s, t = (squad_words(answer), squad_words(gold)), (trivia_words(answer), trivia_words(gold))
        rouge = scorer.score(gold, answer)
        pairs.append(
            {
                "answer": answer,
                "gold": gold,
                "squad": [float(s[0] == s[1]), round(f1(*s, True), 6)],
                "locomo": locomo(answer, gold),
                "triviaqa": [float(t[0] == t[1]), round(f1(*t, False), 6)],
                "rouge": [[round(x, 6) for x in rouge[k]] for k in ("rouge1", "rouge2", "rougeL", "rougeLsum")],
                "bleu": round(sacrebleu.corpus_bleu([answer], [[gold]]).score, 6),
            }
        )
        systems.append(answer)
        references.append(gold)
    stemmer = PorterStemmer()
    vocabulary = sorted({word for word in WORDS if word.islower() and word.isascii()} | set(made_up(rng)))
    content = {
        "script": "reference/golden_metrics.py",
        "versions": versions("rouge-score", "sacrebleu", "nltk"),
        "seed": SEED,
        "tolerance": 1e-6,
        "bleu_of_all": round(sacrebleu.corpus_bleu(systems, [references]).score, 6),
        "stems": {word: stemmer.stem(word) for word in vocabulary},
        "silence": [silence(rng) for _ in range(N_SILENCES)],
        "pairs": pairs,
    }
    write_json(sys.argv[1], content)


main()
