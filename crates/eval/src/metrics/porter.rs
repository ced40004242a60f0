//! English words without their endings.

/// Words that the rules would get wrong.
const IRREGULAR: [(&str, &str); 16] = [
    ("sky", "sky"),
    ("skies", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
    ("succeed", "succeed"),
];

/// The stem of a word in lower case, by the algorithm of Porter with the extensions of NLTK, which
/// `rouge-score` uses. Words of one or two letters are their own stems.
///
/// Source: Porter, "An algorithm for suffix stripping", 1980, Program 14(3).
#[must_use]
pub fn stem(word: &str) -> String {
    if let Some((_, stem)) = IRREGULAR.iter().find(|(irregular, _)| *irregular == word) {
        return (*stem).to_owned();
    }
    if word.chars().count() <= 2 {
        return word.to_owned();
    }
    let steps = [step_1a, step_1b, step_1c, step_2, step_3, step_4, step_5a, step_5b];
    steps.iter().fold(word.to_owned(), |word, step| step(&word))
}

/// A suffix, what takes its place, and what the rest must be like.
type Rule = (&'static str, &'static str, fn(&str) -> bool);

/// The first rule whose suffix the word has decides.
fn apply(word: &str, rules: &[Rule]) -> String {
    for (suffix, replacement, fits) in rules {
        if let Some(rest) = word.strip_suffix(suffix) {
            return if fits(rest) { format!("{rest}{replacement}") } else { word.to_owned() };
        }
    }
    word.to_owned()
}

/// Whether each letter is a consonant: a `y` is one at the start and behind a vowel.
fn consonants(word: &str) -> Vec<bool> {
    let mut flags: Vec<bool> = Vec::new();
    for c in word.chars() {
        flags.push(match c {
            'a' | 'e' | 'i' | 'o' | 'u' => false,
            'y' => flags.last().is_none_or(|before| !before),
            _ => true,
        });
    }
    flags
}

/// How often a consonant follows a vowel.
fn measure(word: &str) -> usize {
    consonants(word).windows(2).filter(|pair| !pair[0] && pair[1]).count()
}

fn is_measured(word: &str) -> bool {
    measure(word) > 0
}

fn is_long(word: &str) -> bool {
    measure(word) > 1
}

fn has_vowel(word: &str) -> bool {
    consonants(word).contains(&false)
}

fn always(_: &str) -> bool {
    true
}

fn ends_in_double_consonant(word: &str) -> bool {
    let mut last = word.chars().rev();
    matches!((last.next(), last.next()), (Some(a), Some(b)) if a == b)
        && consonants(word).last() == Some(&true)
}

/// Consonant, vowel, consonant at the end, the last none of w, x, y; or a word of a vowel and a consonant.
fn ends_in_cvc(word: &str) -> bool {
    match consonants(word)[..] {
        [false, true] => true,
        [.., true, false, true] => !word.ends_with(['w', 'x', 'y']),
        _ => false,
    }
}

fn step_1a(word: &str) -> String {
    if word.chars().count() == 4
        && let Some(rest) = word.strip_suffix("ies")
    {
        return format!("{rest}ie");
    }
    apply(
        word,
        &[("sses", "ss", always), ("ies", "i", always), ("ss", "ss", always), ("s", "", always)],
    )
}

fn step_1b(word: &str) -> String {
    if let Some(rest) = word.strip_suffix("ied") {
        return if rest.chars().count() == 1 { format!("{rest}ie") } else { format!("{rest}i") };
    }
    if word.ends_with("eed") {
        return apply(word, &[("eed", "ee", is_measured)]);
    }
    let ending =
        ["ed", "ing"].iter().find_map(|suffix| word.strip_suffix(suffix).filter(|r| has_vowel(r)));
    let Some(rest) = ending else { return word.to_owned() };
    for (suffix, replacement) in [("at", "ate"), ("bl", "ble"), ("iz", "ize")] {
        if let Some(rest) = rest.strip_suffix(suffix) {
            return format!("{rest}{replacement}");
        }
    }
    if ends_in_double_consonant(rest) {
        let single = &rest[..rest.len() - 1];
        return if rest.ends_with(['l', 's', 'z']) { rest.to_owned() } else { single.to_owned() };
    }
    apply(rest, &[("", "e", |rest| measure(rest) == 1 && ends_in_cvc(rest))])
}

fn step_1c(word: &str) -> String {
    let fits = |rest: &str| rest.chars().count() > 1 && consonants(rest).last() == Some(&true);
    apply(word, &[("y", "i", fits)])
}

fn step_2(word: &str) -> String {
    if let Some(rest) = word.strip_suffix("alli").filter(|rest| is_measured(rest)) {
        return step_2(&format!("{rest}al"));
    }
    apply(
        word,
        &[
            ("ational", "ate", is_measured),
            ("tional", "tion", is_measured),
            ("enci", "ence", is_measured),
            ("anci", "ance", is_measured),
            ("izer", "ize", is_measured),
            ("bli", "ble", is_measured),
            ("alli", "al", is_measured),
            ("entli", "ent", is_measured),
            ("eli", "e", is_measured),
            ("ousli", "ous", is_measured),
            ("ization", "ize", is_measured),
            ("ation", "ate", is_measured),
            ("ator", "ate", is_measured),
            ("alism", "al", is_measured),
            ("iveness", "ive", is_measured),
            ("fulness", "ful", is_measured),
            ("ousness", "ous", is_measured),
            ("aliti", "al", is_measured),
            ("iviti", "ive", is_measured),
            ("biliti", "ble", is_measured),
            ("fulli", "ful", is_measured),
            // Without the last three letters, the `l` counts.
            ("logi", "log", |rest| is_measured(&format!("{rest}l"))),
        ],
    )
}

fn step_3(word: &str) -> String {
    apply(
        word,
        &[
            ("icate", "ic", is_measured),
            ("ative", "", is_measured),
            ("alize", "al", is_measured),
            ("iciti", "ic", is_measured),
            ("ical", "ic", is_measured),
            ("ful", "", is_measured),
            ("ness", "", is_measured),
        ],
    )
}

fn step_4(word: &str) -> String {
    apply(
        word,
        &[
            ("al", "", is_long),
            ("ance", "", is_long),
            ("ence", "", is_long),
            ("er", "", is_long),
            ("ic", "", is_long),
            ("able", "", is_long),
            ("ible", "", is_long),
            ("ant", "", is_long),
            ("ement", "", is_long),
            ("ment", "", is_long),
            ("ent", "", is_long),
            ("ion", "", |rest| is_long(rest) && rest.ends_with(['s', 't'])),
            ("ou", "", is_long),
            ("ism", "", is_long),
            ("ate", "", is_long),
            ("iti", "", is_long),
            ("ous", "", is_long),
            ("ive", "", is_long),
            ("ize", "", is_long),
        ],
    )
}

fn step_5a(word: &str) -> String {
    let fits = |rest: &str| is_long(rest) || (measure(rest) == 1 && !ends_in_cvc(rest));
    apply(word, &[("e", "", fits)])
}

fn step_5b(word: &str) -> String {
    apply(word, &[("ll", "l", |rest| is_long(&format!("{rest}l")))])
}
