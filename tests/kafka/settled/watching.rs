//! One who reads along in `<app>-progress`, with sums of its own, and notes when each root was settled.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tidegate::counts::expand_runs;
use tidegate::log::{Isolation, Log, TopicPartition};
use tidegate::progress::{self, Told};

use super::caller::now_ms;
use crate::cluster::app::App;
use crate::kit;

/// When a root was settled, in milliseconds since 1970.
#[derive(Clone, Copy)]
pub struct Seen {
    /// The record that says so was written then, before its transaction's commit.
    pub written_ms: f64,
    /// It was read, committed, then.
    pub read_ms: f64,
}

/// Ends when it is dropped.
pub struct Watching {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<HashMap<u64, Seen>>,
}

impl Watching {
    pub fn begin(app: &App) -> Watching {
        let (log, of) = (kit::connect(&app.servers), TopicPartition::new(&app.topics.progress, 0));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut reader = log.reader(&of, 0, Isolation::ReadCommitted, true).expect("a reader");
            let (mut pending, mut seen) = (HashMap::<u64, HashMap<u32, i64>>::new(), HashMap::new());
            while !stopped.load(Ordering::SeqCst) {
                let records = reader.next(Duration::from_millis(100)).unwrap_or_default();
                let read_ms = now_ms();
                for record in records {
                    let written_ms = record.timestamp_ms as f64;
                    let Told::Counts(progress) = progress::read(&of, record).expect("a record") else { continue };
                    for counts in progress.counts {
                        let roots = expand_runs(&counts.runs).flat_map(|(first, length)| first..first + length);
                        for root in roots {
                            let sums = pending.entry(root).or_default();
                            for (depth, delta) in (counts.first_depth..).zip(&counts.deltas) {
                                *sums.entry(depth).or_default() += delta;
                            }
                            if sums.values().all(|sum| *sum == 0) {
                                pending.remove(&root);
                                seen.insert(root, Seen { written_ms, read_ms });
                            }
                        }
                    }
                }
            }
            seen
        });
        Watching { stop, thread }
    }

    /// When each root was settled.
    pub fn end(self) -> HashMap<u64, Seen> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("it reads")
    }
}
