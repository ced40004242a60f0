//! How well a model answers with what its cache and memory hold: tasks, metrics and reports.
//!
//! A [`Task`] makes [`Stream`]s: documents, and questions that are asked when so many of them have been
//! read. A [`Method`] says what the model sees then: everything, a window, what a memory recalls, or nothing
//! but the evidence. [`Run`] reads each stream once for all methods that read alike, branches for each
//! question, and keeps every answer.

mod data;
mod error;
mod method;
pub mod metrics;
pub mod plot;
mod report;
mod rng;
mod run;
mod stream;
mod summary;
pub mod task;

pub use data::{Record, records};
pub use error::EvalError;
pub use method::Method;
pub use report::{KeptRun, markdown, tables, write_report};
pub use run::{Answer, Progress, Run, Timing};
pub use stream::{Form, Question, Stream};
pub use summary::{MethodSummary, Metric, Summary, summarise};
pub use task::{Reads, Task, TaskOptions, Total};
