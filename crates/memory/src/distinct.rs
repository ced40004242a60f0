//! How unlike all others the keys of a block are.

use crate::block::Block;
use crate::kv::KvShape;

/// The mean direction of keys, for each layer and KV head.
///
/// A key that points where most do is attended to with them or not at all; one that points elsewhere is what some
/// query looks for. Measured block by block: the mean over its tokens, layers and heads of one minus the cosine
/// between the raw key and the mean direction.
///
/// Source: Park et al., "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in
/// Resource-Constrained Environments", 2025, arXiv:2504.15364, section 3, who evict single tokens from the cache.
#[derive(Debug)]
pub(crate) struct MeanKey {
    shape: KvShape,
    /// Sums of keys of length 1: `[n_layers, n_kv_heads, head_dim]`.
    sums: Vec<f64>,
}

impl MeanKey {
    pub(crate) fn new(shape: KvShape) -> Self {
        Self { shape, sums: vec![0.0; shape.n_layers * shape.n_kv_heads * shape.head_dim] }
    }

    /// Adds the keys of a block of this shape.
    pub(crate) fn add(&mut self, block: &Block) {
        let dim = self.shape.head_dim;
        for_each_head(self.shape, block, &mut |head, keys| {
            let sum = &mut self.sums[head * dim..][..dim];
            for key in keys.chunks_exact(dim) {
                let scale = 1.0 / length(key.iter().map(|&x| f64::from(x))).max(f64::MIN_POSITIVE);
                sum.iter_mut().zip(key).for_each(|(sum, x)| *sum += scale * f64::from(*x));
            }
        });
    }

    /// How far the keys of a block point away from the mean: from 0 to 2.
    pub(crate) fn distance(&self, block: &Block) -> f64 {
        let dim = self.shape.head_dim;
        let (mut total, mut n_keys) = (0.0, 0);
        for_each_head(self.shape, block, &mut |head, keys| {
            let sum = &self.sums[head * dim..][..dim];
            let length_of_sum = length(sum.iter().copied());
            for key in keys.chunks_exact(dim) {
                let product: f64 = sum.iter().zip(key).map(|(sum, x)| sum * f64::from(*x)).sum();
                let lengths = length_of_sum * length(key.iter().map(|&x| f64::from(x)));
                total += 1.0 - product / lengths.max(f64::MIN_POSITIVE);
                n_keys += 1;
            }
        });
        total / f64::from(n_keys.max(1))
    }
}

fn length(components: impl Iterator<Item = f64>) -> f64 {
    components.map(|x| x * x).sum::<f64>().sqrt()
}

/// Shows the keys of each layer and KV head; none of a block of another shape.
fn for_each_head(shape: KvShape, block: &Block, show: &mut dyn FnMut(usize, &[f32])) {
    let kv = block.kv();
    if kv.shape() != shape {
        return;
    }
    let mut keys = vec![0.0; kv.n_tokens() * shape.head_dim];
    for layer in 0..shape.n_layers {
        for kv_head in 0..shape.n_kv_heads {
            kv.keys(layer, kv_head, 0..kv.n_tokens()).copy_to(&mut keys);
            show(layer * shape.n_kv_heads + kv_head, &keys);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::NewBlock;
    use crate::kv::{BlockKv, KvType};
    use crate::testing::{new_block, session};
    use everstream_kv_cache::rng::SplitMix64;

    const SHAPE: KvShape = KvShape { n_layers: 3, n_kv_heads: 2, head_dim: 4 };

    fn block(keys: &[f32]) -> Block {
        let n_tokens = keys.len() / SHAPE.components(1).unwrap();
        let new = new_block(0..n_tokens as u64, "text");
        let kv = BlockKv::new(SHAPE, n_tokens, keys, keys, KvType::F32).unwrap();
        Block::new(session(), NewBlock { kv, ..new }).unwrap()
    }

    /// The distance in the words of the type's documentation, head by head.
    fn naive(blocks: &[(usize, Vec<f32>)], of: usize) -> f64 {
        let (mut total, mut n) = (0.0, 0.0);
        for head in 0..6 {
            let keys_of = |i: usize| {
                let (n_tokens, keys) = &blocks[i];
                let key = move |t: usize| -> Vec<f64> {
                    let at = (head * n_tokens + t) * 4;
                    let key: Vec<f64> = keys[at..at + 4].iter().map(|&x| f64::from(x)).collect();
                    let length = key.iter().map(|x| x * x).sum::<f64>().sqrt();
                    key.iter().map(|x| x / length).collect()
                };
                (0..*n_tokens).map(key).collect::<Vec<_>>()
            };
            let mut mean = [0.0; 4];
            for i in 0..blocks.len() {
                for key in keys_of(i) {
                    mean.iter_mut().zip(key).for_each(|(mean, x)| *mean += x);
                }
            }
            let length = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
            for key in keys_of(of) {
                total += 1.0 - mean.iter().zip(key).map(|(m, x)| m * x).sum::<f64>() / length;
                n += 1.0;
            }
        }
        total / n
    }

    #[test]
    fn distances_are_those_of_the_formula() {
        let mut rng = SplitMix64::new(5);
        for _ in 0..20 {
            let blocks: Vec<(usize, Vec<f32>)> = (0..4)
                .map(|i| (3 + i, (0..(3 + i) * 24).map(|_| rng.signed_unit() + 0.3).collect()))
                .collect();
            let mut mean = MeanKey::new(SHAPE);
            blocks.iter().for_each(|(_, keys)| mean.add(&block(keys)));
            for (i, (_, keys)) in blocks.iter().enumerate() {
                let (found, expected) = (mean.distance(&block(keys)), naive(&blocks, i));
                assert!((found - expected).abs() < 1e-9, "{found} {expected}");
            }
        }
    }

    #[test]
    fn keys_without_a_direction_make_no_trouble() {
        let mut mean = MeanKey::new(SHAPE);
        assert!(mean.distance(&block(&[0.0; 48])).is_finite());
        mean.add(&block(&[0.0; 48]));
        assert!((mean.distance(&block(&[1.0; 48])) - 1.0).abs() < 1e-12);
        mean.add(&block(&[2.0; 48]));
        assert!(mean.distance(&block(&[1.0; 48])).abs() < 1e-12);
        assert!((mean.distance(&block(&[-1.0; 48])) - 2.0).abs() < 1e-12);
    }
}
