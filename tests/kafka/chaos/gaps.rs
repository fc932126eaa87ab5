//! How long partitions stand still: who committed what, as the marks of the committed positions tell (protocol P5).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tidegate::instance::commit::Mark;
use tidegate::log::{Log, SESSION_TIMEOUT, TopicPartition};

use crate::cluster::app::App;
use crate::kit;

/// How often the positions are asked for.
const LOOK: Duration = Duration::from_millis(20);

/// A mark and when it was seen first.
type Seen = (Instant, Mark);

/// Looks at the committed positions all the time; ends when it is dropped.
pub struct Gaps {
    seen: Arc<Mutex<Vec<Vec<Seen>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Gaps {
    /// Begins to look at the partitions of the repartition topic.
    pub fn begin(app: &App) -> Gaps {
        let partitions: Vec<TopicPartition> = app.partitions(&app.topics.repartition);
        let seen = Arc::new(Mutex::new(vec![Vec::new(); partitions.len()]));
        let stop = Arc::new(AtomicBool::new(false));
        let (into, stopped, group) = (Arc::clone(&seen), Arc::clone(&stop), app.id.clone());
        let log = kit::connect(&app.servers);
        let look = move || {
            while !stopped.load(Ordering::SeqCst) {
                let committed = log.committed(&group, &partitions, false).unwrap_or_default();
                let now = Instant::now();
                let mut seen: std::sync::MutexGuard<'_, Vec<Vec<Seen>>> = into.lock().expect("no panic with it");
                for (seen, committed) in seen.iter_mut().zip(committed) {
                    let Some(mark) = committed.and_then(|committed| Mark::parse(&committed.metadata)) else { continue };
                    if seen.last().is_none_or(|(_, last)| *last != mark) {
                        seen.push((now, mark));
                    }
                }
                drop(seen);
                std::thread::sleep(LOOK);
            }
        };
        Gaps { seen, stop, thread: Some(std::thread::spawn(look)) }
    }

    /// The partitions whose last commit is that of the instance at `address`, not given back.
    pub fn held_by(&self, address: &str) -> Vec<usize> {
        let seen = self.seen.lock().expect("no panic with it");
        let holds = |seen: &Vec<Seen>| seen.last().is_some_and(|(_, mark)| mark.address == address && !mark.released);
        seen.iter().enumerate().filter(|(_, seen)| holds(seen)).map(|(partition, _)| partition).collect()
    }

    /// Whether every partition had a commit of work since then.
    pub fn all_work_since(&self, then: Instant) -> bool {
        let seen = self.seen.lock().expect("no panic with it");
        seen.iter().all(|seen| seen.iter().rev().take_while(|(at, _)| *at > then).any(|(_, mark)| is_work(mark)))
    }

    /// From the last commit of the instance at `address`, that ended or stood still at `then`, to the first commit of
    /// work by another one, in seconds: for each of `partitions` that has one by now.
    pub fn between(&self, address: &str, then: Instant, partitions: &[usize]) -> Vec<f64> {
        let seen = self.seen.lock().expect("no panic with it");
        let gap = |partition: &usize| {
            let seen = &seen[*partition];
            let is_last = |(at, mark): &&Seen| mark.address == address && (*at <= then || is_work(mark));
            let is_first = |(at, mark): &&Seen| *at > then && mark.address != address && is_work(mark);
            let (first, _) = seen.iter().find(is_first)?;
            let (last, _) = seen.iter().filter(|(at, _)| at < first).rfind(is_last)?;
            Some(first.duration_since(*last).as_secs_f64())
        };
        partitions.iter().filter_map(gap).collect()
    }

    /// The same, less the session timeout.
    pub fn after(&self, address: &str, then: Instant, partitions: &[usize]) -> Vec<f64> {
        self.between(address, then, partitions).iter().map(|gap| gap - SESSION_TIMEOUT.as_secs_f64()).collect()
    }
}

/// Neither a claim nor what gives a partition back.
fn is_work(mark: &Mark) -> bool {
    mark.number > 0 && !mark.released
}

impl Drop for Gaps {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // Its panic has been told.
            let _ = thread.join();
        }
    }
}

/// Median and worst, in words.
pub fn in_words(mut gaps: Vec<f64>) -> String {
    gaps.sort_by(f64::total_cmp);
    let (Some(worst), p50) = (gaps.last(), gaps.get(gaps.len() / 2).copied().unwrap_or_default()) else {
        return "none".into();
    };
    format!("p50 {p50:.2} s, worst {worst:.2} s, over {} partitions", gaps.len())
}
