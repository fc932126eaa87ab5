//! Test only: the fold over marks, positions and roots against an oracle that knows all that is sent.
//!
//! Sequencers do here what [`crate::marks`] asks of them: each has read a prefix of progress of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::Book;
use crate::counts::{self, Count};
use crate::proto;
use crate::stamp::Stamp;

#[derive(Clone, Copy, Debug)]
enum Act {
    /// A record that nothing forbids yet: so far above the last promise.
    Send(usize, u64),
    /// One that was promised not to come.
    Break(usize, u64),
    /// One that was sent before.
    Again(usize, usize),
    /// The promise that nothing up to the greatest sent comes any more.
    Promise(usize),
    /// A sequencer takes so many records and commits.
    Sequence(usize, usize),
    /// Its observer reads so many records of progress.
    Observe(usize, usize),
    /// Its partition gets another owner, who reads all first.
    Move(usize),
    /// A root is done.
    Consume(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let of = 0usize..3;
    prop_oneof![
        4 => (of.clone(), 1u64..5).prop_map(|(of, above)| Act::Send(of, above)),
        1 => (of.clone(), 0u64..5).prop_map(|(of, below)| Act::Break(of, below)),
        1 => (of.clone(), 0usize..100).prop_map(|(of, which)| Act::Again(of, which)),
        2 => of.clone().prop_map(Act::Promise),
        6 => (of.clone(), 0usize..4).prop_map(|(of, many)| Act::Sequence(of, many)),
        5 => (of.clone(), 1usize..6).prop_map(|(of, many)| Act::Observe(of, many)),
        1 => of.prop_map(Act::Move),
        3 => (0usize..100).prop_map(Act::Consume),
    ]
}

#[derive(Clone, Copy, Debug)]
enum Sent {
    Record { sequence: u64, kept: bool },
    Mark(u64),
}

#[derive(Default)]
struct Sequencer {
    position: usize,
    read: usize,
    book: Book,
}

#[derive(Default)]
struct System {
    topic: Vec<Vec<Sent>>,
    sequencers: Vec<Sequencer>,
    progress: Vec<proto::Progress>,
    /// Of all progress: what an observer claims at the latest.
    book: Book,
    frontier: Option<u64>,
    greatest: u64,
    promised: u64,
    pending: Vec<u64>,
    came: BTreeMap<u64, u32>,
    refused: usize,
}

impl System {
    fn new(partitions: usize) -> System {
        System {
            topic: vec![Vec::new(); partitions],
            sequencers: (0..partitions).map(|_| Sequencer::default()).collect(),
            ..System::default()
        }
    }

    fn commit(&mut self, counts: Vec<Count>, told: proto::Progress) {
        for record in counts::records(counts, told) {
            self.book.take(&record, 1);
            self.progress.push(record);
        }
        let standing = self.book.standing();
        assert!(standing.frontier >= self.frontier, "W1: from {:?} to {:?}", self.frontier, standing.frontier);
        assert_eq!(self.book.horizon_due(1, Duration::ZERO), standing.frontier, "the horizon may follow, and no more");
        self.frontier = standing.frontier;
        let Some(frontier) = standing.frontier else { return };
        assert!(self.pending.iter().all(|root| *root > frontier), "{frontier}: {:?}", self.pending);
        for sent in self.topic.iter().flatten() {
            if let Sent::Record { sequence, kept: true } = sent {
                assert!(
                    *sequence > frontier || self.came.contains_key(sequence),
                    "{sequence} has not come: {frontier}"
                );
            }
        }
    }

    fn ends(&self) -> Vec<proto::End> {
        let end =
            |(partition, sent): (i32, &Vec<Sent>)| proto::End { topic: "t".into(), partition, end: sent.len() as i64 };
        (0..).zip(&self.topic).map(end).collect()
    }

    fn act(&mut self, act: Act) {
        let partitions = self.topic.len();
        match act {
            Act::Send(of, above) => {
                let sequence = self.promised + above + self.greatest.saturating_sub(self.promised) * (above % 2);
                self.greatest = self.greatest.max(sequence);
                self.topic[of % partitions].push(Sent::Record { sequence, kept: true });
            }
            Act::Break(of, below) => {
                let sequence = self.promised.saturating_sub(below);
                self.topic[of % partitions].push(Sent::Record { sequence, kept: false });
            }
            Act::Again(of, which) => {
                let all: Vec<Sent> = self.topic.iter().flatten().copied().collect();
                if let Some(Sent::Record { sequence, .. }) = all.get(which % all.len().max(1)) {
                    self.topic[of % partitions].push(Sent::Record { sequence: *sequence, kept: false });
                }
            }
            Act::Promise(of) => {
                self.promised = self.promised.max(self.greatest);
                self.topic[of % partitions].push(Sent::Mark(self.promised));
            }
            Act::Sequence(of, many) => self.sequence(of % partitions, many),
            Act::Observe(of, many) => {
                let sequencer = &mut self.sequencers[of % partitions];
                for record in self.progress.iter().skip(sequencer.read).take(many) {
                    sequencer.book.take(record, 1);
                    sequencer.read += 1;
                }
            }
            Act::Move(of) => {
                let position = self.sequencers[of % partitions].position;
                self.sequencers[of % partitions] = Sequencer { position, ..Sequencer::default() };
                self.act(Act::Observe(of, usize::MAX));
            }
            Act::Consume(_) if self.pending.is_empty() => {}
            Act::Consume(which) => {
                let root = self.pending.swap_remove(which % self.pending.len());
                self.commit(vec![Count::consumed(&Stamp::root(0, root), 0)], proto::Progress::default());
            }
        }
    }

    fn sequence(&mut self, of: usize, many: usize) {
        let (mut counts, mut told) = (Vec::new(), proto::Progress::default());
        for _ in 0..many {
            let Sequencer { position, book, .. } = &mut self.sequencers[of];
            let Some(sent) = self.topic[of].get(*position) else { break };
            match *sent {
                Sent::Mark(sequence) => told.marks = vec![proto::Mark { epoch: 0, sequence, ends: Vec::new() }],
                Sent::Record { sequence, kept } => {
                    let is_excluded = book.marks().exclude(0, &"t".into(), of as i32, *position as i64, sequence);
                    let known = if is_excluded { Some(book.known(sequence)) } else { None };
                    match known {
                        Some(None) => break,
                        Some(Some(found)) if found.has(sequence) => {}
                        Some(Some(_)) => {
                            assert!(!kept, "{sequence} was sent in time");
                            self.refused += 1;
                        }
                        None => {
                            counts.push(Count::produced(&Stamp::root(0, sequence), 0));
                            *self.came.entry(sequence).or_default() += 1;
                            self.pending.push(sequence);
                        }
                    }
                }
            }
            *position += 1;
        }
        told.marks.iter_mut().for_each(|mark| mark.ends = self.ends());
        let Sequencer { position, book, .. } = &self.sequencers[of];
        told.source_positions = vec![proto::SourcePosition {
            topic: "t".into(),
            partition: of as i32,
            position: *position as i64,
            stamp: "header".into(),
            greatest: Some(self.greatest),
            mark: book.marks().greatest(0),
            ..Default::default()
        }];
        self.commit(counts, told);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// F1, V1 to V4: no claim is early, what keeps its promise is never refused, and at the end all is final.
    #[test]
    fn no_claim_is_early_and_all_end(partitions in 1usize..4, acts in prop::collection::vec(act(), 0..120)) {
        let mut system = System::new(partitions);
        acts.into_iter().for_each(|act| system.act(act));
        for _ in 0..3 {
            for of in 0..partitions {
                system.act(Act::Promise(of));
                for _ in 0..3 {
                    (0..partitions).for_each(|of| {
                        system.act(Act::Observe(of, usize::MAX));
                        system.act(Act::Sequence(of, usize::MAX));
                    });
                }
            }
        }
        for of in 0..partitions {
            prop_assert_eq!(system.sequencers[of].position, system.topic[of].len(), "V4: nothing is held for ever");
        }
        while !system.pending.is_empty() {
            system.act(Act::Consume(0));
        }
        prop_assert_eq!(system.book.standing().frontier, Some(system.promised));
    }
}
