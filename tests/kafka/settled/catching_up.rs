//! How long an instance that starts takes to know what is settled, after many primary events: a snapshot and what came
//! after it. The records of progress are made here, as transactions of a hundred primary events each would.

use std::time::Instant;

use tidegate::counts::{self, Count};
use tidegate::log::{Append, Log, TopicPartition};
use tidegate::progress::counts_record;
use tidegate::proto;
use tidegate::stamp::Stamp;

use crate::broker::Broker;
use crate::cluster::app::{App, Instance};
use crate::kit;

/// Primary events of one transaction.
const ROOTS: u64 = 100;

/// The events of transaction `n` are received, and those of the one before are done.
fn transaction(app: &App, n: u64) -> proto::Progress {
    let roots = |n: u64| (n * ROOTS..(n + 1) * ROOTS).map(|sequence| Stamp::root(0, sequence));
    let mut counted: Vec<Count> = roots(n).map(|root| Count::produced(&root, 0)).collect();
    if let Some(before) = n.checked_sub(1) {
        counted.extend(roots(before).map(|root| Count::consumed(&root, 0)));
    }
    let position = ((n + 1) * ROOTS) as i64;
    let at = proto::SourcePosition { topic: app.source.to_string(), position, ..Default::default() };
    let told = proto::Progress { source_positions: vec![at], ..Default::default() };
    counts::records(counted, told).remove(0)
}

#[test]
#[ignore = "takes as long as its number says: TIDEGATE_ROOTS"]
fn an_instance_that_starts_reads_little() {
    let roots: u64 = std::env::var("TIDEGATE_ROOTS").ok().map_or(10_000_000, |text| text.parse().expect("a number"));
    let broker = Broker::start().expect("broker");
    let app = App::new(&broker, "catching-up").with(&[("processing.repartition_purge", "1s")]);
    let knows = |instance: &Instance<'_>, sequence: u64| {
        instance.get("/api/v1/frontier").is_some_and(|told| told["frontier"].as_u64() == Some(sequence))
    };
    let one = app.start("one");
    app.until("it owns all", || one.owns() == 6);
    let of = TopicPartition::new(&app.topics.progress, 0);
    let transactions = roots / ROOTS;
    let begun = Instant::now();
    for first in (0..transactions).step_by(1000) {
        let records: Vec<_> =
            (first..(first + 1000).min(transactions)).map(|n| counts_record(&transaction(&app, n))).collect();
        kit::patiently("append", || app.log.append(Append { to: of.clone(), records: records.clone() }));
    }
    // The last transaction's events are not done.
    let frontier = (transactions - 1) * ROOTS - 1;
    app.until("the one that was there knows", || knows(&one, frontier));
    eprintln!("{roots} roots in {transactions} records were written and read along in {:.1?}", begun.elapsed());
    app.until("snapshots were made", || app.log.watermarks(&of).is_ok_and(|ends| ends.low > 0));
    let ends = app.log.watermarks(&of).expect("watermarks");
    let begun = Instant::now();
    let two = app.start("two");
    app.until("it answers", || two.url().is_some());
    let answers = begun.elapsed();
    app.until("it knows", || knows(&two, frontier));
    let (knew, records) = (begun.elapsed(), ends.high - ends.low);
    eprintln!(
        "of {records} records left: an instance answers {answers:.1?} after its start, and knows after {knew:.1?}"
    );
}
