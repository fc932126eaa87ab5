//! What befalls engines and the process that they live in.

use std::path::PathBuf;
use std::time::Duration;

use tidegate::clock;
use tidegate::config::Guarantee;
use tidegate::instance::commit::{Committer, Ended, Work};
use tidegate::instance::engine::Input;
use tidegate::log::{Log, Member, SESSION_TIMEOUT};

use super::Fault;
use super::disks::{self, copy_folder, put_back};
use super::halves::HalfDone;
use super::points::Point;
use crate::checks;
use crate::node::Node;
use crate::sometimes::{self, reached};
use crate::timeline::note;
use crate::world::World;

/// No more engines than this at a time.
const MOST: usize = 3;

/// How the files of a process that dies are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// With everything that was written.
    Whole,
    /// Without what was only in memory.
    AsOnDisk,
    /// And one file is damaged.
    Damaged,
}

impl World {
    /// Something goes wrong.
    pub fn befall(&mut self, fault: Fault) {
        note(format!("fault: {fault:?}"));
        // Often it waits until it meets somebody whom it hits hard.
        let may_lurk = matches!(fault, Fault::KillOne | Fault::Freeze | Fault::Expel) && !self.meets(fault);
        if may_lurk && self.lurking.is_none() && self.rng.bool() {
            self.lurking = Some(fault);
            return;
        }
        let place = self.victim(fault);
        match fault {
            Fault::Crash => {
                let left = self.left();
                self.crash(left, |_| {});
            }
            Fault::CrashAndWipe => self.crash(Left::Whole, |world| {
                reached(sometimes::WIPED);
                for node in 0..MOST {
                    let _ = std::fs::remove_dir_all(world.folder.path().join(format!("state{node}")));
                }
                world.checkpoints.clear();
                world.damaged.clear();
            }),
            Fault::CrashAndGoBack => match self.copies.is_empty() {
                true => self.copy(place),
                false => self.crash(Left::Whole, World::go_back),
            },
            Fault::CrashAndForget => {
                let left = self.left();
                self.crash(left, World::forget);
            }
            Fault::CrashAndTear => self.crash(Left::Damaged, |_| {}),
            Fault::Die => self.shared.set_fuse(self.plan.config.processing.guarantee == Guarantee::ExactlyOnce),
            Fault::KillOne => self.kill(place),
            Fault::Expel => self.expel(place),
            Fault::Freeze => self.freeze(place),
            Fault::Join if self.nodes.len() < MOST => {
                let folder = self.free_folder();
                self.join(folder);
            }
            Fault::Join => {}
            Fault::FailDisk => self.failing_flushes += self.rng.u32(1..=4),
            Fault::Leave => {
                let node = &mut self.nodes[place];
                if node.frozen.is_none() {
                    node.leaving = true;
                    node.member.leave();
                }
            }
            Fault::Stranger => self.stranger(),
        }
    }

    /// Whether there is somebody whom it hits hard: with a transaction on its way or, where it is expelled, with
    /// committed entries that its heir, or itself as its own, cannot read yet.
    pub fn meets(&self, fault: Fault) -> bool {
        match fault {
            Fault::Expel => self.with_late_entries().is_some(),
            _ => self.nodes.iter().any(|node| node.work.is_some()),
        }
    }

    fn with_late_entries(&self) -> Option<usize> {
        let id = self.shared.late_entries()?;
        self.nodes.iter().position(|node| node.name == id && !node.expelled)
    }

    /// Often one whom it hits hard.
    fn victim(&mut self, fault: Fault) -> usize {
        if fault == Fault::Expel
            && let Some(place) = self.with_late_entries()
        {
            reached(sometimes::LATE_MARKER_EXPELLED);
            return place;
        }
        let busy: Vec<usize> = (0..self.nodes.len()).filter(|place| self.nodes[*place].work.is_some()).collect();
        match busy.is_empty() || self.rng.u32(..4) == 0 {
            true => self.rng.usize(..self.nodes.len()),
            false => busy[self.rng.usize(..busy.len())],
        }
    }

    fn left(&mut self) -> Left {
        if self.rng.bool() { Left::Whole } else { Left::AsOnDisk }
    }

    /// The whole process dies; its log and its stores are opened again after `meanwhile`.
    pub fn crash(&mut self, left: Left, meanwhile: impl FnOnce(&mut World)) {
        let folders: Vec<PathBuf> = self.nodes.iter().map(|node| node.folder.clone()).collect();
        for node in std::mem::take(&mut self.nodes) {
            self.bury(node, left);
        }
        self.zombies.clear();
        self.close_log();
        self.shared.tear_log();
        meanwhile(self);
        self.open_log();
        for folder in folders {
            self.join(folder);
        }
    }

    fn kill(&mut self, place: usize) {
        reached(sometimes::KILLED);
        let node = self.nodes.swap_remove(place);
        let folder = node.folder.clone();
        let left = self.left();
        // Without transactions nothing fences what it left: that it does not wake up is the condition.
        if let Some((committer, work)) = self.bury(node, left)
            && self.plan.config.processing.guarantee == Guarantee::ExactlyOnce
            && self.rng.bool()
        {
            self.zombies.push((committer, work));
        }
        self.join(folder);
    }

    /// Whoever worked at `place` has died at a point of its work: alone, or with the whole process.
    pub fn die(&mut self, place: usize, point: Point) {
        match point {
            Point::AfterWrite => self.crash(Left::AsOnDisk, |_| {}),
            _ if self.rng.bool() => {
                let left = self.left();
                self.crash(left, |_| {});
            }
            _ => {
                // What it was at is not on its way any more: it is left as it is.
                self.nodes[place].work = None;
                self.kill(place);
            }
        }
    }

    /// What ended in the middle of its stages might as well have ended with the process.
    pub fn die_in_commit(&mut self, place: usize) {
        match self.rng.bool() {
            true => self.crash(Left::Whole, |_| {}),
            false => self.kill(place),
        }
    }

    /// The engine is gone and does nothing any more; what is left of it may be a transaction on its way.
    fn bury(&mut self, node: Node, left: Left) -> Option<(Box<dyn Committer>, Work)> {
        let folder = node.folder.clone();
        let dying = folder.with_extension("dying");
        if left != Left::Whole {
            copy_folder(&folder, &dying);
        }
        let undecided = node.end();
        if left != Left::Whole {
            reached(sometimes::FORGOTTEN);
            put_back(&folder, &dying);
            self.checkpoints.retain(|(of, _), _| *of != folder);
        }
        if left == Left::Damaged {
            disks::damage(&folder, &mut self.rng);
            self.damaged.insert(folder);
        }
        undecided
    }

    fn expel(&mut self, place: usize) {
        reached(sometimes::EXPELLED);
        let group = &self.plan.config.application.id;
        let prefix = format!("{}-", self.nodes[place].name);
        let log = std::sync::Arc::clone(&self.log().inner);
        log.members(group).iter().filter(|id| id.starts_with(&prefix)).for_each(|id| log.expel(group, id));
        self.nodes[place].expelled = true;
    }

    fn freeze(&mut self, place: usize) {
        let node = &mut self.nodes[place];
        if node.frozen.is_some() || node.leaving {
            return;
        }
        note(format!("{} is frozen", node.name));
        node.frozen = Some(clock::now());
        if let Some((work, _)) = &node.work
            && self.rng.bool()
        {
            let log = &self.log.as_ref().expect("open").inner;
            node.half_done = HalfDone::begin(log, &node.name, work, &self.plan.topics.changelog);
        }
    }

    /// The group does without a frozen member, unless it is back in time.
    pub fn miss(&mut self, place: usize) {
        let Some(since) = self.nodes[place].frozen else { return };
        if self.rng.u32(..4) == 0 {
            return self.thaw(place);
        }
        let missed = since + SESSION_TIMEOUT;
        while clock::now() <= missed {
            self.pass(Duration::from_millis(500));
        }
        self.expel(place);
    }

    /// It goes on where it stood.
    pub fn thaw(&mut self, place: usize) {
        let Some(since) = self.nodes[place].frozen.take() else { return };
        let slept = clock::since(since);
        let node = &mut self.nodes[place];
        note(format!("{} goes on after {slept:?}", node.name));
        node.step(Input::Awake(clock::boot()), clock::now());
        if slept <= SESSION_TIMEOUT {
            reached(sometimes::FROZEN_BRIEFLY);
            if let Some(half_done) = self.nodes[place].half_done.take() {
                half_done.end(self);
            }
            return;
        }
        if node.expelled {
            reached(sometimes::FROZEN);
        }
        if node.work.is_some() {
            reached(sometimes::FROZEN_WORK);
        }
        if let Some(half_done) = self.nodes[place].half_done.take() {
            half_done.end(self);
        }
        checks::answers::refuses(self, place);
    }

    /// A dead engine's transaction arrives.
    pub fn zombie(&mut self) {
        let (mut committer, work) = self.zombies.pop().expect("possible");
        // Who is dead does not die.
        self.shared.remove_fuse();
        let number = work.number;
        let ended = committer.carry_out(work, 0, &|| false);
        note(format!("a dead engine's transaction {number}: {ended:?}"));
        let refused = matches!(ended, Ended::Aborted(_));
        assert!(refused, "P2, P6: a transaction of an engine that has left the group committed");
        reached(sometimes::ZOMBIE);
    }

    /// The group's positions expire, which they do while it has no member (protocol P23): no transaction takes as long.
    pub fn forget(&mut self) {
        reached(sometimes::EXPIRED);
        self.open_log();
        self.log().delete_group(&self.plan.config.application.id).unwrap();
        self.shared.expire_transactions(&self.log().inner);
        self.close_log();
    }

    fn copy(&mut self, place: usize) {
        let folder = self.nodes[place].folder.clone();
        let copy = folder.with_extension("copy");
        let _ = std::fs::remove_dir_all(&copy);
        copy_folder(&folder, &copy);
        self.copies.insert(folder, copy);
    }

    fn go_back(world: &mut World) {
        reached(sometimes::BACK);
        for (folder, copy) in std::mem::take(&mut world.copies) {
            put_back(&folder, &copy);
            world.checkpoints.retain(|(of, _), _| *of != folder);
        }
    }
}
