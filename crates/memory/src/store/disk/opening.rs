//! Brings catalogue and segments into step when a store is opened.
//!
//! The segments are the truth. What the catalogue knows of them is taken from it; what was
//! appended since it was last written is read from their ends.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use everstream_kv_cache::TokenPos;
use fs_err::File;

use super::catalog::{Changes, Known};
use super::head::{self, Summary};
use super::segment::{self, Header};
use super::{Damage, Place, StoreError};
use crate::block::BlockId;
use crate::record::{self, Found};
use crate::store::BlockMeta;

/// A segment as it was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) generation: u64,
    /// Bytes up to the end of the last whole record.
    pub(super) whole_bytes: u64,
    pub(super) file_bytes: u64,
    /// Whether nothing lies behind them but what the end of a process left.
    pub(super) may_go_on: bool,
}

/// What opening found.
#[derive(Debug, Default)]
pub(super) struct Opening {
    pub(super) blocks: BTreeMap<u64, (BlockMeta, Place)>,
    pub(super) segments: BTreeMap<u32, Segment>,
    pub(super) damage: Vec<Damage>,
    /// The header of the newest segment that has one.
    pub(super) header: Option<Header>,
    /// What the catalogue does not know yet.
    pub(super) changes: Changes,
    /// Blocks of segments that must be read again, until they are found there.
    stale: BTreeMap<u64, (BlockId, Range<TokenPos>)>,
}

impl Opening {
    pub(super) fn new(folder: &Path, known: Known) -> Result<Self, StoreError> {
        let mut opening = Self { blocks: known.blocks, ..Self::default() };
        let mut lost = known.lost;
        let mut found = Vec::new();
        for number in segment::list(folder)? {
            found.push(FoundSegment::open(folder, number, &known.segments)?);
        }
        // A block is forgotten by a record in its own segment or in a later one. So segments are
        // read again from the first one on that is not as it is catalogued.
        let n_known = found.iter().take_while(|segment| segment.catalogued.is_some()).count();
        let is_known = |number| found[..n_known].iter().any(|segment| segment.number == number);
        opening.set_stale(|place| !is_known(place.segment));
        for (i, segment) in found.into_iter().enumerate() {
            opening.read_segment(segment, i < n_known)?;
        }
        opening.drop_overlaps(folder);
        opening.changes.removed.extend(opening.stale.keys());
        // What is catalogued and nowhere: a segment was cut off, or is gone.
        for (_, tokens) in std::mem::take(&mut opening.stale).into_values() {
            let is_inside = |of: &Range<TokenPos>| of.start <= tokens.start && tokens.end <= of.end;
            if !opening.damage.iter().filter_map(|d| d.tokens.as_ref()).any(is_inside) {
                opening.changes.lost.insert(tokens.start.0, tokens.end.0);
                lost.insert(tokens.start.0, tokens.end.0);
            }
        }
        opening.add_lost(folder, lost);
        Ok(opening)
    }

    fn read_segment(&mut self, segment: FoundSegment, is_known: bool) -> Result<(), StoreError> {
        let FoundSegment { number, path, file, file_bytes, header, generation, catalogued } =
            segment;
        let from = catalogued.filter(|_| is_known).unwrap_or(0);
        self.header = header.or(self.header.take());
        let mut found = Segment { generation, whole_bytes: from, file_bytes, may_go_on: true };
        let mut scan = Scan { number, path: &path, opening: self, last_end: None };
        record::scan::<StoreError>(&file, from, &mut |what| {
            match what {
                Found::Record { offset, prefix, head } => {
                    found.whole_bytes = offset + prefix.len();
                    scan.record(offset, prefix, head);
                }
                Found::Torn(range) => scan.damaged(range, Damage::TORN),
                Found::Damaged(range) => {
                    found.may_go_on = range.end < file_bytes;
                    scan.damaged(range, "no record");
                }
            }
            Ok(())
        })?;
        if found.may_go_on && found.whole_bytes == 0 {
            // The process ended before it had written the header: nothing was ever in it.
            self.damage.retain(|damage| damage.path != path);
            return Ok(fs_err::remove_file(&path)?);
        }
        if catalogued != Some(found.whole_bytes) {
            self.changes.segments.push((number, generation, found.whole_bytes));
        }
        self.segments.insert(number, found);
        Ok(())
    }

    /// Names the tokens of blocks that are gone, as far as they were not stored again.
    fn add_lost(&mut self, folder: &Path, lost: BTreeMap<u64, u64>) {
        let mut ranges: Vec<Range<TokenPos>> = Vec::new();
        for (start, end) in lost {
            let is_there = |(meta, _): &(BlockMeta, Place)| meta.range.end.0 > start;
            if self.blocks.range(..end).next_back().is_some_and(|(_, block)| is_there(block)) {
                continue;
            }
            match ranges.last_mut().filter(|last| last.end.0 == start) {
                Some(last) => last.end = TokenPos(end),
                None => ranges.push(TokenPos(start)..TokenPos(end)),
            }
        }
        self.damage.extend(ranges.into_iter().map(|tokens| Damage {
            path: folder.to_owned(),
            bytes: 0..0,
            tokens: Some(tokens),
            what: Damage::GONE,
        }));
    }

    /// Sets blocks aside until they are found in their segments.
    fn set_stale(&mut self, is_stale: impl Fn(&Place) -> bool) {
        let (stale, blocks) = std::mem::take(&mut self.blocks)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(_, (_, place))| is_stale(place));
        self.blocks = blocks;
        self.stale =
            stale.into_iter().map(|(start, (meta, _))| (start, (meta.id, meta.range))).collect();
    }

    fn forget(&mut self, start: u64) {
        self.blocks.remove(&start);
        self.changes.blocks.remove(&start);
        self.changes.removed.push(start);
    }

    /// No two blocks hold the same token; of two that do, the first one stays.
    fn drop_overlaps(&mut self, folder: &Path) {
        let (mut end, mut surplus) = (TokenPos(0), Vec::new());
        for (&start, (meta, place)) in &self.blocks {
            if meta.range.start < end {
                surplus.push((start, meta.range.clone(), *place));
            }
            end = end.max(meta.range.end);
        }
        for (start, tokens, place) in surplus {
            self.damage.push(Damage {
                path: segment::path(folder, place.segment),
                bytes: place.offset..place.offset + place.prefix.len(),
                tokens: Some(tokens),
                what: "a block over tokens of another",
            });
            self.forget(start);
        }
    }
}

/// The walk through one segment.
struct Scan<'a> {
    number: u32,
    path: &'a Path,
    opening: &'a mut Opening,
    /// Where the last block ends.
    last_end: Option<TokenPos>,
}

impl Scan<'_> {
    fn record(&mut self, offset: u64, prefix: record::Prefix, bytes: Vec<u8>) {
        let range = offset..offset + prefix.len();
        match prefix.kind {
            segment::HEADER => {}
            segment::BLOCK => match head::decode(&bytes) {
                Some(head) => self.block(offset, prefix, head.summary),
                None => self.damaged(range, "a block of another format"),
            },
            segment::FORGET => {
                let Some((start, id)) = segment::decode_forget(&bytes) else { return };
                if self.opening.stale.get(&start).is_some_and(|(stale, _)| stale.0 == id) {
                    self.opening.stale.remove(&start);
                    self.opening.changes.removed.push(start);
                }
                if self.opening.blocks.get(&start).is_some_and(|b| b.0.id.0 == id) {
                    self.opening.forget(start);
                }
            }
            _ => self.damaged(range, "a record of another kind"),
        }
    }

    fn block(&mut self, offset: u64, prefix: record::Prefix, summary: Summary) {
        let place = Place::new(self.number, offset, prefix, &summary);
        let meta = summary.meta.clone();
        let (start, end) = (meta.range.start, meta.range.end);
        // What lies between the blocks before and after a damage was in it.
        let last_end = self.last_end.replace(end);
        if let Some(damage) = self.opening.damage.last_mut()
            && damage.path == self.path
            && damage.tokens.is_none()
        {
            damage.tokens = last_end.filter(|last| *last < start).map(|last| last..start);
        }
        // The block of before keeps its embedding.
        if self.opening.stale.get(&start.0).is_some_and(|(id, _)| *id == meta.id) {
            self.opening.stale.remove(&start.0);
        }
        self.opening.changes.blocks.insert(start.0, (place, summary));
        self.opening.blocks.insert(start.0, (meta, place));
    }

    fn damaged(&mut self, bytes: Range<u64>, what: &'static str) {
        let path: PathBuf = self.path.to_owned();
        self.opening.damage.push(Damage { path, bytes, tokens: None, what });
    }
}

/// A segment before it is read.
struct FoundSegment {
    number: u32,
    path: PathBuf,
    file: File,
    file_bytes: u64,
    header: Option<Header>,
    generation: u64,
    /// Bytes that the catalogue knows, if it knows this segment and not an earlier form of it.
    catalogued: Option<u64>,
}

impl FoundSegment {
    fn open(
        folder: &Path,
        number: u32,
        known: &BTreeMap<u32, (u64, u64)>,
    ) -> Result<Self, StoreError> {
        let path = segment::path(folder, number);
        let file = File::open(&path)?;
        let file_bytes = file.metadata()?.len();
        let header = read_header(&file, &path)?;
        let known = known.get(&number).copied();
        // A damaged header says nothing about the generation, and nothing speaks against it.
        let generation = header.as_ref().map(|h| h.generation).or(known.map(|k| k.0)).unwrap_or(0);
        let catalogued = known.filter(|&(g, bytes)| g == generation && bytes <= file_bytes);
        let catalogued = catalogued.map(|(_, bytes)| bytes);
        Ok(Self { number, path, file, file_bytes, header, generation, catalogued })
    }
}

/// The header of a segment; `None` if it is damaged.
fn read_header(file: &File, path: &Path) -> Result<Option<Header>, StoreError> {
    let Some((prefix, head)) = record::read_at(file, 0, file.metadata()?.len())? else {
        return Ok(None);
    };
    let header = Header::decode(&head).filter(|_| prefix.kind == segment::HEADER);
    match header {
        Some(header) if !header.is_known_version() => Err(StoreError::Format {
            path: path.to_owned(),
            found: header.version.to_string(),
            expected: "1",
        }),
        header => Ok(header),
    }
}
