//! Dashboard, alerts and documentation name the metrics that an instance really has, and all of them.

use std::collections::BTreeSet;

use regex::Regex;
use serde_json::Value;
use tempfile::tempdir;

use crate::docs::read;
use crate::running::{Running, eventually};

const DASHBOARD: &str = "docker/grafana/dashboards/tidegate.json";
const ALERTS: &str = "docker/prometheus/alerts.yml";

fn all(pattern: &str, text: &str) -> BTreeSet<String> {
    Regex::new(pattern).unwrap().captures_iter(text).map(|found| found[1].to_owned()).collect()
}

/// The names in a text; a histogram's series count as the histogram.
fn named(text: &str) -> BTreeSet<String> {
    let names = all(r"\b((?:tidegate|process)_[a-z_]+)", text).into_iter();
    let series = Regex::new("_seconds_(?:bucket|sum|count)$|_depth_(?:bucket|sum|count)$").unwrap();
    let stem = |name: String| match series.is_match(&name) {
        true => name.rsplit_once('_').unwrap().0.to_owned(),
        false => name,
    };
    names.map(stem).collect()
}

/// Every expression of the dashboard.
fn expressions(value: &Value) -> Vec<String> {
    match value {
        Value::Object(fields) => {
            let own = ["expr", "definition"].iter().filter_map(|name| fields.get(*name)?.as_str()).map(str::to_owned);
            own.chain(fields.values().flat_map(expressions)).collect()
        }
        Value::Array(items) => items.iter().flat_map(expressions).collect(),
        _ => Vec::new(),
    }
}

/// The page of an instance that has done something.
fn scraped() -> String {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    instance.send("{\"key\":\"1\",\"action\":\"ADD\"}");
    instance.holds("1", "ADD");
    // The lag is measured every five seconds.
    eventually("the lag is told", || {
        let (_, page) = instance.get_text("/metrics");
        page.contains("tidegate_consumer_lag_records{topic=\"events\"").then_some(page)
    })
}

#[test]
fn dashboard_alerts_and_docs_name_what_is_exported() {
    let page = scraped();
    let exported = all(r"(?m)^# TYPE (\S+) ", &page);
    let own: BTreeSet<String> = exported.iter().filter(|name| name.starts_with("tidegate_")).cloned().collect();
    assert!(own.len() > 20, "{own:?}");

    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let expressions = expressions(&dashboard);
    let shown: BTreeSet<String> = expressions.iter().flat_map(|expression| named(expression)).collect();
    let watched: BTreeSet<String> = all(r"(?m)^ +(?:- )?expr: ([^|\n]+(?:\n {12,}.*)*)", &read(ALERTS))
        .iter()
        .flat_map(|text| named(text))
        .collect();
    let watched_too: BTreeSet<String> =
        all(r"expr: \|\n((?: {10,}.*\n)+)", &read(ALERTS)).iter().flat_map(|text| named(text)).collect();
    let operations = read("docs/operations.md");
    let table = operations.split("\n## Metrics").nth(1).unwrap().split("\n## ").next().unwrap();
    let first: String = table.lines().filter_map(|line| line.split('|').nth(1)).collect();
    let documented = named(&first);

    for (what, names) in [("dashboard", &shown), ("alerts", &watched), ("alerts", &watched_too), ("docs", &documented)]
    {
        assert!(names.len() > 3, "{what}: {names:?}");
        let unknown: Vec<_> = names.difference(&exported).collect();
        assert!(unknown.is_empty(), "{what}: nobody exports {unknown:?}");
    }
    let unseen: Vec<_> = own.difference(&shown).collect();
    assert!(unseen.is_empty(), "not on the dashboard: {unseen:?}");
    let unsaid: Vec<_> = own.difference(&documented).collect();
    assert!(unsaid.is_empty(), "not in docs/operations.md: {unsaid:?}");

    // Labels: those of Prometheus apart, each one has to exist.
    let rules = read(ALERTS);
    let given = ["job", "instance", "le"].map(str::to_owned);
    let there: BTreeSet<String> = all(r#"[{,]([a-z_]+)=""#, &page).into_iter().chain(given).collect();
    for text in expressions.iter().chain([&rules]) {
        let by = all(r"\bby \(([^)]*)\)", text);
        let by = by.iter().flat_map(|list| list.split(", ").map(str::to_owned));
        let matched = all(r#"(?:tidegate|process)_[a-z_]+\{([^}]*)\}"#, text);
        let matched = matched.iter().flat_map(|list| all(r#"([a-z_]+)(?:=~|!=|=)""#, list));
        for label in by.chain(matched) {
            assert!(there.contains(&label), "no metric has the label {label:?}: {text}");
        }
    }
}

#[test]
fn every_first_of_a_kind_is_an_increase() {
    let page = scraped();
    for line in [
        "tidegate_dead_letters_total{cause=\"exhausted\"} 0",
        "tidegate_handler_retries_total{cause=\"timeout\"} 0",
        "tidegate_transaction_aborts_total{reason=\"unknown\"} 0",
        "tidegate_rebalances_total{phase=\"lost\"} 0",
        "tidegate_ready 1",
        "tidegate_tasks{role=\"task\",state=\"running\"} 4",
        "tidegate_tasks{role=\"task\",state=\"closing\"} 0",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }
}

#[test]
fn retries_are_counted_by_what_failed() {
    let folder = tempdir().unwrap();
    let settings = ["--set", "handler.timeout=100ms", "--set", "handler.retry.initial=1ms"];
    let instance = Running::start(folder.path(), &settings);
    for how in ["retry", "timeout", "panic"] {
        instance.send(&format!(
            r#"{{"key":"{how}","action":"ADD","payload":{{"value":"done","fail":{{"times":2,"how":"{how}"}}}}}}"#
        ));
        instance.holds(how, "ADD");
    }
    let (_, page) = instance.get_text("/metrics");
    for cause in ["failure", "timeout", "panic"] {
        let line = format!("tidegate_handler_retries_total{{cause=\"{cause}\"}} 2");
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }
}

#[test]
fn every_alert_is_explained_and_tested() {
    let alerts = all(r"(?m)^ +- alert: (\w+)$", &read(ALERTS));
    assert!(alerts.len() > 8, "{alerts:?}");
    assert_eq!(alerts, all(r"(?m)^### (Tidegate\w+)$", &read("docs/operations.md")));
    assert_eq!(alerts, all(r"alertname: (\w+)", &read("docker/prometheus/alerts_test.yml")));
}

#[test]
fn panels_have_their_own_place_and_number() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let number = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(number("x") + number("w") <= 24, "{panel}");
        for x in number("x")..number("x") + number("w") {
            for y in number("y")..number("y") + number("h") {
                assert!(places.insert((x, y)), "{} covers another panel", panel["title"]);
            }
        }
    }
    assert!(ids.len() > 20);
}
