//! P8: an instance that stood still for longer than its session answers for nothing that others own by now.
//!
//! The attack: questions that were asked while it stood still lie in its sockets and are read at once when it wakes,
//! before the threads that would hear of its loss have their turn: those go on last of all. That no order of inputs leads to an old answer is tested with the engine itself, in `tests/sim/asleep.rs`.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate::log::{Append, Log, NewRecord, TopicPartition};
use tidegate::server::limits::FORWARDED;

use super::app::{App, Instance};
use crate::{broker, kit};

const KEYS: usize = 40;

/// Connections that wait at its door; each asks for all its keys.
const CONNECTIONS: usize = 10;

/// Questions that are written before anybody reads them, as another instance would ask: for what is its own.
struct Waiting(TcpStream, usize);

impl Waiting {
    fn at(url: &str, keys: &[usize]) -> Waiting {
        let mut stream = TcpStream::connect(url.trim_start_matches("http://")).expect("the system accepts");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        let paths = keys.iter().map(|key| format!("keys/w{key}")).chain(["keys?prefix=w".to_owned()]);
        let ask = |path| format!("GET /api/v1/{path} HTTP/1.1\r\nhost: x\r\n{FORWARDED}: 1\r\n\r\n");
        let questions: String = paths.map(ask).collect();
        stream.write_all(questions.as_bytes()).expect("they fit into the socket");
        Waiting(stream, keys.len() + 1)
    }

    /// Status and content of each answer.
    fn answers(self) -> Vec<(u16, Value)> {
        let mut from = BufReader::new(self.0);
        (0..self.1).map(|_| answer(&mut from)).collect()
    }
}

fn answer(from: &mut impl BufRead) -> (u16, Value) {
    let (mut status, mut length) = (0, 0);
    loop {
        let mut line = String::new();
        from.read_line(&mut line).expect("an answer to every question");
        let line = line.trim().to_ascii_lowercase();
        if let Some(rest) = line.strip_prefix("http/1.1 ") {
            status = rest.split(' ').next().expect("a status").parse().expect("a status");
        } else if let Some(rest) = line.strip_prefix("content-length: ") {
            length = rest.parse().expect("a length");
        } else if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).expect("the whole answer");
    (status, serde_json::from_slice(&body).expect("JSON"))
}

fn set(app: &App, value: &str) {
    let record = |key: usize| {
        let event = json!({ "key": format!("w{key}"), "action": "ADD", "payload": { "value": value } });
        NewRecord { key: None, value: Some(event.to_string().into()), headers: Vec::new() }
    };
    let records: Vec<NewRecord> = (0..KEYS).map(record).collect();
    let to = TopicPartition::new(&app.source, 0);
    kit::patiently("append", || app.log.append(Append { to: to.clone(), records: records.clone() }));
}

fn all_say(instance: &Instance<'_>, value: &str) -> bool {
    let says = |key: usize| instance.get(&format!("/api/v1/keys/w{key}")).is_some_and(|held| held["value"] == value);
    (0..KEYS).all(says)
}

/// The threads of a process that speak with Kafka, stopped one by one until it is dropped.
struct Deaf(Vec<i32>);

impl Deaf {
    /// The process may stand still as a whole; these stay where they are when it goes on.
    fn of(process: u32) -> Deaf {
        let tasks = std::fs::read_dir(format!("/proc/{process}/task")).expect("Linux").flatten();
        let threads = tasks.map(|task| task.file_name().to_string_lossy().parse().expect("a number"));
        let speaks = |thread: &i32| {
            let name = std::fs::read_to_string(format!("/proc/{process}/task/{thread}/comm")).unwrap_or_default();
            name.starts_with("rdk:") || name.starts_with("member-")
        };
        let deaf = Deaf(threads.filter(speaks).collect());
        assert!(deaf.0.len() >= 3, "librdkafka's threads are found by their names");
        for thread in &deaf.0 {
            let nothing = std::ptr::null_mut::<libc::c_void>();
            // SAFETY: plain system calls on a thread of our own child; it is let go by this very thread, or when that ends.
            unsafe {
                let seized = libc::ptrace(libc::PTRACE_SEIZE, *thread, nothing, nothing);
                assert_eq!(seized, 0, "a child can be traced: {}", std::io::Error::last_os_error());
                libc::ptrace(libc::PTRACE_INTERRUPT, *thread, nothing, nothing);
                libc::waitpid(*thread, std::ptr::null_mut(), libc::__WALL);
            }
        }
        deaf
    }
}

impl Drop for Deaf {
    fn drop(&mut self) {
        for thread in &self.0 {
            let nothing = std::ptr::null_mut::<libc::c_void>();
            // SAFETY: as above.
            unsafe { libc::ptrace(libc::PTRACE_DETACH, *thread, nothing, nothing) };
        }
    }
}

/// The keys that it answers for itself.
fn own(instance: &Instance<'_>) -> Vec<usize> {
    let is_own = |key: &usize| {
        let held = instance.get(&format!("/api/v1/keys/w{key}")).expect("an answer");
        held["instance"] == "one"
    };
    (0..KEYS).filter(is_own).collect()
}

#[test]
fn p8_a_woken_instance_answers_nothing_old() {
    let app = App::new(broker::shared(), "woken");
    let (one, two) = (app.start("one"), app.start("two"));
    app.until("both share", || one.owns() > 0 && one.owns() + two.owns() == 6);
    set(&app, "old");
    app.until("any of both answers for all keys", || all_say(&one, "old") && all_say(&two, "old"));
    let (url, keys) = (one.url().expect("it runs"), own(&one));
    assert!(keys.len() >= 5, "it owns a part of the keys: {keys:?}");
    one.signal(libc::SIGSTOP);
    app.until("the other owns all", || two.owns() == 6);
    set(&app, "new");
    app.until("the other answers", || all_say(&two, "new"));
    let waiting: Vec<Waiting> = (0..CONNECTIONS).map(|_| Waiting::at(&url, &keys)).collect();
    let deaf = Deaf::of(one.process());
    one.signal(libc::SIGCONT);
    let answers: Vec<(u16, Value)> = waiting.into_iter().flat_map(Waiting::answers).collect();
    drop(deaf);
    let old: Vec<&(u16, Value)> = answers.iter().filter(|(_, answer)| answer.to_string().contains("\"old\"")).collect();
    assert!(old.is_empty(), "{} of {} answers are old, such as {}", old.len(), answers.len(), old[0].1);
    assert!(answers.iter().all(|(status, _)| *status == 503), "it cannot know: {answers:?}");
    app.until("it answers for all keys again", || all_say(&one, "new"));
    app.until("it has joined again", || one.owns() > 0 && one.owns() + two.owns() == 6);
    assert!(one.said().contains("stood still for"), "{}", app.logs());
}
