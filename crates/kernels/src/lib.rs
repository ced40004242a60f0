//! The arithmetic that decides the speed of the engine: quantized matrices, attention, rotary
//! embedding, norms, and the threads that share them.
//!
//! # One body for every instruction set
//!
//! A kernel is one generic function over sixteen lanes (the private module `simd`). It runs as plain
//! Rust, as AVX2 and as AVX-512 with VNNI, chosen at run time through an [`Isa`] value, and gives
//! **the same bits** on each. The usual design, hand-written functions for each instruction set,
//! sums in as many orders as there are functions; its tests need tolerances, and a result depends
//! on the machine.
//!
//! # Nothing is summed across rows of a batch
//!
//! Each output of a product has a lane of its own and is summed in one fixed order (`matmul`: over
//! the columns, for float weights in two partial sums), each attention score and each mixed value
//! likewise (`attention`). So a row gives the
//! same bits alone, in a batch, in a prefill chunk of any size, and on any number of threads. What
//! decoding and prefilling compute cannot drift apart.
//!
//! # Weights in groups of sixteen rows
//!
//! Weights are reordered once when a model is loaded, without loss (`quant/packed.rs` has the
//! drawing): a vector load then holds four columns of sixteen rows, which is what one VNNI
//! instruction multiplies. Quantized weights are multiplied with inputs rounded to 8 bits in blocks
//! of 32, one format for all types.
//!
//! This crate and one file of `model` are the home of unsafe code. It knows nothing about files,
//! models or streams.

mod activations;
mod attention;
mod bandwidth;
mod buffer;
mod distances;
mod elementwise;
mod formats;
mod isa;
mod matmul;
mod pool;
mod quant;
mod rope;
mod scan;
mod simd;
#[cfg(test)]
mod testing;

pub use activations::Activations;
pub use attention::{
    Attention, Biases, QueryForm, Span, TILE, attend, attend_measured, key_tiles_len, read_key,
    write_key,
};
pub use bandwidth::read_bandwidth;
pub use buffer::Arena;
pub use distances::nearest_points;
pub use elementwise::{
    Activation, add_assign, gated, gelu, layer_norm, log_sum_exp, rms_norm, rms_norm_in_place,
    soft_cap, widen,
};
pub use isa::Isa;
pub use matmul::{Product, dot_definition, matmul};
pub use pool::Pool;
pub use quant::packed::{GROUP, PackedMatrix};
pub use quant::{WeightType, dequantize};
pub use rope::{Rope, Rotation};
pub use scan::{SCAN_GROUP, SCAN_STEP, scan, scan_index};
pub use simd::Element;
