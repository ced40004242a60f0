//! The vectors of a session's blocks, on a server.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::Arc;

use everstream_memory::{BlockId, Distance, ExactIndex, Hit, IndexError, MakeIndex, VectorIndex};

use crate::client::{Chroma, ChromaConfig, ChromaError, Collection};

/// Vectors that are sent at once.
const BATCH: usize = 64;
/// Ids that are asked for at once.
const PAGE: usize = 5000;
/// Results that are asked for first; a filter may turn most of them away.
const MIN_RESULTS: usize = 64;

/// An index whose vectors lie in a Chroma collection.
///
/// Vectors are sent in batches. What was not sent yet, and in a branch all that is new, is compared
/// here; if sending fails, they wait here, and sending is tried again after twice as many.
/// Approximate, as the server is.
#[derive(Debug)]
pub struct ChromaIndex {
    chroma: Chroma,
    collection: Collection,
    /// Whether this is the one that sends; branches do not.
    sends: bool,
    /// When to send: so many waiting vectors.
    batch: usize,
    next_send: usize,
    /// What lay on the server when it was opened.
    stored: Arc<HashSet<BlockId>>,
    /// All blocks that were added, each with its age; shared by branches until one adds.
    age_of: Arc<HashMap<BlockId, usize>>,
    /// Blocks that are not on the server, or not for this branch.
    waiting: ExactIndex,
}

/// Makes a [`ChromaIndex`].
#[derive(Clone, Debug)]
pub struct MakeChroma {
    /// The server.
    pub config: ChromaConfig,
    /// The collection, made if it is not there.
    pub collection: String,
    /// How to measure.
    pub distance: Distance,
    /// Name of the sentence encoder.
    pub encoder: String,
}

impl MakeIndex for MakeChroma {
    fn make(&self, dim: usize, _: NonZeroUsize) -> Result<Box<dyn VectorIndex>, IndexError> {
        Ok(Box::new(ChromaIndex::open(self, dim, BATCH)?))
    }
}

impl From<ChromaError> for IndexError {
    fn from(error: ChromaError) -> Self {
        Self::Remote { what: error.to_string() }
    }
}

impl ChromaIndex {
    /// Opens a collection; vectors are sent as soon as `batch` of them wait.
    ///
    /// # Errors
    ///
    /// [`IndexError::Remote`] if the server does not answer or the collection holds other vectors.
    pub fn open(make: &MakeChroma, dim: usize, batch: usize) -> Result<Self, IndexError> {
        let waiting = ExactIndex::new(dim, make.distance)?;
        let chroma = Chroma::new(make.config.clone());
        let collection = chroma.create(&make.collection, make.distance, &make.encoder)?;
        collection.check(dim, Some(make.distance), &make.encoder)?;
        let mut stored = HashSet::new();
        for page in 0.. {
            let ids = chroma.ids(&collection, page * PAGE, PAGE)?;
            stored.extend(ids.iter().filter_map(|id| block_id(id)));
            if ids.len() < PAGE {
                break;
            }
        }
        Ok(Self {
            chroma,
            collection,
            sends: true,
            batch,
            next_send: batch,
            stored: Arc::new(stored),
            age_of: Arc::default(),
            waiting,
        })
    }

    /// Sends what waits. If that fails, it waits on.
    fn send(&mut self) {
        // JSON has no infinity: such a vector stays here, where it is near to nothing.
        let is_sent = |vector: &[f32]| vector.iter().all(|c| c.is_finite());
        let rows = self.waiting.iter().filter(|(_, vector)| is_sent(vector));
        let (ids, embeddings): (Vec<String>, Vec<&[f32]>) =
            rows.map(|(id, vector)| (id.to_string(), vector)).unzip();
        if ids.is_empty() || self.chroma.upsert(&self.collection, &ids, &embeddings).is_ok() {
            self.waiting.retain(|_, vector| !is_sent(vector));
            self.next_send = self.waiting.len() + self.batch;
        } else {
            self.next_send = 2 * self.waiting.len();
        }
    }

    fn is_known(&self, id: BlockId) -> bool {
        self.age_of.contains_key(&id)
    }

    /// Whether a block was added and is not compared here.
    fn is_on_server(&self, id: BlockId) -> bool {
        self.is_known(id) && !self.waiting.contains(id)
    }
}

/// Block ids on the server are written as everywhere else.
fn block_id(id: &str) -> Option<BlockId> {
    let is_ours = id.len() == 16;
    u64::from_str_radix(id, 16).ok().filter(|_| is_ours).map(BlockId)
}

impl VectorIndex for ChromaIndex {
    fn add(&mut self, id: BlockId, embedding: &[f32]) -> Result<(), IndexError> {
        self.waiting.check_dim(embedding)?;
        if self.is_known(id) {
            return Err(IndexError::Duplicate { id });
        }
        if !self.stored.contains(&id) {
            self.waiting.add(id, embedding)?;
        }
        let age = self.age_of.len();
        Arc::make_mut(&mut self.age_of).insert(id, age);
        if self.sends && self.waiting.len() >= self.next_send {
            self.send();
        }
        Ok(())
    }

    fn search(
        &self,
        query: &[f32],
        n: usize,
        filter: &dyn Fn(BlockId) -> bool,
        out: &mut Vec<Hit>,
    ) -> Result<(), IndexError> {
        self.waiting.search(query, n, filter, out)?;
        if n == 0 || self.age_of.len() == self.waiting.len() || query.iter().any(|c| !c.is_finite())
        {
            return Ok(());
        }
        let mut n_results = MIN_RESULTS.max(4 * n);
        loop {
            let rows = self.chroma.query(&self.collection, query, n_results, &["distances"])?;
            let found: Vec<Hit> = rows
                .iter()
                .filter_map(|row| Some(Hit { id: block_id(&row.id)?, distance: row.distance }))
                .filter(|hit| self.is_on_server(hit.id) && filter(hit.id))
                .collect();
            if found.len() < n && rows.len() == n_results {
                n_results *= 4;
                continue;
            }
            out.extend(found);
            break;
        }
        out.sort_by(|a, b| {
            let by_age = || self.age_of[&a.id].cmp(&self.age_of[&b.id]);
            a.distance.total_cmp(&b.distance).then_with(by_age)
        });
        out.truncate(n);
        Ok(())
    }

    fn vectors(&self, ids: &[BlockId], out: &mut Vec<f32>) -> Result<(), IndexError> {
        if let Some(&id) = ids.iter().find(|&&id| !self.is_known(id)) {
            return Err(IndexError::Unknown { id });
        }
        let there: Vec<String> =
            ids.iter().filter(|id| self.is_on_server(**id)).map(BlockId::to_string).collect();
        let mut vectors: HashMap<String, Vec<f32>> = HashMap::new();
        for ids in there.chunks(PAGE / 10) {
            let records = self.chroma.get(&self.collection, ids)?;
            let embeddings = records.embeddings.unwrap_or_default();
            let rows = records.ids.into_iter().zip(embeddings);
            vectors.extend(rows.filter_map(|(id, vector)| Some((id, vector?))));
        }
        let mut all = Vec::new();
        let mut one = Vec::new();
        for &id in ids {
            if self.waiting.contains(id) {
                self.waiting.vectors(&[id], &mut one)?;
            } else {
                let vector = vectors.get(&id.to_string()).filter(|v| v.len() == self.dim());
                let lost = || self.chroma.nonsense(&format!("the vector of block {id} is gone"));
                one.clone_from(vector.ok_or_else(lost)?);
                if self.distance() == Distance::Cosine {
                    everstream_memory::normalise(&mut one);
                }
            }
            all.append(&mut one);
        }
        *out = all;
        Ok(())
    }

    fn remove(&mut self, id: BlockId) -> Result<(), IndexError> {
        if self.waiting.contains(id) {
            self.waiting.retain(|waits, _| waits != id);
        }
        // Another process may have sent it.
        if self.sends && self.is_known(id) {
            self.chroma.delete(&self.collection, &id.to_string())?;
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.age_of.len()
    }

    fn dim(&self) -> usize {
        self.waiting.dim()
    }

    fn distance(&self) -> Distance {
        self.waiting.distance()
    }

    fn branch(&self) -> Result<Box<dyn VectorIndex>, IndexError> {
        Ok(Box::new(Self {
            chroma: self.chroma.clone(),
            collection: self.collection.clone(),
            sends: false,
            batch: self.batch,
            next_send: self.next_send,
            stored: Arc::clone(&self.stored),
            age_of: Arc::clone(&self.age_of),
            waiting: self.waiting.clone(),
        }))
    }
}
