//! What this instance knows of keys, and which instance knows of the others.
//!
//! K1: an answer is committed state. It says which partitions it is of, and is never silently without
//!     a part of them.
//! K2: a page holds no more than was asked for, and no more than [`PAGE_BYTES`]; nothing more is read.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use bytes::Bytes;

use super::commit::Mark;
use super::engine::{Answered, Listing, Question};
use super::view::{KeyEntry, ListQuery, Lookup, Page};
use super::{Instance, blocking, from_log, threads, topology};
use crate::entry::Entry;
use crate::event::Action;
use crate::log::{LogError, TopicPartition};
use crate::store::StoreError;
use crate::topics::partition_of;

/// A page ends with the entry that makes it larger than this, in bytes.
const PAGE_BYTES: usize = 4 << 20;

impl Instance {
    /// What a key holds, committed.
    pub async fn lookup(&self, key: Bytes) -> Lookup {
        let partition = partition_of(&key, self.config().processing.partitions);
        let not_ready = |reason: String| Lookup::NotReady { partition, reason };
        let answers = self.ask(|answer| Question::Lookup(key.clone(), answer)).await;
        let Some(answered) = answers.and_then(threads::of_owner) else {
            return not_ready(self.why_silent());
        };
        match answered {
            Answered::Entry(entry) => Lookup::Here { partition, entry },
            Answered::NotReady(reason) => not_ready(reason),
            Answered::AskStore(store) => match blocking(move || store.get(&key)).await {
                Some(Ok(entry)) => Lookup::Here { partition, entry },
                Some(Err(error)) => not_ready(error.to_string()),
                None => not_ready("the instance stops".into()),
            },
            Answered::NotHere => Lookup::Elsewhere { partition },
        }
    }

    /// A page of keys of the partitions that this instance owns; it is empty only where there is no more.
    ///
    /// # Errors
    /// Why this instance cannot answer for any partition now.
    pub async fn list(&self, query: ListQuery) -> Result<Page, String> {
        let mut query = query;
        loop {
            let answers = self.ask(|answer| Question::List(query.clone(), answer)).await;
            let answers = answers.ok_or_else(|| self.why_silent())?;
            // K1: a thread that cannot answer now speaks for all.
            let listings: Vec<Vec<Listing>> = answers.into_iter().collect::<Result<_, _>>()?;
            let listings: Vec<Listing> = listings.into_iter().flatten().collect();
            let of = query.clone();
            let page = blocking(move || page(&of, &listings)).await.ok_or("the instance stops")?;
            let page = page.map_err(|error| error.to_string())?;
            // Nothing but removed keys so far.
            match &page.next {
                Some(next) if page.entries.is_empty() => query.after = Some(next.clone()),
                _ => return Ok(page),
            }
        }
    }

    /// Where the owner of each of these partitions answers, in order, from the marks of their last
    /// commits (protocol P5); `None` = nobody owns it at the moment.
    ///
    /// # Errors
    /// What the log says.
    pub async fn owners(&self, of: Vec<TopicPartition>) -> Result<Vec<Option<String>>, LogError> {
        let (log, group) = (Arc::clone(self.log()), self.config().application.id.clone());
        let committed = from_log(move || log.committed(&group, &of, false)).await?;
        let mark = |metadata: &str| Mark::parse(metadata).filter(|mark| !mark.released && !mark.address.is_empty());
        Ok(committed.into_iter().map(|committed| mark(&committed?.metadata).map(|mark| mark.address)).collect())
    }

    /// The partitions of the repartition topic, in order: those of keys.
    pub fn key_partitions(&self) -> Vec<TopicPartition> {
        let topic = &self.shared.topics.repartition;
        (0..self.config().processing.partitions).map(|partition| TopicPartition::new(topic, partition)).collect()
    }

    /// The partitions of the source topics.
    ///
    /// # Errors
    /// What the log says.
    pub async fn source_partitions(&self) -> Result<Vec<TopicPartition>, LogError> {
        let shared = Arc::clone(&self.shared);
        from_log(move || topology::source_partitions(shared.log.as_ref(), &shared.topics)).await
    }

    fn why_silent(&self) -> String {
        self.waiting_for().unwrap_or_else(|| "the engine does not answer".into())
    }
}

/// One ordered run of what keys hold; a heap of their first keys merges them.
type Run<'a> = Box<dyn Iterator<Item = Result<(Bytes, Option<Entry>), StoreError>> + 'a>;

/// Merges what waits above the stores with what is in them.
fn page(query: &ListQuery, listings: &[Listing]) -> Result<Page, StoreError> {
    let from = query.after.as_ref().filter(|after| **after >= query.prefix);
    // Of a key that is in both, the entry above the store comes first: its run has the lower number.
    let mut runs: Vec<(i32, Run<'_>)> = Vec::with_capacity(2 * listings.len());
    for listing in listings {
        let above = listing.above.iter().map(|(key, entry)| Ok((key.clone(), entry.clone())));
        let stored = listing.store.scan(from.unwrap_or(&query.prefix), from.is_some());
        let within = |item: &Result<(Bytes, Entry), StoreError>| {
            item.as_ref().map_or(true, |(key, _)| key.starts_with(&query.prefix))
        };
        runs.push((listing.partition, Box::new(above)));
        let stored = stored.take_while(within).map(|item| item.map(|(key, entry)| (key, Some(entry))));
        runs.push((listing.partition, Box::new(stored)));
    }
    let cut = listings.iter().filter_map(|listing| listing.cut.as_ref()).min();
    let mut heads: Vec<Option<Entry>> = vec![None; runs.len()];
    let mut heap = BinaryHeap::new();
    for (number, (_, run)) in runs.iter_mut().enumerate() {
        advance(run, number, &mut heads, &mut heap)?;
    }
    let mut page = Page { partitions: listings.iter().map(|listing| listing.partition).collect(), ..Page::default() };
    let (mut last, mut bytes) = (None, 0);
    while let Some(Reverse((key, number))) = heap.pop() {
        if cut.is_some_and(|cut| key > *cut) {
            page.next = cut.cloned();
            return Ok(page);
        }
        let entry = heads[number].take();
        let (partition, run) = &mut runs[number];
        advance(run, number, &mut heads, &mut heap)?;
        let hidden = last.as_ref() == Some(&key);
        last = Some(key.clone());
        let Some(entry) = entry.filter(|entry| !hidden && (query.removed || entry.action == Action::Add)) else {
            continue;
        };
        if page.entries.len() == query.limit || bytes > PAGE_BYTES {
            page.next = page.entries.last().map(|entry| entry.key.clone());
            return Ok(page);
        }
        bytes += key.len() + entry.value.as_ref().map_or(0, Bytes::len);
        page.entries.push(KeyEntry { key, entry, partition: *partition });
    }
    page.next = cut.cloned();
    Ok(page)
}

fn advance(
    run: &mut Run<'_>,
    number: usize,
    heads: &mut [Option<Entry>],
    heap: &mut BinaryHeap<Reverse<(Bytes, usize)>>,
) -> Result<(), StoreError> {
    if let Some((key, entry)) = run.next().transpose()? {
        heads[number] = entry;
        heap.push(Reverse((key, number)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::stamp::Stamp;
    use crate::store::Stores;
    use crate::store::schema::{Checkpoint, Identity};

    fn entry(action: Action, value: &str) -> Entry {
        let value = (action == Action::Add).then(|| Bytes::copy_from_slice(value.as_bytes()));
        Entry { stamp: Stamp::root(0, 1), action, value, origin: Bytes::new() }
    }

    fn listing(
        stores: &Stores,
        partition: i32,
        stored: &[&str],
        above: &[(&str, Option<Action>)],
        cut: Option<&str>,
    ) -> Listing {
        let identity = Identity { application: "t".into(), partition, changelog_id: "i".into() };
        let (store, _) = stores.open(&identity).unwrap();
        let stored: Vec<(Bytes, Entry)> =
            stored.iter().map(|key| (Bytes::copy_from_slice(key.as_bytes()), entry(Action::Add, "stored"))).collect();
        let checkpoint = Checkpoint { position: 1, at_end_ms: 1 };
        store.write(stored.iter().map(|(key, entry)| (key, Some(entry))), None, checkpoint).unwrap();
        let above: BTreeMap<Bytes, Option<Entry>> = above
            .iter()
            .map(|(key, action)| (Bytes::copy_from_slice(key.as_bytes()), action.map(|action| entry(action, "above"))))
            .collect();
        let cut = cut.map(|cut| Bytes::copy_from_slice(cut.as_bytes()));
        Listing { partition, above, cut, store: Arc::new(store) }
    }

    fn told(page: &Page) -> (Vec<String>, Option<&str>) {
        let tell = |held: &KeyEntry| {
            let value = held.entry.value.as_ref().map_or("-", |value| str::from_utf8(value).unwrap());
            format!("{}={value}@{}", str::from_utf8(&held.key).unwrap(), held.partition)
        };
        (page.entries.iter().map(tell).collect(), page.next.as_ref().map(|next| str::from_utf8(next).unwrap()))
    }

    #[test]
    fn pages_are_merged_and_cut() {
        let folder = tempfile::tempdir().unwrap();
        let stores = Stores::new(folder.path().to_owned(), 1 << 20, 1 << 20);
        let (add, remove) = (Some(Action::Add), Some(Action::Remove));
        let one = listing(&stores, 1, &["a", "b2", "c", "e", "x"], &[("b2", None), ("c", remove), ("d", add)], None);
        let two = listing(&stores, 2, &["b", "f"], &[("a0", remove), ("b", add)], Some("b"));
        let query = |limit, removed| ListQuery { limit, removed, ..ListQuery::default() };
        let both = [one, two];
        // Beyond b the second listing cannot be told.
        assert_eq!(
            told(&page(&query(9, false), &both).unwrap()),
            (vec!["a=stored@1".into(), "b=above@2".into()], Some("b"))
        );
        assert_eq!(told(&page(&query(1, false), &both).unwrap()), (vec!["a=stored@1".into()], Some("a")));
        let removed = page(&query(2, true), &both).unwrap();
        assert_eq!(told(&removed), (vec!["a=stored@1".into(), "a0=-@2".into()], Some("a0")));
        assert_eq!(removed.partitions, [1, 2].into());
        let [one, _] = both;
        let alone = [one];
        let all = vec!["a=stored@1".into(), "d=above@1".into(), "e=stored@1".into(), "x=stored@1".into()];
        assert_eq!(told(&page(&query(4, false), &alone).unwrap()), (all, None));
        let after = ListQuery { after: Some("d".into()), ..query(1, false) };
        // The engine leaves out what is not above `after`.
        let alone = alone.map(|listing| Listing { above: BTreeMap::new(), ..listing });
        assert_eq!(told(&page(&after, &alone).unwrap()), (vec!["e=stored@1".into()], Some("e")));
        let prefix = ListQuery { prefix: "x".into(), ..query(9, false) };
        assert_eq!(told(&page(&prefix, &alone).unwrap()), (vec!["x=stored@1".into()], None));
    }
}
