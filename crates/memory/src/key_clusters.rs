//! Finds blocks by their keys: which clusters of keys they have members in.

use std::sync::Arc;

use everstream_kernels::Isa;
use everstream_kv_cache::rng::SplitMix64;
use everstream_kv_cache::{ClusterConfig, Means, Segment};

use crate::block::Block;
use crate::index::dot;
use crate::kv::KvShape;
use crate::strategy::ModelQueries;

/// Clusters of a KV head.
const N_CLUSTERS: usize = 64 * WORDS;
const WORDS: usize = 8;
/// Fewer blocks than these are not clustered: all of them can be looked at.
const FEWEST_BLOCKS: usize = 128;
/// Clusters are learned anew whenever there are so many times as many blocks.
const GROWTH: usize = 4;
/// The most blocks that are learned from, evenly spread over all.
const MAX_SAMPLE: usize = 64;
/// Clusters begin in so many parts of the sample.
const N_BEGINNINGS: usize = 4;

/// The clusters of a KV head that a block has members in, a bit each.
type Members = [u64; WORDS];

/// Keys of all blocks, clustered for each layer and KV head, and for each cluster the blocks that have a
/// member there.
///
/// What it holds depends on the blocks alone, not on when it was asked: clusters are those of the first 128,
/// 512, 2,048, … blocks, whichever is the most that there are, and never move in between. A block takes 64 bytes
/// for each layer and KV head. All of it is made by reading every block, when it is first asked for after a start.
///
/// Source: an inverted file (Sivic and Zisserman, "Video Google", 2003) over keys, as in Liu et al.,
/// "RetrievalAttention", 2024, arXiv:2409.10516, and Chen et al., "RetroInfer", 2025, arXiv:2505.02922; here for
/// blocks instead of tokens.
#[derive(Clone, Debug, Default)]
pub struct KeyClusters {
    n_kv_heads: usize,
    /// `[n_layers, n_kv_heads]`
    means: Vec<Means>,
    /// Blocks that there were when they were learned.
    n_learned: usize,
    /// Of each block `[n_layers, n_kv_heads]`; nothing for one that cannot be read.
    members: Vec<Vec<Members>>,
}

impl KeyClusters {
    /// Takes in what is new of `n_blocks` blocks; `read` gives one by its number, unless it cannot be read.
    ///
    /// # Errors
    ///
    /// What `read` says; the call may be repeated.
    pub fn update<E>(
        &mut self,
        n_blocks: usize,
        read: &dyn Fn(usize) -> Result<Option<Arc<Block>>, E>,
    ) -> Result<(), E> {
        let n_learned = learned_from(n_blocks);
        if n_learned != self.n_learned {
            let step = n_learned.div_ceil(MAX_SAMPLE);
            let sample = (0..n_learned).step_by(step).map(read);
            let sample: Vec<_> =
                sample.collect::<Result<Vec<_>, E>>()?.into_iter().flatten().collect();
            self.learn(&sample);
            self.members.clear();
            self.n_learned = n_learned;
        }
        for order in self.members.len()..n_blocks {
            let block = if self.means.is_empty() { None } else { read(order)? };
            self.members.push(block.map_or(Vec::new(), |block| self.members_of(&block)));
        }
        Ok(())
    }

    /// Blocks taken in.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether none was taken in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether there are clusters of the layers and heads that ask.
    #[must_use]
    pub fn are_of(&self, queries: &ModelQueries) -> bool {
        let is_as_long = |means: &Means| means.keys().len() == N_CLUSTERS * queries.head_dim;
        self.means.first().is_some_and(is_as_long)
            && self.means.len() == self.n_kv_heads * queries.layers.len()
            && queries.n_heads.is_multiple_of(self.n_kv_heads)
    }

    /// Appends for each block of `orders` the largest product of a query head with a mean, among the means of
    /// clusters that the block has a member in; minus infinity for one that has none.
    ///
    /// # Panics
    ///
    /// If there are no clusters of the layer.
    pub fn best_products(
        &self,
        (layer, n_heads, head): (usize, usize, usize),
        query: &[f32],
        orders: &[usize],
        out: &mut Vec<f32>,
    ) {
        let head = layer * self.n_kv_heads + head / (n_heads / self.n_kv_heads);
        let means = self.means[head].keys().chunks_exact(query.len());
        let mut products: Vec<(usize, f32)> =
            means.map(|mean| dot(mean, query)).enumerate().collect();
        products.sort_by(|a, b| b.1.total_cmp(&a.1));
        out.extend(orders.iter().map(|&order| {
            let members = self.members.get(order).and_then(|heads| heads.get(head));
            let has = |cluster: usize| {
                members.is_some_and(|members| members[cluster / 64] >> (cluster % 64) & 1 == 1)
            };
            let best = products.iter().find(|(cluster, _)| has(*cluster));
            best.map_or(f32::NEG_INFINITY, |best| best.1)
        }));
    }

    fn learn(&mut self, sample: &[Arc<Block>]) {
        self.means.clear();
        let Some(shape) = sample.first().map(|block| block.kv().shape()) else { return };
        self.n_kv_heads = shape.n_kv_heads;
        let config = ClusterConfig {
            n_clusters: N_CLUSTERS,
            n_members: u64::MAX,
            ..ClusterConfig::default()
        };
        for head in 0..shape.n_layers * shape.n_kv_heads {
            let mut means = Means::new(&config, shape.head_dim);
            let mut rng = SplitMix64::new(head as u64);
            for (i, part) in sample.chunks(sample.len().div_ceil(N_BEGINNINGS)).enumerate() {
                let n_new = if i + 1 < N_BEGINNINGS {
                    N_CLUSTERS / N_BEGINNINGS
                } else {
                    N_CLUSTERS - N_CLUSTERS / N_BEGINNINGS * (N_BEGINNINGS - 1)
                };
                let segment = segment(shape, head, part);
                means.add(Isa::detect(), &segment, n_new, &mut rng);
            }
            self.means.push(means);
        }
    }

    fn members_of(&self, block: &Arc<Block>) -> Vec<Members> {
        let of_head = |(head, means): (usize, &Means)| {
            let segment = segment(block.kv().shape(), head, std::slice::from_ref(block));
            let mut members = [0; WORDS];
            for cluster in means.nearest(Isa::detect(), &segment) {
                let cluster = cluster as usize;
                members[cluster / 64] |= 1 << (cluster % 64);
            }
            members
        };
        self.means.iter().enumerate().map(of_head).collect()
    }
}

/// How many of so many blocks clusters are learned from.
fn learned_from(n_blocks: usize) -> usize {
    let mut n = FEWEST_BLOCKS;
    while n.saturating_mul(GROWTH) <= n_blocks {
        n *= GROWTH;
    }
    if n <= n_blocks { n } else { 0 }
}

/// The keys of one KV head of some blocks, which stand for their values as well: those are not asked for.
fn segment(shape: KvShape, head: usize, blocks: &[Arc<Block>]) -> Segment {
    let dim = shape.head_dim;
    let (layer, kv_head) = (head / shape.n_kv_heads, head % shape.n_kv_heads);
    let n_tokens: usize = blocks.iter().map(|block| block.kv().n_tokens()).sum();
    let mut keys = vec![0.0; n_tokens * dim];
    let mut rest = &mut keys[..];
    for block in blocks {
        let n_tokens = block.kv().n_tokens();
        let (of_block, others) = rest.split_at_mut(n_tokens * dim);
        block.kv().keys(layer, kv_head, 0..n_tokens).copy_to(of_block);
        rest = others;
    }
    Segment::new(dim, keys.clone(), keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::NewBlock;
    use crate::kv::{BlockKv, KvType};
    use crate::testing::{new_block, session};

    const SHAPE: KvShape = KvShape { n_layers: 2, n_kv_heads: 2, head_dim: 4 };
    const N_HEADS: usize = 4;

    fn blocks(n: usize, seed: u64) -> Vec<Arc<Block>> {
        let mut rng = SplitMix64::new(seed);
        let block = |i| {
            // Some blocks end in the middle of a tile.
            let n_tokens = 16 + i % 7;
            let keys: Vec<f32> =
                (0..SHAPE.components(n_tokens).unwrap()).map(|_| rng.signed_unit()).collect();
            let start = 100 * i as u64;
            let new = new_block(start..start + n_tokens as u64, "text");
            let kv = BlockKv::new(SHAPE, n_tokens, &keys, &keys, KvType::F32).unwrap();
            Arc::new(Block::new(session(), NewBlock { kv, ..new }).unwrap())
        };
        (0..n).map(block).collect()
    }

    fn update(clusters: &mut KeyClusters, blocks: &[Arc<Block>]) {
        let read = |order: usize| Ok::<_, ()>(Some(Arc::clone(&blocks[order])));
        clusters.update(blocks.len(), &read).unwrap();
    }

    fn queries(n_layers: usize, head_dim: usize) -> ModelQueries {
        ModelQueries { n_heads: N_HEADS, head_dim, layers: vec![Vec::new(); n_layers] }
    }

    #[test]
    fn products_are_those_of_the_nearest_means() {
        let blocks = blocks(140, 1);
        let mut clusters = KeyClusters::default();
        update(&mut clusters, &blocks);
        assert!(clusters.are_of(&queries(2, 4)) && clusters.n_learned == 128);
        let mut rng = SplitMix64::new(2);
        let orders = [139, 3, 41];
        for (layer, head) in [(0, 0), (0, 3), (1, 1), (1, 2)] {
            let query: Vec<f32> = (0..4).map(|_| rng.signed_unit()).collect();
            let mut found = Vec::new();
            clusters.best_products((layer, N_HEADS, head), &query, &orders, &mut found);
            let means = clusters.means[layer * 2 + head / 2].keys();
            for (found, order) in found.iter().zip(orders) {
                let n_tokens = blocks[order].tokens().len();
                let mut keys = vec![0.0; n_tokens * 4];
                blocks[order].kv().keys(layer, head / 2, 0..n_tokens).copy_to(&mut keys);
                let distance = |a: &[f32], b: &[f32]| -> f32 {
                    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
                };
                let product_of = |key: &[f32]| {
                    let near =
                        |a: &&[f32], b: &&[f32]| distance(key, a).total_cmp(&distance(key, b));
                    dot(means.chunks_exact(4).min_by(near).unwrap(), &query)
                };
                let expected = keys.chunks_exact(4).map(product_of).fold(f32::MIN, f32::max);
                assert!((found - expected).abs() < 1e-5, "{found} {expected}");
            }
        }
    }

    #[test]
    fn what_is_known_depends_on_the_blocks_and_not_on_when_it_was_asked() {
        let blocks = blocks(520, 3);
        let (mut at_once, mut bit_by_bit) = (KeyClusters::default(), KeyClusters::default());
        update(&mut at_once, &blocks);
        for n in [3, 128, 129, 511, 512, 520] {
            update(&mut bit_by_bit, &blocks[..n]);
            assert_eq!(bit_by_bit.len(), n);
        }
        assert_eq!(at_once.members, bit_by_bit.members);
        assert_eq!([0, 127, 128, 511, 512, 2048].map(learned_from), [0, 0, 128, 128, 512, 2048]);
    }

    #[test]
    fn few_blocks_and_those_that_cannot_be_read_have_no_clusters() {
        let mut clusters = KeyClusters::default();
        assert!(clusters.is_empty() && !clusters.are_of(&queries(2, 4)));
        update(&mut clusters, &blocks(127, 1));
        assert!(!clusters.are_of(&queries(2, 4)));
        clusters.update(130, &|_| Ok::<_, ()>(None)).unwrap();
        assert!(!clusters.are_of(&queries(2, 4)));
        let blocks = blocks(130, 1);
        let read = |order: usize| Ok::<_, ()>((order != 4).then(|| Arc::clone(&blocks[order])));
        let mut clusters = KeyClusters::default();
        clusters.update(130, &read).unwrap();
        let mut found = Vec::new();
        clusters.best_products((0, N_HEADS, 0), &[1.0; 4], &[3, 4, 999], &mut found);
        assert!(found[0].is_finite() && found[1..] == [f32::NEG_INFINITY; 2]);
        // Another model asks.
        assert!(clusters.are_of(&queries(2, 4)));
        assert!(!clusters.are_of(&queries(3, 4)) && !clusters.are_of(&queries(2, 8)));
        let failing = |order: usize| if order > 140 { Err(()) } else { read(5) };
        assert_eq!(clusters.update(150, &failing), Err(()));
    }
}
