//! What generators draw.

pub(crate) use fastrand::Rng;

/// A generator for one stream of a task: other streams draw other numbers.
pub(crate) fn for_stream(seed: u64, stream: usize) -> Rng {
    // Odd, so that no two streams of a seed share a state.
    Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(stream as u64))
}
