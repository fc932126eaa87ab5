//! Several instances of one application: any of them answers for all keys, or says whose part is missing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tempfile::{TempDir, tempdir};
use tidegate::config::{Config, HandlerKind, ServerTls};
use tidegate::handler::builtin;
use tidegate::log::Log;
use tidegate::log::embedded::{EmbeddedLog, EmbeddedOptions};
use tidegate::server::bind::bind;
use tidegate::server::process::Process;
use tokio::runtime::Runtime;

use crate::doors::certificate;
use crate::running::{Caller, eventually};

const PARTITIONS: i32 = 8;

/// The application, with all its instances in this process.
struct App {
    runtime: Runtime,
    log: Arc<dyn Log>,
    folder: TempDir,
    caller: Caller,
    tls: ServerTls,
    running: Vec<(String, Process)>,
}

impl App {
    fn new(caller: Caller, folder: TempDir, tls: ServerTls) -> App {
        // What the instances say is shown when a test fails.
        let _ = tracing_subscriber::fmt().with_test_writer().with_ansi(false).try_init();
        let options = EmbeddedOptions { sync: false, ..EmbeddedOptions::default() };
        let log: Arc<dyn Log> = Arc::new(EmbeddedLog::open(folder.path().join("log"), options).unwrap());
        App { runtime: Runtime::new().unwrap(), log, folder, caller, tls, running: Vec::new() }
    }

    fn plain() -> App {
        App::new(Caller::default(), tempdir().unwrap(), ServerTls::default())
    }

    /// Starts an instance; `advertised` is where it says that it answers.
    fn start(&mut self, name: &str, advertised: &str) {
        let mut config = Config::default();
        config.application.instance_id = name.into();
        config.processing.partitions = PARTITIONS;
        config.processing.commit_interval = Duration::from_millis(20);
        config.handler.kind = HandlerKind::Scripted;
        config.state.dir = self.folder.path().join("state");
        config.server.listen = "127.0.0.1:0".into();
        config.server.advertised = advertised.into();
        config.server.token = self.caller.token.clone().unwrap_or_default().into();
        config.server.tls = self.tls.clone();
        let handler = builtin::from_config(&config.handler, false).unwrap();
        let process = self.runtime.block_on(async {
            let bound = bind(&config.server, false).await.unwrap();
            Process::start(config, bound, Arc::clone(&self.log), handler, tidegate::api::routes()).unwrap()
        });
        self.running.push((name.into(), process));
    }

    /// Until every instance runs and together they own all partitions.
    fn settled(&self) {
        eventually("all partitions are owned and at work", || {
            let mut owned = Vec::new();
            for (_, process) in &self.running {
                let status = process.instance.status();
                let fair = PARTITIONS as usize / self.running.len();
                if status.state != "running" || status.partitions.len() < fair {
                    return None;
                }
                owned.extend(status.partitions);
            }
            owned.sort_unstable();
            (owned == (0..PARTITIONS).collect::<Vec<_>>()).then_some(())
        });
    }

    fn url(&self, place: usize) -> String {
        self.running[place].1.url()
    }

    fn ask(&self, url: &str, path: &str, forwarded: bool) -> (u16, Value) {
        let mut request = self.caller.agent().get(format!("{url}{path}"));
        if let Some(token) = &self.caller.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if forwarded {
            request = request.header("tidegate-forwarded", "1");
        }
        let mut response = request.call().unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), serde_json::from_str(&text).unwrap())
    }

    fn get(&self, place: usize, path: &str) -> (u16, Value) {
        self.ask(&self.url(place), path, false)
    }

    /// The answer once there is one: a partition may be on its way for a moment.
    fn answer(&self, place: usize, path: &str) -> (u16, Value) {
        eventually(path, || match self.get(place, path) {
            (503, answer) => {
                assert_eq!(answer["error"]["code"], "not_ready", "{answer}");
                assert!(answer["partition"].is_number(), "{answer}");
                None
            }
            answer => Some(answer),
        })
    }

    fn send(&self, place: usize, keys: std::ops::Range<u32>) {
        let lines: Vec<String> =
            keys.map(|n| format!(r#"{{"key":"k{n:03}","action":"ADD","payload":{{"value":"v{n}"}}}}"#)).collect();
        self.post(place, &lines.join("\n"));
    }

    fn post(&self, place: usize, lines: &str) {
        let mut request = self.caller.agent().post(format!("{}/api/v1/events", self.url(place)));
        if let Some(token) = &self.caller.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = request.content_type("application/x-ndjson").send(lines).unwrap();
        assert_eq!(response.status(), 202);
    }

    /// `POST path` without a body; the answer once there is one.
    fn sent(&self, place: usize, path: &str) -> (u16, Value) {
        eventually(path, || {
            let mut request = self.caller.agent().post(format!("{}{path}", self.url(place)));
            if let Some(token) = &self.caller.token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let mut response = request.send_empty().unwrap();
            let answer = serde_json::from_str(&response.body_mut().read_to_string().unwrap()).unwrap();
            Some((response.status().as_u16(), answer)).filter(|(status, _)| *status != 503)
        })
    }

    /// All keys, page by page.
    fn list(&self, place: usize, limit: usize) -> Vec<String> {
        let (mut keys, mut after) = (Vec::new(), String::new());
        loop {
            let (status, page) = self.answer(place, &format!("/api/v1/keys?limit={limit}{after}"));
            assert_eq!(status, 200, "{page}");
            let entries = page["entries"].as_array().unwrap();
            assert!(entries.len() <= limit && (!entries.is_empty() || page["next"].is_null()), "{page}");
            keys.extend(entries.iter().map(|entry| entry["key"].as_str().unwrap().to_owned()));
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => return keys,
            }
        }
    }

    fn stop(&mut self, place: usize) {
        let (_, process) = self.running.remove(place);
        self.runtime.block_on(process.stop()).unwrap();
    }
}

fn keys(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| format!("k{n:03}")).collect()
}

/// Every instance answers for every key, with the owner's name, and lists all of them in order.
fn answers_everywhere(app: &App, instances: usize) {
    let all = keys(0..100);
    eventually("all is committed", || (app.list(0, 1000) == all).then_some(()));
    for place in 0..instances {
        let mut owners = BTreeSet::new();
        for key in &all {
            let (status, held) = app.answer(place, &format!("/api/v1/keys/{key}"));
            assert_eq!(status, 200, "{held}");
            assert_eq!(held["value"], format!("v{}", key[1..].parse::<u32>().unwrap()), "{held}");
            owners.insert(held["instance"].as_str().unwrap().to_owned());
        }
        assert_eq!(owners.len(), instances, "{owners:?}");
        let (status, answer) = app.answer(place, "/api/v1/keys/nobody");
        assert_eq!((status, &answer["error"]["code"]), (404, &"unknown_key".into()), "{answer}");
        assert_eq!(app.list(place, 7), all);
        assert_eq!(app.list(place, 1000), all);
    }
}

/// A database that is closed while the process ends would abort it.
#[test]
fn an_instance_that_has_ended_has_left_its_log() {
    let mut app = App::plain();
    app.start("one", "");
    app.settled();
    let (_, process) = app.running.pop().unwrap();
    assert!(Arc::strong_count(&app.log) > 1);
    app.runtime.block_on(process.stop()).unwrap();
    assert_eq!(Arc::strong_count(&app.log), 1);
}

#[test]
fn any_instance_answers_for_all_keys() {
    let mut app = App::plain();
    for name in ["one", "two", "three"] {
        app.start(name, "");
    }
    app.settled();
    app.send(1, 0..100);
    answers_everywhere(&app, 3);
    let (status, answer) = app.get(0, "/api/v1/instances");
    assert_eq!((status, &answer["unowned"]), (200, &serde_json::json!([])), "{answer}");
    let members = answer["instances"].as_array().unwrap();
    let names: BTreeSet<&str> = members.iter().map(|member| member["instance"].as_str().unwrap()).collect();
    assert_eq!(names, BTreeSet::from(["one", "two", "three"]));
    let owned: usize = members.iter().map(|member| member["partitions"].as_array().unwrap().len()).sum();
    let sources: usize = members.iter().map(|member| member["sources"].as_array().unwrap().len()).sum();
    assert_eq!((owned, sources), (PARTITIONS as usize, 1), "{answer}");
    assert_eq!(members.iter().filter(|member| member["self"] == true).count(), 1);
}

/// Programs that read a URL take some of these for steps up and down in folders.
#[test]
fn keys_that_look_like_a_path_are_those_keys_everywhere() {
    let mut app = App::plain();
    for name in ["one", "two", "three"] {
        app.start(name, "");
    }
    app.settled();
    let paths = [
        (".", "%2E"),
        ("..", "%2E%2E"),
        ("a/../b", "a/../b"),
        ("a\\b", "a\\b"),
        ("a//", "a//"),
        ("%2E", "%252E"),
        ("-?key_base64=", "-%3Fkey_base64="),
    ];
    let events = paths.map(|(key, _)| serde_json::json!({ "key": key, "action": "ADD" }).to_string());
    app.post(0, &events.join("\n"));
    eventually("all is committed", || (app.list(0, 1000).len() == paths.len()).then_some(()));
    for place in 0..3 {
        for (key, path) in paths {
            let (status, held) = app.answer(place, &format!("/api/v1/keys/{path}"));
            assert_eq!((status, &held["key"]), (200, &key.into()), "{path} at {place}: {held}");
        }
    }
}

#[test]
fn a_forwarded_question_is_not_passed_on() {
    let mut app = App::plain();
    app.start("one", "");
    app.start("two", "");
    app.settled();
    app.send(0, 0..20);
    eventually("all is committed", || (app.list(0, 1000).len() == 20).then_some(()));
    let (url, mut elsewhere) = (app.url(0), 0);
    for key in keys(0..20) {
        app.answer(0, &format!("/api/v1/keys/{key}"));
        let (status, answer) = app.ask(&url, &format!("/api/v1/keys/{key}"), true);
        match status {
            200 => assert_eq!(answer["instance"], "one"),
            421 => elsewhere += i32::from(answer["error"]["code"] == "not_owner"),
            _ => panic!("{answer}"),
        }
    }
    assert!((1..20).contains(&elsewhere), "{elsewhere}");
    let (_, part) = app.ask(&url, "/api/v1/keys?partitions=0-7", true);
    let partitions = part["partitions"].as_array().unwrap();
    assert_eq!(partitions.len(), PARTITIONS as usize / 2, "{part}");
    let entries = part["entries"].as_array().unwrap();
    assert!(entries.iter().all(|entry| partitions.contains(&entry["partition"])), "{part}");
    let (status, _) = app.get(0, "/api/v1/keys?partitions=0-7");
    assert_eq!(status, 400, "callers have no such parameter");
}

#[test]
fn a_part_that_is_missing_is_named() {
    let mut app = App::plain();
    app.start("one", "");
    // Nobody answers at port 1.
    app.start("two", "127.0.0.1:1");
    app.settled();
    app.send(0, 0..40);
    let (mut own, mut missing) = (0, 0);
    for key in keys(0..40) {
        let answered = eventually(&key, || match app.get(0, &format!("/api/v1/keys/{key}")) {
            (200, _) => Some(true),
            (503, answer) => {
                assert_eq!(answer["error"]["code"], "not_ready", "{answer}");
                if answer["owner"] != "127.0.0.1:1" {
                    return None; // on its way for a moment
                }
                let partition = format!("partition {}", answer["partition"]);
                assert!(answer["error"]["message"].as_str().unwrap().contains(&partition), "{answer}");
                Some(false)
            }
            // Not committed yet.
            (404, _) => None,
            other => panic!("{other:?}"),
        });
        if answered { own += 1 } else { missing += 1 }
    }
    assert!(own > 0 && missing > 0, "{own} {missing}");
    let answer = eventually("the listing names the owner", || {
        let (status, answer) = app.get(0, "/api/v1/keys");
        assert_eq!(status, 503, "{answer}");
        (answer["owner"] == "127.0.0.1:1").then_some(answer)
    });
    assert!(answer["partition"].is_number());
    let (_, answer) = app.get(0, "/api/v1/instances");
    assert!(answer["instances"].as_array().unwrap().iter().any(|member| member["state"] == "unreachable"), "{answer}");
}

#[test]
fn an_owner_that_moved_is_asked_for_anew() {
    let mut app = App::plain();
    for name in ["one", "two", "three"] {
        app.start(name, "");
    }
    app.settled();
    app.send(0, 0..100);
    answers_everywhere(&app, 3);
    app.stop(2);
    // Every answer is the right one or none; in the end all are there.
    let mut left: BTreeSet<String> = keys(0..100).into_iter().collect();
    eventually("all keys are answered for", || {
        left.retain(|key| match app.get(0, &format!("/api/v1/keys/{key}")) {
            (200, held) => held["instance"] == "three",
            (503, _) => true,
            other => panic!("{key}: {other:?}"),
        });
        left.is_empty().then_some(())
    });
    app.settled();
    answers_everywhere(&app, 2);
}

#[test]
fn any_instance_takes_a_retry_and_the_owner_carries_it_out() {
    let mut app =
        App::new(Caller { token: Some("planted".into()), ca: None }, tempdir().unwrap(), ServerTls::default());
    for name in ["one", "two", "three"] {
        app.start(name, "");
    }
    app.settled();
    let rejected = |n: u32| {
        let script = format!(r#"{{"value":"v{n}","fail":{{"times":9,"how":"reject"}}}}"#);
        format!(r#"{{"key":"k{n:03}","action":"ADD","payload":{script}}}"#)
    };
    app.post(0, &(0..60).map(rejected).collect::<Vec<_>>().join("\n"));
    let letters = eventually("all are dead letters", || {
        let (_, page) = app.get(2, "/api/v1/dead-letters?limit=1000");
        Some(page["dead_letters"].as_array()?.clone()).filter(|letters| letters.len() == 60)
    });
    let path = |letter: &Value| format!("/api/v1/dead-letters/{}/{}/retry", letter["partition"], letter["offset"]);
    // One by one at anybody's door.
    for (n, letter) in letters[..30].iter().enumerate() {
        let (status, answer) = app.sent(n % 3, &path(letter));
        assert_eq!((status, &answer["stamp"]), (202, &letter["stamp"]), "{answer}");
        let (status, answer) = app.sent((n + 1) % 3, &path(letter));
        assert_eq!((status, &answer["error"]["code"]), (409, &"already_retried".into()), "{answer}");
    }
    let (status, answer) = app.sent(1, "/api/v1/dead-letters/0/999/retry");
    assert_eq!((status, &answer["error"]["code"]), (404, &"unknown_dead_letter".into()), "{answer}");
    // And the rest at once, page by page.
    let (mut accepted, mut already, mut after) = (0, 0, String::new());
    loop {
        let (status, page) = app.sent(2, &format!("/api/v1/dead-letters/retry?limit=7{after}"));
        assert_eq!(status, 202, "{page}");
        accepted += page["accepted"].as_u64().unwrap();
        already += page["already_retried"].as_u64().unwrap();
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    assert_eq!((accepted, already), (30, 30));
    let all = keys(0..60);
    eventually("all have succeeded", || (app.list(1, 1000) == all).then_some(()));
    eventually("every instance knows", || {
        let mut pages = (0..3).map(|place| app.get(place, "/api/v1/dead-letters?limit=1000").1);
        let retried = |page: Value| page["dead_letters"].as_array().unwrap().iter().all(|it| it["retried"] == true);
        pages.all(retried).then_some(())
    });
}

#[test]
fn instances_with_https_and_a_token_believe_each_other() {
    let folder = tempdir().unwrap();
    let (cert, key) = certificate(folder.path(), "shared");
    let caller = Caller { token: Some("planted".into()), ca: Some(cert.clone()) };
    let mut app = App::new(caller, folder, ServerTls { cert, key });
    app.start("one", "");
    app.start("two", "");
    app.settled();
    assert!(app.url(0).starts_with("https://"));
    app.send(1, 0..100);
    answers_everywhere(&app, 2);
}

#[test]
fn an_instance_with_another_token_is_told_apart() {
    let caller = Caller { token: Some("planted".into()), ca: None };
    let mut app = App::new(caller.clone(), tempdir().unwrap(), ServerTls::default());
    app.start("one", "");
    app.caller.token = Some("another".into());
    app.start("two", "");
    app.caller = caller;
    app.settled();
    let (status, answer) = app.get(0, "/api/v1/keys");
    assert_eq!((status, &answer["error"]["code"]), (503, &"not_ready".into()), "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("same server.token"), "{answer}");
    assert!(!answer.to_string().contains("planted"), "{answer}");
}
