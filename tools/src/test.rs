//! To come.
use std::process::ExitCode;
/// None yet.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {}
/// Nothing yet.
///
/// # Errors
/// Always.
pub fn run(_: &Arguments) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
