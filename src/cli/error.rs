//! Why a command ends badly: the cause, the next step and the exit code.

use std::io::{self, Write};

use crate::instance::StartError;
use crate::server::bind::BindError;

/// A command that did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CliError {
    exit: Exit,
    message: String,
    hint: String,
    passes: bool,
}

#[derive(Clone, Copy, Debug)]
enum Exit {
    Failed = 1,
    Misused = 2,
    Different = 3,
    DeadLetters = 4,
    Interrupted = 130,
}

impl CliError {
    /// Exit code 1: it was tried and failed.
    pub fn failed(message: impl Into<String>) -> CliError {
        CliError { exit: Exit::Failed, message: message.into(), hint: String::new(), passes: false }
    }

    /// Exit code 2: the command line, the configuration or the log does not fit.
    pub fn misused(message: impl Into<String>) -> CliError {
        CliError { exit: Exit::Misused, message: message.into(), hint: String::new(), passes: false }
    }

    /// Exit code 3: `verify` found a difference.
    pub fn different(message: impl Into<String>) -> CliError {
        CliError { exit: Exit::Different, message: message.into(), hint: String::new(), passes: false }
    }

    /// Exit code 4: what was sent is settled, but not all of it succeeded, as far as is known.
    pub fn dead_letters(message: impl Into<String>) -> CliError {
        CliError { exit: Exit::DeadLetters, message: message.into(), hint: String::new(), passes: false }
    }

    /// Exit code 130: Ctrl-C ended it; nothing is said.
    pub fn interrupted() -> CliError {
        CliError { exit: Exit::Interrupted, message: String::new(), hint: String::new(), passes: false }
    }

    /// It may pass by itself: the same can be asked for again shortly.
    pub fn passing(self, passes: bool) -> CliError {
        CliError { passes, ..self }
    }

    /// Whether it may pass by itself.
    pub fn passes(&self) -> bool {
        self.passes
    }

    /// The next step.
    pub fn hint(mut self, hint: impl Into<String>) -> CliError {
        self.hint = hint.into();
        self
    }

    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        self.exit as u8
    }

    /// Cause and next step, on standard error.
    pub fn print(&self) {
        if self.message.is_empty() {
            return;
        }
        let hint = if self.hint.is_empty() { String::new() } else { format!(" hint: {}\n", self.hint) };
        say(&format!("error: {}\n{hint}", self.message));
    }

    /// The same in one line, of a command that goes on without what failed.
    pub fn print_as(&self, consequence: &str) {
        let hint = if self.hint.is_empty() { String::new() } else { format!("; {}", self.hint) };
        say(&format!("{consequence}: {}{hint}\n", self.message));
    }
}

fn say(text: &str) {
    // Nobody is left to tell when standard error is closed.
    let _ = io::stderr().write_all(text.as_bytes());
}

impl From<StartError> for CliError {
    fn from(error: StartError) -> CliError {
        match error {
            StartError::Misconfigured(message) => CliError::misused(message),
            StartError::Failed(message) => CliError::failed(message),
        }
    }
}

impl From<BindError> for CliError {
    fn from(error: BindError) -> CliError {
        match error {
            BindError::Refused { .. } => CliError::failed(error.to_string()),
            _ => CliError::misused(error.to_string()),
        }
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> CliError {
        CliError::failed(error.to_string())
    }
}
