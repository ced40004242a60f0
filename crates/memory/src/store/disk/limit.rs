//! Keeps a store within its limit.

use std::collections::BTreeMap;
use std::sync::Arc;

use fs_err::File;

use super::folder::Partial;
use super::segment::{self, Header};
use super::{DiskStore, Place, StoreError, lock};
use crate::block::Block;
use crate::distinct::MeanKey;
use crate::record::{self, Found};

/// Which blocks stay where there is no room for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// The newest: the oldest segment is dropped.
    #[default]
    Newest,
    /// Those whose keys are unlike the others'. Two segments that follow each other become one, with as many of their
    /// blocks as fit into it. The further back, the more of the stream a segment stands for, and the less of it
    /// is left.
    Distinct,
}

impl Keep {
    /// The name on the command line and in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Newest => "newest",
            Self::Distinct => "distinct",
        }
    }

    /// The fewest segments that a limit must have room for: the one that is written to is never dropped, and one more
    /// should fit, or two that become one.
    #[must_use]
    pub fn fewest_segments(self) -> u64 {
        match self {
            Self::Newest => 2,
            Self::Distinct => 3,
        }
    }
}

/// What a segment holds.
#[derive(Clone, Copy)]
struct Extent {
    /// The first token of its blocks.
    first: u64,
    /// Bytes of the blocks that are not forgotten.
    held_bytes: u64,
}

impl DiskStore {
    /// Drops blocks until the limit is kept.
    pub(super) fn keep_limit(&mut self) -> Result<(), StoreError> {
        while self.options.max_bytes.is_some_and(|max| self.segment_bytes() > max)
            && self.segments.len() > 1
        {
            let merged = self.pair_to_merge().map(|(first, second)| self.merge(first, second));
            // What cannot be read, or written because the disk is full, is no reason to grow.
            if !matches!(merged, Some(Ok(()))) {
                self.drop_oldest()?;
            }
        }
        Ok(())
    }

    fn drop_oldest(&mut self) -> Result<(), StoreError> {
        let Some((&number, _)) = self.segments.first_key_value() else { return Ok(()) };
        let all = self.held_in(|place| place.segment == number);
        self.drop_blocks(&all)?;
        self.remove_segment(number)
    }

    /// Neighbours that fit into one segment as they are. Without such, those that stand for the smallest share of all
    /// that was read since they began; the oldest of equals. So what a segment stands for grows with its age.
    fn pair_to_merge(&self) -> Option<(u32, u32)> {
        if self.options.keep == Keep::Newest {
            return None;
        }
        let end = self.metas.last()?.range.end.0;
        let empty = |&number: &u32| (number, Extent { first: end, held_bytes: 0 });
        let mut extents: BTreeMap<u32, Extent> = self.segments.keys().map(empty).collect();
        for (place, meta) in self.places.iter().zip(&self.metas) {
            if let Some(extent) = extents.get_mut(&place.segment) {
                extent.first = extent.first.min(place.start);
                extent.held_bytes += if meta.is_forgotten { 0 } else { place.prefix.len() };
            }
        }
        let mut segments: Vec<(u32, Extent)> = extents.into_iter().collect();
        // A segment without blocks begins where the next one does.
        for i in (1..segments.len()).rev() {
            segments[i - 1].1.first = segments[i - 1].1.first.min(segments[i].1.first);
        }
        let header =
            Header::new(self.session(), self.maker.clone().unwrap_or_default(), 0).record();
        let room = self.options.segment_bytes.saturating_sub(header.len() as u64);
        let share = |of: &&[(u32, Extent)]| {
            let [(_, one), (_, other), (_, next)] = of[..] else { return f64::INFINITY };
            if one.held_bytes + other.held_bytes <= room {
                return 0.0;
            }
            (next.first - one.first).max(1) as f64 / (end - one.first).max(1) as f64
        };
        // The last one is being written to.
        let pairs = segments.windows(3);
        let pair = pairs.min_by(|a, b| share(a).total_cmp(&share(b)))?;
        Some((pair[0].0, pair[1].0))
    }

    /// Makes one segment of two, in the place of the second. If that fails, both are as they were, but for blocks
    /// that were to go.
    pub(super) fn merge(&mut self, first: u32, second: u32) -> Result<(), StoreError> {
        let held = self.held_in(|place| place.segment == first || place.segment == second);
        let generation = self.segments.get(&second).map_or(0, |segment| segment.0) + 1;
        let maker = self.maker.clone().unwrap_or_default();
        let mut bytes = Vec::with_capacity(self.options.segment_bytes as usize);
        bytes.extend(Header::new(self.session(), maker, generation).record());
        // They forget blocks of earlier segments, or of the first of the two for as long as it is there. What is held
        // was forgotten by none of them, so they come first.
        self.copy_forget_records(first, &mut bytes)?;
        self.copy_forget_records(second, &mut bytes)?;
        let room = self.options.segment_bytes.saturating_sub(bytes.len() as u64);
        let mut moved = Vec::new();
        for order in self.most_distinct(&held, room)? {
            let place = self.places[order];
            let Some((record, _)) = self.shared.read_whole(&place)? else { continue };
            moved.push((order, Place { segment: second, offset: bytes.len() as u64, ..place }));
            bytes.extend(record);
        }
        let path = segment::path(&self.shared.folder, second);
        let new = Partial::write(&path, &bytes)?;
        let is_moved = |order: &usize| moved.binary_search_by_key(order, |moved| moved.0).is_ok();
        let dropped: Vec<usize> = held.into_iter().filter(|order| !is_moved(order)).collect();
        self.drop_blocks(&dropped)?;
        new.put()?;
        lock(&self.shared.files).remove(&second);
        self.segments.insert(second, (generation, bytes.len() as u64));
        self.move_blocks(moved, (second, generation, bytes.len() as u64));
        self.remove_segment(first)
    }

    /// The numbers of blocks for which `is_there`.
    fn held_in(&self, is_there: impl Fn(&Place) -> bool) -> Vec<usize> {
        let blocks = self.places.iter().zip(&self.metas).enumerate();
        let held = blocks.filter(|(_, (place, meta))| is_there(place) && !meta.is_forgotten);
        held.map(|(order, _)| order).collect()
    }

    /// Those of some blocks that are kept if there is room for so many bytes, in stream order. What is damaged is not.
    fn most_distinct(&self, orders: &[usize], max_bytes: u64) -> Result<Vec<usize>, StoreError> {
        let read = |order: usize| -> Result<Option<Block>, StoreError> {
            Ok(self.shared.read_whole(&self.places[order])?.map(|(_, block)| block))
        };
        let mut mean: Option<MeanKey> = None;
        for &order in orders {
            let Some(block) = read(order)? else { continue };
            mean.get_or_insert_with(|| MeanKey::new(block.kv().shape())).add(&block);
        }
        let Some(mean) = mean else { return Ok(Vec::new()) };
        let mut ranked: Vec<(f64, usize)> = Vec::new();
        for &order in orders {
            ranked.extend(read(order)?.map(|block| (mean.distance(&block), order)));
        }
        // Of equals the newer.
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
        let (mut kept, mut n_bytes) = (Vec::new(), 0);
        for (_, order) in ranked {
            let len = self.places[order].prefix.len();
            if n_bytes + len <= max_bytes {
                n_bytes += len;
                kept.push(order);
            }
        }
        kept.sort_unstable();
        Ok(kept)
    }

    /// Notes, on disk as well, that blocks are gone because they were to go.
    pub(super) fn drop_blocks(&mut self, orders: &[usize]) -> Result<(), StoreError> {
        orders.iter().for_each(|&order| self.let_go(order));
        self.n_dropped += orders.len();
        // First the catalogue: what it knows and cannot find was lost.
        self.commit_catalog()?;
        Ok(lock(&self.shared.catalog).sync()?)
    }

    fn move_blocks(&mut self, moved: Vec<(usize, Place)>, segment: (u32, u64, u64)) {
        let mut fresh = lock(&self.shared.fresh);
        let places = Arc::make_mut(&mut self.places);
        for (order, place) in moved {
            places[order] = place;
            fresh.blocks.insert(place.start, (place, place.summary(&self.metas[order])));
        }
        fresh.segments.push(segment);
    }

    fn remove_segment(&mut self, number: u32) -> Result<(), StoreError> {
        self.commit_catalog()?;
        fs_err::remove_file(segment::path(&self.shared.folder, number))?;
        self.segments.remove(&number);
        lock(&self.shared.files).remove(&number);
        Ok(())
    }

    /// Appends a segment's records that forget blocks.
    fn copy_forget_records(&self, number: u32, bytes: &mut Vec<u8>) -> Result<(), StoreError> {
        let file = File::open(segment::path(&self.shared.folder, number))?;
        record::scan::<StoreError>(&file, 0, &mut |found| {
            if let Found::Record { prefix, head, .. } = found
                && prefix.kind == segment::FORGET
            {
                record::encode(segment::FORGET, &head, &[], bytes);
            }
            Ok(())
        })
    }
}
