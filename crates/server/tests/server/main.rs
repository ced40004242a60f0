//! The server, asked over HTTP.

#![expect(clippy::unwrap_used, reason = "a test stops where something unexpected happens")]

mod chat;
mod harness;
mod ollama;
mod sessions;
mod texts;
