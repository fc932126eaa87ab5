//! Dead letters are retried while everything goes on: by whoever asks, as often as that is drawn, and each engine reads
//! `<app>-progress` at its own pace.
//!
//! What is right in the end is told by the records of `<app>-progress`, read here once more from the beginning.

use std::collections::{BTreeMap, BTreeSet};

use tidegate::clock;
use tidegate::dead_letter;
use tidegate::event::StampedEvent;
use tidegate::frontier::{Book, Verdict};
use tidegate::instance::engine::{Accepted, Awaiting, Input, Question, Wish};
use tidegate::log::{Record, TopicPartition};
use tidegate::progress::{self, Told};
use tidegate::proto;
use tidegate::retry::{Letter, Retry};
use tidegate::stamp::Stamp;
use tokio::sync::oneshot;

use super::bugs::{Bug, Planted};
use super::checks::{progress_records, read};
use super::horizons::Model;
use super::node::Node;
use super::sometimes::{self, reached};
use super::timeline::note;
use super::world::World;

/// What one engine's instance has read of `<app>-progress`, and who waits for more of it.
#[derive(Default)]
pub struct Reading {
    book: Book,
    position: i64,
    pub awaiting: Vec<Awaiting>,
}

impl Reading {
    fn known(&self, stamp: &Stamp) -> u32 {
        let last = self.book.retries(stamp.sequence, stamp.generation).next_back();
        last.map_or(0, |last| last.number)
    }

    fn decided(&self, of: &Awaiting, planted: &Planted) -> Option<Verdict> {
        let verdict = self.book.verdict(&of.retry);
        match verdict {
            None if planted.is(Bug::RetryUnread) => Some(Verdict::Counts),
            Some(Verdict::Second) if planted.is(Bug::SecondRetried) => Some(Verdict::Counts),
            Some(Verdict::Overtaken) if planted.is(Bug::OvertakenRetried) => Some(Verdict::Counts),
            verdict => verdict,
        }
    }
}

/// P20: what begins a retry is called once its open record was read.
#[derive(Default)]
pub struct Beginnings {
    /// By partition and offset.
    delivered: BTreeMap<(i32, i64), Retry>,
    read: BTreeSet<u64>,
}

impl Beginnings {
    pub fn called(&self, partition: i32, offset: i64) {
        if let Some(retry) = self.delivered.get(&(partition, offset)) {
            assert!(self.read.contains(&retry.nonce), "P20: {retry:?} is handled before its open record was read");
        }
    }

    /// The records of the repartition topic that are about to be delivered.
    pub fn delivered(&mut self, partition: i32, records: &[Record]) {
        let begun = |record: &Record| Some(((partition, record.offset), begun(record)?));
        self.delivered.extend(records.iter().filter_map(begun));
    }
}

/// The retry that a record of the repartition topic begins.
pub fn begun(record: &Record) -> Option<Retry> {
    let (key, value) = (record.key.clone()?, record.value.clone()?);
    let event = StampedEvent::decode(key, value.clone()).ok()?;
    Retry::begun_by(&event, value).expect("a mark can be read")
}

/// What is retried in a seed.
#[derive(Default)]
pub struct Retries {
    /// So many times somebody still asks for one.
    pub left: u32,
    /// Who was asked, and the answer once it is there.
    asked: Vec<(String, oneshot::Receiver<Accepted>)>,
    /// Who has accepted it, by nonce.
    accepted: BTreeMap<u64, String>,
}

/// The dead letters that are events.
fn letters(world: &World) -> Vec<(Letter, StampedEvent)> {
    let mut all = Vec::new();
    for partition in 0..world.plan.config.processing.partitions {
        let of = TopicPartition::new(&world.plan.topics.dead_letter, partition);
        for record in read(&world.log().inner, &of, 0) {
            if dead_letter::read(&record.headers).kind != Some(dead_letter::Kind::Event) {
                continue;
            }
            let (key, value) = (record.key.expect("an event has a key"), record.value.expect("and a value"));
            let event = StampedEvent::decode(key, value).expect("an event can be read");
            all.push((Letter { partition, offset: record.offset }, event));
        }
    }
    all
}

impl World {
    /// Somebody asks everybody to retry some dead letters, as a door does. False when there is none.
    pub fn retry(&mut self) -> bool {
        self.hear_answers();
        let letters = letters(self);
        if letters.is_empty() {
            return false;
        }
        self.retries.left -= 1;
        let first = self.rng.usize(..letters.len());
        let partition = letters[first].0.partition;
        let most = self.rng.usize(1..=3);
        let chosen = letters[first..].iter().filter(|(letter, _)| letter.partition == partition).take(most);
        let chosen: Vec<_> = chosen.cloned().collect();
        let (forced, looks) = (self.rng.u32(..8) == 0, self.rng.u32(..4) > 0);
        for node in self.nodes.iter_mut().filter(|node| node.frozen.is_none()) {
            let reading = &node.reading;
            let may = |letter: &Letter| forced || !looks || !reading.book.is_retried(*letter);
            let wish = |(letter, event): &(Letter, StampedEvent)| {
                let known = reading.known(&event.stamp);
                may(letter).then(|| Wish { letter: *letter, event: Some(event.clone()), forced, known })
            };
            let wishes: Vec<Wish> = chosen.iter().filter_map(wish).collect();
            if wishes.is_empty() {
                continue;
            }
            note(format!(
                "{} is asked to retry {:?}",
                node.name,
                wishes.iter().map(|it| it.letter).collect::<Vec<_>>()
            ));
            let (answer, answered) = oneshot::channel();
            node.step(Input::Question(Question::Retry(partition, wishes, answer)), clock::now());
            self.retries.asked.push((node.name.clone(), answered));
        }
        true
    }

    /// Nobody waits for an answer any more.
    pub fn all_retries_are_answered(&mut self) -> bool {
        self.hear_answers();
        self.retries.asked.is_empty()
    }

    fn hear_answers(&mut self) {
        let Retries { asked, accepted, .. } = &mut self.retries;
        asked.retain_mut(|(name, answer)| match answer.try_recv() {
            Ok(Accepted::Committed(retries)) => {
                accepted.extend(retries.into_iter().map(|retry| (retry.nonce, name.clone())));
                false
            }
            Err(oneshot::error::TryRecvError::Empty) => true,
            Ok(_) | Err(_) => false,
        });
    }

    /// The instance of an engine reads on in `<app>-progress`; false when there is nothing more.
    pub fn observe(&mut self, place: usize) -> bool {
        let of = TopicPartition::new(&self.plan.topics.progress, 0);
        let Self { nodes, rng, log, .. } = self;
        let log = log.as_ref().expect("open but for a moment");
        let node = &mut nodes[place];
        let records = read(&log.inner, &of, node.reading.position);
        if records.is_empty() {
            return false;
        }
        let count = if rng.bool() { records.len() } else { rng.usize(1..=records.len()) };
        for record in records.into_iter().take(count) {
            node.reading.position = record.offset + 1;
            if let Told::Counts(progress) = progress::read(&of, record).expect("it can be read") {
                node.reading.book.take(&progress, 0);
                node.decide();
            }
        }
        true
    }

    /// R1: what was said to be committed is told in `<app>-progress`. Which dead letters were retried, by the order of
    /// that, and how often: what the reference needs to know.
    pub fn settle_retries(&mut self) {
        self.hear_answers();
        assert!(self.retries.asked.is_empty(), "R1: somebody waits for ever for {} retries", self.retries.asked.len());
        let of = TopicPartition::new(&self.plan.topics.progress, 0);
        let (mut letters_sent, mut ids, mut nonces) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let (mut counting, mut overtaken, mut horizons) = (Vec::new(), Vec::new(), Model::default());
        for record in progress_records(self) {
            let offset = record.offset;
            let Told::Counts(told) = progress::read(&of, record).expect("it can be read") else { continue };
            horizons.take(offset, &told);
            for retry in told.retries {
                nonces.insert(retry.nonce);
                let letter = (retry.partition, retry.offset);
                if letters_sent.contains(&letter) && !retry.forced {
                    reached(sometimes::RETRY_SECOND);
                } else if horizons.at(offset) >= Some(retry.sequence) {
                    reached(sometimes::RETRY_OVERTAKEN);
                    overtaken.push(retry);
                } else if !ids.insert((retry.sequence, retry.generation, retry.number)) {
                    reached(sometimes::RETRY_TAKEN);
                } else {
                    letters_sent.insert(letter);
                    counting.push(retry);
                }
            }
        }
        let lost = self.retries.accepted.keys().find(|nonce| !nonces.contains(*nonce));
        assert_eq!(lost, None, "R1: a retry was said to be committed and is not");
        let stamps: BTreeMap<Letter, Stamp> =
            letters(self).into_iter().map(|(letter, event)| (letter, event.stamp)).collect();
        let stamp_of = |retry: &proto::Retry| {
            let letter = Letter { partition: retry.partition, offset: retry.offset };
            stamps[&letter].clone()
        };
        self.workload.overtaken = overtaken.iter().map(stamp_of).collect();
        for retry in counting {
            let (stamp, forced) = (stamp_of(&retry), retry.forced);
            reached(sometimes::RETRIED);
            *self.workload.retried.entry(stamp).or_default() += 1;
            self.workload.forced |= forced;
        }
        self.tell_moved();
    }

    /// Whether some retry was handled elsewhere than where it was accepted.
    fn tell_moved(&self) {
        for node in &self.nodes {
            for retry in node.desk.borrow().beginnings.delivered.values() {
                if self.retries.accepted.get(&retry.nonce).is_some_and(|accepted| *accepted != node.name) {
                    reached(sometimes::RETRY_MOVED);
                }
            }
        }
    }
}

impl Node {
    /// Tells the engine what its instance has read of retries.
    pub fn decide(&mut self) {
        for of in std::mem::take(&mut self.reading.awaiting) {
            let Some(verdict) = self.reading.decided(&of, &self.planted) else {
                self.reading.awaiting.push(of);
                continue;
            };
            note(format!("{} hears of {:?}: {verdict:?}", self.name, of.retry));
            if self.reading.book.verdict(&of.retry).is_some() {
                self.desk.borrow_mut().beginnings.read.insert(of.retry.nonce);
            }
            let sequence = of.retry.sequence;
            let known = self.reading.book.retries(sequence, of.retry.generation).next_back();
            let known = known.map_or(0, |last| last.number);
            self.step(Input::Decided(of, verdict, known), clock::now());
        }
    }
}
