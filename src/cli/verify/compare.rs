//! Compares what the reference leaves behind with what the changelog holds.

use bytes::Bytes;

use super::primaries::Covered;
use super::read::State;
use super::{Difference, Report};
use crate::event::Action;
use crate::reference::{Held, Reference};
use crate::stamp::Stamp;
use crate::topics::partition_of;

/// Compares every key, both ways (V3). A key whose entry comes from a root that the reference does not cover was
/// written by what came later, and is left out; so is one that was removed later and is forgotten. A REMOVE at or below
/// the horizon equals absence.
pub fn compare(reference: Reference, actual: State, covered: &Covered) -> Report {
    let mut report = Report { events: reference.events, ..Report::default() };
    let mut expected = reference.state;
    let State { entries, removed, horizons } = actual;
    let horizon = |key: &Bytes| horizons[partition_of(key, horizons.len() as i32) as usize];
    let lasts = |key: &Bytes, held: Option<Held>| {
        held.filter(|(stamp, action, _)| *action == Action::Add || horizon(key) < Some(stamp.sequence))
    };
    for (key, entry) in entries {
        let expected = expected.remove(&key);
        if !covered.has(&entry.stamp) {
            continue;
        }
        let actual = Some((entry.stamp, entry.action, entry.value));
        let (expected, actual) = (lasts(&key, expected), lasts(&key, actual));
        report.judge(key, expected, actual);
    }
    for (key, held) in expected {
        // The last sequence of which a REMOVE may be forgotten.
        let later = horizon(&key).filter(|_| removed.contains(&key)).map(|sequence| Stamp::root(0, sequence));
        if later.is_some_and(|later| !covered.has(&later)) {
            continue;
        }
        let expected = lasts(&key, Some(held));
        report.judge(key, expected, None);
    }
    report.differences.sort_by(|a, b| a.key.cmp(&b.key));
    report
}

impl Report {
    fn judge(&mut self, key: Bytes, expected: Option<Held>, actual: Option<Held>) {
        self.keys += 1;
        if expected != actual {
            self.differences.push(Difference { key, expected, actual });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::read::failure;
    use super::*;
    use crate::bookkeeping;
    use crate::entry::Entry;
    use crate::event::{Event, StampedEvent};
    use crate::log::{Headers, Record};
    use crate::retry::Letter;

    fn held(stamp: &str, action: Action, value: Option<&'static str>) -> Held {
        (stamp.parse().unwrap(), action, value.map(Bytes::from))
    }

    fn entry((stamp, action, value): Held) -> Entry {
        Entry { stamp, action, value, origin: Bytes::new() }
    }

    fn reference(state: &[(&'static str, Held)]) -> Reference {
        let state = state.iter().map(|(key, held)| (Bytes::from(*key), held.clone())).collect();
        Reference { state, events: 9, ..Reference::default() }
    }

    fn actual(state: &[(&'static str, Held)]) -> State {
        let entries = state.iter().map(|(key, held)| (Bytes::from(*key), entry(held.clone()))).collect();
        State { entries, horizons: vec![None], ..State::default() }
    }

    #[test]
    fn a_remove_at_or_below_the_horizon_equals_absence_both_ways() {
        let (over, above) = (held("5", Action::Remove, None), held("6/0", Action::Remove, None));
        let added = held("2", Action::Add, None);
        let differing = |expected: &[(&'static str, Held)], found: &[(&'static str, Held)], covered: u64| {
            let removed = HashSet::from([Bytes::from("gone")]);
            let actual = State { horizons: vec![Some(5)], removed, ..actual(found) };
            let report = compare(reference(expected), actual, &Covered::Below(covered));
            report.differences.into_iter().map(|difference| difference.key).collect::<Vec<_>>()
        };
        let both = |held: &Held| (vec![("a", held.clone())], Vec::new());
        for (held, differs) in [(&over, false), (&above, true), (&added, true)] {
            let (with, without) = both(held);
            let expected: Vec<Bytes> = if differs { vec!["a".into()] } else { Vec::new() };
            assert_eq!(differing(&with, &without, 9), expected, "the reference has {held:?}");
            assert_eq!(differing(&without, &with, 9), expected, "the changelog has {held:?}");
        }
        assert_eq!(differing(&[("a", over.clone())], &[("a", held("4", Action::Remove, None))], 9), [""; 0]);
        assert_eq!(differing(&[("a", over.clone())], &[("a", added.clone())], 9), ["a"], "brought back");
        assert_eq!(differing(&[("a", added.clone())], &[("a", over.clone())], 9), ["a"], "forgotten");
        // Added below what is covered: it may have been removed by what came later, but only where a tombstone says so.
        assert_eq!(differing(&[("gone", added.clone())], &[], 5), [""; 0]);
        assert_eq!(differing(&[("gone", added.clone())], &[], 6), ["gone"]);
        assert_eq!(differing(&[("other", added)], &[], 5), ["other"]);
    }

    #[test]
    fn the_same_state_has_no_differences() {
        let state = [("a", held("1", Action::Add, Some("x"))), ("b", held("2/0", Action::Remove, None))];
        let report = compare(reference(&state), actual(&state), &Covered::Below(3));
        assert_eq!(report, Report { keys: 2, events: 9, differences: vec![] });
    }

    #[test]
    fn every_part_of_the_state_is_compared() {
        let right = held("1", Action::Add, Some("x"));
        for wrong in [
            held("0", Action::Add, Some("x")),
            held("1/0", Action::Add, Some("x")),
            held("1", Action::Remove, Some("x")),
            held("1", Action::Add, Some("y")),
            held("1", Action::Add, None),
        ] {
            let report =
                compare(reference(&[("a", right.clone())]), actual(&[("a", wrong.clone())]), &Covered::Below(9));
            let difference = Difference { key: "a".into(), expected: Some(right.clone()), actual: Some(wrong) };
            assert_eq!(report.differences, [difference]);
        }
    }

    #[test]
    fn keys_that_one_side_lacks_are_differences_in_the_order_of_keys() {
        let held = held("1", Action::Remove, None);
        let report = compare(
            reference(&[("a", held.clone())]),
            actual(&[("0", held.clone()), ("b", held.clone())]),
            &Covered::Below(9),
        );
        let keys: Vec<_> = report.differences.iter().map(|difference| &difference.key[..]).collect();
        assert_eq!(keys, [b"0", b"a", b"b"]);
        assert_eq!(report.differences[1].actual, None);
        assert_eq!(report.differences[2].expected, None);
        assert_eq!(report.keys, 3);
    }

    #[test]
    fn keys_with_a_later_stamp_are_left_out() {
        let expected = [("a", held("1", Action::Add, None)), ("b", held("8", Action::Add, None))];
        let actual = actual(&[
            ("a", held("9", Action::Add, None)),
            ("b", held("8", Action::Add, None)),
            ("c", held("9/0/4", Action::Add, None)),
        ]);
        assert_eq!(
            compare(reference(&expected), actual, &Covered::Below(9)),
            Report { keys: 1, events: 9, differences: vec![] }
        );
    }

    fn record(key: &'static str, value: Option<Vec<u8>>, headers: Headers) -> Record {
        Record { offset: 0, timestamp_ms: 0, key: Some(key.into()), value: value.map(Bytes::from), headers }
    }

    fn changelog(key: &'static str, stamp: &str, value: &'static str) -> Record {
        let mut bytes = bytes::BytesMut::new();
        entry(held(stamp, Action::Add, Some(value))).encode(&mut bytes);
        record(key, Some(bytes.to_vec()), vec![])
    }

    #[test]
    fn of_a_keys_records_the_greatest_stamp_counts_and_a_tombstone_is_absence() {
        let mut state = State { horizons: vec![None, None], ..State::default() };
        for record in [
            changelog("a", "2", "new"),
            changelog("a", "1/5", "old"),
            changelog("b", "1", "gone"),
            record("b", None, vec![]),
            record("", Some(bookkeeping::encode(3, 3, &[], Some(2)).to_vec()), vec![]),
            changelog("c", "1", "gone"),
            record("c", None, vec![]),
            changelog("c", "0", "back"),
        ] {
            state.apply(1, record).unwrap();
        }
        let keys: Vec<_> = state.entries.keys().collect();
        assert_eq!(keys, ["a", "c"]);
        assert_eq!(state.entries[&b"a"[..]].value.as_deref(), Some(&b"new"[..]));
        assert_eq!((state.removed.len(), &state.horizons), (1, &vec![None, Some(2)]));
        assert!(state.apply(0, record("c", Some(vec![0xff]), vec![])).is_err());
    }

    #[test]
    fn events_that_have_failed_are_told_with_their_retry() {
        let letter = |kind: &'static str, retry: u32| {
            let event = Event { key: "k".into(), action: Action::Add, payload: None };
            let event = StampedEvent { event, stamp: Stamp::root(0, 5), origin: Bytes::new(), retry };
            let mut bytes = bytes::BytesMut::new();
            event.encode(&mut bytes);
            let headers = vec![
                ("tidegate_dead_letter".to_owned(), Bytes::from(kind)),
                ("tidegate_stamp".to_owned(), Bytes::from("5")),
            ];
            record("k", Some(bytes.to_vec()), headers)
        };
        let place = Letter { partition: 0, offset: 3 };
        let told = |record: &Record| {
            let told = failure(place, record).unwrap();
            told.map(|(stamp, failure)| (stamp.to_string(), failure.retry, failure.is_overtaken))
        };
        assert_eq!(told(&letter("event", 0)), Some(("5".into(), 0, false)));
        assert_eq!(told(&letter("event", 1)), Some(("5".into(), 1, false)));
        let mut overtaken = letter("event", 2);
        overtaken.headers.push(("tidegate_cause".into(), Bytes::from("before_horizon")));
        assert_eq!(told(&overtaken), Some(("5".into(), 2, true)));
        assert_eq!(told(&letter("record", 0)), None);
        assert_eq!(told(&record("k", None, vec![])), None);
    }
}
