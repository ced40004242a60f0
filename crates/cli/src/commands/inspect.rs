//! (being written)
use crate::args::{Common, InspectArgs};
pub(crate) fn run(_common: &Common, _args: &InspectArgs) -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
