//! `tidegate get` and `tidegate list`, and how keys are written on the command line.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, ValueEnum};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde_json::{Map, Value, json};

use super::client::Client;
use super::error::CliError;
use super::output::{self, Output, cell};

/// `--encoding`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Encoding {
    /// As they are.
    Text,
    /// Two hexadecimal digits a byte.
    Hex,
    /// Base64, with padding.
    Base64,
}

impl Encoding {
    /// The bytes that `text` means.
    pub fn decode(self, text: &str) -> Result<Vec<u8>, CliError> {
        let wrong = |what: &str| CliError::misused(format!("{text:?} is not {what}")).hint("see --encoding");
        match self {
            Encoding::Text => Ok(text.as_bytes().to_vec()),
            Encoding::Base64 => STANDARD.decode(text).map_err(|_| wrong("base64")),
            Encoding::Hex => {
                let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(wrong("hexadecimal")) };
                pairs
                    .iter()
                    .map(|&[high, low]| Some(hex_digit(high)? << 4 | hex_digit(low)?))
                    .collect::<Option<Vec<u8>>>()
                    .ok_or_else(|| wrong("hexadecimal"))
            }
        }
    }

    /// How `bytes` are printed.
    pub fn encode(self, bytes: &[u8]) -> String {
        match self {
            Encoding::Text => {
                str::from_utf8(bytes).map_or_else(|_| format!("base64:{}", STANDARD.encode(bytes)), str::to_owned)
            }
            Encoding::Base64 => STANDARD.encode(bytes),
            Encoding::Hex => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    /// The field `name` of an answer, which may stand there as `<name>_base64`.
    pub fn show(self, object: &Value, name: &str) -> String {
        match field(object, name) {
            Some(bytes) => self.encode(&bytes),
            None => cell(&Value::Null),
        }
    }
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// The bytes of the field `name`, which may stand there as `<name>_base64`.
pub fn field(object: &Value, name: &str) -> Option<Vec<u8>> {
    match object[name].as_str() {
        Some(text) => Some(text.as_bytes().to_vec()),
        None => STANDARD.decode(object[format!("{name}_base64")].as_str()?).ok(),
    }
}

/// Adds `name`, or `<name>_base64` where the bytes are not UTF-8.
pub fn put(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), STANDARD.encode(bytes).into()),
    };
}

fn escape(bytes: &[u8]) -> String {
    percent_encode(bytes, NON_ALPHANUMERIC).to_string()
}

/// What `get` takes.
#[derive(Args, Debug)]
pub struct GetOptions {
    /// The key.
    key: String,
    /// First wait until all that has been received at this moment is settled.
    #[arg(long)]
    wait: bool,
    /// How long to wait, such as 30s.
    #[arg(long, requires = "wait", value_parser = humantime::parse_duration, default_value = "30s")]
    timeout: Duration,
}

/// Shows what a key holds.
pub fn get(client: &Client, options: &GetOptions, encoding: Encoding, output: Output) -> Result<(), CliError> {
    let key = encoding.decode(&options.key)?;
    let path = format!("/api/v1/keys/{}", escape(&key));
    let held = if options.wait {
        client.waiting(options.timeout).get(&waits(&path, options.timeout))
    } else {
        client.get(&path)
    }?;
    match output {
        Output::Json => output::json(&held),
        Output::Table => show(&[&held], encoding),
    }
}

/// The path of a call that waits until what it is about is settled.
pub fn waits(path: &str, timeout: Duration) -> String {
    format!("{path}?wait=settled&timeout={}ms", timeout.as_millis())
}

/// What `list` takes.
#[derive(Args, Debug)]
pub struct ListOptions {
    /// Only keys that begin with it.
    #[arg(long, default_value = "")]
    prefix: String,
    /// Only keys above it.
    #[arg(long)]
    after: Option<String>,
    /// At most so many.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Also removed keys whose marker lives.
    #[arg(long)]
    removed: bool,
}

/// Lists keys in byte order.
pub fn list(client: &Client, options: &ListOptions, encoding: Encoding, output: Output) -> Result<(), CliError> {
    let prefix = escape(&encoding.decode(&options.prefix)?);
    let mut after = options.after.as_deref().map(|after| encoding.decode(after)).transpose()?;
    let mut entries: Vec<Value> = Vec::new();
    let limit = options.limit as usize;
    while entries.len() < limit {
        let limit = (limit - entries.len()).min(1000);
        let mut path = format!("/api/v1/keys?prefix={prefix}&limit={limit}&removed={}", options.removed);
        if let Some(after) = &after {
            path.push_str(&match str::from_utf8(after) {
                Ok(_) => format!("&after={}", escape(after)),
                Err(_) => format!("&after_base64={}", escape(STANDARD.encode(after).as_bytes())),
            });
        }
        let mut page = client.get(&path)?;
        after = field(&page, "next");
        if let Some(listed) = page["entries"].as_array_mut() {
            entries.append(listed);
        }
        if after.is_none() {
            break;
        }
    }
    match output {
        Output::Json => {
            let mut answer = Map::new();
            answer.insert("entries".into(), entries.into());
            match after.map(String::from_utf8) {
                Some(Err(error)) => answer.insert("next_base64".into(), STANDARD.encode(error.as_bytes()).into()),
                next => answer.insert("next".into(), json!(next.and_then(Result::ok))),
            };
            output::json(&answer.into())
        }
        Output::Table => {
            show(&entries.iter().collect::<Vec<_>>(), encoding)?;
            match after {
                Some(after) => output::line(&format!("… more with --after {}", encoding.encode(&after))),
                None => Ok(()),
            }
        }
    }
}

fn show(entries: &[&Value], encoding: Encoding) -> Result<(), CliError> {
    let rows = entries
        .iter()
        .map(|held| {
            let (key, value) = (encoding.show(held, "key"), encoding.show(held, "value"));
            vec![key, cell(&held["action"]), value, cell(&held["stamp"]), cell(&held["partition"])]
        })
        .collect();
    output::table(&["key", "action", "value", "stamp", "partition"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_go_both_ways() {
        assert_eq!(Encoding::Hex.decode("00ff61").unwrap(), b"\0\xffa");
        assert_eq!(Encoding::Hex.encode(b"\0\xffa"), "00ff61");
        assert_eq!(Encoding::Base64.decode("/wA=").unwrap(), b"\xff\0");
        assert_eq!(Encoding::Text.decode("0xff").unwrap(), b"0xff");
        assert_eq!(Encoding::Text.encode(b"\xff\0"), "base64:/wA=");
        for wrong in ["0", "0g", "+1"] {
            assert!(Encoding::Hex.decode(wrong).is_err(), "{wrong}");
        }
    }
}
