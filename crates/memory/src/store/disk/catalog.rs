//! The catalogue: a log of what a start must know without reading the segments, and of the
//! embeddings.
//!
//! Everything in it can be made again, from the segments or by the sentence encoder. So damage
//! to it costs time and nothing else: what is readable of it is used, and the segments are read
//! again (`docs/decisions/005-catalogue.md` says why it is no embedded database).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use fs_err::{File, OpenOptions};
use std::io::Write;

use super::head::Summary;
use super::{Place, StoreError};
use crate::block::BlockId;
use crate::codec::{Decoder, Encoder};
use crate::record::{self, Found, PREFIX_BYTES, Prefix};
use crate::store::BlockMeta;

/// Format and sentence encoder: the first record.
const ABOUT: u8 = 1;
/// A block and where it lies.
const BLOCK: u8 = 2;
/// The embedding of a block's text.
const EMBEDDING: u8 = 3;
/// Up to where a segment is catalogued.
const SEGMENT: u8 = 4;
/// A block that is gone because it was to go.
const REMOVED: u8 = 5;
/// A block that is gone and was not to go.
const LOST: u8 = 6;

const FORMAT: u32 = 1;
/// Bytes of records that no longer count, before the catalogue is written anew.
const MAX_GARBAGE_BYTES: u64 = 1 << 20;

/// What is to be written at once.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// First tokens of blocks that are gone.
    pub(super) removed: Vec<u64>,
    /// By first token.
    pub(super) blocks: BTreeMap<u64, (Place, Summary)>,
    /// By first token.
    pub(super) embeddings: BTreeMap<u64, (BlockId, Vec<f32>)>,
    /// Number, generation, and bytes that are catalogued.
    pub(super) segments: Vec<(u32, u64, u64)>,
    /// First token of blocks that were not found, and the one behind the last.
    pub(super) lost: BTreeMap<u64, u64>,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.removed.is_empty()
            && self.blocks.is_empty()
            && self.embeddings.is_empty()
            && self.segments.is_empty()
            && self.lost.is_empty()
    }
}

/// What the catalogue knew when it was opened.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// By first token.
    pub(super) blocks: BTreeMap<u64, (BlockMeta, Place)>,
    /// Generation and catalogued bytes of each segment.
    pub(super) segments: BTreeMap<u32, (u64, u64)>,
    /// As [`Changes::lost`].
    pub(super) lost: BTreeMap<u64, u64>,
}

/// Where an embedding lies in the file.
#[derive(Clone, Copy, Debug)]
struct EmbeddingPlace {
    id: BlockId,
    offset: u64,
    prefix: Prefix,
}

#[derive(Debug)]
pub(super) struct Catalog {
    path: PathBuf,
    file: File,
    len: u64,
    encoder: String,
    /// By first token.
    embeddings: BTreeMap<u64, EmbeddingPlace>,
}

impl Catalog {
    /// Opens the catalogue at `path`, or begins one. Embeddings of another encoder are left out.
    pub(super) fn open(path: &Path, encoder: Option<&str>) -> Result<(Self, Known), StoreError> {
        let mut reading = Reading::default();
        if path.exists() {
            let file = File::open(path)?;
            record::scan::<io::Error>(&file, 0, &mut |found| {
                reading.record(found);
                Ok(())
            })?;
        }
        let found = reading.encoder.take();
        let encoder = encoder.or(found.as_deref()).unwrap_or_default().to_owned();
        let is_ours = found.as_ref() == Some(&encoder);
        if !is_ours {
            reading.embeddings.clear();
        }
        if !reading.is_whole {
            // What a segment holds is known only if every record of it was read.
            reading.known = Known::default();
        }
        let Reading { known, embeddings, len, .. } = reading;
        let file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        let mut catalog = Self { path: path.to_owned(), file, len, encoder, embeddings };
        let live = catalog.live_bytes(&known);
        if !is_ours || !reading.is_whole || len > 2 * live + MAX_GARBAGE_BYTES {
            catalog.rewrite(&known)?;
        }
        Ok((catalog, known))
    }

    /// The embedding of block `id`, which starts at token `start`.
    pub(super) fn embedding(
        &self,
        start: u64,
        id: BlockId,
    ) -> Result<Option<Vec<f32>>, StoreError> {
        let Some(place) = self.embeddings.get(&start).filter(|place| place.id == id) else {
            return Ok(None);
        };
        let mut head = vec![0; place.prefix.head_len];
        record::read_exact_at(&self.file, &mut head, place.offset + PREFIX_BYTES as u64)?;
        // A damaged embedding is made again.
        let is_whole = crc32fast::hash(&head) == place.prefix.head_crc;
        Ok(decode_embedding(&head).filter(|_| is_whole).map(|(_, _, embedding)| embedding))
    }

    /// Appends all changes. What the end of the process cuts off is read from the segments or
    /// made again.
    pub(super) fn commit(&mut self, changes: &Changes) -> Result<(), StoreError> {
        let (mut bytes, mut embeddings) = (Vec::new(), Vec::new());
        // Before it is removed, so that a write that is cut off does not lose its name.
        encode_lost(&changes.lost, &mut bytes);
        for &start in &changes.removed {
            let mut head = Encoder::default();
            head.u64(start);
            record::encode(REMOVED, &head.0, &[], &mut bytes);
        }
        for (place, summary) in changes.blocks.values() {
            record::encode(BLOCK, &encode_block(place, summary), &[], &mut bytes);
        }
        for (&start, (id, embedding)) in &changes.embeddings {
            embeddings.push((start, *id, bytes.len()));
            record::encode(EMBEDDING, &encode_embedding(start, *id, embedding), &[], &mut bytes);
        }
        // Last: they say that the blocks before them are catalogued.
        for segment in &changes.segments {
            record::encode(SEGMENT, &encode_segment(*segment), &[], &mut bytes);
        }
        self.append(&bytes)?;
        for start in &changes.removed {
            self.embeddings.remove(start);
        }
        let start_of_write = self.len - bytes.len() as u64;
        for (start, id, at) in embeddings {
            if let Some(prefix) = bytes[at..].first_chunk().and_then(Prefix::parse) {
                let offset = start_of_write + at as u64;
                self.embeddings.insert(start, EmbeddingPlace { id, offset, prefix });
            }
        }
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.file.metadata()?.len() != self.len {
            self.file.set_len(self.len)?;
        }
        if let Err(error) = self.file.write_all(bytes) {
            let _ = self.file.set_len(self.len);
            return Err(error);
        }
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Bytes of the records that count, about.
    fn live_bytes(&self, known: &Known) -> u64 {
        let embeddings: u64 = self.embeddings.values().map(|place| place.prefix.len()).sum();
        embeddings + 200 * (known.blocks.len() + known.segments.len() + 1) as u64
    }

    /// Writes a catalogue of what counts in place of this one.
    pub(super) fn rewrite(&mut self, known: &Known) -> Result<(), StoreError> {
        let mut bytes = Vec::new();
        let mut head = Encoder::default();
        head.u32(FORMAT);
        head.bytes(self.encoder.as_bytes());
        record::encode(ABOUT, &head.0, &[], &mut bytes);
        encode_lost(&known.lost, &mut bytes);
        for (meta, place) in known.blocks.values() {
            let summary = place.summary(meta);
            record::encode(BLOCK, &encode_block(place, &summary), &[], &mut bytes);
        }
        let mut embeddings = BTreeMap::new();
        for (&start, place) in &self.embeddings {
            if let Some(embedding) = self.embedding(start, place.id)? {
                let (at, head) = (bytes.len(), encode_embedding(start, place.id, &embedding));
                record::encode(EMBEDDING, &head, &[], &mut bytes);
                embeddings.insert(start, EmbeddingPlace { offset: at as u64, ..*place });
            }
        }
        for (&number, &(generation, n_bytes)) in &known.segments {
            let head = encode_segment((number, generation, n_bytes));
            record::encode(SEGMENT, &head, &[], &mut bytes);
        }
        super::write_whole(&self.path, &bytes)?;
        self.file = OpenOptions::new().read(true).append(true).open(&self.path)?;
        (self.len, self.embeddings) = (bytes.len() as u64, embeddings);
        Ok(())
    }
}

/// The state of a walk through the records.
#[derive(Debug, Default)]
struct Reading {
    known: Known,
    embeddings: BTreeMap<u64, EmbeddingPlace>,
    encoder: Option<String>,
    is_whole: bool,
    /// Bytes up to the end of the last whole record.
    len: u64,
}

impl Reading {
    fn record(&mut self, found: Found) {
        match found {
            Found::Record { offset, prefix, head } => {
                if offset == 0 {
                    self.encoder = decode_about(&head).filter(|_| prefix.kind == ABOUT);
                    self.is_whole = self.encoder.is_some();
                }
                self.len = offset + prefix.len();
                if self.whole_record(offset, prefix, &head).is_none() {
                    self.is_whole = false;
                }
            }
            // As when the process ended while it wrote: nothing before is touched.
            Found::Torn(_) => {}
            Found::Damaged(_) => self.is_whole = false,
        }
    }

    fn whole_record(&mut self, offset: u64, prefix: Prefix, head: &[u8]) -> Option<()> {
        match prefix.kind {
            ABOUT => {}
            BLOCK => {
                let (place, summary) = decode_block(head)?;
                self.known.lost.remove(&place.start);
                self.known.blocks.insert(place.start, (summary.meta, place));
            }
            LOST => {
                let mut from = Decoder(head);
                let (start, end) = (from.u64()?, from.u64()?);
                from.end()?;
                self.known.lost.insert(start, end);
            }
            EMBEDDING => {
                let (start, id, _) = decode_embedding(head)?;
                self.embeddings.insert(start, EmbeddingPlace { id, offset, prefix });
            }
            SEGMENT => {
                let (number, generation, bytes) = decode_segment(head)?;
                self.known.segments.insert(number, (generation, bytes));
            }
            REMOVED => {
                let start = Decoder(head).u64()?;
                self.known.blocks.remove(&start);
                self.embeddings.remove(&start);
            }
            _ => return None,
        }
        Some(())
    }
}

fn encode_lost(lost: &BTreeMap<u64, u64>, bytes: &mut Vec<u8>) {
    for (&start, &end) in lost {
        let mut head = Encoder::default();
        head.u64(start);
        head.u64(end);
        record::encode(LOST, &head.0, &[], bytes);
    }
}

fn decode_about(head: &[u8]) -> Option<String> {
    let mut from = Decoder(head);
    (from.u32()? == FORMAT).then_some(())?;
    let encoder = from.text()?.to_owned();
    from.end()?;
    Some(encoder)
}

fn encode_block(place: &Place, summary: &Summary) -> Vec<u8> {
    let mut to = Encoder::default();
    to.u32(place.segment);
    to.u64(place.offset);
    to.u32(place.prefix.head_len as u32);
    to.u32(place.prefix.body_len as u32);
    to.u32(place.prefix.head_crc);
    to.u32(place.prefix.body_crc);
    summary.encode(&mut to);
    to.0
}

fn decode_block(head: &[u8]) -> Option<(Place, Summary)> {
    let mut from = Decoder(head);
    let (segment, offset) = (from.u32()?, from.u64()?);
    let (head_len, body_len) = (from.u32()? as usize, from.u32()? as usize);
    let (head_crc, body_crc) = (from.u32()?, from.u32()?);
    let summary = Summary::decode(&mut from)?;
    from.end()?;
    let kind = super::segment::BLOCK;
    let prefix = Prefix { kind, head_len, body_len, head_crc, body_crc };
    Some((Place::new(segment, offset, prefix, &summary), summary))
}

fn encode_embedding(start: u64, id: BlockId, embedding: &[f32]) -> Vec<u8> {
    let mut to = Encoder::default();
    to.u64(start);
    to.u64(id.0);
    to.f32s(embedding);
    to.0
}

fn decode_embedding(head: &[u8]) -> Option<(u64, BlockId, Vec<f32>)> {
    let mut from = Decoder(head);
    let embedding = (from.u64()?, BlockId(from.u64()?), from.f32s()?);
    from.end()?;
    Some(embedding)
}

fn encode_segment((number, generation, bytes): (u32, u64, u64)) -> Vec<u8> {
    let mut to = Encoder::default();
    to.u32(number);
    to.u64(generation);
    to.u64(bytes);
    to.0
}

fn decode_segment(head: &[u8]) -> Option<(u32, u64, u64)> {
    let mut from = Decoder(head);
    let segment = (from.u32()?, from.u64()?, from.u64()?);
    from.end()?;
    Some(segment)
}
