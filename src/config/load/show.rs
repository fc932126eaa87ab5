//! Shows the effective configuration.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::{Loaded, flatten, is_secret, parts, shown};

/// The effective values as TOML, each line with its origin; secrets are masked.
pub fn show(loaded: &Loaded) -> String {
    let table = Table::try_from(&loaded.config).expect("a configuration is TOML");
    let mut flat = BTreeMap::new();
    flatten("", table, &mut flat);
    let mut sections: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, value) in &flat {
        let mut parts = parts(key);
        let name = parts.pop().expect("split gives at least one part");
        let origin = loaded.origins.get(key).map_or("default", String::as_str);
        let line = format!("{} = {}  # {}", quoted(name), masked(key, value), one_line(origin));
        sections.entry(parts.join(".")).or_default().push(line);
    }
    let sections = sections.into_iter().map(|(section, lines)| format!("[{section}]\n{}\n", lines.join("\n")));
    sections.collect::<Vec<_>>().join("\n")
}

/// An empty secret is shown: there is nothing to hide, and much to see.
fn masked(key: &str, value: &Value) -> String {
    match value {
        Value::String(text) if is_secret(key) && text.is_empty() => "\"\"".into(),
        value => shown(key, value),
    }
}

/// Names of files and variables may have any character; a comment ends with its line.
fn one_line(origin: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    origin.chars().map(escaped).collect()
}

fn quoted(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if !name.is_empty() && name.chars().all(bare) {
        return name.to_owned();
    }
    let escaped = |c: char| match c {
        '"' | '\\' => format!("\\{c}"),
        c if c.is_control() => format!("\\u{:04X}", u32::from(c)),
        c => c.to_string(),
    };
    format!("\"{}\"", name.chars().map(escaped).collect::<String>())
}
