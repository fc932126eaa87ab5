//! A text that is shown nowhere.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest token, in bytes.
const MAX_TOKEN_BYTES: usize = 4096;

/// A token or password. It prints as asterisks; only [`Secret::reveal`] gives it away.
#[derive(Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for the one place that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it can stand in an HTTP header after `Bearer `.
    ///
    /// # Errors
    /// What a token is made of.
    pub fn check_token(&self) -> Result<(), &'static str> {
        if self.0.bytes().all(|byte| byte.is_ascii_graphic()) && self.0.len() <= MAX_TOKEN_BYTES {
            Ok(())
        } else {
            Err("a token is at most 4096 visible ASCII characters without spaces, such as `openssl rand -hex 32` gives")
        }
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Secret {
        Secret(text.to_owned())
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Secret {
        Secret(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "(none)" } else { "********" })
    }
}
