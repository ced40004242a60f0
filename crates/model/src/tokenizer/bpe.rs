//! Byte-pair merging: joins the two neighbours that the merge list ranks first, until none is left.
//!
//! Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", 2016,
//! arXiv:1508.07909, section 3.2; over bytes as in GPT-2, or over characters as in SentencePiece,
//! whose files have scores of tokens instead of a list of merges.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::vocab::{TOKENS_KEY, TokenKind, Vocab, invalid};
use crate::error::LoadError;
use crate::gguf::{GgufFile, Value};

const MERGES_KEY: &str = "tokenizer.ggml.merges";
const SCORES_KEY: &str = "tokenizer.ggml.scores";
/// Longest token that is put together from others, in bytes; real ones have some 50. All ways to cut
/// a token are tried, which takes the square of its length.
const MAX_PIECE_BYTES: usize = 1024;

/// What two neighbours become.
#[derive(Clone, Copy, Debug)]
struct Merge {
    /// Place in the merge list; lower comes first.
    rank: u32,
    /// The token for both.
    id: u32,
}

/// The merge list as a table over token ids.
#[derive(Debug)]
pub(super) struct Merges {
    /// The token of each single byte, if there is one.
    byte_ids: [Option<u32>; 256],
    /// The tokens of single characters, where merging begins with characters; the bytes of others
    /// are merged with nothing.
    char_ids: HashMap<char, u32>,
    table: HashMap<(u32, u32), Merge>,
    /// Words that are tokens without merging; empty where all are merged.
    words: HashMap<Box<[u8]>, u32>,
}

impl Merges {
    /// Every way to put a token together from two others, better scores first, as Hugging Face's
    /// converter lists them.
    pub(super) fn from_scores(gguf: &GgufFile, vocab: &Vocab) -> Result<Self, LoadError> {
        let Some(scores) = gguf.find_arr_scalar(SCORES_KEY)? else {
            let (path, key) = (gguf.path().to_owned(), SCORES_KEY.to_owned());
            return Err(LoadError::MissingKey { path, key });
        };
        let scores: Vec<f64> = scores
            .map_while(|score| match score {
                Value::Float(_, score) if !score.is_nan() => Some(score),
                _ => None,
            })
            .collect();
        if scores.len() != vocab.len() {
            let index = scores.len().min(vocab.len());
            let problem = "is no score, or not that of a token";
            return Err(invalid(gguf, SCORES_KEY, index, problem));
        }
        let ids: HashMap<&[u8], u32> = normal_tokens(vocab).rev().collect();
        let mut ordered: Vec<u32> = ids.values().copied().collect();
        ordered.sort_unstable_by(|&a, &b| {
            scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b))
        });
        let (mut table, mut char_ids) = (HashMap::new(), HashMap::new());
        let is_piece = |id: &&u32| vocab.bytes(**id).len() <= MAX_PIECE_BYTES;
        for &id in ordered.iter().filter(is_piece) {
            let Ok(text) = std::str::from_utf8(vocab.bytes(id)) else { continue };
            let mut boundaries = text.char_indices();
            if let Some((_, first)) = boundaries.next()
                && first.len_utf8() == text.len()
            {
                char_ids.insert(first, id);
            }
            // Of several ways to the same token, the one with the longer left half comes first.
            for (at, _) in boundaries.rev() {
                let (left, right) = text.as_bytes().split_at(at);
                if let (Some(&left), Some(&right)) = (ids.get(left), ids.get(right)) {
                    let rank = table.len() as u32;
                    table.insert((left, right), Merge { rank, id });
                }
            }
        }
        Ok(Self { byte_ids: byte_ids(vocab), char_ids, table, words: HashMap::new() })
    }

    /// The merges that the file lists. With `keeps_tokens`, a word that is a token is that token,
    /// whether merging leads to it or not.
    pub(super) fn from_gguf(
        gguf: &GgufFile,
        vocab: &Vocab,
        keeps_tokens: bool,
    ) -> Result<Self, LoadError> {
        let merges = gguf.get_arr_str(MERGES_KEY)?;
        if u32::try_from(merges.len()).is_err() {
            return Err(invalid(gguf, MERGES_KEY, merges.len(), "has no 32-bit rank"));
        }
        let ids = ids_by_spelling(gguf)?;
        let mut table = HashMap::with_capacity(merges.len());
        let mut joined = Vec::new();
        for (rank, merge) in merges.enumerate() {
            let (pair, id) = resolve(merge, &ids, &mut joined)
                .map_err(|problem| invalid(gguf, MERGES_KEY, rank, problem))?;
            // If a pair is listed twice, the first rank is the one that counts.
            table.entry(pair).or_insert(Merge { rank: rank as u32, id });
        }
        let byte_ids = byte_ids(vocab);
        if byte_ids.iter().all(Option::is_none) {
            return Err(invalid(gguf, TOKENS_KEY, 0, "and no other stands for a single byte"));
        }
        let words = match keeps_tokens {
            true => normal_tokens(vocab).rev().map(|(bytes, id)| (bytes.into(), id)).collect(),
            false => HashMap::new(),
        };
        Ok(Self { byte_ids, char_ids: HashMap::new(), table, words })
    }

    pub(super) fn missing_bytes(&self) -> Vec<u8> {
        (0..=u8::MAX).filter(|&byte| self.byte_ids[usize::from(byte)].is_none()).collect()
    }

    /// A merger with buffers of its own, for the words of one text.
    pub(super) fn merger(&self) -> Merger<'_> {
        Merger { merges: self, symbols: Vec::new(), queue: BinaryHeap::new() }
    }

    fn find(&self, left: u32, right: u32) -> Option<Merge> {
        self.table.get(&(left, right)).copied()
    }
}

/// Bytes and ids of the normal tokens.
fn normal_tokens(vocab: &Vocab) -> impl DoubleEndedIterator<Item = (&[u8], u32)> {
    let ids = (0..vocab.len() as u32).filter(|&id| vocab.kind(id) == Some(TokenKind::Normal));
    ids.map(|id| (vocab.bytes(id), id))
}

/// Ids by the spelling in the file. If a spelling occurs twice, the lower id counts.
fn ids_by_spelling(gguf: &GgufFile) -> Result<HashMap<&[u8], u32>, LoadError> {
    let spellings = gguf.get_arr_str(TOKENS_KEY)?;
    let mut ids = HashMap::with_capacity(spellings.len());
    for (id, spelling) in spellings.enumerate() {
        ids.entry(spelling).or_insert(id as u32);
    }
    Ok(ids)
}

/// The ids of a merge `left right` and of the token that both become.
fn resolve(
    merge: &[u8],
    ids: &HashMap<&[u8], u32>,
    joined: &mut Vec<u8>,
) -> Result<((u32, u32), u32), &'static str> {
    // The alphabet has no space, so the only one separates the two.
    let space = merge.iter().position(|&byte| byte == b' ').ok_or("has no space")?;
    let (left, right) = (&merge[..space], &merge[space + 1..]);
    joined.clear();
    joined.extend_from_slice(left);
    joined.extend_from_slice(right);
    let id = |spelling: &[u8]| {
        ids.get(spelling).copied().ok_or("names a token that is not in the vocabulary")
    };
    Ok(((id(left)?, id(right)?), id(joined)?))
}

/// The token of each byte, found among the normal tokens of one byte; the lower id counts.
fn byte_ids(vocab: &Vocab) -> [Option<u32>; 256] {
    use TokenKind::{Byte, Normal};
    let mut byte_ids = [None; 256];
    for id in (0..vocab.len() as u32).rev() {
        if let (&[byte], Some(Normal | Byte)) = (vocab.bytes(id), vocab.kind(id)) {
            byte_ids[usize::from(byte)] = Some(id);
        }
    }
    byte_ids
}

/// A token of a word in the making, in a list that is linked both ways.
#[derive(Clone, Copy, Debug)]
struct Symbol {
    /// `None` once it has been merged into its left neighbour.
    id: Option<u32>,
    previous: usize,
    next: usize,
}

/// The end of the list, in both directions.
const NONE: usize = usize::MAX;

/// A merge that could be made: rank, left symbol, and what it would give. Ordered by rank, then
/// from left to right.
type Candidate = Reverse<(u32, usize, Joined)>;

/// The state that a candidate was computed for; if it no longer holds, the candidate is stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Joined {
    left: u32,
    right: u32,
    id: u32,
}

/// Encodes words, reusing its buffers.
pub(super) struct Merger<'a> {
    merges: &'a Merges,
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Candidate>,
}

impl Merger<'_> {
    /// Appends the tokens of one word.
    ///
    /// Cost: `n log n` in its length.
    pub(super) fn encode_word(&mut self, word: &str, out: &mut Vec<u32>) {
        if let Some(&id) = self.merges.words.get(word.as_bytes()) {
            out.push(id);
            return;
        }
        self.load(word);
        for left in 0..self.symbols.len() {
            self.consider(left);
        }
        while let Some(Reverse((_, left, joined))) = self.queue.pop() {
            self.merge(left, joined);
        }
        out.extend(self.symbols.iter().filter_map(|symbol| symbol.id));
    }

    /// Fills `symbols` with the tokens of the word's characters or, for those that have none, of
    /// their bytes; leaves out characters with a byte that has no token.
    fn load(&mut self, word: &str) {
        self.symbols.clear();
        let Merges { byte_ids, char_ids, .. } = self.merges;
        let mut buffer = [0; 4];
        for character in word.chars() {
            let bytes = character.encode_utf8(&mut buffer).as_bytes();
            let mut ids = [None; 4];
            let ids = match char_ids.get(&character) {
                Some(&id) => {
                    ids[0] = Some(id);
                    &ids[..1]
                }
                None => {
                    let of_bytes = bytes.iter().map(|&byte| byte_ids[usize::from(byte)]);
                    ids.iter_mut().zip(of_bytes).for_each(|(to, id)| *to = id);
                    &ids[..bytes.len()]
                }
            };
            if ids.contains(&None) {
                continue;
            }
            for &id in ids {
                let at = self.symbols.len();
                let previous = at.checked_sub(1).unwrap_or(NONE);
                self.symbols.push(Symbol { id, previous, next: at + 1 });
            }
        }
        if let Some(last) = self.symbols.last_mut() {
            last.next = NONE;
        }
    }

    /// Queues the merge of a symbol with its right neighbour, if the list has one.
    fn consider(&mut self, left: usize) {
        let Some(&Symbol { id: Some(left_id), next, .. }) = self.symbols.get(left) else { return };
        let Some(&Symbol { id: Some(right_id), .. }) = self.symbols.get(next) else { return };
        if let Some(Merge { rank, id }) = self.merges.find(left_id, right_id) {
            let joined = Joined { left: left_id, right: right_id, id };
            self.queue.push(Reverse((rank, left, joined)));
        }
    }

    /// Makes a merge, unless one of the two has changed since it was queued.
    fn merge(&mut self, left: usize, joined: Joined) {
        let Symbol { id, previous, next: right } = self.symbols[left];
        let right_id = self.symbols.get(right).and_then(|symbol| symbol.id);
        if id != Some(joined.left) || right_id != Some(joined.right) {
            return;
        }
        let next = self.symbols[right].next;
        self.symbols[left] = Symbol { id: Some(joined.id), previous, next };
        self.symbols[right].id = None;
        if let Some(symbol) = self.symbols.get_mut(next) {
            symbol.previous = left;
        }
        self.consider(left);
        self.consider(previous);
    }
}
