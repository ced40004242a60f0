//! What a recall asks for and what it answers; no I/O, only ranges and sums.

use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use everstream_kv_cache::{TokenPos, range_len};

use crate::block::{Block, BlockId, Role};
use crate::store::BlockMeta;
use crate::strategy::ModelQueries;

/// The order in which recalled blocks come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RecallOrder {
    /// The most relevant last, nearest to the question that follows.
    #[default]
    BestLast,
    /// As they stood in the stream.
    Stream,
}

/// What comes with each block that was chosen, as far as it fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbours {
    /// So many blocks right before it and right after it in the stream, of the same source,
    /// whatever they say.
    Blocks(usize),
    /// All blocks of its paragraph or turn: up to a blank line, another role or another source.
    Paragraph,
}

impl Neighbours {
    /// Only what was chosen.
    pub const NONE: Self = Self::Blocks(0);

    /// Reads a number of blocks, or `paragraph`.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        match name {
            "paragraph" => Some(Self::Paragraph),
            _ => name.parse().ok().map(Self::Blocks),
        }
    }

    /// How many blocks on each side.
    pub(crate) fn reach(self) -> usize {
        match self {
            Self::Blocks(n) => n,
            Self::Paragraph => usize::MAX,
        }
    }
}

/// Which blocks may be found at all; empty lists and `None` let all pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockFilter {
    /// Written at this time or later.
    pub since: Option<SystemTime>,
    /// Written by one of these.
    pub roles: Vec<Role>,
    /// Read from a file whose name contains one of these texts.
    pub sources: Vec<String>,
}

impl BlockFilter {
    /// Whether a block may be found.
    #[must_use]
    pub fn passes(&self, meta: &BlockMeta) -> bool {
        let source = meta.source.as_ref().map(|source| &*source.file);
        self.since.is_none_or(|since| meta.written_at >= since)
            && (self.roles.is_empty() || self.roles.contains(&meta.role))
            && (self.sources.is_empty()
                || source.is_some_and(|file| self.sources.iter().any(|part| file.contains(part))))
    }
}

/// What to recall. [`RecallRequest::new`] fills in the defaults.
#[derive(Clone, Debug)]
pub struct RecallRequest<'a> {
    /// What is asked for; usually the newest turn. Blank text recalls nothing.
    pub query: &'a str,
    /// Its embedding, if it is known already.
    pub embedding: Option<&'a [f32]>,
    /// What the model asks for, for strategies that [need](crate::Strategy::needs_queries) it.
    pub queries: Option<&'a ModelQueries>,
    /// What has left the window: from the end of the sinks to the start of the window. Only this
    /// part of the stream is recalled.
    pub evicted: Range<TokenPos>,
    /// No more than this many tokens in all.
    pub max_tokens: usize,
    /// No more than this many blocks.
    pub max_blocks: usize,
    /// The order of the answer.
    pub order: RecallOrder,
    /// What is in the cache already for another reason, in any order.
    pub exclude: Vec<Range<TokenPos>>,
    /// Which blocks may be recalled at all.
    pub filter: BlockFilter,
    /// What comes with each block.
    pub neighbours: Neighbours,
}

impl<'a> RecallRequest<'a> {
    /// Up to four blocks and 300 tokens, the most relevant last, nothing excluded.
    #[must_use]
    pub fn new(query: &'a str, evicted: Range<TokenPos>) -> Self {
        Self {
            query,
            embedding: None,
            queries: None,
            evicted,
            max_tokens: 300,
            max_blocks: 4,
            order: RecallOrder::default(),
            exclude: Vec::new(),
            filter: BlockFilter::default(),
            neighbours: Neighbours::NONE,
        }
    }

    /// The part of a block that may be recalled.
    pub(crate) fn part_of(&self, meta: &BlockMeta) -> Option<Range<TokenPos>> {
        let may_be_found = !meta.is_forgotten && self.filter.passes(meta);
        may_be_found.then(|| eligible_part(&meta.range, &self.evicted, &self.exclude))?
    }
}

/// A block that comes back, or its part that has left the window.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RecalledBlock {
    /// The whole block.
    pub block: Arc<Block>,
    /// What of it is recalled: all of it, unless the block straddles the start of the window or
    /// the request excluded some of it.
    pub part: Range<TokenPos>,
    /// Distance of the whole block from the query.
    pub distance: f32,
}

impl RecalledBlock {
    /// All of a block.
    #[must_use]
    pub fn whole(block: Arc<Block>, distance: f32) -> Self {
        Self { part: block.range(), block, distance }
    }

    /// Tokens recalled.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        range_len(&self.part)
    }

    /// The part as rows of the block: what [`BlockKv::keys`](crate::BlockKv::keys) takes.
    #[must_use]
    pub fn rows(&self) -> Range<usize> {
        let first = self.block.range().start;
        self.part.start.since(first)..self.part.end.since(first)
    }

    /// Ids of the tokens recalled.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.block.tokens()[self.rows()]
    }

    /// Whether only a part of the block is recalled.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.part != self.block.range()
    }
}

/// A text without keys and values that comes back, or its beginning: it has to be computed.
#[derive(Clone, Debug, PartialEq)]
pub struct RecalledText {
    /// The collection that it is from, or `pin`.
    pub source: String,
    /// Its name there.
    pub id: String,
    /// What of it is recalled.
    pub text: String,
    /// The same as token ids.
    pub tokens: Vec<u32>,
    /// Tokens that did not fit.
    pub n_cut: usize,
    /// Its distance from the query; 0 for what somebody asked to have in every recall.
    pub distance: f32,
}

/// A block that was found and left where it is.
#[derive(Clone, Debug, PartialEq)]
pub struct NotRecalled {
    /// The block.
    pub id: BlockId,
    /// What of it would have been recalled.
    pub part: Range<TokenPos>,
    /// Its distance from the query.
    pub distance: f32,
}

/// The answer to a [`RecallRequest`]: every block that the strategy proposed is in one list.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Recall {
    /// Texts that are not of this stream; they stand in front of the blocks.
    pub texts: Vec<RecalledText>,
    /// What comes back, in the order that was asked for. No two parts overlap.
    pub blocks: Vec<RecalledBlock>,
    /// What the gate turned away, most relevant first.
    pub gated: Vec<NotRecalled>,
    /// What passed the gate and did not fit into `max_tokens`, most relevant first. Less relevant
    /// blocks that did fit are among `blocks`.
    pub skipped: Vec<NotRecalled>,
    /// What would have been recalled and is damaged in the store, most relevant first.
    pub unreadable: Vec<NotRecalled>,
    /// Why a server could not be searched. What it would have found is missing.
    pub failure: Option<String>,
}

impl Recall {
    /// Tokens that come back.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        self.n_text_tokens() + self.blocks.iter().map(RecalledBlock::n_tokens).sum::<usize>()
    }

    /// Their ids, in the order in which they come back.
    pub fn tokens(&self) -> impl Iterator<Item = u32> {
        let texts = self.texts.iter().map(|text| &*text.tokens);
        texts.chain(self.blocks.iter().map(RecalledBlock::tokens)).flatten().copied()
    }

    /// Tokens of the texts.
    #[must_use]
    pub fn n_text_tokens(&self) -> usize {
        self.texts.iter().map(|text| text.tokens.len()).sum()
    }

    /// Whether nothing comes back.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty() && self.blocks.is_empty()
    }

    /// Which of `blocks` follow each other in the stream: one range of numbers for each run.
    #[must_use]
    pub fn runs(&self) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (i, block) in self.blocks.iter().enumerate() {
            match runs.last_mut() {
                Some(run) if self.blocks[i - 1].part.end == block.part.start => run.end = i + 1,
                _ => runs.push(i..i + 1),
            }
        }
        runs
    }

    /// Brings `blocks`, which stand most relevant first, into `order`.
    pub(crate) fn sort(&mut self, order: RecallOrder) {
        match order {
            RecallOrder::BestLast => self.blocks.reverse(),
            RecallOrder::Stream => self.blocks.sort_by_key(|block| block.part.start),
        }
    }

    /// As [`sort`](Self::sort), keeping together what follows each other in the stream: a run is as
    /// relevant as the best of its blocks.
    pub(crate) fn sort_runs(&mut self, order: RecallOrder) {
        let mut ranked: Vec<_> = self.blocks.drain(..).enumerate().collect();
        ranked.sort_by_key(|(_, block)| block.part.start);
        let mut runs: Vec<Vec<(usize, RecalledBlock)>> = Vec::new();
        for (rank, block) in ranked {
            match runs.last_mut() {
                Some(run) if run.last().is_some_and(|last| last.1.part.end == block.part.start) => {
                    run.push((rank, block));
                }
                _ => runs.push(vec![(rank, block)]),
            }
        }
        if order == RecallOrder::BestLast {
            let best = |run: &Vec<(usize, RecalledBlock)>| run.iter().map(|b| b.0).min();
            runs.sort_by_key(|run| std::cmp::Reverse(best(run)));
        }
        self.blocks = runs.into_iter().flatten().map(|(_, block)| block).collect();
    }
}

/// The part of `block` that lies in `evicted` and in none of `exclude`. If that leaves several
/// pieces, the longest, of equals the first: a block comes back as one run of tokens.
fn eligible_part(
    block: &Range<TokenPos>,
    evicted: &Range<TokenPos>,
    exclude: &[Range<TokenPos>],
) -> Option<Range<TokenPos>> {
    let whole = block.start.max(evicted.start)..block.end.min(evicted.end);
    let mut pieces = vec![whole];
    for hole in exclude.iter().filter(|hole| hole.start < hole.end) {
        pieces = pieces.iter().flat_map(|piece| without(piece, hole)).collect();
    }
    pieces.into_iter().filter(|piece| piece.start < piece.end).rev().max_by_key(range_len)
}

/// What lies before and after `hole`; either may be empty.
fn without(piece: &Range<TokenPos>, hole: &Range<TokenPos>) -> [Range<TokenPos>; 2] {
    [piece.start..piece.end.min(hole.start), piece.start.max(hole.end)..piece.end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Source;
    use crate::testing::{new_block, positions, session};
    use everstream_kv_cache::rng::SplitMix64;

    fn check(
        block: Range<u64>,
        evicted: Range<u64>,
        exclude: &[(u64, u64)],
        expected: Option<Range<u64>>,
    ) {
        let exclude: Vec<_> =
            exclude.iter().map(|&(start, end)| TokenPos(start)..TokenPos(end)).collect();
        let found = eligible_part(&positions(block), &positions(evicted), &exclude);
        assert_eq!(found, expected.map(positions));
    }

    #[test]
    fn filters_look_at_time_role_and_source() {
        let file = |name: &str| Some(Source { file: Arc::from(name), line: 1 });
        let mut new = new_block(10..20, "text");
        new.source = file("logs/mail.txt");
        let block = Block::new(session(), new).unwrap();
        let (meta, written_at) = (BlockMeta::from(&block), block.written_at());
        let second = std::time::Duration::from_secs(1);
        let check = |filter: BlockFilter, expected| assert_eq!(filter.passes(&meta), expected);
        let all = BlockFilter::default;
        check(all(), true);
        check(BlockFilter { since: Some(written_at), ..all() }, true);
        check(BlockFilter { since: Some(written_at + second), ..all() }, false);
        check(BlockFilter { roles: vec![Role::User, Role::Document], ..all() }, true);
        check(BlockFilter { roles: vec![Role::User], ..all() }, false);
        check(BlockFilter { sources: vec!["chat".into(), "mail".into()], ..all() }, true);
        check(BlockFilter { sources: vec!["chat".into()], ..all() }, false);
        let spoken = BlockMeta { source: None, ..meta.clone() };
        assert!(!BlockFilter { sources: vec![String::new()], ..all() }.passes(&spoken));
    }

    #[test]
    fn only_what_is_evicted_and_not_excluded_comes_back() {
        check(10..20, 4..30, &[], Some(10..20));
        check(10..20, 4..15, &[], Some(10..15));
        check(10..20, 4..10, &[], None);
        check(10..20, 14..16, &[], Some(14..16));
        check(10..20, 4..30, &[(10, 20)], None);
        check(10..20, 4..30, &[(0, 12), (18, 40)], Some(12..18));
        check(10..20, 4..30, &[(14, 15)], Some(15..20));
        check(10..20, 4..30, &[(15, 15), (30, 20)], Some(10..20));
        // Two pieces of equal length: the first.
        check(10..19, 4..30, &[(14, 15)], Some(10..14));
    }

    /// Token by token: mark what may come back, take the longest run.
    #[test]
    fn parts_are_those_of_the_naive_search() {
        for seed in 0..2000 {
            let mut rng = SplitMix64::new(seed);
            let mut range = || {
                let start = rng.below(30) as u64;
                start..start + rng.below(20) as u64
            };
            let (block, evicted) = (range(), range());
            let exclude = [range(), range(), range()];
            let free = |pos: u64| {
                block.contains(&pos)
                    && evicted.contains(&pos)
                    && !exclude.iter().any(|hole| hole.contains(&pos))
            };
            let mut longest: Option<Range<u64>> = None;
            for start in 0..60 {
                let n = (start..60).take_while(|&pos| free(pos)).count() as u64;
                if n > longest.as_ref().map_or(0, |run| run.end - run.start) {
                    longest = Some(start..start + n);
                }
            }
            let holes = exclude.map(|hole| (hole.start, hole.end));
            check(block, evicted, &holes, longest);
        }
    }
}
