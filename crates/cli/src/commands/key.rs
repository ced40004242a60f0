//! `everstream key`: keys for a server that several people use.
//!
//! The file has a line for each, `NAME SHA256`, so that whoever reads it cannot ask in another's name.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, bail};
use everstream_runtime::memory::{check_name, write_whole};
use everstream_server::digest;

use crate::args::KeyArgs;
use crate::output;

/// Bytes of a key that are random.
const KEY_BYTES: usize = 32;
/// What keys begin with, so that one is known for what it is when it lies around.
const PREFIX: &str = "es-";

pub(crate) fn run(args: &KeyArgs) -> anyhow::Result<()> {
    if check_name(&args.name).is_err() {
        bail!("{:?} cannot be a name: use letters, digits, '.', '_' and '-'", args.name);
    }
    let is_new = !args.keys.exists();
    let known = if is_new { Vec::new() } else { read(&args.keys)? };
    if known.iter().any(|(name, _)| name.to_lowercase() == args.name.to_lowercase()) {
        bail!(
            "{} has a key of {:?}: remove its line for a new one",
            args.keys.display(),
            args.name
        );
    }
    let mut random = [0; KEY_BYTES];
    getrandom::fill(&mut random).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    let key = format!("{PREFIX}{}", hex(&random));
    let mut lines = if is_new { String::new() } else { fs_err::read_to_string(&args.keys)? };
    if !lines.is_empty() && !lines.ends_with('\n') {
        lines.push('\n');
    }
    writeln!(lines, "{} {}", args.name, hex(&digest(&key)))?;
    write_whole(&args.keys, lines.as_bytes())
        .with_context(|| format!("cannot write {}", args.keys.display()))?;
    output::dim_note("the key is nowhere else: keep it");
    writeln!(std::io::stdout().lock(), "{key}")?;
    Ok(())
}

/// The keys of a file: names, and the SHA-256 of each key.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<(String, [u8; 32])>> {
    let mut keys: Vec<(String, [u8; 32])> = Vec::new();
    for (i, line) in fs_err::read_to_string(path)?.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let key = match words[..] {
            [name, digest] if check_name(name).is_ok() => {
                bytes(digest).map(|d| (name.to_owned(), d))
            }
            _ => None,
        };
        let Some(key) = key else {
            bail!("{}, line {}: not a name and a SHA-256", path.display(), i + 1);
        };
        // Some file systems do not tell upper case from lower.
        if keys.iter().any(|(name, _)| name.to_lowercase() == key.0.to_lowercase()) {
            bail!("{}, line {}: {:?} has a key already", path.display(), i + 1, key.0);
        }
        keys.push(key);
    }
    Ok(keys)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if hex.len() != 64 || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}
