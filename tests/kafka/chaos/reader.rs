//! A read_committed consumer that follows changelog, repartition and output topic from their beginnings while
//! instances die, and says what it should never have seen.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tidegate::entry::Entry;
use tidegate::event::StampedEvent;
use tidegate::log::{MemberEvent, Record, TopicPartition};
use tidegate::reference::Held;
use tidegate::stamp::Stamp;

use crate::cluster::app::App;
use crate::cluster::output;
use crate::kit;

/// What was read so far.
#[derive(Default)]
pub struct Read {
    /// The state as the changelog has it.
    pub state: BTreeMap<Bytes, Held>,
    /// The state as the output topic has it.
    pub output: BTreeMap<Bytes, Held>,
    /// Every entry that ever stood in the changelog.
    pub entries: HashSet<(Bytes, Stamp)>,
    /// Every event on the repartition topic.
    pub events: HashSet<Stamp>,
    /// What must not be.
    pub violations: Vec<String>,
}

impl Read {
    fn take(&mut self, what: What, of: &TopicPartition, record: Record) {
        let at = format!("{of}, offset {}", record.offset);
        let (Some(key), Some(value)) = (record.key, record.value) else { return };
        match what {
            // Bookkeeping.
            What::Changelog if key.is_empty() => {}
            What::Changelog => {
                let Entry { stamp, action, value, .. } = Entry::decode(value).expect("an entry");
                self.entries.insert((key.clone(), stamp.clone()));
                let held = (stamp, action, value);
                let last = self.state.insert(key.clone(), held.clone());
                self.rises(&key, last, &held, &at);
            }
            What::Output => {
                let (_, held) = output::from_json(&value);
                let last = self.output.insert(key.clone(), held.clone());
                self.rises(&key, last, &held, &at);
            }
            What::Events => {
                let stamp = StampedEvent::decode(key, value).expect("an event").stamp;
                if !self.events.insert(stamp.clone()) {
                    self.violations.push(format!("{stamp} stands there again at {at}"));
                }
            }
        }
    }

    fn rises(&mut self, key: &Bytes, last: Option<Held>, held: &Held, at: &str) {
        if let Some((last, ..)) = last.filter(|(last, ..)| *last >= held.0) {
            self.violations.push(format!("{key:?} falls from {last} to {} at {at}", held.0));
        }
    }
}

#[derive(Clone, Copy)]
enum What {
    Changelog,
    Events,
    Output,
}

/// A consumer with a group of its own; it ends when it is dropped.
pub struct Reader {
    read: Arc<Mutex<Read>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Begins with the first record of all partitions.
    pub fn begin(app: &App, output: &Arc<str>) -> Reader {
        let topics = [(&app.topics.changelog, What::Changelog), (&app.topics.repartition, What::Events)];
        let topics: HashMap<Arc<str>, What> =
            topics.into_iter().chain([(output, What::Output)]).map(|(name, what)| (Arc::clone(name), what)).collect();
        let (read, stop) = (Arc::new(Mutex::new(Read::default())), Arc::new(AtomicBool::new(false)));
        let (into, stopped, log) = (Arc::clone(&read), Arc::clone(&stop), kit::connect(&app.servers));
        let group = kit::unique("reader");
        let follow = move || {
            let names: Vec<Arc<str>> = topics.keys().cloned().collect();
            let joined = kit::join(&log, &group, &names, &[]);
            let mut next: HashMap<TopicPartition, (i64, u64)> = HashMap::new();
            let mut epoch = 0;
            while !stopped.load(Ordering::SeqCst) {
                match joined.events.recv_timeout(Duration::from_millis(100)) {
                    Ok(MemberEvent::Assigned { partitions, .. }) => {
                        for of in partitions {
                            epoch += 1;
                            let (position, current) = next.entry(of.clone()).or_default();
                            *current = epoch;
                            joined.member.start(of, *position, epoch);
                        }
                    }
                    Ok(MemberEvent::Fetched(fetched)) => {
                        let Some((position, current)) = next.get_mut(&fetched.of) else { continue };
                        if *current != fetched.epoch {
                            continue;
                        }
                        let mut read = into.lock().expect("no panic with it");
                        for record in fetched.records {
                            if record.offset < *position {
                                read.violations.push(format!("{} goes back to {}", fetched.of, record.offset));
                            }
                            *position = record.offset + 1;
                            read.take(topics[&fetched.of.topic], &fetched.of, record);
                        }
                    }
                    Ok(MemberEvent::Failed(error)) => {
                        into.lock().expect("no panic with it").violations.push(format!("the reader: {error}"));
                    }
                    Ok(MemberEvent::Revoked { .. } | MemberEvent::Trouble(_)) | Err(_) => {}
                }
            }
            joined.leave();
        };
        Reader { read, stop, thread: Some(std::thread::spawn(follow)) }
    }

    /// What was read so far.
    pub fn so_far(&self) -> MutexGuard<'_, Read> {
        self.read.lock().expect("no panic with it")
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // Its panic has been told.
            let _ = thread.join();
        }
    }
}
