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
        let line = format!("{} = {}  # {origin}", quoted(name), masked(key, value));
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

fn quoted(name: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if name.chars().all(bare) { name.to_owned() } else { Value::String(name.to_owned()).to_string() }
}
