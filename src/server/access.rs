//! Who may call: the token that every call of the API has to bring.
//!
//! S1: the token is in no message, log line, answer or metric, and it is compared in constant time.

use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use super::error::ApiError;
use crate::config;
use crate::config::secret::Secret;

/// Why there is no usable token although one is set: exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// It is not clear which one is meant.
    #[error("server.token and server.token_file are both set; keep one of them")]
    Both,
    /// The file cannot be read.
    #[error("server.token_file: cannot read {}: {error}; give the instance's user the right to read it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// The file has nothing but white space.
    #[error("server.token_file: {} is empty; write the token into it, or unset the key", .0.display())]
    Empty(PathBuf),
    /// No HTTP header could carry it.
    #[error("{0}: {1}")]
    Illegal(String, &'static str),
}

/// What the server asks callers for.
#[derive(Clone, Debug, Default)]
pub struct Access {
    token: Option<Arc<Secret>>,
    /// Whether `/metrics` asks for it, too.
    pub protect_metrics: bool,
}

impl Access {
    /// The token of the configuration or of the file that it names.
    ///
    /// # Errors
    /// [`AccessError`] when one is set and cannot be used.
    pub fn load(config: &config::Server) -> Result<Access, AccessError> {
        let from_file = !config.token_file.as_os_str().is_empty();
        let token = match (config.token.is_empty(), from_file) {
            (false, true) => return Err(AccessError::Both),
            (true, true) => Some(read(&config.token_file)?),
            (false, false) => {
                let illegal = |what| AccessError::Illegal("server.token".into(), what);
                config.token.check_token().map_err(illegal)?;
                Some(config.token.clone())
            }
            (true, false) => None,
        };
        Ok(Access { token: token.map(Arc::new), protect_metrics: config.protect_metrics })
    }

    /// Whether callers have to bring a token.
    pub fn is_protected(&self) -> bool {
        self.token.is_some()
    }

    /// What this instance sends to others of its application, which have the same token.
    pub fn authorization(&self) -> Option<HeaderValue> {
        let token = self.token.as_ref()?;
        let mut value = HeaderValue::from_str(&format!("Bearer {}", token.reveal())).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// Whether these headers bring the token.
    ///
    /// # Errors
    /// 401 with the next step.
    pub fn admits(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let Some(token) = &self.token else { return Ok(()) };
        let brought = headers.get(header::AUTHORIZATION).ok_or(Refused::Missing)?;
        let (scheme, brought) = split(brought.as_bytes()).ok_or(Refused::Missing)?;
        if !scheme.eq_ignore_ascii_case(b"bearer") {
            return Err(Refused::Missing);
        }
        if bool::from(brought.ct_eq(token.reveal().as_bytes())) { Ok(()) } else { Err(Refused::Wrong) }
    }
}

/// Scheme and credentials of an `Authorization` header.
fn split(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = value.iter().position(|&byte| byte == b' ')?;
    Some((&value[..space], value[space..].trim_ascii()))
}

fn read(path: &std::path::Path) -> Result<Secret, AccessError> {
    let text =
        std::fs::read_to_string(path).map_err(|error| AccessError::Unreadable { path: path.to_owned(), error })?;
    let token = Secret::from(text.trim().to_owned());
    if token.is_empty() {
        return Err(AccessError::Empty(path.to_owned()));
    }
    let illegal = |what| AccessError::Illegal(format!("server.token_file: {}", path.display()), what);
    token.check_token().map_err(illegal)?;
    Ok(token)
}

/// Why somebody is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no token.
    Missing,
    /// It is another one.
    Wrong,
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (message, challenge) = match self {
            Refused::Missing => ("this call needs the instance's token", "Bearer realm=\"tidegate\""),
            Refused::Wrong => {
                ("this is not the instance's token", "Bearer realm=\"tidegate\", error=\"invalid_token\"")
            }
        };
        let error = ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", message).hint(
            "send the header \"Authorization: Bearer <server.token>\"; tidegate's commands take it from --token-file, \
             --token or TIDEGATE_TOKEN",
        );
        let mut response = error.into_response();
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        response
    }
}

/// Lets only those pass that bring the token.
pub async fn guard(State(access): State<Access>, request: Request, next: Next) -> Response {
    match access.admits(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refused) => refused.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn server(token: &str, file: Option<&[u8]>) -> (config::Server, tempfile::NamedTempFile) {
        let mut written = tempfile::NamedTempFile::new().unwrap();
        let mut server = config::Server { token: token.to_owned().into(), ..config::Server::default() };
        if let Some(text) = file {
            written.write_all(text).unwrap();
            server.token_file = written.path().to_owned();
        }
        (server, written)
    }

    fn ask(access: &Access, value: &str) -> Result<(), Refused> {
        access.admits(&HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]))
    }

    #[test]
    fn the_token_alone_opens() {
        let (config, _file) = server("", Some(b"s3cret/+=\r\n"));
        let access = Access::load(&config).unwrap();
        assert_eq!(ask(&access, "Bearer s3cret/+="), Ok(()));
        assert_eq!(ask(&access, "bearer  s3cret/+= "), Ok(()));
        for wrong in ["Bearer s3cret", "Bearer s3cret/+=x", "Bearer ", "Bearer S3CRET/+="] {
            assert_eq!(ask(&access, wrong), Err(Refused::Wrong), "{wrong}");
        }
        for missing in ["Basic s3cret/+=", "s3cret/+=", "Bearer"] {
            assert_eq!(ask(&access, missing), Err(Refused::Missing), "{missing}");
        }
        assert_eq!(access.admits(&HeaderMap::new()), Err(Refused::Missing));
        assert_eq!(access.authorization().unwrap(), "Bearer s3cret/+=");
        assert_eq!(Access::default().admits(&HeaderMap::new()), Ok(()));
    }

    #[test]
    fn what_cannot_be_a_token_is_refused_and_not_shown() {
        let refused = |token: &str, file: Option<&[u8]>| {
            let (config, _file) = server(token, file);
            Access::load(&config).unwrap_err().to_string()
        };
        assert!(refused("hidden", Some(b"hidden")).contains("both"));
        assert!(refused("", Some(b" \n")).contains("empty"));
        assert!(refused("", Some(b"\xff\xfe")).contains("token_file"));
        for (token, file) in [("hid den", None), ("hidd\u{e9}n", None), ("", Some(&b"hidden\nhidden"[..]))] {
            let message = refused(token, file);
            assert!(message.contains("server.token") && !message.contains("hid"), "{message}");
        }
        let missing = config::Server { token_file: "/no/such/file".into(), ..config::Server::default() };
        assert!(Access::load(&missing).unwrap_err().to_string().contains("/no/such/file"));
        let (config, _file) = server("hidden", None);
        assert!(!format!("{:?} {:?}", Access::load(&config).unwrap(), config).contains("hidden"));
    }
}
