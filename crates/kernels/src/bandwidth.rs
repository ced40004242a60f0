//! How fast this machine reads memory: the limit of decoding, which reads each weight once a token.

use std::time::Instant;

use crate::buffer::{AlignedBytes, Arena};
use crate::simd::{Kernel, Simd};
use crate::{Isa, Pool};

/// Bytes that are read at once: several times the last-level cache that one user gets of a server.
const BYTES: usize = 512 << 20;
/// Bytes that a thread takes at a time.
const TASK_BYTES: usize = 128 << 10;
/// How far ahead lines are asked for: a good distance on Zen 4 and Zen 5, where it hardly matters.
const PREFETCH_BYTES: usize = 2048;

/// Memory to read, on the same pages as weights.
#[derive(Debug)]
pub struct Bandwidth {
    data: AlignedBytes,
}

impl Bandwidth {
    /// Takes half a gigabyte and writes to all of it.
    ///
    /// # Errors
    ///
    /// What the system says if it has no memory for it.
    pub fn new() -> std::io::Result<Self> {
        let mut data = Arena::new().zeroed(BYTES)?;
        // A page that nobody wrote to may be a page of zeros that stays in the cache.
        data.as_mut_slice().fill(1);
        Ok(Self { data })
    }

    /// Reads all of it once with all threads of `pool`; returns bytes per second.
    #[must_use]
    pub fn measure(&self, isa: Isa, pool: &Pool) -> f64 {
        let data = self.data.as_slice();
        let start = Instant::now();
        pool.run(BYTES / TASK_BYTES, &|_, task| {
            isa.run(Read(&data[task * TASK_BYTES..][..TASK_BYTES]));
        });
        BYTES as f64 / start.elapsed().as_secs_f64()
    }
}

/// Reads a multiple of 256 bytes.
struct Read<'a>(&'a [u8]);

impl Kernel for Read<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (p, n) = (self.0.as_ptr(), self.0.len());
        // SAFETY: reads stay inside of the slice.
        unsafe {
            let mut acc = [S::bytes(p); 4];
            for at in (0..n).step_by(256) {
                for i in 0..4 {
                    S::prefetch(p.wrapping_add(at + 64 * i + PREFETCH_BYTES));
                    acc[i] = S::or(acc[i], S::bytes(p.add(at + 64 * i)));
                }
            }
            let all = S::or(S::or(acc[0], acc[1]), S::or(acc[2], acc[3]));
            std::hint::black_box(S::sum(S::to_f(S::dot::<true>(S::splat_i(0), all, p.cast()))));
        }
    }
}
