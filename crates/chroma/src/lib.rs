//! A [Chroma](https://www.trychroma.com) server as the index of a session, and collections of it
//! that somebody else filled with text.
//!
//! Chroma holds vectors and texts; keys and values stay in the session's own store, and the index
//! is made again from there if the server loses it. So nothing that was acknowledged depends on the
//! server: while it does not answer, blocks wait here and are found here ([`ChromaIndex`]).
//!
//! What is spoken is the REST API of version 2, by a blocking client.

mod client;
mod index;
mod texts;

pub use client::{Chroma, ChromaConfig, ChromaError};
pub use index::{ChromaIndex, MakeChroma};
pub use texts::ChromaTexts;
