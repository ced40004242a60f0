//! An endpoint that speaks OpenAI's protocol, for conversations of any length.
//!
//! Clients of that protocol send the whole conversation with every turn. The server knows the
//! conversations that it has answered: of one that goes on it reads only what is new, and what is
//! older than the cache is remembered and recalled. So no conversation is refused for its length.
//! A client that names a *session* sends what is new only; the session lives on disk, and goes on
//! after a restart.
//!
//! All streams live on one thread, [`Engine`], which takes the decode steps of those that generate
//! together ([`everstream_runtime::append_each`]) and reads the texts of the others in between, chunk
//! by chunk. HTTP is on threads of its own, and talks to the engine through channels.
//!
//! Deliberately absent: names of files. What a request calls a session is checked to be a name, and
//! leads to a folder of its owner's; nothing else of a request reaches the file system.

mod active;
mod conversation;
mod engine;
mod error;
mod grammar;
mod http;
mod metrics;
mod saved;

pub use engine::{Engine, EngineConfig};
pub use http::{Keys, ServerConfig, digest, serve};
pub use saved::SavedConfig;
