//! How fast it is; run by hand: `cargo test --release --test it embedded_log::speed -- --ignored --nocapture`.

use std::time::Instant;

use tidegate::log::{Join, MemberEvent};

use super::*;

const TRANSACTIONS: usize = 500;
const PARTITIONS: i32 = 8;
const EACH: usize = 1_000;

#[test]
#[ignore = "a measurement"]
fn append_and_read() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    create(&log, "t", PARTITIONS, &[]);
    let appends: Vec<Append> = (0..PARTITIONS)
        .map(|partition| {
            let records = (0..EACH).map(|number| record(&format!("key-{number:06}"), &"v".repeat(90))).collect();
            Append { to: at("t", partition), records }
        })
        .collect();
    let total = TRANSACTIONS * PARTITIONS as usize * EACH;
    let rate = |what: &str, since: Instant| {
        println!("{what}: {:.2} million records/s", total as f64 / since.elapsed().as_secs_f64() / 1e6);
    };
    let mut producer = log.producer("p").unwrap();
    let transaction = plain(appends);
    let since = Instant::now();
    for _ in 0..TRANSACTIONS {
        producer.commit(&transaction).unwrap();
    }
    rate("committed", since);
    let since = Instant::now();
    let mut seen = 0;
    for partition in 0..PARTITIONS {
        let mut reader = log.reader(&at("t", partition), 0, COMMITTED, false).unwrap();
        while reader.position() < (TRANSACTIONS * EACH) as i64 {
            seen += reader.next(LONG).unwrap().len();
        }
    }
    assert_eq!(seen, total);
    rate("read", since);
    let (sender, events) = crossbeam_channel::bounded(16);
    let topics = vec![Arc::from("t")];
    let join =
        Join { group: "g".into(), client_id: "m".into(), topics, unshared: Vec::new(), with_headers: Vec::new() };
    let member = log.join(join, Box::new(move |event| drop(sender.send(event)))).unwrap();
    let MemberEvent::Assigned { partitions, .. } = events.recv().unwrap() else { panic!() };
    let since = Instant::now();
    partitions.into_iter().for_each(|of| member.start(of, 0, 1));
    let mut seen = 0;
    while seen < total {
        if let MemberEvent::Fetched(some) = events.recv().unwrap() {
            seen += some.records.len();
        }
    }
    rate("delivered to a member", since);
    drop(events);
    member.leave();
}
