//! What an engine works with, as it is set at the start.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::Config;
use crate::log::TopicPartition;
use crate::topics::Topics;

/// What an engine works with.
pub struct Setting {
    /// The configuration.
    pub config: Arc<Config>,
    /// Names.
    pub topics: Topics,
    /// The id of each source topic, by name.
    pub topic_ids: BTreeMap<Arc<str>, Arc<str>>,
    /// Every partition of the source topics.
    pub source_partitions: Vec<TopicPartition>,
    /// The transactional id of this thread's producer.
    pub producer_id: String,
    /// Where this instance's HTTP answers.
    pub address: String,
    /// Which of the instance's threads this is, from 1.
    pub thread: usize,
    /// Its share of `processing.max_in_flight`.
    pub max_in_flight: usize,
    /// Its share of `processing.max_buffered`, in bytes.
    pub max_buffered: usize,
    /// The bytes of committed entries that may wait above its stores.
    pub overlay_bytes: usize,
}
