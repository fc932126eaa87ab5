//! The documentation names what exists: links, keys, metrics, paths, commands, causes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use regex::Regex;
use tempfile::tempdir;
use tidegate::cause::Cause;

use crate::configuration::{known_keys, later_keys};
use crate::running::run;

/// A file of the repository.
#[track_caller]
pub fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Names of the files in a folder and below it, with `/`.
pub fn files(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root().join(folder)).unwrap().map(Result::unwrap) {
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// What users read, by path.
fn pages() -> BTreeMap<String, String> {
    let pages = files("docs").into_iter().filter(|path| path.ends_with(".md"));
    let pages = pages.chain(["README.md".into(), "benches/README.md".into()]);
    pages.map(|path| (path.clone(), read(&path))).collect()
}

/// All sources of the product in one text.
fn sources() -> String {
    files("src").iter().map(|path| read(path)).collect()
}

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a valid pattern")
}

/// What breaks the rule `is_there` among all matches of `of` (its first group) in all pages.
fn missing(of: &str, mut is_there: impl FnMut(&str) -> bool) -> Vec<String> {
    let of = pattern(of);
    let mut found = 0;
    let mut missing = BTreeSet::new();
    for (path, text) in pages() {
        for name in of.captures_iter(&text).map(|found| found[1].to_owned()) {
            found += 1;
            if !is_there(&name) {
                missing.insert(format!("{path}: {name}"));
            }
        }
    }
    assert!(found > 3, "the pattern {of} finds hardly anything");
    missing.into_iter().collect()
}

// --- links ---------------------------------------------------------------------------------------

/// The text without code.
fn prose(text: &str) -> String {
    let fenced = pattern(r"(?ms)^```.*?^```").replace_all(text, "").into_owned();
    pattern(r"`[^`\n]*`").replace_all(&fenced, "").into_owned()
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let fenced = pattern(r"(?ms)^```.*?^```").replace_all(text, "");
    let mut anchors = BTreeSet::new();
    for heading in fenced.lines().filter(|line| line.starts_with('#')) {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let again = (1..).map(|n| format!("{anchor}-{n}"));
        let free = std::iter::once(anchor.clone()).chain(again).find(|name| !anchors.contains(name));
        anchors.extend(free);
    }
    anchors
}

/// Links of a page that lead nowhere.
fn broken(path: &str, text: &str) -> Vec<String> {
    let folder = Path::new(path).parent().unwrap_or(Path::new(""));
    let mut broken = Vec::new();
    for link in pattern(r"\]\(([^)\s]+)\)").captures_iter(&prose(text)).map(|found| found[1].to_owned()) {
        if link.starts_with("http://") || link.starts_with("https://") {
            continue;
        }
        let (file, anchor) = link.split_once('#').map_or((link.as_str(), None), |(file, at)| (file, Some(at)));
        let target = root().join(folder).join(file);
        if !file.is_empty() && !target.exists() {
            broken.push(format!("{path}: {link}: no such file"));
            continue;
        }
        let Some(anchor) = anchor else { continue };
        let text = if file.is_empty() { text.to_owned() } else { std::fs::read_to_string(target).unwrap() };
        if !anchors(&text).contains(anchor) {
            broken.push(format!("{path}: {link}: no such heading"));
        }
    }
    broken
}

#[test]
fn links_lead_somewhere() {
    let broken: Vec<String> = pages().iter().flat_map(|(path, text)| broken(path, text)).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn a_broken_link_is_found() {
    let text =
        "# A `b` (c): d\n## A\n[x](#a-b-c-d) [x](limits.md) [x](limits.md#numbers) [x](https://x.y/z) `[x](q)`\n";
    assert_eq!(broken("docs/x.md", text), [""; 0]);
    assert_eq!(broken("docs/x.md", "[x](nowhere.md)").len(), 1);
    assert_eq!(broken("docs/x.md", "[x](limits.md#nowhere)").len(), 1);
    assert_eq!(broken("docs/x.md", "# A\n```\n# B\n```\n[x](#b)").len(), 1, "a heading in code is none");
    assert_eq!(broken("README.md", "[x](limits.md)").len(), 1, "relative to the page");
    assert!(anchors("# A\n# A\n").contains("a-1"));
}

// --- names ---------------------------------------------------------------------------------------

#[test]
fn keys_exist() {
    let (known, later) = (known_keys(), later_keys());
    let is_there = |key: &str| {
        let is_it =
            |known: &String| known.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        known.iter().chain(&later).any(is_it) || key.starts_with("kafka.properties.")
    };
    let sections = "application|log|kafka|source|output|processing|cascade|handler|state|server|replay";
    let missing = missing(&format!(r"`((?:{sections})\.[a-z_]+(?:\.[a-z_]+)*)(?: = [^`]*)?`"), is_there);
    assert!(missing.is_empty(), "no such key:\n{}", missing.join("\n"));
}

#[test]
fn variables_exist() {
    let known = known_keys();
    let compose = read("docker/compose.yaml");
    let of = pattern(r"\bTIDEGATE_([A-Z]+(?:__[A-Z_]+)+)\b");
    let texts = pages().into_values().chain([compose]);
    for text in texts {
        for name in of.captures_iter(&text).map(|found| found[1].to_lowercase().replace("__", ".")) {
            assert!(known.contains(&name) || name.starts_with("kafka.properties"), "no such key: {name}");
        }
    }
}

#[test]
fn what_the_image_is_built_from_exists() {
    let ignore = read(".dockerignore");
    let kept: Vec<&str> = ignore.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let missing: Vec<_> = kept.iter().filter(|path| !root().join(path).exists()).collect();
    assert!(missing.is_empty(), "{missing:?}");
    // Cargo wants every target that the manifest names.
    for path in ["Cargo.toml", "Cargo.lock", "build.rs", "proto", "src", "benches/floor.rs", "scripts/install-deps.sh"]
    {
        assert!(kept.contains(&path), "{path}");
    }
}

#[test]
fn metrics_and_headers_exist() {
    let sources = sources();
    let histogram = pattern("_(bucket|sum|count)$");
    let missing = missing(r"\b(tidegate_[a-z_]+)\b", |name| {
        sources.contains(&format!("\"{name}\"")) || sources.contains(&format!("\"{}\"", histogram.replace(name, "")))
    });
    assert!(missing.is_empty(), "no such metric or header:\n{}", missing.join("\n"));
}

#[test]
fn http_paths_exist() {
    let routes: Vec<String> = pattern(r#""(/(?:api/v1/[^"]*|livez|readyz|startupz|metrics))""#)
        .captures_iter(&sources())
        .map(|found| found[1].replace("{*", "{"))
        .collect();
    let parts = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
    let same = |of: &String, part: &String| of == part || of.starts_with('{');
    let is_there = |path: &str| {
        let path = parts(path.trim_end_matches(['/', '.']));
        routes
            .iter()
            .map(|route| parts(route))
            .any(|route| route.len() == path.len() && route.iter().zip(&path).all(|(of, part)| same(of, part)))
    };
    assert!(is_there("/api/v1/keys/123") && !is_there("/api/v1/kees") && !is_there("/api/v1/status/123"));
    let missing = missing(r"(?:^|[\s`(:0-9])(/(?:api/v1/[a-z0-9/{}.-]+|livez|readyz|startupz))", is_there);
    assert!(missing.is_empty(), "no such path:\n{}", missing.join("\n"));
}

#[test]
fn commands_exist() {
    let folder = tempdir().unwrap();
    let mut tried = BTreeMap::new();
    let missing = missing(r"(?m)(?:^|`)tidegate ((?:[a-z][a-z-]*)(?: [a-z][a-z-]*)?)", |command| {
        *tried.entry(command.to_owned()).or_insert_with(|| {
            let mut words: Vec<&str> = command.split(' ').collect();
            words.push("--help");
            run(folder.path(), &words).code == Some(0)
        })
    });
    assert!(missing.is_empty(), "no such command:\n{}", missing.join("\n"));
}

#[test]
fn the_table_of_causes_is_whole() {
    let text = read("docs/concepts.md");
    let table = text.split("| cause | what it means").nth(1).expect("the table is there").split("\n\n").next().unwrap();
    let first = table.lines().skip(2).map(|row| row.split('|').nth(1).unwrap());
    let told: BTreeSet<String> = first
        .flat_map(|cell| pattern("`([a-z_]+)`").captures_iter(cell).map(|of| of[1].to_owned()).collect::<Vec<_>>())
        .collect();
    let there = Cause::ALL.iter().map(|cause| cause.as_str().to_owned());
    assert_eq!(told, there.collect());
}
