//! What the diverse strategies share: a greedy choice among the nearest blocks.

use super::Query;
use crate::block::BlockId;
use crate::index::{Hit, IndexError};

/// Replaces `out` by up to `n` of the `n_candidates` eligible blocks nearest to the query: first the
/// nearest, then always the one with the largest `gain(distance from the query, distance from the
/// nearest of those chosen)`, of equals the nearer.
///
/// Cost: a search, and `n * n_candidates` distances.
pub(super) fn choose(
    query: &Query<'_>,
    n: usize,
    n_candidates: usize,
    gain: impl Fn(f32, f32) -> f32,
    out: &mut Vec<Hit>,
) -> Result<(), IndexError> {
    let mut left = Vec::new();
    query.index.search(query.embedding, n_candidates.max(n), query.eligible, &mut left)?;
    let ids: Vec<BlockId> = left.iter().map(|hit| hit.id).collect();
    let (mut vectors, dim) = (Vec::new(), query.index.dim());
    query.index.vectors(&ids, &mut vectors)?;
    let mut left: Vec<Candidate<'_>> = left
        .into_iter()
        .zip(vectors.chunks_exact(dim))
        .map(|(hit, vector)| Candidate { hit, vector, from_chosen: f32::INFINITY })
        .collect();
    out.clear();
    while out.len() < n && !left.is_empty() {
        let at = if out.is_empty() { 0 } else { best(&left, &gain) };
        // Order is kept, so that of equals the nearer still stands first.
        let chosen = left.remove(at);
        for other in &mut left {
            let distance = query.index.distance().between(chosen.vector, other.vector);
            other.from_chosen = other.from_chosen.min(distance);
        }
        out.push(chosen.hit);
    }
    Ok(())
}

struct Candidate<'a> {
    hit: Hit,
    vector: &'a [f32],
    /// Distance from the nearest chosen block.
    from_chosen: f32,
}

fn best(candidates: &[Candidate<'_>], gain: impl Fn(f32, f32) -> f32) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (i, candidate) in candidates.iter().enumerate() {
        let gain = gain(candidate.hit.distance, candidate.from_chosen);
        if gain > best.1 {
            best = (i, gain);
        }
    }
    best.0
}
