//! The frontier with sequences in headers: marks, what comes too late for them, and `source.max_disorder`.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate::config::{Config, HandlerKind, StampSource};
use tidegate::frontier::Book;
use tidegate::handler::builtin;
use tidegate::log::embedded::{EmbeddedLog, EmbeddedOptions};
use tidegate::log::{Append, Isolation, Log, NewRecord, NewTopic, TopicPartition};
use tidegate::marks::Marks;
use tidegate::progress::{self, Told};
use tidegate::server::bind::bind;
use tidegate::server::process::Process;
use tidegate::topics::Topics;
use tokio::runtime::Runtime;

use crate::running::{Caller, eventually, run};

const SOURCES: i32 = 3;

struct App {
    folder: TempDir,
    log: Arc<EmbeddedLog>,
    config: Config,
    runtime: Runtime,
    running: Option<Process>,
}

impl App {
    fn start(set: impl FnOnce(&mut Config)) -> App {
        let _ = tracing_subscriber::fmt().with_test_writer().with_ansi(false).try_init();
        let folder = tempfile::tempdir().unwrap();
        let options = EmbeddedOptions { sync: false, ..EmbeddedOptions::default() };
        let log = Arc::new(EmbeddedLog::open(folder.path().join("tidegate-data/log"), options).unwrap());
        let name = "events".to_owned();
        log.create(&[NewTopic { name, partitions: SOURCES, replication_factor: None, settings: Vec::new() }]).unwrap();
        let mut config = Config::default();
        config.application.instance_id = "one".into();
        config.source.stamp = StampSource::Header;
        config.source.max_jump = 1000;
        config.processing.partitions = 4;
        config.processing.commit_interval = std::time::Duration::from_millis(20);
        config.handler.kind = HandlerKind::Scripted;
        config.state.dir = folder.path().join("state");
        config.server.listen = "127.0.0.1:0".into();
        set(&mut config);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut app = App { folder, log, config, runtime, running: None };
        app.run();
        app
    }

    fn run(&mut self) {
        let handler = builtin::from_config(&self.config.handler, false).unwrap();
        let (log, config) = (Arc::<EmbeddedLog>::clone(&self.log), self.config.clone());
        let process = self.runtime.block_on(async {
            let bound = bind(&config.server, false).await.unwrap();
            Process::start(config, bound, log, handler, tidegate::api::routes()).unwrap()
        });
        self.running = Some(process);
    }

    fn stop(&mut self) {
        self.runtime.block_on(self.running.take().unwrap().stop()).unwrap();
    }

    fn get(&self, path: &str) -> (u16, Value) {
        let url = self.running.as_ref().unwrap().url();
        let mut answer = Caller::default().agent().get(format!("{url}{path}")).call().unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        (answer.status().as_u16(), serde_json::from_str(&text).unwrap())
    }

    fn frontier(&self) -> (Value, Value) {
        let (_, standing) = self.get("/api/v1/frontier");
        (standing["frontier"].clone(), standing["unavailable"].clone())
    }

    fn until_frontier(&self, expected: u64) {
        let is_there = || (self.frontier() == (json!(expected), Value::Null)).then_some(());
        eventually(&format!("frontier {expected}"), is_there);
    }

    fn until_received(&self, sequence: u64) {
        let is_there = || (self.get("/api/v1/frontier").1["received"] == sequence).then_some(());
        eventually(&format!("{sequence} is received"), is_there);
    }

    fn append(&self, partition: i32, record: NewRecord) {
        let to = TopicPartition::new(&Arc::from("events"), partition);
        self.log.append(Append { to, records: vec![record] }).unwrap();
    }

    /// Appends to a partition that lags from here on; gives the transaction that it lags for.
    fn append_open(&self, topic: &str, partition: i32, record: NewRecord) -> u64 {
        let open = self.log.begin("slow").unwrap();
        let to = TopicPartition::new(&Arc::from(topic), partition);
        self.log.append_in(open, &Append { to, records: vec![record] }).unwrap();
        open
    }

    fn until_told(&self, mark: u64) {
        eventually(&format!("mark {mark} is told"), || self.book().1.contains(&mark).then_some(()));
    }

    fn dead_letters(&self) -> Vec<(String, i64, i64)> {
        let (_, page) = self.get("/api/v1/dead-letters");
        let letter = |letter: &Value| {
            let origin = &letter["origin"];
            let cause = letter["cause"].as_str().unwrap().to_owned();
            (cause, origin["partition"].as_i64().unwrap(), origin["offset"].as_i64().unwrap())
        };
        page["dead_letters"].as_array().unwrap().iter().map(letter).collect()
    }

    fn until_dead_letters(&self, expected: &[(&str, i64, i64)]) {
        let mut expected: Vec<_> = expected.iter().map(|(cause, of, at)| ((*cause).to_owned(), *of, *at)).collect();
        expected.sort();
        eventually(&format!("{expected:?}"), || {
            let mut there = self.dead_letters();
            there.sort();
            (there == expected).then_some(())
        });
    }

    fn marks(&self) -> Marks {
        self.read_book().0.marks().clone()
    }

    /// What progress tells so far, where all sources are those of now.
    fn book(&self) -> (Book, Vec<u64>) {
        let (book, marks, ends) = self.read_book();
        assert!(ends.iter().all(|ends| *ends == SOURCES as usize), "{ends:?}");
        (book, marks)
    }

    fn read_book(&self) -> (Book, Vec<u64>, Vec<usize>) {
        let topics = Topics::new(&self.config.application.id, &self.config.source.topics);
        let of = TopicPartition::new(&topics.progress, 0);
        let end = self.log.watermarks(&of).unwrap().high;
        let mut reader = self.log.reader(&of, 0, Isolation::ReadCommitted, true).unwrap();
        let (mut book, mut marks, mut ends) = (Book::default(), Vec::new(), Vec::new());
        while reader.position() < end {
            for record in reader.next(std::time::Duration::from_millis(50)).unwrap() {
                if let Told::Counts(progress) = progress::read(&of, record).unwrap() {
                    marks.extend(progress.marks.iter().map(|mark| mark.sequence));
                    ends.extend(progress.marks.iter().map(|mark| mark.ends.len()));
                    book.take(&progress, 1);
                }
            }
        }
        (book, marks, ends)
    }

    /// `verify` agrees with what there is.
    fn verify(mut self) {
        self.stop();
        let App { folder, log, runtime, .. } = self;
        drop(runtime);
        eventually("the log is free", || (Arc::strong_count(&log) == 1).then_some(()));
        drop(log);
        let words = ["verify", "--set", "handler.kind=scripted", "--set", "processing.partitions=4"];
        run(folder.path(), &[&words[..], &["--set", "source.stamp=header"]].concat()).ok();
    }
}

fn event(key: &str, value: &str, sequence: u64) -> NewRecord {
    let text = json!({ "key": key, "action": "ADD", "payload": { "value": value } }).to_string();
    let headers = vec![("global_offset".to_owned(), Bytes::from(sequence.to_string()))];
    NewRecord { key: None, value: Some(text.into()), headers }
}

fn mark(text: &str) -> NewRecord {
    NewRecord { key: None, value: None, headers: vec![("tidegate_mark".to_owned(), Bytes::from(text.to_owned()))] }
}

/// V1: here 5 was sent before the mark, to a partition that lags.
#[test]
fn a_mark_counts_when_all_that_was_sent_before_it_is_received() {
    let app = App::start(|_| {});
    (1..=4).for_each(|n| app.append(n as i32 % 2, event("a", &n.to_string(), n)));
    app.until_received(4);
    assert_eq!(app.frontier(), (Value::Null, json!("needs_mark")));
    let lagging = TopicPartition::new(&Arc::from("events"), 2);
    let open = app.log.begin("slow").unwrap();
    app.log.append_in(open, &Append { to: lagging, records: vec![event("late", "5", 5)] }).unwrap();
    app.append(0, mark("10"));
    app.append(1, mark("9"));
    app.append(1, event("a", "20", 20));
    // It is told, and the partitions that can have acknowledged it.
    eventually("the mark is acknowledged", || {
        let (book, marks) = app.book();
        let greatest = book.marks().greatest(0) == Some(10) && book.known(20).is_some();
        (greatest && marks.contains(&10) && book.position("events", 1, "") >= 4).then_some(())
    });
    app.append(0, event("b", "21", 21));
    app.until_received(21);
    assert_eq!(app.frontier(), (Value::Null, json!("needs_mark")), "5 may still come");
    assert_eq!(app.get("/api/v1/keys/late").0, 404);
    app.log.decide(open, true).unwrap();
    app.until_frontier(10);
    let (_, held) = app.get("/api/v1/keys/late");
    assert_eq!((&held["value"], &held["settled"]), (&json!("5"), &json!(true)), "{held}");
    assert_eq!(app.get("/api/v1/roots/6").0, 404, "it never came, and is not waited for");
    app.append(2, mark("30"));
    app.until_frontier(30);
    assert_eq!(app.get("/api/v1/keys/b?wait=settled").1["settled"], json!(true));
    app.until_dead_letters(&[]);
    app.verify();
}

/// M2: what stands up to the end is nothing but the end of a transaction, and nothing comes any more.
#[test]
fn the_end_of_a_transaction_that_leaves_nothing_holds_up_no_mark() {
    let app = App::start(|_| {});
    app.append(0, event("a", "1", 1));
    let open = app.log.begin("gives up").unwrap();
    let to = TopicPartition::new(&Arc::from("events"), 1);
    app.log.append_in(open, &Append { to, records: vec![event("b", "2", 2)] }).unwrap();
    app.append(0, mark("7"));
    app.log.decide(open, false).unwrap();
    app.until_frontier(7);
    assert_eq!(app.get("/api/v1/roots/2").0, 404);
    app.verify();
}

/// A record that is held stands behind the end of a transaction: the position is that of the record.
#[test]
fn what_is_held_behind_the_end_of_a_transaction_holds_up_no_mark() {
    let app = App::start(|_| {});
    app.append(0, event("a", "1", 1));
    app.until_received(1);
    let open = app.append_open("events", 1, event("b", "2", 2));
    app.append(0, mark("7"));
    app.until_told(7);
    app.append(1, event("b", "too late", 4));
    app.log.decide(open, false).unwrap();
    app.until_frontier(7);
    app.until_dead_letters(&[("too_late", 1, 1)]);
    app.verify();
}

/// V2: also by the next owner, which knows from progress what was told.
#[test]
fn what_breaks_the_promise_is_a_dead_letter_and_a_copy_is_nothing() {
    let mut app = App::start(|_| {});
    app.append(0, event("a", "1", 1));
    app.append(1, event("a", "3", 3));
    app.append(2, mark("5"));
    app.until_frontier(5);
    app.append(0, event("a", "too late", 4));
    app.append(1, event("b", "too late", 2));
    // A copy, elsewhere; then one of a replay, which may come when it likes.
    app.append(2, event("a", "3", 3));
    let mut again = event("c", "again", 2);
    again.headers.push(("replay_generation".to_owned(), Bytes::from_static(b"1")));
    app.append(2, again);
    app.append(2, event("a", "6", 6));
    app.until_received(6);
    app.until_dead_letters(&[("too_late", 0, 1), ("too_late", 1, 1)]);
    assert_eq!(app.get("/api/v1/keys/a?wait=settled").1["value"], json!("6"));
    eventually("the replayed one is there", || (app.get("/api/v1/keys/c").0 == 200).then_some(()));
    assert_eq!(app.get("/api/v1/keys/b").0, 404);
    assert_eq!(app.frontier(), (json!(5), Value::Null));
    app.stop();
    app.append(0, event("b", "too late", 0));
    app.append(0, event("a", "1", 1));
    app.append(1, mark("8"));
    app.run();
    app.until_frontier(8);
    app.until_dead_letters(&[("too_late", 0, 1), ("too_late", 0, 2), ("too_late", 1, 1)]);
    app.verify();
}

/// C2: else it would be passed over, and nobody had ever handled an event of that sequence.
#[test]
fn what_is_mended_behind_the_mark_is_too_late() {
    let app = App::start(|_| {});
    app.append(0, event("a", "1", 1));
    app.append(0, event("", "broken", 3));
    app.append(1, mark("5"));
    app.until_frontier(5);
    app.append(2, event("b", "mended", 3));
    app.append(2, event("a", "a copy", 1));
    app.append(2, event("a", "6", 6));
    app.until_received(6);
    app.until_dead_letters(&[("empty_key", 0, 1), ("too_late", 2, 0)]);
    assert_eq!((app.get("/api/v1/roots/3").0, app.get("/api/v1/keys/b").0), (200, 404));
    app.verify();
}

/// P17.
#[test]
fn a_mark_that_cannot_be_is_a_dead_letter() {
    let app = App::start(|_| {});
    app.append(0, mark("soon"));
    app.append(0, mark("5000"));
    app.append(0, event("a", "1", 100));
    app.until_received(100);
    app.append(1, mark("1101"));
    app.append(1, mark("1100"));
    app.until_frontier(1100);
    app.until_dead_letters(&[("no_sequence", 0, 0), ("sequence_jump", 0, 1), ("sequence_jump", 1, 0)]);
    app.verify();
}

#[test]
fn a_promise_about_disorder_makes_marks() {
    let app = App::start(|config| config.source.max_disorder = Some(5));
    for n in 0..100u64 {
        app.append(n as i32 % 3, event(&format!("k{}", n % 7), &n.to_string(), n ^ 1));
    }
    app.until_frontier(93);
    app.append(0, event("a", "200", 200));
    app.until_frontier(194);
    app.append(0, event("a", "too late", 150));
    app.append(1, event("a", "just in time", 195));
    app.until_dead_letters(&[("too_late", 0, 35)]);
    assert_eq!(app.get("/api/v1/keys/a?wait=settled").1["value"], json!("200"));
    app.verify();
}

/// Of what was received before it says so, too, by whomever.
#[test]
fn a_promise_about_disorder_counts_from_the_next_start_on() {
    let mut app = App::start(|_| {});
    for n in 0..10u64 {
        app.append(n as i32 % 3, event("k", &n.to_string(), n));
    }
    eventually("all is received", || (app.get("/api/v1/frontier").1["received"] == 9).then_some(()));
    assert_eq!(app.frontier(), (Value::Null, json!("needs_mark")));
    app.stop();
    app.config.source.max_disorder = Some(2);
    app.run();
    app.until_frontier(6);
    app.verify();
}

/// V4: of many marks that wait some are forgotten. What was held by one of these waits for none.
#[test]
fn what_is_held_for_a_mark_that_is_forgotten_goes_on() {
    let app = App::start(|_| {});
    app.append(0, event("a", "1", 1));
    app.until_received(1);
    let open = app.append_open("events", 2, event("c", "2", 2));
    for mark_at in [3, 5] {
        app.append(1, mark(&mark_at.to_string()));
        app.until_told(mark_at);
    }
    // Held for 5, the second one; what comes behind it lies below the ends of all later ones.
    app.append(0, event("b", "too late", 4));
    app.append(0, event("a", "100", 100));
    for mark_at in 6..80 {
        app.append(1, mark(&mark_at.to_string()));
        app.until_told(mark_at);
    }
    app.log.decide(open, true).unwrap();
    app.until_received(100);
    app.until_frontier(79);
    app.verify();
}

/// V6: what stood in progress of a topic that was created anew under a higher epoch says nothing of the new one.
#[test]
fn a_mark_of_a_higher_epoch_waits_for_partitions_that_lag() {
    let mut app = App::start(|config| config.processing.threads = 3);
    (0..9).for_each(|n| app.append(n % SOURCES, event("a", "before", n as u64)));
    app.append(0, mark("900"));
    app.until_frontier(900);
    app.stop();
    app.log.delete_topic("events").unwrap();
    let name = "events".to_owned();
    app.log.create(&[NewTopic { name, partitions: SOURCES, replication_factor: None, settings: Vec::new() }]).unwrap();
    app.append(0, event("a", "1", 1));
    app.config.source.epoch = 1;
    app.run();
    let received = |sequence: &str| {
        let is_there = || (app.get("/api/v1/frontier").1["received"] == sequence).then_some(());
        eventually(&format!("{sequence} is received"), is_there);
    };
    received("e1:1");
    let open = app.append_open("events", 2, event("late", "2", 2));
    app.append(0, mark("3"));
    eventually("the mark is acknowledged", || {
        let (book, _) = app.book();
        (book.marks().greatest(1) == Some(3) && book.position("events", 1, "") == 0).then_some(())
    });
    app.append(1, event("b", "4", 4));
    received("e1:4");
    assert_eq!(app.frontier().0, json!(900), "2 may still come");
    app.log.decide(open, true).unwrap();
    eventually("frontier e1:3", || (app.frontier().0 == "e1:3").then_some(()));
    assert_eq!(app.get("/api/v1/keys/late").1["value"], json!("2"));
    app.until_dead_letters(&[]);
}

/// V5: nobody reads a topic any more that a mark waits for.
#[test]
fn a_source_topic_that_is_taken_out_holds_up_nothing() {
    let mut app = App::start(|_| {});
    app.append(0, event("a", "1", 1));
    app.until_received(1);
    app.stop();
    let name = "more".to_owned();
    app.log.create(&[NewTopic { name, partitions: 1, replication_factor: None, settings: Vec::new() }]).unwrap();
    app.config.source.topics.push("more".into());
    app.run();
    let open = app.append_open("more", 0, event("c", "2", 2));
    app.append(0, mark("5"));
    eventually("the mark is told", || (app.marks().greatest(0) == Some(5)).then_some(()));
    // All that is read stands at a record for which the mark has to count.
    (0..SOURCES).for_each(|partition| app.append(partition, event("b", "too late", 4)));
    app.stop();
    app.log.decide(open, false).unwrap();
    app.config.source.topics.pop();
    app.run();
    app.append(1, event("a", "6", 6));
    app.append(2, mark("8"));
    app.until_frontier(8);
    assert_eq!(app.get("/api/v1/keys/a").1["value"], json!("6"));
}

/// What is sent below a mark that has counted is settled, and has failed.
#[test]
fn who_waits_for_what_comes_too_late_is_told_so() {
    let app = App::start(|_| {});
    app.append(0, event("a", "1", 1));
    app.append(0, mark("10"));
    app.until_frontier(10);
    let send = |sequence: u64| {
        let url = format!("{}/api/v1/events?wait=settled", app.running.as_ref().unwrap().url());
        let body = json!({ "key": "a", "action": "ADD", "global_offset": sequence }).to_string();
        let agent = Caller::default().agent();
        let mut answer = agent.post(url).content_type("application/json").send(body).unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        let answer: Value = serde_json::from_str(&text).unwrap();
        (answer["dead_letters"].clone(), answer["failed"].clone())
    };
    assert_eq!(send(5), (json!(1), json!([5])));
    assert_eq!(send(1), (json!(0), json!([])), "a copy");
    assert_eq!(send(11), (json!(0), json!([])));
    let line = |sequence: u64| json!({ "key": "b", "action": "ADD", "global_offset": sequence }).to_string();
    let send = |sequences: [u64; 2]| {
        std::fs::write(app.folder.path().join("lines"), sequences.map(line).join("\n")).unwrap();
        let url = app.running.as_ref().unwrap().url();
        run(app.folder.path(), &["send", "--server", &url, "--file", "lines", "--wait"])
    };
    assert_eq!(send([12, 13]).ok(), "accepted 2 events, sequences 12 to 13, settled\n");
    assert!(send([7, 14]).failed(4).contains("1 dead letter in the cascades of what was sent: sequences 7"));
}

/// M4: an instance that was left behind under a lower epoch does not go on.
#[test]
fn an_instance_of_an_epoch_that_is_over_ends() {
    let mut app = App::start(|_| {});
    app.append(0, event("a", "before", 5));
    app.until_received(5);
    let left_behind = app.running.take().unwrap();
    app.config.source.epoch = 1;
    app.config.application.instance_id = "two".into();
    app.run();
    let owns = || (app.get("/api/v1/status").1["partitions"] != json!([])).then_some(());
    eventually("the new one has its share", owns);
    (0..SOURCES).for_each(|partition| app.append(partition, event("a", "meanwhile", 7)));
    let within = std::time::Duration::from_secs(20);
    let failed = async { tokio::time::timeout(within, left_behind.instance.failed()).await.expect("it ends") };
    let why = app.runtime.block_on(failed).to_string();
    assert!(why.contains("source.epoch = 0") && why.contains("epoch 1"), "{why}");
    app.runtime.block_on(left_behind.end(None)).unwrap();
    (0..SOURCES).for_each(|partition| app.append(partition, event("a", "after", 20)));
    eventually("a is after", || (app.get("/api/v1/keys/a").1["value"] == "after").then_some(()));
}
