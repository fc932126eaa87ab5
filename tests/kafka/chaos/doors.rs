//! What an instance tells of the whole state, its own keys and those of others.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::Value;
use tidegate::event::Action;
use tidegate::reference::Held;

use crate::cluster::app::Instance;

fn text(bytes: &Bytes) -> &str {
    std::str::from_utf8(bytes).expect("keys and values of the load are text")
}

/// An entry as an answer has it: key, stamp, action and value.
type Told = (String, String, String, Option<String>);

fn told(entry: &Value) -> Told {
    let field = |name: &str| entry[name].as_str().map(str::to_owned);
    let has = |name: &str| field(name).unwrap_or_else(|| panic!("no {name}: {entry}"));
    (has("key"), has("stamp"), has("action"), field("value"))
}

/// All pages, in the order in which they come.
fn pages(instance: &Instance<'_>, query: &str) -> Vec<Told> {
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let page = instance.page(&format!("/api/v1/keys?limit=100{query}{after}"));
        let (200, page) = page.as_ref().expect("an answer") else { panic!("{page:?}") };
        let page: Value = serde_json::from_str(page).expect("JSON");
        all.extend(page["entries"].as_array().expect("entries").iter().map(told));
        let Some(next) = page["next"].as_str() else { return all };
        after = format!("&after={next}");
    }
}

/// Every key by itself, and the lists: exactly `state`.
pub fn tell(instance: &Instance<'_>, state: &BTreeMap<Bytes, Held>) {
    let expected: Vec<Told> = state
        .iter()
        .map(|(key, (stamp, action, value))| {
            let value = value.as_ref().map(|value| text(value).to_owned());
            (text(key).to_owned(), stamp.to_string(), action.as_str().to_owned(), value)
        })
        .collect();
    assert!(expected.len() > 100, "the load has hundreds of keys: {}", expected.len());
    assert_eq!(pages(instance, "&removed=true"), expected, "the list with removed keys");
    let added: Vec<Told> = expected.iter().filter(|told| told.2 == Action::Add.as_str()).cloned().collect();
    assert_eq!(pages(instance, ""), added, "the list");
    for one in expected {
        let answer = instance.get(&format!("/api/v1/keys/{}", one.0));
        assert_eq!(answer.as_ref().map(told), Some(one), "{answer:?}");
    }
    let unknown = instance.page("/api/v1/keys/never-sent").expect("an answer");
    assert_eq!(unknown.0, 404, "{}", unknown.1);
}
