//! Byte-pair merging: joins the two neighbours that the merge list ranks first, until none is left.
//!
//! Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", 2016,
//! arXiv:1508.07909, section 3.2; over bytes as in GPT-2.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::vocab::{TOKENS_KEY, Vocab, invalid};
use crate::error::LoadError;
use crate::gguf::GgufFile;

const MERGES_KEY: &str = "tokenizer.ggml.merges";

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
    table: HashMap<(u32, u32), Merge>,
}

impl Merges {
    pub(super) fn from_gguf(gguf: &GgufFile, vocab: &Vocab) -> Result<Self, LoadError> {
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
        Ok(Self { byte_ids, table })
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
    use super::vocab::TokenKind::{Byte, Normal};
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
        self.load(word);
        for left in 0..self.symbols.len() {
            self.consider(left);
        }
        while let Some(Reverse((_, left, joined))) = self.queue.pop() {
            self.merge(left, joined);
        }
        out.extend(self.symbols.iter().filter_map(|symbol| symbol.id));
    }

    /// Fills `symbols` with the word's bytes, leaving out characters that have no token.
    fn load(&mut self, word: &str) {
        self.symbols.clear();
        let byte_ids = &self.merges.byte_ids;
        let id_of = |byte: u8| byte_ids[usize::from(byte)];
        let mut buffer = [0; 4];
        for character in word.chars() {
            let bytes = character.encode_utf8(&mut buffer).as_bytes();
            if bytes.iter().any(|&byte| id_of(byte).is_none()) {
                continue;
            }
            for &byte in bytes {
                let at = self.symbols.len();
                let previous = at.checked_sub(1).unwrap_or(NONE);
                self.symbols.push(Symbol { id: id_of(byte), previous, next: at + 1 });
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
