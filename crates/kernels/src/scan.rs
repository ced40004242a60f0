//! One vector against many, in 8 bits: what an exact search does first.
//!
//! Rows lie in groups of sixteen, a lane each, four components side by side:
//!
//! ```text
//! group g:  components 0..4 of rows 16g .. 16g+16 | components 4..8 of the same rows | ...
//! ```
//!
//! so that a step multiplies four components of the query with those of sixteen rows, and no row
//! is summed across lanes.

use crate::Isa;
use crate::simd::{Kernel, LANES, Simd};

/// Rows of a group.
pub const SCAN_GROUP: usize = LANES;
/// Components that lie side by side; a row is padded to a multiple of them.
pub const SCAN_STEP: usize = 4;

/// Where component `i` of row `row` lies among rows of `dim` components.
#[must_use]
pub fn scan_index(row: usize, i: usize, dim: usize) -> usize {
    let (group, lane) = (row / SCAN_GROUP, row % SCAN_GROUP);
    (group * dim + i / SCAN_STEP * SCAN_STEP) * SCAN_GROUP + lane * SCAN_STEP + i % SCAN_STEP
}

/// Products of `query` with the rows: `out[r] = sum(query[i] * rows[scan_index(r, i, dim)])`, exact
/// while below 2^24, which 518 components cannot reach.
///
/// # Panics
///
/// Unless `query.len()` is a multiple of [`SCAN_STEP`], `out.len()` one of [`SCAN_GROUP`], and there
/// are `out.len() * query.len()` components.
pub fn scan(isa: Isa, rows: &[u8], query: &[i8], out: &mut [f32]) {
    assert!(query.len().is_multiple_of(SCAN_STEP), "a query of {} components", query.len());
    assert!(out.len().is_multiple_of(SCAN_GROUP), "{} rows are no whole groups", out.len());
    assert_eq!(rows.len(), out.len() * query.len(), "components of {} rows", out.len());
    isa.run(Scan { rows, query, out });
}

struct Scan<'a> {
    rows: &'a [u8],
    query: &'a [i8],
    out: &'a mut [f32],
}

impl Kernel for Scan<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        /// What the sums of neighbouring steps go to, so that they need not wait for each other.
        const SUMS: usize = 4;
        let n_steps = self.query.len() / SCAN_STEP;
        for group in 0..self.out.len() / SCAN_GROUP {
            // SAFETY: `scan` checked that each group has 16 rows of the query's length.
            unsafe {
                let row = self.rows.as_ptr().add(group * self.query.len() * SCAN_GROUP);
                let mut sums = [S::splat_i(0); SUMS];
                for step in 0..n_steps {
                    let at = step * SCAN_STEP;
                    let w = S::bytes(row.add(at * SCAN_GROUP));
                    let query = self.query.as_ptr().add(at);
                    sums[step % SUMS] = S::dot::<true>(sums[step % SUMS], w, query);
                }
                let sum = S::add_i(S::add_i(sums[0], sums[1]), S::add_i(sums[2], sums[3]));
                S::store(self.out.as_mut_ptr().add(group * SCAN_GROUP), S::to_f(sum));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Rng;

    /// Every number of components up to twice a lane's register, extreme ones among them.
    #[test]
    fn products_are_those_of_the_definition_on_every_instruction_set() {
        let mut rng = Rng::new(31);
        for dim in (0..=132).step_by(SCAN_STEP).chain([384, 516]) {
            for n_rows in [0, 16, 48] {
                let extreme = rng.f32() > 0.5;
                let mut byte = || if extreme { 255 } else { (rng.f32() * 127.0) as i32 + 128 };
                let rows: Vec<u8> = (0..n_rows * dim).map(|_| byte() as u8).collect();
                let sign = |i: usize| if i.is_multiple_of(3) && !extreme { -127 } else { 127 };
                let query: Vec<i8> = (0..dim).map(sign).collect();
                let product = |r| -> i32 {
                    let term = |i| i32::from(rows[scan_index(r, i, dim)]) * i32::from(query[i]);
                    (0..dim).map(term).sum()
                };
                let expected: Vec<f32> = (0..n_rows).map(|r| product(r) as f32).collect();
                for isa in Isa::available() {
                    let mut out = vec![1.0; n_rows];
                    scan(isa, &rows, &query, &mut out);
                    assert_eq!(out, expected, "{isa} {dim} {n_rows}");
                }
            }
        }
    }

    #[test]
    fn places_are_a_permutation() {
        let (n_rows, dim) = (32, 12);
        let mut places: Vec<usize> =
            (0..n_rows).flat_map(|row| (0..dim).map(move |i| scan_index(row, i, dim))).collect();
        places.sort_unstable();
        assert!(places.into_iter().eq(0..n_rows * dim));
    }
}
