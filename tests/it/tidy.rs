//! The house rules, as a test of the code itself.
//!
//! Each rule is a function from the sources to what breaks it, with a test below that plants a
//! violation, so that the rule can be seen to fail. `the_code_is_tidy` runs all of them on the tree.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use regex::Regex;

/// The modules of `src/` in the order of `lib.rs`, with their layer. A module may import from
/// earlier layers only; layer 0 also from itself.
const LAYERS: [&[&str]; 7] = [
    &[
        "stamp",
        "event",
        "entry",
        "topics",
        "clock",
        "config",
        "metrics",
        "proto",
        "counts",
        "marks",
        "retry",
        "bookkeeping",
        "dead_letter",
        "cause",
        "json",
        "planted",
    ],
    &["log", "store", "handler"],
    &["sequencer", "changelog", "progress", "output", "frontier", "reference"],
    &["task"],
    &["instance"],
    &["server"],
    &["api", "replay", "console", "cli"],
];

const MAX_LINES: usize = 500;

const BANNED_NAMES: [&str; 9] = ["util", "utils", "helper", "helpers", "common", "manager", "misc", "impl", "impls"];

type Rule = fn(&[Source]) -> Vec<String>;

const RULES: [(&str, Rule); 10] = [
    ("imports run one way", imports_run_one_way),
    ("lib.rs tells the layers in order", lib_lists_the_layers),
    ("files have a head and are short", heads_and_lengths),
    ("foreign systems have one place", foreign_systems_have_one_place),
    ("metric names stand in metrics.rs", metric_names_stand_in_one_file),
    ("time is asked in clock.rs", time_is_asked_in_one_file),
    ("unsafe stands in log/kafka/native", unsafe_stands_in_one_file),
    ("names say something", names_say_something),
    ("nothing is left over", nothing_is_left_over),
    ("the eight steps are there", the_eight_steps_are_there),
];

#[test]
fn the_code_is_tidy() {
    let sources = tree();
    assert!(sources.len() > 20, "found only {} files", sources.len());
    let broken: Vec<String> = RULES
        .iter()
        .flat_map(|(name, rule)| rule(&sources).into_iter().map(move |what| format!("[{name}] {what}")))
        .chain(texts().iter().flat_map(words_of_the_product))
        .collect();
    assert!(broken.is_empty(), "{} violations:\n{}", broken.len(), broken.join("\n"));
}

// --- the rules ---------------------------------------------------------------------------------

fn imports_run_one_way(sources: &[Source]) -> Vec<String> {
    let mut broken = Vec::new();
    for source in product(sources) {
        let Some(own) = source.module() else { continue };
        let Some(layer) = layer_of(own) else {
            broken.push(format!("{}: module `{own}` has no layer in tests/it/tidy.rs", source.path));
            continue;
        };
        for (line, name) in imports(&source.code) {
            let allowed = match layer_of(&name) {
                _ if name == own => true,
                Some(other) => other < layer || (other == 0 && layer == 0),
                None => false,
            };
            if !allowed {
                broken.push(format!("{}:{line}: `{own}` (layer {layer}) uses `{name}`", source.path));
            }
        }
        // In src/a.rs one `super` is the root, in src/a/b.rs two are.
        let escape = format!("use {}", "super::".repeat(source.path.matches('/').count()));
        for (line, text) in source.lines().filter(|(_, text)| text.starts_with(&escape)) {
            broken.push(format!("{}:{line}: leaves its module by `{}`", source.path, text.trim()));
        }
    }
    broken
}

fn lib_lists_the_layers(sources: &[Source]) -> Vec<String> {
    let Some(lib) = sources.iter().find(|source| source.path == "src/lib.rs") else {
        return vec!["no src/lib.rs".into()];
    };
    let declaration = Regex::new(r"(?m)^(?:pub(?:\([a-z]+\))? )?mod ([a-z_]+);").expect("a valid pattern");
    let listed: Vec<&str> =
        declaration.captures_iter(&lib.code).map(|found| found.get(1).expect("one group").as_str()).collect();
    let mut broken = Vec::new();
    let mut highest = 0;
    for name in &listed {
        match layer_of(name) {
            None => broken.push(format!("src/lib.rs: `{name}` has no layer")),
            Some(layer) if layer < highest => {
                broken.push(format!("src/lib.rs: `{name}` (layer {layer}) after layer {highest}"));
            }
            Some(layer) => highest = layer,
        }
    }
    let there: BTreeSet<&str> = product(sources).filter_map(Source::module).collect();
    broken.extend(there.iter().filter(|name| !listed.contains(name)).map(|name| format!("src/lib.rs lacks `{name}`")));
    broken
}

fn heads_and_lengths(sources: &[Source]) -> Vec<String> {
    let mut broken = Vec::new();
    for source in product(sources) {
        if !source.text.starts_with("//! ") {
            broken.push(format!("{}: does not begin with a `//!` head", source.path));
        }
        let lines = source.code.trim_end().lines().count();
        if lines > MAX_LINES {
            broken.push(format!("{}: {lines} lines before its tests, at most {MAX_LINES}", source.path));
        }
    }
    broken
}

fn foreign_systems_have_one_place(sources: &[Source]) -> Vec<String> {
    const PLACES: [(&[&str], &[&str]); 2] = [
        (&["rdkafka", "rdkafka_sys"], &["src/log/kafka.rs", "src/log/kafka/"]),
        (&["rocksdb", "librocksdb_sys"], &["src/store.rs", "src/store/", "src/log/embedded.rs", "src/log/embedded/"]),
    ];
    let mut broken = Vec::new();
    for (names, places) in PLACES {
        for source in product(sources).filter(|source| !source.is_in(places)) {
            for (line, word) in words(&source.code).filter(|(_, word)| names.contains(word)) {
                broken.push(format!("{}:{line}: names `{word}`, which belongs in {}", source.path, places.join(", ")));
            }
        }
    }
    broken
}

fn metric_names_stand_in_one_file(sources: &[Source]) -> Vec<String> {
    const PLACE: [&str; 2] = ["src/metrics.rs", "src/metrics/"];
    let macros = Regex::new(r"\b(?:describe_)?(?:counter|gauge|histogram)!").expect("a valid pattern");
    let names: BTreeSet<&str> = product(sources)
        .filter(|source| source.is_in(&PLACE))
        .flat_map(|source| &source.strings)
        .map(|(_, text)| text.as_str())
        .filter(|text| text.starts_with("tidegate_"))
        .collect();
    let mut broken = Vec::new();
    for source in product(sources).filter(|source| !source.is_in(&PLACE)) {
        for (line, text) in source.lines().filter(|(_, text)| macros.is_match(text)) {
            broken.push(format!("{}:{line}: a metric outside of metrics.rs: `{}`", source.path, text.trim()));
        }
        for (line, text) in source.strings.iter().filter(|(_, text)| names.contains(text.trim_end_matches("_total"))) {
            broken.push(format!("{}:{line}: the metric's name {text:?}", source.path));
        }
    }
    broken
}

fn time_is_asked_in_one_file(sources: &[Source]) -> Vec<String> {
    let now = Regex::new(r"\b(?:Instant|SystemTime|Utc|Local)\s*::\s*now\b").expect("a valid pattern");
    found_outside(sources, &["src/clock.rs"], &now, "asks for the time")
}

fn unsafe_stands_in_one_file(sources: &[Source]) -> Vec<String> {
    let word = Regex::new(r"\bunsafe\b").expect("a valid pattern");
    found_outside(sources, &["src/log/kafka/native.rs", "src/log/kafka/native/"], &word, "unsafe")
}

fn names_say_something(sources: &[Source]) -> Vec<String> {
    let inline = Regex::new(r"(?m)^\s*(?:pub(?:\([a-z]+\))? )?mod ([a-z_]+)").expect("a valid pattern");
    let mut broken = Vec::new();
    for source in sources {
        let of_path = source.path.trim_end_matches(".rs").split('/');
        let of_code = inline.captures_iter(&source.code).map(|found| found.get(1).expect("one group").as_str());
        for name in of_path.chain(of_code) {
            if name.split('_').any(|part| BANNED_NAMES.contains(&part)) {
                broken.push(format!("{}: the name `{name}` says nothing", source.path));
            }
        }
    }
    broken
}

fn nothing_is_left_over(sources: &[Source]) -> Vec<String> {
    let calls = Regex::new(r"\b(?:dbg|todo|unimplemented)!").expect("a valid pattern");
    let notes = Regex::new(r"\b(?:FIXME|TODO|XXX|HACK)\b").expect("a valid pattern");
    let mut broken = Vec::new();
    for source in sources {
        for (line, text) in numbered(&source.whole_code).filter(|(_, text)| calls.is_match(text)) {
            broken.push(format!("{}:{line}: left over: `{}`", source.path, text.trim()));
        }
        for (line, text) in source.comments.iter().filter(|(_, text)| notes.is_match(text)) {
            broken.push(format!("{}:{line}: left over: `{}`", source.path, text.trim()));
        }
    }
    broken
}

fn the_eight_steps_are_there(sources: &[Source]) -> Vec<String> {
    let mut broken = Vec::new();
    for step in 1..=8 {
        let head = format!("//! Step {step} of 8");
        let files: Vec<&str> = product(sources)
            .filter(|source| source.text.starts_with(&head))
            .map(|source| source.path.as_str())
            .collect();
        if files.len() != 1 {
            broken.push(format!("`{head}` opens {} files: {files:?}", files.len()));
        }
    }
    broken
}

/// Readers know the product, not the place where it was written.
fn words_of_the_product((path, text): &(String, String)) -> Vec<String> {
    let foreign = Regex::new(
        r"(?i)\bissue #?\d{1,2}\b|\.\./shared\b|/work/|\bwork ?tree\b|\b(?:this|last|next|previous|earlier|later) session\b",
    )
    .expect("a valid pattern");
    numbered(text)
        .filter_map(|(line, text)| foreign.find(text).map(|found| (line, found.as_str())))
        .map(|(line, found)| format!("[words of the product] {path}:{line}: {found:?}"))
        .collect()
}

// --- what the rules look at ----------------------------------------------------------------------

/// A file of Rust, taken apart.
struct Source {
    /// From the repository's root, with `/`.
    path: String,
    text: String,
    /// Comments and the contents of strings blanked out, line by line as in `text`.
    whole_code: String,
    /// `whole_code` without the tests at the end of the file.
    code: String,
    /// With their lines; those of tests are not among them.
    strings: Vec<(usize, String)>,
    comments: Vec<(usize, String)>,
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        let Lexed { code: whole_code, mut strings, comments } = lex(text);
        let tests = Regex::new(r"(?m)^#\[cfg\(test\)\]\s*(?:#\[[^\]]*\]\s*)*mod ").expect("a valid pattern");
        let end = if path.ends_with("/tests.rs") || path.contains("/tests/") {
            0
        } else {
            tests.find(&whole_code).map_or(whole_code.len(), |found| found.start())
        };
        let code = whole_code[..end].to_owned();
        let last = code.lines().count();
        strings.retain(|(line, _)| *line <= last);
        Source { path: path.to_owned(), text: text.to_owned(), whole_code, code, strings, comments }
    }

    /// The top-level module that a file of the library belongs to.
    fn module(&self) -> Option<&str> {
        let name = self.path.strip_prefix("src/")?.split('/').next()?.trim_end_matches(".rs");
        (name != "lib" && name != "main").then_some(name)
    }

    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| self.path == *place || (place.ends_with('/') && self.path.starts_with(place)))
    }

    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        numbered(&self.code)
    }
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

/// The library and the binary, without tests, benches and examples.
fn product(sources: &[Source]) -> impl Iterator<Item = &Source> {
    sources.iter().filter(|source| source.path.starts_with("src/"))
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    numbered(code).flat_map(|(line, text)| {
        text.split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|word| !word.is_empty())
            .map(move |word| (line, word))
    })
}

/// The first names after `crate::`, also within braces: `use crate::{a::b, c}` gives `a` and `c`.
fn imports(code: &str) -> Vec<(usize, String)> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '$' | ':')) {
            continue;
        }
        let line = code[..at].matches('\n').count() + 1;
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.push((line, first_word(rest)));
            continue;
        };
        let (mut depth, mut start) = (0, 0);
        for (index, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                ',' | '}' if depth == 0 => {
                    names.push((line, first_word(group[start..index].trim_start())));
                    start = index + 1;
                    if c == '}' {
                        break;
                    }
                }
                '}' => depth -= 1,
                _ => {}
            }
        }
    }
    names.retain(|(_, name)| !name.is_empty());
    names
}

fn first_word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn found_outside(sources: &[Source], places: &[&str], pattern: &Regex, what: &str) -> Vec<String> {
    product(sources)
        .filter(|source| !source.is_in(places))
        .flat_map(|source| {
            source
                .lines()
                .filter(|(_, text)| pattern.is_match(text))
                .map(|(line, text)| {
                    format!("{}:{line}: {what} outside of {}: `{}`", source.path, places.join(", "), text.trim())
                })
                .collect::<Vec<_>>()
        })
        .collect()
}

struct Lexed {
    code: String,
    strings: Vec<(usize, String)>,
    comments: Vec<(usize, String)>,
}

/// Enough of Rust's lexer to tell code, comments and strings apart.
fn lex(text: &str) -> Lexed {
    const TOKENS: [&str; 4] = [
        r"//[^\n]*|/\*.*?\*/", // comments; nested ones are not used here
        r###"b?r"[^"]*"|b?r#".*?"#|b?r##".*?"##|b?r###".*?"\x23{3}"###, // raw strings
        r#"b?c?"(?:[^"\\]|\\.)*""#, // strings
        r"b?'(?:[^'\\\n]|\\(?:u\{[^}]*\}|x..|.))'", // characters; a lifetime has no closing quote
    ];
    let token = Regex::new(&format!("(?s){}", TOKENS.join("|"))).expect("a valid pattern");
    let mut lexed = Lexed { code: String::with_capacity(text.len()), strings: Vec::new(), comments: Vec::new() };
    let (mut end, mut line) = (0, 1);
    for found in token.find_iter(text) {
        lexed.code.push_str(&text[end..found.start()]);
        line += text[end..found.start()].matches('\n').count();
        let literal = found.as_str();
        if literal.starts_with('/') {
            lexed.comments.push((line, literal.to_owned()));
        } else if !literal.ends_with('\'') {
            let content = literal.trim_start_matches(['b', 'r', 'c', '#']).trim_end_matches('#').trim_matches('"');
            lexed.strings.push((line, content.to_owned()));
        }
        lexed.code.extend(literal.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        line += literal.matches('\n').count();
        end = found.end();
    }
    lexed.code.push_str(&text[end..]);
    lexed
}

fn tree() -> Vec<Source> {
    let mut files = Vec::new();
    for folder in ["src", "tests", "benches", "examples"] {
        collect(folder, &mut files);
    }
    files.retain(|(path, _)| path.ends_with(".rs"));
    files.push(("build.rs".into(), read("build.rs")));
    files.iter().map(|(path, text)| Source::new(path, text)).collect()
}

/// Everything that people read, this file apart: it has to spell the words out.
fn texts() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for folder in ["src", "tests", "benches", "examples", "docs", "proto", "scripts", ".ci", "docker"] {
        collect(folder, &mut files);
    }
    for name in ["README.md", "CHANGELOG.md", "Makefile", "Cargo.toml", "deny.toml", "build.rs"] {
        files.push((name.into(), read(name)));
    }
    files.retain(|(path, _)| path != "tests/it/tidy.rs");
    files
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap_or_default()
}

fn collect(folder: &str, files: &mut Vec<(String, String)>) {
    let Ok(entries) = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)) else { return };
    for entry in entries {
        let entry = entry.expect("a readable folder");
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            collect(&path, files);
        } else if let Ok(text) = fs::read_to_string(entry.path()) {
            files.push((path, text));
        }
    }
}

// --- each rule can fail --------------------------------------------------------------------------

/// How many violations the rule finds in these files.
fn count(rule: Rule, files: &[(&str, &str)]) -> usize {
    let sources: Vec<Source> = files.iter().map(|(path, text)| Source::new(path, text)).collect();
    rule(&sources).len()
}

#[test]
fn an_import_against_the_layers_is_found() {
    let count = |path, text| count(imports_run_one_way, &[(path, text)]);
    assert_eq!(count("src/task.rs", "use crate::log::Record;\nuse crate::stamp::{Path, Stamp};"), 0);
    assert_eq!(count("src/task/gate.rs", "use crate::task::queue::Queue;"), 0);
    assert_eq!(count("src/entry.rs", "use crate::event::Action;"), 0);
    assert_eq!(count("src/log.rs", "//! See [`crate::task`].\nconst A: &str = \"crate::task\";"), 0);
    assert_eq!(count("src/log.rs", "#[cfg(test)]\nmod tests {\n    use crate::task::Task;\n}"), 0);
    assert_eq!(count("src/log.rs", "use crate::task::Task;"), 1, "back");
    assert_eq!(count("src/log/kafka.rs", "use crate::store::Store;"), 1, "sideways");
    assert_eq!(
        count("src/log.rs", "use crate::{\n    stamp::{Path, Stamp},\n    api,\n    task::Task,\n};"),
        2,
        "grouped"
    );
    assert_eq!(count("src/log.rs", "fn f() -> crate::task::Task { crate::task::Task }"), 2, "without use");
    assert_eq!(count("src/log.rs", "use super::task::Task;"), 1, "by way of super");
    assert_eq!(count("src/log/kafka.rs", "use super::super::task::Task;"), 1, "by way of super");
    assert_eq!(count("src/log.rs", "use crate::Tidegate;"), 1, "by way of the root");
    assert_eq!(count("src/novel.rs", ""), 1, "without a layer");
}

#[test]
fn a_module_out_of_order_is_found() {
    let count = |lib, path| count(lib_lists_the_layers, &[("src/lib.rs", lib), (path, "")]);
    assert_eq!(count("pub mod stamp;\nmod log;\npub use log::Log;\npub(crate) mod task;", "src/task.rs"), 0);
    assert_eq!(count("pub mod task;\npub mod stamp;", "src/task.rs"), 1);
    assert_eq!(count("pub mod stamp;", "src/task/gate.rs"), 1, "not listed");
    assert_eq!(count("pub mod novel;", "src/main.rs"), 1, "without a layer");
}

#[test]
fn a_file_without_a_head_or_too_long_is_found() {
    let long = format!("//! Head.\n{}", "fn f() {}\n".repeat(MAX_LINES));
    let tested = format!("//! Head.\n#[cfg(test)]\nmod tests {{\n{}}}", "fn f() {}\n".repeat(MAX_LINES));
    let count = |text: &str| count(heads_and_lengths, &[("src/task/gate.rs", text)]);
    assert_eq!(count("//! Head.\n"), 0);
    assert_eq!(count(&tested), 0, "tests apart");
    assert_eq!(count("use std::fmt;\n"), 1);
    assert_eq!(count(""), 1);
    assert_eq!(count(&long), 1);
}

#[test]
fn a_foreign_system_out_of_place_is_found() {
    let count = |path, text| count(foreign_systems_have_one_place, &[(path, text)]);
    assert_eq!(count("src/log/kafka/native.rs", "use rdkafka_sys as rdsys;"), 0);
    assert_eq!(count("src/log/embedded/segment.rs", "use rocksdb::DB;"), 0);
    assert_eq!(count("src/task.rs", "// rocksdb\nlet rocksdb_like = \"rdkafka\";"), 0);
    assert_eq!(count("src/log.rs", "use rdkafka::consumer::BaseConsumer;"), 1);
    assert_eq!(count("src/log/kafka.rs", "use rocksdb::DB;"), 1);
}

#[test]
fn a_metric_out_of_place_is_found() {
    let metrics = ("src/metrics.rs", "pub const COMMITS: &str = \"tidegate_commits\"; counter!(COMMITS);");
    let count = |text| count(metric_names_stand_in_one_file, &[metrics, ("src/task.rs", text)]);
    assert_eq!(count("crate::metrics::commits(1); headers.push(\"tidegate_kind\");"), 0);
    assert_eq!(count("metrics::counter!(\"anything\").increment(1);"), 1);
    assert_eq!(count("find(text, \"tidegate_commits_total\")"), 1);
}

#[test]
fn a_clock_out_of_place_is_found() {
    let count = |path, text| count(time_is_asked_in_one_file, &[(path, text)]);
    assert_eq!(count("src/clock.rs", "Instant::now()"), 0);
    assert_eq!(count("src/task.rs", "#[cfg(test)]\nmod tests { fn f() { Instant::now(); } }"), 0);
    assert_eq!(count("tests/it/main.rs", "Instant::now()"), 0);
    assert_eq!(count("src/task.rs", "let t = std::time::Instant::now();\nlet s = SystemTime::now();"), 2);
}

#[test]
fn unsafe_code_out_of_place_is_found() {
    let count = |path, text| count(unsafe_stands_in_one_file, &[(path, text)]);
    assert_eq!(count("src/log/kafka/native.rs", "unsafe { f() }"), 0);
    assert_eq!(count("src/lib.rs", "#![deny(unsafe_op_in_unsafe_fn)] // unsafe"), 0);
    assert_eq!(count("src/log/kafka.rs", "unsafe { f() }"), 1);
}

#[test]
fn a_name_that_says_nothing_is_found() {
    let count = |path, text| count(names_say_something, &[(path, text)]);
    assert_eq!(count("src/task/gate.rs", "mod implicit;"), 0);
    assert_eq!(count("src/util.rs", ""), 1);
    assert_eq!(count("src/common/gate.rs", ""), 1);
    assert_eq!(count("src/task/task_manager.rs", ""), 1);
    assert_eq!(count("tests/it/main.rs", "mod helper;\nmod tidy;"), 1);
}

#[test]
fn what_is_left_over_is_found() {
    let count = |text| count(nothing_is_left_over, &[("src/task.rs", text)]);
    assert_eq!(count("let todo = \"todo!() FIXME\"; // to do: nothing"), 0);
    assert_eq!(count("let x = dbg!(y);"), 1);
    assert_eq!(count("fn f() {\n    todo!()\n}\nfn g() { unimplemented!(\"later\") }"), 2);
    assert_eq!(count("// FIXME: wrong"), 1);
}

#[test]
fn a_missing_step_is_found() {
    let files: Vec<(String, String)> =
        (1..=8).map(|step| (format!("src/step{step}.rs"), format!("//! Step {step} of 8: it goes on."))).collect();
    let mut files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    assert_eq!(count(the_eight_steps_are_there, &files), 0);
    files.push(("src/other.rs", "//! Step 3 of 8: again."));
    assert_eq!(count(the_eight_steps_are_there, &files), 1, "twice");
    files.truncate(7);
    assert_eq!(count(the_eight_steps_are_there, &files), 1, "missing");
}

#[test]
fn a_word_of_another_place_is_found() {
    let count = |text: &str| words_of_the_product(&("README.md".into(), text.into())).len();
    assert_eq!(count("The consumer's session expires; see librdkafka #4849 and the tree of work."), 0);
    assert_eq!(count("As issue 3 asks."), 1);
    assert_eq!(count("See ../shared/design."), 1);
    assert_eq!(count("Written in this session."), 1);
}

#[test]
fn the_lexer_tells_code_from_text() {
    let text = "let a = \"x // y\"; // c \"d\"\nlet b = r#\"dbg!(\"q\")\"#; let c = '\"'; fn f<'a>(x: &'a str) {} /* u\nv */ end";
    let lexed = lex(text);
    assert_eq!(lexed.code.lines().count(), text.lines().count());
    assert!(lexed.code.contains("fn f<'a>(x: &'a str) {}") && lexed.code.contains("end"));
    assert!(!lexed.code.contains("dbg") && !lexed.code.contains('y') && !lexed.code.contains('v'));
    assert_eq!(lexed.strings[0], (1, "x // y".into()));
    assert_eq!(lexed.strings[1], (2, "dbg!(\"q\")".into()));
    assert_eq!(lexed.comments.len(), 2);
}
