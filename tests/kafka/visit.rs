//! A visit of every HTTP call and every verb of an application of three instances, where Kafka has TLS, passwords and
//! no more rights than docs/security.md lists, and the API HTTPS and a token.
//!
//! Tables say what is asked and what has to come; at the end nothing may be left that was not visited.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate::log::{Append, Log, NewRecord, TopicPartition};
use ureq::Agent;
use ureq::http::Request;

use crate::cluster::app::{App, Instance};
use crate::rights::{create, nobody, purging, right};
use crate::secured::{User, secured};

const TOKEN: &str = "the-token-of-the-visit";

/// Content type and body for `POST /api/v1/events`; the status, and what the answer has: fields, some with their value.
const POSTS: &[(&str, &str, u16, &str)] = &[
    (
        JSON,
        r#"{"key":"123","action":"ADD","payload":{"value":"one"}}"#,
        202,
        "accepted=1 first_sequence=0 last_sequence=0 ranges=[[0,0]]",
    ),
    (LINES, PAGES, 202, "accepted=3 first_sequence=1 last_sequence=3 ranges=[[1,3]]"),
    (LINES, ODD, 202, "accepted=6 first_sequence=4 last_sequence=9"),
    (JSON, r#"{"key":"","action":"ADD"}"#, 400, "error.code=bad_event error.message error.hint"),
    (JSON, r#"{"key":"1","action":"PUT"}"#, 400, "error.code=bad_event"),
    (JSON, "[]", 400, "error.code=bad_event"),
    (JSON, "", 400, "error.code=bad_event"),
    (LINES, "{\"key\":\"1\",\"action\":\"ADD\"}\n{\"key\":\"2\"}", 400, "error.code=bad_event line=2"),
    ("text/plain", "1:ADD", 415, "error.code=unsupported_media_type error.hint"),
    ("", "1:ADD", 415, "error.code=unsupported_media_type"),
];
const JSON: &str = "application/json";
const LINES: &str = "application/x-ndjson";
const PAGES: &str = r#"{"key":"page-1","action":"ADD"}
{"key":"page-2","action":"add"}
{"key":"page-3","action":"ADD","payload":"{}"}
"#;
const ODD: &str = r#"{"key_base64":"/wA=","action":"ADD","payload":{"value":"bytes"}}
{"key":"a/b c","action":"ADD","payload":{"value":"slash"}}
{"key":"..","action":"ADD","payload":{"value":"dots"}}
{"key":"é","action":"ADD","payload_base64":"eyJ2YWx1ZSI6ImFjY2VudCJ9"}
{"key":"gone","action":"ADD"}
{"key":"gone","action":"REMOVE"}"#;

/// A key or a value, where there is one.
type Bytes = Option<&'static [u8]>;

/// Key and value of records on the source topic, and what the dead letter that each becomes has; `""` = none.
const RECORDS: &[(Bytes, Bytes, &str)] = &[
    (None, Some(b"text:ADD"), ""),
    (Some(b"\xff\x01"), Some(b"ADD"), ""),
    (Some(b"page-3"), None, ""),
    (None, Some(b"\xfe\xffgarbage"), "cause=undecodable key=null value_base64=/v9nYXJiYWdl stamp=null attempts=0"),
    (Some(b""), Some(b"ADD"), "cause=empty_key key= value=ADD stamp=null attempts=0"),
    (Some(&[b'k'; 1025]), Some(b"ADD"), "cause=key_too_long key value=ADD stamp=null attempts=0"),
    (Some(b"\xff"), Some(b"other:ADD"), "cause=key_mismatch key_base64=/w== value=other:ADD stamp=null attempts=0"),
    (Some(b"1"), Some(b"PUT"), "cause=unknown_action key=1 value=PUT stamp=null attempts=0"),
    (
        Some(b"r"),
        Some(br#"{"action":"ADD","payload":{"fail":{"times":9,"how":"reject"}}}"#),
        "cause=rejected exception=scripted key=r value action=ADD stamp=18 attempts=1",
    ),
    (
        Some(b"x"),
        Some(br#"{"action":"ADD","payload":{"fail":{"times":9,"how":"retry"}}}"#),
        "cause=exhausted key=x value stamp=19 attempts=2",
    ),
    (
        Some(b"c"),
        Some(br#"{"action":"ADD","payload":{"spawn":[{"key":"","action":"ADD"}]}}"#),
        "cause=bad_child key=c value stamp=20 attempts=1",
    ),
];

/// How many events the posts bring.
const SENT: usize = 10;

/// What every dead letter has.
const LETTER: &str = "partition offset exception message retried=false";

/// The names that tools of the outside rely on.
const METRICS: &str = "tidegate_events_received_total tidegate_events_processed_total tidegate_children_spawned_total
    tidegate_cascade_depth tidegate_handler_duration_seconds tidegate_handler_retries_total tidegate_in_flight_events
    tidegate_oldest_in_flight_age_seconds tidegate_commits_total tidegate_commit_duration_seconds
    tidegate_transaction_aborts_total tidegate_consumer_lag_records tidegate_restore_remaining_records
    tidegate_restored_records_total tidegate_tasks tidegate_rebalances_total tidegate_store_entries
    tidegate_store_bytes tidegate_store_flush_duration_seconds tidegate_dead_letters_total
    tidegate_frontier_sequence tidegate_unsettled_roots tidegate_oldest_unsettled_root_sequence
    tidegate_oldest_unsettled_root_age_seconds tidegate_end_to_end_latency_seconds tidegate_build_info process_resident_memory_bytes process_cpu_seconds_total";

/// `GET`, asked of every instance, so that most do not own what it is about.
const READS: &[(&str, u16, &str)] = &[
    ("/livez", 200, "status=ok"),
    ("/livez?verbose", 200, "status=ok checks.0.name checks.0.ok=true"),
    ("/readyz", 200, "status=ok"),
    ("/readyz?verbose", 200, "checks.0.name checks.2.ok=true"),
    ("/startupz", 200, "status=ok"),
    ("/startupz?verbose", 200, "checks.0.ok=true"),
    ("/api/v1/openapi.json", 200, "openapi paths components.schemas.Failure"),
    (
        "/api/v1/status",
        200,
        "application instance version state=running guarantee=exactly_once partitions.1 frontier troubles=[]",
    ),
    (
        "/api/v1/topology",
        200,
        "application instance nodes.6.kind edges.0.from edges.0.to edges.0.records edges.0.per_second",
    ),
    (
        "/api/v1/tasks",
        200,
        "tasks.1.role tasks.1.partition tasks.1.state=running tasks.1.lag tasks.1.in_flight tasks.1.oldest_age_ms tasks.1.restore_remaining",
    ),
    (
        "/api/v1/instances",
        200,
        "instances.2.address instances.2.instance instances.2.state=running instances.2.partitions.1 unowned=[]",
    ),
    ("/api/v1/frontier", 200, "frontier received unsettled oldest_unsettled horizon=null unavailable=null"),
    ("/api/v1/frontier?x=1", 400, "error.code=bad_parameter"),
    ("/api/v1/roots/0", 200, "sequence=0 settled=true pending retries=[]"),
    ("/api/v1/roots/999999", 404, "error.code=unknown_root error.hint"),
    ("/api/v1/roots/x", 400, "error.code=bad_parameter error.hint"),
    ("/api/v1/keys/123?wait=settled&timeout=20s", 200, "value=one settled=true"),
    ("/api/v1/keys/123?timeout=20s", 400, "error.code=bad_parameter"),
    ("/api/v1/in-flight?limit=1000", 200, "in_flight"),
    ("/api/v1/in-flight?limit=0", 400, "error.code=bad_parameter"),
    ("/api/v1/keys/123", 200, "key=123 action=ADD value=one stamp=0 settled partition instance"),
    ("/api/v1/keys/gone", 200, "key=gone action=REMOVE value=null stamp=9"),
    ("/api/v1/keys/a%2Fb%20c", 200, "value=slash"),
    ("/api/v1/keys/a/b%20c", 200, "value=slash"),
    ("/api/v1/keys/%2E%2E", 200, "key=.. value=dots"),
    ("/api/v1/keys/%C3%A9", 200, "key=é value=accent"),
    ("/api/v1/keys/%FF%00", 200, "key_base64=/wA= value=bytes"),
    ("/api/v1/keys/%ff%01", 200, "key_base64=/wE= value=null"),
    ("/api/v1/keys/text", 200, "action=ADD"),
    ("/api/v1/keys/page-3", 200, "action=REMOVE"),
    ("/api/v1/keys/nobody", 404, "error.code=unknown_key error.message error.hint"),
    ("/api/v1/keys/", 404, "error.code"),
    ("/api/v1/keys/123?unknown=1", 400, "error.code=bad_parameter"),
    (
        "/api/v1/keys?prefix=page-&limit=1",
        200,
        "entries.0.key=page-1 entries.0.action=ADD entries.0.value entries.0.stamp entries.0.settled entries.0.partition next=page-1",
    ),
    ("/api/v1/keys?prefix=page-&after=page-1", 200, "entries.0.key=page-2 next=null"),
    ("/api/v1/keys?prefix=page-&after=page-2", 200, "entries=[] next=null"),
    ("/api/v1/keys?prefix=page-&after=page-2&removed=true", 200, "entries.0.action=REMOVE"),
    ("/api/v1/keys?prefix=%FF&limit=1", 200, "entries.0.key_base64=/wA= next_base64=/wA="),
    ("/api/v1/keys?prefix_base64=/w==&after_base64=/wA=", 200, "entries.0.key_base64=/wE= next=null"),
    ("/api/v1/keys?limit=1000", 200, "entries.5 next=null"),
    ("/api/v1/keys?limit=1001", 400, "error.code=bad_parameter error.hint"),
    ("/api/v1/keys?limit=0", 400, "error.code=bad_parameter"),
    ("/api/v1/dead-letters", 200, "dead_letters.7.cause next=null"),
    ("/api/v1/dead-letters?limit=3", 200, "dead_letters.2.cause next"),
    ("/api/v1/dead-letters?limit=1001", 400, "error.code=bad_parameter"),
    ("/api/v1/dead-letters?cause=bad", 400, "error.code=bad_parameter error.hint"),
    ("/api/v1/dead-letters?after=bad", 400, "error.code=bad_parameter error.hint"),
    ("/api/v1/dead-letters/0/999999", 404, "error.code=unknown_dead_letter error.hint"),
    ("/api/v1/dead-letters/99/0", 404, "error.code=unknown_dead_letter"),
    ("/api/v1/dead-letters/a/0", 400, "error.code=bad_parameter"),
    ("/api/v1/no-such-call", 404, "error.code=not_found error.hint"),
    ("/no-such-page", 404, "error.code=not_found"),
    ("/api/v1/events", 405, "error.code=method_not_allowed error.hint"),
];

/// What only takes other methods, and which.
const METHODS: &[(&str, &str, &str)] = &[
    ("GET", "/api/v1/events", "POST"),
    ("POST", "/api/v1/keys/123", "GET,HEAD"),
    ("DELETE", "/api/v1/keys", "GET,HEAD"),
    ("PUT", "/api/v1/status", "GET,HEAD"),
    ("POST", "/api/v1/dead-letters/0/0", "GET,HEAD"),
    ("GET", "/api/v1/dead-letters/0/0/retry", "POST"),
    ("GET", "/api/v1/dead-letters/retry", "POST"),
    ("POST", "/livez", "GET,HEAD"),
    ("POST", "/metrics", "GET,HEAD"),
];

/// Commands that talk to an instance: what each is given, its exit code, and what it says.
const TALKS: &[(&[&str], i32, &str)] = &[
    (&["send", "cli-1:ADD", "a:b:remove"], 0, "accepted 2 events"),
    (&["send", "--encoding", "hex", "ff02:ADD"], 0, "accepted 1 event, sequence"),
    (&["send", "--file", "events.txt"], 0, "accepted 3 events"),
    (&["send", "--wait", "cli-2:ADD"], 0, ", settled"),
    (&["get", "123", "--wait"], 0, "one"),
    (&["frontier"], 0, "unsettled"),
    (&["get", "123"], 0, "one"),
    (&["get", ".."], 0, "dots"),
    (&["get", "a/b c"], 0, "slash"),
    (&["get", "é", "--output", "json"], 0, "\"accent\""),
    (&["get", "--encoding", "base64", "/wA="], 0, "/wA="),
    (&["get", "--encoding", "hex", "ff01"], 0, "ff01"),
    (&["get", "nobody"], 1, "404 unknown_key"),
    (&["list", "--prefix", "page-", "--limit", "1"], 0, "more with --after page-1"),
    (&["list", "--prefix", "gone", "--removed"], 0, "REMOVE"),
    (&["list", "--encoding", "hex", "--prefix", "ff", "--after", "ff00"], 0, "ff01"),
    (&["tasks"], 0, "repartition"),
    (&["watch", "--for", "300ms", "--every", "100ms"], 0, "running"),
    (&["dead-letters", "list"], 0, "key_mismatch"),
    (&["dead-letters", "list", "--cause", "rejected", "--output", "json"], 0, "\"attempts\": 1"),
    (&["dead-letters", "show", "99", "0"], 1, "404 unknown_dead_letter"),
    (&["dead-letters", "retry", "--all"], 0, "nothing was changed"),
    (&["dead-letters", "retry", "--cause", "rejected", "--execute"], 0, "retried before"),
    (&["dead-letters", "retry", "99:0"], 1, "404 unknown_dead_letter"),
    (&["dead-letters", "export"], 0, "__streams.errors.exception"),
    (&["dead-letters", "export", "--file", "letters.jsonl"], 0, "8 dead letters written"),
];

/// Commands with the application's configuration, while its instances run.
const TOOLS: &[(&[&str], i32, &str)] = &[
    (&["verify", "--output", "json"], 0, "\"differences\": []"),
    (&["topics", "list"], 0, "-state-changelog"),
    (&["topics", "check"], 0, "the topics fit"),
    (&["topics", "create"], 0, "0 topics created"),
    (&["topics", "purge"], 0, "deleted"),
    (&["reset"], 0, "--execute would be refused: not authorized"),
    (&["reset", "--execute"], 1, "Delete on group"),
    (&["config", "check"], 0, "the configuration is valid"),
    (&["config", "show"], 0, "SCRAM-SHA-512"),
    (&["verify", "--token", TOKEN], 2, "server.token_file"),
    // It makes an application of its own, which nobody has granted it.
    (&["bench", "--events", "10"], 1, "Create on topic tidegate-bench-"),
];

/// Afterwards.
const AFTERWARDS: &[(&[&str], i32, &str)] = &[
    (&["verify"], 0, "are those of the serial reference"),
    (&["topics", "purge", "--output", "json"], 0, "\"purged\""),
    (&["reset"], 0, "nothing was changed"),
    (&["reset", "--execute"], 1, "Delete on group"),
];

/// Who visits, and notes what is not as it should be.
struct Visit<'a> {
    app: &'a App,
    all: &'a [Instance<'a>; 3],
    agent: Agent,
    wrong: Mutex<Vec<String>>,
}

impl Visit<'_> {
    /// Status, the header `Allow` and JSON of an answer.
    fn ask(&self, to: &Instance<'_>, call: (&str, &str), token: &str, body: (&str, &[u8])) -> (u16, String, Value) {
        let mut request = Request::builder().method(call.0).uri(to.url().expect("it answers") + call.1);
        if !token.is_empty() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if !body.0.is_empty() {
            request = request.header("content-type", body.0);
        }
        let answer = match call.0 {
            "GET" | "DELETE" => self.agent.run(request.body(()).expect("a request")),
            _ => self.agent.run(request.body(body.1).expect("a request")),
        };
        let mut answer = answer.unwrap_or_else(|error| panic!("{call:?}: {error}\n{}", self.app.logs()));
        let allow = answer.headers().get("allow").map_or("", |value| value.to_str().expect("text")).to_owned();
        let text = answer.body_mut().read_to_string().expect("a text");
        (answer.status().as_u16(), allow, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    fn get(&self, from: &Instance<'_>, path: &str) -> (u16, Value) {
        let (status, _, answer) = self.ask(from, ("GET", path), TOKEN, ("", b""));
        (status, answer)
    }

    fn post(&self, to: &Instance<'_>, content_type: &str, body: &[u8]) -> (u16, Value) {
        let (status, _, answer) = self.ask(to, ("POST", "/api/v1/events"), TOKEN, (content_type, body));
        (status, answer)
    }

    fn note(&self, wrong: String) {
        self.wrong.lock().expect("nobody panics with it").push(wrong);
    }

    /// Compares an answer with what it should be.
    fn expect(&self, what: &str, answer: (u16, Value), wanted: u16, fields: &str) {
        if let Err(wrong) = compare(&answer, wanted, fields) {
            self.note(format!("{what}: {wrong}: {}", answer.1));
        }
    }

    /// Compares what a command did with what it should do.
    fn judge(&self, verb: &[&str], (ended, text): (Option<i32>, String), code: i32, part: &str) {
        if ended != Some(code) || !text.contains(part) {
            self.note(format!("{verb:?} ended with {ended:?}, not {code} and {part:?}: {text}"));
        }
        if text.contains("pass-of-") || text.contains(TOKEN) {
            self.note(format!("{verb:?} tells a secret: {text}"));
        }
    }

    /// A command with the application's configuration.
    fn tool(&self, (verb, code, part): &(&[&str], i32, &str)) {
        self.judge(verb, said(self.app.command(verb).output()), *code, part);
    }

    /// A command that talks to an instance; its exit code and what it says.
    fn talk(&self, to: &Instance<'_>, verb: &[&str], more: &[&str]) -> (Option<i32>, String) {
        let mut command = self.app.bare(verb);
        said(command.args(["--server", &to.url().expect("it answers")]).args(more).output())
    }
}

fn said(ended: std::io::Result<std::process::Output>) -> (Option<i32>, String) {
    let ended = ended.expect("the binary starts");
    (ended.status.code(), String::from_utf8_lossy(&[&ended.stdout[..], &ended.stderr[..]].concat()).into_owned())
}

/// The answer has the status and the fields, with their values where the table has some; else what is wrong.
fn compare((status, answer): &(u16, Value), wanted: u16, fields: &str) -> Result<(), String> {
    if *status != wanted {
        return Err(format!("{status}, not {wanted}"));
    }
    for field in fields.split_whitespace() {
        let (path, value) = field.split_once('=').map_or((field, None), |(path, value)| (path, Some(value)));
        let found = answer.pointer(&format!("/{}", path.replace('.', "/"))).ok_or(format!("there is no {path}"))?;
        let text = found.as_str().map_or_else(|| found.to_string(), str::to_owned);
        if value.is_some_and(|value| value != text) {
            return Err(format!("{path} is {text}, and not as in {field}"));
        }
    }
    Ok(())
}

/// The verbs below `path`, as its help lists them.
fn verbs(app: &App, path: &[&str]) -> BTreeSet<String> {
    let (_, help) = said(app.bare(&[path, &["--help"]].concat()).output());
    let listed = help.split("Commands:\n").nth(1).unwrap_or_default().lines().take_while(|line| !line.is_empty());
    let listed: Vec<&str> = listed.filter_map(|line| line.split_whitespace().next()).collect();
    match listed[..] {
        [] => BTreeSet::from([path.join(" ")]),
        _ => listed.iter().flat_map(|verb| verbs(app, &[path, &[verb]].concat())).collect(),
    }
}

fn secured_app() -> (App, User) {
    let (mut app, user) = nobody("visit");
    create(&app);
    let path = |name: &str| secured().path(name).display().to_string();
    std::fs::write(app.folder.path().join("token"), TOKEN).expect("written");
    app.settings = vec![
        format!("server.tls.cert={}", path("broker.crt")),
        format!("server.tls.key={}", path("broker.key")),
        "server.token_file=token".into(),
        "handler.retry.attempts=2".into(),
    ];
    (app.token, app.ca) = (Some(TOKEN.into()), Some(secured().path("root.pem")));
    (app, user)
}

#[test]
fn every_call_and_every_verb_does_what_is_documented() {
    let (app, user) = secured_app();
    secured().acls.grant(&user.name, &purging(&app));
    let all = ["one", "two", "three"].map(|name| app.start(name));
    app.until("each owns two partitions", || all.iter().all(|instance| instance.owns() == 2));
    let agent = app.agent(Duration::from_secs(20));
    let visit = Visit { app: &app, all: &all, agent, wrong: Mutex::default() };
    visit.events_come_in(&user);
    visit.tool(&AFTERWARDS[0]);
    visit.every_instance_answers_for_all();
    visit.dead_letters_are_told_with_all_that_is_known();
    visit.dead_letters_are_retried();
    visit.what_runs_is_seen();
    visit.nobody_else_is_let_in();
    visit.every_verb();
    for instance in &all {
        assert_eq!(instance.terminate(), Some(0), "{}", app.logs());
    }
    AFTERWARDS.iter().for_each(|row| visit.tool(row));
    let wrong = visit.wrong.into_inner().expect("nobody panics with it");
    assert!(wrong.is_empty(), "{} things:\n{}\n{}", wrong.len(), wrong.join("\n"), app.logs());
}

impl Visit<'_> {
    /// Over HTTP once that is granted, and through the source topic.
    fn events_come_in(&self, user: &User) {
        let [one, two, three] = self.all;
        let (content_type, first, ..) = POSTS[0];
        let denied = self.post(one, content_type, first.as_bytes());
        self.expect("without the right to write", denied, 503, "error.code=log_unauthorized error.hint");
        let write = right("Write", "topic", &self.app.source, false);
        secured().acls.grant(&user.name, &[write]);
        self.app.until("it may write", || {
            let answer = self.post(one, content_type, first.as_bytes());
            answer.0 == 202 && compare(&answer, 202, POSTS[0].3).map_err(|wrong| self.note(wrong)).is_ok()
        });
        for (content_type, body, status, fields) in &POSTS[1..] {
            self.expect(body, self.post(two, content_type, body.as_bytes()), *status, fields);
        }
        for bytes in [2 << 20, 9 << 20] {
            let event = json!({ "key": "large", "action": "ADD", "payload": "x".repeat(bytes) }).to_string();
            let answer = self.post(three, JSON, event.as_bytes());
            self.expect(&format!("{bytes} bytes"), answer, 413, "error.code=too_large error.message error.hint");
        }
        let bytes = |bytes: &Bytes| bytes.map(bytes::Bytes::from_static);
        let record = |(key, value, _): &_| NewRecord { key: bytes(key), value: bytes(value), headers: Vec::new() };
        let records = RECORDS.iter().map(record).collect();
        self.app.log.append(Append { to: TopicPartition::new(&self.app.source, 0), records }).expect("appended");
    }

    /// So most of them do not own what they are asked for.
    fn every_instance_answers_for_all(&self) {
        for (number, instance) in self.all.iter().enumerate() {
            for (path, status, fields) in READS {
                self.expect(&format!("{path} of {number}"), self.get(instance, path), *status, fields);
            }
            // Lags are asked for every few seconds.
            self.app.until("/metrics has all", || {
                let (_, page) = self.get(instance, "/metrics");
                let page = page.as_str().expect("a text");
                METRICS.split_whitespace().all(|name| page.contains(&format!("\n# TYPE {name} ")))
            });
        }
    }

    /// Each of them asked for by its cause, and then alone.
    fn dead_letters_are_told_with_all_that_is_known(&self) {
        for (number, (.., fields)) in RECORDS.iter().enumerate().filter(|(_, (.., fields))| !fields.is_empty()) {
            let instance = &self.all[number % 3];
            let origin = format!("origin.topic={} origin.partition=0 origin.offset={}", self.app.source, SENT + number);
            let fields = format!("{fields} {LETTER} {origin}");
            let path =
                fields.split(' ').next().map(|cause| format!("/api/v1/dead-letters?{cause}")).expect("the cause");
            let (status, mut page) = self.get(instance, &path);
            let letter = page["dead_letters"][0].take();
            let alone = format!("/api/v1/dead-letters/{}/{}", letter["partition"], letter["offset"]);
            self.expect(&path, (status, letter), 200, &fields);
            self.expect(&alone, self.get(instance, &alone), 200, &format!("{fields} record.headers.5.name"));
        }
    }

    /// At doors that mostly are not the owner's; one that was rejected succeeds.
    fn dead_letters_are_retried(&self) {
        let post = |place: usize, path: &str| {
            let (status, _, answer) = self.ask(&self.all[place % 3], ("POST", path), TOKEN, ("", b""));
            (status, answer)
        };
        let path = |cause: &str| {
            let (_, page) = self.get(&self.all[0], &format!("/api/v1/dead-letters?cause={cause}"));
            let letter = &page["dead_letters"][0];
            format!("/api/v1/dead-letters/{}/{}/retry", letter["partition"], letter["offset"])
        };
        let rejected = path("rejected");
        self.expect(&rejected, post(0, &rejected), 202, "partition offset stamp=18");
        for (number, (path, status, fields)) in [
            (rejected.clone(), 409, "error.code=already_retried error.hint"),
            (format!("{rejected}?as=old"), 400, "error.code=bad_parameter error.hint"),
            (path("undecodable"), 409, "error.code=not_an_event error.hint"),
            ("/api/v1/dead-letters/0/999999/retry".into(), 404, "error.code=unknown_dead_letter error.hint"),
            ("/api/v1/dead-letters/99/0/retry".into(), 404, "error.code=unknown_dead_letter"),
            ("/api/v1/dead-letters/a/0/retry".into(), 400, "error.code=bad_parameter"),
            ("/api/v1/dead-letters/retry?cause=bad".into(), 400, "error.code=bad_parameter error.hint"),
            ("/api/v1/dead-letters/retry?limit=0".into(), 400, "error.code=bad_parameter"),
        ]
        .into_iter()
        .enumerate()
        {
            self.expect(&path, post(number, &path), status, fields);
        }
        let (mut accepted, mut after) = (0, String::new());
        for place in 0.. {
            let path = format!("/api/v1/dead-letters/retry?cause=exhausted{after}");
            let (status, page) = post(place, &path);
            accepted += page["accepted"].as_u64().unwrap_or_default();
            let next = page["next"].as_str().map(|next| format!("&after={next}"));
            let fields = "accepted already_retried=0 not_an_event=0 before_horizon=0 next";
            self.expect(&path, (status, page), 202, fields);
            match next {
                Some(next) => after = next,
                None => break,
            }
        }
        if accepted != 1 {
            self.note(format!("{accepted} exhausted events were retried"));
        }
        self.app.until("both have succeeded", || {
            ["r", "x"].iter().all(|key| self.get(&self.all[1], &format!("/api/v1/keys/{key}")).0 == 200)
        });
    }

    fn what_runs_is_seen(&self) {
        let slow = br#"{"key":"slow","action":"ADD","payload":{"work_ms":700,"fail":{"times":1,"how":"retry"}}}"#;
        self.expect("a slow event", self.post(&self.all[1], JSON, slow), 202, "accepted=1");
        self.app.until("its second try is in flight", || {
            let mut answers = self.all.iter().map(|instance| self.get(instance, "/api/v1/in-flight"));
            let fields =
                ["key=slow", "stamp", "attempt=2", "age_ms", "last_error"].map(|it| format!("in_flight.0.{it}"));
            answers.any(|answer| compare(&answer, 200, &fields.join(" ")).is_ok())
        });
    }

    /// Who has no token, or another one, learns nothing; health and metrics are open.
    fn nobody_else_is_let_in(&self) {
        let [one, two, three] = self.all;
        let (_, described) = self.get(one, "/api/v1/openapi.json");
        for path in described["paths"].as_object().expect("an object").keys() {
            // Of a path with a parameter only what is before it is compared.
            let fixed = path.split('{').next().unwrap_or_default();
            let is_it = |read: &str| {
                if fixed == path { read == path } else { read.len() > fixed.len() && read.starts_with(fixed) }
            };
            let visited = |(read, status, _): &(&str, u16, &str)| {
                *status == 200 && is_it(read.split('?').next().unwrap_or_default())
            };
            let elsewhere = [
                "/metrics",
                "/api/v1/events",
                "/api/v1/dead-letters/{partition}/{offset}",
                "/api/v1/dead-letters/{partition}/{offset}/retry",
                "/api/v1/dead-letters/retry",
            ];
            if !READS.iter().any(visited) && !elsewhere.contains(&path.as_str()) {
                self.note(format!("{path} was not visited"));
            }
            let (wanted, fields) =
                if path.starts_with("/api") { (401, "error.code=unauthorized error.hint") } else { (200, "") };
            for token in ["", "wrong"] {
                let (status, _, answer) = self.ask(two, ("GET", path), token, ("", b""));
                self.expect(&format!("{path} with the token {token:?}"), (status, answer), wanted, fields);
            }
        }
        for (method, path, allowed) in METHODS {
            let (status, allow, answer) = self.ask(three, (method, path), TOKEN, ("", b""));
            let what = format!("{method} {path} with Allow: {allow}");
            let wanted = if allow == *allowed { 405 } else { 0 };
            self.expect(&what, (status, answer), wanted, "error.code=method_not_allowed error.hint");
        }
    }

    fn every_verb(&self) {
        let events = "f-1:ADD\n\n{\"key\":\"f-2\",\"action\":\"ADD\"}\nf-1:REMOVE\n";
        std::fs::write(self.app.folder.path().join("events.txt"), events).expect("written");
        let ca = self.app.ca.as_ref().expect("set").display().to_string();
        let topology = ["topology", "-b", &self.app.servers, "--application-id", &self.app.id, "--format"];
        let drawn = |format| [&topology[..], &[format]].concat();
        let (_, page) = self.get(&self.all[0], "/api/v1/dead-letters?limit=1");
        let place = ["partition", "offset"].map(|name| page["dead_letters"][0][name].to_string());
        let mut talks: Vec<(Vec<&str>, i32, &str)> = TALKS.iter().map(|row| (row.0.to_vec(), row.1, row.2)).collect();
        talks.push((vec!["dead-letters", "show", &place[0], &place[1]], 0, "tidegate_cause"));
        talks.extend([(drawn("text"), 0, "/s"), (drawn("dot"), 0, "digraph"), (drawn("mermaid"), 0, "flowchart")]);
        std::thread::scope(|scope| {
            TOOLS.iter().for_each(|row| _ = scope.spawn(|| self.tool(row)));
            for (number, (verb, code, part)) in talks.iter().enumerate() {
                let instance = &self.all[number % 3];
                self.judge(verb, self.talk(instance, verb, &["--token-file", "token", "--ca", &ca]), *code, part);
                // Its drawing needs no instance.
                if verb[0] != "topology" {
                    self.judge(verb, self.talk(instance, verb, &["--ca", &ca]), 1, "401 unauthorized");
                    self.judge(verb, self.talk(instance, verb, &["--token", TOKEN]), 1, "--ca");
                }
            }
        });
        self.judge(&["completions"], said(self.app.bare(&["completions", "bash"]).output()), 0, "dead-letters");
        let visited = talks.iter().map(|row| &row.0[..]).chain(TOOLS.iter().map(|row| row.0));
        let visited: BTreeSet<String> =
            visited.flat_map(|verb| [verb[0].to_owned(), verb[..2.min(verb.len())].join(" ")]).collect();
        let left: Vec<String> = verbs(self.app, &[]).difference(&visited).cloned().collect();
        // `run` are the instances, and `demo` has a log of its own.
        assert_eq!(left, ["completions", "demo", "run"]);
    }
}
