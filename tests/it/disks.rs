//! Disks that lie: stores that are damaged, foreign or gone, and disks that are full. Whatever befalls them, no answer is
//! ever wrong, and nothing that was accepted is lost.

mod full;
mod mutations;
mod mutator;

use std::process::{Command, Output, Stdio};

/// Runs one ignored test of this binary in a process of its own, with these variables; what it printed.
fn alone(mut command: Command, test: &str, variables: &[(&str, &str)]) -> String {
    command.args(["--exact", test, "--ignored", "--nocapture"]).envs(variables.iter().copied());
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().expect("it starts");
    let said = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "{test}: {status}\n{said}\n{}", String::from_utf8_lossy(&stderr));
    assert!(said.contains("1 passed"), "{test} did not run:\n{said}");
    said
}

/// This binary.
fn this() -> Command {
    Command::new(std::env::current_exe().expect("this binary"))
}
