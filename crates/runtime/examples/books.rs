//! Prints books of the evaluation data, one after the other.
//!
//! `cargo xtask soak million` streams them.

use std::io::Write;

#[path = "common/books.rs"]
mod books;
#[expect(dead_code, reason = "no model is opened here")]
mod common;

fn main() -> anyhow::Result<()> {
    for name in std::env::args().skip(1) {
        std::io::stdout().write_all(books::book(&name)?.as_bytes())?;
    }
    Ok(())
}
