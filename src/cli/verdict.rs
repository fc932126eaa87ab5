//! `tidegate verify`: its options, what it prints, and its exit code.

use clap::Args;

use super::error::CliError;
use super::open;
use super::options::ConfigOptions;
use super::output::Output;
use super::verify;

/// What `verify` takes.
#[derive(Args, Debug)]
pub struct VerifyOptions {
    #[command(flatten)]
    config: ConfigOptions,
}

/// Compares every key with the serial reference.
pub fn verify(options: &VerifyOptions, _output: Output) -> Result<(), CliError> {
    let config = options.config.load()?;
    let log = open::log_beside(&config)?;
    let _ = (log, verify::verify);
    todo!()
}
