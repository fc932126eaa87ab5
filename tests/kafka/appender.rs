//! Records without transactions (L5): acknowledged, refused, or waited for.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tidegate::log::*;

use crate::broker::Broker;
use crate::kit::*;

fn never() -> bool {
    false
}

fn append(to: &TopicPartition, records: Vec<NewRecord>) -> Append {
    Append { to: to.clone(), records }
}

fn all(log: &dyn Log, of: &TopicPartition) -> Vec<String> {
    let ends = patiently("watermarks", || log.watermarks(of));
    let mut reader = log.reader(of, 0, Isolation::ReadCommitted, false).expect("a reader");
    texts(&read_to(&mut *reader, ends.high))
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

#[test]
fn l5_what_is_appended_stands_in_order_when_the_call_returns() {
    let log = log();
    let topic = topic(&log, "plain", 2, &[]);
    let (a, b) = (TopicPartition::new(&topic, 0), TopicPartition::new(&topic, 1));
    let mut appender = log.appender("test").expect("an appender");
    let headed = NewRecord { headers: vec![("h".into(), Bytes::from_static(b"x"))], ..record("k", "last") };
    appender.append(&mut vec![append(&a, numbered(0..30_000)), append(&b, vec![headed])], &never).expect("appended");
    assert_eq!(log.watermarks(&a).expect("watermarks").high, 30_000);
    assert_eq!(all(&log, &a), numbers(0..30_000));
    assert_eq!(all(&log, &b), ["last"]);
    appender.append(&mut Vec::new(), &never).expect("nothing is no error");
    let nowhere = TopicPartition::new(&topic, 2);
    let refused = appender.append(&mut vec![append(&nowhere, numbered(0..1))], &never);
    assert!(matches!(refused, Err(LogError::UnknownTopic(_))), "{refused:?}");
}

#[test]
fn a_record_that_is_refused_is_told_and_the_next_call_works() {
    let log = log();
    let small = topic(&log, "small", 1, &[("max.message.bytes", "2000")]);
    let of = TopicPartition::new(&small, 0);
    let mut appender = log.appender("test").expect("an appender");
    appender.append(&mut vec![append(&of, numbered(0..3))], &never).expect("appended");
    let refused = appender.append(&mut vec![append(&of, vec![record("k", &"x".repeat(5000))])], &never);
    assert!(matches!(&refused, Err(LogError::Refused(why)) if why.contains(&*small)), "{refused:?}");
    appender.append(&mut vec![append(&of, numbered(3..6))], &never).expect("appended");
    assert_eq!(all(&log, &of), numbers(0..6));
}

#[test]
fn of_what_is_refused_only_the_rest_is_left() {
    let log = log();
    let small = topic(&log, "small", 2, &[("max.message.bytes", "2000")]);
    let (a, b) = (TopicPartition::new(&small, 0), TopicPartition::new(&small, 1));
    let mut appender = log.appender("test").expect("an appender");
    let large = || record("k", &"x".repeat(5000));
    let mut appends = vec![append(&a, numbered(0..3)), append(&b, vec![large()])];
    for _ in 0..5 {
        let refused = appender.append(&mut appends, &never);
        assert!(matches!(&refused, Err(LogError::Refused(why)) if why.contains(&*small)), "{refused:?}");
        let left: Vec<_> = appends.iter().map(|append| (append.to.partition, append.records.len())).collect();
        assert_eq!(left, [(1, 1)]);
    }
    appends[0].records[0] = record("k", "small");
    appender.append(&mut appends, &never).expect("appended");
    assert!(appends.is_empty());
    assert_eq!((all(&log, &a), all(&log, &b)), (numbers(0..3), vec!["small".to_owned()]));
}

#[test]
fn while_the_broker_is_away_it_tries_on_and_no_record_stands_twice() {
    let broker = Broker::start().expect("broker");
    let log = connect(&broker.servers());
    let topic = topic(&log, "away", 1, &[]);
    let of = TopicPartition::new(&topic, 0);
    let mut appender = log.appender("test").expect("an appender");
    appender.append(&mut vec![append(&of, numbered(0..10))], &never).expect("appended");
    std::thread::scope(|scope| {
        let (appender, of) = (&mut appender, &of);
        let appending = scope.spawn(move || {
            for n in 1..400 {
                appender.append(&mut vec![append(of, numbered(n * 10..n * 10 + 10))], &never).expect("it tries on");
            }
        });
        eventually("it is in the middle", || log.watermarks(of).is_ok_and(|ends| ends.high > 200));
        broker.stop();
        broker.restart().expect("restart");
        appending.join().expect("no panic");
    });
    assert_eq!(all(&log, &of), numbers(0..4000));
    broker.stop();
    let (begun, patience) = (Instant::now(), Duration::from_secs(2));
    let given_up = appender.append(&mut vec![append(&of, numbered(0..1))], &|| begun.elapsed() > patience);
    assert!(matches!(given_up, Err(LogError::Migrated(_))), "{given_up:?}");
    assert!(begun.elapsed() < patience * 3, "it gives up soon");
}
