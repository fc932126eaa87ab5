//! Reads what is set: in the file, in the environment, by flags.

use std::path::Path;

use toml::Spanned;
use toml::Value;
use toml::de::{DeTable, DeValue};

use super::PROPERTIES;
use super::keys::{Known, literal};

/// One value that was set somewhere.
pub struct Setting {
    /// Flat, such as `processing.guarantee`.
    pub key: String,
    /// As it was set.
    pub value: Value,
    /// Where, as messages name it.
    pub origin: String,
}

/// Reads the file.
///
/// # Errors
/// A message with the file's name, and the line where it is no TOML.
pub fn file(path: &Path) -> Result<Vec<Setting>, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("cannot read the configuration file {}: {error}", path.display()))?;
    let file = File { name: path.display().to_string(), text: &text };
    let table = DeTable::parse(&text).map_err(|error| {
        let place = error.span().map_or_else(|| file.name.clone(), |span| file.line(span.start));
        format!("{place}: {}", error.message().trim_end())
    })?;
    let mut settings = Vec::new();
    file.settings("", table.into_inner(), &mut settings)?;
    Ok(settings)
}

struct File<'a> {
    name: String,
    text: &'a str,
}

impl File<'_> {
    fn line(&self, at: usize) -> String {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        format!("{}:{}", self.name, 1 + before.iter().filter(|byte| **byte == b'\n').count())
    }

    fn settings(&self, prefix: &str, table: DeTable<'_>, into: &mut Vec<Setting>) -> Result<(), String> {
        for (name, value) in table {
            let origin = self.line(name.span().start);
            let name = name.into_inner();
            let key = if prefix.is_empty() { name.into_owned() } else { format!("{prefix}.{name}") };
            match value.into_inner() {
                DeValue::Table(table) => self.settings(&key, table, into)?,
                value => {
                    let value = plain(value).ok_or_else(|| format!("{origin}: {key} is a number out of range"))?;
                    into.push(Setting { key, value, origin });
                }
            }
        }
        Ok(())
    }
}

/// The value without its places; `None` for a number that no 64 bits hold.
fn plain(value: DeValue<'_>) -> Option<Value> {
    Some(match value {
        DeValue::String(text) => Value::String(text.into_owned()),
        DeValue::Integer(number) => Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok()?),
        DeValue::Float(number) => Value::Float(number.as_str().parse().ok()?),
        DeValue::Boolean(value) => Value::Boolean(value),
        DeValue::Datetime(value) => Value::Datetime(value),
        DeValue::Array(items) => {
            Value::Array(items.into_iter().map(|item| plain(Spanned::into_inner(item))).collect::<Option<_>>()?)
        }
        DeValue::Table(table) => {
            let entry = |(name, value): (Spanned<std::borrow::Cow<'_, str>>, Spanned<DeValue<'_>>)| {
                Some((name.into_inner().into_owned(), plain(value.into_inner())?))
            };
            Value::Table(table.into_iter().map(entry).collect::<Option<_>>()?)
        }
    })
}

/// Reads `TIDEGATE_<SECTION>__<KEY>`; variables without `__` are not of the configuration.
pub fn environment(variables: Vec<(String, String)>, known: &Known, problems: &mut Vec<String>) -> Vec<Setting> {
    let mut settings = Vec::new();
    for (variable, text) in variables {
        let Some(name) = variable.strip_prefix("TIDEGATE_") else { continue };
        if name.contains("__") {
            let key = name.to_ascii_lowercase().replace("__", ".");
            settings.extend(set(key, &text, variable, known, problems));
        } else if let Some(key) = known.names().find(|key| key.replace('.', "_").eq_ignore_ascii_case(name)) {
            let right = key.to_ascii_uppercase().replace('.', "__");
            problems.push(format!("{variable}: did you mean TIDEGATE_{right}?"));
        }
    }
    settings
}

/// Reads flags.
pub fn flags(flags: Vec<(String, String, String)>, known: &Known, problems: &mut Vec<String>) -> Vec<Setting> {
    flags.into_iter().flat_map(|(key, text, origin)| set(key, &text, origin, known, problems)).collect()
}

fn set(key: String, text: &str, origin: String, known: &Known, problems: &mut Vec<String>) -> Vec<Setting> {
    if key == PROPERTIES {
        return properties(text, &origin).unwrap_or_else(|problem| {
            problems.push(problem);
            Vec::new()
        });
    }
    let key = match key.strip_prefix(PROPERTIES).and_then(|rest| rest.strip_prefix('.')) {
        Some(property) => format!("{PROPERTIES}.{}", property.trim_matches(['"', '\''])),
        None => key,
    };
    let value = known.read(&key, text);
    vec![Setting { key, value, origin }]
}

/// A table of properties in one text; the text itself may hold secrets and is not shown.
fn properties(text: &str, origin: &str) -> Result<Vec<Setting>, String> {
    let Some(Value::Table(table)) = literal(text.trim()) else {
        return Err(format!(
            "{origin}: {PROPERTIES} has to be a TOML table such as {{ \"sasl.mechanism\" = \"PLAIN\" }}"
        ));
    };
    let mut flat = std::collections::BTreeMap::new();
    super::flatten(PROPERTIES, table, &mut flat);
    Ok(flat.into_iter().map(|(key, value)| Setting { key, value, origin: origin.to_owned() }).collect())
}
