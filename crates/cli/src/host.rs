//! What a measurement must name besides the model: the machine, the system, the commit.

/// The commit of the source, or `unknown`.
pub(crate) const COMMIT: &str = env!("EVERSTREAM_COMMIT");

/// The model of the CPU, where the system tells.
pub(crate) fn cpu() -> String {
    let info = fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    line.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// The operating system and its release.
pub(crate) fn os() -> String {
    let release = fs_err::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{} {}", std::env::consts::OS, release.trim()).trim().to_owned()
}
