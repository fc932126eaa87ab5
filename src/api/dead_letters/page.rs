//! Reads the dead-letter topic in pages, committed records only, in the order of partition and offset.
//!
//! D1: a page passes over nothing that it has not read: where it ends before the topic does, for whatever
//!     reason, the next one begins right there.
//! D2: one page is bounded in dead letters, bytes, records looked at and time.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cause::Cause;
use crate::clock;
use crate::dead_letter;
use crate::log::{Isolation, Log, LogError, Record, TopicPartition};

/// The bytes of one page, if it has more than one dead letter.
const PAGE_BYTES: usize = 4 << 20;
/// The records that one page looks at.
const PAGE_RECORDS: usize = 50_000;
/// Partitions that are read at the same time.
const SIDE_BY_SIDE: usize = 8;
/// How long one step waits for records.
const STEP: Duration = Duration::from_millis(200);

/// Where reading goes on: behind `after` in this partition. As text `3:1200`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The partition.
    pub partition: i32,
    /// The offset that was read last; -1 = none yet.
    pub after: i64,
}

impl Place {
    /// Before everything.
    pub const START: Place = Place { partition: 0, after: -1 };
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.partition, self.after)
    }
}

impl FromStr for Place {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Place, &'static str> {
        let place = text.split_once(':').and_then(|(partition, after)| {
            Some(Place { partition: partition.parse().ok()?, after: after.parse().ok()? })
        });
        place.filter(|place| place.partition >= 0 && (-1..i64::MAX).contains(&place.after)).ok_or("no PARTITION:OFFSET")
    }
}

/// Some dead letters, each with its partition.
#[derive(Debug, Default)]
pub struct Page {
    /// In the order of partition and offset.
    pub letters: Vec<(i32, Record)>,
    /// Where the next page begins; `None` = there was no more.
    pub next: Option<Place>,
}

impl Page {
    /// The place of its last dead letter.
    fn last(&self) -> Option<Place> {
        self.letters.last().map(|(partition, last)| Place { partition: *partition, after: last.offset })
    }
}

/// Offsets of one partition, at least one.
struct Stretch {
    of: TopicPartition,
    begin: i64,
    end: i64,
}

/// What reading one stretch may take (D2); one dead letter may be larger than that.
struct Bounds {
    letters: usize,
    bytes: usize,
    records: usize,
    deadline: Instant,
}

/// What one stretch has.
#[derive(Default)]
struct Read {
    letters: Vec<Record>,
    looked_at: usize,
    /// Where it was left; `None` = at its end.
    next: Option<Place>,
}

/// How many of these are read side by side: no more than what is needed for so many dead letters, if every offset is one.
fn together(stretches: &[Stretch], letters: usize) -> usize {
    let mut before = 0;
    let needed = stretches.iter().take(SIDE_BY_SIDE).take_while(|stretch| {
        let is_needed = before <= letters as i64;
        before += stretch.end - stretch.begin;
        is_needed
    });
    needed.count()
}

/// Where the dead letters stand.
pub struct Shelf {
    /// The log.
    pub log: Arc<dyn Log>,
    /// `<app>-dead-letter`
    pub topic: Arc<str>,
    /// Its partitions.
    pub partitions: i32,
    /// How long one page may take.
    pub patience: Duration,
}

impl Shelf {
    /// At most `limit` dead letters behind `from`, of one cause or of all. Blocks.
    ///
    /// # Errors
    /// What the log says; [`LogError::Retriable`] where an undecided transaction hides everything behind `from`.
    pub fn page(&self, from: Place, limit: usize, cause: Option<Cause>) -> Result<Page, LogError> {
        let deadline = clock::now() + self.patience;
        let stretches = self.stretches(from)?;
        let (mut page, mut bytes, mut looked_at, mut rest) = (Page::default(), 0, 0, &stretches[..]);
        while !rest.is_empty() && bytes < PAGE_BYTES {
            let room = limit - page.letters.len();
            let now;
            (now, rest) = rest.split_at(together(rest, if cause.is_some() { PAGE_RECORDS } else { room }));
            let bounds = Bounds {
                letters: room,
                bytes: (PAGE_BYTES - bytes) / now.len(),
                records: PAGE_RECORDS.saturating_sub(looked_at) / now.len(),
                deadline,
            };
            for (stretch, read) in now.iter().zip(self.side_by_side(now, cause, &bounds)) {
                let read = read?;
                looked_at += read.looked_at;
                if let (Some(next), 0, true) = (read.next, looked_at, page.letters.is_empty()) {
                    return Err(self.undecided(&stretch.of, next.after + 1));
                }
                bytes += read.letters.iter().map(bytes_of).sum::<usize>();
                let room = limit - page.letters.len();
                let is_full = read.letters.len() > room;
                page.letters.extend(read.letters.into_iter().take(room).map(|record| (stretch.of.partition, record)));
                page.next = if is_full { page.last() } else { read.next };
                if page.next.is_some() {
                    return Ok(page);
                }
            }
        }
        if !rest.is_empty() {
            page.next = page.last();
        }
        Ok(page)
    }

    /// The first place at or behind `from` with something to read in its partition; `None` = there is no more.
    ///
    /// # Errors
    /// What the log says.
    pub fn next_with_any(&self, from: Place) -> Result<Option<Place>, LogError> {
        let first = self.stretches(from)?.into_iter().next();
        Ok(first.map(|stretch| Place { partition: stretch.of.partition, after: stretch.begin - 1 }))
    }

    /// What there is to read behind `from`: the partitions that have something, in order.
    fn stretches(&self, from: Place) -> Result<Vec<Stretch>, LogError> {
        let mut stretches = Vec::new();
        for partition in from.partition..self.partitions {
            let of = TopicPartition::new(&self.topic, partition);
            let ends = self.log.watermarks(&of)?;
            let begin = if partition == from.partition { ends.low.max(from.after + 1) } else { ends.low };
            if begin < ends.high {
                stretches.push(Stretch { of, begin, end: ends.high });
            }
        }
        Ok(stretches)
    }

    /// Reads these at the same time: to open a reader takes longer than to read a page.
    fn side_by_side(&self, of: &[Stretch], cause: Option<Cause>, bounds: &Bounds) -> Vec<Result<Read, LogError>> {
        std::thread::scope(|scope| {
            let readers: Vec<_> =
                of.iter().map(|stretch| scope.spawn(move || self.read(stretch, cause, bounds))).collect();
            let panicked = |panic| std::panic::resume_unwind(panic);
            readers.into_iter().map(|reader| reader.join().unwrap_or_else(panicked)).collect()
        })
    }

    fn read(&self, stretch: &Stretch, cause: Option<Cause>, bounds: &Bounds) -> Result<Read, LogError> {
        let partition = stretch.of.partition;
        let mut reader = self.log.reader(&stretch.of, stretch.begin, Isolation::ReadCommitted, true)?;
        let (mut read, mut bytes) = (Read::default(), 0);
        while reader.position() < stretch.end {
            if read.looked_at >= bounds.records || clock::now() >= bounds.deadline {
                read.next = Some(Place { partition, after: reader.position() - 1 });
                return Ok(read);
            }
            for record in reader.next(STEP)? {
                read.looked_at += 1;
                let is_wanted =
                    |cause: Cause| dead_letter::read(&record.headers).cause.as_deref() == Some(cause.as_str());
                if !cause.is_none_or(is_wanted) {
                    continue;
                }
                let size = bytes_of(&record);
                let is_too_much = bytes + size > bounds.bytes && !read.letters.is_empty();
                if read.letters.len() == bounds.letters || is_too_much {
                    let after = read.letters.last().map_or(stretch.begin - 1, |last| last.offset);
                    read.next = Some(Place { partition, after });
                    return Ok(read);
                }
                bytes += size;
                read.letters.push(record);
            }
        }
        Ok(read)
    }

    /// The dead letter at this offset, if there is one. Blocks.
    ///
    /// # Errors
    /// As [`Shelf::page`].
    pub fn one(&self, partition: i32, offset: i64) -> Result<Option<Record>, LogError> {
        if !(0..self.partitions).contains(&partition) {
            return Ok(None);
        }
        let of = TopicPartition::new(&self.topic, partition);
        let ends = self.log.watermarks(&of)?;
        if !(ends.low..ends.high).contains(&offset) {
            return Ok(None);
        }
        let deadline = clock::now() + self.patience;
        let mut reader = self.log.reader(&of, offset, Isolation::ReadCommitted, true)?;
        while reader.position() <= offset {
            if clock::now() >= deadline {
                return Err(self.undecided(&of, offset));
            }
            if let Some(record) = reader.next(STEP)?.into_iter().next() {
                return Ok(Some(record).filter(|record| record.offset == offset));
            }
        }
        Ok(None)
    }

    fn undecided(&self, of: &TopicPartition, position: i64) -> LogError {
        let waited = humantime::format_duration(self.patience);
        LogError::Retriable(format!(
            "{of} gave nothing from offset {position} on within {waited}: a transaction on it is undecided"
        ))
    }
}

fn bytes_of(record: &Record) -> usize {
    let length = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
    let headers: usize = record.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    length(&record.key) + length(&record.value) + headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letter::{Reason, headers};
    use crate::log::embedded::{EmbeddedLog, EmbeddedOptions};
    use crate::log::{Append, NewRecord, NewTopic};
    use crate::proto::Origin;

    fn shelf(folder: &std::path::Path) -> (Arc<EmbeddedLog>, Shelf) {
        let options = EmbeddedOptions { sync: false, ..EmbeddedOptions::default() };
        let log = Arc::new(EmbeddedLog::open(folder, options).expect("a log"));
        let topic = NewTopic {
            name: "letters".into(),
            partitions: 3,
            replication_factor: None,
            settings: vec![("max.message.bytes".into(), "4000000".into())],
        };
        log.create(&[topic]).expect("created");
        (Arc::clone(&log), Shelf { log, topic: "letters".into(), partitions: 3, patience: Duration::from_secs(1) })
    }

    fn letter(cause: Cause, size: usize) -> NewRecord {
        let headers = headers(&Reason::new(cause, ""), &Origin::default(), None);
        NewRecord { key: Some("k".into()), value: Some(vec![7; size].into()), headers }
    }

    fn append(log: &EmbeddedLog, partition: i32, records: Vec<NewRecord>) {
        log.append(Append { to: TopicPartition::new(&"letters".into(), partition), records }).expect("appended");
    }

    /// All places, page by page, and the number of pages.
    fn walk(shelf: &Shelf, limit: usize, cause: Option<Cause>) -> (Vec<(i32, i64)>, usize) {
        let (mut seen, mut pages, mut from) = (Vec::new(), 0, Place::START);
        loop {
            let page = shelf.page(from, limit, cause).expect("a page");
            assert!(page.letters.len() <= limit, "D2");
            seen.extend(page.letters.iter().map(|(partition, record)| (*partition, record.offset)));
            pages += 1;
            let Some(next) = page.next else { return (seen, pages) };
            assert!(next > from, "{next} does not go on from {from}");
            from = next.to_string().parse().expect("a place as it is told");
        }
    }

    #[test]
    fn d1_pages_of_any_size_and_cause_are_all_in_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let (log, shelf) = shelf(folder.path());
        assert_eq!(walk(&shelf, 5, None), (vec![], 1));
        append(&log, 0, (0..7).map(|_| letter(Cause::Rejected, 1)).collect());
        append(&log, 2, (0..5).map(|n| letter([Cause::Exhausted, Cause::Rejected][n % 2], 1)).collect());
        let all: Vec<_> = (0..7).map(|offset| (0, offset)).chain((0..5).map(|offset| (2, offset))).collect();
        for limit in 1..=13 {
            assert_eq!(walk(&shelf, limit, None), (all.clone(), 12_usize.div_ceil(limit)), "{limit}");
        }
        assert_eq!(walk(&shelf, 2, Some(Cause::Exhausted)), (vec![(2, 0), (2, 2), (2, 4)], 2));
        assert_eq!(walk(&shelf, 2, Some(Cause::TooLate)), (vec![], 1));
        assert_eq!(shelf.one(2, 3).expect("read").map(|record| record.offset), Some(3));
        for (partition, offset) in [(2, 5), (1, 0), (3, 0), (-1, 0), (0, -1)] {
            assert!(shelf.one(partition, offset).expect("read").is_none(), "{partition}:{offset}");
        }
    }

    #[test]
    fn no_more_is_read_side_by_side_than_may_be_needed() {
        let stretch =
            |offsets: i64| Stretch { of: TopicPartition::new(&"letters".into(), 0), begin: 7, end: 7 + offsets };
        let stretches: Vec<Stretch> = [3, 4, 100, 1, 1, 1, 1, 1, 1, 1].map(stretch).into();
        for (letters, expected) in [(0, 1), (2, 1), (3, 2), (7, 3), (106, 3), (107, 4), (1000, SIDE_BY_SIDE)] {
            assert_eq!(together(&stretches, letters), expected, "{letters}");
        }
        assert_eq!(together(&stretches[9..], 1000), 1);
    }

    #[test]
    fn d2_pages_are_bounded_in_bytes() {
        let folder = tempfile::tempdir().expect("a folder");
        let (log, shelf) = shelf(folder.path());
        append(&log, 1, (0..3).map(|_| letter(Cause::Rejected, 3_000_000)).collect());
        assert_eq!(walk(&shelf, 100, None), (vec![(1, 0), (1, 1), (1, 2)], 3));
        append(&log, 0, vec![letter(Cause::Rejected, 1), letter(Cause::Rejected, 3_000_000)]);
        append(&log, 2, vec![letter(Cause::Rejected, 1)]);
        let all = vec![(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0)];
        for limit in [1, 2, 3, 100] {
            assert_eq!(walk(&shelf, limit, None).0, all, "{limit}");
        }
    }

    #[test]
    fn what_is_aborted_is_no_dead_letter_and_what_is_undecided_is_not_passed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (log, shelf) = shelf(folder.path());
        let to = TopicPartition::new(&"letters".into(), 0);
        let aborted = log.begin("one").expect("begun");
        log.append_in(aborted, &Append { to: to.clone(), records: vec![letter(Cause::Rejected, 1)] })
            .expect("appended");
        log.decide(aborted, false).expect("aborted");
        append(&log, 0, vec![letter(Cause::Rejected, 1)]);
        assert_eq!(walk(&shelf, 9, None), (vec![(0, 2)], 1));
        assert!(shelf.one(0, 0).expect("read").is_none(), "aborted");
        let open = log.begin("two").expect("begun");
        log.append_in(open, &Append { to, records: vec![letter(Cause::Rejected, 1)] }).expect("appended");
        let page = shelf.page(Place::START, 9, None).expect("a page");
        assert_eq!((page.letters.len(), page.next), (1, Some(Place { partition: 0, after: 2 })), "D1");
        log.decide(open, true).expect("committed");
        let page = shelf.page(page.next.expect("more"), 9, None).expect("a page");
        assert_eq!((page.letters.len(), page.next), (1, None));
    }

    #[test]
    fn places_are_texts() {
        assert_eq!("3:1200".parse(), Ok(Place { partition: 3, after: 1200 }));
        for wrong in ["", "3", ":", "3:", "-1:0", "0:-2", "a:b", "0:9223372036854775807", "1:2:3"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }
}
