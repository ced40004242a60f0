//! The plainest index: every vector is compared with the query.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;

use super::distance::{dot, squared_difference};
use super::{Distance, Hit, IndexError, VectorIndex};
use crate::block::BlockId;

/// Numbers that a thread should have to read, some 16 MB: starting one takes as long as a tenth of
/// that.
const NUMBERS_PER_THREAD: usize = 4 << 20;

/// Compares the query with every vector: exact, and the oracle of approximate indexes.
///
/// f32 storage, `[n_blocks, dim]` in one buffer, f32 sums. A search costs `n_blocks * dim`
/// multiplications and reads the whole buffer, with several threads if that is large: good up to
/// some 100,000 blocks, too slow beyond.
/// Under cosine, vectors are scaled to unit length when they are added.
#[derive(Clone, Debug)]
pub struct ExactIndex {
    distance: Distance,
    dim: usize,
    n_threads: NonZeroUsize,
    /// Shared by branches until one of them adds.
    rows: Arc<Rows>,
}

#[derive(Clone, Debug, Default)]
struct Rows {
    /// Shape `[n_blocks]`, in the order of addition.
    ids: Vec<BlockId>,
    /// The row of each id.
    row_of: HashMap<BlockId, usize>,
    /// Shape `[n_blocks, dim]`.
    vectors: Vec<f32>,
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
        Ok(Self { distance, dim, n_threads: NonZeroUsize::MIN, rows: Arc::default() })
    }

    /// Searches with up to `n_threads` threads, the caller's included; what is found does not
    /// depend on them.
    #[must_use]
    pub fn with_threads(self, n_threads: NonZeroUsize) -> Self {
        Self { n_threads, ..self }
    }

    /// Distances of all rows from `query`.
    fn distances(&self, query: &[f32]) -> Vec<f32> {
        let mut distances = vec![0.0; self.rows.ids.len()];
        let n_parts =
            self.n_threads.get().min(self.rows.vectors.len().div_ceil(NUMBERS_PER_THREAD));
        let part_rows = distances.len().div_ceil(n_parts.max(1)).max(1);
        let compute = |out: &mut [f32], rows: &[f32]| {
            for (distance, row) in out.iter_mut().zip(rows.chunks_exact(self.dim)) {
                *distance = self.between_prepared(query, row);
            }
        };
        let parts =
            distances.chunks_mut(part_rows).zip(self.rows.vectors.chunks(part_rows * self.dim));
        std::thread::scope(|scope| {
            let mut parts = parts.peekable();
            while let Some((out, rows)) = parts.next() {
                match parts.peek() {
                    Some(_) => drop(scope.spawn(move || compute(out, rows))),
                    None => compute(out, rows),
                }
            }
        });
        distances
    }

    fn check_dim(&self, vector: &[f32]) -> Result<(), IndexError> {
        if vector.len() == self.dim {
            Ok(())
        } else {
            Err(IndexError::Dim { expected: self.dim, found: vector.len() })
        }
    }

    /// The vector as it is stored and compared.
    fn prepared(&self, vector: &[f32]) -> Vec<f32> {
        match self.distance {
            Distance::L2 | Distance::InnerProduct => vector.to_vec(),
            Distance::Cosine => unit(vector),
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

/// `vector` at unit length; a zero vector stays zero and so ends up at cosine distance 1.
fn unit(vector: &[f32]) -> Vec<f32> {
    // In f64 the squares of large f32 components cannot overflow.
    let norm = vector.iter().map(|&c| f64::from(c) * f64::from(c)).sum::<f64>().sqrt();
    if norm == 0.0 {
        return vector.to_vec();
    }
    vector.iter().map(|&c| (f64::from(c) / norm) as f32).collect()
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
        if self.rows.row_of.contains_key(&id) {
            return Err(IndexError::Duplicate { id });
        }
        let row = self.prepared(embedding);
        let rows = Arc::make_mut(&mut self.rows);
        rows.row_of.insert(id, rows.ids.len());
        rows.ids.push(id);
        rows.vectors.extend_from_slice(&row);
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
        let query = self.prepared(query);
        let mut best = BinaryHeap::new();
        for (order, distance) in self.distances(&query).into_iter().enumerate() {
            let ranked = Ranked { distance, order };
            // The filter may be dear, so it is asked only about rows that would enter.
            let enters = best.len() < n || best.peek().is_some_and(|worst| ranked < *worst);
            if enters && filter(self.rows.ids[order]) {
                best.push(ranked);
                if best.len() > n {
                    best.pop();
                }
            }
        }
        let nearest_first = best.into_sorted_vec();
        out.extend(
            nearest_first.iter().map(|r| Hit { id: self.rows.ids[r.order], distance: r.distance }),
        );
        Ok(())
    }

    fn vectors(&self, ids: &[BlockId], out: &mut Vec<f32>) -> Result<(), IndexError> {
        let row = |&id| self.rows.row_of.get(&id).copied().ok_or(IndexError::Unknown { id });
        let rows: Vec<usize> = ids.iter().map(row).collect::<Result<_, _>>()?;
        out.clear();
        for row in rows {
            out.extend_from_slice(&self.rows.vectors[row * self.dim..][..self.dim]);
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

    /// Enough rows for several threads, and one too many to be shared out evenly.
    #[test]
    fn threads_do_not_change_what_is_found() {
        let (dim, n_rows) = (1024, 2 * NUMBERS_PER_THREAD / 1024 + 1);
        let mut index = ExactIndex::new(dim, Distance::L2).unwrap();
        let vector =
            |i: usize| -> Vec<f32> { (0..dim).map(|j| ((i * 31 + j * 7) % 101) as f32).collect() };
        for i in 0..n_rows {
            index.add(BlockId(i as u64), &vector(i)).unwrap();
        }
        let search = |index: &ExactIndex| {
            let mut out = Vec::new();
            index.search(&vector(17), 50, &|id| id.0 % 3 != 0, &mut out).unwrap();
            out
        };
        let expected = search(&index);
        for n_threads in [2, 3, 8] {
            let n_threads = NonZeroUsize::new(n_threads).unwrap();
            assert_eq!(search(&index.clone().with_threads(n_threads)), expected);
        }
    }
}
