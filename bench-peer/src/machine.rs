//! What a measurement must name besides the model: CPU, system, compiled instructions, versions.

use anyhow::bail;
use everstream_kernels::Isa;

/// The commit of Everstream, or `unknown`.
pub(crate) const COMMIT: &str = env!("EVERSTREAM_COMMIT");

/// The model of the CPU, where the system tells.
pub(crate) fn cpu() -> String {
    let info = fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    line.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// Lists those of the features that the compiler was allowed to use, and those that the CPU has.
macro_rules! features {
    ($($name:tt),*) => {
        /// Vector instructions that the compiler was allowed to use.
        pub(crate) fn compiled() -> Vec<&'static str> {
            let all = [$((cfg!(target_feature = $name), $name)),*];
            all.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect()
        }

        /// Vector instructions that this CPU has.
        #[cfg(target_arch = "x86_64")]
        fn available() -> Vec<&'static str> {
            let all = [$((is_x86_feature_detected!($name), $name)),*];
            all.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect()
        }
    };
}

features!(
    "avx",
    "avx2",
    "f16c",
    "fma",
    "avxvnni",
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "avx512vbmi",
    "avx512vnni",
    "avx512bf16"
);

/// Refuses a build that would not show what the others can do here with `isa`.
pub(crate) fn require_native(isa: Isa) -> anyhow::Result<()> {
    #[cfg(target_arch = "x86_64")]
    {
        let is_wide = compiled().iter().any(|name| name.starts_with("avx512"));
        match isa.name() {
            "avx2" if is_wide || !compiled().contains(&"avx2") => bail!(
                "this program was not compiled for AVX2: call RUSTFLAGS='-C target-cpu=x86-64-v3' \
                 cargo build --release --target-dir target/v3 inside bench-peer/"
            ),
            "avx2" => {}
            _ if compiled() != available() => bail!(
                "this program was not compiled for this CPU, so llama.cpp would be slow: call cargo \
                 inside bench-peer/, whose .cargo/config.toml sets -C target-cpu=native"
            ),
            _ => {}
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = isa;
    if cfg!(debug_assertions) {
        bail!("this is a debug build: add --release");
    }
    Ok(())
}

/// The version of a package, as it stands in `Cargo.lock`.
pub(crate) fn locked_version(package: &str) -> &'static str {
    let lock = include_str!("../Cargo.lock");
    let entry = lock.split("[[package]]").find(|e| e.contains(&format!("name = \"{package}\"\n")));
    let line = entry.and_then(|e| e.lines().find_map(|l| l.strip_prefix("version = ")));
    line.map_or("unknown", |version| version.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    #[test]
    fn versions_are_found() {
        assert_eq!(super::locked_version("bench-peer"), env!("CARGO_PKG_VERSION"));
        assert_eq!(super::locked_version("llama-cpp-2"), "0.1.160");
        assert_eq!(super::locked_version("absent"), "unknown");
    }
}
