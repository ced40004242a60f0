//! (being written)
use crate::args::{ChatArgs, Common};
pub(crate) fn run(_common: &Common, _args: &ChatArgs) -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
