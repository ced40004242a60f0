//! (essay)

mod activations;
mod attention;
mod buffer;
mod elementwise;
mod isa;
mod matmul;
mod pool;
mod quant;
mod rope;
mod simd;
#[cfg(test)]
mod testing;

pub use activations::Activations;
pub use attention::{Attention, QueryForm, Span, TILE, attend, key_tiles_len, read_key, write_key};
pub use elementwise::{add_assign, log_sum_exp, rms_norm, silu_mul};
pub use isa::Isa;
pub use matmul::{Product, dot_definition, matmul};
pub use pool::Pool;
pub use quant::packed::{GROUP, PackedMatrix};
pub use quant::{WeightType, dequantize};
pub use rope::{Rope, Rotation};
pub use simd::Element;
