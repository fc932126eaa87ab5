//! Tests of the layers, the messages and what is shown.

use std::io::Write;
use std::time::Duration;

use super::*;
use crate::config::{Guarantee, LogKind};

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn from_file(text: &str) -> Result<Loaded, ConfigError> {
    let file = file(text);
    load(LoadOptions { file: Some(file.path().to_owned()), ..LoadOptions::default() })
}

fn environment(name: &str, value: &str) -> Result<Loaded, ConfigError> {
    load(LoadOptions { environment: vec![(name.into(), value.into())], ..LoadOptions::default() })
}

fn flag(key: &str, value: &str) -> Result<Loaded, ConfigError> {
    load(LoadOptions { settings: vec![(key.into(), value.into(), "--set".into())], ..LoadOptions::default() })
}

#[track_caller]
fn fails(result: Result<Loaded, ConfigError>, parts: &[&str]) {
    let message = result.expect_err("has to be refused").to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

#[test]
fn nothing_set_is_the_default() {
    let loaded = load(LoadOptions::default()).unwrap();
    assert_eq!(toml::to_string(&loaded.config).unwrap(), toml::to_string(&Config::default()).unwrap());
    assert!(loaded.origins.values().all(|origin| origin == "default"));
}

#[test]
fn later_layers_win() {
    let file = file("[processing]\npartitions = 4\ncommit_interval = \"5ms\"\nmax_in_flight = 7\n");
    let options = LoadOptions {
        file: Some(file.path().to_owned()),
        environment: vec![
            ("TIDEGATE_PROCESSING__COMMIT_INTERVAL".into(), "6ms".into()),
            ("TIDEGATE_PROCESSING__MAX_IN_FLIGHT".into(), "8".into()),
            ("PATH".into(), "/bin".into()),
            ("TIDEGATE_SERVER".into(), "http://127.0.0.1:8080".into()),
            ("TIDEGATE_PORT_8080_TCP".into(), "tcp://10.0.0.1:8080".into()),
        ],
        settings: vec![("processing.max_in_flight".into(), "9".into(), "--set".into())],
    };
    let loaded = load(options).unwrap();
    let processing = &loaded.config.processing;
    assert_eq!(
        (processing.partitions, processing.commit_interval, processing.max_in_flight),
        (4, Duration::from_millis(6), 9)
    );
    assert!(loaded.origins["processing.partitions"].ends_with(".toml:2"));
    assert_eq!(loaded.origins["processing.commit_interval"], "TIDEGATE_PROCESSING__COMMIT_INTERVAL");
    assert_eq!(loaded.origins["processing.max_in_flight"], "--set");
    assert_eq!(loaded.origins["processing.guarantee"], "default");
}

#[test]
fn every_type_can_be_set_by_text() {
    assert_eq!(flag("source.topics", "orders").unwrap().config.source.topics, ["orders"]);
    assert_eq!(flag("source.topics", "[\"orders\"]").unwrap().config.source.topics, ["orders"]);
    assert_eq!(flag("handler.retry.factor", "3").unwrap().config.handler.retry.factor, 3.0);
    assert_eq!(flag("processing.repartition_purge", "off").unwrap().config.processing.repartition_purge, None);
    assert_eq!(flag("state.cache", "1024").unwrap().config.state.cache, 1024);
    assert_eq!(flag("application.id", "42").unwrap().config.application.id, "42");
    assert_eq!(
        flag("processing.guarantee", "exactly_once").unwrap().config.processing.guarantee,
        Guarantee::ExactlyOnce
    );
}

#[test]
fn kafka_properties_come_from_everywhere() {
    let properties = |loaded: Result<Loaded, ConfigError>| loaded.unwrap().config.kafka.properties;
    let one = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.into())]);
    let expected = one("sasl.username", "me");
    assert_eq!(properties(from_file("[kafka]\nproperties = { \"sasl.username\" = \"me\" }")), expected);
    assert_eq!(properties(from_file("[kafka.properties]\nsasl.username = \"me\"")), expected);
    assert_eq!(properties(environment("TIDEGATE_KAFKA__PROPERTIES", "{ \"sasl.username\" = \"me\" }")), expected);
    assert_eq!(properties(flag("kafka.properties.\"sasl.username\"", "me")), expected);
    assert_eq!(properties(flag("kafka.properties.sasl.username", "me")), expected);
    assert_eq!(properties(environment("TIDEGATE_KAFKA__PROPERTIES__SASL__USERNAME", "me")), expected);
    assert_eq!(properties(from_file("[kafka.properties]\n\"linger.ms\" = 5")), one("linger.ms", "5"));
    fails(flag("kafka.properties.", "x"), &["a property without a name"]);
    fails(environment("TIDEGATE_KAFKA__PROPERTIES", "x=secret"), &["TIDEGATE_KAFKA__PROPERTIES", "TOML table"]);
}

#[test]
fn unknown_keys_come_with_a_suggestion() {
    fails(
        from_file("[processing]\n\ngarantee = \"exactly_once\""),
        &[".toml:3: unknown key processing.garantee", "did you mean processing.guarantee?"],
    );
    fails(flag("source.partitions", "3"), &["--set: unknown key", "did you mean processing.partitions?"]);
    fails(environment("TIDEGATE_XYZZY__Q", "1"), &["TIDEGATE_XYZZY__Q: unknown key xyzzy.q", "config show"]);
    fails(environment("TIDEGATE_SERVER_LISTEN", ":1"), &["did you mean TIDEGATE_SERVER__LISTEN?"]);
    fails(flag("handler.retry", "3"), &["handler.retry is a section"]);
    fails(from_file("processing = 3"), &["processing is a section"]);
}

#[test]
fn wrong_values_say_what_is_allowed() {
    fails(flag("handler.kind", "wasm"), &["--set: handler.kind = \"wasm\"", "echo", "rules", "scripted"]);
    fails(flag("processing.partitions", "many"), &["processing.partitions = \"many\"", "1 to 10000"]);
    fails(flag("processing.partitions", "0"), &["processing.partitions = 0", "1 to 10000"]);
    fails(flag("processing.partitions", "10001"), &["1 to 10000"]);
    fails(flag("processing.threads", "0"), &["processing.threads = 0", "1 to 64"]);
    fails(flag("processing.threads", "65"), &["1 to 64"]);
    fails(from_file("[processing]\nthreads = 4\nmax_in_flight = 3"), &["max_in_flight = 3", "processing.threads = 4"]);
    fails(flag("source.epoch", "256"), &["source.epoch = 256", "0 to 255"]);
    fails(flag("cascade.max_depth", "256"), &["1 to 255"]);
    fails(flag("cascade.max_depth", "0"), &["1 to 255"]);
    fails(flag("handler.retry.attempts", "0"), &["handler.retry.attempts = 0"]);
    fails(flag("handler.retry.factor", "0.5"), &["at least 1"]);
    fails(flag("handler.retry.max", "1ms"), &["below handler.retry.initial"]);
    fails(flag("processing.commit_interval", "0s"), &["has to be above 0"]);
    fails(flag("processing.commit_interval", "5"), &["not a duration"]);
    fails(from_file("[processing]\ncommit_interval = 5"), &[":2: processing.commit_interval = 5", "string"]);
    fails(flag("state.cache", "12 apples"), &["not a size"]);
    fails(flag("application.id", "a/b"), &["application.id = \"a/b\"", "a-z"]);
    fails(flag("application.id", &"a".repeat(240)), &["1 to 230"]);
    fails(flag("log.kind", "kafka"), &["kafka.bootstrap_servers", "needs the address of a broker"]);
    fails(flag("source.topics", "a,b"), &["exactly one topic", "header", "arrival"]);
    fails(flag("source.topics", "tidegate-progress"), &["internal topic"]);
    fails(flag("server.listen", "8080"), &["server.listen", "host:port"]);
    for advertised in ["orders", "http://orders", "orders x:80", "örders:80", ":80", "orders:70000"] {
        fails(flag("server.advertised", advertised), &["server.advertised", "host:port"]);
    }
    assert!(flag("server.advertised", "[::1]:8080").is_ok());
    fails(from_file("[server]\ntoken = \"x\"\ntoken_file = \"y\""), &[":3: server.token_file", "both"]);
    fails(flag("server.tls.cert", "x.pem"), &["server.tls.key", "server.tls.cert"]);
    fails(flag("server.tls.key", "x.pem"), &["server.tls.key", "server.tls.cert"]);
    fails(flag("output.topic", "a b"), &["output.topic = \"a b\"", "a-z"]);
    fails(flag("output.topic", "events"), &["output.topic = \"events\"", "source topic"]);
    for internal in ["events-repartition", "state-changelog", "dead-letter", "progress", "order"] {
        fails(flag("output.topic", &format!("tidegate-{internal}")), &["output.topic", "internal topic"]);
    }
    fails(flag("output.format", "avro"), &["output.format = \"avro\"", "json", "protobuf"]);
}

#[test]
fn the_order_of_arrival_needs_transactions() {
    let mut config = Config::default();
    config.source.stamp = crate::config::StampSource::Arrival;
    config.processing.guarantee = Guarantee::AtLeastOnce;
    let told = checks::problems(&config, &BTreeMap::new()).join("\n");
    assert!(told.contains("processing.guarantee = \"at_least_once\"") && told.contains("arrival"), "{told}");
    config.processing.guarantee = Guarantee::ExactlyOnce;
    assert_eq!(checks::problems(&config, &BTreeMap::new()), Vec::<String>::new());
}

#[test]
fn all_problems_are_told() {
    fails(from_file("[cascade]\nmax_depth = 0\nmax_children = 0"), &["max_depth", "max_children"]);
    fails(from_file("[cascade]\nmx = 0\n[cscade]\nmy = 0"), &["cascade.mx", "cscade.my"]);
}

#[test]
fn broken_files_are_named_with_the_line() {
    fails(from_file("[processing]\npartitions = \n"), &[".toml:2: "]);
    let options = LoadOptions { file: Some("/no/such.toml".into()), ..LoadOptions::default() };
    fails(load(options), &["/no/such.toml"]);
    fails(from_file("[source]\nepoch = 99999999999999999999"), &["out of range"]);
}

#[test]
fn what_does_not_exist_yet_is_not_unknown() {
    for (key, value) in
        [("processing.standby_replicas", "all"), ("handler.kind", "grpc"), ("replay.postgres", "postgres://x")]
    {
        fails(flag(key, value), &[key, "not available in this version"]);
    }
    assert!(flag("processing.standby_replicas", "0").is_ok());
    assert_eq!(flag("state.marker_retention", "0s").unwrap().config.state.marker_retention, Duration::ZERO);
}

/// Found by fuzzing: an origin is a comment there, which must not end before its line does.
#[test]
fn what_is_shown_is_toml_whatever_the_names_of_files_and_variables() {
    let loaded = environment("TIDEGATE_KAFKA__PROPERTIES__A\nB\u{1}\u{7f}\"\\", "x").unwrap();
    let shown = show(&loaded);
    let again: Config = toml::from_str(&shown).unwrap_or_else(|error| panic!("{error}: {shown}"));
    assert_eq!(again.kafka.properties, loaded.config.kafka.properties);
}

#[test]
fn secrets_are_shown_nowhere() {
    let loaded = from_file(
        "[log]\nkind = \"kafka\"\n[kafka]\nbootstrap_servers = \"b:9092\"\n[kafka.properties]\n\
         \"sasl.username\" = \"hidden\"\n\"ssl.key.pem\" = \"hidden\"\n\"my.password\" = \"hidden\"\n\
         \"linger.ms\" = 5\n\"ssl.key.location\" = \"/k.pem\"\n\"sasl.password_file\" = \"/p\"\n",
    )
    .unwrap();
    assert_eq!(loaded.config.log.kind, LogKind::Kafka);
    let shown = show(&loaded);
    assert!(!shown.contains("hidden"), "{shown}");
    let debug = format!("{loaded:?}");
    assert!(!debug.contains("hidden"), "{debug}");
    assert!(shown.contains("/k.pem") && shown.contains("/p"), "a path is no secret: {shown}");
    assert!(shown.contains("[kafka.properties]\n\"linger.ms\" = \"5\"  # /"), "{shown}");
    assert!(shown.contains("guarantee = \"exactly_once\"  # default"), "{shown}");
    let again: Config = toml::from_str(&shown).unwrap();
    assert_eq!(again.kafka.bootstrap_servers, "b:9092");
    let shown = show(&flag("server.token", "hidden").unwrap());
    assert!(shown.contains("token = \"********\"  # --set") && !shown.contains("hidden"), "{shown}");
    let error = flag("server.token", "hid den").unwrap_err().to_string();
    assert!(error.contains("server.token") && !error.contains("den"), "{error}");
}
