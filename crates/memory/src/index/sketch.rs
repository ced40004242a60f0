//! Vectors in 8 bits, with what is known of the error: a quarter of the bytes to read, and nothing
//! lost, since whatever might be among the nearest is compared again in full.
//!
//! A vector is `x = d * q + e` with whole `q` in -127 ..= 127 and `d = max|x| / 127`; the length of
//! the error `e` is computed once, so by Cauchy and Schwarz the product of two vectors differs from
//! that of their sketches by at most `|e_a| |x_b sketched| + |x_a| |e_b|`.

use everstream_kernels::{Isa, SCAN_GROUP, SCAN_STEP, scan, scan_index};

use super::Distance;

/// What bytes are stored above: they are unsigned, sketches are not.
const ZERO: u8 = 128;

/// Sketches of all rows of an index.
#[derive(Clone, Debug)]
pub(super) struct Sketches {
    isa: Isa,
    dim: usize,
    /// `[n_rows / 16, dim / 4, 16, 4]`, both padded to whole groups.
    bytes: Vec<u8>,
    rows: Vec<Row>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Row {
    scale: f32,
    /// Length of the vector.
    norm: f32,
    /// Length of what the sketch lacks; infinite if a component is not finite.
    error: f32,
}

impl Row {
    /// The sketch of `x`, whose components go to `put`.
    fn of(x: &[f32], mut put: impl FnMut(usize, i8)) -> Self {
        let largest = x.iter().fold(0.0_f32, |m, c| if c.is_finite() { m.max(c.abs()) } else { m });
        let scale = largest / 127.0;
        let (mut norm, mut error) = (0.0, 0.0);
        for (i, &c) in x.iter().enumerate() {
            let q = if scale > 0.0 { (c / scale).round().clamp(-127.0, 127.0) } else { 0.0 };
            put(i, q as i8);
            norm += f64::from(c).powi(2);
            error += (f64::from(c) - f64::from(scale) * f64::from(q)).powi(2);
        }
        // Rounding to f32 may not make them smaller than they are.
        let up = |square: f64| (square.sqrt() * (1.0 + 1e-6)) as f32;
        let error = if x.iter().all(|c| c.is_finite()) { up(error) } else { f32::INFINITY };
        Self { scale, norm: up(norm), error }
    }
}

impl Sketches {
    pub(super) fn new(dim: usize) -> Self {
        Self { isa: Isa::detect(), dim, bytes: Vec::new(), rows: Vec::new() }
    }

    pub(super) fn push(&mut self, x: &[f32]) {
        let (row, dim) = (self.rows.len(), self.padded_dim());
        if row.is_multiple_of(SCAN_GROUP) {
            self.bytes.resize(self.bytes.len() + dim * SCAN_GROUP, ZERO);
        }
        let bytes = &mut self.bytes;
        let put = |i, q: i8| bytes[scan_index(row, i, dim)] = ZERO.wrapping_add_signed(q);
        self.rows.push(Row::of(x, put));
    }

    fn padded_dim(&self) -> usize {
        self.dim.next_multiple_of(SCAN_STEP)
    }

    /// For each row a number that its distance from `query` is not below, to be computed by
    /// `n_parts` threads: `out` has a place for each row.
    pub(super) fn lower_bounds(
        &self,
        distance: Distance,
        query: &[f32],
        n_parts: usize,
        out: &mut [f32],
    ) {
        let mut bytes = vec![0; self.padded_dim()];
        let row = Row::of(query, |i, q| bytes[i] = q);
        let query = Sketched { row, bytes };
        let part_rows = out.len().div_ceil(n_parts.max(1)).next_multiple_of(SCAN_GROUP).max(1);
        let part_bytes = part_rows * self.padded_dim();
        let parts = out.chunks_mut(part_rows).zip(self.rows.chunks(part_rows));
        let mut parts = parts.zip(self.bytes.chunks(part_bytes.max(1))).peekable();
        std::thread::scope(|scope| {
            while let Some(((out, rows), bytes)) = parts.next() {
                let query = &query;
                let mut compute = move || self.lower_bounds_of(distance, query, rows, bytes, out);
                match parts.peek() {
                    Some(_) => drop(scope.spawn(compute)),
                    None => compute(),
                }
            }
        });
    }

    fn lower_bounds_of(
        &self,
        distance: Distance,
        query: &Sketched,
        rows: &[Row],
        bytes: &[u8],
        out: &mut [f32],
    ) {
        /// Products at a time: they shall stay in the nearest cache.
        const AT_ONCE: usize = 64 * SCAN_GROUP;
        let mut products = [0.0; AT_ONCE];
        let (q, dim) = (query.row, self.padded_dim());
        let shift = f32::from(ZERO) * query.bytes.iter().map(|&b| f32::from(b)).sum::<f32>();
        // Both sums that are compared are rounded: the product, and the distance in full.
        let rounding = f32::EPSILON * (self.dim as f32 / 16.0 + 40.0);
        for (part, (rows, out)) in rows.chunks(AT_ONCE).zip(out.chunks_mut(AT_ONCE)).enumerate() {
            let n = rows.len().next_multiple_of(SCAN_GROUP);
            let bytes = &bytes[part * AT_ONCE * dim..][..n * dim];
            scan(self.isa, bytes, &query.bytes, &mut products[..n]);
            for ((out, row), product) in out.iter_mut().zip(rows).zip(products) {
                let product = row.scale * q.scale * (product - shift);
                let off = q.error * (row.norm + row.error)
                    + q.norm * row.error
                    + rounding * q.norm * row.norm;
                let lower = match distance {
                    Distance::InnerProduct | Distance::Cosine => 1.0 - product - off - rounding,
                    Distance::L2 => {
                        let squares = q.norm * q.norm + row.norm * row.norm;
                        squares - 2.0 * (product + off) - 2.0 * rounding * squares
                    }
                };
                // Of a vector that is not finite, nothing is known.
                *out = if lower.is_nan() { f32::NEG_INFINITY } else { lower };
            }
        }
    }
}

/// A query in 8 bits.
struct Sketched {
    row: Row,
    /// `[dim]`, padded with zeros.
    bytes: Vec<i8>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::normalise;
    use everstream_kv_cache::rng::SplitMix64;

    /// Random vectors, sparse ones, long ones, equal ones, and such as have no direction or no
    /// finite length.
    #[test]
    fn no_distance_is_below_its_bound() {
        let mut rng = SplitMix64::new(1);
        for dim in [1, 3, 4, 7, 64, 384] {
            let mut vector = |kind: usize| -> Vec<f32> {
                let mut unit = || rng.signed_unit();
                let x: Vec<f32> = (0..dim).map(|_| unit()).collect();
                match kind % 7 {
                    0 | 1 => x,
                    2 => x.iter().map(|c| if *c > 0.9 { *c } else { 0.0 }).collect(),
                    3 => x.iter().map(|c| c * 1e6).collect(),
                    4 => vec![1.0; dim],
                    5 => vec![0.0; dim],
                    _ => x.iter().map(|c| if *c > 0.5 { f32::INFINITY } else { *c }).collect(),
                }
            };
            let vectors: Vec<_> = (0..70).map(&mut vector).collect();
            let mut sketches = Sketches::new(dim);
            vectors.iter().for_each(|x| sketches.push(x));
            for (kind, distance) in [Distance::L2, Distance::InnerProduct].into_iter().enumerate() {
                let query = vector(kind);
                let mut bounds = vec![0.0; vectors.len()];
                for n_parts in [1, 3] {
                    sketches.lower_bounds(distance, &query, n_parts, &mut bounds);
                    for (x, &bound) in vectors.iter().zip(&bounds) {
                        let exact = distance.between(&query, x);
                        assert!(exact.is_nan() || bound <= exact, "{dim}: {bound} > {exact}");
                    }
                }
            }
        }
    }

    /// Bounds that are never above and far below would be right and of no use.
    #[test]
    fn bounds_are_close() {
        let mut rng = SplitMix64::new(2);
        let mut unit = || -> Vec<f32> {
            let mut x: Vec<f32> = (0..384).map(|_| rng.signed_unit()).collect();
            normalise(&mut x);
            x
        };
        let vectors: Vec<_> = (0..100).map(|_| unit()).collect();
        let mut sketches = Sketches::new(384);
        vectors.iter().for_each(|x| sketches.push(x));
        let (query, mut bounds) = (unit(), vec![0.0; 100]);
        sketches.lower_bounds(Distance::Cosine, &query, 1, &mut bounds);
        for (x, bound) in vectors.iter().zip(bounds) {
            assert!(Distance::Cosine.between(&query, x) - bound < 0.02);
        }
    }
}
