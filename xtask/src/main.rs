//! (essay)
fn main() {}
