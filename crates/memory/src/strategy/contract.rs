//! What every strategy must keep, and a slow twin of each one's choice.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use super::{ALL, Query, Strategy, by_name};
use crate::block::{BlockId, Role};
use crate::index::{Distance, ExactIndex, Hit, VectorIndex};
use crate::key_clusters::KeyClusters;
use crate::store::BlockMeta;
use crate::testing::positions;
use crate::words::WordIndex;
use everstream_kv_cache::rng::SplitMix64;

/// Blocks with random vectors, in stream order.
struct World {
    index: ExactIndex,
    words: WordIndex,
    metas: Vec<BlockMeta>,
    vectors: HashMap<BlockId, Vec<f32>>,
    query: Vec<f32>,
}

const DIM: usize = 5;

impl World {
    fn new(seed: u64, distance: Distance) -> Self {
        let mut rng = SplitMix64::new(seed);
        let mut vector = || -> Vec<f32> {
            // Some vectors are equal, so that ties occur.
            (0..DIM).map(|_| rng.below(4) as f32 - 1.5).collect()
        };
        let mut world = Self {
            index: ExactIndex::new(DIM, distance).unwrap(),
            words: WordIndex::default(),
            metas: Vec::new(),
            vectors: HashMap::new(),
            query: vector(),
        };
        for i in 0..30 + seed % 30 {
            // Ids say nothing about the order.
            let (id, vector) = (BlockId(i.wrapping_mul(0x9e37_79b9_7f4a_7c15)), vector());
            world.index.add(id, &vector).unwrap();
            world.vectors.insert(id, vector);
            world.words.add(id, if i % 3 == 0 { "each third one" } else { "the others" });
            world.metas.push(BlockMeta {
                is_forgotten: false,
                id,
                range: positions(20 * i..20 * i + 20),
                role: Role::Document,
                source: None,
                written_at: SystemTime::UNIX_EPOCH,
                kv_bytes: 0,
            });
        }
        world
    }

    fn rank(&self, strategy: &dyn Strategy, n: usize) -> Vec<Hit> {
        let words = self.words.scores("every third");
        let clusters = KeyClusters::default();
        let query = Query {
            text: "every third",
            blocks: &self.metas,
            eligible: &|id| self.is_eligible(id),
            block_text: &|id| self.is_quoted(id).then(|| "The third! Is one.".to_owned()),
            ..Query::bare(&self.query, &self.index, &words, &clusters)
        };
        let mut out = vec![Hit { id: BlockId(1), distance: 0.0 }];
        strategy.rank(&query, n, &mut out).unwrap();
        out
    }

    fn is_eligible(&self, id: BlockId) -> bool {
        self.metas.iter().position(|m| m.id == id).is_some_and(|i| i % 4 != 1)
    }

    /// Whether a sentence of the block says all that is asked. Some texts cannot be read.
    fn is_quoted(&self, id: BlockId) -> bool {
        self.metas.iter().position(|m| m.id == id).is_some_and(|i| i % 6 == 0)
    }

    /// Eligible blocks with their distances, nearest first, of equals the oldest.
    fn nearest(&self) -> Vec<(BlockId, f32)> {
        let mut all: Vec<(BlockId, f32)> = self
            .metas
            .iter()
            .filter(|m| self.is_eligible(m.id))
            .map(|m| (m.id, self.between(&self.query, &self.vectors[&m.id])))
            .collect();
        all.sort_by(|a, b| a.1.total_cmp(&b.1));
        all
    }

    fn between(&self, a: &[f32], b: &[f32]) -> f32 {
        self.index.distance().between(a, b)
    }
}

fn worlds() -> impl Iterator<Item = World> {
    let distances = [Distance::L2, Distance::InnerProduct, Distance::Cosine];
    (0..20).flat_map(move |seed| distances.map(|distance| World::new(seed, distance)))
}

#[test]
fn names_find_their_strategies() {
    for name in ALL {
        assert_eq!(by_name(name).unwrap().name(), name);
    }
    assert!(by_name("best").is_none());
}

#[test]
fn all_return_distinct_eligible_blocks_with_their_distances() {
    for world in worlds() {
        let n_eligible = world.nearest().len();
        for strategy in ALL.map(|name| by_name(name).unwrap()) {
            for n in [0, 1, 2, 4, 9, 1000] {
                let hits = world.rank(&*strategy, n);
                // The diverse ones look at some candidates, or at `n` if that is more.
                assert_eq!(hits.len(), n.min(n_eligible), "{strategy:?} {n}");
                let distinct: HashSet<BlockId> = hits.iter().map(|hit| hit.id).collect();
                assert_eq!(distinct.len(), hits.len(), "{strategy:?}");
                for hit in &hits {
                    assert!(world.is_eligible(hit.id), "{strategy:?}");
                    let distance = world.between(&world.query, &world.vectors[&hit.id]);
                    assert!((hit.distance - distance).abs() < 1e-4, "{strategy:?}");
                }
                assert_eq!(world.rank(&*strategy, n), hits, "{strategy:?}");
            }
        }
    }
}

/// Distances of the chosen from the query: ties make the blocks themselves ambiguous.
fn distances(hits: &[Hit]) -> Vec<f32> {
    hits.iter().map(|hit| hit.distance).collect()
}

fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-4, "{what}: {found} {expected}");
    }
}

#[test]
fn nearest_and_farthest_are_the_ends_of_one_order() {
    for world in worlds() {
        let sorted: Vec<f32> = world.nearest().iter().map(|b| b.1).collect();
        let found = distances(&world.rank(&super::Nearest, 5));
        assert_close(&found, &sorted[..5], "nearest");
        let ends: Vec<f32> = sorted.iter().rev().take(5).copied().collect();
        let found = distances(&world.rank(&super::Farthest, 5));
        assert_close(&found, &ends, "farthest");
    }
}

#[test]
fn recent_is_the_end_of_the_stream_newest_first() {
    for world in worlds() {
        let newest = world.metas.iter().rev().map(|m| m.id).filter(|&id| world.is_eligible(id));
        let found: Vec<BlockId> = world.rank(&super::Recent, 4).iter().map(|hit| hit.id).collect();
        assert_eq!(found, newest.take(4).collect::<Vec<_>>());
    }
}

/// At every choice no candidate gains more than the one chosen, by definition and from scratch.
fn check_greedy(world: &World, hits: &[Hit], n_candidates: usize, gain: impl Fn(f32, f32) -> f32) {
    let candidates = world.nearest();
    let candidates = &candidates[..n_candidates.max(hits.len()).min(candidates.len())];
    assert!((hits[0].distance - candidates[0].1).abs() < 1e-4);
    for i in 1..hits.len() {
        let chosen: Vec<BlockId> = hits[..i].iter().map(|hit| hit.id).collect();
        let gain_of = |id: BlockId, distance: f32| {
            let vector = &world.vectors[&id];
            let from = |other: &BlockId| world.between(vector, &world.vectors[other]);
            let nearest = chosen.iter().map(from).fold(f32::INFINITY, f32::min);
            gain(distance, nearest)
        };
        let best = candidates
            .iter()
            .filter(|(id, _)| !chosen.contains(id))
            .map(|&(id, distance)| gain_of(id, distance))
            .fold(f32::NEG_INFINITY, f32::max);
        let found = gain_of(hits[i].id, hits[i].distance);
        assert!((found - best).abs() < 1e-3 * best.abs().max(1.0), "{found} {best}");
    }
}

#[test]
fn diverse_choices_are_greedy() {
    // Ties at the edge of the candidates are ambiguous, so all are candidates here.
    let n_candidates = 1000;
    for world in worlds() {
        let hits = world.rank(&super::MaxDistance { n_candidates }, 6);
        check_greedy(&world, &hits, n_candidates, |_, from_chosen| from_chosen);
        for lambda in [0.0, 0.3, 1.0] {
            let hits = world.rank(&super::Mmr { lambda, n_candidates }, 6);
            let gain = |from_query: f32, from_chosen: f32| {
                (1.0 - lambda) * from_chosen - lambda * from_query
            };
            check_greedy(&world, &hits, n_candidates, gain);
        }
        // All the weight on relevance is the nearest.
        let mmr = world.rank(&super::Mmr { lambda: 1.0, n_candidates }, 6);
        let nearest = distances(&world.rank(&super::Nearest, 6));
        assert_close(&distances(&mmr), &nearest, "mmr");
    }
}

#[test]
fn candidates_bound_how_far_the_diverse_ones_go() {
    for world in worlds() {
        let limit = world.nearest()[7].1;
        for hits in [
            world.rank(&super::MaxDistance { n_candidates: 8 }, 4),
            world.rank(&super::Mmr { lambda: 0.1, n_candidates: 8 }, 4),
        ] {
            assert!(hits.iter().all(|hit| hit.distance < limit + 1e-4));
        }
    }
}

impl World {
    /// As the index rounds distances: the last bit decides between blocks that are equally far.
    fn by_meaning(&self) -> Vec<Hit> {
        let mut nearest = Vec::new();
        let is_eligible = |id| self.is_eligible(id);
        self.index.search(&self.query, 1000, &is_eligible, &mut nearest).unwrap();
        nearest
    }

    /// Those that have a word of the query; all of them score the same.
    fn by_words(&self) -> Vec<BlockId> {
        let metas = self.metas.iter().enumerate();
        let found = metas.filter(|(i, meta)| i % 3 == 0 && self.is_eligible(meta.id));
        found.map(|(_, meta)| meta.id).collect()
    }
}

fn ids(hits: &[Hit]) -> Vec<BlockId> {
    hits.iter().map(|hit| hit.id).collect()
}

/// Ranks are fused as the paper's formula says. Without a model `fusion` has two rankings.
#[test]
fn ranks_are_fused() {
    for world in worlds() {
        let (by_meaning, by_words) = (ids(&world.by_meaning()), world.by_words());
        let part = |ranking: &[BlockId], id: BlockId| {
            let rank = ranking.iter().take(20).position(|other| *other == id);
            rank.map_or(0.0, |rank| 1.0 / (10.0 + 1.0 + rank as f32))
        };
        let mut fused = by_meaning.clone();
        fused.sort_by(|&a, &b| {
            let score = |id| part(&by_meaning, id) + part(&by_words, id);
            score(b).total_cmp(&score(a))
        });
        let found = ids(&world.rank(&super::Fusion::default(), 9));
        assert_eq!(found, fused[..9.min(fused.len())]);
    }
}

/// Similarity, words and what is quoted are added, whichever distance says how similar; a block that only its words
/// or only its meaning brought is among those that are compared.
#[test]
fn hybrid_adds_words_to_similarity() {
    for world in worlds() {
        for (weight, n) in [(0.0, 9), (0.3, 1), (0.3, 40), (1e6, 9)] {
            let (by_meaning, by_words) = (world.by_meaning(), world.by_words());
            let n_candidates = 20.max(n);
            let mut all: Vec<(usize, Hit)> = by_meaning.into_iter().enumerate().collect();
            all.retain(|(rank, hit)| {
                *rank < n_candidates || by_words.iter().take(n_candidates).any(|id| *id == hit.id)
            });
            let score = |hit: &Hit| {
                let scale = if world.index.distance() == Distance::L2 { 0.5 } else { 1.0 };
                let words = if by_words.contains(&hit.id) { weight } else { 0.0 };
                let said = if world.is_quoted(hit.id) { 0.8 } else { 0.0 };
                1.0 - scale * hit.distance + words + said
            };
            all.sort_by(|a, b| score(&b.1).total_cmp(&score(&a.1)));
            let hybrid = super::Hybrid { weight, ..super::Hybrid::default() };
            let found: Vec<f32> = world.rank(&hybrid, n).iter().map(score).collect();
            let expected: Vec<f32> =
                all[..n.min(all.len())].iter().map(|(_, hit)| score(hit)).collect();
            assert_close(&found, &expected, "hybrid");
        }
    }
}
