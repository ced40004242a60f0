//! The k means of one KV head.

use everstream_kernels::{Isa, TILE, nearest_points};

use super::{ClusterConfig, ClusterForm, Segment};
use crate::buffers::Number;
use crate::rng::SplitMix64;

/// Means of the keys that have been added, and of their values.
///
/// Sources: Arthur and Vassilvitskii, "k-means++: The Advantages of Careful Seeding", 2007, for where
/// clusters begin; Sculley, "Web-Scale K-Means Clustering", 2010, for means that each member moves by
/// `1 / count`: a cluster is the mean of all its members, however long ago they were added, and no
/// mean is ever clustered again. Where the count stops at [`ClusterConfig::n_members`], older members fade.
#[derive(Clone, Debug)]
pub struct Means {
    head_dim: usize,
    n_newest: u64,
    /// `[n_clusters, head_dim]`
    keys: Vec<f32>,
    values: Vec<f32>,
    pub(super) counts: Vec<u64>,
    /// Key and value of the member whose key is nearest to the mean, `[n_clusters, head_dim]`: of
    /// those that were added last, or held before.
    pub(super) medoids: Option<[Vec<f32>; 2]>,
}

impl Means {
    /// No means yet, of keys of `head_dim` components.
    #[must_use]
    pub fn new(config: &ClusterConfig, head_dim: usize) -> Self {
        let rows = || Vec::with_capacity(config.n_clusters * head_dim);
        let medoids = (config.form == ClusterForm::Medoid).then(|| [rows(), rows()]);
        let counts = Vec::with_capacity(config.n_clusters);
        let n_newest = config.n_members;
        Self { head_dim, n_newest, keys: rows(), values: rows(), counts, medoids }
    }

    /// How many tokens each cluster stands for.
    pub(super) fn weights(&self) -> impl Iterator<Item = u64> + Clone {
        self.counts.iter().map(|&count| count.min(self.n_newest))
    }

    /// Key and value that stand for a cluster.
    pub(super) fn row(&self, cluster: usize) -> (&[f32], &[f32]) {
        let at = cluster * self.head_dim..(cluster + 1) * self.head_dim;
        match &self.medoids {
            None => (&self.keys[at.clone()], &self.values[at]),
            Some([keys, values]) => (&keys[at.clone()], &values[at]),
        }
    }

    /// The means of keys: `[n_clusters, head_dim]`.
    #[must_use]
    pub fn keys(&self) -> &[f32] {
        &self.keys
    }

    /// Of each token the cluster with the nearest mean, of equals the first; 0 if there is none.
    #[must_use]
    pub fn nearest(&self, isa: Isa, segment: &Segment) -> Vec<u32> {
        let mut clusters = self.nearest_of(isa, segment).clusters;
        clusters.truncate(segment.n_tokens(self.head_dim));
        clusters
    }

    fn nearest_of<'a>(&self, isa: Isa, segment: &'a Segment) -> Nearest<'a> {
        let mut nearest = Nearest::new(isa, segment, self.head_dim);
        nearest.look_at(&self.keys, 0);
        nearest
    }

    /// Appends all numbers.
    pub(super) fn save(&self, out: &mut Vec<u8>) {
        Number::write_all(&self.counts, out);
        let medoids = self.medoids.iter().flatten();
        [&self.keys, &self.values].into_iter().chain(medoids).for_each(|numbers| {
            Number::write_all(numbers, out);
        });
    }

    /// Reads what [`save`](Self::save) wrote of so many clusters.
    pub(super) fn load(&mut self, n_clusters: usize, bytes: &mut &[u8]) -> Option<()> {
        self.counts = vec![0; n_clusters];
        Number::read_all(bytes, &mut self.counts)?;
        let medoids = self.medoids.iter_mut().flatten();
        for numbers in [&mut self.keys, &mut self.values].into_iter().chain(medoids) {
            *numbers = vec![0.0; n_clusters * self.head_dim];
            Number::read_all(bytes, numbers)?;
        }
        Some(())
    }

    /// Adds tokens: first `n_new` clusters begin where k-means++ says, then each token goes to the
    /// cluster with the nearest mean.
    ///
    /// # Panics
    ///
    /// If there is no cluster for them, or no token for a new cluster, or tokens have another number of components.
    pub fn add(&mut self, isa: Isa, segment: &Segment, n_new: usize, rng: &mut SplitMix64) {
        let dim = self.head_dim;
        let mut nearest = self.nearest_of(isa, segment);
        for _ in 0..n_new {
            let at = draw(nearest.distances(), rng) * dim..;
            let (key, value) = (&segment.keys[at.clone()][..dim], &segment.values[at][..dim]);
            nearest.look_at(key, self.counts.len() as u32);
            self.keys.extend_from_slice(key);
            self.values.extend_from_slice(value);
            self.counts.push(0);
            if let Some([keys, values]) = &mut self.medoids {
                keys.extend_from_slice(key);
                values.extend_from_slice(value);
            }
        }
        let clusters = nearest.clusters.iter().map(|&cluster| cluster as usize);
        for ((key, value), cluster) in segment.rows(dim).zip(clusters.clone()) {
            self.counts[cluster] += 1;
            let (at, step) = (
                cluster * dim..(cluster + 1) * dim,
                1.0 / self.counts[cluster].min(self.n_newest) as f32,
            );
            let move_to = |mean: &mut [f32], x: &[f32]| {
                mean.iter_mut().zip(x).for_each(|(mean, x)| *mean += step * (x - *mean));
            };
            move_to(&mut self.keys[at.clone()], key);
            move_to(&mut self.values[at], value);
        }
        let Some([keys, values]) = &mut self.medoids else { return };
        for ((key, value), cluster) in segment.rows(dim).zip(clusters) {
            let at = cluster * dim..(cluster + 1) * dim;
            let mean = &self.keys[at.clone()];
            if squared_distance(key, mean) < squared_distance(&keys[at.clone()], mean) {
                keys[at.clone()].copy_from_slice(key);
                values[at].copy_from_slice(value);
            }
        }
    }
}

/// Of each token of a segment the nearest mean that was looked at, and of rows that fill up its last tile.
struct Nearest<'a> {
    isa: Isa,
    segment: &'a Segment,
    head_dim: usize,
    /// Squared distances: infinite where there is no mean.
    distances: Vec<f32>,
    clusters: Vec<u32>,
}

impl<'a> Nearest<'a> {
    fn new(isa: Isa, segment: &'a Segment, head_dim: usize) -> Self {
        let n_rows = segment.n_tokens(head_dim).next_multiple_of(TILE);
        let (distances, clusters) = (vec![f32::INFINITY; n_rows], vec![0; n_rows]);
        Self { isa, segment, head_dim, distances, clusters }
    }

    /// Looks at the means of clusters from number `first` on: `[n_clusters, head_dim]`.
    fn look_at(&mut self, means: &[f32], first: u32) {
        let (tiles, points) = (&self.segment.tiles, (means, self.head_dim));
        nearest_points(self.isa, tiles, points, first, &mut self.distances, &mut self.clusters);
    }

    fn distances(&self) -> &[f32] {
        &self.distances[..self.segment.n_tokens(self.head_dim)]
    }
}

/// A token, by chance in proportion to its squared distance from the nearest mean; any of them if
/// there is no mean, or none is away from one.
fn draw(distances: &[f32], rng: &mut SplitMix64) -> usize {
    let weight = |x: &f32| if x.is_finite() { f64::from(*x) } else { 1.0 };
    let mut left = rng.unit() * distances.iter().map(weight).sum::<f64>();
    let chosen = distances.iter().position(|x| {
        left -= weight(x);
        left < 0.0
    });
    chosen.unwrap_or_else(|| rng.below(distances.len()))
}

/// In eight partial sums.
fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += (a - b) * (a - b);
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIM: usize = 16;

    fn means(form: ClusterForm) -> Means {
        Means::new(&ClusterConfig { form, n_members: u64::MAX, ..Default::default() }, DIM)
    }

    fn segment(n_tokens: usize, rng: &mut SplitMix64, value: impl Fn(usize) -> f32) -> Segment {
        let keys = (0..n_tokens * DIM).map(|_| rng.unit() as f32 - 0.5).collect();
        let values = (0..n_tokens * DIM).map(|i| value(i % DIM)).collect();
        Segment::new(DIM, keys, values)
    }

    /// Each token in f64, and each mean computed from all its members again.
    #[test]
    fn means_are_those_of_the_plain_algorithm() {
        for seed in 0..20 {
            let mut rng = SplitMix64::new(seed);
            let mut means = means(ClusterForm::Medoid);
            let (mut members, mut centres) = (vec![Vec::<Vec<f64>>::new(); 6], Vec::new());
            for _ in 0..5 {
                // No whole number of tiles.
                let segment = segment(41, &mut rng, |_| 1.0);
                let keys: Vec<Vec<f64>> = segment
                    .keys
                    .chunks_exact(DIM)
                    .map(|key| key.iter().map(|&x| f64::from(x)).collect())
                    .collect();
                let distance = |a: &[f64], b: &[f64]| -> f64 {
                    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
                };
                let n_new = 2.min(6 - centres.len());
                let mut twin = rng.clone();
                means.add(Isa::detect(), &segment, n_new, &mut rng);
                for _ in 0..n_new {
                    let nearest = |key: &Vec<f64>| {
                        let all = centres.iter().map(|c: &Vec<f64>| distance(key, c));
                        all.fold(f64::INFINITY, f64::min) as f32
                    };
                    let nearest: Vec<_> = keys.iter().map(nearest).collect();
                    centres.push(keys[draw(&nearest, &mut twin)].clone());
                }
                for key in &keys {
                    let nearest = (0..centres.len())
                        .min_by(|&a, &b| {
                            distance(key, &centres[a]).total_cmp(&distance(key, &centres[b]))
                        })
                        .unwrap();
                    members[nearest].push(key.clone());
                }
                for (centre, members) in centres.iter_mut().zip(&members) {
                    for (d, x) in centre.iter_mut().enumerate() {
                        *x = members.iter().map(|m| m[d]).sum::<f64>() / members.len() as f64;
                    }
                }
            }
            assert_eq!(centres.len(), 6);
            for (cluster, (centre, members)) in centres.iter().zip(&members).enumerate() {
                assert_eq!(means.counts[cluster], members.len() as u64);
                let mean = &means.keys[cluster * DIM..][..DIM];
                let medoid = means.row(cluster).0;
                for (x, y) in mean.iter().zip(centre) {
                    assert!((f64::from(*x) - y).abs() < 1e-5, "{x} {y}");
                }
                let is_medoid = |m: &Vec<f64>| m.iter().zip(medoid).all(|(a, b)| *a as f32 == *b);
                assert!(members.iter().any(is_medoid), "a medoid is a member");
            }
        }
    }

    /// What was added first weighs as much as what was added last, unless only the newest members
    /// count: the values of each tenth of the stream have a component of their own, and are found in the
    /// means.
    #[test]
    fn old_text_does_not_fade() {
        let all = shares_of_tenths(u64::MAX);
        assert!(all.iter().all(|share| (share - 0.1).abs() < 0.002), "{all:?}");
        let newest = shares_of_tenths(64);
        assert!(newest[9] > 0.15 && newest.iter().sum::<f64>() > 0.99, "{newest:?}");
    }

    /// How much of the clusters comes from each tenth of a stream of 200,000 tokens.
    fn shares_of_tenths(n_members: u64) -> Vec<f64> {
        let (n_segments, n_tokens) = (782, 256);
        let mut rng = SplitMix64::new(3);
        let mut means = means(ClusterForm::Centroid);
        means.n_newest = n_members;
        let mut n_added = 0;
        for i in 0..n_segments {
            let tenth = i * 10 / n_segments;
            // The keys of later text are others.
            let mut segment = segment(n_tokens, &mut rng, |d| if d == tenth { 1.0 } else { 0.0 });
            segment.keys.iter_mut().for_each(|x| *x += tenth as f32 * 0.1);
            segment = Segment::new(DIM, segment.keys, segment.values);
            means.add(Isa::detect(), &segment, if i < 4 { 16 } else { 0 }, &mut rng);
            n_added += n_tokens;
        }
        assert!(n_added > 200_000);
        let total: u64 = means.weights().sum();
        let share = |tenth: usize| {
            let values = means.values.chunks_exact(DIM).zip(means.weights());
            values.map(|(v, weight)| f64::from(v[tenth]) * weight as f64).sum::<f64>()
                / total as f64
        };
        (0..10).map(share).collect()
    }

    #[test]
    fn equal_keys_and_numbers_that_are_none_make_no_trouble() {
        for number in [0.5, f32::NAN, f32::INFINITY] {
            let keys = vec![number; 32 * DIM];
            let segment = Segment::new(DIM, keys.clone(), keys);
            let mut means = means(ClusterForm::Medoid);
            means.add(Isa::detect(), &segment, 8, &mut SplitMix64::new(1));
            assert_eq!(means.counts.len(), 8);
            assert_eq!(means.counts.iter().sum::<u64>(), 32);
        }
    }
}
