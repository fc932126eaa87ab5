//! The handler `rules`: a TOML file says what each kind of event leads to.
//!
//! ```toml
//! [[rule]]
//! when = { key_regex = "^order-(\\d+)$", action = "ADD" }   # all conditions hold; none = every event
//! work = "1100ms"                                           # a wait
//! spawn = [{ key = "invoice-${1}", action = "ADD", payload = "for ${key}" }]
//! ```
//!
//! The first matching rule applies; the value is the payload. Where none matches the event is echoed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use regex::bytes::{Captures, Regex};
use serde::Deserialize;

use super::{Context, Failure, Handler, Outcome};
use crate::config::units::duration;
use crate::event::{Action, Event};

/// The rules file is broken.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// It cannot be read.
    #[error("cannot read the rules file {}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is no TOML, or has something other than rules in it.
    #[error("rules file {}: {message}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line.
        message: String,
    },
    /// One rule is wrong.
    #[error("rules file {}, rule {number}: {message}", path.display())]
    Rule {
        /// The file.
        path: PathBuf,
        /// From 1, in the order of the file.
        number: usize,
        /// What is wrong.
        message: String,
    },
}

/// The rules of one file, ready to be applied.
#[derive(Clone, Debug)]
pub struct Rules {
    rules: Vec<Rule>,
    waits: bool,
}

#[derive(Clone, Debug)]
struct Rule {
    key: KeyCondition,
    action: Option<Action>,
    work: Duration,
    spawn: Vec<Spawn>,
}

#[derive(Clone, Debug)]
enum KeyCondition {
    Any,
    Equal(String),
    Prefix(String),
    Matches(Regex),
}

#[derive(Clone, Debug)]
struct Spawn {
    key: Template,
    action: Action,
    payload: Option<Template>,
}

impl Rules {
    /// Reads a rules file; regexes are compiled here, once.
    ///
    /// # Errors
    /// [`RulesError`], which names the file and the rule.
    pub fn read(path: &Path) -> Result<Rules, RulesError> {
        let text =
            std::fs::read_to_string(path).map_err(|error| RulesError::Unreadable { path: path.to_owned(), error })?;
        Rules::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Rules, RulesError> {
        let malformed = |error: toml::de::Error| RulesError::Malformed {
            path: path.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        };
        let file: File = toml::from_str(text).map_err(malformed)?;
        let read = |(index, raw): (usize, toml::Value)| {
            raw.try_into::<RawRule>()
                .map_err(|error| error.to_string().trim_end().to_owned())
                .and_then(Rule::new)
                .map_err(|message| RulesError::Rule { path: path.to_owned(), number: index + 1, message })
        };
        let rules = file.rule.into_iter().enumerate().map(read).collect::<Result<_, _>>()?;
        Ok(Rules { rules, waits: true })
    }

    /// The same outcomes, at once: what the serial reference calls.
    pub fn without_waits(self) -> Rules {
        Rules { waits: false, ..self }
    }

    fn outcome(&self, event: &Event) -> (Duration, Vec<Event>) {
        for rule in &self.rules {
            if rule.action.is_some_and(|action| action != event.action) {
                continue;
            }
            let captures = match &rule.key {
                KeyCondition::Any => None,
                KeyCondition::Equal(key) if event.key == key.as_bytes() => None,
                KeyCondition::Prefix(prefix) if event.key.starts_with(prefix.as_bytes()) => None,
                KeyCondition::Matches(regex) => match regex.captures(&event.key) {
                    Some(captures) => Some(captures),
                    None => continue,
                },
                KeyCondition::Equal(_) | KeyCondition::Prefix(_) => continue,
            };
            let children = rule.spawn.iter().map(|spawn| Event {
                key: spawn.key.fill(&event.key, captures.as_ref()),
                action: spawn.action,
                payload: spawn.payload.as_ref().map(|payload| payload.fill(&event.key, captures.as_ref())),
            });
            return (rule.work, children.collect());
        }
        (Duration::ZERO, Vec::new())
    }
}

impl Handler for Rules {
    async fn handle(&self, event: Event, _context: Context) -> Result<Outcome, Failure> {
        let (work, children) = self.outcome(&event);
        if self.waits && !work.is_zero() {
            tokio::time::sleep(work).await;
        }
        Ok(Outcome { value: event.payload, children })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rule: Vec<toml::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    #[serde(default)]
    when: RawWhen,
    #[serde(default, with = "duration")]
    work: Duration,
    #[serde(default)]
    spawn: Vec<RawSpawn>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawWhen {
    key: Option<String>,
    key_prefix: Option<String>,
    key_regex: Option<String>,
    action: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSpawn {
    key: String,
    action: String,
    payload: Option<String>,
}

impl Rule {
    fn new(raw: RawRule) -> Result<Rule, String> {
        let key = match (raw.when.key, raw.when.key_prefix, raw.when.key_regex) {
            (None, None, None) => KeyCondition::Any,
            (Some(key), None, None) => KeyCondition::Equal(key),
            (None, Some(prefix), None) => KeyCondition::Prefix(prefix),
            (None, None, Some(regex)) => {
                KeyCondition::Matches(Regex::new(&regex).map_err(|error| format!("key_regex: {error}"))?)
            }
            _ => return Err("when has more than one of key, key_prefix, key_regex".into()),
        };
        let regex = if let KeyCondition::Matches(regex) = &key { Some(regex) } else { None };
        let spawn = |(index, raw): (usize, RawSpawn)| {
            Spawn::new(raw, regex).map_err(|message| format!("spawn {}: {message}", index + 1))
        };
        let spawn = raw.spawn.into_iter().enumerate().map(spawn).collect::<Result<_, _>>()?;
        let action = raw.when.action.as_deref().map(action).transpose()?;
        Ok(Rule { key, action, work: raw.work, spawn })
    }
}

impl Spawn {
    fn new(raw: RawSpawn, regex: Option<&Regex>) -> Result<Spawn, String> {
        if raw.key.is_empty() {
            return Err("the key is empty".into());
        }
        Ok(Spawn {
            key: Template::new(&raw.key, regex)?,
            action: action(&raw.action)?,
            payload: raw.payload.map(|payload| Template::new(&payload, regex)).transpose()?,
        })
    }
}

fn action(text: &str) -> Result<Action, String> {
    Action::parse(text.as_bytes()).ok_or_else(|| format!("unknown action {text:?}: expected ADD or REMOVE"))
}

/// A text with places for the event's key and the regex's groups; `$${` stands for `${`.
#[derive(Clone, Debug)]
struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Literal(String),
    Key,
    Group(usize),
}

impl Template {
    fn new(text: &str, regex: Option<&Regex>) -> Result<Template, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(start) = rest.find("${") {
            if let Some(literal) = rest[..start].strip_suffix('$') {
                parts.push(Part::Literal(format!("{literal}${{")));
                rest = &rest[start + 2..];
                continue;
            }
            let end = rest[start..].find('}').ok_or_else(|| format!("{text:?}: ${{ without }}"))? + start;
            parts.push(Part::Literal(rest[..start].to_owned()));
            parts.push(Part::named(&rest[start + 2..end], regex).map_err(|message| format!("{text:?}: {message}"))?);
            rest = &rest[end + 1..];
        }
        parts.push(Part::Literal(rest.to_owned()));
        parts.retain(|part| *part != Part::Literal(String::new()));
        Ok(Template(parts))
    }

    fn fill(&self, key: &Bytes, captures: Option<&Captures<'_>>) -> Bytes {
        if let [Part::Key] = self.0[..] {
            return key.clone();
        }
        let mut filled = Vec::new();
        for part in &self.0 {
            match part {
                Part::Literal(text) => filled.extend_from_slice(text.as_bytes()),
                Part::Key => filled.extend_from_slice(key),
                Part::Group(group) => {
                    let group = captures.and_then(|captures| captures.get(*group));
                    filled.extend_from_slice(group.map_or(b"".as_slice(), |group| group.as_bytes()));
                }
            }
        }
        filled.into()
    }
}

impl Part {
    fn named(name: &str, regex: Option<&Regex>) -> Result<Part, String> {
        if name == "key" {
            return Ok(Part::Key);
        }
        let Some(regex) = regex else {
            return Err(format!("unknown ${{{name}}}: without key_regex there is only ${{key}}"));
        };
        let group = match name.parse::<usize>() {
            Ok(number) => Some(number).filter(|number| *number < regex.captures_len()),
            Err(_) => regex.capture_names().position(|group| group == Some(name)),
        };
        group.map(Part::Group).ok_or_else(|| format!("unknown ${{{name}}}: key_regex has no such group"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::builtin::tests::{at_once, attempt, event};
    use super::*;

    fn parse(text: &str) -> Result<Rules, RulesError> {
        Rules::parse(text, Path::new("rules.toml"))
    }

    fn children(rules: &Rules, key: &str, action: Action) -> Vec<Event> {
        at_once(rules, event(key, action, None), attempt(1)).expect("does not wait").unwrap().children
    }

    #[test]
    fn the_first_matching_rule_applies() {
        let rules = parse(
            r#"
            [[rule]]
            when = { key = "123", action = "ADD" }
            spawn = [{ key = "234", action = "REMOVE", payload = "of ${key}" }]
            [[rule]]
            when = { key_prefix = "12" }
            spawn = [{ key = "${key}-x", action = "add" }, { key = "${key}", action = "ADD" }]
            "#,
        )
        .unwrap();
        assert_eq!(children(&rules, "123", Action::Add), [event("234", Action::Remove, Some("of 123"))]);
        assert_eq!(
            children(&rules, "123", Action::Remove),
            [event("123-x", Action::Add, None), event("123", Action::Add, None)]
        );
        assert_eq!(children(&rules, "9", Action::Add), []);
        let outcome = at_once(&rules, event("9", Action::Add, Some("p")), attempt(1)).unwrap().unwrap();
        assert_eq!(outcome.value.as_deref(), Some(&b"p"[..]));
    }

    #[test]
    fn groups_fill_templates() {
        let rules = parse(
            r#"
            [[rule]]
            when = { key_regex = '^order-(\d+)(?P<tail>-.*)?$' }
            spawn = [{ key = "${1}${tail}$${1}", action = "ADD", payload = "${0}$" }]
            "#,
        )
        .unwrap();
        assert_eq!(children(&rules, "order-7-eu", Action::Add), [event("7-eu${1}", Action::Add, Some("order-7-eu$"))]);
        assert_eq!(children(&rules, "order-7", Action::Add), [event("7${1}", Action::Add, Some("order-7$"))]);
        assert_eq!(children(&rules, "order-x", Action::Add), []);
    }

    #[test]
    fn a_rule_without_conditions_takes_every_event() {
        let rules = parse("[[rule]]\nspawn = [{ key = \"log\", action = \"ADD\" }]").unwrap();
        assert_eq!(children(&rules, "anything", Action::Remove).len(), 1);
        assert_eq!(children(&parse("").unwrap(), "anything", Action::Add), []);
    }

    #[test]
    fn work_waits_unless_it_is_left_out() {
        let rules = parse("[[rule]]\nwork = \"1100ms\"").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        assert!(at_once(&rules, event("k", Action::Add, None), attempt(1)).is_none());
        assert!(at_once(&rules.without_waits(), event("k", Action::Add, None), attempt(1)).is_some());
    }

    #[test]
    fn errors_name_the_file_and_the_rule() {
        for (text, part) in [
            ("[[rule", "rules.toml: "),
            ("[[rules]]", "unknown field `rules`"),
            ("[[rule]]\n[[rule]]\nwhen = { key_regex = '(' }", "rule 2: key_regex"),
            ("[[rule]]\nwhen = { kye = '1' }", "rule 1: unknown field `kye`"),
            ("[[rule]]\nwhen = { key = '1', key_prefix = '1' }", "more than one of"),
            ("[[rule]]\nwhen = { action = 'PUT' }", "unknown action \"PUT\""),
            ("[[rule]]\nwork = '5'", "rule 1: not a duration"),
            ("[[rule]]\nspawn = [{ key = '1' }]", "missing field `action`"),
            ("[[rule]]\nspawn = [{ key = '', action = 'ADD' }]", "spawn 1: the key is empty"),
            ("[[rule]]\nspawn = [{ key = '${1}', action = 'ADD' }]", "without key_regex"),
            ("[[rule]]\nspawn = [{ key = '${key', action = 'ADD' }]", "without }"),
            ("[[rule]]\nwhen = { key_regex = 'a' }\nspawn = [{ key = '${1}', action = 'ADD' }]", "no such group"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("rules.toml"), "{text}: {error}");
        }
    }
}
