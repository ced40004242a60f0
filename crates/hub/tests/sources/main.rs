//! The sources of models against doubles of their own: a pip that is a shell script, and a hub that
//! is a thread on a socket of this machine.
#![cfg(unix)]

// `cfg(test)` always holds here; it tells clippy that helpers are tests, too.
#[cfg(test)]
#[cfg(feature = "hf")]
mod hf;
#[cfg(test)]
mod pip;
#[cfg(test)]
mod rig;
