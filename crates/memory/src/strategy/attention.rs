//! By what the model itself would look at.

use std::sync::Arc;

use super::{Query, Strategy, hits_of};
use crate::block::{Block, BlockId};
use crate::index::{Hit, IndexError, dot};

/// What a model asks for: the queries of a text's tokens, before rotation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelQueries {
    /// Query heads of a layer.
    pub n_heads: usize,
    /// Components of each.
    pub head_dim: usize,
    /// For each layer `[n_tokens, n_heads, head_dim]`.
    pub layers: Vec<Vec<f32>>,
}

/// Which blocks' keys [`Attention`] looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Candidates {
    /// So many that are nearest to the query.
    Nearest(usize),
    /// So many that get most votes if each of their keys were the mean of the cluster that it is in; the nearest
    /// while there are too few blocks for clusters.
    InClusters(usize),
    /// All of them: each is read and held, so this is for measuring.
    All,
}

/// Ranks blocks by the attention that the query's tokens pay to their keys. Without a model's queries the
/// nearest come first.
///
/// InfLLM and EM-LLM add up the attention of all heads. Most heads look at the same tokens whatever is
/// asked, and drown the few that retrieve: on SQuAD paragraphs (Qwen2.5-Coder-0.5B, 60 questions) the
/// sum puts a block of the right paragraph first for 3 % of the questions, a single head of layer 9 for
/// 80 %. Which heads those are differs by model, so here each head votes with a weight of its own: what
/// a token attends to *more than the other tokens of the question do*, squared, times the square of how
/// sharply it attends at all. That finds 63 % among all blocks; 84 % of 538 questions among the 32
/// nearest, and 68 % of 208 about other articles with a gate of 0.7, which some of its choices do not
/// pass.
///
/// Sources: Xiao et al., "InfLLM", 2024, arXiv:2402.04617, section 3; Fountas et al., "EM-LLM", 2024,
/// arXiv:2407.09450; Wu et al., "Retrieval Head Mechanistically Explains Long-Context Factuality",
/// 2024, arXiv:2404.15574, for why few heads matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attention {
    /// What is looked at.
    pub candidates: Candidates,
}

impl Default for Attention {
    fn default() -> Self {
        Self { candidates: Candidates::Nearest(32) }
    }
}

impl Strategy for Attention {
    fn name(&self) -> &'static str {
        match self.candidates {
            Candidates::Nearest(_) => "attention",
            Candidates::InClusters(_) => "attention-clusters",
            Candidates::All => "attention-all",
        }
    }

    fn needs_queries(&self) -> bool {
        true
    }

    fn needs_clusters(&self) -> bool {
        matches!(self.candidates, Candidates::InClusters(_))
    }

    fn rank(&self, query: &Query<'_>, n: usize, out: &mut Vec<Hit>) -> Result<(), IndexError> {
        let Some(queries) = query.queries else {
            return query.index.search(query.embedding, n, query.eligible, out);
        };
        match self.candidates {
            Candidates::Nearest(n_candidates) => {
                query.index.search(query.embedding, n_candidates.max(n), query.eligible, out)?;
            }
            Candidates::InClusters(n_candidates) => {
                let n_candidates = n_candidates.max(n);
                match query.clusters.are_of(queries) {
                    true => *out = hits_of_known(query, in_clusters(query, queries, n_candidates))?,
                    false => {
                        query.index.search(query.embedding, n_candidates, query.eligible, out)?;
                    }
                }
            }
            Candidates::All => {
                query.index.search(query.embedding, query.blocks.len(), query.eligible, out)?;
            }
        }
        *out = by_votes(query, queries, out);
        out.truncate(n);
        Ok(())
    }
}

/// Ranks what was found by the votes of the model's heads.
pub(super) fn by_votes(query: &Query<'_>, queries: &ModelQueries, found: &[Hit]) -> Vec<Hit> {
    // A block that cannot be read gets no votes and is reported if it is recalled all the same.
    let blocks: Vec<Option<Arc<Block>>> = found.iter().map(|hit| (query.block)(hit.id)).collect();
    let mut ranked: Vec<(f32, Hit)> =
        votes(queries, &blocks).into_iter().zip(found.iter().copied()).collect();
    // Stable: of equals the one that was found first.
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    ranked.into_iter().map(|(_, hit)| hit).collect()
}

/// The up to `n` blocks that get most votes by the clusters of their keys, best first.
fn in_clusters(query: &Query<'_>, queries: &ModelQueries, n: usize) -> Vec<BlockId> {
    let blocks = query.blocks.iter().enumerate();
    let eligible = blocks.filter(|(_, meta)| (query.eligible)(meta.id));
    let (orders, ids): (Vec<usize>, Vec<BlockId>) =
        eligible.map(|(order, meta)| (order, meta.id)).unzip();
    let mut votes = vec![0.0; ids.len()];
    let mut shares = Vec::new();
    for (layer, asked) in queries.layers.iter().enumerate() {
        for head in 0..queries.n_heads {
            shares.clear();
            for of_token in asked.chunks_exact(queries.n_heads * queries.head_dim) {
                let query_head = &of_token[head * queries.head_dim..][..queries.head_dim];
                query.clusters.best_products(
                    (layer, queries.n_heads, head),
                    query_head,
                    &orders,
                    &mut shares,
                );
            }
            let scale = 1.0 / (queries.head_dim as f32).sqrt();
            shares.iter_mut().for_each(|share| *share *= scale);
            if !shares.is_empty() {
                add_votes(&mut shares, &mut votes);
            }
        }
    }
    let mut ranked: Vec<(f32, BlockId)> = votes.into_iter().zip(ids).collect();
    // Stable: of equals the older.
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    ranked.truncate(n);
    ranked.into_iter().map(|(_, id)| id).collect()
}

/// As [`hits_of`], without blocks that the index does not hold: damaged text has no vector.
fn hits_of_known(query: &Query<'_>, mut ids: Vec<BlockId>) -> Result<Vec<Hit>, IndexError> {
    loop {
        match hits_of(query, &ids) {
            Err(IndexError::Unknown { id }) if ids.contains(&id) => {
                ids.retain(|&other| other != id)
            }
            hits => return hits,
        }
    }
}

/// The votes of all heads and tokens for each block.
fn votes(queries: &ModelQueries, blocks: &[Option<Arc<Block>>]) -> Vec<f32> {
    let mut votes = vec![0.0; blocks.len()];
    let (mut keys, mut shares) = (Vec::new(), Vec::new());
    for (layer, asked) in queries.layers.iter().enumerate() {
        let n_tokens = asked.len() / (queries.n_heads * queries.head_dim).max(1);
        // Of each head and token the share of each block: `[n_heads, n_tokens, n_blocks]`.
        shares.clear();
        shares.resize(queries.n_heads * n_tokens * blocks.len(), f32::NEG_INFINITY);
        for (i, block) in blocks.iter().enumerate() {
            let Some(block) = block else { continue };
            let shape = block.kv().shape();
            if shape.head_dim != queries.head_dim || layer >= shape.n_layers {
                continue;
            }
            let group = queries.n_heads.div_ceil(shape.n_kv_heads);
            keys.resize(block.tokens().len() * shape.head_dim, 0.0);
            for head in 0..queries.n_heads {
                if head % group == 0 {
                    let of_head = block.kv().keys(layer, head / group, 0..block.tokens().len());
                    of_head.copy_to(&mut keys);
                }
                for token in 0..n_tokens {
                    let at = (token * queries.n_heads + head) * queries.head_dim;
                    let query = &asked[at..at + queries.head_dim];
                    let scores = keys.chunks_exact(queries.head_dim).map(|key| dot(query, key));
                    let best = scores.fold(f32::NEG_INFINITY, f32::max);
                    shares[(head * n_tokens + token) * blocks.len() + i] =
                        best / (queries.head_dim as f32).sqrt();
                }
            }
        }
        for of_head in shares.chunks_exact_mut((n_tokens * blocks.len()).max(1)) {
            add_votes(of_head, &mut votes);
        }
    }
    votes
}

/// Adds the votes of one head, whose best scores are `[n_tokens, n_blocks]`.
fn add_votes(scores: &mut [f32], votes: &mut [f32]) {
    let n_blocks = votes.len();
    let sharpness: Vec<f32> = scores.chunks_exact_mut(n_blocks).map(softmax).collect();
    let mut of_block = Vec::new();
    for (i, vote) in votes.iter_mut().enumerate() {
        let shares = || scores.iter().skip(i).step_by(n_blocks);
        of_block.clear();
        of_block.extend(shares());
        of_block.sort_by(f32::total_cmp);
        let usual = of_block[of_block.len() / 2];
        for (share, sharpness) in shares().zip(&sharpness) {
            *vote += ((share - usual).max(0.0) * sharpness).powi(2);
        }
    }
}

/// Turns scores into shares of one. Returns how sharp they are: 1 if one has all, 0 if all are equal.
fn softmax(scores: &mut [f32]) -> f32 {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !largest.is_finite() || scores.len() < 2 {
        scores.fill(0.0);
        return 0.0;
    }
    let mut sum = 0.0;
    for score in &mut *scores {
        *score = (*score - largest).exp();
        sum += *score;
    }
    let mut entropy = 0.0;
    for share in &mut *scores {
        *share /= sum;
        if *share > 0.0 {
            entropy -= *share * share.ln();
        }
    }
    (1.0 - entropy / (scores.len() as f32).ln()).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::NewBlock;
    use crate::index::{Distance, ExactIndex, VectorIndex};
    use crate::key_clusters::KeyClusters;
    use crate::kv::{BlockKv, KvShape, KvType};
    use crate::store::BlockMeta;
    use crate::testing::{new_block, session};
    use crate::words::WordIndex;
    use everstream_kv_cache::rng::SplitMix64;

    const SHAPE: KvShape = KvShape { n_layers: 2, n_kv_heads: 2, head_dim: 4 };
    const N_HEADS: usize = 4;

    fn block(i: u64, keys: &[f32]) -> Arc<Block> {
        let new = new_block(20 * i..20 * i + 3, "text");
        let kv = BlockKv::new(SHAPE, 3, keys, keys, KvType::F32).unwrap();
        Arc::new(Block::new(session(), NewBlock { kv, ..new }).unwrap())
    }

    fn random(rng: &mut SplitMix64, n: usize) -> Vec<f32> {
        (0..n).map(|_| 6.0 * rng.signed_unit()).collect()
    }

    /// The sum in the words of the type's documentation, in f64.
    fn naive(queries: &ModelQueries, blocks: &[Arc<Block>]) -> Vec<f64> {
        let mut votes = vec![0.0; blocks.len()];
        for (layer, asked) in queries.layers.iter().enumerate() {
            let n_tokens = asked.len() / N_HEADS / 4;
            for head in 0..N_HEADS {
                let share: Vec<(Vec<f64>, f64)> = (0..n_tokens)
                    .map(|token| {
                        let query = &asked[(token * N_HEADS + head) * 4..][..4];
                        let attention = |block: &Arc<Block>| {
                            let mut keys = vec![0.0; 12];
                            block.kv().keys(layer, head / 2, 0..3).copy_to(&mut keys);
                            let dots = keys.chunks(4).map(|key| {
                                key.iter().zip(query).map(|(k, q)| f64::from(k * q)).sum::<f64>()
                            });
                            (dots.fold(f64::MIN, f64::max) / 2.0).exp()
                        };
                        let all: Vec<f64> = blocks.iter().map(attention).collect();
                        let sum: f64 = all.iter().sum();
                        let all: Vec<f64> = all.iter().map(|a| a / sum).collect();
                        let entropy: f64 = all.iter().map(|p| -p * p.ln()).sum();
                        (all, 1.0 - entropy / (blocks.len() as f64).ln())
                    })
                    .collect();
                for (i, vote) in votes.iter_mut().enumerate() {
                    let mut of_block: Vec<f64> = share.iter().map(|s| s.0[i]).collect();
                    of_block.sort_by(f64::total_cmp);
                    let usual = of_block[n_tokens / 2];
                    let more = share.iter().map(|s| (s.0[i] - usual).max(0.0) * s.1);
                    *vote += more.map(|v| v * v).sum::<f64>();
                }
            }
        }
        votes
    }

    #[test]
    fn votes_are_those_of_the_naive_sum() {
        let mut rng = SplitMix64::new(1);
        for n_tokens in [1, 2, 5] {
            for n_blocks in 2..6 {
                let layers = (0..2).map(|_| random(&mut rng, n_tokens * N_HEADS * 4)).collect();
                let queries = ModelQueries { n_heads: N_HEADS, head_dim: 4, layers };
                let blocks: Vec<_> =
                    (0..n_blocks).map(|i| block(i, &random(&mut rng, 2 * 2 * 3 * 4))).collect();
                let some: Vec<_> = blocks.iter().cloned().map(Some).collect();
                for (found, expected) in votes(&queries, &some).iter().zip(naive(&queries, &blocks))
                {
                    assert!((f64::from(*found) - expected).abs() < 1e-4, "{found} {expected}");
                }
            }
        }
    }

    /// The head that looks elsewhere for each token decides, not the one that always looks at the
    /// same block however sharply.
    #[test]
    fn what_every_token_looks_at_gets_no_votes() {
        let usual = [50.0, 0.1, 0.1, 0.1, 0.1, 50.0, 0.1, 0.1, 50.0, 0.1, 0.1, 0.1];
        let mut votes = [0.0; 4];
        add_votes(&mut usual.clone(), &mut votes);
        assert!(votes[1] > 0.5 && votes[0] < 1e-6, "{votes:?}");
    }

    #[test]
    fn blocks_that_cannot_be_read_come_last_and_no_queries_mean_the_nearest() {
        let mut index = ExactIndex::new(1, Distance::L2).unwrap();
        let mut rng = SplitMix64::new(3);
        let blocks: Vec<_> = (0..5).map(|i| block(i, &random(&mut rng, 2 * 2 * 3 * 4))).collect();
        for (i, block) in blocks.iter().enumerate() {
            index.add(block.id(), &[i as f32]).unwrap();
        }
        let layers = (0..2).map(|_| random(&mut rng, 3 * N_HEADS * 4)).collect();
        let queries = ModelQueries { n_heads: N_HEADS, head_dim: 4, layers };
        let rank = |queries, n| {
            let words = WordIndex::default();
            let words = words.scores("");
            let clusters = KeyClusters::default();
            let query = Query {
                queries,
                block: &|id: BlockId| {
                    blocks[1..].iter().find(|block| block.id() == id).map(Arc::clone)
                },
                ..Query::bare(&[0.0], &index, &words, &clusters)
            };
            let mut out = Vec::new();
            Attention::default().rank(&query, n, &mut out).unwrap();
            let place = |hit: &Hit| blocks.iter().position(|b| b.id() == hit.id).unwrap();
            out.iter().map(place).collect::<Vec<_>>()
        };
        assert_eq!(rank(None, 3), [0, 1, 2]);
        let ranked = rank(Some(&queries), 5);
        assert_eq!(ranked[4], 0);
        assert_eq!(rank(Some(&queries), 2), ranked[..2]);
        let empty = ModelQueries::default();
        assert_eq!(rank(Some(&empty), 2), [0, 1]);
    }

    /// With as many candidates as there are blocks, clusters choose as if all were read; with few, most of the best are
    /// among them. A block that the index does not hold costs itself.
    #[test]
    fn clusters_propose_what_gets_votes() {
        let mut rng = SplitMix64::new(9);
        let blocks: Vec<_> = (0..140).map(|i| block(i, &random(&mut rng, 2 * 2 * 3 * 4))).collect();
        let mut index = ExactIndex::new(1, Distance::L2).unwrap();
        for (i, block) in blocks[..139].iter().enumerate() {
            index.add(block.id(), &[i as f32]).unwrap();
        }
        let mut clusters = KeyClusters::default();
        let read = |order: usize| Ok::<_, ()>(Some(Arc::clone(&blocks[order])));
        let metas: Vec<BlockMeta> = blocks.iter().map(|block| BlockMeta::from(&**block)).collect();
        clusters.update(&metas, &read).unwrap();
        let layers = (0..2).map(|_| random(&mut rng, 5 * N_HEADS * 4)).collect();
        let queries = ModelQueries { n_heads: N_HEADS, head_dim: 4, layers };
        assert!(clusters.are_of(&queries));
        let words = WordIndex::default();
        let words = words.scores("");
        let query = Query {
            blocks: &metas,
            eligible: &|id| id != blocks[7].id(),
            queries: Some(&queries),
            block: &|id| blocks.iter().find(|block| block.id() == id).map(Arc::clone),
            ..Query::bare(&[0.0], &index, &words, &clusters)
        };
        let rank = |candidates, n| {
            let mut out = Vec::new();
            Attention { candidates }.rank(&query, n, &mut out).unwrap();
            out
        };
        let all = rank(Candidates::All, 200);
        assert_eq!(all.len(), 138);
        assert_eq!(rank(Candidates::InClusters(139), 200), all);
        let nobody = Query { eligible: &|_| false, ..query };
        let mut out = vec![all[0]];
        Attention { candidates: Candidates::InClusters(5) }.rank(&nobody, 5, &mut out).unwrap();
        assert!(out.is_empty());
        // By chance it would be three of them.
        let few = rank(Candidates::InClusters(40), 40);
        let n_of_best = all[..10].iter().filter(|hit| few.contains(hit)).count();
        assert!(n_of_best >= 6, "{n_of_best}");
    }
}
