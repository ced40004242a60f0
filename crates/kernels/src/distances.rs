//! One point against many: squared distances.

use crate::simd::{Kernel, LANES, Simd};
use crate::{Isa, TILE};

/// Squared distances of `point` from the rows of `tiles`, `[n_tiles, dim, 16]` as
/// [`write_key`](crate::write_key) fills them; each is summed over the components in their order.
///
/// # Panics
///
/// Unless there is room for 16 distances of each tile.
pub fn squared_distances(isa: Isa, tiles: &[f32], point: &[f32], out: &mut [f32]) {
    assert!(out.len().is_multiple_of(TILE), "{} rows are no whole tiles", out.len());
    let len = out.len().checked_mul(point.len());
    assert_eq!(Some(tiles.len()), len, "components of {} rows", out.len());
    isa.run(Distances { tiles, point, out });
}

struct Distances<'a> {
    tiles: &'a [f32],
    point: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Distances<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        // SAFETY: the caller enabled the instruction set of `S`.
        unsafe {
            const { assert!(TILE == LANES) };
            let n_tiles = self.out.len() / LANES;
            let mut done = 0;
            // Sums of four tiles need not wait for each other.
            while n_tiles - done >= 4 {
                self.measure::<S, 4>(done);
                done += 4;
            }
            while done < n_tiles {
                self.measure::<S, 1>(done);
                done += 1;
            }
        }
    }
}

impl Distances<'_> {
    /// # Safety
    ///
    /// The instruction set of `S` is enabled, and there are `N` tiles from `first` on.
    #[inline(always)]
    unsafe fn measure<S: Simd, const N: usize>(&mut self, first: usize) {
        let dim = self.point.len();
        // SAFETY: `squared_distances` checked that each tile has 16 rows of `dim` components, and that
        // there is room for as many distances.
        unsafe {
            let mut sums = [S::splat(0.0); N];
            for (i, &x) in self.point.iter().enumerate() {
                let x = S::splat(x);
                for (tile, sum) in sums.iter_mut().enumerate() {
                    let at = ((first + tile) * dim + i) * LANES;
                    let difference = S::sub(S::load(self.tiles.as_ptr().add(at)), x);
                    *sum = S::fma(difference, difference, *sum);
                }
            }
            for (tile, sum) in sums.into_iter().enumerate() {
                S::store(self.out.as_mut_ptr().add((first + tile) * LANES), sum);
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
    fn distances_are_those_of_the_definition_on_every_instruction_set() {
        let mut rng = Rng::new(17);
        for dim in [0, 1, 3, 16, 64, 100] {
            for n_tiles in [0, 1, 3, 4, 9] {
                for scale in [1.0, 1e30, f32::NAN] {
                    let mut row =
                        || (0..dim).map(|_| scale * (rng.f32() - 0.5)).collect::<Vec<_>>();
                    let (point, rows): (_, Vec<_>) =
                        (row(), (0..n_tiles * TILE).map(|_| row()).collect());
                    let mut tiles = vec![0.0; n_tiles * TILE * dim];
                    rows.iter().enumerate().for_each(|(i, row)| write_key(&mut tiles, i, row));
                    let distance = |row: &Vec<f32>| {
                        let differences = row.iter().zip(&point).map(|(a, b)| a - b);
                        differences.fold(0.0, |sum: f32, d| d.mul_add(d, sum)).to_bits()
                    };
                    let expected: Vec<u32> = rows.iter().map(distance).collect();
                    for isa in Isa::available() {
                        let mut out = vec![1.0; rows.len()];
                        squared_distances(isa, &tiles, &point, &mut out);
                        let out: Vec<u32> = out.into_iter().map(f32::to_bits).collect();
                        if scale.is_nan() {
                            assert!(out.iter().all(|&x| dim == 0 || f32::from_bits(x).is_nan()));
                        } else {
                            assert_eq!(out, expected, "{isa} {dim} {n_tiles} {scale}");
                        }
                    }
                }
            }
        }
    }
}
