//! Producers whose commits do not end well, or end late, or in the middle of which a process dies.

use std::collections::BTreeSet;
use std::sync::Arc;

use tidegate::log::{
    Append, Appender, CommitError, LogError, Member, Membership, OffsetCommit, Producer, Receipt, TopicPartition,
    Transaction,
};

use super::points::Point;
use super::{Outcome, Shared};
use crate::checks::truth::Facts;
use crate::sometimes::{self, reached};
use crate::timeline::note;

const DEAD: &str = "its process dies";

/// A transaction's entries come in the order of a hash map, which no seed decides: here they come by key, the
/// bookkeeping (the empty key) last, as ever.
fn by_key(append: &Append) -> Append {
    let mut records = append.records.clone();
    if append.to.topic.ends_with("-state-changelog") || &*append.to.topic == "out" {
        records.sort_by_key(|record| {
            let key = record.key.clone().unwrap_or_default();
            (key.is_empty(), key)
        });
    }
    Append { to: append.to.clone(), records }
}

/// A transactional producer.
pub struct SimProducer {
    pub(super) inner: Box<dyn Producer>,
    pub(super) id: String,
    pub(super) epoch: u64,
    pub(super) shared: Shared,
    /// The end of a transaction of unknown outcome is still on its way.
    pub(super) in_doubt: bool,
}

impl Producer for SimProducer {
    fn commit(&mut self, transaction: &Transaction) -> Result<Receipt, CommitError> {
        let transaction = &Transaction {
            appends: transaction.appends.iter().map(by_key).collect(),
            offsets: transaction.offsets.clone(),
            membership: transaction.membership.clone(),
            ends_of: transaction.ends_of.clone(),
        };
        let dead = || Err(CommitError::Aborted(DEAD.into()));
        // A broker lets no transaction begin before the last one's markers stand.
        self.shared.markers_of(&self.id);
        let facts = Facts::of(transaction, |of| self.shared.end(of).expect("it is there"));
        if self.shared.dies_at(Point::BeforeCommit) {
            return dead();
        }
        if self.shared.fuse_is_set(&[Point::InProduce, Point::AfterProduce, Point::AfterOffsets]) {
            return self.in_steps(transaction).inspect(|_| self.shared.committed(facts));
        }
        if self.in_doubt {
            return self.ended_by_another(transaction);
        }
        match self.shared.outcome() {
            Outcome::Well => {}
            Outcome::Late => return self.late(transaction).inspect(|_| self.shared.committed(facts)),
            Outcome::Aborted => {
                reached(sometimes::ABORTED);
                return Err(CommitError::Aborted("by chance".into()));
            }
            Outcome::Fenced => {
                reached(sometimes::FENCED);
                return Err(CommitError::Fenced("by chance".into()));
            }
            Outcome::UnknownNot => {
                reached(sometimes::UNKNOWN_NOT);
                self.in_doubt = true;
                return Err(CommitError::Unknown("by chance, and not committed".into()));
            }
            Outcome::UnknownDone => {
                self.whole(transaction)?;
                self.shared.committed(facts);
                reached(sometimes::UNKNOWN_DONE);
                self.in_doubt = true;
                return Err(CommitError::Unknown("by chance, and committed".into()));
            }
        }
        let before = self.shared.fuse_is_set(&[Point::AfterWrite]).then(|| self.shared.log_tail());
        let receipt = self.whole(transaction)?;
        if let Some(before) = before
            && self.shared.dies_at(Point::AfterWrite)
        {
            self.shared.tears_from(before);
            self.shared.in_doubt(facts);
            return dead();
        }
        self.shared.committed(facts);
        if self.shared.dies_at(Point::AfterCommit) {
            return dead();
        }
        Ok(receipt)
    }

    fn recover(&mut self) -> Result<(), LogError> {
        self.shared.markers_of(&self.id);
        self.in_doubt = false;
        self.epoch = self.shared.holds(&self.id);
        self.inner.recover()
    }
}

impl SimProducer {
    /// The embedded log refuses a generation that is over, and a member that has joined anew, for good; Kafka says of
    /// both that the generation is another one when the member has kept its name.
    fn whole(&mut self, transaction: &Transaction) -> Result<Receipt, CommitError> {
        match self.inner.commit(transaction) {
            Err(CommitError::Aborted(reason))
                if reason.contains(" is over: ") || reason.contains("is not a member of the group") =>
            {
                reached(sometimes::STALE);
                Err(CommitError::Stale(reason))
            }
            ended => ended,
        }
    }

    /// P7: the delayed end of a transaction in doubt ends the next one of its producer in the middle, unless that is a
    /// new one by then.
    fn ended_by_another(&mut self, transaction: &Transaction) -> Result<Receipt, CommitError> {
        let half = transaction.appends.iter().take(transaction.appends.len().div_ceil(2)).map(by_key).collect();
        let membership = transaction.membership.clone();
        self.whole(&Transaction { appends: half, offsets: Vec::new(), membership, ends_of: Vec::new() })?;
        self.in_doubt = false;
        Err(CommitError::Aborted("ended by the end of another".into()))
    }

    fn check_holder(&self) -> Result<(), CommitError> {
        match self.shared.is_held(&self.id, self.epoch) {
            true => Ok(()),
            false => Err(CommitError::Fenced(format!("a newer producer holds the id {}", self.id))),
        }
    }

    /// As a broker sees it: produced, then the positions, then decided; it dies on the way, and leaves it undecided.
    fn in_steps(&mut self, transaction: &Transaction) -> Result<Receipt, CommitError> {
        self.check_holder()?;
        let log = self.shared.log();
        let aborted = |error: LogError| CommitError::Aborted(error.to_string());
        let number = log.begin(&self.id).map_err(aborted)?;
        let dead = || {
            self.shared.abandon(&self.id, number);
            Err(CommitError::Aborted(DEAD.into()))
        };
        for (place, append) in transaction.appends.iter().enumerate() {
            if place * 2 >= transaction.appends.len() && self.shared.dies_at(Point::InProduce) {
                return dead();
            }
            log.append_in(number, append).map_err(aborted)?;
        }
        if self.shared.dies_at(Point::AfterProduce) {
            return dead();
        }
        if let Err(error) = log.offsets_in(number, &transaction.offsets, &transaction.membership) {
            log.decide(number, false).map_err(aborted)?;
            return Err(aborted(error));
        }
        if self.shared.dies_at(Point::AfterOffsets) {
            return dead();
        }
        // The fuse is for another point.
        log.decide(number, true).map_err(|error| CommitError::Unknown(error.to_string()))?;
        Ok(self.receipt(&transaction.ends_of))
    }

    /// Committed and acknowledged; some of its parts cannot be read yet.
    fn late(&mut self, transaction: &Transaction) -> Result<Receipt, CommitError> {
        self.check_holder()?;
        let log = self.shared.log();
        let aborted = |error: LogError| CommitError::Aborted(error.to_string());
        let names = ["", "~1", "~2"].map(|part| format!("{}{part}", self.id));
        let names = &names[..self.shared.draw(2, 3)];
        let numbers = names.iter().map(|id| log.begin(id)).collect::<Result<Vec<_>, _>>().map_err(aborted)?;
        let any = || numbers[self.shared.draw(0, numbers.len() - 1)];
        let (placed, offsets) = (transaction.appends.iter().map(|append| (any(), append)).collect::<Vec<_>>(), any());
        // The membership first: nothing of it stands when it does not hold.
        if let Err(error) = log.offsets_in(offsets, &transaction.offsets, &transaction.membership) {
            numbers.iter().try_for_each(|number| log.decide(*number, false)).map_err(aborted)?;
            return Err(aborted(error));
        }
        let mut with_entries = BTreeSet::new();
        for (number, append) in placed {
            if append.to.topic.ends_with("-state-changelog") {
                with_entries.insert(number);
            }
            log.append_in(number, append).map_err(aborted)?;
        }
        let at_once = self.shared.draw(0, numbers.len() - 1);
        for (place, number) in numbers.into_iter().enumerate() {
            match place == at_once && self.shared.draw(0, 1) == 0 {
                true => log.decide(number, true).map_err(aborted)?,
                false => self.shared.comes_late(&self.id, number, true, with_entries.contains(&number)),
            }
        }
        note(format!("{} commits, its markers come late", self.id));
        Ok(self.receipt(&transaction.ends_of))
    }

    fn receipt(&self, ends_of: &[TopicPartition]) -> Receipt {
        let end = |of: &TopicPartition| Some((of.clone(), self.shared.end(of)?));
        Receipt { ends: ends_of.iter().filter_map(end).collect() }
    }
}

/// A producer without transactions.
pub struct SimAppender {
    pub(super) inner: Box<dyn Appender>,
    pub(super) shared: Shared,
}

impl Appender for SimAppender {
    /// What fails has appended nothing, all, or some first records of each partition. It is refused and tried again, or
    /// given up.
    fn append(&mut self, appends: &mut Vec<Append>, give_up: &dyn Fn() -> bool) -> Result<(), LogError> {
        appends.iter_mut().for_each(|append| *append = by_key(append));
        let dead = || Err(LogError::Migrated(DEAD.into()));
        if self.shared.dies_at(Point::BeforeCommit) {
            return dead();
        }
        let dies = self.shared.dies_at(Point::InStage);
        let mut part = match self.shared.outcome() {
            _ if dies => self.some_of(appends),
            Outcome::Well | Outcome::Late => {
                let after = after(appends);
                self.inner.append(appends, give_up)?;
                return if self.shared.dies_at(after) { dead() } else { Ok(()) };
            }
            Outcome::Aborted => Vec::new(),
            Outcome::Fenced => appends.to_vec(),
            Outcome::UnknownNot | Outcome::UnknownDone => self.some_of(appends),
        };
        if !part.is_empty() {
            reached(sometimes::PART);
        }
        let counts: Vec<_> = part.iter().map(|append| (append.to.clone(), append.records.len())).collect();
        self.inner.append(&mut part, give_up)?;
        if dies || self.shared.draw(0, 3) > 0 {
            return Err(LogError::Migrated("by chance".into()));
        }
        for (to, count) in counts {
            appends.iter_mut().filter(|append| append.to == to).for_each(|append| drop(append.records.drain(..count)));
        }
        appends.retain(|append| !append.records.is_empty());
        Err(LogError::Refused("by chance".into()))
    }
}

impl SimAppender {
    fn some_of(&self, appends: &[Append]) -> Vec<Append> {
        let some = |append: &Append| {
            let count = self.shared.draw(0, append.records.len());
            Append { to: append.to.clone(), records: append.records[..count].to_vec() }
        };
        appends.iter().map(some).filter(|append| !append.records.is_empty()).collect()
    }
}

/// The point behind a stage.
fn after(appends: &[Append]) -> Point {
    let changelog = appends.iter().filter(|append| append.to.topic.ends_with("-state-changelog"));
    let mut keys = changelog.flat_map(|append| &append.records).map(|record| record.key.as_ref());
    match keys.next() {
        Some(key) if key.is_some_and(|key| !key.is_empty()) => Point::AfterEntries,
        Some(_) => Point::AfterDone,
        None if appends.iter().all(|append| append.to.topic.ends_with("-progress")) => Point::AfterDone,
        None => Point::AfterChildren,
    }
}

/// A member as a committer or an opener has it: its plain commits may not end well, and who carries them out may die.
pub struct SimMember {
    /// The member itself.
    pub inner: Arc<dyn Member>,
    /// What befalls it.
    pub shared: Shared,
    /// Where it dies before a commit and after it; a committer's commit may also fail by chance.
    pub points: (Option<Point>, Point),
}

impl Member for SimMember {
    fn start(&self, of: TopicPartition, position: i64, epoch: u64) {
        self.inner.start(of, position, epoch);
    }

    fn pause(&self, partitions: Vec<TopicPartition>) {
        self.inner.pause(partitions);
    }

    fn resume(&self, partitions: Vec<TopicPartition>) {
        self.inner.resume(partitions);
    }

    fn stop(&self, partitions: Vec<TopicPartition>) {
        self.inner.stop(partitions);
    }

    fn commit(&self, offsets: &[OffsetCommit], membership: &Membership) -> Result<(), LogError> {
        let (before, after) = self.points;
        match before {
            Some(before) if self.shared.dies_at(before) => return Err(LogError::Migrated(DEAD.into())),
            Some(_) => {}
            None => match self.shared.outcome() {
                Outcome::Aborted => return Err(LogError::Migrated("by chance".into())),
                Outcome::Fenced => return Err(LogError::Fatal("by chance".into())),
                _ => {}
            },
        }
        self.inner.commit(offsets, membership)?;
        if self.shared.dies_at(after) { Err(LogError::Migrated(DEAD.into())) } else { Ok(()) }
    }

    fn leave(&self) {
        self.inner.leave();
    }
}
