//! How fast weights can be read: the limit of decoding, which reads each of them once a token.

use std::time::Instant;

use crate::quant::packed::PackedMatrix;
use crate::simd::{Kernel, PREFETCH_BYTES, Simd};
use crate::{Isa, Pool};

/// Bytes that a thread takes at a time.
const TASK_BYTES: usize = 128 << 10;

/// Reads all bytes of some matrices once, with all threads, and does nothing with them; returns bytes
/// per second. That is the memory's speed if they are larger than the last cache.
#[must_use]
pub fn read_bandwidth(isa: Isa, pool: &Pool, matrices: &[&PackedMatrix]) -> f64 {
    let pieces: Vec<&[u8]> =
        matrices.iter().flat_map(|m| m.data.as_slice().chunks(TASK_BYTES)).collect();
    let n_bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
    let start = Instant::now();
    pool.run(pieces.len(), &|_, task| isa.run(Read(pieces[task])));
    n_bytes as f64 / start.elapsed().as_secs_f64()
}

/// Reads a multiple of 64 bytes.
struct Read<'a>(&'a [u8]);

impl Kernel for Read<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (p, n) = (self.0.as_ptr(), self.0.len() / 64 * 64);
        // SAFETY: reads stay inside of the slice; a prefetch may name any place.
        unsafe {
            let mut acc = [S::splat_b(0); 4];
            for at in (0..n).step_by(64) {
                S::prefetch(p.wrapping_add(at + PREFETCH_BYTES));
                acc[at / 64 % 4] = S::or(acc[at / 64 % 4], S::bytes(p.add(at)));
            }
            let all = S::or(S::or(acc[0], acc[1]), S::or(acc[2], acc[3]));
            // So that the reads are not left out.
            let ones = [1i8; 4];
            let sums = S::to_f(S::dot::<true>(S::splat_i(0), all, ones.as_ptr()));
            std::hint::black_box(S::sum(sums));
        }
    }
}
