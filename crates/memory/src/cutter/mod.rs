//! Decides where blocks end.
//!
//! A block is what a query is compared with and what comes back into the cache, so it should say
//! one thing and say it whole. Three wishes pull against each other: end where the text ends
//! (paragraph before sentence before line), stay near the target length, and keep two paragraphs
//! apart. Each is a number of tokens here, and the cut with the smallest sum wins:
//!
//! `cost = |length - target| + penalty(place) + crossing(if a paragraph ended earlier in the block)`
//!
//! For a target of 64 the penalties are 0 for the end of a turn or paragraph, 12 and 24 for the
//! end of a sentence with and without a line break, 48 for a line break alone, and 32 for
//! crossing. What follows from them:
//! - A paragraph of 110 tokens becomes two blocks, cut at the sentence end near its middle; one of
//!   80 stays whole, although a sentence may end at 60.
//! - A paragraph of 30 tokens is a block of its own: a block of one fact is found more exactly,
//!   and every token recalled beside it would be noise. Paragraphs of less than about a third of
//!   the target (dialogue, headings) are joined until they near it, and end at a paragraph's end.
//! - Hard-wrapped prose is cut at sentences, not at its line breaks; a log is cut at its lines.
//! - Words are cut apart from each other only where nothing better lies within reach.
//!
//! The decision falls as soon as no later place could cost less, at the latest when `max` tokens
//! of the block are known, and depends on nothing but the tokens since the block's start and the
//! turn ends among them. So it does not matter in which chunks a stream was read, and a cutter can
//! be rebuilt from the open tokens alone.

mod scanner;
#[cfg(test)]
mod tests;

use thiserror::Error;

use scanner::{Boundary, Scanner};

/// Block sizes that cannot be kept.
#[derive(Debug, Error)]
#[error(
    "block sizes {min}, {target}, {max}: need 1 <= min <= target <= max <= {limit}",
    limit = BlockSizes::LIMIT
)]
pub struct BlockSizesError {
    min: usize,
    target: usize,
    max: usize,
}

/// Tokens per block. The window must hold at least `max` tokens, so that a block is complete
/// before its first token leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    min: usize,
    target: usize,
    max: usize,
}

impl BlockSizes {
    /// The largest block that can be asked for.
    pub const LIMIT: usize = 4096;

    /// Checks the order of the three sizes.
    ///
    /// # Errors
    ///
    /// [`BlockSizesError`] unless `1 <= min <= target <= max <= LIMIT`.
    pub fn new(min: usize, target: usize, max: usize) -> Result<Self, BlockSizesError> {
        if 1 <= min && min <= target && target <= max && max <= Self::LIMIT {
            Ok(Self { min, target, max })
        } else {
            Err(BlockSizesError { min, target, max })
        }
    }

    /// No block is shorter, except one that the end of the stream leaves.
    #[must_use]
    pub fn min(self) -> usize {
        self.min
    }

    /// The length that is aimed for.
    #[must_use]
    pub fn target(self) -> usize {
        self.target
    }

    /// No block is longer.
    #[must_use]
    pub fn max(self) -> usize {
        self.max
    }
}

impl Default for BlockSizes {
    /// 16, 64, 96.
    fn default() -> Self {
        Self { min: 16, target: 64, max: 96 }
    }
}

/// A place where the open block might end.
#[derive(Clone, Copy, Debug)]
struct Cut {
    n_tokens: usize,
    cost: usize,
}

/// Cuts a stream of tokens into blocks; a deterministic function of the tokens and turn ends.
#[derive(Clone, Debug)]
pub struct BlockCutter {
    sizes: BlockSizes,
    /// The tokens since the last cut, one after the other.
    bytes: Vec<u8>,
    /// Where each of them ends in `bytes`.
    ends: Vec<usize>,
    scanner: Scanner,
    /// The places seen so far from `min` on, earliest first.
    cuts: Vec<Cut>,
    /// A paragraph ended in the open block, `min` tokens or more after its start.
    crossed: bool,
}

impl BlockCutter {
    /// A cutter at the start of a stream.
    #[must_use]
    pub fn new(sizes: BlockSizes) -> Self {
        Self {
            sizes,
            bytes: Vec::new(),
            ends: Vec::new(),
            scanner: Scanner::default(),
            cuts: Vec::new(),
            crossed: false,
        }
    }

    /// Reads the next token, given as the bytes that it stands for, and appends to `completed` the
    /// length in tokens of each block that is now decided: none for most tokens, rarely two.
    ///
    /// Block lengths follow one another from the stream's start, so their sum is the number of
    /// tokens that are in complete blocks; the rest are [open](Self::open_tokens).
    pub fn push(&mut self, token: &[u8], completed: &mut Vec<usize>) {
        self.append(token);
        while let Some(n_tokens) = self.decided() {
            completed.push(n_tokens);
            self.restart_after(n_tokens);
        }
    }

    /// Ends the turn after the last token: closes the open block, cut in two where that is better,
    /// if it has `min` tokens. A shorter rest joins the next block.
    pub fn end_turn(&mut self, completed: &mut Vec<usize>) {
        while self.open_tokens() >= self.sizes.min {
            let n_tokens = self.decided().unwrap_or_else(|| self.best_before_turn_end());
            completed.push(n_tokens);
            self.restart_after(n_tokens);
        }
    }

    /// Tokens read that are in no complete block yet; always below `max`.
    #[must_use]
    pub fn open_tokens(&self) -> usize {
        self.ends.len()
    }

    /// The sizes it was made with.
    #[must_use]
    pub fn sizes(&self) -> BlockSizes {
        self.sizes
    }

    fn append(&mut self, token: &[u8]) {
        let n_before = self.ends.len();
        let boundary = self.scanner.push(token);
        self.note(n_before, boundary);
        self.bytes.extend_from_slice(token);
        self.ends.push(self.bytes.len());
    }

    fn note(&mut self, n_tokens: usize, boundary: Boundary) {
        if n_tokens < self.sizes.min {
            return;
        }
        let cost = cost(self.sizes, n_tokens, boundary, self.crossed);
        self.cuts.push(Cut { n_tokens, cost });
        self.crossed |= boundary == Boundary::Paragraph;
    }

    /// The length of the open block, once nothing that may follow can change it.
    fn decided(&mut self) -> Option<usize> {
        let n_tokens = self.open_tokens();
        if n_tokens < self.sizes.max {
            let best = best(&self.cuts)?;
            return (best.cost <= self.least_cost_to_come()).then_some(best.n_tokens);
        }
        let at_end = self.scanner.at_end();
        self.note(n_tokens, at_end);
        best(&self.cuts).map(|cut| cut.n_tokens)
    }

    /// What a paragraph end would cost at the best place that has not been seen.
    fn least_cost_to_come(&self) -> usize {
        let n_tokens = self.open_tokens().max(self.sizes.target);
        cost(self.sizes, n_tokens, Boundary::Paragraph, self.crossed)
    }

    /// A cut that leaves a rest of less than `min` tokens would push that rest into the next
    /// turn's block, so it is not considered.
    fn best_before_turn_end(&self) -> usize {
        let n_tokens = self.open_tokens();
        let whole = cost(self.sizes, n_tokens, Boundary::Turn, self.crossed);
        let leaves_enough = self.cuts.iter().filter(|c| n_tokens - c.n_tokens >= self.sizes.min);
        leaves_enough
            .copied()
            .chain([Cut { n_tokens, cost: whole }])
            .min_by_key(|cut| cut.cost)
            .map_or(n_tokens, |cut| cut.n_tokens)
    }

    /// Drops the block and reads the tokens behind it again as the start of the next one. They
    /// may complete that one too, but `push` asks again.
    fn restart_after(&mut self, n_tokens: usize) {
        let cut_byte = self.ends[n_tokens - 1];
        let rest = self.bytes.split_off(cut_byte);
        let ends = self.ends.split_off(n_tokens);
        *self = Self::new(self.sizes);
        let mut start = 0;
        for end in ends {
            self.append(&rest[start..end - cut_byte]);
            start = end - cut_byte;
        }
    }
}

/// The cheapest place, the earliest of equals.
fn best(cuts: &[Cut]) -> Option<Cut> {
    cuts.iter().copied().min_by_key(|cut| cut.cost)
}

/// Cost of ending a block after `n_tokens`, in 64ths of a token.
fn cost(sizes: BlockSizes, n_tokens: usize, boundary: Boundary, crossed: bool) -> usize {
    // Places inside sentences cost more than any better one can, whatever its length.
    let last_resort = 4 * 64 * sizes.max;
    // In 64ths of the target, so that other sizes cut the same text at the same kind of place.
    let penalty = match boundary {
        Boundary::Turn | Boundary::Paragraph => 0,
        Boundary::SentenceLine => 12 * sizes.target,
        Boundary::Sentence => 24 * sizes.target,
        Boundary::Line => 48 * sizes.target,
        Boundary::Word => last_resort,
        Boundary::Char => 2 * last_resort,
        Boundary::MidChar => 3 * last_resort,
    };
    // Without a sentence end the block is cut at the target or after it, never before.
    let too_short = boundary <= Boundary::Word && n_tokens < sizes.target;
    64 * n_tokens.abs_diff(sizes.target)
        + penalty
        + if crossed { 32 * sizes.target } else { 0 }
        + if too_short { 4 * last_resort } else { 0 }
}
