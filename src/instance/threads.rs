//! The engine threads of one instance, each a member of the group with a producer of its own, as Kafka
//! Streams' stream threads: they share the stores' memory and nothing else, and lock nothing.
//!
//! Y1: limits are the instance's; each thread has an equal share of them, whatever it owns.
//! Y2: a question goes to every thread; the one that owns the partition answers it.
//! Y3: all threads give back what they own at the same time, so that none inherits from another that leaves.

use tokio::sync::oneshot;

use super::engine::{Answered, Question, ThreadStatus};
use super::thread::EngineThread;
use crate::log::TopicPartition;
use crate::marks::Known;

/// Running engine threads; at least one.
pub(super) struct Threads(Vec<EngineThread>);

impl Threads {
    /// Starts one after the other; when one cannot, those before it leave again.
    pub(super) fn start<E>(starts: impl Iterator<Item = Result<EngineThread, E>>) -> Result<Threads, E> {
        let mut threads = Threads(Vec::new());
        for start in starts {
            match start {
                Ok(thread) => threads.0.push(thread),
                Err(error) => {
                    threads.leave();
                    return Err(error);
                }
            }
        }
        Ok(threads)
    }

    /// Asks every thread (Y2).
    pub(super) fn ask<T>(&self, question: impl Fn(oneshot::Sender<T>) -> Question) -> Vec<oneshot::Receiver<T>> {
        let ask = |thread: &EngineThread| {
            let (sender, answer) = oneshot::channel();
            thread.ask(question(sender));
            answer
        };
        self.0.iter().map(ask).collect()
    }

    /// Something outside is wrong: one thread tells it for all. Or it is well again, for whoever has told it.
    pub(super) fn trouble(&self, what: &str, text: Option<String>) {
        let told = if text.is_some() { 1 } else { self.0.len() };
        self.0.iter().take(told).for_each(|thread| thread.trouble(what, text.clone()));
    }

    /// Whether too many roots are unsettled.
    pub(super) fn crowded(&self, is_crowded: bool) {
        self.0.iter().for_each(|thread| thread.crowded(is_crowded));
    }

    /// The horizon is this.
    pub(super) fn horizon_is(&self, horizon: u64) {
        self.0.iter().for_each(|thread| thread.horizon_is(horizon));
    }

    /// The source topics have been looked at.
    pub(super) fn sources_are(&self, partitions: &[TopicPartition]) {
        self.0.iter().for_each(|thread| thread.sources_are(partitions.to_vec()));
    }

    /// The observer has read progress up to here.
    pub(super) fn hear(&self, known: &Known) {
        self.0.iter().for_each(|thread| thread.hear(known.clone()));
    }

    /// Gives everything back, commits, leaves the group (Y3). Blocks.
    pub(super) fn leave(&mut self) {
        std::thread::scope(|scope| {
            for thread in &mut self.0 {
                scope.spawn(|| thread.leave());
            }
        });
    }
}

/// One of `threads` equal parts of a limit of the instance, at least 1; what does not divide goes to the
/// first ones (Y1).
pub(super) fn share(limit: usize, threads: usize, index: usize) -> usize {
    (limit / threads + usize::from(index < limit % threads)).max(1)
}

/// The one answer for a key (Y2). While its partition moves from one thread to the other, "not now" is
/// better than "not here".
pub(super) fn of_owner(answers: Vec<Answered>) -> Option<Answered> {
    answers.into_iter().max_by_key(|answer| match answer {
        Answered::NotHere => 0,
        Answered::NotReady(_) => 1,
        Answered::Entry(_) | Answered::AskStore(_) => 2,
    })
}

/// The status of all threads together; `None` = there is none.
pub(super) fn together(threads: Vec<ThreadStatus>) -> Option<ThreadStatus> {
    let mut threads = threads.into_iter();
    let mut all = threads.next()?;
    for one in threads {
        all.tasks.extend(one.tasks);
        all.troubles.extend(one.troubles);
        all.buffered_bytes += one.buffered_bytes;
        all.joined &= one.joined;
        all.running += one.running;
        all.totals.add(&one.totals);
        all.store_size = (all.store_size.0 + one.store_size.0, all.store_size.1 + one.store_size.1);
    }
    all.tasks.sort_by(|a, b| (a.role, &a.topic, a.partition).cmp(&(b.role, &b.topic, b.partition)));
    all.troubles.sort_unstable();
    all.troubles.dedup();
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_a_limit_are_even_and_make_it_up() {
        let shares = |limit, threads| (0..threads).map(|index| share(limit, threads, index)).collect::<Vec<_>>();
        assert_eq!(shares(10, 3), [4, 3, 3]);
        assert_eq!(shares(10_000, 4), [2500; 4]);
        assert_eq!(shares(7, 1), [7]);
        assert_eq!(shares(1, 2), [1, 1], "a thread without any place would stand still");
    }

    #[test]
    fn the_thread_that_owns_the_key_answers_for_it() {
        let answer = |answers| of_owner(answers).map(|answer| format!("{answer:?}"));
        let moves = || Answered::NotReady("it moves".into());
        assert_eq!(answer(vec![Answered::NotHere, moves(), Answered::NotHere]), answer(vec![moves()]));
        assert_eq!(answer(vec![Answered::NotHere, Answered::NotHere]), Some("NotHere".into()));
        assert_eq!(answer(vec![]), None);
    }

    #[test]
    fn an_instance_has_joined_when_all_its_threads_have() {
        let status = |joined, running, trouble: &str| {
            let troubles = vec![trouble.to_owned()];
            ThreadStatus { joined, running, troubles, ..ThreadStatus::default() }
        };
        let all = together(vec![status(true, 2, "b"), status(false, 3, "a"), status(true, 0, "b")]).unwrap();
        assert_eq!((all.joined, all.running, all.troubles), (false, 5, vec!["a".to_owned(), "b".to_owned()]));
        assert!(together(Vec::new()).is_none());
    }
}
