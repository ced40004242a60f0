//! The invariants of `docs/ARCHITECTURE.md` that a machine can check.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::check::command;

/// Crates from the bottom to the top; each may use those before it only.
const LAYERS: [&str; 10] = [
    "everstream-kernels",
    "everstream-kv-cache",
    "everstream-memory",
    "everstream-chroma",
    "everstream-model",
    "everstream-runtime",
    "everstream-eval",
    "everstream-hub",
    "everstream-server",
    "everstream",
];

/// Packages that speak HTTP, and who may use them.
const HTTP: [&str; 6] = ["hf-hub", "ureq", "reqwest", "hyper", "axum", "tokio"];
const MAY_USE_HTTP: [&str; 4] =
    ["everstream-chroma", "everstream-hub", "everstream-server", "everstream"];

/// Files that may contain unsafe code, besides the crate `kernels`.
const MAY_BE_UNSAFE: [&str; 1] = ["crates/model/src/mmap.rs"];

/// Lines without tests above which a file needs a reason, and the files that have one.
const MAX_LINES: usize = 800;
const MAY_BE_LONG: [(&str, &str); 0] = [];

/// Licences that may be linked into the binary. MPL-2.0 asks only that changes to its own files are
/// published, and none are made.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MPL-2.0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Checks all of them.
pub(crate) fn check() -> anyhow::Result<()> {
    let mut problems = Vec::new();
    for path in sources()? {
        let text = fs_err::read_to_string(root().join(&path))?;
        check_file(&path, &text, &mut problems);
    }
    let metadata = metadata()?;
    check_dependencies(&metadata, &mut problems)?;
    check_licences(&metadata, &mut problems)?;
    if !problems.is_empty() {
        bail!("{}", problems.join("\n"));
    }
    Ok(())
}

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}

/// Where cargo builds.
pub(crate) fn target_folder() -> anyhow::Result<PathBuf> {
    let metadata = metadata()?;
    Ok(metadata["target_directory"].as_str().context("no target directory")?.into())
}

/// Rust files that git knows, or would.
fn sources() -> anyhow::Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
        .current_dir(root())
        .output()
        .context("cannot run git")?;
    let listed = String::from_utf8(output.stdout)?;
    Ok(listed.lines().filter(|p| root().join(p).exists()).map(str::to_owned).collect())
}

fn check_file(path: &str, text: &str, problems: &mut Vec<String>) {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let n_lines = code.lines().count();
    let is_long = n_lines > MAX_LINES && !path.contains("/tests");
    if is_long && !MAY_BE_LONG.iter().any(|(known, _)| *known == path) {
        problems.push(format!("{path}: {n_lines} lines without tests, at most {MAX_LINES}"));
    }
    let has_unsafe = text.lines().any(|line| {
        let line = line.trim_start();
        !line.starts_with("//")
            && (line.contains("unsafe {")
                || line.contains("unsafe fn")
                || line.contains("unsafe impl"))
    });
    let may_be_unsafe = path.starts_with("crates/kernels/")
        || path.starts_with("xtask/")
        || MAY_BE_UNSAFE.contains(&path);
    if has_unsafe && !may_be_unsafe {
        problems.push(format!("{path}: unsafe code outside `kernels`"));
    }
    let reads_environment = ["env::var(", "env::var_os(", "env::vars(", "env::vars_os("]
        .iter()
        .any(|call| code.contains(call));
    let may_read = ["crates/cli/", "xtask/"].iter().any(|p| path.starts_with(p))
        || path.contains("/tests/")
        || path.contains("/examples/");
    let is_test = path.ends_with("tests.rs") || path.ends_with("testing.rs");
    if reads_environment && !may_read && !is_test {
        problems.push(format!("{path}: reads the environment; only `cli` does"));
    }
}

fn metadata() -> anyhow::Result<Value> {
    let output = command(&["metadata", "--format-version", "1", "--locked"]).output()?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn packages(metadata: &Value) -> anyhow::Result<&Vec<Value>> {
    metadata["packages"].as_array().context("cargo metadata lists no packages")
}

fn name(value: &Value) -> &str {
    value["name"].as_str().unwrap_or_default()
}

fn check_dependencies(metadata: &Value, problems: &mut Vec<String>) -> anyhow::Result<()> {
    for package in packages(metadata)? {
        let Some(layer) = LAYERS.iter().position(|l| *l == name(package)) else { continue };
        for dependency in package["dependencies"].as_array().context("no dependencies")? {
            let is_dev = dependency["kind"] == "dev";
            let other = LAYERS.iter().position(|l| *l == name(dependency));
            if other.is_some_and(|other| other >= layer && !is_dev) {
                problems.push(format!("{} uses {}, above it", name(package), name(dependency)));
            }
            let is_http = HTTP.contains(&name(dependency));
            if is_http && !MAY_USE_HTTP.contains(&name(package)) {
                problems.push(format!("{} uses {}", name(package), name(dependency)));
            }
        }
    }
    Ok(())
}

/// An expression is fine if one of its alternatives is: `(A OR B) AND C` needs one of A, B, and C.
fn check_licences(metadata: &Value, problems: &mut Vec<String>) -> anyhow::Result<()> {
    for package in packages(metadata)? {
        let licence = package["license"].as_str().unwrap_or("none").replace('/', " OR ");
        let good = licence.split(" AND ").all(|part| {
            part.split(" OR ").any(|l| LICENCES.contains(&l.trim().trim_matches(['(', ')'])))
        });
        if !good {
            problems.push(format!("{}: licence {licence}", name(package)));
        }
    }
    Ok(())
}
