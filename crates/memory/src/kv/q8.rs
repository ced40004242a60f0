//! Numbers in 8 bits: 256 steps between the smallest and the largest of a row.

use std::ops::Range;

use half::f16;

use super::{grow, read_f16, write_f16};

/// Along what the numbers of a row lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Axis {
    /// A row is one component of all tokens: keys.
    Component,
    /// A row is one token with all components: values.
    Token,
}

/// Keys or values in 8 bits: `number = least + code * step` of its row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Q8Buffer {
    axis: Axis,
    head_dim: usize,
    n_tokens: usize,
    /// `[n_heads, n_tokens, head_dim]`
    codes: Vec<u8>,
    /// `[n_heads, n_rows]`, with `head_dim` rows of keys and `n_tokens` rows of values.
    least: Vec<f16>,
    /// `[n_heads, n_rows]`
    step: Vec<f16>,
}

impl Q8Buffer {
    /// Rounds `components`, `[n_heads, n_tokens, head_dim]`. A number is off by at most six tenths
    /// of a step, or by the rounding of its row's least number to f16.
    pub(super) fn quantize(
        components: &[f32],
        head_dim: usize,
        n_tokens: usize,
        axis: Axis,
    ) -> Self {
        let n_rows = n_rows(axis, head_dim, n_tokens);
        let (mut least, mut step) = (Vec::new(), Vec::new());
        let mut codes = vec![0; components.len()];
        let (mut low, mut high) = (vec![0.0; n_rows], vec![0.0; n_rows]);
        let heads = components.chunks_exact(head_dim * n_tokens);
        for (head, codes) in heads.zip(codes.chunks_exact_mut(head_dim * n_tokens)) {
            extremes(axis, head_dim, head, &mut low, &mut high);
            for (low, high) in low.iter_mut().zip(&mut high) {
                let from = f16::from_f32(*low);
                let by = f16::from_f32((*high - from.to_f32()) / 255.0);
                least.push(from);
                step.push(by);
                // From here on `low` is the least number of each row, `high` steps per one.
                let steps = if by.to_f32() > 0.0 { 1.0 / by.to_f32() } else { 0.0 };
                (*low, *high) = (from.to_f32(), steps);
            }
            let tokens = head.chunks_exact(head_dim).zip(codes.chunks_exact_mut(head_dim));
            for (t, (token, codes)) in tokens.enumerate() {
                match axis {
                    Axis::Component => {
                        let rows = low.iter().zip(&high);
                        for ((code, &number), (low, high)) in codes.iter_mut().zip(token).zip(rows)
                        {
                            *code = nearest_code((clamp(number) - low) * high);
                        }
                    }
                    Axis::Token => {
                        for (code, &number) in codes.iter_mut().zip(token) {
                            *code = nearest_code((clamp(number) - low[t]) * high[t]);
                        }
                    }
                }
            }
        }
        Self { axis, head_dim, n_tokens, codes, least, step }
    }

    /// Bytes in RAM, which are as many on disk.
    pub(super) fn bytes(&self) -> usize {
        self.codes.len() + 2 * (self.least.len() + self.step.len())
    }

    /// Appends codes, least numbers and steps.
    pub(super) fn write_to(&self, out: &mut Vec<u8>) {
        grow(out, self.codes.len()).copy_from_slice(&self.codes);
        write_f16(&self.least, out);
        write_f16(&self.step, out);
    }

    /// Reads what [`write_to`](Self::write_to) wrote, as many heads as there are bytes for.
    pub(super) fn from_bytes(bytes: &[u8], head_dim: usize, n_tokens: usize, axis: Axis) -> Self {
        let n_rows = n_rows(axis, head_dim, n_tokens);
        let n_heads = bytes.len() / (head_dim * n_tokens + 4 * n_rows);
        let (codes, rest) = bytes.split_at(n_heads * head_dim * n_tokens);
        let (least, step) = rest.split_at(2 * n_heads * n_rows);
        let (least, step) = (read_f16(least), read_f16(step));
        Self { axis, head_dim, n_tokens, codes: codes.to_vec(), least, step }
    }

    /// The rows of some tokens of a head.
    pub(super) fn rows(&self, head: usize, tokens: Range<usize>) -> Q8Rows<'_> {
        let first = head * self.n_tokens;
        let codes = (first + tokens.start) * self.head_dim..(first + tokens.end) * self.head_dim;
        let rows = match self.axis {
            Axis::Component => head * self.head_dim..(head + 1) * self.head_dim,
            Axis::Token => first + tokens.start..first + tokens.end,
        };
        Q8Rows {
            axis: self.axis,
            head_dim: self.head_dim,
            codes: &self.codes[codes],
            least: &self.least[rows.clone()],
            step: &self.step[rows],
        }
    }
}

/// Tokens of one head, `[n_tokens, head_dim]`, in 8 bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Q8Rows<'a> {
    axis: Axis,
    head_dim: usize,
    codes: &'a [u8],
    least: &'a [f16],
    step: &'a [f16],
}

impl Q8Rows<'_> {
    pub(super) fn copy_to(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.codes.len(), "room for the rows");
        let widen = |numbers: &[f16]| numbers.iter().map(|n| n.to_f32()).collect::<Vec<f32>>();
        let (least, step) = (widen(self.least), widen(self.step));
        let tokens = out.chunks_exact_mut(self.head_dim);
        for (t, (out, codes)) in tokens.zip(self.codes.chunks_exact(self.head_dim)).enumerate() {
            match self.axis {
                Axis::Component => {
                    let rows = least.iter().zip(&step);
                    for ((out, &code), (least, step)) in out.iter_mut().zip(codes).zip(rows) {
                        *out = least + f32::from(code) * step;
                    }
                }
                Axis::Token => {
                    let (least, step) = (least[t], step[t]);
                    for (out, &code) in out.iter_mut().zip(codes) {
                        *out = least + f32::from(code) * step;
                    }
                }
            }
        }
    }
}

fn n_rows(axis: Axis, head_dim: usize, n_tokens: usize) -> usize {
    match axis {
        Axis::Component => head_dim,
        Axis::Token => n_tokens,
    }
}

/// The smallest and the largest number of each row of a head; 0 where nothing is a number.
fn extremes(axis: Axis, head_dim: usize, head: &[f32], low: &mut [f32], high: &mut [f32]) {
    low.fill(f32::INFINITY);
    high.fill(f32::NEG_INFINITY);
    for (t, token) in head.chunks_exact(head_dim).enumerate() {
        match axis {
            Axis::Component => {
                for ((low, high), &number) in low.iter_mut().zip(&mut *high).zip(token) {
                    (*low, *high) = (smaller(*low, clamp(number)), larger(*high, clamp(number)));
                }
            }
            Axis::Token => {
                // Several of each, since a running one would wait for the one before.
                let (mut lows, mut highs) = ([f32::INFINITY; 8], [f32::NEG_INFINITY; 8]);
                for chunk in token.chunks(8) {
                    for ((low, high), &number) in lows.iter_mut().zip(&mut highs).zip(chunk) {
                        (*low, *high) =
                            (smaller(*low, clamp(number)), larger(*high, clamp(number)));
                    }
                }
                low[t] = lows.into_iter().fold(f32::INFINITY, smaller);
                high[t] = highs.into_iter().fold(f32::NEG_INFINITY, larger);
            }
        }
    }
    for (low, high) in low.iter_mut().zip(high) {
        if *low > *high {
            (*low, *high) = (0.0, 0.0);
        }
    }
}

/// As `f32::min` for the numbers here, in one instruction: what is no number is left out.
fn smaller(so_far: f32, number: f32) -> f32 {
    if number < so_far { number } else { so_far }
}

fn larger(so_far: f32, number: f32) -> f32 {
    if number > so_far { number } else { so_far }
}

/// The nearest of 0 to 255, of equals the even one; 0 for what is no number. Adding 2^23 leaves the
/// rounded number in the last bits, which vectorises where a conversion does not.
fn nearest_code(steps: f32) -> u8 {
    let bounded = if steps > 0.0 { smaller(255.0, steps) } else { 0.0 };
    (bounded + 8_388_608.0).to_bits() as u8
}

fn clamp(number: f32) -> f32 {
    const LIMIT: f32 = 65504.0;
    number.clamp(-LIMIT, LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use everstream_kv_cache::rng::SplitMix64;

    const HEAD_DIM: usize = 6;
    const N_TOKENS: usize = 9;

    /// Two heads; component `i` of keys is near `1000 * i`, as a bias would make it.
    fn numbers(seed: u64) -> Vec<f32> {
        let mut rng = SplitMix64::new(seed);
        let near = |i: usize| 1000.0 * (i % HEAD_DIM) as f32;
        (0..2 * N_TOKENS * HEAD_DIM).map(|i| near(i) + rng.below(1000) as f32 / 500.0).collect()
    }

    fn read(buffer: &Q8Buffer) -> Vec<f32> {
        let mut out = vec![0.0; buffer.codes.len()];
        for (head, out) in out.chunks_exact_mut(HEAD_DIM * N_TOKENS).enumerate() {
            buffer.rows(head, 0..N_TOKENS).copy_to(out);
        }
        out
    }

    /// The definition, one number at a time.
    fn largest_error(axis: Axis, numbers: &[f32], stored: &[f32]) -> f32 {
        let row_of = |i: usize| match axis {
            Axis::Component => (i / (HEAD_DIM * N_TOKENS), i % HEAD_DIM),
            Axis::Token => (0, i / HEAD_DIM),
        };
        let mut largest: f32 = 0.0;
        for i in 0..numbers.len() {
            let row = (0..numbers.len()).filter(|&j| row_of(j) == row_of(i)).map(|j| numbers[j]);
            let (low, high) =
                row.fold((f32::MAX, f32::MIN), |(l, h), number| (l.min(number), h.max(number)));
            // Six tenths of a step, and the least number's rounding to f16.
            let allowed = 0.6 * (high - low) / 255.0 + low.abs() / 2048.0 * 0.6 + 1e-6;
            largest = largest.max((numbers[i] - stored[i]).abs() / allowed);
        }
        largest
    }

    #[test]
    fn errors_stay_within_a_step_of_the_row() {
        for seed in 0..20 {
            for axis in [Axis::Component, Axis::Token] {
                let numbers = numbers(seed);
                let buffer = Q8Buffer::quantize(&numbers, HEAD_DIM, N_TOKENS, axis);
                let error = largest_error(axis, &numbers, &read(&buffer));
                assert!(error <= 1.0, "{axis:?}: {error}");
            }
        }
    }

    #[test]
    fn a_large_component_does_not_drown_the_others() {
        let numbers = numbers(1);
        let buffer = Q8Buffer::quantize(&numbers, HEAD_DIM, N_TOKENS, Axis::Component);
        let first_component = || (0..numbers.len()).step_by(HEAD_DIM);
        let stored = read(&buffer);
        for i in first_component() {
            assert!((numbers[i] - stored[i]).abs() <= 2.0 / 255.0);
        }
    }

    #[test]
    fn equal_numbers_zeros_and_what_is_no_number() {
        for (number, expected) in [(0.0, 0.0), (1.5, 1.5), (f32::NAN, 0.0), (-7e9, -65504.0)] {
            let numbers = [number; HEAD_DIM * N_TOKENS];
            for axis in [Axis::Component, Axis::Token] {
                let buffer = Q8Buffer::quantize(&numbers, HEAD_DIM, N_TOKENS, axis);
                let mut out = [0.0; HEAD_DIM * N_TOKENS];
                buffer.rows(0, 0..N_TOKENS).copy_to(&mut out);
                assert_eq!(out, [expected; HEAD_DIM * N_TOKENS], "{number}");
            }
        }
    }

    #[test]
    fn some_tokens_are_those_of_all() {
        let numbers = numbers(3);
        for axis in [Axis::Component, Axis::Token] {
            let buffer = Q8Buffer::quantize(&numbers, HEAD_DIM, N_TOKENS, axis);
            let all = read(&buffer);
            for (start, end) in [(0, 0), (0, 1), (3, 7), (8, 9)] {
                let mut some = vec![0.0; (end - start) * HEAD_DIM];
                buffer.rows(1, start..end).copy_to(&mut some);
                let first = (N_TOKENS + start) * HEAD_DIM;
                assert_eq!(some, all[first..][..some.len()]);
            }
        }
    }
}
