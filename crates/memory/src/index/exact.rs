//! The plainest index: every vector is compared with the query, most of them in 8 bits.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;

use super::distance::{dot, squared_difference};
use super::sketch::Sketches;
use super::{Distance, Hit, IndexError, MakeIndex, VectorIndex};
use crate::block::BlockId;

/// Bytes that a thread should have to read: starting one takes as long as a tenth of that.
const BYTES_PER_THREAD: usize = 4 << 20;
/// Vectors of a page. Pages do not move when more come: a buffer that doubles leaves holes as large as itself.
const PAGE_ROWS: usize = 1024;
/// Rows that are compared in full first: what they are found at bounds what else must be.
const N_SAMPLED: usize = 256;

/// Compares the query with every vector: exact, and the oracle of approximate indexes.
///
/// f32 storage, `[n_blocks, dim]` in pages, f32 sums, and a sketch of each vector in 8 bits
/// (`index/sketch.rs`). A search reads all sketches, with several threads if they are many, and
/// compares in full what they cannot rule out: the same blocks at the same distances, to the bit,
/// as comparing all. That is good up to some millions of blocks.
/// Under cosine, vectors are scaled to unit length when they are added.
#[derive(Clone, Debug)]
pub struct ExactIndex {
    distance: Distance,
    dim: usize,
    n_threads: NonZeroUsize,
    /// Shared by branches until one of them adds.
    rows: Arc<Rows>,
}

/// Makes an [`ExactIndex`] that measures so.
#[derive(Clone, Copy, Debug, Default)]
pub struct MakeExact(pub Distance);

impl MakeIndex for MakeExact {
    fn make(
        &self,
        dim: usize,
        n_threads: NonZeroUsize,
    ) -> Result<Box<dyn VectorIndex>, IndexError> {
        Ok(Box::new(ExactIndex::new(dim, self.0)?.with_threads(n_threads)))
    }
}

#[derive(Clone, Debug)]
struct Rows {
    /// Shape `[n_blocks]`, in the order of addition.
    ids: Vec<BlockId>,
    /// The row of each id.
    row_of: HashMap<BlockId, usize>,
    dim: usize,
    /// Shape `[n_blocks, dim]`, [`PAGE_ROWS`] of them in each page; branches share the full ones.
    pages: Vec<Arc<Vec<f32>>>,
    sketches: Sketches,
}

impl Rows {
    fn new(dim: usize) -> Self {
        let (ids, pages) = (Vec::new(), Vec::new());
        Self { ids, row_of: HashMap::new(), dim, pages, sketches: Sketches::new(dim) }
    }

    fn push(&mut self, id: BlockId, row: &[f32]) {
        if self.ids.len().is_multiple_of(PAGE_ROWS) {
            self.pages.push(Arc::new(Vec::with_capacity(PAGE_ROWS * self.dim)));
        }
        if let Some(page) = self.pages.last_mut() {
            Arc::make_mut(page).extend_from_slice(row);
        }
        self.row_of.insert(id, self.ids.len());
        self.ids.push(id);
        self.sketches.push(row);
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.pages[row / PAGE_ROWS][row % PAGE_ROWS * self.dim..][..self.dim]
    }
}

impl ExactIndex {
    /// An empty index of vectors with `dim` components.
    ///
    /// # Errors
    ///
    /// [`IndexError::ZeroDim`] if `dim` is 0.
    pub fn new(dim: usize, distance: Distance) -> Result<Self, IndexError> {
        if dim == 0 {
            return Err(IndexError::ZeroDim);
        }
        let rows = Arc::new(Rows::new(dim));
        Ok(Self { distance, dim, n_threads: NonZeroUsize::MIN, rows })
    }

    /// Searches with up to `n_threads` threads, the caller's included; what is found does not
    /// depend on them.
    #[must_use]
    pub fn with_threads(self, n_threads: NonZeroUsize) -> Self {
        Self { n_threads, ..self }
    }

    /// Whether a block was added.
    #[must_use]
    pub fn contains(&self, id: BlockId) -> bool {
        self.rows.row_of.contains_key(&id)
    }

    /// All blocks with their vectors, as they are compared, in the order of addition.
    pub fn iter(&self) -> impl Iterator<Item = (BlockId, &[f32])> {
        self.rows.ids.iter().enumerate().map(|(row, &id)| (id, self.row(row)))
    }

    /// Keeps the blocks of which `keep` says so.
    pub fn retain(&mut self, keep: impl Fn(BlockId, &[f32]) -> bool) {
        let mut rows = Rows::new(self.dim);
        self.iter().filter(|(id, row)| keep(*id, row)).for_each(|(id, row)| rows.push(id, row));
        self.rows = Arc::new(rows);
    }

    /// Checks the length of a vector.
    ///
    /// # Errors
    ///
    /// [`IndexError::Dim`].
    pub fn check_dim(&self, vector: &[f32]) -> Result<(), IndexError> {
        if vector.len() == self.dim {
            Ok(())
        } else {
            Err(IndexError::Dim { expected: self.dim, found: vector.len() })
        }
    }

    /// For each row a number that its distance from `query` is not below.
    fn lower_bounds(&self, query: &[f32]) -> Vec<f32> {
        let mut bounds = vec![0.0; self.rows.ids.len()];
        let n_parts = (bounds.len() * self.dim).div_ceil(BYTES_PER_THREAD);
        let n_parts = self.n_threads.get().min(n_parts);
        self.rows.sketches.lower_bounds(self.distance, query, n_parts, &mut bounds);
        bounds
    }

    /// What the `n` nearest are not beyond: as far as the `n`-th of a sample. Infinite if fewer pass
    /// the filter.
    fn farthest(
        &self,
        query: &[f32],
        n: usize,
        bounds: &[f32],
        filter: &dyn Fn(BlockId) -> bool,
    ) -> f32 {
        let n_samples = N_SAMPLED.max(2 * n);
        let part = bounds.len().div_ceil(n_samples).max(1);
        let lowest = |(i, part_bounds): (usize, &[f32])| {
            let lowest =
                (0..part_bounds.len()).min_by(|&a, &b| part_bounds[a].total_cmp(&part_bounds[b]));
            lowest.map_or(0, |row| i * part + row)
        };
        let sample = bounds.chunks(part).enumerate().map(lowest);
        let mut distances: Vec<f32> = sample
            .filter(|&row| filter(self.rows.ids[row]))
            .map(|row| self.between_prepared(query, self.row(row)))
            .collect();
        match n.checked_sub(1).filter(|&last| last < distances.len()) {
            Some(last) => *distances.select_nth_unstable_by(last, f32::total_cmp).1,
            None => f32::INFINITY,
        }
    }

    /// Replaces `out` by the `n` nearest of some rows, compared one by one; `query` is
    /// [`prepared`](Self::prepared).
    #[cfg(feature = "hnsw")]
    pub(super) fn nearest_of(
        &self,
        query: &[f32],
        n: usize,
        rows: impl Iterator<Item = usize>,
        out: &mut Vec<Hit>,
    ) {
        let ranked = |order| {
            let distance = self.between_prepared(query, self.row(order));
            Ranked { distance, order }
        };
        let mut ranked: Vec<Ranked> = rows.map(ranked).collect();
        ranked.sort_unstable();
        out.clear();
        out.extend(ranked.iter().take(n).map(|ranked| self.hit(ranked)));
    }

    /// The id of a row.
    #[cfg(feature = "hnsw")]
    pub(super) fn id(&self, row: usize) -> BlockId {
        self.rows.ids[row]
    }

    fn hit(&self, ranked: &Ranked) -> Hit {
        Hit { id: self.rows.ids[ranked.order], distance: ranked.distance }
    }

    /// A vector as it is compared.
    pub(super) fn row(&self, row: usize) -> &[f32] {
        self.rows.row(row)
    }

    /// The vector as it is stored and compared.
    pub(super) fn prepared(&self, vector: &[f32]) -> Vec<f32> {
        match self.distance {
            Distance::L2 | Distance::InnerProduct => vector.to_vec(),
            Distance::Cosine => {
                let mut vector = vector.to_vec();
                normalise(&mut vector);
                vector
            }
        }
    }

    fn between_prepared(&self, query: &[f32], row: &[f32]) -> f32 {
        let distance = match self.distance {
            Distance::L2 => squared_difference(query, row),
            Distance::InnerProduct | Distance::Cosine => 1.0 - dot(query, row),
        };
        // A vector that is not a number is near to nothing.
        if distance.is_nan() { f32::INFINITY } else { distance }
    }
}

/// Scales to unit length; a zero vector stays zero and so ends up at cosine distance 1.
pub fn normalise(vector: &mut [f32]) {
    // In f64 the squares of large f32 components cannot overflow.
    let norm = vector.iter().map(|&c| f64::from(c) * f64::from(c)).sum::<f64>().sqrt();
    if norm != 0.0 {
        vector.iter_mut().for_each(|c| *c = (f64::from(*c) / norm) as f32);
    }
}

/// Orders by distance, then by age: what a heap of the best needs to drop the worst.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ranked {
    distance: f32,
    order: usize,
}

impl Eq for Ranked {}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.distance.total_cmp(&other.distance).then(self.order.cmp(&other.order))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl VectorIndex for ExactIndex {
    fn add(&mut self, id: BlockId, embedding: &[f32]) -> Result<(), IndexError> {
        self.check_dim(embedding)?;
        if self.contains(id) {
            return Err(IndexError::Duplicate { id });
        }
        let row = self.prepared(embedding);
        Arc::make_mut(&mut self.rows).push(id, &row);
        Ok(())
    }

    fn search(
        &self,
        query: &[f32],
        n: usize,
        filter: &dyn Fn(BlockId) -> bool,
        out: &mut Vec<Hit>,
    ) -> Result<(), IndexError> {
        self.check_dim(query)?;
        out.clear();
        if n == 0 {
            return Ok(());
        }
        let query = self.prepared(query);
        let bounds = self.lower_bounds(&query);
        let mut farthest = self.farthest(&query, n, &bounds, filter);
        let mut best: BinaryHeap<Ranked> = BinaryHeap::new();
        for (order, bound) in bounds.into_iter().enumerate() {
            if bound > farthest {
                continue;
            }
            let ranked = Ranked { distance: self.between_prepared(&query, self.row(order)), order };
            // The filter may be dear, so it is asked only about rows that would enter.
            let enters = best.len() < n || best.peek().is_some_and(|worst| ranked < *worst);
            if enters && filter(self.rows.ids[order]) {
                best.push(ranked);
                if best.len() > n {
                    best.pop();
                }
                if let Some(worst) = best.peek().filter(|_| best.len() == n) {
                    farthest = farthest.min(worst.distance);
                }
            }
        }
        out.extend(best.into_sorted_vec().iter().map(|ranked| self.hit(ranked)));
        Ok(())
    }

    fn vectors(&self, ids: &[BlockId], out: &mut Vec<f32>) -> Result<(), IndexError> {
        let row = |&id| self.rows.row_of.get(&id).copied().ok_or(IndexError::Unknown { id });
        let rows: Vec<usize> = ids.iter().map(row).collect::<Result<_, _>>()?;
        out.clear();
        for row in rows {
            out.extend_from_slice(self.row(row));
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.rows.ids.len()
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn distance(&self) -> Distance {
        self.distance
    }

    fn branch(&self) -> Result<Box<dyn VectorIndex>, IndexError> {
        Ok(Box::new(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_components_are_refused() {
        assert!(matches!(ExactIndex::new(0, Distance::L2), Err(IndexError::ZeroDim)));
    }

    #[test]
    fn long_vectors_keep_their_direction() {
        let mut index = ExactIndex::new(2, Distance::Cosine).unwrap();
        index.add(BlockId(1), &[f32::MAX, f32::MAX]).unwrap();
        let mut out = Vec::new();
        index.search(&[1e-30, 1e-30], 1, &|_| true, &mut out).unwrap();
        assert!(out[0].distance.abs() < 1e-5);
    }

    /// As the search was before there were sketches.
    fn compare_all(
        index: &ExactIndex,
        query: &[f32],
        n: usize,
        filter: &dyn Fn(BlockId) -> bool,
    ) -> Vec<Hit> {
        let query = index.prepared(query);
        let mut all: Vec<Ranked> = (0..index.len())
            .filter(|&order| filter(index.rows.ids[order]))
            .map(|order| {
                let distance = index.between_prepared(&query, index.row(order));
                Ranked { distance, order }
            })
            .collect();
        all.sort_unstable();
        all.truncate(n);
        all.iter().map(|ranked| index.hit(ranked)).collect()
    }

    /// Clusters, repetitions and vectors that are not numbers; more rows than are sampled, several
    /// threads' worth, and no whole number of groups. To the bit.
    #[test]
    fn sketches_rule_out_nothing_that_is_near() {
        let mut rng = everstream_kv_cache::rng::SplitMix64::new(3);
        for (dim, n_rows) in
            [(3, 700), (70, 5), (70, 2001), (1024, 2 * BYTES_PER_THREAD / 1024 + 1)]
        {
            let mut unit = || rng.signed_unit();
            let centres: Vec<Vec<f32>> =
                (0..9).map(|_| (0..dim).map(|_| unit()).collect()).collect();
            let mut vector = |i: usize| -> Vec<f32> {
                let spread = [0.0, 0.001, 0.1, 1.0][i % 4];
                let centre = &centres[i % 9];
                let mut x: Vec<f32> = centre.iter().map(|c| c + spread * unit()).collect();
                if i.is_multiple_of(101) {
                    x[0] = [f32::NAN, f32::INFINITY, 1e30][i % 3];
                }
                x
            };
            let rows: Vec<Vec<f32>> = (0..n_rows).map(&mut vector).collect();
            for distance in [Distance::L2, Distance::InnerProduct, Distance::Cosine] {
                let mut index = ExactIndex::new(dim, distance).unwrap();
                for (i, row) in rows.iter().enumerate() {
                    index.add(BlockId(i as u64), row).unwrap();
                }
                let filters: [&dyn Fn(BlockId) -> bool; 3] =
                    [&|_| true, &|id| id.0 % 3 == 0, &|id| id.0 % 500 == 7];
                for (i, n) in [0, 1, 2, 4, 20, 300].into_iter().enumerate() {
                    let query = vector(7 * i + 1);
                    let filter = filters[i % 3];
                    let expected = compare_all(&index, &query, n, filter);
                    for n_threads in [1, 3] {
                        let n_threads = NonZeroUsize::new(n_threads).unwrap();
                        let index = index.clone().with_threads(n_threads);
                        let mut found = Vec::new();
                        index.search(&query, n, filter, &mut found).unwrap();
                        assert_eq!(found, expected, "{distance} {dim} {n}");
                    }
                }
            }
        }
    }
}
