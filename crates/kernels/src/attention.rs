//! Attention of the query heads of one KV head over the rows of its cache.
//!
//! Keys lie in *tiles* of 16 slots, `[n_tiles, head_dim, 16]`: a vector holds one component of 16
//! keys, so 16 scores come out of `head_dim` multiply-adds without a sum across lanes. Values lie
//! row by row, `[n_slots, head_dim]`: the sum over slots runs down their columns. Each query head
//! has two forms, rotated at two positions; every span of slots says which one it meets (see
//! `NOTATION.md`, "two-query method").

use crate::Isa;
use crate::simd::{Element, Kernel, LANES, Simd, prefetch};

/// Slots of a tile of keys.
pub const TILE: usize = LANES;
/// Query heads that share one pass over keys and values: their sums fill the registers.
const MAX_HEADS: usize = 4;
/// Rows of values that are asked for ahead of time.
const ROWS_AHEAD: usize = 16;
/// Partial sums of a score, by component modulo 4: hides the latency of a multiply-add.
const CHAINS: usize = 4;

/// Which rotation of the query a span of keys meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryForm {
    /// The query at its own position: for keys of the window.
    Window = 0,
    /// The query at its place in the cache: for keys that stand before the window.
    Cache = 1,
}

/// Consecutive slots that a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First slot.
    pub first: usize,
    /// Number of slots.
    pub len: usize,
    /// Which form of the query its keys meet.
    pub form: QueryForm,
}

/// Writes the key of `slot` into its tile.
///
/// # Panics
///
/// If the slot is outside `tiles`.
pub fn write_key<E: Element>(tiles: &mut [E], slot: usize, key: &[f32]) {
    let tile = &mut tiles[slot / TILE * key.len() * TILE..][..key.len() * TILE];
    let mut rounded = [E::default(); 64];
    for (columns, key) in tile.chunks_mut(64 * TILE).zip(key.chunks(64)) {
        let rounded = &mut rounded[..key.len()];
        E::narrow(key, rounded);
        for (column, &x) in columns.chunks_exact_mut(TILE).zip(&*rounded) {
            column[slot % TILE] = x;
        }
    }
}

/// Reads the key of `slot` back.
///
/// # Panics
///
/// If the slot is outside `tiles`.
pub fn read_key<E: Element>(tiles: &[E], slot: usize, key: &mut [f32]) {
    let tile = &tiles[slot / TILE * key.len() * TILE..][..key.len() * TILE];
    for (column, x) in tile.chunks_exact(TILE).zip(key) {
        *x = column[slot % TILE].to_f32();
    }
}

/// Elements of the tiles for `n_slots` keys.
#[must_use]
pub fn key_tiles_len(n_slots: usize, head_dim: usize) -> usize {
    n_slots.next_multiple_of(TILE) * head_dim
}

/// What is added to the scores of some slots: a slot that stands for many tokens weighs more.
#[derive(Clone, Copy, Debug)]
pub struct Biases<'a> {
    /// The first slot.
    pub first: usize,
    /// Number of slots.
    pub len: usize,
    /// `[n_query_heads, len]`
    pub values: &'a [f32],
}

/// The inputs of [`attend`]; storage of type `E`, sums in f32.
#[derive(Debug)]
pub struct Attention<'a, E> {
    /// Rotated keys in tiles: `[n_tiles, head_dim, 16]`.
    pub keys: &'a [E],
    /// `[n_slots, head_dim]`
    pub values: &'a [E],
    /// A multiple of 16.
    pub head_dim: usize,
    /// What the query sees, in the order in which sums run.
    pub spans: &'a [Span],
    /// Scores are `cap * tanh(score / cap)` (Gemma 2); `None` for scores as they are.
    pub score_cap: Option<f32>,
    /// Added to scores, capped ones too.
    pub biases: Option<Biases<'a>>,
    /// Whether keys and values are likely in no cache of the CPU, as those of a single token are: then
    /// they are asked for ahead of time. Changes no bit.
    pub are_cold: bool,
    /// The two forms of the query, by [`QueryForm`], scaled as scores are to be: each
    /// `[n_query_heads, head_dim]`.
    pub queries: [&'a [f32]; 2],
}

/// Softmax attention; writes `[n_query_heads, head_dim]` to `out`. `scores` is scratch that grows
/// to the largest number of visible slots.
///
/// The bits of a head depend on its query and the spans only, not on the other heads.
///
/// # Panics
///
/// If sizes do not fit, a span lies outside the buffers, or nothing is visible.
pub fn attend<E: Element>(isa: Isa, a: &Attention<'_, E>, scores: &mut Vec<f32>, out: &mut [f32]) {
    attend_to(isa, a, scores, out, None);
}

/// As [`attend`], and writes for each query head the logarithm of the sum of the exponentials of its
/// scores to `log_masses`: with it, what was attended to apart can be put together.
///
/// # Panics
///
/// As [`attend`], and without a number for each head.
pub fn attend_measured<E: Element>(
    isa: Isa,
    a: &Attention<'_, E>,
    scores: &mut Vec<f32>,
    out: &mut [f32],
    log_masses: &mut [f32],
) {
    attend_to(isa, a, scores, out, Some(log_masses));
}

fn attend_to<E: Element>(
    isa: Isa,
    a: &Attention<'_, E>,
    scores: &mut Vec<f32>,
    out: &mut [f32],
    mut log_masses: Option<&mut [f32]>,
) {
    assert!(a.head_dim > 0, "a head of no components");
    let n_slots = (a.values.len() / a.head_dim).min(a.keys.len() / (TILE * a.head_dim) * TILE);
    for span in a.spans {
        let is_inside = span.first <= n_slots && span.len <= n_slots - span.first;
        assert!(is_inside, "{span:?} outside of {n_slots} slots");
    }
    let n_visible: usize = a.spans.iter().map(|s| s.len).sum();
    assert!(n_visible > 0, "a query sees at least itself");
    assert!(a.head_dim.is_multiple_of(LANES) && out.len().is_multiple_of(a.head_dim));
    assert!(a.queries.iter().all(|q| q.len() == out.len()), "size of queries and outputs");
    let n_biases = a.biases.map(|b| (b.values.len(), out.len() / a.head_dim * b.len));
    assert!(n_biases.is_none_or(|(found, expected)| found == expected), "a bias for each head");
    let stride = n_visible.next_multiple_of(LANES);
    if scores.len() < MAX_HEADS * stride {
        scores.resize(MAX_HEADS * stride, 0.0);
    }
    let batch = MAX_HEADS * a.head_dim;
    for (i, out) in out.chunks_mut(batch).enumerate() {
        let (first_head, n_heads) = (i * MAX_HEADS, out.len() / a.head_dim);
        let queries = a.queries.map(|q| &q[i * batch..][..out.len()]);
        let measured = isa.run(Heads { a, first_head, queries, scores, n_visible, stride, out });
        if let Some(log_masses) = &mut log_masses {
            log_masses[first_head..][..n_heads].copy_from_slice(&measured[..n_heads]);
        }
    }
}

/// Up to [`MAX_HEADS`] query heads.
struct Heads<'a, 'b, E> {
    a: &'b Attention<'a, E>,
    first_head: usize,
    queries: [&'b [f32]; 2],
    /// `[n_heads, stride]`
    scores: &'b mut [f32],
    n_visible: usize,
    stride: usize,
    out: &'b mut [f32],
}

impl<E: Element> Kernel for Heads<'_, '_, E> {
    /// The logarithm of each head's sum.
    type Output = [f32; MAX_HEADS];

    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) -> Self::Output {
        // SAFETY: the caller's promise; `attend` checked all sizes.
        unsafe {
            match self.out.len() / self.a.head_dim {
                1 => self.heads::<S, 1>(),
                2 => self.heads::<S, 2>(),
                3 => self.heads::<S, 3>(),
                _ => self.heads::<S, MAX_HEADS>(),
            }
        }
    }
}

impl<E: Element> Heads<'_, '_, E> {
    #[inline(always)]
    unsafe fn heads<S: Simd, const H: usize>(&mut self) -> [f32; MAX_HEADS] {
        // SAFETY: as for `run`.
        unsafe {
            self.score::<S, H>();
            if let Some(cap) = self.a.score_cap {
                for h in 0..H {
                    cap_scores::<S>(&mut self.scores[h * self.stride..][..self.stride], cap);
                }
            }
            if let Some(biases) = self.a.biases {
                self.add_biases::<H>(&biases);
            }
            // Loops, not closures: a closure would be compiled without the instruction set.
            let mut sums = [0.0; H];
            let mut log_masses = [0.0; MAX_HEADS];
            for h in 0..H {
                let scores = &mut self.scores[h * self.stride..][..self.stride];
                scores[self.n_visible..].fill(f32::NEG_INFINITY);
                let largest;
                (largest, sums[h]) = softmax::<S>(scores);
                log_masses[h] = largest + sums[h].ln();
            }
            let mut dim = 0;
            while dim + 4 * LANES <= self.a.head_dim {
                self.mix::<S, H, 4>(dim, &sums);
                dim += 4 * LANES;
            }
            while dim < self.a.head_dim {
                self.mix::<S, H, 1>(dim, &sums);
                dim += LANES;
            }
            log_masses
        }
    }

    /// Adds the biases of those slots that are visible.
    #[inline(always)]
    fn add_biases<const H: usize>(&mut self, biases: &Biases<'_>) {
        let mut at = 0;
        for span in self.a.spans {
            let first = span.first.max(biases.first);
            let end = (span.first + span.len).min(biases.first + biases.len);
            if first < end {
                for h in 0..H {
                    let from = (self.first_head + h) * biases.len + first - biases.first;
                    let to = h * self.stride + at + first - span.first;
                    let scores = &mut self.scores[to..to + end - first];
                    for (score, bias) in scores.iter_mut().zip(&biases.values[from..]) {
                        *score += bias;
                    }
                }
            }
            at += span.len;
        }
    }

    /// Products of the queries with all visible keys, in span order.
    #[inline(always)]
    unsafe fn score<S: Simd, const H: usize>(&mut self) {
        let dim = self.a.head_dim;
        let mut at = 0;
        for span in self.a.spans {
            let end = span.first + span.len;
            let query = self.queries[span.form as usize].as_ptr();
            for tile in span.first / TILE..end.div_ceil(TILE) {
                let first = span.first.max(tile * TILE);
                let last = end.min((tile + 1) * TILE);
                // SAFETY: the tile holds `dim` vectors and lies inside the keys, each head's query
                // has `dim` numbers, and `at + (last - first)` stays within the stride.
                unsafe {
                    let keys = self.a.keys.as_ptr().add(tile * TILE * dim);
                    if self.a.are_cold {
                        let next = keys.wrapping_add(TILE * dim).cast();
                        prefetch::<S>(next, TILE * dim * size_of::<E>());
                    }
                    let sums = scores_of_tile::<S, E, H>(keys, query, dim);
                    for h in 0..H {
                        let to = self.scores.as_mut_ptr().add(h * self.stride + at);
                        if last - first == TILE {
                            S::store(to, sums[h]);
                        } else {
                            let mut lanes = [0.0; LANES];
                            S::store(lanes.as_mut_ptr(), sums[h]);
                            let from = lanes.as_ptr().add(first - tile * TILE);
                            to.copy_from_nonoverlapping(from, last - first);
                        }
                    }
                }
                at += last - first;
            }
        }
    }

    /// The weighted sum of `V * 16` components of the values, from component `dim`.
    #[inline(always)]
    unsafe fn mix<S: Simd, const H: usize, const V: usize>(&mut self, dim: usize, sums: &[f32; H]) {
        let head_dim = self.a.head_dim;
        // SAFETY: spans lie inside the values; scores hold `n_visible` weights for each head.
        unsafe {
            let mut acc = [[S::splat(0.0); V]; H];
            let mut at = 0;
            for span in self.a.spans {
                let mut value = self.a.values.as_ptr().add(span.first * head_dim + dim);
                for _ in 0..span.len {
                    if self.a.are_cold {
                        let next = value.wrapping_add(ROWS_AHEAD * head_dim).cast();
                        prefetch::<S>(next, V * LANES * size_of::<E>());
                    }
                    for v in 0..V {
                        let x = E::load16::<S>(value.add(v * LANES));
                        for h in 0..H {
                            let weight = *self.scores.get_unchecked(h * self.stride + at);
                            acc[h][v] = S::fma(S::splat(weight), x, acc[h][v]);
                        }
                    }
                    // One past the last row may lie outside: wrapping, never read.
                    value = value.wrapping_add(head_dim);
                    at += 1;
                }
            }
            for h in 0..H {
                let inverse = S::splat(1.0 / sums[h]);
                for v in 0..V {
                    let to = self.out.as_mut_ptr().add(h * head_dim + dim + v * LANES);
                    S::store(to, S::mul(acc[h][v], inverse));
                }
            }
        }
    }
}

/// The 16 scores of a tile for each of `H` heads.
#[inline(always)]
unsafe fn scores_of_tile<S: Simd, E: Element, const H: usize>(
    keys: *const E,
    query: *const f32,
    dim: usize,
) -> [S::F; H] {
    // SAFETY: the caller's promise: `dim` vectors of keys, `H * dim` numbers of queries.
    unsafe {
        let mut acc = [[S::splat(0.0); CHAINS]; H];
        for d in (0..dim).step_by(CHAINS) {
            for c in 0..CHAINS {
                let key = E::load16::<S>(keys.add((d + c) * LANES));
                for h in 0..H {
                    acc[h][c] = S::fma(S::splat(*query.add(h * dim + d + c)), key, acc[h][c]);
                }
            }
        }
        let mut sums = [S::splat(0.0); H];
        for h in 0..H {
            sums[h] = S::add(S::add(acc[h][0], acc[h][1]), S::add(acc[h][2], acc[h][3]));
        }
        sums
    }
}

/// Replaces numbers by `cap * tanh(x / cap)`; the length is a multiple of 16.
///
/// `tanh z = 1 - 2 / (1 + e^2z)`.
#[inline(always)]
pub(crate) unsafe fn cap_scores<S: Simd>(scores: &mut [f32], cap: f32) {
    // SAFETY: whole vectors inside the slice.
    unsafe {
        let p = scores.as_mut_ptr();
        let (one, twice) = (S::splat(1.0), S::splat(2.0 / cap));
        for i in (0..scores.len()).step_by(LANES) {
            let e = S::exp(S::mul(S::load(p.add(i)), twice));
            let tanh = S::sub(one, S::div(S::splat(2.0), S::add(one, e)));
            S::store(p.add(i), S::mul(tanh, S::splat(cap)));
        }
    }
}

/// Replaces scores by `exp(score - max)` and returns `max` and their sum; the length is a multiple of
/// 16.
#[inline(always)]
unsafe fn softmax<S: Simd>(scores: &mut [f32]) -> (f32, f32) {
    // SAFETY: whole vectors inside the slice.
    unsafe {
        let p = scores.as_mut_ptr();
        let mut max = S::splat(f32::NEG_INFINITY);
        for i in (0..scores.len()).step_by(LANES) {
            max = S::max(max, S::load(p.add(i)));
        }
        let largest = S::largest(max);
        let max = S::splat(largest);
        let mut sum = S::splat(0.0);
        for i in (0..scores.len()).step_by(LANES) {
            let e = S::exp(S::sub(S::load(p.add(i)), max));
            S::store(p.add(i), e);
            sum = S::add(sum, e);
        }
        (largest, S::sum(sum))
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::testing::Rng;

    /// One head, f64, straight from the formula; and the logarithm of its mass.
    fn naive<E: Element>(a: &Attention<'_, E>, head: usize) -> (Vec<f64>, f64) {
        let dim = a.head_dim;
        let mut key = vec![0.0; dim];
        let mut scored = Vec::new();
        for span in a.spans {
            let q = &a.queries[span.form as usize][head * dim..][..dim];
            for slot in span.first..span.first + span.len {
                read_key(a.keys, slot, &mut key);
                let dot: f64 = q.iter().zip(&key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                let cap = a.score_cap.map(f64::from);
                let bias = a.biases.filter(|b| (b.first..b.first + b.len).contains(&slot));
                let bias = bias.map_or(0.0, |b| b.values[head * b.len + slot - b.first]);
                let score = cap.map_or(dot, |cap| cap * (dot / cap).tanh());
                scored.push((score + f64::from(bias), slot));
            }
        }
        let max = scored.iter().fold(f64::NEG_INFINITY, |m, s| m.max(s.0));
        let total: f64 = scored.iter().map(|s| (s.0 - max).exp()).sum();
        let mut out = vec![0.0; dim];
        for (score, slot) in scored {
            for (o, v) in out.iter_mut().zip(&a.values[slot * dim..][..dim]) {
                *o += (score - max).exp() / total * f64::from(v.to_f32());
            }
        }
        (out, max + total.ln())
    }

    fn check<E: Element>(
        dim: usize,
        n_heads: usize,
        spans: &[Span],
        scale: f32,
        score_cap: Option<f32>,
    ) {
        let mut rng = Rng::new((dim * 31 + n_heads * 7 + spans.len()) as u64);
        let n_slots = 100;
        let mut keys = vec![E::default(); key_tiles_len(n_slots, dim)];
        for slot in 0..n_slots {
            write_key(&mut keys, slot, &rng.vec(dim));
        }
        let values: Vec<E> = rng.vec(n_slots * dim).into_iter().map(E::from_f32).collect();
        let mut queries = [rng.vec(n_heads * dim), rng.vec(n_heads * dim)];
        queries.iter_mut().flatten().for_each(|q| *q *= scale);
        let queries = [&queries[0][..], &queries[1][..]];
        let (keys, values) = (&keys[..], &values[..]);
        let values_of_biases: Vec<f32> = rng.vec(n_heads * 20).iter().map(|x| x * 8.0).collect();
        // They begin and end in the middle of spans.
        let biases = Biases { first: 2, len: 20, values: &values_of_biases };
        let biases = Some(biases).filter(|_| dim == 64);
        let are_cold = true;
        let a =
            Attention { keys, values, head_dim: dim, spans, score_cap, biases, are_cold, queries };
        let mut expected = vec![0.0; n_heads * dim];
        let mut masses = vec![f32::NAN; n_heads];
        attend_measured(Isa::scalar(), &a, &mut Vec::new(), &mut expected, &mut masses);
        for head in 0..n_heads {
            let (naive, mass) = naive(&a, head);
            assert!((mass - f64::from(masses[head])).abs() < 1e-4 * mass.abs().max(1.0), "{mass}");
            for (x, y) in naive.iter().zip(&expected[head * dim..]) {
                // A score's rounding error grows with the score.
                assert!((x - f64::from(*y)).abs() < 1e-5 * f64::from(scale.max(1.0)), "{x} {y}");
            }
        }
        for isa in Isa::available() {
            let mut out = vec![f32::NAN; n_heads * dim];
            attend(isa, &a, &mut vec![f32::NAN; 7], &mut out);
            assert_eq!(out, expected, "{isa}");
            // A head alone gives the bits it gives in company.
            let one = [&queries[0][..dim], &queries[1][..dim]];
            let biases = biases.map(|b| Biases { values: &b.values[..b.len], ..b });
            let alone = Attention { queries: one, biases, are_cold: !are_cold, ..a };
            attend(isa, &alone, &mut Vec::new(), &mut out[..dim]);
            assert_eq!(out[..dim], expected[..dim], "{isa}");
        }
    }

    #[test]
    fn agrees_with_the_formula_and_across_instruction_sets() {
        let span = |first, len, form| Span { first, len, form };
        use QueryForm::{Cache, Window};
        let cases: [&[Span]; 6] = [
            &[span(0, 1, Window)],
            &[span(0, 4, Cache), span(5, 1, Window)],
            &[span(0, 4, Cache), span(4, 30, Cache), span(50, 50, Window), span(34, 9, Window)],
            &[span(16, 16, Window)],
            &[span(15, 2, Window), span(31, 33, Cache)],
            &[span(0, 0, Cache), span(99, 1, Window)],
        ];
        for spans in cases {
            for (dim, n_heads) in [(16, 1), (64, 3), (96, 2), (128, 7), (64, 9)] {
                for score_cap in [None, Some(50.0), Some(2.0)] {
                    check::<f32>(dim, n_heads, spans, 0.3, score_cap);
                    check::<f16>(dim, n_heads, spans, 0.3, score_cap);
                    check::<f32>(dim, n_heads, spans, 30.0, score_cap);
                }
            }
        }
    }

    #[test]
    fn keys_come_back_from_their_tiles() {
        let mut rng = Rng::new(5);
        let keys: Vec<Vec<f32>> = (0..40).map(|_| rng.vec(32)).collect();
        let mut tiles = vec![0.0f32; key_tiles_len(40, 32)];
        for (slot, key) in keys.iter().enumerate().rev() {
            write_key(&mut tiles, slot, key);
        }
        let mut back = vec![0.0; 32];
        for (slot, key) in keys.iter().enumerate() {
            read_key(&tiles, slot, &mut back);
            assert_eq!(&back, key);
        }
    }
}
