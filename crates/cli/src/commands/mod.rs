//! One file for each command.

pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod demo;
pub(crate) mod eval;
mod eval_all;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod key;
pub(crate) mod memory;
pub(crate) mod models;
pub(crate) mod perplexity;
pub(crate) mod serve;
