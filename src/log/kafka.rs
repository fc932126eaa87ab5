//! The log on Kafka, through librdkafka.
//!
//! Opening needs no broker; calls that find none fail as [`LogError::Retriable`] within the call timeout and name the
//! broker and the cause. All `unsafe` is below [`native`].

mod admin;
mod append;
mod arena;
mod errors;
mod group;
mod member;
mod native;
mod plain;
mod producer;
mod properties;
mod reader;
mod rights;
mod settings;
mod watch;

use std::sync::{Arc, Mutex, PoisonError};

pub use settings::{KafkaOptions, check_properties};

use admin::Questions;
use append::Appender as SharedAppender;
use member::KafkaMember;
use plain::KafkaAppender;
use producer::KafkaProducer;
use reader::KafkaReader;

use super::{
    Append, Appender, Committed, EventSink, Isolation, Join, Log, LogError, Member, NewTopic, Operation, Producer,
    Reader, TopicDescription, TopicPartition, Watermarks,
};

/// A Kafka cluster.
pub struct KafkaLog {
    options: Arc<KafkaOptions>,
    questions: Arc<Questions>,
    appender: Mutex<Option<SharedAppender>>,
}

impl KafkaLog {
    /// Checks the properties and opens the handles; does not wait for a broker. [`LogError::Refused`] names a property
    /// that is not the user's to set, [`LogError::Fatal`] one that librdkafka does not take.
    pub fn connect(options: KafkaOptions) -> Result<KafkaLog, LogError> {
        let properties = properties::read_files(&options.properties).map_err(LogError::Refused)?;
        check_properties(&properties).map_err(LogError::Refused)?;
        let options = Arc::new(KafkaOptions { properties, ..options });
        let questions = Arc::new(Questions::open(&options)?);
        Ok(KafkaLog { options, questions, appender: Mutex::new(None) })
    }
}

impl Log for KafkaLog {
    fn join(&self, join: Join, sink: EventSink) -> Result<Arc<dyn Member>, LogError> {
        Ok(Arc::new(KafkaMember::open(&self.options, join, sink)?))
    }

    fn producer(&self, transactional_id: &str) -> Result<Box<dyn Producer>, LogError> {
        Ok(Box::new(KafkaProducer::open(&self.options, &self.questions, transactional_id)?))
    }

    fn appender(&self, name: &str) -> Result<Box<dyn Appender>, LogError> {
        Ok(Box::new(KafkaAppender::open(&self.options, name)?))
    }

    fn fence(&self, transactional_id: &str) -> Result<(), LogError> {
        producer::fence(&self.options, transactional_id)
    }

    fn append(&self, append: Append) -> Result<Vec<i64>, LogError> {
        let mut slot = self.appender.lock().unwrap_or_else(PoisonError::into_inner);
        let mut appender = match slot.take() {
            Some(appender) => appender,
            None => SharedAppender::open(&self.options)?,
        };
        let appended = appender.append(&append);
        if !appender.broken() {
            *slot = Some(appender);
        }
        appended
    }

    fn reader(
        &self,
        of: &TopicPartition,
        position: i64,
        isolation: Isolation,
        headers: bool,
    ) -> Result<Box<dyn Reader>, LogError> {
        Ok(Box::new(KafkaReader::open(&self.options, of, position, isolation, headers)?))
    }

    fn watermarks(&self, of: &TopicPartition) -> Result<Watermarks, LogError> {
        self.questions.watermarks(of)
    }

    fn committed(&self, group: &str, of: &[TopicPartition], stable: bool) -> Result<Vec<Option<Committed>>, LogError> {
        self.questions.committed(group, of, stable)
    }

    fn describe(&self, names: &[&str]) -> Result<Vec<Option<TopicDescription>>, LogError> {
        self.questions.describe(names)
    }

    fn create(&self, topics: &[NewTopic]) -> Result<(), LogError> {
        self.questions.create(topics)
    }

    fn purge(&self, before: &[(TopicPartition, i64)]) -> Result<(), LogError> {
        self.questions.purge(before)
    }

    fn check_rights(&self, group: (&str, &[Operation]), topics: &[(&str, &[Operation])]) -> Result<(), LogError> {
        self.questions.check_rights(group, topics)
    }

    fn delete_topics(&self, names: &[&str]) -> Result<(), LogError> {
        self.questions.delete_topics(names)
    }

    fn members_of(&self, group: &str) -> Result<Vec<String>, LogError> {
        self.questions.members_of(group)
    }

    fn delete_group(&self, group: &str) -> Result<(), LogError> {
        self.questions.delete_group(group)
    }
}
