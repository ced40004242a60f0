//! The binary as people and scripts meet it: exit codes, both output streams, files.
//!
//! Everything runs on the tiny models of `everstream-model`'s golden files, without network and in
//! a cache folder of its own. `real_models.rs` holds what only real models can show.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod bad_files;
mod bad_settings;
mod bench;
mod chat;
mod generate;
mod help;
mod hub;
mod inspect;
mod perplexity;
mod rig;
