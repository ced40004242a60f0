//! Finds blocks by their keys: which clusters of keys they have members in.

use std::sync::Arc;

use everstream_kernels::Isa;
use everstream_kv_cache::rng::SplitMix64;
use everstream_kv_cache::{ClusterConfig, Means, Segment};

use crate::block::{Block, BlockId};
use crate::index::dot;
use crate::kv::KvShape;
use crate::store::BlockMeta;
use crate::strategy::ModelQueries;

/// Clusters of a KV head.
const N_CLUSTERS: usize = 64 * WORDS;
const WORDS: usize = 8;
/// Fewer blocks than these are not clustered: all of them can be looked at.
const FEWEST_BLOCKS: usize = 128;
/// Clusters are learned anew whenever there are so many times as many blocks.
const GROWTH: usize = 4;
/// The most blocks that are learned from, evenly spread.
const MAX_SAMPLE: usize = 64;
/// Clusters begin in so many parts of the sample.
const N_BEGINNINGS: usize = 4;

/// The clusters of a KV head that a block has members in, a bit each.
type Members = [u64; WORDS];

/// Keys of all blocks, clustered for each layer and KV head, and for each block the clusters that it has a member
/// in.
///
/// Clusters are those of the first 128, 512, 2,048, … blocks that are held, whichever is the most that there are, so
/// that they depend on these blocks alone and not on when they were asked for. They are learned by reading
/// every block, when they are first asked for after a start, whenever there are four times as many blocks, and when
/// one that was learned from is forgotten. A block takes 64 bytes for each layer and KV head.
///
/// Source: cells of a vector quantizer as the words by which things are found (Sivic and Zisserman, "Video Google",
/// 2003), for keys as in Liu et al., "RetrievalAttention", 2024, arXiv:2409.10516, and Chen et al., "RetroInfer",
/// 2025, arXiv:2505.02922; here of blocks instead of tokens.
#[derive(Clone, Debug, Default)]
pub struct KeyClusters {
    shape: Option<KvShape>,
    /// `[n_layers, n_kv_heads]`
    means: Arc<Vec<Means>>,
    /// The blocks that were learned from.
    sample: Vec<BlockId>,
    /// For each layer and KV head those of each block; none of one that cannot be read.
    members: Vec<Vec<Members>>,
    n_blocks: usize,
}

impl KeyClusters {
    /// Whether all of these blocks were taken in, and are what clusters are learned from.
    pub(crate) fn are_of_blocks(&self, blocks: &[BlockMeta]) -> bool {
        self.n_blocks == blocks.len() && self.sample == ids(&sample(blocks), blocks)
    }

    /// Takes in what is new of these blocks; `read` gives one by its number, unless it cannot be read.
    ///
    /// # Errors
    ///
    /// What `read` says; the call may be repeated.
    pub(crate) fn update<E>(
        &mut self,
        blocks: &[BlockMeta],
        read: &dyn Fn(usize) -> Result<Option<Arc<Block>>, E>,
    ) -> Result<(), E> {
        let sample = sample(blocks);
        let ids = ids(&sample, blocks);
        if ids != self.sample {
            let read: Result<Vec<_>, E> = sample.into_iter().map(read).collect();
            self.learn(&read?.into_iter().flatten().collect::<Vec<_>>());
            (self.sample, self.n_blocks) = (ids, 0);
        }
        for (order, meta) in blocks.iter().enumerate().skip(self.n_blocks) {
            let block = match meta.is_forgotten || self.means.is_empty() {
                true => None,
                false => read(order)?,
            };
            let block = block.as_ref().filter(|block| Some(block.kv().shape()) == self.shape);
            for (head, (means, members)) in self.means.iter().zip(&mut self.members).enumerate() {
                members.push(block.map_or([0; WORDS], |block| members_of(means, head, block)));
            }
            self.n_blocks += 1;
        }
        Ok(())
    }

    /// Whether there are clusters of the layers and heads that ask.
    pub(crate) fn are_of(&self, queries: &ModelQueries) -> bool {
        self.shape.is_some_and(|shape| {
            (shape.n_layers, shape.head_dim) == (queries.layers.len(), queries.head_dim)
                && queries.n_heads > 0
                && queries.n_heads.is_multiple_of(shape.n_kv_heads)
        })
    }

    /// Appends for each block of `orders` the largest product of a query head with a mean, among the means of
    /// clusters that the block has a member in; minus infinity for one that has none.
    ///
    /// # Panics
    ///
    /// Unless there are clusters [of](Self::are_of) the layer, and of as many heads.
    pub(crate) fn best_products(
        &self,
        (layer, n_heads, head): (usize, usize, usize),
        query: &[f32],
        orders: &[usize],
        out: &mut Vec<f32>,
    ) {
        let n_kv_heads = self.shape.map_or(1, |shape| shape.n_kv_heads);
        let head = layer * n_kv_heads + head / (n_heads / n_kv_heads);
        let means = self.means[head].keys().chunks_exact(query.len());
        let products = means.map(|mean| dot(mean, query)).enumerate();
        let mut products: Vec<(usize, f32)> = products.filter(|(_, x)| !x.is_nan()).collect();
        products.sort_by(|a, b| b.1.total_cmp(&a.1));
        out.extend(orders.iter().map(|&order| {
            let members = self.members[head].get(order);
            let has = |cluster: usize| {
                members.is_some_and(|members| members[cluster / 64] >> (cluster % 64) & 1 == 1)
            };
            let best = products.iter().find(|(cluster, _)| has(*cluster));
            best.map_or(f32::NEG_INFINITY, |best| best.1)
        }));
    }

    /// Clusters the keys of a sample, as many of each part of it; none if there is no sample.
    fn learn(&mut self, sample: &[Arc<Block>]) {
        let Some(shape) = sample.first().map(|block| block.kv().shape()) else {
            *self = Self::default();
            return;
        };
        let n_heads = shape.n_layers * shape.n_kv_heads;
        let has_shape = |block: &&Arc<Block>| block.kv().shape() == shape;
        let sample: Vec<Arc<Block>> = sample.iter().filter(has_shape).cloned().collect();
        let n_parts = N_BEGINNINGS.min(sample.len());
        let config = ClusterConfig {
            n_clusters: N_CLUSTERS,
            n_members: u64::MAX,
            ..ClusterConfig::default()
        };
        let of_head = |head: usize| {
            let mut means = Means::new(&config, shape.head_dim);
            let mut rng = SplitMix64::new(head as u64);
            for part in 0..n_parts {
                let of_part = |n: usize| n * part / n_parts..n * (part + 1) / n_parts;
                let segment = segment(shape, head, &sample[of_part(sample.len())]);
                means.add(Isa::detect(), &segment, of_part(N_CLUSTERS).len(), &mut rng);
            }
            means
        };
        self.shape = Some(shape);
        self.means = Arc::new((0..n_heads).map(of_head).collect());
        self.members = vec![Vec::new(); n_heads];
    }
}

/// The numbers of the blocks that clusters are learned from.
fn sample(blocks: &[BlockMeta]) -> Vec<usize> {
    let held = blocks.iter().enumerate().filter(|(_, meta)| !meta.is_forgotten);
    let held: Vec<usize> = held.map(|(order, _)| order).collect();
    let n_learned = learned_from(held.len());
    let step = n_learned.div_ceil(MAX_SAMPLE).max(1);
    held.into_iter().take(n_learned).step_by(step).collect()
}

fn ids(orders: &[usize], blocks: &[BlockMeta]) -> Vec<BlockId> {
    orders.iter().map(|&order| blocks[order].id).collect()
}

/// How many of so many blocks clusters are learned from.
fn learned_from(n_blocks: usize) -> usize {
    let mut n = FEWEST_BLOCKS;
    while n.saturating_mul(GROWTH) <= n_blocks {
        n *= GROWTH;
    }
    if n <= n_blocks { n } else { 0 }
}

fn members_of(means: &Means, head: usize, block: &Arc<Block>) -> Members {
    let mut members = [0; WORDS];
    let segment = segment(block.kv().shape(), head, std::slice::from_ref(block));
    for cluster in means.nearest(Isa::detect(), &segment) {
        let cluster = cluster as usize;
        members[cluster / 64] |= 1 << (cluster % 64);
    }
    members
}

/// The keys of one KV head of some blocks of this shape, which stand for their values as well: those are not asked for.
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

    fn metas(blocks: &[Arc<Block>]) -> Vec<BlockMeta> {
        blocks.iter().map(|block| BlockMeta::from(&**block)).collect()
    }

    fn update(clusters: &mut KeyClusters, blocks: &[Arc<Block>]) {
        let read = |order: usize| Ok::<_, ()>(Some(Arc::clone(&blocks[order])));
        clusters.update(&metas(blocks), &read).unwrap();
        assert!(clusters.are_of_blocks(&metas(blocks)));
    }

    fn queries(n_layers: usize, head_dim: usize) -> ModelQueries {
        ModelQueries { n_heads: N_HEADS, head_dim, layers: vec![Vec::new(); n_layers] }
    }

    #[test]
    fn products_are_those_of_the_nearest_means() {
        let blocks = blocks(140, 1);
        let mut clusters = KeyClusters::default();
        update(&mut clusters, &blocks);
        assert!(clusters.are_of(&queries(2, 4)) && clusters.sample.len() == 64);
        let mut rng = SplitMix64::new(2);
        let orders = [139, 3, 41];
        for (layer, head) in [(0, 0), (0, 3), (1, 1), (1, 2)] {
            let query: Vec<f32> = (0..4).map(|_| rng.signed_unit()).collect();
            let mut found = Vec::new();
            clusters.best_products((layer, N_HEADS, head), &query, &orders, &mut found);
            let means = clusters.means[layer * 2 + head / 2].keys();
            assert_eq!(means.len(), 4 * N_CLUSTERS);
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

    /// Also if some of them were forgotten meanwhile: as a start finds those that are left.
    #[test]
    fn what_is_known_depends_on_the_blocks_and_not_on_when_it_was_asked() {
        let blocks = blocks(520, 3);
        let (mut at_once, mut bit_by_bit) = (KeyClusters::default(), KeyClusters::default());
        update(&mut at_once, &blocks);
        for n in [3, 128, 129, 511, 512, 520] {
            update(&mut bit_by_bit, &blocks[..n]);
        }
        assert_eq!(at_once.members, bit_by_bit.members);
        assert_eq!([0, 127, 128, 511, 512, 2048].map(learned_from), [0, 0, 128, 128, 512, 2048]);

        let is_gone = |i: usize| i == 0 || (200..240).contains(&i);
        let mut metas = metas(&blocks);
        (0..520).filter(|&i| is_gone(i)).for_each(|i| metas[i].is_forgotten = true);
        assert!(!bit_by_bit.are_of_blocks(&metas));
        let read = |order: usize| Ok::<_, ()>(Some(Arc::clone(&blocks[order])));
        bit_by_bit.update(&metas, &read).unwrap();
        let left: Vec<_> =
            (0..520).filter(|&i| !is_gone(i)).map(|i| Arc::clone(&blocks[i])).collect();
        let mut after_a_start = KeyClusters::default();
        update(&mut after_a_start, &left);
        for (all, left) in bit_by_bit.members.iter().zip(&after_a_start.members) {
            let held = (0..520).filter(|&i| !is_gone(i)).map(|i| all[i]);
            assert!(held.eq(left.iter().copied()));
        }
    }

    #[test]
    fn few_blocks_and_those_that_cannot_be_read_have_no_clusters() {
        let mut clusters = KeyClusters::default();
        assert!(!clusters.are_of(&queries(2, 4)));
        update(&mut clusters, &blocks(127, 1));
        assert!(!clusters.are_of(&queries(2, 4)));
        let blocks = blocks(150, 1);
        let metas = metas(&blocks);
        clusters.update(&metas[..130], &|_| Ok::<_, ()>(None)).unwrap();
        assert!(!clusters.are_of(&queries(2, 4)));
        // A sample of any size will do.
        for n_readable in [1, 2, 3, 5, 6, 9, 64] {
            let is_readable = |order: usize| order < 2 * n_readable && order != 4;
            let read =
                |order: usize| Ok::<_, ()>(is_readable(order).then(|| Arc::clone(&blocks[order])));
            let mut clusters = KeyClusters::default();
            clusters.update(&metas[..130], &read).unwrap();
            assert!(clusters.are_of(&queries(2, 4)), "{n_readable}");
            assert_eq!(clusters.means[0].keys().len(), 4 * N_CLUSTERS);
            let mut found = Vec::new();
            clusters.best_products((0, N_HEADS, 0), &[1.0; 4], &[0, 4, 999], &mut found);
            assert!(found[0].is_finite() && found[1..] == [f32::NEG_INFINITY; 2]);
            // Another model asks.
            assert!(!clusters.are_of(&queries(3, 4)) && !clusters.are_of(&queries(2, 8)));
        }
        let mut clusters = KeyClusters::default();
        let failing = |order: usize| match order > 140 {
            true => Err(()),
            false => Ok(Some(Arc::clone(&blocks[order]))),
        };
        assert_eq!(clusters.update(&metas, &failing), Err(()));
        assert!(!clusters.are_of_blocks(&metas));
        update(&mut clusters, &blocks);
    }

    /// A key that is no number costs its block at most.
    #[test]
    fn keys_that_are_no_numbers_cost_their_blocks() {
        let mut blocks = blocks(130, 1);
        for i in [2, 7] {
            let n_tokens = blocks[i].tokens().len();
            let nan = vec![f32::NAN; SHAPE.components(n_tokens).unwrap()];
            let kv = BlockKv::new(SHAPE, n_tokens, &nan, &nan, KvType::F32).unwrap();
            let start = blocks[i].range().start.0;
            let new = new_block(start..start + n_tokens as u64, "text");
            blocks[i] = Arc::new(Block::new(session(), NewBlock { kv, ..new }).unwrap());
        }
        let mut clusters = KeyClusters::default();
        update(&mut clusters, &blocks);
        let mut found = Vec::new();
        let orders: Vec<usize> = (0..130).filter(|i| ![2, 7].contains(i)).collect();
        clusters.best_products((1, N_HEADS, 3), &[1.0; 4], &orders, &mut found);
        assert!(found.iter().all(|product| product.is_finite()), "{found:?}");
    }
}
