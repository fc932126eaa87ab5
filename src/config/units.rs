//! Durations (`100ms`, `30s`, `24h`) and sizes (`256MiB`) as the configuration writes them.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// A duration such as `100ms`, `1s 500ms` or `24h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text.trim())
        .map_err(|error| format!("not a duration: {text:?} ({error}; write for example 100ms, 30s, 24h)"))
}

/// A size such as `512`, `64KiB`, `256MiB`, `1GiB`, `10MB`.
pub fn parse_bytes(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: usize = match unit.trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(format!("not a size: {text:?} (write for example 512KiB, 256MiB, 1GiB)")),
    };
    let number: usize = number.parse().map_err(|_| format!("not a size: {text:?} (write for example 256MiB)"))?;
    number.checked_mul(factor).ok_or_else(|| format!("size out of range: {text:?}"))
}

/// The shortest exact form, as `parse_bytes` reads it.
pub fn format_bytes(bytes: usize) -> String {
    match bytes {
        0 => "0".into(),
        _ if bytes.is_multiple_of(1 << 30) => format!("{}GiB", bytes >> 30),
        _ if bytes.is_multiple_of(1 << 20) => format!("{}MiB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{}KiB", bytes >> 10),
        _ => bytes.to_string(),
    }
}

/// serde for durations.
pub mod duration {
    use super::*;

    /// Writes `100ms`.
    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*value))
    }

    /// Reads `100ms`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        parse_duration(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// serde for durations that can be `off`.
pub mod optional_duration {
    use super::*;

    /// Writes `30s` or `off`.
    pub fn serialize<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(&humantime::format_duration(*value)),
            None => serializer.serialize_str("off"),
        }
    }

    /// Reads `30s` or `off`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        match String::deserialize(deserializer)?.trim() {
            "off" => Ok(None),
            text => parse_duration(text).map(Some).map_err(D::Error::custom),
        }
    }
}

/// serde for numbers that can be `off`.
pub mod optional_number {
    use super::*;

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Value {
        Number(u64),
        Text(String),
    }

    /// Writes `1000` or `off`.
    pub fn serialize<S: Serializer>(value: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.serialize_u64(*value),
            None => serializer.serialize_str("off"),
        }
    }

    /// Reads `1000` or `off`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Number(number) => Ok(Some(number)),
            Value::Text(text) if text.trim() == "off" => Ok(None),
            Value::Text(text) => {
                text.trim().parse().map(Some).map_err(|_| D::Error::custom(format!("not a number: {text:?}")))
            }
        }
    }
}

/// serde for sizes: a string with a unit, or a number of bytes.
pub mod bytes {
    use super::*;

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Size {
        Number(usize),
        Text(String),
    }

    /// Writes `256MiB`.
    pub fn serialize<S: Serializer>(value: &usize, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_bytes(*value))
    }

    /// Reads `256MiB` or `268435456`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
        match Size::deserialize(deserializer)? {
            Size::Number(number) => Ok(number),
            Size::Text(text) => parse_bytes(&text).map_err(D::Error::custom),
        }
    }
}
