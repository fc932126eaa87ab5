//! The configuration: every key with its default, and where a value came from.

pub mod load;
pub mod secret;
pub mod units;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use secret::Secret;
use units::{bytes, duration};

/// Everything that can be set. Keys, defaults and meaning are those of `docs` and of `tidegate config show`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Who this is.
    pub application: Application,
    /// Which log.
    pub log: Log,
    /// How to reach Kafka.
    pub kafka: Kafka,
    /// Where primary events come from.
    pub source: Source,
    /// Where changes of the state go, beside the changelog.
    pub output: Output,
    /// How they are processed.
    pub processing: Processing,
    /// Bounds of a cascade.
    pub cascade: Cascade,
    /// Who processes them.
    pub handler: Handler,
    /// Where the state lives.
    pub state: State,
    /// The HTTP side.
    pub server: Server,
}

/// `[application]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Application {
    /// The consumer group and the prefix of all internal topics.
    pub id: String,
    /// Names this instance and its state folder; empty = `<hostname>-<port>`.
    pub instance_id: String,
}

/// `[log]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Kafka or the log in a folder.
    pub kind: LogKind,
    /// The folder of the embedded log.
    pub path: PathBuf,
}

/// `log.kind`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogKind {
    /// In process, in a folder, for one machine.
    Embedded,
    /// A Kafka cluster.
    Kafka,
}

/// `[kafka]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kafka {
    /// `host:port,host:port`
    pub bootstrap_servers: String,
    /// librdkafka properties, passed through; those that the product needs are refused by name. `<property>_file`
    /// names a file that has the value. None of the values prints: any of them may be a password or a key.
    pub properties: BTreeMap<String, Secret>,
}

/// `[source]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Source {
    /// The topics with primary events.
    pub topics: Vec<String>,
    /// Where the sequence comes from.
    pub stamp: StampSource,
    /// How records are read.
    pub format: Format,
    /// The upper 8 bits of every sequence, 0-255; never goes back.
    pub epoch: u8,
    /// With `stamp = "header"`: how far above the greatest sequence so far of its epoch a record's may be.
    pub max_jump: u64,
    /// With `stamp = "header"`: after a sequence q none below q minus this is sent any more; `off` = no such promise.
    #[serde(with = "units::optional_number")]
    pub max_disorder: Option<u64>,
}

/// `source.stamp`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StampSource {
    /// The record's offset: one topic with one partition.
    Offset,
    /// The record's header `global_offset`: any number of topics and partitions.
    Header,
    /// The order in which one member, the sequencer, reads: any number of topics and partitions.
    Arrival,
}

impl StampSource {
    /// As the configuration writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            StampSource::Offset => "offset",
            StampSource::Header => "header",
            StampSource::Arrival => "arrival",
        }
    }
}

/// `source.format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// JSON where the value begins with `{`, else text.
    Auto,
    /// `ADD`, `REMOVE`, `123:ADD`.
    Text,
    /// `{"key":"123","action":"ADD","payload":…}`
    Json,
    /// `tidegate.v1.Event`
    Protobuf,
}

/// `[output]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Output {
    /// The topic; empty = none.
    pub topic: String,
    /// How changes are written.
    pub format: OutputFormat,
}

/// `output.format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputFormat {
    /// One object each.
    Json,
    /// `tidegate.v1.StateChange`
    Protobuf,
}

/// `[processing]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Processing {
    /// What a crash may do.
    pub guarantee: Guarantee,
    /// What becomes of an event whose key holds a greater stamp already.
    pub superseded: Superseded,
    /// The longest time from a finished event to the commit that carries it.
    #[serde(with = "duration")]
    pub commit_interval: Duration,
    /// Partitions of the internal topics; fixed for the application's life.
    pub partitions: i32,
    /// Of the internal topics; 0 = the broker's default.
    pub replication_factor: i32,
    /// Handler calls running at once.
    pub max_in_flight: usize,
    /// All that is read and not committed, in bytes; full = partitions pause.
    #[serde(with = "bytes")]
    pub max_buffered: usize,
    /// Engine threads, each a member of the group.
    pub threads: usize,
    /// How long a shutdown may take.
    #[serde(with = "duration")]
    pub shutdown_timeout: Duration,
    /// How often consumed records of the repartition topic are deleted; `off` = never.
    #[serde(with = "units::optional_duration")]
    pub repartition_purge: Option<Duration>,
}

/// `processing.guarantee`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Guarantee {
    /// State, children and progress in one transaction.
    ExactlyOnce,
    /// No transactions: children, dead letters and handler calls may be doubled.
    AtLeastOnce,
}

/// `processing.superseded`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Superseded {
    /// Its handler runs and its children are spawned: they belong into the serial order.
    Expand,
    /// It is skipped; the state of other keys then depends on timing.
    Drop,
}

/// `[cascade]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cascade {
    /// A child deeper than this is a dead letter, at most 255.
    pub max_depth: usize,
    /// An event with more children than this fails.
    pub max_children: usize,
}

/// `[handler]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Handler {
    /// Which of the built-in ones.
    pub kind: HandlerKind,
    /// The file with the rules.
    pub rules: PathBuf,
    /// The longest time of one try.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// What happens after a try that failed.
    pub retry: Retry,
}

/// `handler.kind`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HandlerKind {
    /// No work, no children; the value is the payload.
    Echo,
    /// A TOML file of rules.
    Rules,
    /// The event brings its own script.
    Scripted,
}

/// `handler.retry`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// Before the second try.
    #[serde(with = "duration")]
    pub initial: Duration,
    /// The longest wait.
    #[serde(with = "duration")]
    pub max: Duration,
    /// From one wait to the next, at least 1.
    pub factor: f64,
    /// Tries in all, at least 1.
    pub attempts: u32,
}

/// `[state]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    /// The instance's stores are below `<dir>/<instance_id>/`.
    pub dir: PathBuf,
    /// Block cache, write buffers and overlay together, in bytes.
    #[serde(with = "bytes")]
    pub cache: usize,
    /// How long the marker of a removed key is kept after everything up to it is settled; the shortest is 0.
    #[serde(with = "duration")]
    pub marker_retention: Duration,
}

/// `[server]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// `host:port`; empty = 127.0.0.1:8080, or the next free port when that is taken.
    pub listen: String,
    /// The address under which other instances and people reach this one; empty = `listen`.
    pub advertised: String,
    /// What every call of the API has to bring; empty = none.
    pub token: Secret,
    /// The file that has the token, instead of `token`.
    pub token_file: PathBuf,
    /// Whether `/metrics` asks for the token, too.
    pub protect_metrics: bool,
    /// HTTPS, where both files are set.
    pub tls: ServerTls,
}

/// `[server.tls]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerTls {
    /// The certificate chain, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

impl Default for Application {
    fn default() -> Self {
        Application { id: "tidegate".into(), instance_id: String::new() }
    }
}

impl Default for Log {
    fn default() -> Self {
        Log { kind: LogKind::Embedded, path: "./tidegate-data/log".into() }
    }
}

impl Default for Source {
    fn default() -> Self {
        Source {
            topics: vec!["events".into()],
            stamp: StampSource::Offset,
            format: Format::Auto,
            epoch: 0,
            max_jump: 10_000_000,
            max_disorder: None,
        }
    }
}

impl Default for Output {
    fn default() -> Self {
        Output { topic: String::new(), format: OutputFormat::Json }
    }
}

impl Default for Processing {
    fn default() -> Self {
        Processing {
            guarantee: Guarantee::ExactlyOnce,
            superseded: Superseded::Expand,
            commit_interval: Duration::from_millis(100),
            partitions: 16,
            replication_factor: 0,
            max_in_flight: 10_000,
            max_buffered: 256 << 20,
            threads: 1,
            shutdown_timeout: Duration::from_secs(30),
            repartition_purge: Some(Duration::from_secs(30)),
        }
    }
}

impl Default for Cascade {
    fn default() -> Self {
        Cascade { max_depth: 64, max_children: 10_000 }
    }
}

impl Default for Handler {
    fn default() -> Self {
        Handler {
            kind: HandlerKind::Echo,
            rules: "rules.toml".into(),
            timeout: Duration::from_secs(30),
            retry: Retry::default(),
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Retry { initial: Duration::from_millis(100), max: Duration::from_secs(10), factor: 2.0, attempts: 20 }
    }
}

impl Default for State {
    fn default() -> Self {
        State {
            dir: "./tidegate-data/state".into(),
            cache: 256 << 20,
            marker_retention: Duration::from_secs(24 * 3600),
        }
    }
}
