//! How well a model answers with what its cache and memory hold: tasks, metrics and reports.

pub mod metrics;
