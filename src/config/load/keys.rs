//! Which keys there are, and what each of them takes.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::super::Config;
use super::{PROPERTIES, flatten, shown, unflatten};

/// Keys of the documented set whose subject does not exist yet, with the default where it is accepted.
const LATER: &[(&str, Option<&str>)] = &[
    ("processing.standby_replicas", Some("0")),
    ("handler.endpoints", Some("[\"http://127.0.0.1:50051\"]")),
    ("handler.tls", None),
    ("handler.tls.ca", None),
    ("handler.tls.cert", None),
    ("handler.tls.key", None),
    ("replay.postgres", None),
    ("replay.postgres_file", None),
    ("replay.archive", None),
];

/// Values of existing keys whose subject does not exist yet.
const LATER_VALUES: &[(&str, &[&str])] = &[("handler.kind", &["grpc"])];

/// Ranges in words, where the type alone does not tell them.
const RANGES: &[(&str, &str)] = &[
    ("source.epoch", "0 to 255"),
    ("source.max_disorder", "a whole number, or off"),
    ("processing.partitions", "1 to 10000"),
    ("processing.replication_factor", "0 (the broker's default) to 32767"),
    ("processing.max_in_flight", "at least 1"),
    ("processing.threads", "1 to 64"),
    ("cascade.max_depth", "1 to 255"),
    ("cascade.max_children", "1 to 4294967295"),
    ("handler.retry.factor", "a number of at least 1"),
    ("handler.retry.attempts", "1 to 4294967295"),
];

/// What the key takes, in words.
pub fn range(key: &str) -> Option<&'static str> {
    RANGES.iter().find(|(name, _)| *name == key).map(|(_, range)| *range)
}

/// The keys that exist.
pub struct Known {
    defaults: BTreeMap<String, Value>,
}

impl Known {
    /// All keys with their defaults.
    pub fn new() -> Known {
        let table = Table::try_from(Config::default()).expect("the default configuration is TOML");
        let mut defaults = BTreeMap::new();
        flatten("", table, &mut defaults);
        Known { defaults }
    }

    /// By flat key; without `kafka.properties`.
    pub fn defaults(&self) -> &BTreeMap<String, Value> {
        &self.defaults
    }

    /// A text as the key takes it: as it is where that is a text, else as TOML; lists also as `a,b`.
    /// What cannot be read stays a text, for a message that says what is expected.
    pub fn read(&self, key: &str, text: &str) -> Value {
        let default = match LATER.iter().find(|(name, _)| *name == key) {
            Some((_, default)) => default.and_then(literal),
            None => self.defaults.get(key).cloned(),
        };
        match default {
            Some(Value::Array(_)) => literal(text).filter(Value::is_array).unwrap_or_else(|| {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Value::Array(items.map(|item| Value::String(item.to_owned())).collect())
            }),
            Some(Value::Integer(_) | Value::Float(_) | Value::Boolean(_)) => {
                literal(text).filter(|value| !value.is_str()).unwrap_or_else(|| Value::String(text.to_owned()))
            }
            _ => Value::String(text.to_owned()),
        }
    }

    /// Every key that can be set.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.defaults.keys().map(String::as_str).chain([PROPERTIES]).chain(LATER.iter().map(|(name, _)| *name))
    }

    /// The value as it is merged; `None` where it is that of a key without effect yet.
    ///
    /// # Errors
    /// A message that names key, value, origin, and what is allowed.
    pub fn accept(&self, key: &str, value: Value, origin: &str) -> Result<Option<Value>, String> {
        if let Some((_, default)) = LATER.iter().find(|(name, _)| *name == key) {
            return match default.and_then(literal) {
                Some(default) if default == value => Ok(None),
                _ => Err(format!("{origin}: {key} is not available in this version")),
            };
        }
        if let Some(property) = key.strip_prefix(PROPERTIES).and_then(|rest| rest.strip_prefix('.')) {
            return match value {
                _ if property.is_empty() => Err(format!("{origin}: {PROPERTIES} has a property without a name")),
                Value::String(_) => Ok(Some(value)),
                Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => Ok(Some(Value::String(value.to_string()))),
                _ => Err(format!("{origin}: {key} = {} has to be a text", shown(key, &value))),
            };
        }
        if !self.defaults.contains_key(key) {
            return Err(self.unknown(key, origin));
        }
        let later = LATER_VALUES.iter().find(|(name, _)| *name == key);
        if later.is_some_and(|(_, words)| value.as_str().is_some_and(|value| words.contains(&value))) {
            return Err(format!("{origin}: {key} = {value} is not available in this version"));
        }
        let alone = unflatten(&BTreeMap::from([(key.to_owned(), value.clone())]));
        match alone.try_into::<Config>() {
            Ok(_) => Ok(Some(value)),
            Err(error) => {
                let what = match range(key) {
                    Some(range) => format!("allowed: {range}"),
                    None => error.message().trim_end().to_owned(),
                };
                Err(format!("{origin}: {key} = {}: {what}", shown(key, &value)))
            }
        }
    }

    fn unknown(&self, key: &str, origin: &str) -> String {
        if self.names().any(|name| name.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'))) {
            return format!("{origin}: {key} is a section, not a value");
        }
        let name = key.rsplit('.').next().unwrap_or(key);
        let score = |known: &&str| {
            let its_name = known.rsplit('.').next().unwrap_or(known);
            let in_other_section = if its_name == name { 0.9 } else { 0.0 };
            strsim::jaro_winkler(key, known).max(in_other_section)
        };
        let nearest = self.names().max_by(|a, b| score(a).total_cmp(&score(b)));
        match nearest.filter(|nearest| score(nearest) > 0.8) {
            Some(nearest) => format!("{origin}: unknown key {key}; did you mean {nearest}?"),
            None => format!("{origin}: unknown key {key}; `tidegate config show` lists all keys"),
        }
    }
}

/// One TOML value.
pub fn literal(text: &str) -> Option<Value> {
    let mut table: Table = toml::from_str(&format!("value = {text}")).ok()?;
    if table.len() == 1 { table.remove("value") } else { None }
}
