//! Primary events with scripts, in a steady stream until the test has seen enough.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate::log::{Append, Log, NewRecord, TopicPartition};

use super::app::App;
use crate::kit;

/// So many events go out at a time, with a pause behind them.
const BATCH: usize = 20;

/// How long an event's work takes at the longest, in milliseconds.
const WORK: u8 = 20;

const PAUSE: Duration = Duration::from_millis(40);

/// A stream of events; it ends when it is dropped.
pub struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Scripted events.
    pub fn begin(app: &App, seed: u64) -> Load {
        Load::of(app, scripted(seed, WORK))
    }

    /// Fewer scripted events that take longer.
    pub fn slow(app: &App, seed: u64) -> Load {
        Load::in_batches(app, 8, scripted(seed, 50))
    }

    /// Whatever `make` makes of their numbers.
    pub fn of(app: &App, make: impl FnMut(usize) -> NewRecord + Send + 'static) -> Load {
        Load::in_batches(app, BATCH, make)
    }

    fn in_batches(app: &App, batch: usize, mut make: impl FnMut(usize) -> NewRecord + Send + 'static) -> Load {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let (log, to) = (kit::connect(&app.servers), TopicPartition::new(&app.source, 0));
        let send = move || {
            while !stopped.load(Ordering::SeqCst) {
                let first = count.load(Ordering::SeqCst);
                let records: Vec<NewRecord> = (first..first + batch).map(&mut make).collect();
                // An outage may double a batch: those are primaries of their own.
                kit::patiently("append", || log.append(Append { to: to.clone(), records: records.clone() }));
                count.fetch_add(batch, Ordering::SeqCst);
                std::thread::sleep(PAUSE);
            }
        };
        Load { stop, sent, thread: Some(std::thread::spawn(send)) }
    }

    /// How many were sent.
    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::SeqCst)
    }

    /// Ends the stream.
    pub fn end(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let thread = self.thread.take().expect("ends once");
        thread.join().expect("everything could be sent");
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// A key; some are used more than others.
pub fn key(random: &mut fastrand::Rng) -> String {
    if random.u8(..100) < 12 { format!("hot{}", random.u8(..4)) } else { format!("k{}", random.u16(..400)) }
}

fn action(random: &mut fastrand::Rng) -> &'static str {
    if random.u8(..100) < 80 { "ADD" } else { "REMOVE" }
}

/// Events with scripts, and once in a while a record that is none.
fn scripted(seed: u64, work: u8) -> impl FnMut(usize) -> NewRecord + Send + 'static {
    let mut random = fastrand::Rng::with_seed(seed);
    move |n| if n % 500 == 77 { kit::record("bad", "no event") } else { event(&mut random, work) }
}

/// An event with a script.
pub fn primary(random: &mut fastrand::Rng) -> NewRecord {
    event(random, WORK)
}

fn event(random: &mut fastrand::Rng, work: u8) -> NewRecord {
    let depth = random.u8(1..=4);
    let event = json!({ "key": key(random), "action": action(random), "payload": script(random, depth, work) });
    NewRecord { key: None, value: Some(event.to_string().into()), headers: Vec::new() }
}

fn script(random: &mut fastrand::Rng, depth: u8, work: u8) -> Value {
    let mut script = json!({ "work_ms": random.u8(1..=work), "value": format!("v{}", random.u32(..)) });
    if depth > 0 && random.u8(..100) < 60 {
        let children = random.u8(1..=2);
        let mut child = || json!({ "key": key(random), "action": action(random), "payload": self::script(random, depth - 1, work) });
        script["spawn"] = (0..children).map(|_| child()).collect();
    }
    match random.u8(..100) {
        0 => script["fail"] = json!({ "times": 100, "how": "reject" }),
        1 => script["fail"] = json!({ "times": 1, "how": "retry" }),
        2 if depth == 0 => script["fail"] = json!({ "times": 1, "how": "panic" }),
        _ => {}
    }
    script
}
