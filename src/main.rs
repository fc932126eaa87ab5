//! The binary: the command line, and the doors at which an instance answers.

use std::process::ExitCode;

fn main() -> ExitCode {
    tidegate::cli::main(tidegate::api::routes())
}
