//! `docs/configuration.md` is the configuration as it is: its keys, defaults and ranges are those that the
//! code tells when it is asked.
//!
//! `UPDATE_DOCS=1` writes the columns `default` and `allowed` anew; the meanings are written by hand.

use std::collections::BTreeSet;

use regex::Regex;
use tidegate::config::Config;
use tidegate::config::load::{LoadOptions, load};
use tidegate::config::units::{parse_bytes, parse_duration};
use toml::{Table, Value};

use crate::docs::read;

const PAGE: &str = "docs/configuration.md";
const ABSENT: &str = "not available in this version";

/// A word that no key takes.
const NONSENSE: &str = "~";

/// The keys with their defaults, in no order that matters.
fn defaults() -> Vec<(String, Value)> {
    fn flatten(prefix: &str, table: Table, into: &mut Vec<(String, Value)>) {
        for (name, value) in table {
            let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
            match value {
                Value::Table(table) if key != "kafka.properties" => flatten(&key, table, into),
                value => into.push((key, value)),
            }
        }
    }
    let mut keys = Vec::new();
    flatten("", Table::try_from(Config::default()).unwrap(), &mut keys);
    keys
}

/// Every key that has a value.
pub fn known_keys() -> BTreeSet<String> {
    defaults().into_iter().map(|(key, _)| key).collect()
}

/// Every key that is refused because its subject does not exist, and that has no value either.
pub fn later_keys() -> BTreeSet<String> {
    let source = read("src/config/load/keys.rs");
    let list = source.split("const LATER: ").nth(1).unwrap().split("];").next().unwrap();
    let names = Regex::new(r#"\("([a-z_.]+)","#).unwrap();
    let names: BTreeSet<String> = names.captures_iter(list).map(|found| found[1].to_owned()).collect();
    names.difference(&known_keys()).cloned().collect()
}

/// What is said against this value; `None` when it is taken.
fn against(key: &str, value: &str) -> Option<String> {
    let settings = vec![(key.to_owned(), value.to_owned(), "--set".to_owned())];
    load(LoadOptions { settings, ..LoadOptions::default() }).err().map(|error| error.to_string())
}

/// What a key takes, in words, found out by trying.
fn allowed(key: &str, default: &Value) -> String {
    let nonsense = against(key, NONSENSE).unwrap_or_default();
    if nonsense.contains(ABSENT) {
        return ABSENT.into();
    }
    match default {
        Value::Boolean(_) => "`true`, `false`".into(),
        Value::Integer(_) | Value::Float(_) => match nonsense.split_once("allowed: ") {
            Some((_, range)) => range.trim().to_owned(),
            None => "a whole number".into(),
        },
        Value::Array(_) => "a list of texts".into(),
        Value::Table(_) => "a table of librdkafka's properties".into(),
        Value::String(text) if parse_duration(text).is_ok() => {
            let above = if against(key, "0s").is_some() { " above 0" } else { "" };
            let off = if against(key, "off").is_none() { ", or `\"off\"`" } else { "" };
            format!("a duration{above}{off}")
        }
        Value::String(text) if parse_bytes(text).is_ok() => {
            format!("a size{}", if against(key, "0").is_some() { " above 0" } else { "" })
        }
        Value::String(text) if text == "off" && against(key, "~").is_some_and(|why| why.contains("a whole number")) => {
            "a whole number, or `\"off\"`".into()
        }
        _ => match nonsense.split_once("unknown variant `~`, expected ") {
            Some((_, words)) => choices(key, words),
            None => "text".into(),
        },
    }
}

/// `"a"`, `"b"`; those that the version does not have apart.
fn choices(key: &str, words: &str) -> String {
    let words =
        Regex::new("`([^`]+)`").unwrap().captures_iter(words).map(|found| found[1].to_owned()).collect::<Vec<_>>();
    assert!(words.len() > 1, "{key}: {words:?}");
    let is_absent = |word: &&String| against(key, word).is_some_and(|text| text.contains(ABSENT));
    let list = |words: Vec<&String>| words.iter().map(|word| format!("`\"{word}\"`")).collect::<Vec<_>>().join(", ");
    let (absent, there): (Vec<&String>, Vec<&String>) = words.iter().partition(is_absent);
    let absent = if absent.is_empty() { String::new() } else { format!("; {ABSENT}: {}", list(absent)) };
    list(there) + &absent
}

/// A row of the reference.
#[derive(Debug)]
struct Row {
    key: String,
    default: String,
    allowed: String,
    meaning: String,
}

impl Row {
    fn read(line: &str) -> Option<Row> {
        let cells: Vec<&str> = line.strip_prefix("| `")?.strip_suffix(" |")?.split(" | ").collect();
        let [key, default, allowed, meaning] = cells[..] else { return None };
        let (key, default) = (key.strip_suffix('`')?, default.strip_prefix('`')?.strip_suffix('`')?);
        let [default, allowed, meaning] = [default, allowed, meaning].map(str::to_owned);
        key.contains('.').then(|| Row { key: key.to_owned(), default, allowed, meaning })
    }
}

#[test]
fn the_reference_is_that_of_the_code() {
    let mut page = read(PAGE);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        for (key, default) in defaults() {
            let row = page.lines().find(|line| Row::read(line).is_some_and(|row| row.key == key)).map(str::to_owned);
            let Some((line, row)) = row.and_then(|line| Some((line.clone(), Row::read(&line)?))) else { continue };
            let new = format!("| `{key}` | `{default}` | {} | {} |", allowed(&key, &default), row.meaning);
            page = page.replacen(&line, &new, 1);
        }
        std::fs::write(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE), &page).unwrap();
    }
    let rows: Vec<Row> = page.lines().filter_map(Row::read).collect();
    let mut wrong = Vec::new();
    for (key, default) in defaults() {
        let (default, allowed) = (default.to_string(), allowed(&key, &default));
        match rows.iter().filter(|row| row.key == key).collect::<Vec<_>>()[..] {
            [row] if (&row.default, &row.allowed) == (&default, &allowed) && row.meaning.len() > 10 => {}
            [row] => wrong.push(format!("{key}: {row:?}, but it is `{default}`, {allowed}")),
            [] => wrong.push(format!("missing: | `{key}` | `{default}` | {allowed} | … |")),
            _ => wrong.push(format!("{key} stands there more than once")),
        }
    }
    let known = known_keys();
    wrong.extend(rows.iter().filter(|row| !known.contains(&row.key)).map(|row| format!("no such key: {}", row.key)));
    assert!(wrong.is_empty(), "{PAGE} (UPDATE_DOCS=1 writes the columns anew):\n{}", wrong.join("\n"));
}

/// The ranges that are told are the ones that hold.
#[test]
fn ranges_end_where_they_say() {
    let to = Regex::new(r"^(\d+)(?: \([^)]*\))? to (\d+)$").unwrap();
    let least = Regex::new(r"^(?:a number of )?at least (\d+)$").unwrap();
    let mut tried = 0;
    for (key, default) in defaults() {
        let allowed = allowed(&key, &default);
        let taken = |value: i128| against(&key, &value.to_string()).is_none();
        let number = |text: &str| text.parse::<i128>().unwrap();
        if let Some(found) = to.captures(&allowed) {
            let (low, high) = (number(&found[1]), number(&found[2]));
            assert!(taken(low) && taken(high), "{key}: {allowed}");
            assert!(!taken(low - 1) && !taken(high + 1), "{key}: {allowed}");
        } else if let Some(found) = least.captures(&allowed) {
            let low = number(&found[1]);
            assert!(taken(low) && !taken(low - 1), "{key}: {allowed}");
        } else {
            continue;
        }
        tried += 1;
    }
    assert!(tried >= 8, "{tried}");
}

/// What does not exist is listed as such, and refused.
#[test]
fn what_is_not_there_is_said_to_be_so() {
    let page = read(PAGE);
    let section = page.split("## Not in this version").nth(1).unwrap();
    let told: BTreeSet<String> =
        Regex::new("`([a-z]+\\.[a-z_.]+)`").unwrap().captures_iter(section).map(|found| found[1].to_owned()).collect();
    assert_eq!(told, later_keys());
    for key in told {
        let said = against(&key, NONSENSE).unwrap_or_default();
        assert!(said.contains(ABSENT), "{key}: {said:?}");
    }
}
