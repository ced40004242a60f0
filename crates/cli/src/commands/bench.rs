//! (being written)
use crate::args::{BenchArgs, Common};
pub(crate) fn run(_common: &Common, _args: &BenchArgs) -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
