//! Which dead letters were retried, and which retries count. The order of `<app>-progress` decides, so whoever has read
//! as far says the same (protocol P19, P20).
//!
//! V1: of several retries of one dead letter the first counts, and each one that is forced.
//! V2: of several retries with one number in one sequence and generation the first counts.
//! V3: a retry does not count where a horizon at or above its sequence was announced before it.
//! V4: nothing is forgotten that may still be asked for: one that does not count is known until its event is consumed,
//!     one that counts until the horizon has passed its sequence and its cascade is settled; that a dead letter was
//!     retried is known for good.

use std::collections::BTreeMap;

use super::cascades::Pending;
use super::runs::Runs;
use crate::counts::expand_runs;
use crate::proto;
use crate::retry::{Letter, Retry};

/// Sequence, generation and number of a retry: a cascade that is counted by itself.
type Id = (u64, u32, u32);

/// What is pending of retries and replays.
type Others = BTreeMap<Id, Pending>;

/// What becomes of a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Verdict {
    /// Its event is handled.
    Counts = 0,
    /// The dead letter was retried before (V1): its event is consumed without a trace.
    Second = 1,
    /// Another retry of this sequence and generation has its number (V2): it gets another one.
    Taken = 2,
    /// The horizon has overtaken it (V3): its event is a dead letter again.
    Overtaken = 3,
}

/// What the retries told so far come to.
#[derive(Debug, Default)]
pub(super) struct Retries {
    /// Those that count.
    counting: BTreeMap<Id, Retry>,
    /// Those that do not.
    void: BTreeMap<Retry, Verdict>,
    /// The dead letters that were sent again with their original stamps, by partition, as offsets.
    retried: BTreeMap<i32, Runs>,
    /// Those that were sent as new events.
    renewed: BTreeMap<i32, Runs>,
    /// How many retries were told.
    told: u64,
}

impl Retries {
    /// Takes what one record tells. `horizon` is the one announced before it; `others` is what is pending after it.
    pub(super) fn take(&mut self, told: &[proto::Retry], horizon: Option<u64>, others: &Others) {
        self.told += told.len() as u64;
        for retry in told.iter().map(|retry| Retry::from(*retry)) {
            match self.judge(&retry, horizon) {
                Verdict::Counts => self.count(retry),
                verdict => _ = self.void.insert(retry, verdict),
            }
        }
        self.void.retain(|retry, _| others.contains_key(&id(retry)));
        if let Some(horizon) = horizon {
            let passed = self.counting.range(..=(horizon, u32::MAX, u32::MAX)).map(|(id, _)| *id);
            let settled: Vec<Id> = passed.filter(|id| !others.contains_key(id)).collect();
            settled.iter().for_each(|id| _ = self.counting.remove(id));
        }
    }

    fn judge(&self, retry: &Retry, horizon: Option<u64>) -> Verdict {
        let is_new = retry.number == 0;
        match () {
            () if self.holds(retry.letter) && !retry.forced && !is_new => Verdict::Second,
            () if horizon.is_some_and(|horizon| retry.sequence <= horizon) && !is_new => Verdict::Overtaken,
            () if self.counting.contains_key(&id(retry)) && !is_new => Verdict::Taken,
            () => Verdict::Counts,
        }
    }

    fn count(&mut self, retry: Retry) {
        let letters = if retry.number > 0 { &mut self.retried } else { &mut self.renewed };
        if let Ok(offset) = u64::try_from(retry.letter.offset) {
            letters.entry(retry.letter.partition).or_default().add(offset, 1);
        }
        if retry.number > 0 {
            self.counting.insert(id(&retry), retry);
        }
    }

    /// What becomes of a retry; `None` = its open record was not read yet.
    pub(super) fn verdict(&self, retry: &Retry) -> Option<Verdict> {
        let counts = self.counting.get(&id(retry)).is_some_and(|counting| counting == retry);
        if counts { Some(Verdict::Counts) } else { self.void.get(retry).copied() }
    }

    /// Whether a dead letter was sent again, either way.
    pub(super) fn holds(&self, letter: Letter) -> bool {
        self.is_retried(letter) || holds(&self.renewed, letter)
    }

    /// Whether a dead letter was sent again with its original stamp.
    pub(super) fn is_retried(&self, letter: Letter) -> bool {
        holds(&self.retried, letter)
    }

    /// How many retries were told.
    pub(super) fn told(&self) -> u64 {
        self.told
    }

    /// The retries that count of a sequence and generation, in the order of their numbers.
    pub(super) fn of(&self, sequence: u64, generation: u32) -> impl DoubleEndedIterator<Item = &Retry> {
        self.counting.range((sequence, generation, 0)..=(sequence, generation, u32::MAX)).map(|(_, retry)| retry)
    }

    /// All that is known, in messages of at most so many retries and runs each.
    pub(super) fn write(&self, most: usize) -> Vec<proto::Retries> {
        let counting = self
            .counting
            .values()
            .map(|retry| proto::Retries { counting: vec![retry.into()], ..proto::Retries::default() });
        let void = self.void.iter().map(|(retry, verdict)| {
            let void = proto::Void { retry: Some(retry.into()), why: *verdict as u32 };
            proto::Retries { void: vec![void], ..proto::Retries::default() }
        });
        let letters = |letters: &BTreeMap<i32, Runs>, anew: bool| -> Vec<proto::Retries> {
            let runs = letters.iter().flat_map(|(partition, runs)| runs.told().0.map(|run| (*partition, run)));
            let letters = |(partition, (first, end)): (i32, (u64, u64))| {
                let letters = proto::Letters { partition, runs: vec![first, end - first], anew };
                proto::Retries { retried: vec![letters], ..proto::Retries::default() }
            };
            runs.map(letters).collect()
        };
        let retried = letters(&self.retried, false).into_iter().chain(letters(&self.renewed, true));
        let mut messages: Vec<proto::Retries> = Vec::new();
        for (place, one) in counting.chain(void).chain(retried).enumerate() {
            if place % most == 0 {
                messages.push(proto::Retries::default());
            }
            let message = messages.last_mut().expect("the first place is a multiple");
            message.counting.extend(one.counting);
            message.void.extend(one.void);
            message.retried.extend(one.retried);
        }
        messages
    }

    /// Takes one of the messages that [`Retries::write`] has made.
    pub(super) fn read(&mut self, message: &proto::Retries) {
        for retry in message.counting.iter().map(|retry| Retry::from(*retry)) {
            self.counting.insert(id(&retry), retry);
        }
        for void in &message.void {
            let verdict = match void.why {
                1 => Verdict::Second,
                2 => Verdict::Taken,
                _ => Verdict::Overtaken,
            };
            self.void.extend(void.retry.map(|retry| (Retry::from(retry), verdict)));
        }
        for letters in &message.retried {
            let kept = if letters.anew { &mut self.renewed } else { &mut self.retried };
            let runs = kept.entry(letters.partition).or_default();
            expand_runs(&letters.runs).for_each(|(first, length)| runs.add(first, length));
        }
    }
}

fn holds(letters: &BTreeMap<i32, Runs>, letter: Letter) -> bool {
    let offset = u64::try_from(letter.offset).ok();
    letters.get(&letter.partition).zip(offset).and_then(|(runs, offset)| runs.holds(offset)).unwrap_or(false)
}

fn id(retry: &Retry) -> Id {
    (retry.sequence, retry.generation, retry.number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smallvec::smallvec;

    use super::*;

    fn retry(offset: i64, nonce: u64, (sequence, number): (u64, u32), forced: bool) -> Retry {
        let letter = Letter { partition: (offset % 2) as i32, offset };
        Retry { letter, nonce, forced, sequence, generation: 0, number }
    }

    /// One record after the other: a retry, its event consumed or not, or a horizon.
    #[derive(Clone, Debug)]
    enum Step {
        Open { offset: i64, sequence: u64, number: u32, forced: bool },
        Consume(usize),
        Horizon(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let open = (0i64..6, 0u32..4, prop::bool::weighted(0.2)).prop_map(|(offset, number, forced)| {
            // A dead letter is of one sequence.
            Step::Open { offset, sequence: offset as u64 / 2, number, forced }
        });
        prop_oneof![6 => open, 3 => (0usize..9).prop_map(Step::Consume), 1 => (0u64..3).prop_map(Step::Horizon)]
    }

    proptest! {
        /// V1 to V4 against a list of all that was told.
        #[test]
        fn the_first_counts_and_what_may_be_asked_for_is_known(steps in prop::collection::vec(step(), 0..60)) {
            let (mut retries, mut others, mut horizon) = (Retries::default(), Others::new(), None);
            let mut told: Vec<(Retry, Verdict, bool)> = Vec::new();
            for (nonce, step) in (0..).zip(steps) {
                let mut record = Vec::new();
                match step {
                    Step::Open { offset, sequence, number, forced } => {
                        let retry = retry(offset, nonce, (sequence, number), forced);
                        let counted = |is_same: &dyn Fn(&Retry) -> bool| {
                            told.iter().any(|(before, verdict, _)| *verdict == Verdict::Counts && is_same(before))
                        };
                        let verdict = if number == 0 {
                            Verdict::Counts
                        } else if !forced && counted(&|before| before.letter == retry.letter) {
                            Verdict::Second
                        } else if horizon.is_some_and(|horizon| sequence <= horizon) {
                            Verdict::Overtaken
                        } else if counted(&|before| id(before) == id(&retry)) {
                            Verdict::Taken
                        } else {
                            Verdict::Counts
                        };
                        told.push((retry, verdict, number > 0));
                        record.push(proto::Retry::from(&retry));
                    }
                    Step::Consume(place) => {
                        if let Some((_, _, open)) = told.get_mut(place) {
                            *open = false;
                        }
                    }
                    // P19: only above what is open.
                    Step::Horizon(next) => {
                        let open = told.iter().any(|(retry, _, open)| *open && retry.sequence <= next);
                        horizon = if open { horizon } else { horizon.max(Some(next)) };
                    }
                }
                others.clear();
                for (retry, ..) in told.iter().filter(|(_, _, open)| *open) {
                    others.insert(id(retry), smallvec![1]);
                }
                retries.take(&record, horizon, &others);
                for (retry, verdict, open) in &told {
                    let is_above = horizon.is_none_or(|horizon| retry.sequence > horizon);
                    if *open || (*verdict == Verdict::Counts && is_above && retry.number > 0) {
                        prop_assert_eq!(retries.verdict(retry), Some(*verdict), "V4: {:?}", retry);
                    }
                }
                for offset in 0..6 {
                    let letter = retry(offset, 0, (0, 0), false).letter;
                    let is_retried = told.iter().any(|(retry, verdict, _)| {
                        *verdict == Verdict::Counts && retry.letter == letter
                    });
                    prop_assert_eq!(retries.holds(letter), is_retried);
                }
                let mut again = Retries::default();
                retries.write(3).iter().for_each(|message| again.read(message));
                again.told = retries.told;
                prop_assert_eq!(format!("{again:?}"), format!("{retries:?}"), "a snapshot has all of it");
                retries = again;
            }
        }
    }
}
