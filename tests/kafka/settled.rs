//! Waiting for what is settled while instances die: whoever is answered finds what the serial reference says, at once,
//! and through another instance than the one that has answered. Each cascade has keys of its own (`cascade`); callers
//! send and wait (`caller`); one who reads along in `<app>-progress` says when each cascade was settled (`watching`).
//!
//! The long run: `make settled SETTLED=cascades,seed`.

mod caller;
mod cascade;
mod catching_up;
mod watching;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::broker::{self, Broker};
use crate::cluster::app::{App, Instance};
use crate::cluster::check;
use caller::{Caller, Settled};
use watching::Watching;

/// The partitions of the application.
const TASKS: i32 = 12;
/// How many instances there are.
const INSTANCES: usize = 3;
/// How many callers wait at a time.
const CALLERS: usize = 8;
/// A death with all that follows takes no longer.
const PER_DEATH: Duration = Duration::from_secs(90);
/// Between two deaths.
const CALM: Duration = Duration::from_secs(2);

/// Where the instances answer; `None` = dead.
pub struct Urls(Mutex<Vec<Option<String>>>);

impl Urls {
    fn is(&self, slot: usize, url: Option<String>) {
        self.0.lock().expect("no panic with it")[slot] = url;
    }

    /// One of those that live, and are not `other`.
    pub fn one(&self, random: &mut fastrand::Rng, other: Option<&str>) -> Option<String> {
        let urls = self.0.lock().expect("no panic with it");
        let living: Vec<&String> = urls.iter().flatten().filter(|url| Some(url.as_str()) != other).collect();
        (!living.is_empty()).then(|| living[random.usize(..living.len())].clone())
    }
}

fn are_at_work(app: &App, nodes: &[Instance<'_>], what: &str) {
    app.until(what, || {
        let shares: Vec<usize> = nodes.iter().map(Instance::owns).collect();
        shares.iter().sum::<usize>() == TASKS as usize && !shares.contains(&0)
    });
}

/// One dies and comes again, at once or when the others have taken over.
fn die<'a>(app: &'a App, urls: &Urls, nodes: &mut [Instance<'a>], random: &mut fastrand::Rng) {
    let slot = random.usize(..nodes.len());
    nodes[slot].kill();
    urls.is(slot, None);
    if random.bool() {
        let others = || nodes.iter().map(Instance::owns).sum::<usize>() == TASKS as usize;
        app.until("the heirs work", others);
    }
    nodes[slot] = app.start(&format!("node-{slot}"));
    app.until("it answers", || nodes[slot].url().is_some());
    urls.is(slot, nodes[slot].url());
    are_at_work(app, nodes, "all are over it");
}

/// In milliseconds.
fn quantiles(mut times: Vec<f64>) -> String {
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    format!("p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms", at(0.5), at(0.99), at(1.0))
}

/// Callers wait for so many cascades at least, while so many instances die.
fn wait_through_deaths(broker: &Broker, cascades: usize, deaths: usize, seed: u64) {
    let begun = Instant::now();
    let app = App::new(broker, "settled").of(TASKS);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut nodes: Vec<Instance<'_>> = (0..INSTANCES).map(|slot| app.start(&format!("node-{slot}"))).collect();
    are_at_work(&app, &nodes, "all share the work");
    let urls = Urls(Mutex::new(nodes.iter().map(Instance::url).collect()));
    let (answered, died) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let watching = Watching::begin(&app);
    // Those who wait go on until the last has died, and not for ever when that fails.
    let latest = Instant::now() + PER_DEATH * (deaths as u32 + 2);
    let goes_on = || {
        let is_too_few = answered.load(Ordering::SeqCst) < cascades || died.load(Ordering::SeqCst) < deaths;
        is_too_few && Instant::now() < latest
    };
    let settled: Vec<Settled> = std::thread::scope(|scope| {
        let call = |number: usize| {
            let mut caller = Caller::new(&app, &urls, seed * 1000 + number as u64);
            let (goes_on, answered) = (&goes_on, &answered);
            scope.spawn(move || {
                let mut settled = Vec::new();
                while goes_on() {
                    let one = caller.send_and_wait();
                    answered.fetch_add(one.iter().len(), Ordering::SeqCst);
                    settled.extend(one);
                }
                settled
            })
        };
        let callers: Vec<_> = (0..CALLERS).map(call).collect();
        for _ in 0..deaths {
            std::thread::sleep(CALM.mul_f64(random.f64() + 0.5));
            die(&app, &urls, &mut nodes, &mut random);
            died.fetch_add(1, Ordering::SeqCst);
        }
        callers.into_iter().flat_map(|caller| caller.join().expect("no caller fails")).collect()
    });
    // What nobody was answered for is settled, too: nothing holds the frontier in the end.
    let state = check::all(&app);
    for node in &nodes {
        let mut told = Value::Null;
        app.until("every instance knows that all is settled", || {
            told = node.get("/api/v1/frontier").unwrap_or_default();
            told["unsettled"] == 0 && told["frontier"] == told["received"]
        });
    }
    let seen = watching.end();
    let since = |from: &dyn Fn(&watching::Seen) -> f64| {
        let answered = settled.iter().filter(|settled| settled.by_post);
        quantiles(answered.map(|settled| settled.at_ms - from(&seen[&settled.sequence])).collect())
    };
    eprintln!(
        "seed {seed}: {} cascades of {} were waited for, {} by `send --wait`, {} with dead letters, while {deaths} \
        instances died; {} events' keys compared; {:.0} s",
        settled.len(),
        seen.len(),
        settled.iter().filter(|settled| !settled.by_post).count(),
        settled.iter().filter(|settled| settled.dead_letters > 0).count(),
        state.len(),
        begun.elapsed().as_secs_f64()
    );
    eprintln!("answered since a reader has seen the last event's commit: {}", since(&|seen| seen.read_ms));
    eprintln!(
        "answered since that transaction wrote to progress, before its commit: {}",
        since(&|seen| seen.written_ms)
    );
    assert!(settled.len() >= cascades && settled.iter().any(|settled| settled.dead_letters > 0));
}

#[test]
fn who_waits_is_answered_with_what_is_final() {
    wait_through_deaths(broker::shared(), 80, 1, 5);
}

#[test]
#[ignore = "takes as long as its numbers say"]
fn long() {
    const WANTED: &str = "TIDEGATE_SETTLED is cascades,seed";
    let asked = std::env::var("TIDEGATE_SETTLED").ok().filter(|text| !text.is_empty());
    let asked = asked.unwrap_or_else(|| "1000,1".into());
    let (cascades, seed) = asked.split_once(',').expect(WANTED);
    let broker = Broker::start().expect("broker");
    wait_through_deaths(&broker, cascades.parse().expect(WANTED), 8, seed.parse().expect(WANTED));
}
