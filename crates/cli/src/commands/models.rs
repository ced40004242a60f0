//! (being written)
use crate::args::{Common, ModelsArgs, PullArgs};
pub(crate) fn pull(common: &Common, args: &PullArgs) -> anyhow::Result<()> {
    let f = crate::load::files(common, &args.model)?;
    println!("{}", f.main.display());
    Ok(())
}
pub(crate) fn list(_common: &Common, _args: &ModelsArgs) -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
