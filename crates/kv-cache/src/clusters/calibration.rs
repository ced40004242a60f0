//! How much attention the clusters of a query head are to get.
//!
//! The tokens that clusters stand for would get less attention where they stood than they would at the
//! clusters' place, and most of it would go to the few that a query looks for, which no mean can give.
//! So for some recent queries the output of attention is estimated as it would be if nothing had left,
//! from a sample of what has, each token at its own distance; and the *offset* of a query head is the
//! number, added to the scores of its clusters, with which the output comes nearest to that. A head whose
//! clusters do not help gives them next to no weight, and one that nothing is known of yet none.
//!
//! A query is measured as if it saw its whole window and nothing recalled, also where a recall or a paragraph
//! hides some of it; positions that a recall has opened inside the window stay open.
//!
//! That clusters estimate the attention of what is not read is RetroInfer's idea (Chen et al., 2025,
//! arXiv:2505.02922); that what replaces tokens should match the output of attention and its mass is that
//! of Attention Matching (Zweiger et al., 2026, arXiv:2602.16284).

use everstream_kernels::{
    Attention, Biases, Element, Isa, QueryForm, Rotation, Span, attend_measured, key_tiles_len,
    widen, write_key,
};
use half::f16;

use super::means::Means;
use super::{ClusterConfig, Compute, Queries};
use crate::buffers::Number;
use crate::cache::LayerKind;
use crate::rng::SplitMix64;
use crate::timeline::Spans;
use crate::{ClusterPlace, HeadBuffers, Slot, Timeline, TokenPos};

/// Queries of each segment that are kept.
pub(super) const N_QUERIES: usize = 16;
/// Tokens of each segment that are sampled.
const N_SAMPLED: usize = 16;
/// Segments whose samples are kept: with segments of 256 tokens 8,192 of them.
const N_SEGMENTS: usize = 32;
/// Tokens whose keys and values are kept.
pub(super) const SAMPLED_TOKENS: usize = N_SEGMENTS * N_SAMPLED;
/// The newest segment moves an offset as if it were one of so many, or of as many as there were.
const N_AVERAGED: u64 = 8;

/// Offsets that are tried: from next to no weight to one that is twenty times as large.
fn offsets() -> impl Iterator<Item = f32> {
    (-24..=6).map(|i| i as f32 * 0.5)
}

/// What is known of the attention of one KV head.
#[derive(Clone, Debug)]
pub(super) struct Calibration {
    /// Raw keys of sampled tokens, a ring of segments: `[SAMPLED_TOKENS, head_dim]`.
    keys: Vec<f16>,
    /// Their values.
    values: Vec<f16>,
    /// `[n_query_heads]`; no weight at all until something has been measured.
    pub(super) offsets: Vec<f32>,
}

/// What all heads of a kind of layer are measured by.
pub(super) struct Reference {
    /// Of the segment, from 1.
    number: u64,
    /// Tokens that a sample stands for, as a logarithm.
    log_weight: f32,
    /// The sampled tokens, in the order of the ring, each with its rotation.
    sampled: Vec<(TokenPos, Rotation)>,
    /// Where those of the newest segment lie.
    newest: Vec<Slot>,
    queries: Vec<ReferenceQuery>,
    /// Where the clusters lie.
    clusters: Span,
}

/// A query that attention is measured for.
struct ReferenceQuery {
    /// Where it is kept.
    kept: usize,
    /// At its place in the stream, where samples stand; in the window; and in the cache.
    rotations: [Rotation; 3],
    /// Which samples have left its window, and are within reach.
    evicted: Vec<Span>,
    /// The sinks that are seen beside the clusters, and its window.
    seen: Spans,
}

/// Once its offsets have settled, a layer is measured with every so many-th segment: measuring costs most.
const MEASURED_EVERY: u64 = 4;

/// Whether a layer is measured with a segment, from 1. Layers take turns.
pub(super) fn is_measured(segment: u64, layer: usize) -> bool {
    segment <= N_AVERAGED || (segment + layer as u64).is_multiple_of(MEASURED_EVERY)
}

/// Which tokens of a segment that begins at `start` are sampled.
fn sampled(config: &ClusterConfig, start: TokenPos) -> impl Iterator<Item = TokenPos> {
    let step = config.segment_tokens / N_SAMPLED;
    let mut rng = SplitMix64::new(config.seed ^ start.0);
    (0..N_SAMPLED).map(move |i| start.after(i * step + rng.below(step)))
}

/// Runs of numbers below `n` that are wanted.
fn runs(n: usize, is_wanted: impl Fn(usize) -> bool) -> Vec<Span> {
    let mut runs: Vec<Span> = Vec::new();
    for i in (0..n).filter(|&i| is_wanted(i)) {
        match runs.last_mut() {
            Some(run) if run.first + run.len == i => run.len += 1,
            _ => runs.push(Span { first: i, len: 1, form: QueryForm::Window }),
        }
    }
    runs
}

impl Reference {
    /// `number` is that of the segment which is being added, from 1.
    pub(super) fn new(
        config: &ClusterConfig,
        before: &Timeline,
        after: &Timeline,
        kind: &LayerKind,
        number: u64,
    ) -> Self {
        let n_sink = before.policy().n_sink();
        let (window_tokens, next) = (before.policy().window_tokens(), before.next());
        let oldest_of = |token: TokenPos| token.before(window_tokens).max(TokenPos(n_sink as u64));
        let since = next.before(config.segment_tokens);
        // The newest segment at each place of the ring.
        let n_places = number.min(N_SEGMENTS as u64);
        let start_of =
            |segment: u64| TokenPos(n_sink as u64 + segment * config.segment_tokens as u64);
        let of_ring = (0..n_places)
            .map(|place| start_of(number - 1 - (number - 1 - place) % N_SEGMENTS as u64));
        let sampled: Vec<(TokenPos, Rotation)> = of_ring
            .flat_map(|start| sampled(config, start))
            .map(|token| (token, kind.rope.rotation(token.0)))
            .collect();
        let newest = self::sampled(config, start_of(number - 1)).map(|token| before.slot(token));
        let reach_tokens = kind.window_tokens.unwrap_or(config.reach_tokens);
        let step = (config.segment_tokens / N_QUERIES) as u64;
        let tokens = (since.0..next.0).map(TokenPos).filter(|token| token.0.is_multiple_of(step));
        let queries = tokens.map(|token| {
            let in_cache = (after.n_before_recalled() + token.since(oldest_of(token))) as u64;
            let mut seen = Spans::new();
            if config.place == ClusterPlace::After {
                seen.add(0, n_sink, QueryForm::Cache);
            }
            before.add_window(oldest_of(token), token, &mut seen);
            ReferenceQuery {
                kept: (token.0 / step) as usize % N_QUERIES,
                rotations: [token.0, before.window_pos(token).0, in_cache]
                    .map(|at| kind.rope.rotation(at)),
                evicted: runs(sampled.len(), |i| {
                    let sample = sampled[i].0;
                    sample < oldest_of(token) && token.since(sample) < reach_tokens
                }),
                seen,
            }
        });
        let queries = queries.filter(|query| !query.evicted.is_empty()).collect();
        let (first, len) = (after.cluster_slot(0).0 as usize, after.sections().clusters);
        Self {
            number,
            log_weight: ((config.segment_tokens / N_SAMPLED) as f32).ln(),
            newest: newest.collect(),
            queries,
            clusters: Span { first, len, form: QueryForm::Cache },
            sampled,
        }
    }
}

impl Calibration {
    pub(super) fn new(n_query_heads: usize, head_dim: usize) -> Self {
        let numbers = vec![f16::ZERO; SAMPLED_TOKENS * head_dim];
        let offsets = vec![f32::NEG_INFINITY; n_query_heads];
        Self { keys: numbers.clone(), values: numbers, offsets }
    }

    /// Where nothing is measured.
    pub(super) fn none() -> Self {
        Self { keys: Vec::new(), values: Vec::new(), offsets: Vec::new() }
    }

    /// Appends all numbers.
    pub(super) fn save(&self, out: &mut Vec<u8>) {
        Number::write_all(&self.keys, out);
        Number::write_all(&self.values, out);
        Number::write_all(&self.offsets, out);
    }

    /// Reads what [`save`](Self::save) wrote.
    pub(super) fn load(&mut self, bytes: &mut &[u8]) -> Option<()> {
        Number::read_all(bytes, &mut self.keys)?;
        Number::read_all(bytes, &mut self.values)?;
        Number::read_all(bytes, &mut self.offsets)
    }

    /// Moves the offsets to where the queries of the newest segment want them.
    pub(super) fn update(
        &mut self,
        compute: &Compute<'_>,
        reference: &Reference,
        queries: &Queries<'_>,
        means: &Means,
        buffers: &HeadBuffers,
    ) {
        if reference.queries.is_empty() {
            return;
        }
        let dim = buffers.head_dim();
        let samples = self.samples(compute.isa, dim, &reference.sampled);
        let group = queries.group;
        let log_counts = means.weights().map(|count| (count as f32).ln());
        let log_counts: Vec<f32> = (0..group).flat_map(|_| log_counts.clone()).collect();
        let Span { first, len, .. } = reference.clusters;
        let biases = Biases { first, len, values: &log_counts };

        let mut errors = vec![vec![0.0_f64; offsets().count()]; group];
        let mut scores = Vec::new();
        let [mut evicted, mut seen, mut clusters] = [(); 3].map(|()| Parts::new(group, dim));
        for query in &reference.queries {
            let of_group = queries.at(query.kept, dim);
            let [in_stream, in_window, in_cache] = query.rotations.each_ref().map(|rotation| {
                let mut form = vec![0.0; of_group.len()];
                let heads = form.chunks_exact_mut(dim).zip(of_group.chunks_exact(dim));
                heads.for_each(|(to, head)| rotation.apply(head, compute.attention_scale, to));
                form
            });
            let forms = [&in_window[..], &in_cache[..]];
            let Parts { out, log_masses, .. } = &mut evicted;
            let attention = samples.attention(&query.evicted, compute.score_cap, &in_stream);
            attend_measured(compute.isa, &attention, &mut scores, out, log_masses);
            for (part, spans, biases) in [
                (&mut seen, &query.seen[..], None),
                (&mut clusters, &[reference.clusters], Some(biases)),
            ] {
                let Parts { out, log_masses, .. } = part;
                let (isa, cap) = (compute.isa, compute.score_cap);
                buffers.attend_part(isa, spans, cap, biases, forms, &mut scores, out, log_masses);
            }
            for (head, errors) in errors.iter_mut().enumerate() {
                let seen = seen.head(head, 0.0);
                let wanted = seen.and(&evicted.head(head, reference.log_weight));
                let distance = seen.distances(&clusters.head(head, 0.0), &wanted);
                for (error, offset) in errors.iter_mut().zip(offsets()) {
                    *error += distance(offset);
                }
            }
        }
        let step = 1.0 / reference.number.min(N_AVERAGED) as f32;
        for (held, errors) in self.offsets.iter_mut().zip(&errors) {
            let best = errors.iter().zip(offsets()).min_by(|a, b| a.0.total_cmp(b.0));
            let Some((_, best)) = best else { continue };
            *held = if held.is_finite() { *held + step * (best - *held) } else { best };
        }
    }

    /// The sampled tokens, the keys rotated as each says.
    fn samples(&self, isa: Isa, head_dim: usize, sampled: &[(TokenPos, Rotation)]) -> Samples {
        let (mut raw, mut key) = (vec![0.0; head_dim], vec![0.0; head_dim]);
        let mut keys = vec![0.0; key_tiles_len(sampled.len(), head_dim)];
        let rows = self.keys.chunks_exact(head_dim).zip(sampled);
        for (i, (stored, (_, rotation))) in rows.enumerate() {
            widen(isa, stored, &mut raw);
            rotation.apply(&raw, 1.0, &mut key);
            write_key(&mut keys, i, &key);
        }
        let mut values = vec![0.0; sampled.len() * head_dim];
        widen(isa, &self.values[..values.len()], &mut values);
        Samples { head_dim, keys, values }
    }

    /// Samples the newest segment.
    pub(super) fn sample(&mut self, reference: &Reference, buffers: &HeadBuffers) {
        let dim = buffers.head_dim();
        let place = (reference.number as usize - 1) % N_SEGMENTS * N_SAMPLED;
        let (mut key, mut value) = (vec![0.0; dim], vec![0.0; dim]);
        for (i, &slot) in reference.newest.iter().enumerate() {
            buffers.read_raw(slot, &mut key, &mut value);
            let at = (place + i) * dim..(place + i + 1) * dim;
            Element::narrow(&key, &mut self.keys[at.clone()]);
            Element::narrow(&value, &mut self.values[at]);
        }
    }
}

/// Sampled tokens as they are attended to: rotated keys, in tiles, and values.
struct Samples {
    head_dim: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Samples {
    fn attention<'a>(
        &'a self,
        spans: &'a [Span],
        score_cap: Option<f32>,
        queries: &'a [f32],
    ) -> Attention<'a, f32> {
        Attention {
            keys: &self.keys,
            values: &self.values,
            head_dim: self.head_dim,
            spans,
            score_cap,
            biases: None,
            are_cold: false,
            queries: [queries, queries],
        }
    }
}

/// What query heads got of a part: outputs `[n_heads, head_dim]`, and how much they attended to it.
struct Parts {
    head_dim: usize,
    out: Vec<f32>,
    log_masses: Vec<f32>,
}

impl Parts {
    fn new(n_heads: usize, head_dim: usize) -> Self {
        Self { head_dim, out: vec![0.0; n_heads * head_dim], log_masses: vec![0.0; n_heads] }
    }

    fn head(&self, head: usize, offset: f32) -> Part {
        let out = self.out[head * self.head_dim..][..self.head_dim].to_vec();
        Part { out, log_mass: self.log_masses[head] + offset }
    }
}

/// The output of a head for a part of what it attends to.
struct Part {
    out: Vec<f32>,
    log_mass: f32,
}

impl Part {
    /// Both parts together.
    fn and(&self, other: &Self) -> Self {
        let largest = self.log_mass.max(other.log_mass);
        let (a, b) = ((self.log_mass - largest).exp(), (other.log_mass - largest).exp());
        let share = b / (a + b);
        let out = self.out.iter().zip(&other.out).map(|(x, y)| x + share * (y - x)).collect();
        Self { out, log_mass: largest + (a + b).ln() }
    }

    /// How far this part with `other` is from `wanted`, squared, by what is added to the mass of
    /// `other`.
    fn distances(&self, other: &Self, wanted: &Self) -> impl Fn(f32) -> f64 + use<> {
        // |x + s (y - x) - w|^2 = |x - w|^2 + 2 s (x - w)(y - x) + s^2 |y - x|^2
        let (mut apart, mut along, mut moved) = (0.0, 0.0, 0.0);
        for ((x, y), w) in self.out.iter().zip(&other.out).zip(&wanted.out) {
            let (x, y, w) = (f64::from(*x), f64::from(*y), f64::from(*w));
            apart += (x - w) * (x - w);
            along += (x - w) * (y - x);
            moved += (y - x) * (y - x);
        }
        let lead = self.log_mass - other.log_mass;
        move |offset| {
            let share = 1.0 / (1.0 + f64::from(lead - offset).exp());
            apart + 2.0 * share * along + share * share * moved
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three sums give what each offset tried by itself would.
    #[test]
    fn distances_are_those_of_parts_taken_together() {
        let mut rng = SplitMix64::new(11);
        let mut part = |log_mass: f32| {
            let out = (0..16).map(|_| rng.unit() as f32 - 0.5).collect();
            Part { out, log_mass }
        };
        for masses in [(0.0, 0.0), (3.0, -2.0), (-40.0, 60.0), (1.0, f32::NEG_INFINITY)] {
            let (seen, other, wanted) = (part(masses.0), part(masses.1), part(0.0));
            let distance = seen.distances(&other, &wanted);
            for offset in offsets() {
                let other = Part { out: other.out.clone(), log_mass: other.log_mass + offset };
                let together = seen.and(&other);
                let squares = together.out.iter().zip(&wanted.out).map(|(x, w)| f64::from(x - w));
                let expected: f64 = squares.map(|d| d * d).sum();
                let found = distance(offset);
                assert!((found - expected).abs() < 1e-5, "{masses:?} {offset}: {found} {expected}");
            }
        }
    }
}
