//! What values have to be beyond their types, and with each other.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use super::super::{Config, Guarantee, LogKind, StampSource};
use super::keys::range;
use crate::topics::Topics;

/// Kafka's limit for the name of a topic, in bytes.
const MAX_TOPIC_BYTES: usize = 249;

struct Checks<'a> {
    origins: &'a BTreeMap<String, String>,
    problems: Vec<String>,
}

/// Every problem, each with key, value, origin, and what is allowed.
pub fn problems(config: &Config, origins: &BTreeMap<String, String>) -> Vec<String> {
    let mut checks = Checks { origins, problems: Vec::new() };
    checks.ranges(config);
    checks.durations(config);
    checks.names(config);
    checks.source(config);
    checks.server(config);
    checks.output(config);
    if config.log.kind == LogKind::Kafka && config.kafka.bootstrap_servers.trim().is_empty() {
        checks.problem(
            "kafka.bootstrap_servers",
            &"\"\"",
            "log.kind = \"kafka\" needs the address of a broker, such as \"127.0.0.1:9092\"",
        );
    }
    checks.problems
}

impl Checks<'_> {
    fn problem(&mut self, key: &str, value: &dyn Display, what: &str) {
        let origin = self.origins.get(key).map_or("default", String::as_str);
        self.problems.push(format!("{origin}: {key} = {value}: {what}"));
    }

    fn in_range(&mut self, key: &str, value: &dyn Display, holds: bool) {
        if !holds {
            let range = range(key).expect("every checked number has its range in words");
            self.problem(key, value, &format!("allowed: {range}"));
        }
    }

    fn ranges(&mut self, config: &Config) {
        let (processing, cascade, retry) = (&config.processing, &config.cascade, &config.handler.retry);
        let factor = i32::from(i16::MAX);
        self.in_range("processing.partitions", &processing.partitions, (1..=10_000).contains(&processing.partitions));
        let replication = processing.replication_factor;
        self.in_range("processing.replication_factor", &replication, (0..=factor).contains(&replication));
        self.in_range("processing.max_in_flight", &processing.max_in_flight, processing.max_in_flight >= 1);
        let threads = processing.threads;
        self.in_range("processing.threads", &threads, (1..=64).contains(&threads));
        if (2..=64).contains(&threads) && (1..threads).contains(&processing.max_in_flight) {
            let what = format!("is shared out among processing.threads = {threads}; each needs at least one call");
            self.problem("processing.max_in_flight", &processing.max_in_flight, &what);
        }
        self.in_range("cascade.max_depth", &cascade.max_depth, (1..=255).contains(&cascade.max_depth));
        let children = cascade.max_children;
        self.in_range("cascade.max_children", &children, children >= 1 && u32::try_from(children).is_ok());
        self.in_range("handler.retry.factor", &retry.factor, retry.factor.is_finite() && retry.factor >= 1.0);
        self.in_range("handler.retry.attempts", &retry.attempts, retry.attempts >= 1);
        for (key, bytes) in [("processing.max_buffered", processing.max_buffered), ("state.cache", config.state.cache)]
        {
            if bytes == 0 {
                self.problem(key, &bytes, "has to be above 0");
            }
        }
    }

    fn durations(&mut self, config: &Config) {
        let (processing, handler) = (&config.processing, &config.handler);
        let purge = processing.repartition_purge.unwrap_or(Duration::MAX);
        for (key, duration) in [
            ("processing.commit_interval", processing.commit_interval),
            ("processing.shutdown_timeout", processing.shutdown_timeout),
            ("processing.repartition_purge", purge),
            ("handler.timeout", handler.timeout),
        ] {
            if duration.is_zero() {
                self.problem(key, &humantime::format_duration(duration), "has to be above 0");
            }
        }
        if handler.retry.max < handler.retry.initial {
            let initial = humantime::format_duration(handler.retry.initial);
            let what = format!("is below handler.retry.initial = {initial}");
            self.problem("handler.retry.max", &humantime::format_duration(handler.retry.max), &what);
        }
    }

    fn names(&mut self, config: &Config) {
        let id = &config.application.id;
        let topics = Topics::new(id, &[]);
        let longest = topics.internal().into_iter().map(|name| name.len() - id.len()).max().unwrap_or(0);
        if let Err(what) = is_topic_name(id, MAX_TOPIC_BYTES - longest) {
            self.problem("application.id", &format!("{id:?}"), &format!("internal topics are named after it, {what}"));
        }
        let instance = &config.application.instance_id;
        if instance.contains(['/', '\\', '\0']) || instance == "." || instance == ".." {
            self.problem("application.instance_id", &format!("{instance:?}"), "a folder is named after it");
        }
    }

    fn server(&mut self, config: &Config) {
        let server = &config.server;
        for (key, address) in [("server.listen", &server.listen), ("server.advertised", &server.advertised)] {
            let port = address.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
            // It stands in the metadata of committed positions, whose words are parted by spaces (protocol P5).
            let is_word = address.bytes().all(|byte| byte.is_ascii_graphic());
            if !address.is_empty() && (!is_word || port.is_none_or(|port| port.parse::<u16>().is_err())) {
                self.problem(key, &format!("{address:?}"), "expected host:port, such as \"127.0.0.1:8080\"");
            }
        }
        if let Err(what) = server.token.check_token() {
            self.problem("server.token", &"\"********\"", what);
        }
        let (token_file, tls) = (&server.token_file, &server.tls);
        if !server.token.is_empty() && !token_file.as_os_str().is_empty() {
            let what = "server.token is set, too; keep one of both";
            self.problem("server.token_file", &format!("{token_file:?}"), what);
        }
        let missing = match (tls.cert.as_os_str().is_empty(), tls.key.as_os_str().is_empty()) {
            (true, false) => Some(("server.tls.cert", "server.tls.key")),
            (false, true) => Some(("server.tls.key", "server.tls.cert")),
            _ => None,
        };
        if let Some((missing, set)) = missing {
            self.problem(missing, &"\"\"", &format!("{set} is set: HTTPS needs both files, HTTP neither"));
        }
    }

    fn source(&mut self, config: &Config) {
        let topics = &config.source.topics;
        let value = format!("{topics:?}");
        let names = Topics::new(&config.application.id, &[]);
        for topic in topics {
            if let Err(what) = is_topic_name(topic, MAX_TOPIC_BYTES) {
                self.problem("source.topics", &value, &format!("{topic:?} is no topic's name, {what}"));
            }
            if names.internal().iter().any(|name| ***name == **topic) {
                self.problem("source.topics", &value, &format!("{topic:?} is an internal topic of this application"));
            }
        }
        if (config.source.stamp, config.processing.guarantee) == (StampSource::Arrival, Guarantee::AtLeastOnce) {
            self.problem(
                "processing.guarantee",
                &"\"at_least_once\"",
                "source.stamp = \"arrival\" needs \"exactly_once\": without transactions a record whose place in the order \
                 was given just before a crash is read again and gets a second one",
            );
        }
        match config.source.stamp {
            StampSource::Offset if topics.len() != 1 => self.problem(
                "source.topics",
                &value,
                "source.stamp = \"offset\" takes the order received from the offsets of exactly one topic with one \
                 partition; the alternatives for more are a sequence in every record (stamp = \"header\") and the \
                 order in which one member reads (stamp = \"arrival\")",
            ),
            StampSource::Header | StampSource::Arrival if topics.is_empty() => {
                self.problem("source.topics", &value, "at least one topic is needed");
            }
            _ => {}
        }
        if let Some(disorder) = config.source.max_disorder.filter(|_| config.source.stamp != StampSource::Header) {
            let what = "is a promise about the sequences of source.stamp = \"header\"; with others it is always known what \
                        can still come";
            self.problem("source.max_disorder", &disorder, what);
        }
        for (place, topic) in topics.iter().enumerate() {
            if topics[..place].contains(topic) {
                self.problem("source.topics", &value, &format!("{topic:?} is named twice"));
            }
        }
        if config.source.stamp == StampSource::Arrival && config.processing.guarantee != Guarantee::ExactlyOnce {
            self.problem(
                "source.stamp",
                &"\"arrival\"",
                "the order received is written in transactions, so it needs processing.guarantee = \"exactly_once\"",
            );
        }
    }

    /// What is written there would be read again as something else.
    fn output(&mut self, config: &Config) {
        let topic = &config.output.topic;
        if topic.is_empty() {
            return;
        }
        let value = format!("{topic:?}");
        if let Err(what) = is_topic_name(topic, MAX_TOPIC_BYTES) {
            self.problem("output.topic", &value, &format!("it is no topic's name, {what}"));
        }
        let names = Topics::new(&config.application.id, &[]);
        if names.internal().iter().any(|name| ***name == **topic) {
            self.problem("output.topic", &value, "it is an internal topic of this application");
        }
        if config.source.topics.contains(topic) {
            self.problem("output.topic", &value, "it is a source topic of this application");
        }
    }
}

fn is_topic_name(name: &str, longest: usize) -> Result<(), String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=longest).contains(&name.len()) && name.chars().all(legal) && name != "." && name != ".." {
        return Ok(());
    }
    Err(format!("allowed: 1 to {longest} of a-z A-Z 0-9 . _ -"))
}
