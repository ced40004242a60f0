//! Gives back the space of what was forgotten, and takes it off the disk.

use std::path::Path;

use fs_err::File;

use super::segment::{self, Header};
use super::{Damage, DiskOptions, DiskStore, StoreError, lock};
use crate::record::{self, Found};
use crate::store::BlockStore;

/// What compacting did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Segments that were written anew.
    pub n_segments: usize,
    /// Bytes of all segments before.
    pub bytes_before: u64,
    /// Bytes of all segments after.
    pub bytes_after: u64,
}

impl DiskStore {
    /// Writes every segment anew that holds anything but whole blocks that are remembered. What was
    /// forgotten is gone from the disk afterwards, and so is what was damaged.
    ///
    /// A segment is replaced whole; if the process ends in between, the old one is still there.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; segments that were not reached are as they were.
    pub fn compact(mut self) -> Result<(Self, Compacted), StoreError> {
        self.sync()?;
        let mut compacted =
            Compacted { bytes_before: self.segment_bytes(), ..Compacted::default() };
        // Records that forget a block stand in the block's own segment or in a later one. So in
        // this order none is lost before its block is.
        let numbers: Vec<u32> = self.segments.keys().copied().collect();
        for number in numbers {
            if self.compact_segment(number)? {
                compacted.n_segments += 1;
            }
        }
        let (folder, options): (_, DiskOptions) = (self.folder.clone(), self.options.clone());
        drop(self);
        // The generations of the segments tell that the catalogue must read them again.
        let mut store = Self::open(folder, options)?;
        store.sync()?;
        store.rewrite_catalog()?;
        // The catalogue of before knew what was damaged, and that is now gone on purpose.
        store.damage.retain(|damage| damage.what != Damage::GONE);
        compacted.bytes_after = store.segment_bytes();
        Ok((store, compacted))
    }

    /// Writes one segment anew, if there is anything to be gained.
    fn compact_segment(&mut self, number: u32) -> Result<bool, StoreError> {
        let path = segment::path(&self.shared.folder, number);
        let file = File::open(&path)?;
        let (mut live, mut is_clean, mut header) = (Vec::new(), true, None);
        record::scan::<StoreError>(&file, 0, &mut |found| {
            match found {
                Found::Record { prefix, head, .. } if prefix.kind == segment::HEADER => {
                    header = Header::decode(&head);
                }
                Found::Record { offset, prefix, .. } if self.is_live(number, offset) => {
                    let mut record = vec![0; prefix.len() as usize];
                    record::read_exact_at(&file, &mut record, offset)?;
                    let (_, body) = record.split_at(record.len() - prefix.body_len);
                    if crc32fast::hash(body) == prefix.body_crc {
                        live.extend_from_slice(&record);
                    } else {
                        is_clean = false;
                    }
                }
                _ => is_clean = false,
            }
            Ok(())
        })?;
        if is_clean && header.is_some() {
            return Ok(false);
        }
        let generation = self.segments.get(&number).map_or(0, |segment| segment.0) + 1;
        let maker = self.maker.clone().unwrap_or_default();
        let header = header.unwrap_or(Header::new(self.session(), maker, generation));
        let mut bytes = Header { generation, ..header }.record();
        bytes.extend_from_slice(&live);
        lock(&self.shared.files).remove(&number);
        super::write_whole(&path, &bytes)?;
        Ok(true)
    }

    fn is_live(&self, number: u32, offset: u64) -> bool {
        let held = self.places.iter().zip(&self.metas).filter(|(_, meta)| !meta.is_forgotten);
        held.into_iter().any(|(place, _)| place.segment == number && place.offset == offset)
    }
}

/// Removes what a process left that ended while it wrote a segment anew.
pub(super) fn finish_interrupted(folder: &Path) -> std::io::Result<()> {
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "partial") {
            fs_err::remove_file(path)?;
        }
    }
    Ok(())
}
