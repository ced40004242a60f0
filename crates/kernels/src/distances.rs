//! Rows against points: which one is nearest.

use crate::simd::{Kernel, LANES, Simd};
use crate::{Isa, TILE};

/// Rows of tiles that are looked at together: their sums need not wait for each other, and they stay in the
/// fastest cache while all points are looked at.
const TILES_AT_ONCE: usize = 4;

/// For each row of `tiles`, `[n_tiles, dim, 16]` as [`write_key`](crate::write_key) fills them, the nearest of
/// `points`, `[n_points, dim]`: writes its number, from `first` on, and its squared distance where that is less
/// than what `distances` holds; of equals the first. A distance is summed over the components in their order;
/// one that is no number is not less.
///
/// # Panics
///
/// Unless there are 16 distances and numbers for each tile, and whole points.
pub fn nearest_points(
    isa: Isa,
    tiles: &[f32],
    (points, dim): (&[f32], usize),
    first: u32,
    distances: &mut [f32],
    numbers: &mut [u32],
) {
    assert!(distances.len().is_multiple_of(TILE), "{} rows are no whole tiles", distances.len());
    assert_eq!(distances.len(), numbers.len(), "numbers of rows");
    assert_eq!(Some(tiles.len()), distances.len().checked_mul(dim), "components of rows");
    assert!(dim > 0 && points.len().is_multiple_of(dim), "points of {dim} components");
    isa.run(Nearest { tiles, points, dim, first, distances, numbers });
}

struct Nearest<'a> {
    tiles: &'a [f32],
    points: &'a [f32],
    dim: usize,
    first: u32,
    distances: &'a mut [f32],
    numbers: &'a mut [u32],
}

impl Kernel for Nearest<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        // SAFETY: the caller enabled the instruction set of `S`.
        unsafe {
            const { assert!(TILE == LANES) };
            let n_tiles = self.distances.len() / LANES;
            let mut done = 0;
            while n_tiles - done >= TILES_AT_ONCE {
                self.look_at::<S, TILES_AT_ONCE>(done);
                done += TILES_AT_ONCE;
            }
            while done < n_tiles {
                self.look_at::<S, 1>(done);
                done += 1;
            }
        }
    }
}

impl Nearest<'_> {
    /// # Safety
    ///
    /// The instruction set of `S` is enabled, and there are `N` tiles from `first_tile` on.
    #[inline(always)]
    unsafe fn look_at<S: Simd, const N: usize>(&mut self, first_tile: usize) {
        const { assert!(N <= TILES_AT_ONCE) };
        let rows = first_tile * LANES..(first_tile + N) * LANES;
        let (held, numbers) = (&mut self.distances[rows.clone()], &mut self.numbers[rows]);
        let mut found = [0.0; TILES_AT_ONCE * LANES];
        for (point, number) in self.points.chunks_exact(self.dim).zip(self.first..) {
            // SAFETY: `nearest_points` checked that each tile has 16 rows of `dim` components, and `found` has
            // room for the most tiles that are looked at together.
            unsafe {
                let mut sums = [S::splat(0.0); N];
                for (i, &x) in point.iter().enumerate() {
                    let x = S::splat(x);
                    for (tile, sum) in sums.iter_mut().enumerate() {
                        let at = ((first_tile + tile) * self.dim + i) * LANES;
                        let difference = S::sub(S::load(self.tiles.as_ptr().add(at)), x);
                        *sum = S::fma(difference, difference, *sum);
                    }
                }
                for (tile, sum) in sums.into_iter().enumerate() {
                    S::store(found.as_mut_ptr().add(tile * LANES), sum);
                }
            }
            for ((&found, held), held_number) in found.iter().zip(&mut *held).zip(&mut *numbers) {
                let is_nearer = found < *held;
                *held = if is_nearer { found } else { *held };
                *held_number = if is_nearer { number } else { *held_number };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Rng;
    use crate::write_key;

    #[test]
    fn the_nearest_is_that_of_the_definition_on_every_instruction_set() {
        let mut rng = Rng::new(17);
        for (dim, n_points) in [(1, 5), (3, 1), (16, 0), (64, 9), (100, 3)] {
            for n_tiles in [0, 1, 3, 4, 9] {
                for scale in [1.0, 1e30, f32::NAN] {
                    let mut row =
                        || (0..dim).map(|_| scale * (rng.f32() - 0.5)).collect::<Vec<f32>>();
                    let mut points: Vec<_> = (0..n_points).map(|_| row()).collect();
                    // The first of equals is meant.
                    points.extend(points.first().cloned());
                    let rows: Vec<_> = (0..n_tiles * TILE).map(|_| row()).collect();
                    let mut tiles = vec![0.0; n_tiles * TILE * dim];
                    rows.iter().enumerate().for_each(|(i, row)| write_key(&mut tiles, i, row));
                    let held = |i: usize| {
                        if i.is_multiple_of(3) { 0.1 * dim as f32 } else { f32::INFINITY }
                    };
                    let nearest = |(i, row): (usize, &Vec<f32>)| {
                        let mut best = (held(i).to_bits(), 7);
                        for (number, point) in (100..).zip(&points) {
                            let differences = row.iter().zip(point).map(|(a, b)| a - b);
                            let sum = differences.fold(0.0, |sum: f32, d| d.mul_add(d, sum));
                            if sum < f32::from_bits(best.0) {
                                best = (sum.to_bits(), number);
                            }
                        }
                        best
                    };
                    let expected: Vec<_> = rows.iter().enumerate().map(nearest).collect();
                    for isa in Isa::available() {
                        let mut distances: Vec<f32> = (0..rows.len()).map(held).collect();
                        let mut numbers = vec![7; rows.len()];
                        let points = (&points.concat()[..], dim);
                        nearest_points(isa, &tiles, points, 100, &mut distances, &mut numbers);
                        let found = distances.iter().map(|d| d.to_bits()).zip(numbers);
                        let found: Vec<_> = found.collect();
                        assert_eq!(found, expected, "{isa} {dim} {n_tiles} {scale}");
                    }
                }
            }
        }
    }
}
