//! Query parameters. Their values are bytes, because keys are; one that is not known is refused,
//! because an ignored `wait` or `limit` would look like an obeyed one.

use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use percent_encoding::percent_decode;

use crate::server::error::ApiError;

/// The parameters of one request.
pub struct Query(Vec<(String, Vec<u8>)>);

impl Query {
    /// Reads a raw query; `known` are the names that the call takes.
    pub fn parse(raw: Option<&str>, known: &[&str]) -> Result<Query, ApiError> {
        let mut parameters = Vec::new();
        for part in raw.unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            if !known.contains(&name) {
                return Err(refuse(format!("unknown parameter {name:?}")).hint(format!(
                    "this call takes {}",
                    if known.is_empty() { "none".into() } else { known.join(", ") }
                )));
            }
            if parameters.iter().any(|(seen, _)| seen == name) {
                return Err(refuse(format!("the parameter {name} is given twice")));
            }
            let value = value.replace('+', " ");
            parameters.push((name.to_owned(), percent_decode(value.as_bytes()).collect()));
        }
        Ok(Query(parameters))
    }

    fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(of, _)| of == name).map(|(_, value)| value.as_slice())
    }

    /// The parameter's bytes; also as `<name>_base64`.
    pub fn bytes(&self, name: &str) -> Result<Option<Bytes>, ApiError> {
        if let Some(text) = self.get(&format!("{name}_base64")) {
            let bytes = STANDARD.decode(text).map_err(|_| refuse(format!("{name}_base64 is not base64")))?;
            return Ok(Some(bytes.into()));
        }
        Ok(self.get(name).map(Bytes::copy_from_slice))
    }

    /// The parameter as text.
    pub fn text(&self, name: &str) -> Result<Option<String>, ApiError> {
        let text = self.get(name).map(|text| String::from_utf8(text.to_vec()));
        text.transpose().map_err(|_| refuse(format!("{name} is not UTF-8")))
    }

    /// `true`, `false`, or nothing after the name for true.
    pub fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.get(name) {
            None | Some(b"false") => Ok(false),
            Some(b"true" | b"") => Ok(true),
            Some(_) => Err(refuse(format!("{name} is true or false"))),
        }
    }

    /// `limit`: 1 to 1000, 100 when it is not given.
    pub fn limit(&self) -> Result<usize, ApiError> {
        let Some(text) = self.get("limit") else { return Ok(100) };
        str::from_utf8(text)
            .ok()
            .and_then(|text| text.parse().ok())
            .filter(|limit| (1..=1000).contains(limit))
            .ok_or_else(|| refuse("limit is a number from 1 to 1000").hint("for more, pass next back as after"))
    }
}

/// 400: what is wrong with a parameter.
pub fn refuse(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "bad_parameter", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_bytes_and_names_are_known() {
        let query = Query::parse(Some("prefix=a%2Fb+c%ff&removed&limit=7"), &["prefix", "removed", "limit"]).unwrap();
        assert_eq!(query.bytes("prefix").unwrap().as_deref(), Some(&b"a/b c\xff"[..]));
        assert!(query.flag("removed").unwrap());
        assert_eq!(query.limit().unwrap(), 7);
        assert!(Query::parse(Some("wait=settled"), &["prefix"]).is_err());
        for limit in ["0", "1001", "x", ""] {
            assert!(Query::parse(Some(&format!("limit={limit}")), &["limit"]).unwrap().limit().is_err(), "{limit}");
        }
    }
}
