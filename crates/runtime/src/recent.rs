//! The newest tokens of a stream, and what followed them where they stood before.
//!
//! Text repeats itself: an answer quotes what it was asked about, a name comes again whole. What followed
//! the newest tokens the last time is a guess at what follows now, and costs a search instead of a model.
//!
//! Source: Saxena, "Prompt Lookup Decoding", 2023; that longer matches deserve longer guesses is from
//! Oliaro et al., "SuffixDecoding", 2024, arXiv:2411.04975.

/// Tokens of a stream that are searched.
pub(crate) const SEARCHED_TOKENS: usize = 1 << 16;
/// What fewer tokens have in common is chance.
const MIN_MATCH: usize = 2;
/// Rows of a step that cost little more than fewer do: the kernels take so many at once.
const ROWS_AT_ONCE: usize = 4;
/// Longer matches are no better.
pub(crate) const MAX_MATCH: usize = 16;

/// The end of a stream.
#[derive(Clone, Debug)]
pub(crate) struct Recent(Vec<u32>);

impl Recent {
    /// A stream that ends so, with room for all that it will keep.
    pub(crate) fn new(tokens: &[u32]) -> Self {
        let mut recent = Self(Vec::with_capacity(2 * SEARCHED_TOKENS));
        recent.push(tokens, SEARCHED_TOKENS);
        recent
    }

    /// Appends tokens; the newest `n_kept` stay, perhaps with older ones.
    pub(crate) fn push(&mut self, tokens: &[u32], n_kept: usize) {
        // Now and then, so that a token costs the same however many are kept.
        let n_all = self.0.len() + tokens.len();
        if n_all > 2 * n_kept {
            self.0.drain(..(n_all - n_kept).min(self.0.len()));
        }
        self.0.extend_from_slice(tokens);
    }

    /// Forgets all but the newest `n` tokens.
    pub(crate) fn forget_before(&mut self, n: usize) {
        self.0.drain(..self.0.len().saturating_sub(n));
    }

    /// The newest `n` tokens, or all that there are.
    pub(crate) fn newest(&self, n: usize) -> &[u32] {
        &self.0[self.0.len().saturating_sub(n)..]
    }
}

/// A guess at what follows `stream` and then `token`: what followed the longest of their ends that stands
/// in one of `texts`, about as many tokens as match, and at most `limit`. Of equally long matches that
/// of the first text counts, and the last in it, unless it is so near its end that less can follow.
pub(crate) fn look_up<'t>(
    stream: &[u32],
    token: u32,
    texts: impl IntoIterator<Item = &'t [u32]>,
    limit: usize,
) -> &'t [u32] {
    let (mut best, mut n_matching): (&[u32], usize) = (&[], MIN_MATCH);
    for text in texts {
        for at in positions(text, token) {
            let before = text[..at].iter().rev().zip(stream.iter().rev());
            let n = 1 + before.take(MAX_MATCH - 1).take_while(|(a, b)| a == b).count();
            let follows = &text[at + 1..];
            let n_most = n_guessed(n).min(limit);
            let follows = &follows[..follows.len().min(n_most)];
            if !follows.is_empty() && (n, follows.len()) > (n_matching, best.len()) {
                (best, n_matching) = (follows, n);
                if n == MAX_MATCH && best.len() == n_most {
                    return best;
                }
            }
        }
    }
    best
}

/// The most that is ever guessed.
pub(crate) const MAX_GUESSED: usize = n_guessed(MAX_MATCH);

/// How many tokens are guessed by a match of `n`: they are computed with one more.
const fn n_guessed(n: usize) -> usize {
    (n + 1).next_multiple_of(ROWS_AT_ONCE) - 1
}

/// Where `token` stands in `text`, from the end.
fn positions(text: &[u32], token: u32) -> impl Iterator<Item = usize> {
    const BLOCK: usize = 256;
    let blocks = text.chunks(BLOCK).enumerate().rev();
    // Most blocks are passed without a look at each token.
    let blocks = blocks.filter(move |(_, block)| block.contains(&token));
    blocks.flat_map(move |(i, block)| {
        let at = block.iter().enumerate().rev().filter(move |&(_, &t)| t == token);
        at.map(move |(j, _)| i * BLOCK + j)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same, of all places at once.
    fn slow(stream: &[u32], token: u32, texts: &[&[u32]], limit: usize) -> Vec<u32> {
        let mut end = stream.to_vec();
        end.push(token);
        let mut guesses: Vec<(usize, Vec<u32>)> = Vec::new();
        for text in texts {
            for at in (0..text.len()).rev() {
                let is_match = |&n: &usize| n <= at + 1 && end.ends_with(&text[at + 1 - n..=at]);
                let n = (1..=MAX_MATCH.min(end.len())).take_while(is_match).count();
                let n_taken = n_guessed(n).min(limit);
                guesses.push((n, text[at + 1..].iter().take(n_taken).copied().collect()));
            }
        }
        guesses.retain(|(n, follows)| *n >= MIN_MATCH && !follows.is_empty());
        let key = |guess: &(usize, Vec<u32>)| (guess.0, guess.1.len());
        let best = guesses.iter().map(key).max();
        guesses.into_iter().find(|guess| Some(key(guess)) == best).unwrap_or_default().1
    }

    #[test]
    fn the_longest_match_is_found() {
        let mut rng = fastrand::Rng::with_seed(3);
        let mut n_found = 0;
        for round in 0..2000 {
            let n_kinds = [2, 4, 30][round % 3];
            let mut text = |most: usize| -> Vec<u32> {
                (0..rng.usize(..=most)).map(|_| rng.u32(..n_kinds)).collect()
            };
            let (stream, first) = (text(700), text(40));
            let (token, limit) = (rng.u32(..n_kinds), rng.usize(..20));
            let texts = [&first[..], &stream[..]];
            let found = look_up(&stream, token, texts, limit);
            assert_eq!(found, slow(&stream, token, &texts, limit), "{stream:?} {token} {first:?}");
            n_found += usize::from(!found.is_empty());
        }
        assert!(n_found > 1000, "{n_found}");
    }

    #[test]
    fn what_followed_is_guessed() {
        let stream = [1, 2, 3, 4, 5, 6, 7, 9, 3, 8, 1, 2];
        let guess = |token, limit| look_up(&stream, token, [&stream[..]], limit);
        assert_eq!(guess(3, 9), [4, 5, 6]);
        assert_eq!(
            look_up(&[0, 1, 2], 3, [&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7][..]], 9),
            [4, 5, 6, 7, 8, 9, 8]
        );
        assert_eq!(guess(3, 1), [4]);
        assert_eq!(guess(4, 9), [0u32; 0], "one token in common is chance");
        // The first text has what is as long.
        assert_eq!(look_up(&stream, 3, [&[2, 3, 11, 12][..], &[2, 3, 7, 7]], 9), [11, 12]);
        assert_eq!(look_up(&[], 3, [], 9), [0u32; 0]);
        // In a loop as much as may follow.
        assert_eq!(look_up(&[5; 40], 5, [&[5; 40][..]], 16), [5; 16]);
    }

    #[test]
    fn the_newest_tokens_are_kept() {
        let mut recent = Recent::new(&[0, 1]);
        for i in 2..1000 {
            recent.push(&[i], 10);
            let expected: Vec<u32> = ((i + 1).saturating_sub(10)..=i).collect();
            assert_eq!(recent.newest(10), expected);
            assert!(recent.0.len() <= 20);
        }
        assert_eq!(recent.newest(0), [0u32; 0]);
        let many: Vec<u32> = (0..50).collect();
        recent.push(&many, 10);
        assert_eq!((recent.newest(50), recent.0.len()), (&many[..], 50));
        recent.forget_before(3);
        assert_eq!(recent.newest(50), [47, 48, 49]);
        recent.forget_before(9);
        assert_eq!(recent.newest(50), [47, 48, 49]);
    }
}
