//! Cuts text into words, inside which byte pairs are merged.
//!
//! Each vocabulary was trained with one way of cutting, given as a regular expression with a
//! look-ahead: `\s+(?!\S)|\s+`, "white space up to, but without, the last one before a word". A
//! linear-time engine has no look-ahead, so the patterns here end in `\s+` and the last character
//! is given back by hand. That is exact: the class of white space at the end of both patterns is
//! reached only where nothing else matches.

use regex::Regex;

/// GPT-2's pattern. Source: openai/gpt-2, `src/encoder.py`.
const GPT2: &str = r"\A(?:'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+)";

/// Qwen 2's pattern, from its `tokenizer.json`.
const QWEN2: &str = r"\A(?:(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+)";

/// Llama 3's: Qwen's, with up to three digits in a word.
const LLAMA3: &str = r"\A(?:(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+)";

/// GPT-4o's, from openai/tiktoken, `tiktoken_ext/openai_public.py`, `o200k_base`: words are cut where
/// capitals follow small letters.
const GPT4O: &str = r"\A(?:[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+)";

/// Mistral's Tekken: the same without contractions, and every digit for itself.
const TEKKEN: &str = r"\A(?:[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+)";

/// A pre-tokenizer, as `tokenizer.ggml.pre` names it.
#[derive(Debug)]
pub(super) struct Splitter {
    word: Regex,
    /// Every digit is a word of its own, and the text between digits is cut as if it stood alone.
    digits_first: bool,
    /// What ends in a line break was matched by an alternative before `\s+`.
    breaks_first: bool,
    keeps_tokens: bool,
}

impl Splitter {
    /// The names that [`new`](Self::new) accepts.
    pub(super) const NAMES: &'static [&'static str] = &[
        "smollm",
        "refact",
        "gpt-2",
        "qwen2",
        "llama-bpe",
        "dbrx",
        "smaug-bpe",
        "gpt-4o",
        "tekken",
    ];

    /// # Panics
    ///
    /// If the name is not one of [`NAMES`](Self::NAMES).
    pub(super) fn new(name: &str) -> Self {
        let pattern = match name {
            "smollm" | "refact" | "gpt-2" => GPT2,
            "qwen2" => QWEN2,
            "llama-bpe" | "dbrx" | "smaug-bpe" => LLAMA3,
            "gpt-4o" => GPT4O,
            "tekken" => TEKKEN,
            other => unreachable!("the caller has checked the name, yet it is {other:?}"),
        };
        Self {
            word: Regex::new(pattern).expect("the pattern is a constant"),
            digits_first: matches!(name, "smollm" | "refact"),
            breaks_first: pattern != GPT2,
            keeps_tokens: matches!(name, "llama-bpe" | "tekken"),
        }
    }

    /// Whether a word that is a token is not merged.
    pub(super) fn keeps_tokens(&self) -> bool {
        self.keeps_tokens
    }

    /// Calls `visit` with the words of `text`, which together are `text`.
    pub(super) fn for_each_word<'t>(&self, text: &'t str, mut visit: impl FnMut(&'t str)) {
        let mut rest = text;
        // `char::is_numeric` is Unicode's N: decimal digits, letter numbers and others.
        let digit = |rest: &str| rest.char_indices().find(|(_, c)| c.is_numeric());
        while let Some((at, digit)) = digit(rest).filter(|_| self.digits_first) {
            let end = at + digit.len_utf8();
            self.cut(&rest[..at], &mut visit);
            visit(&rest[at..end]);
            rest = &rest[end..];
        }
        self.cut(rest, visit);
    }

    fn cut<'t>(&self, text: &'t str, mut visit: impl FnMut(&'t str)) {
        let mut rest = text;
        while !rest.is_empty() {
            // Both patterns match every character; should one not, the rest is one word.
            let matched = self.word.find(rest).map_or(rest.len(), |found| found.end());
            let (word, behind) = rest.split_at(self.give_back_space(rest, matched));
            visit(word);
            rest = behind;
        }
    }

    /// Shortens a match of `\s+` by its last character, if it has several and a word follows.
    fn give_back_space(&self, rest: &str, matched: usize) -> usize {
        match rest[..matched].char_indices().next_back() {
            Some((at, last)) if at > 0 && matched < rest.len() && self.ends_space(last) => at,
            _ => matched,
        }
    }

    /// Whether a match that ends in `last` is one of `\s+`.
    fn ends_space(&self, last: char) -> bool {
        let by_earlier = self.breaks_first && matches!(last, '\r' | '\n');
        last.is_whitespace() && !by_earlier
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, text: &str, expected: &[&str]) {
        let mut words = Vec::new();
        Splitter::new(name).for_each_word(text, |word| words.push(word));
        assert_eq!(words, expected, "{name}: {text:?}");
    }

    #[test]
    fn a_space_belongs_to_the_word_behind_it() {
        for name in Splitter::NAMES {
            check(name, "a b", &["a", " b"]);
            check(name, "a   b", &["a", "  ", " b"]);
            check(name, "a  ", &["a", "  "]);
            let dont: &[&str] = if *name == "gpt-4o" { &["don't"] } else { &["don", "'t"] };
            check(name, "don't", dont);
            check(name, "", &[]);
        }
    }

    #[test]
    fn line_breaks_are_cut_as_each_model_was_trained() {
        check("smollm", "a\n\nb", &["a", "\n", "\n", "b"]);
        check("qwen2", "a\n\nb", &["a", "\n\n", "b"]);
        check("smollm", "a.\n b", &["a", ".", "\n", " b"]);
        check("qwen2", "a.\n b", &["a", ".\n", " b"]);
        check("qwen2", "a \r\n  b", &["a", " \r\n", " ", " b"]);
    }

    #[test]
    fn digits_stand_alone() {
        check("smollm", "in 2024", &["in", " ", "2", "0", "2", "4"]);
        check("qwen2", "in 2024", &["in", " ", "2", "0", "2", "4"]);
        check("smollm", "a  1 b", &["a", "  ", "1", " b"]);
        check("qwen2", "a  1 b", &["a", " ", " ", "1", " b"]);
        check("smollm", "x² Ⅷ", &["x", "²", " ", "Ⅷ"]);
        check("gpt-2", "in 2024", &["in", " 2024"]);
        check("llama-bpe", "in 2024", &["in", " ", "202", "4"]);
    }

    #[test]
    fn capitals_begin_words_only_for_the_younger() {
        check("qwen2", "someXMLFile's", &["someXMLFile", "'s"]);
        check("gpt-4o", "someXMLFile's", &["some", "XMLFile's"]);
        check("tekken", "someXMLFile's", &["some", "XMLFile", "'s"]);
        check("gpt-4o", "a//\n/b", &["a", "//\n/", "b"]);
    }

    #[test]
    fn contractions_ignore_case_only_for_qwen() {
        check("smollm", "IT'S", &["IT", "'", "S"]);
        check("qwen2", "IT'S", &["IT", "'S"]);
    }
}
