//! An approximate index for more blocks than an exact search can look at.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use usearch::{Index, IndexOptions, MetricKind, ScalarKind};

use super::exact::ExactIndex;
use super::{Distance, Hit, IndexError, MakeIndex, VectorIndex};
use crate::block::BlockId;

/// Edges of a node, and how many nodes are looked at to choose them.
const CONNECTIVITY: usize = 16;
const EXPANSION_ADD: usize = 128;
/// Nodes that a search looks at, at least.
const EXPANSION_SEARCH: usize = 256;
/// The graph measures in 8 bits: of so many times the wanted blocks the nearest are taken.
const CANDIDATES: usize = 8;

/// A graph of near neighbours at several scales, searched from the coarsest to the finest.
///
/// Vectors enter the graph when they are added, as long as no other branch looks at it; what is not
/// in it is compared one by one. Distances are those of [`ExactIndex`], which holds the vectors in
/// full; a block may be missed. Where a filter lets so few pass that the graph finds too few,
/// everything is compared.
///
/// Source: Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using
/// Hierarchical Navigable Small World graphs", 2016, arXiv:1603.09320; by the crate `usearch`.
#[derive(Debug)]
pub struct HnswIndex {
    exact: ExactIndex,
    graph: Arc<Graph>,
}

/// Makes an [`HnswIndex`] that measures so. What it needs no graph for, it does with several
/// threads.
#[derive(Clone, Copy, Debug, Default)]
pub struct MakeHnsw(pub Distance);

impl MakeIndex for MakeHnsw {
    fn make(
        &self,
        dim: usize,
        n_threads: NonZeroUsize,
    ) -> Result<Box<dyn VectorIndex>, IndexError> {
        let index = HnswIndex::new(dim, self.0)?;
        Ok(Box::new(HnswIndex { exact: index.exact.with_threads(n_threads), ..index }))
    }
}

/// The graph over the first `n_rows` rows.
struct Graph {
    index: Index,
    n_rows: usize,
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").field("n_rows", &self.n_rows).finish_non_exhaustive()
    }
}

impl HnswIndex {
    /// An empty index of vectors with `dim` components.
    ///
    /// # Errors
    ///
    /// [`IndexError::ZeroDim`] if `dim` is 0; [`IndexError::Graph`] if there is no memory for it.
    pub fn new(dim: usize, distance: Distance) -> Result<Self, IndexError> {
        let exact = ExactIndex::new(dim, distance)?;
        let options = IndexOptions {
            dimensions: dim,
            metric: match distance {
                Distance::L2 => MetricKind::L2sq,
                Distance::InnerProduct => MetricKind::IP,
                Distance::Cosine => MetricKind::Cos,
            },
            quantization: ScalarKind::I8,
            connectivity: CONNECTIVITY,
            expansion_add: EXPANSION_ADD,
            expansion_search: EXPANSION_SEARCH,
            multi: false,
        };
        let index = Index::new(&options).map_err(graph_error)?;
        Ok(Self { exact, graph: Arc::new(Graph { index, n_rows: 0 }) })
    }

    /// Puts into the graph what is not in it yet, unless another branch looks at it.
    fn catch_up(&mut self) -> Result<(), IndexError> {
        let Some(graph) = Arc::get_mut(&mut self.graph) else { return Ok(()) };
        for row in graph.n_rows..self.exact.len() {
            if graph.index.size() == graph.index.capacity() {
                let capacity = (2 * graph.index.capacity()).max(1024);
                graph.index.reserve(capacity).map_err(graph_error)?;
            }
            let vector = self.exact.row(row);
            // What is no number is near to nothing, and would lead a search astray.
            if vector.iter().all(|c| c.is_finite()) {
                graph.index.add(row as u64, vector).map_err(graph_error)?;
            }
            graph.n_rows = row + 1;
        }
        Ok(())
    }
}

fn graph_error(error: impl fmt::Display) -> IndexError {
    IndexError::Graph { what: error.to_string() }
}

impl VectorIndex for HnswIndex {
    fn add(&mut self, id: BlockId, embedding: &[f32]) -> Result<(), IndexError> {
        self.exact.add(id, embedding)?;
        self.catch_up()
    }

    fn search(
        &self,
        query: &[f32],
        n: usize,
        filter: &dyn Fn(BlockId) -> bool,
        out: &mut Vec<Hit>,
    ) -> Result<(), IndexError> {
        let n_rows = self.graph.n_rows;
        let n_candidates = n.saturating_mul(CANDIDATES);
        if n_candidates >= n_rows || query.iter().any(|c| !c.is_finite()) {
            return self.exact.search(query, n, filter, out);
        }
        self.exact.check_dim(query)?;
        let prepared = self.exact.prepared(query);
        let passes = |row: u64| filter(self.exact.id(row as usize));
        let found = self.graph.index.filtered_search(&prepared, n_candidates, passes);
        let found = found.map_err(graph_error)?.keys;
        if found.len() < n {
            return self.exact.search(query, n, filter, out);
        }
        let rest = (n_rows..self.exact.len()).filter(|&row| filter(self.exact.id(row)));
        let rows = found.into_iter().map(|row| row as usize).chain(rest);
        self.exact.nearest_of(&prepared, n, rows, out);
        Ok(())
    }

    fn vectors(&self, ids: &[BlockId], out: &mut Vec<f32>) -> Result<(), IndexError> {
        self.exact.vectors(ids, out)
    }

    fn len(&self) -> usize {
        self.exact.len()
    }

    fn dim(&self) -> usize {
        self.exact.dim()
    }

    fn distance(&self) -> Distance {
        self.exact.distance()
    }

    fn branch(&self) -> Result<Box<dyn VectorIndex>, IndexError> {
        Ok(Box::new(Self { exact: self.exact.clone(), graph: Arc::clone(&self.graph) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{contract, normalise};
    use everstream_kv_cache::rng::SplitMix64;

    #[test]
    fn it_keeps_the_contract() {
        contract::run(&|dim, distance| Box::new(HnswIndex::new(dim, distance).unwrap()));
    }

    /// Vectors around centres, as texts about a few subjects have; unit length under cosine only.
    fn clustered(rng: &mut SplitMix64, n: usize, dim: usize) -> Vec<Vec<f32>> {
        let mut unit = || rng.signed_unit();
        let centres: Vec<Vec<f32>> = (0..40).map(|_| (0..dim).map(|_| unit()).collect()).collect();
        let mut vector = |i: usize| -> Vec<f32> {
            let mut x: Vec<f32> = centres[i * 7 % 40].iter().map(|c| c + 0.7 * unit()).collect();
            normalise(&mut x);
            x
        };
        (0..n).map(&mut vector).collect()
    }

    #[test]
    fn nearly_all_of_the_nearest_are_found_at_their_distances() {
        let (dim, n, n_queries) = (96, 3000, 60);
        for (seed, distance) in
            [Distance::L2, Distance::InnerProduct, Distance::Cosine].into_iter().enumerate()
        {
            let mut vectors = clustered(&mut SplitMix64::new(seed as u64), n + n_queries, dim);
            let queries = vectors.split_off(n);
            let mut index = HnswIndex::new(dim, distance).unwrap();
            let mut branch = None;
            for (i, vector) in vectors.iter().enumerate() {
                index.add(BlockId(i as u64), vector).unwrap();
                // What is added while a branch lives is not in the graph; later it is.
                match i {
                    1000 => branch = Some(index.branch().unwrap()),
                    1500 => assert_eq!(index.graph.n_rows, 1001),
                    2000 => branch = None,
                    2001 => assert_eq!((index.graph.n_rows, branch.is_none()), (2002, true)),
                    _ => {}
                }
            }
            let filters: [&dyn Fn(BlockId) -> bool; 3] =
                [&|_| true, &|id| id.0 % 4 != 1, &|id| id.0 % 300 == 3];
            for (f, filter) in filters.into_iter().enumerate() {
                let mut n_found = 0;
                for query in &queries {
                    let (mut found, mut expected) = (Vec::new(), Vec::new());
                    index.search(query, 10, filter, &mut found).unwrap();
                    index.exact.search(query, 10, filter, &mut expected).unwrap();
                    assert_eq!(found.len(), expected.len());
                    n_found += found.iter().filter(|hit| expected.contains(hit)).count();
                    for hit in &found {
                        let vector = &vectors[hit.id.0 as usize];
                        assert!((distance.between(query, vector) - hit.distance).abs() < 1e-5);
                        assert!(filter(hit.id));
                    }
                }
                let recall = n_found as f64 / (10 * n_queries) as f64;
                assert!(recall >= 0.98, "{distance}, filter {f}: {recall}");
            }
        }
    }
}
