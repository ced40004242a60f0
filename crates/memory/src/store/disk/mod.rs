//! Blocks on disk: the memory that survives.
//!
//! ```text
//! DATA/FORMAT                       "everstream data 1"
//! DATA/sessions/NAME/lock           held by the process that works with the session
//! DATA/sessions/NAME/blocks/000001.blocks …    segments: everything about every block
//! DATA/sessions/NAME/catalog        what lies where, and the embeddings; can be made again
//! ```
//!
//! A block is appended to a segment as one record that checks itself, with one write. When
//! [`append`](BlockStore::append) returns, the block survives the end of the process, however it
//! ends; after [`sync`](BlockStore::sync) it survives a power failure. The catalogue is written
//! every [`COMMIT_BLOCKS`] blocks and by `sync`; what it lacks at the next start is read from the
//! segments' ends, and if it is damaged it is made again. `docs/FORMAT.md` has every byte.
//!
//! Good for streams of any length: in RAM stay some hundred bytes per block and the blocks that
//! were read last. Bad for two writers: a session belongs to one process at a time, and a branch
//! keeps what is new to it in RAM ([`Overlay`]).

mod catalog;
mod compact;
mod folder;
mod head;
mod hot;
mod limit;
mod maker;
mod opening;
mod segment;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use everstream_kv_cache::TokenPos;
use fs_err::File;

use super::overlay::Base;
use super::{BlockMeta, BlockStore, BlockText, Overlay, StoreError, check_held, check_order};
use crate::block::{Block, BlockId, NewBlock};
use crate::kv::{BlockKv, KvShape, KvType};
use crate::record::{self, PREFIX_BYTES, Prefix};
use catalog::{Catalog, Changes};
use head::{MakerId, Summary};
use hot::Hot;
use opening::Opening;
use segment::{Header, Writer};

pub use compact::Compacted;
pub use folder::{SessionFolder, check_name, write_whole};
pub use limit::Keep;
pub use maker::Maker;

/// Blocks that the catalogue may lack.
const COMMIT_BLOCKS: usize = 256;
/// Bytes after which a new segment begins.
pub const DEFAULT_SEGMENT_BYTES: u64 = 64 << 20;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// What makes the keys and values; `None` takes what made those that are stored.
    pub maker: Option<Maker>,
    /// Names the sentence encoder. Embeddings of another one are made again; `None` takes what is
    /// there.
    pub encoder: Option<String>,
    /// Bytes after which a new segment begins.
    pub segment_bytes: u64,
    /// Bytes of keys and values that are kept in RAM after they were read.
    pub hot_bytes: usize,
    /// Bytes of all segments.
    pub max_bytes: Option<u64>,
    /// What stays of more than that.
    pub keep: Keep,
}

impl Default for DiskOptions {
    /// Segments and RAM of 64 MiB, no limit.
    fn default() -> Self {
        Self {
            maker: None,
            encoder: None,
            segment_bytes: DEFAULT_SEGMENT_BYTES,
            hot_bytes: 64 << 20,
            max_bytes: None,
            keep: Keep::default(),
        }
    }
}

/// Bytes that are not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// Where in it.
    pub bytes: Range<u64>,
    /// The tokens that lay there, if the blocks around them tell.
    pub tokens: Option<Range<TokenPos>>,
    /// What was found instead.
    pub what: &'static str,
}

impl Damage {
    /// The process ended while the record was written, so nobody was told that it is stored.
    pub const TORN: &'static str = "a record that was not finished";
    /// The catalogue knows blocks that are in no segment: a file was cut off or taken away. They are named until
    /// the store is [compacted](DiskStore::compact).
    pub const GONE: &'static str = "blocks that are gone";
}

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    segment: u32,
    offset: u64,
    prefix: Prefix,
    /// What the block is of: its summary without what stands in its [`BlockMeta`].
    start: u64,
    n_tokens: u32,
    id: BlockId,
    maker: MakerId,
    shape: KvShape,
    kv_type: KvType,
}

impl Place {
    fn new(segment: u32, offset: u64, prefix: Prefix, summary: &Summary) -> Self {
        let Summary { meta, maker, shape, kv_type } = summary;
        Self {
            segment,
            offset,
            prefix,
            start: meta.range.start.0,
            n_tokens: meta.n_tokens() as u32,
            id: meta.id,
            maker: *maker,
            shape: *shape,
            kv_type: *kv_type,
        }
    }

    fn summary(&self, meta: &BlockMeta) -> Summary {
        let (maker, shape, kv_type) = (self.maker, self.shape, self.kv_type);
        Summary { meta: meta.clone(), maker, shape, kv_type }
    }

    fn tokens(&self) -> Range<TokenPos> {
        TokenPos(self.start)..TokenPos(self.start).after(self.n_tokens as usize)
    }
}

/// What a store and its branches read from.
#[derive(Debug)]
struct Shared {
    session: Arc<str>,
    folder: PathBuf,
    catalog: Mutex<Catalog>,
    /// What the catalogue does not know yet.
    fresh: Mutex<Changes>,
    /// Open segments, by number.
    files: Mutex<BTreeMap<u32, Arc<File>>>,
    hot: Mutex<Hot>,
}

/// The blocks of one session on disk.
#[derive(Debug)]
pub struct DiskStore {
    /// Keeps the session locked.
    folder: Arc<SessionFolder>,
    options: DiskOptions,
    maker: Option<Maker>,
    shared: Arc<Shared>,
    metas: Vec<BlockMeta>,
    places: Arc<Vec<Place>>,
    /// Generation and bytes of each segment.
    segments: BTreeMap<u32, (u64, u64)>,
    writer: Option<Writer>,
    /// Segments that were filled since the last `sync`.
    full: Vec<Writer>,
    damage: Vec<Damage>,
    /// The record that is being written.
    record: Vec<u8>,
    n_dropped: usize,
}

impl DiskStore {
    /// Opens what a session remembers; an empty store for a new one.
    ///
    /// # Errors
    ///
    /// [`StoreError::Maker`] if another model made it, [`StoreError::Format`],
    /// [`StoreError::Limit`] or [`StoreError::File`]. Damaged blocks are
    /// no error: [`damage`](Self::damage) lists them.
    pub fn open(folder: Arc<SessionFolder>, options: DiskOptions) -> Result<Self, StoreError> {
        let least = options.keep.fewest_segments() * options.segment_bytes;
        if let Some(max_bytes) = options.max_bytes.filter(|&max| max < least) {
            return Err(StoreError::Limit { max_bytes, least });
        }
        let blocks = folder.path().join("blocks");
        fs_err::create_dir_all(&blocks)?;
        compact::finish_interrupted(&blocks)?;
        let (catalog, known) =
            Catalog::open(&folder.path().join("catalog"), options.encoder.as_deref())?;
        let opening = Opening::new(&blocks, known)?;
        let made = opening.header.as_ref().map(|header| &header.maker);
        // Blocks are named after the session, whatever its folder is called by now.
        let session = opening.header.as_ref().map_or(folder.name(), |header| &*header.session);
        let session: Arc<str> = Arc::from(session);
        if let (Some(made), Some(maker)) = (made, &options.maker)
            && let Some(difference) = maker.difference(made)
        {
            let (session, found) = (folder.name().to_owned(), made.model.clone());
            return Err(StoreError::Maker { session, found, difference });
        }
        let maker = options.maker.clone().or(made.cloned());
        let last = opening.segments.last_key_value().map(|(&number, &segment)| (number, segment));
        let writer = match last {
            Some((number, segment)) if segment.may_go_on => {
                Some(Writer::resume(&blocks, number, segment.whole_bytes)?)
            }
            _ => None,
        };
        let segments = opening.segments.iter();
        let mut segments: BTreeMap<u32, (u64, u64)> =
            segments.map(|(&n, s)| (n, (s.generation, s.file_bytes))).collect();
        let mut damage = opening.damage;
        if let Some(writer) = &writer {
            segments.entry(writer.number).and_modify(|segment| segment.1 = writer.len());
            // It was cut off, and nobody was told that it is stored.
            let path = segment::path(&blocks, writer.number);
            damage.retain(|d| d.what != Damage::TORN || d.path != path);
        }
        let (metas, places) = opening.blocks.into_values().unzip();
        let shared = Shared {
            session,
            folder: blocks,
            catalog: Mutex::new(catalog),
            fresh: Mutex::new(opening.changes),
            files: Mutex::default(),
            hot: Mutex::new(Hot::new(options.hot_bytes)),
        };
        let mut store = Self {
            folder,
            options,
            maker,
            shared: Arc::new(shared),
            metas,
            places: Arc::new(places),
            segments,
            writer,
            full: Vec::new(),
            damage,
            record: Vec::new(),
            n_dropped: 0,
        };
        store.share_sources();
        store.commit_catalog()?;
        // What cannot be dropped now is dropped later.
        let _ = store.keep_limit();
        Ok(store)
    }

    /// The session's folder.
    #[must_use]
    pub fn folder(&self) -> &Arc<SessionFolder> {
        &self.folder
    }

    /// The name that the blocks are made with: the one that the session's folder had when it began.
    #[must_use]
    pub fn session(&self) -> &str {
        &self.shared.session
    }

    /// What made the keys and values, once anything is stored or the options said it.
    #[must_use]
    pub fn maker(&self) -> Option<&Maker> {
        self.maker.as_ref()
    }

    /// What was found damaged when the store was opened.
    #[must_use]
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    /// Bytes of all segments.
    #[must_use]
    pub fn segment_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.1).sum()
    }

    /// Blocks that were dropped since the store was opened, to keep within the limit.
    #[must_use]
    pub fn n_dropped(&self) -> usize {
        self.n_dropped
    }

    /// Reads everything that is stored and returns what is damaged.
    ///
    /// # Errors
    ///
    /// If a segment cannot be read at all.
    pub fn verify(&self, progress: &mut dyn FnMut(usize)) -> Result<Vec<Damage>, StoreError> {
        let mut damage = Vec::new();
        for (order, place) in self.places.iter().enumerate() {
            if !self.metas[order].is_forgotten {
                match self.shared.read(place) {
                    Ok(_) => {}
                    Err(StoreError::Damaged { tokens, path, offset }) => damage.push(Damage {
                        path,
                        bytes: offset..offset + place.prefix.len(),
                        tokens: Some(tokens),
                        what: "a damaged block",
                    }),
                    Err(error) => return Err(error),
                }
            }
            progress(order + 1);
        }
        // What belongs to no block that is known: it was lost before, or says nothing of one.
        for &number in self.segments.keys() {
            let path = segment::path(&self.shared.folder, number);
            record::scan::<StoreError>(&File::open(&path)?, 0, &mut |found| {
                let (bytes, what) = match found {
                    record::Found::Record { .. } => return Ok(()),
                    record::Found::Damaged(bytes) => (bytes, "no record"),
                    record::Found::Torn(bytes) => (bytes, Damage::TORN),
                };
                let is_known = |d: &Damage| d.path == path && bytes.contains(&d.bytes.start);
                if !damage.iter().any(is_known) {
                    let of_these = |d: &&Damage| d.path == path && d.bytes == bytes;
                    let tokens = self.damage.iter().find(of_these).and_then(|d| d.tokens.clone());
                    damage.push(Damage { path: path.clone(), bytes, tokens, what });
                }
                Ok(())
            })?;
        }
        damage.extend(self.damage.iter().filter(|d| d.what == Damage::GONE).cloned());
        Ok(damage)
    }

    /// Forgets all blocks that reach beyond token `end` and frees their place in the stream, which
    /// goes on from there.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; blocks before the one that failed, from the last on, are forgotten.
    pub fn truncate(&mut self, end: TokenPos) -> Result<(), StoreError> {
        while self.metas.last().is_some_and(|meta| meta.range.end > end) {
            let order = self.metas.len() - 1;
            match self.forget(order) {
                Ok(()) | Err(StoreError::Forgotten { .. }) => {}
                Err(error) => return Err(error),
            }
            self.metas.pop();
            Arc::make_mut(&mut self.places).pop();
        }
        Ok(())
    }

    /// Blocks of one file share its name.
    fn share_sources(&mut self) {
        let mut last: Option<Arc<str>> = None;
        for source in self.metas.iter_mut().filter_map(|meta| meta.source.as_mut()) {
            match &last {
                Some(file) if **file == *source.file => source.file = Arc::clone(file),
                _ => last = Some(Arc::clone(&source.file)),
            }
        }
    }

    fn reader(&self) -> Reader {
        Reader { shared: Arc::clone(&self.shared), places: Arc::clone(&self.places) }
    }

    /// Appends `self.record` to the segment that has room for it.
    fn append_record(&mut self) -> Result<(u32, u64), StoreError> {
        let is_full = |w: &Writer| w.len() + self.record.len() as u64 > self.options.segment_bytes;
        if self.writer.as_ref().is_none_or(is_full) {
            let session = self.session();
            let maker = self.maker.clone();
            let maker = maker.ok_or_else(|| StoreError::NoMaker { session: session.to_owned() })?;
            let number = self.segments.last_key_value().map_or(1, |(number, _)| number + 1);
            let header = Header::new(session, maker, 0);
            let writer = Writer::create(&self.shared.folder, number, &header)?;
            self.segments.insert(number, (0, writer.len()));
            if let Some(full) = self.writer.replace(writer) {
                let generation = self.segments.get(&full.number).map_or(0, |segment| segment.0);
                lock(&self.shared.fresh).segments.push((full.number, generation, full.len()));
                self.full.push(full);
            }
        }
        let writer = self.writer.as_mut().expect("one was made above");
        let offset = writer.append(&self.record)?;
        let (number, len) = (writer.number, writer.len());
        self.segments.entry(number).and_modify(|segment| segment.1 = len);
        Ok((number, offset))
    }

    /// Knows of a block no more than that it was there.
    fn let_go(&mut self, order: usize) {
        let start = self.places[order].start;
        self.metas[order].is_forgotten = true;
        lock(&self.shared.hot).remove(order);
        let mut fresh = lock(&self.shared.fresh);
        fresh.blocks.remove(&start);
        fresh.embeddings.remove(&start);
        fresh.removed.push(start);
    }

    /// Writes the catalogue anew, with nothing in it but what counts.
    fn rewrite_catalog(&mut self) -> Result<(), StoreError> {
        self.commit_catalog()?;
        let held = self.metas.iter().zip(self.places.iter()).filter(|(m, _)| !m.is_forgotten);
        let blocks = held.map(|(meta, place)| (place.start, (meta.clone(), *place))).collect();
        let lost = BTreeMap::new();
        let known = catalog::Known { blocks, segments: self.segments.clone(), lost };
        lock(&self.shared.catalog).rewrite(&known)
    }

    fn commit_catalog(&mut self) -> Result<(), StoreError> {
        let mut fresh = lock(&self.shared.fresh);
        if let Some(writer) = &self.writer
            && !fresh.is_empty()
        {
            let generation = self.segments.get(&writer.number).map_or(0, |segment| segment.0);
            fresh.segments.retain(|segment| segment.0 != writer.number);
            fresh.segments.push((writer.number, generation, writer.len()));
        }
        if !fresh.is_empty() {
            lock(&self.shared.catalog).commit(&fresh)?;
            *fresh = Changes::default();
        }
        Ok(())
    }
}

impl BlockStore for DiskStore {
    fn append(&mut self, block: Arc<Block>) -> Result<(), StoreError> {
        check_order(&self.metas, &block)?;
        let maker = self.maker.as_ref().map(Maker::id).unwrap_or_default();
        let summary = Summary::of(&block, maker);
        let head = head::encode(&block, &summary);
        let body = block.kv().to_bytes();
        self.record.clear();
        record::encode(segment::BLOCK, &head, &body, &mut self.record);
        let (number, offset) = self.append_record()?;
        let prefix =
            self.record.first_chunk().and_then(Prefix::parse).expect("it was just encoded");
        let place = Place::new(number, offset, prefix, &summary);
        self.metas.push(summary.meta.clone());
        Arc::make_mut(&mut self.places).push(place);
        let mut fresh = lock(&self.shared.fresh);
        fresh.blocks.insert(place.start, (place, summary));
        let n_fresh = fresh.blocks.len();
        drop(fresh);
        // The block is stored; if the catalogue cannot be written or room not be made now, that is
        // tried again, and `sync` says so.
        let _ = self.keep_limit();
        if n_fresh >= COMMIT_BLOCKS {
            let _ = self.commit_catalog();
        }
        Ok(())
    }

    fn set_embedding(&mut self, order: usize, embedding: &[f32]) -> Result<(), StoreError> {
        if self.embedding(order)?.is_none() {
            let Place { start, id, .. } = self.places[order];
            lock(&self.shared.fresh).embeddings.insert(start, (id, embedding.to_vec()));
        }
        Ok(())
    }

    fn get(&self, order: usize) -> Result<Arc<Block>, StoreError> {
        check_held(&self.metas, order)?;
        self.reader().get(order)
    }

    fn text(&self, order: usize) -> Result<BlockText, StoreError> {
        check_held(&self.metas, order)?;
        self.reader().text(order)
    }

    fn embedding(&self, order: usize) -> Result<Option<Vec<f32>>, StoreError> {
        check_held(&self.metas, order)?;
        self.reader().embedding(order)
    }

    fn forget(&mut self, order: usize) -> Result<(), StoreError> {
        let id = check_held(&self.metas, order)?.id;
        let start = self.places[order].start;
        self.record = segment::forget_record(start, id.0);
        self.append_record()?;
        self.let_go(order);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        for writer in self.full.iter().chain(&self.writer) {
            writer.sync()?;
        }
        self.full.clear();
        self.keep_limit()?;
        self.commit_catalog()?;
        Ok(lock(&self.shared.catalog).sync()?)
    }

    fn metas(&self) -> &[BlockMeta] {
        &self.metas
    }

    fn branch(&self) -> Result<Box<dyn BlockStore>, StoreError> {
        Ok(Box::new(Overlay::new(Arc::new(self.reader()), self.metas.clone())))
    }
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        // Only saves work at the next start, which reads from the segments what is missing.
        let _ = self.commit_catalog();
    }
}

/// The blocks of a store up to some moment.
#[derive(Debug)]
struct Reader {
    shared: Arc<Shared>,
    places: Arc<Vec<Place>>,
}

impl Base for Reader {
    fn get(&self, order: usize) -> Result<Arc<Block>, StoreError> {
        if let Some(block) = lock(&self.shared.hot).get(order) {
            return Ok(block);
        }
        let block = Arc::new(self.shared.read(&self.places[order])?);
        lock(&self.shared.hot).put(order, Arc::clone(&block));
        Ok(block)
    }

    fn text(&self, order: usize) -> Result<BlockText, StoreError> {
        let place = &self.places[order];
        let file = self.shared.file(place.segment)?;
        let mut head = vec![0; place.prefix.head_len];
        let offset = place.offset + PREFIX_BYTES as u64;
        record::read_exact_at(&file, &mut head, offset).map_err(|_| self.shared.damaged(place))?;
        let is_whole = crc32fast::hash(&head) == place.prefix.head_crc;
        let head = head::decode(&head).filter(|_| is_whole);
        let head = head.ok_or_else(|| self.shared.damaged(place))?;
        Ok(BlockText { tokens: head.tokens, text: head.text })
    }

    fn embedding(&self, order: usize) -> Result<Option<Vec<f32>>, StoreError> {
        let Place { start, id, .. } = self.places[order];
        if let Some((_, embedding)) = lock(&self.shared.fresh).embeddings.get(&start) {
            return Ok(Some(embedding.clone()));
        }
        lock(&self.shared.catalog).embedding(start, id)
    }
}

impl Shared {
    fn file(&self, number: u32) -> Result<Arc<File>, StoreError> {
        let mut files = lock(&self.files);
        if let Some(file) = files.get(&number) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(File::open(segment::path(&self.folder, number))?);
        files.insert(number, Arc::clone(&file));
        Ok(file)
    }

    fn damaged(&self, place: &Place) -> StoreError {
        let path = segment::path(&self.folder, place.segment);
        StoreError::Damaged { tokens: place.tokens(), path, offset: place.offset }
    }

    /// Reads a block and checks every byte of it.
    fn read(&self, place: &Place) -> Result<Block, StoreError> {
        let file = self.file(place.segment)?;
        // A sector that cannot be read is damage like any other.
        let found = self.read_from(&file, place).ok().flatten();
        found.map(|(_, block)| block).ok_or_else(|| self.damaged(place))
    }

    /// As [`read`](Self::read), with its record, where a block that is not whole is told from one that
    /// cannot be read now.
    fn read_whole(&self, place: &Place) -> Result<Option<(Vec<u8>, Block)>, StoreError> {
        Ok(self.read_from(&*self.file(place.segment)?, place)?)
    }

    fn read_from(&self, file: &File, place: &Place) -> std::io::Result<Option<(Vec<u8>, Block)>> {
        let mut bytes = vec![0; place.prefix.len() as usize];
        match record::read_exact_at(file, &mut bytes, place.offset) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
            Ok(()) => Ok(self.parse(place, &bytes).map(|block| (bytes, block))),
        }
    }

    fn parse(&self, place: &Place, bytes: &[u8]) -> Option<Block> {
        let (prefix, rest) = bytes.split_first_chunk::<PREFIX_BYTES>()?;
        let (head, body) = rest.split_at_checked(place.prefix.head_len)?;
        let is_whole = Prefix::parse(prefix)? == place.prefix
            && crc32fast::hash(head) == place.prefix.head_crc
            && crc32fast::hash(body) == place.prefix.body_crc;
        let head = head::decode(head).filter(|_| is_whole)?;
        let Summary { meta, shape, kv_type, .. } = head.summary;
        let kv = BlockKv::from_bytes(shape, head.tokens.len(), kv_type, body).ok()?;
        let content = NewBlock {
            range: meta.range,
            tokens: head.tokens,
            text: head.text,
            role: meta.role,
            source: meta.source,
            written_at: meta.written_at,
            kv,
        };
        let block = Block::new(Arc::clone(&self.session), content).ok()?;
        (block.id() == meta.id).then_some(block)
    }
}

/// What the lock guards is whole after every statement, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
