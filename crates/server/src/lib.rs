//! An endpoint that speaks OpenAI's protocol, for conversations of any length.
//!
//! Clients of that protocol send the whole conversation with every turn. The server knows the
//! conversations that it has answered: of one that goes on it reads only what is new, and what is
//! older than the cache is remembered and recalled. So no conversation is refused for its length.
//!
//! All streams live on one thread, [`Engine`], which takes the decode steps of those that generate
//! together ([`everstream_runtime::append_each`]) and reads the turns of the others in between, chunk
//! by chunk. HTTP is on threads of its own, and talks to the engine through channels.
//!
//! Deliberately absent: files. Nothing of a request is written anywhere.

mod conversation;
mod engine;
mod error;
mod openai;
mod routes;

pub use engine::{Engine, EngineConfig};
pub use routes::{ServerConfig, serve};
