//! librdkafka's settings for each kind of handle, and which of them a user may not change.
//!
//! S1: what the guarantee rests on is not configurable; a property that touches it is refused by name, with the reason.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::secret::Secret;
use crate::log::{Isolation, SESSION_TIMEOUT};

/// How to reach the cluster.
#[derive(Clone, Debug)]
pub struct KafkaOptions {
    /// Comma-separated `host:port`.
    pub bootstrap_servers: String,
    /// librdkafka's properties, passed through; see [`check_properties`]. `<property>_file` names a file that has the
    /// value.
    pub properties: BTreeMap<String, Secret>,
    /// What the names of the application's own topics and transactional ids begin with: for messages that say which
    /// right is to be granted. May be empty.
    pub prefix: String,
    /// Names the process in the broker's logs.
    pub client_id: String,
    /// After so long without a heartbeat a member is taken for dead. Default [`SESSION_TIMEOUT`].
    pub session_timeout: Duration,
    /// After so long the broker aborts a transaction by itself. Default 10 s.
    pub transaction_timeout: Duration,
    /// How long one call may take before it fails as retriable. Default 10 s.
    pub call_timeout: Duration,
}

impl KafkaOptions {
    /// The defaults for these servers.
    pub fn new(bootstrap_servers: &str) -> KafkaOptions {
        KafkaOptions {
            bootstrap_servers: bootstrap_servers.to_owned(),
            properties: BTreeMap::new(),
            prefix: String::new(),
            client_id: "tidegate".to_owned(),
            session_timeout: SESSION_TIMEOUT,
            transaction_timeout: Duration::from_secs(10),
            call_timeout: Duration::from_secs(10),
        }
    }
}

const REFUSED: &[(&str, &str)] = &[
    ("bootstrap.servers", "it has a setting of its own"),
    ("metadata.broker.list", "the servers have a setting of their own"),
    ("client.id", "it has a setting of its own"),
    ("group.id", "the group is the application's id"),
    ("group.instance.id", "static members would keep partitions of a process that is gone"),
    ("group.protocol", "members share partitions by the classic protocol"),
    ("group.remote.assignor", "members share partitions by the classic protocol"),
    ("partition.assignment.strategy", "only cooperative-sticky moves partitions without stopping all of them"),
    ("session.timeout.ms", "other deadlines follow it, and a dead member's partitions must move soon"),
    ("heartbeat.interval.ms", "members have to hear of a rebalance soon"),
    ("topic.metadata.refresh.interval.ms", "members have to hear of changed topics soon"),
    ("max.poll.interval.ms", "the members poll on threads of their own"),
    ("enable.auto.commit", "positions are committed in transactions only"),
    ("auto.commit.enable", "positions are committed in transactions only"),
    ("auto.commit.interval.ms", "positions are committed in transactions only"),
    ("enable.auto.offset.store", "positions are committed in transactions only"),
    ("auto.offset.reset", "anything but error skips or repeats records silently"),
    ("isolation.level", "records of aborted transactions must not be read"),
    ("enable.partition.eof", "the ends of partitions are told by the reader"),
    ("check.crcs", "a damaged record must not be taken for a good one"),
    ("allow.auto.create.topics", "an auto-created topic has the wrong partitions and cleanup policy"),
    ("transactional.id", "it names the owner of partitions"),
    ("transaction.timeout.ms", "a dead owner's transaction must end soon"),
    ("enable.idempotence", "transactions need it"),
    ("enable.gapless.guarantee", "transactions have their own"),
    ("acks", "a record must not be lost with one broker"),
    ("request.required.acks", "a record must not be lost with one broker"),
    ("retries", "transactions need them"),
    ("message.send.max.retries", "transactions need them"),
    ("max.in.flight", "transactions need at most 5"),
    ("max.in.flight.requests.per.connection", "transactions need at most 5"),
    ("message.timeout.ms", "it follows the transaction's timeout"),
    ("delivery.timeout.ms", "it follows the transaction's timeout"),
    ("delivery.report.only.error", "the adapter serves delivery reports itself"),
    ("dr_cb", "the adapter serves delivery reports itself"),
    ("dr_msg_cb", "the adapter serves delivery reports itself"),
    ("partitioner", "records are given their partition by the product"),
    ("log.queue", "the adapter takes log lines itself"),
    ("log_cb", "the adapter takes log lines itself"),
    ("error_cb", "the adapter takes errors itself"),
    ("rebalance_cb", "the adapter takes part in rebalances itself"),
    ("offset_commit_cb", "positions are committed in transactions only"),
    ("opaque", "the adapter needs it"),
    ("enabled_events", "the adapter needs it"),
    ("test.mock.num.brokers", "the mock cluster shows aborted records and discards transactional offsets"),
];

/// Fails with the property's name and the reason when one of them is not the user's to set (S1).
pub fn check_properties(properties: &BTreeMap<String, Secret>) -> Result<(), String> {
    for name in properties.keys() {
        if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| refused == name) {
            return Err(format!("the Kafka property {name} cannot be set: {why}"));
        }
    }
    Ok(())
}

/// Settings of one handle, in the order in which they are applied.
pub type Settings = Vec<(String, String)>;

fn put(settings: &mut Settings, pairs: &[(&str, String)]) {
    settings.extend(pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
}

fn s(value: &str) -> String {
    value.to_owned()
}

fn own_first(options: &KafkaOptions, defaults: &[(&str, &str)], belongs: fn(&str) -> bool) -> Settings {
    let mut settings = Settings::new();
    put(
        &mut settings,
        &[("bootstrap.servers", options.bootstrap_servers.clone()), ("client.id", options.client_id.clone())],
    );
    put(&mut settings, &[("enable.metrics.push", s("false")), ("log.connection.close", s("false"))]);
    put(&mut settings, &[("socket.timeout.ms", s("10000")), ("socket.nagle.disable", s("true"))]);
    put(&mut settings, &[("reconnect.backoff.ms", s("50")), ("reconnect.backoff.max.ms", s("1000"))]);
    settings.extend(defaults.iter().map(|(name, value)| (s(name), s(value))));
    let mine = options.properties.iter().filter(|(name, _)| belongs(name));
    settings.extend(mine.map(|(name, value)| (name.clone(), value.reveal().to_owned())));
    settings
}

/// Properties that only producers take; on a consumer librdkafka would warn about them.
fn producers_only(name: &str) -> bool {
    const NAMES: &[&str] = &["linger.ms", "batch.size", "sticky.partitioning.linger.ms", "delivery.report.only.error"];
    let prefixes = ["queue.buffering.", "compression.", "batch.num."];
    NAMES.contains(&name) || prefixes.iter().any(|prefix| name.starts_with(prefix))
}

/// Properties that only consumers take.
fn consumers_only(name: &str) -> bool {
    const NAMES: &[&str] =
        &["queued.min.messages", "queued.max.messages.kbytes", "heartbeat.interval.ms", "client.rack"];
    NAMES.contains(&name) || name.starts_with("fetch.") || name.starts_with("coordinator.")
}

fn consumer(options: &KafkaOptions, isolation: Isolation) -> Settings {
    let defaults = [
        ("fetch.queue.backoff.ms", "2"),
        ("fetch.wait.max.ms", "100"),
        ("fetch.error.backoff.ms", "50"),
        ("queued.min.messages", "100000"),
        ("queued.max.messages.kbytes", "65536"),
        ("fetch.message.max.bytes", "4194304"),
    ];
    let mut settings = own_first(options, &defaults, |name| !producers_only(name));
    let level = if isolation == Isolation::ReadCommitted { "read_committed" } else { "read_uncommitted" };
    put(&mut settings, &[("isolation.level", s(level)), ("check.crcs", s("true")), ("auto.offset.reset", s("error"))]);
    put(&mut settings, &[("enable.auto.commit", s("false")), ("enable.auto.offset.store", s("false"))]);
    put(&mut settings, &[("allow.auto.create.topics", s("false"))]);
    settings
}

/// A member of a group.
pub fn member(options: &KafkaOptions, group: &str, client_id: &str) -> Settings {
    let mut settings = consumer(options, Isolation::ReadCommitted);
    let session = options.session_timeout.as_millis();
    // Members hear of a rebalance by their heartbeats: partitions that move stand still until the last one has.
    let heartbeat = (session / 12).clamp(100, 1000);
    put(&mut settings, &[("group.id", s(group)), ("client.id", s(client_id)), ("group.protocol", s("classic"))]);
    put(&mut settings, &[("partition.assignment.strategy", s("cooperative-sticky"))]);
    put(
        &mut settings,
        &[("session.timeout.ms", session.to_string()), ("heartbeat.interval.ms", heartbeat.to_string())],
    );
    put(&mut settings, &[("max.poll.interval.ms", 300_000.max(session).to_string())]);
    put(&mut settings, &[("topic.metadata.refresh.interval.ms", s("10000"))]);
    settings
}

/// A reader of one partition; it belongs to no group, but librdkafka wants a name.
pub fn reader(options: &KafkaOptions, isolation: Isolation) -> Settings {
    let mut settings = consumer(options, isolation);
    // Several read at the same time, and each holds as much as waits for it.
    for (name, value) in [("queued.min.messages", "50000"), ("queued.max.messages.kbytes", "16384")] {
        if !options.properties.contains_key(name) {
            put(&mut settings, &[(name, s(value))]);
        }
    }
    put(&mut settings, &[("group.id", format!("{}-reader", options.client_id)), ("enable.partition.eof", s("true"))]);
    put(&mut settings, &[("max.poll.interval.ms", s("86400000"))]);
    settings
}

/// A handle that only asks for a group's committed positions; `stable` decides what an undecided transaction does.
pub fn committed(options: &KafkaOptions, group: &str, stable: bool) -> Settings {
    let isolation = if stable { Isolation::ReadCommitted } else { Isolation::ReadUncommitted };
    let mut settings = consumer(options, isolation);
    put(&mut settings, &[("group.id", s(group))]);
    settings
}

/// A handle for questions about topics and ends.
pub fn questions(options: &KafkaOptions) -> Settings {
    let mut settings = consumer(options, Isolation::ReadUncommitted);
    // A listener that speaks another protocol only closes the connection: this handle hears why.
    if !options.properties.contains_key("log.connection.close") {
        put(&mut settings, &[("log.connection.close", s("true"))]);
    }
    settings
}

fn producing(options: &KafkaOptions) -> Settings {
    let defaults = [
        ("linger.ms", "2"),
        ("retry.backoff.ms", "2"),
        ("retry.backoff.max.ms", "5"),
        ("compression.type", "none"),
        ("batch.num.messages", "10000"),
        ("queue.buffering.max.messages", "2000000"),
        ("queue.buffering.max.kbytes", "1048576"),
        ("message.max.bytes", "100000000"),
    ];
    let mut settings = own_first(options, &defaults, |name| !consumers_only(name));
    put(&mut settings, &[("enable.idempotence", s("true")), ("allow.auto.create.topics", s("false"))]);
    settings
}

/// A transactional producer.
pub fn transactional(options: &KafkaOptions, transactional_id: &str) -> Settings {
    let mut settings = producing(options);
    let timeout = options.transaction_timeout.as_millis().to_string();
    put(&mut settings, &[("transactional.id", s(transactional_id)), ("transaction.timeout.ms", timeout.clone())]);
    put(&mut settings, &[("message.timeout.ms", timeout), ("delivery.report.only.error", s("true"))]);
    settings
}

/// The administration of topics.
pub fn administration(options: &KafkaOptions) -> Settings {
    own_first(options, &[], |name| !consumers_only(name) && !producers_only(name))
}

/// A producer of commits without transactions: idempotent, and it never stops trying by itself.
pub fn acknowledged(options: &KafkaOptions) -> Settings {
    let mut settings = producing(options);
    put(&mut settings, &[("message.timeout.ms", s("0")), ("delivery.report.only.error", s("true"))]);
    settings
}

/// A plain idempotent producer.
pub fn plain_producer(options: &KafkaOptions) -> Settings {
    let mut settings = producing(options);
    put(&mut settings, &[("message.timeout.ms", options.call_timeout.as_millis().to_string())]);
    if !options.properties.contains_key("linger.ms") {
        put(&mut settings, &[("linger.ms", s("0"))]);
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kind of handle.
    fn all(options: &KafkaOptions) -> Vec<Settings> {
        let committed = Isolation::ReadCommitted;
        vec![
            member(options, "g", "c"),
            reader(options, committed),
            super::committed(options, "g", true),
            questions(options),
            transactional(options, "t"),
            plain_producer(options),
            administration(options),
        ]
    }

    #[test]
    fn s1_what_is_set_over_a_users_property_is_refused_and_the_rest_passes_through() {
        let names: Vec<String> = all(&KafkaOptions::new("b:1")).into_iter().flatten().map(|(name, _)| name).collect();
        for name in names {
            let properties = BTreeMap::from([(name.clone(), "theirs".into())]);
            let is_refused = check_properties(&properties).is_err();
            let options = KafkaOptions { properties, ..KafkaOptions::new("b:1") };
            for settings in all(&options) {
                let value = settings.iter().rfind(|(its, _)| *its == name).map(|(_, value)| value.as_str());
                let is_theirs = settings.iter().any(|(its, value)| *its == name && value == "theirs");
                assert!(is_refused || !is_theirs || value == Some("theirs"), "{name} is overridden without a word");
            }
        }
    }

    #[test]
    fn properties_of_producers_do_not_reach_consumers() {
        let properties = BTreeMap::from([("linger.ms".to_owned(), "7".into()), ("client.rack".to_owned(), "r".into())]);
        let options = KafkaOptions { properties, ..KafkaOptions::new("b:1") };
        let has = |settings: &Settings, name: &str| settings.iter().any(|(its, _)| its == name);
        assert!(!has(&member(&options, "g", "c"), "linger.ms") && has(&member(&options, "g", "c"), "client.rack"));
        assert!(!has(&transactional(&options, "t"), "client.rack"));
    }
}
