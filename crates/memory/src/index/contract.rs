//! What every index must keep, as tests over any index, beside an index of one line.

#![expect(clippy::unwrap_used, reason = "these are tests")]

#[cfg(test)]
use super::ExactIndex;
use super::{Distance, Hit, IndexError, VectorIndex};
use crate::block::BlockId;
use everstream_kv_cache::rng::SplitMix64;

const DISTANCES: [Distance; 3] = [Distance::L2, Distance::InnerProduct, Distance::Cosine];

type Make<'a> = &'a dyn Fn(usize, Distance) -> Box<dyn VectorIndex>;

/// Runs every test of the contract on indexes that `make` gives, empty.
pub fn run(make: Make<'_>) {
    run_without_order(make);
    for distance in DISTANCES {
        breaks_ties_by_age(make(2, distance));
        survives_vectors_without_direction(make(2, distance));
    }
}

/// The tests that hold for an index on a server, too, which may choose among equals and knows no
/// number that is none.
pub fn run_without_order(make: Make<'_>) {
    for distance in DISTANCES {
        agrees_with_the_definition(make, distance);
        refuses_what_does_not_fit(make(2, distance));
        branches_go_their_own_way(make(2, distance));
        gives_vectors_back(make(2, distance));
    }
}

/// Sorts everything by the definition.
fn naive(
    distance: Distance,
    rows: &[(BlockId, Vec<f32>)],
    query: &[f32],
    n: usize,
    filter: &dyn Fn(BlockId) -> bool,
) -> Vec<Hit> {
    let mut all: Vec<Hit> = rows
        .iter()
        .filter(|(id, _)| filter(*id))
        .map(|(id, row)| Hit { id: *id, distance: distance.between(query, row) })
        .collect();
    all.sort_by(|a, b| a.distance.total_cmp(&b.distance));
    all.truncate(n);
    all
}

fn random_vector(rng: &mut SplitMix64, dim: usize) -> Vec<f32> {
    (0..dim).map(|_| rng.signed_unit()).collect()
}

fn agrees_with_the_definition(make: Make<'_>, distance: Distance) {
    for seed in 0..40 {
        let mut rng = SplitMix64::new(seed);
        let dim = 1 + rng.below(70);
        let mut index = make(dim, distance);
        assert_eq!((index.dim(), index.distance()), (dim, distance));
        let rows: Vec<(BlockId, Vec<f32>)> = (0..rng.below(50))
            .map(|_| (BlockId(rng.next_u64()), random_vector(&mut rng, dim)))
            .collect();
        for (id, row) in &rows {
            index.add(*id, row).unwrap();
        }
        assert_eq!(index.len(), rows.len());
        let query = random_vector(&mut rng, dim);
        let keep = 1 + rng.below(3) as u64;
        let filter = |id: BlockId| id.0 % 3 < keep;
        let n = rng.below(60);
        let mut found = vec![Hit { id: BlockId(0), distance: 0.0 }];
        index.search(&query, n, &filter, &mut found).unwrap();
        let expected = naive(distance, &rows, &query, n, &filter);
        assert_eq!(found.len(), expected.len(), "seed {seed}");
        for (found, expected) in found.iter().zip(&expected) {
            // Sums of up to 70 terms of size up to 4, so up to 280 under L2.
            assert!((found.distance - expected.distance).abs() < 1e-4, "seed {seed}");
            let row = rows.iter().find(|(id, _)| *id == found.id).unwrap();
            assert!((distance.between(&query, &row.1) - found.distance).abs() < 1e-4);
            assert!(filter(found.id));
        }
    }
}

fn search(index: &dyn VectorIndex, query: &[f32], n: usize) -> Vec<(u64, f32)> {
    let mut out = Vec::new();
    index.search(query, n, &|_| true, &mut out).unwrap();
    out.iter().map(|hit| (hit.id.0, hit.distance)).collect()
}

fn breaks_ties_by_age(mut index: Box<dyn VectorIndex>) {
    for id in [9, 3, 7, 1] {
        index.add(BlockId(id), &[1.0, 0.0]).unwrap();
    }
    for n in 0..=4 {
        let found = search(index.as_ref(), &[1.0, 0.0], n);
        assert_eq!(found.iter().map(|f| f.0).collect::<Vec<_>>(), [9, 3, 7, 1][..n]);
    }
}

fn survives_vectors_without_direction(mut index: Box<dyn VectorIndex>) {
    index.add(BlockId(1), &[f32::NAN, 0.0]).unwrap();
    index.add(BlockId(2), &[0.0, 0.0]).unwrap();
    index.add(BlockId(3), &[1.0, 0.0]).unwrap();
    let found = search(index.as_ref(), &[1.0, 0.0], 3);
    assert_eq!(found.iter().map(|f| f.0).collect::<Vec<_>>(), [3, 2, 1]);
    assert_eq!(found[2].1, f32::INFINITY);
    if index.distance() == Distance::Cosine {
        assert_eq!(found[1].1, 1.0);
        let of_zero_query = search(index.as_ref(), &[0.0, 0.0], 2);
        assert_eq!(of_zero_query, [(2, 1.0), (3, 1.0)]);
    }
    let of_nan_query = search(index.as_ref(), &[f32::NAN, f32::NAN], 3);
    assert!(of_nan_query.iter().all(|found| found.1 == f32::INFINITY));
}

fn refuses_what_does_not_fit(mut index: Box<dyn VectorIndex>) {
    index.add(BlockId(1), &[1.0, 0.0]).unwrap();
    assert!(matches!(
        index.add(BlockId(2), &[1.0]),
        Err(IndexError::Dim { expected: 2, found: 1 })
    ));
    assert!(matches!(
        index.add(BlockId(1), &[0.0, 1.0]),
        Err(IndexError::Duplicate { id: BlockId(1) })
    ));
    assert!(index.search(&[1.0; 3], 1, &|_| true, &mut Vec::new()).is_err());
    assert_eq!(index.len(), 1);
}

fn gives_vectors_back(mut index: Box<dyn VectorIndex>) {
    for (id, vector) in [(5, [3.0, 4.0]), (2, [0.0, -2.0]), (9, [0.0, 0.0])] {
        index.add(BlockId(id), &vector).unwrap();
    }
    let mut out = vec![7.0];
    index.vectors(&[BlockId(9), BlockId(2), BlockId(5)], &mut out).unwrap();
    let expected = match index.distance() {
        Distance::Cosine => [0.0, 0.0, 0.0, -1.0, 0.6, 0.8],
        _ => [0.0, 0.0, 0.0, -2.0, 3.0, 4.0],
    };
    assert!(out.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{out:?}");
    let unknown = index.vectors(&[BlockId(2), BlockId(3)], &mut out);
    assert!(matches!(unknown, Err(IndexError::Unknown { id: BlockId(3) })));
}

fn branches_go_their_own_way(mut index: Box<dyn VectorIndex>) {
    assert!(index.is_empty());
    index.add(BlockId(1), &[1.0, 0.0]).unwrap();
    let mut branch = index.branch().unwrap();
    branch.add(BlockId(2), &[1.0, 0.0]).unwrap();
    index.add(BlockId(3), &[1.0, 0.0]).unwrap();
    let ids = |index: &dyn VectorIndex| -> Vec<u64> {
        let mut ids: Vec<u64> = search(index, &[1.0, 0.0], 9).iter().map(|found| found.0).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(ids(index.as_ref()), [1, 3]);
    assert_eq!(ids(branch.as_ref()), [1, 2]);
}

#[test]
fn the_exact_index_keeps_the_contract() {
    run(&|dim, distance| Box::new(ExactIndex::new(dim, distance).unwrap()));
}
