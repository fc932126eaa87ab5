//! What befalls the instances, and how it is told that they are over it.

use std::time::{Duration, Instant};

use tidegate::log::SESSION_TIMEOUT;

use super::asking::Asking;
use super::gaps::{self, Gaps};
use super::{INSTANCES, TASKS};
use crate::broker::Broker;
use crate::cluster::app::{App, Instance};

/// Something that befalls them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// One is killed and started when the others have taken over.
    Kill,
    /// One is killed and started at once.
    KillAndStart,
    /// Two are killed and started at once.
    KillTwo,
    /// One stands still until the others have taken over, and somewhat longer.
    Freeze,
    /// One stands still for about as long as its session lasts.
    FreezeBriefly,
    /// One stands still, another is killed meanwhile.
    FreezeAndKill,
    /// One is stopped in good order and started again.
    Leave,
    /// One more comes, and goes by being killed.
    Join,
    /// The broker is restarted.
    Broker,
}

/// The instances, and who looks at them.
pub struct Nodes<'a> {
    app: &'a App,
    broker: &'a Broker,
    nodes: Vec<Option<Instance<'a>>>,
    frozen: Option<usize>,
    random: fastrand::Rng,
    gaps: Gaps,
    /// Asks them.
    pub asking: Asking,
    /// How long partitions stood still after kills, in seconds beyond the session timeout.
    pub after_kills: Vec<f64>,
    /// The same after freezes.
    pub after_freezes: Vec<f64>,
}

/// What an instance held that is dead or frozen since then.
struct Gone {
    address: String,
    then: Instant,
    partitions: Vec<usize>,
}

impl<'a> Nodes<'a> {
    /// Starts them all.
    pub fn start(app: &'a App, broker: &'a Broker, asking: Asking, gaps: Gaps, random: fastrand::Rng) -> Nodes<'a> {
        let nodes = (0..=INSTANCES).map(|_| None).collect();
        let (after_kills, after_freezes) = (Vec::new(), Vec::new());
        let mut all = Nodes { app, broker, nodes, frozen: None, random, gaps, asking, after_kills, after_freezes };
        (0..INSTANCES).for_each(|slot| all.begin(slot));
        all
    }

    fn begin(&mut self, slot: usize) {
        let instance = self.app.start(&format!("node-{slot}"));
        self.app.until("it answers", || instance.url().is_some());
        self.asking.at(slot, instance.url());
        self.nodes[slot] = Some(instance);
    }

    fn at(&self, slot: usize) -> &Instance<'a> {
        self.nodes[slot].as_ref().expect("it runs")
    }

    /// Calls `look` with each that runs.
    pub fn each(&self, look: impl Fn(&Instance<'a>)) {
        self.nodes.iter().flatten().for_each(look);
    }

    /// Waits until those that are not frozen own all partitions, each some, and work on all of them.
    pub fn are_at_work(&self, what: &str) {
        let frozen = self.frozen;
        let awake = || {
            self.nodes
                .iter()
                .enumerate()
                .filter(|(slot, _)| frozen != Some(*slot))
                .filter_map(|(_, node)| node.as_ref())
        };
        self.app.until(what, || {
            let shares: Vec<Vec<i32>> = awake().map(Instance::partitions).collect();
            let mut all: Vec<i32> = shares.iter().flatten().copied().collect();
            all.sort_unstable();
            all.into_iter().eq(0..TASKS) && shares.iter().all(|share| !share.is_empty())
        });
        let since = Instant::now();
        self.app.until(&format!("{what}: every partition has a commit"), || self.gaps.all_work_since(since));
    }

    fn gone(&self, slot: usize) -> Gone {
        let url = self.at(slot).url().expect("it answers");
        let address = url.split_once("://").expect("a URL").1.to_owned();
        let partitions = self.gaps.held_by(&address);
        Gone { address, then: Instant::now(), partitions }
    }

    fn kill(&mut self, slot: usize) -> Gone {
        let gone = self.gone(slot);
        self.at(slot).kill();
        self.nodes[slot] = None;
        gone
    }

    fn freeze(&mut self, slot: usize) -> Gone {
        let gone = self.gone(slot);
        self.at(slot).signal(libc::SIGSTOP);
        self.frozen = Some(slot);
        gone
    }

    fn wake(&mut self, slot: usize) {
        self.at(slot).signal(libc::SIGCONT);
        self.frozen = None;
    }

    /// How long what it held stood still.
    fn gap(&self, gone: &Gone) -> Vec<f64> {
        let told = self.gaps.after(&gone.address, gone.then, &gone.partitions);
        assert_eq!(told.len(), gone.partitions.len(), "every partition has an heir");
        told
    }

    /// Lets something befall them and waits until they are over it; tells how long partitions stood still: where nobody
    /// said goodbye, beyond the session timeout.
    pub fn suffer(&mut self, fault: Fault) -> String {
        // In the middle of whatever they do.
        std::thread::sleep(Duration::from_millis(self.random.u64(..700)));
        let slot = self.random.usize(..INSTANCES);
        let other = (slot + self.random.usize(1..INSTANCES)) % INSTANCES;
        let told = match fault {
            Fault::Kill => {
                let gone = self.kill(slot);
                self.are_at_work("the heirs work");
                let told = self.gap(&gone);
                self.begin(slot);
                self.after_kills.extend(&told);
                told
            }
            Fault::KillAndStart => {
                let gone = self.kill(slot);
                self.begin(slot);
                self.are_at_work("it is back");
                let told = self.gap(&gone);
                self.after_kills.extend(&told);
                told
            }
            Fault::KillTwo => {
                let both = [self.kill(slot), self.kill(other)];
                self.begin(slot);
                self.begin(other);
                self.are_at_work("both are back");
                let told: Vec<f64> = both.iter().flat_map(|gone| self.gap(gone)).collect();
                self.after_kills.extend(&told);
                told
            }
            Fault::Freeze => {
                let gone = self.freeze(slot);
                self.are_at_work("the heirs work");
                let told = self.gap(&gone);
                std::thread::sleep(Duration::from_millis(self.random.u64(..1500)));
                self.wake(slot);
                self.after_freezes.extend(&told);
                told
            }
            Fault::FreezeBriefly => {
                self.freeze(slot);
                let shift = Duration::from_millis(self.random.u64(..1000));
                std::thread::sleep(SESSION_TIMEOUT - Duration::from_millis(700) + shift);
                self.wake(slot);
                Vec::new()
            }
            Fault::FreezeAndKill => {
                self.freeze(slot);
                self.kill(other);
                self.are_at_work("the third has all");
                self.wake(slot);
                self.begin(other);
                Vec::new()
            }
            Fault::Leave => {
                let gone = self.gone(slot);
                assert_eq!(self.at(slot).terminate(), Some(0), "{}", self.app.logs());
                self.nodes[slot] = None;
                self.are_at_work("the others have all");
                let told = self.gaps.between(&gone.address, gone.then, &gone.partitions);
                self.begin(slot);
                told
            }
            Fault::Join => {
                self.begin(INSTANCES);
                self.are_at_work("one more has a share");
                self.kill(INSTANCES);
                self.asking.at(INSTANCES, None);
                Vec::new()
            }
            Fault::Broker => {
                self.broker.stop_while_they_pause(|signal| self.each(|instance| instance.signal(signal)));
                self.broker.restart().expect("restart");
                Vec::new()
            }
        };
        self.are_at_work("all are over it");
        gaps::in_words(told)
    }
}
