//! Questions about topics, ends and committed positions, and the topics' administration.
//!
//! Q1: "no committed position" is told only where the broker said so; an error of an element, also inside of a good
//!     answer, is an error (protocol P15).

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic as Creation, ResourceSpecifier, TopicReplication};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::errors::{Code, Failure, is_denial, log_error};
use super::native::{self, Allowed, Client, Found};
use super::rights::{self, Resource, Right};
use super::settings::{self, KafkaOptions};
use super::watch::Watch;
use crate::clock;
use crate::log::{Committed, LogError, NewTopic, Operation, TopicDescription, TopicPartition, Watermarks};

/// How long a question about stable positions waits: librdkafka asks again by itself until then.
const STABLE: Duration = Duration::from_secs(2);
/// How long deleted topics may take to be gone.
const GONE: Duration = Duration::from_secs(30);
/// The pause between two looks whether they are.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long the search for the unstable one waits at each.
const SEARCH: Duration = Duration::from_millis(300);

/// A client and what it heard.
struct Asker {
    client: Client,
    watch: Arc<Watch>,
}

impl Asker {
    fn open(name: &str, settings: &[(String, String)]) -> Result<Asker, LogError> {
        let watch = Arc::new(Watch::new(name));
        let client = Client::open(true, settings, Arc::clone(&watch), None).map_err(LogError::Fatal)?;
        Ok(Asker { client, watch })
    }

    /// The client, after it was told what happened meanwhile.
    fn ask(&self) -> &Client {
        for _ in 0..32 {
            self.client.serve(Duration::ZERO, &mut |_| {});
        }
        &self.client
    }

    /// Whether it heard since its last news that something is not allowed.
    fn was_denied(&self) -> bool {
        self.ask();
        self.watch.news().iter().any(|(code, _)| is_denial(*code))
    }

    fn failure(&self, what: &str, failure: &Failure) -> LogError {
        self.client.serve(Duration::ZERO, &mut |_| {});
        log_error(failure.code, self.watch.explain(&format!("{what}: {}", failure.text)))
    }
}

/// Handles that are asked; all are opened without a broker.
pub struct Questions {
    options: Arc<KafkaOptions>,
    plain: Asker,
    /// For questions to a group's coordinator. One that was given up goes with its handle: librdkafka (2.12) keeps it, and
    /// touches freed memory when it finds the coordinator after the request's own deadline.
    rights: Mutex<Option<Asker>>,
    groups: Mutex<HashMap<(String, bool), Arc<Asker>>>,
    admin: AdminClient<AdminWatch>,
}

fn code_of(error: &KafkaError) -> Code {
    match error {
        KafkaError::AdminOp(code) | KafkaError::OffsetFetch(code) => *code,
        other => other.rdkafka_error_code().unwrap_or(Code::Fail),
    }
}

/// Passes the safe client's words on to tracing.
#[derive(Clone)]
struct AdminWatch(Arc<Watch>);

impl ClientContext for AdminWatch {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.0.log(level as i32, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(code_of(&error), reason.to_owned());
    }
}

impl Questions {
    /// Opens the handles.
    pub fn open(options: &Arc<KafkaOptions>) -> Result<Questions, LogError> {
        let settings = settings::questions(options);
        let plain = Asker::open("questions", &settings)?;
        let config: ClientConfig = settings::administration(options).into_iter().collect();
        let admin = config.create_with_context(AdminWatch(Arc::new(Watch::new("administration"))));
        let admin = admin.map_err(|error| LogError::Fatal(error.to_string()))?;
        Ok(Questions { options: Arc::clone(options), plain, rights: Mutex::default(), groups: Mutex::default(), admin })
    }

    fn admin_options(&self) -> AdminOptions {
        AdminOptions::new()
            .request_timeout(Some(self.options.call_timeout))
            .operation_timeout(Some(self.options.call_timeout))
    }

    fn admin_error(&self, what: &str, error: &KafkaError) -> LogError {
        // The safe client does not hear errors of the network; the other handle talks to the same brokers.
        self.plain.ask();
        let text = self.plain.watch.explain(&format!("{what}: {error}"));
        log_error(code_of(error), text)
    }

    fn missing(&self, right: Right<'_>, why: &str) -> LogError {
        rights::missing(&[right], &self.options.prefix, why)
    }

    /// Low and high watermark, undecided transactions included.
    pub fn watermarks(&self, of: &TopicPartition) -> Result<Watermarks, LogError> {
        match self.plain.ask().watermarks(of, self.options.call_timeout) {
            Ok((low, high)) => Ok(Watermarks { low, high }),
            // librdkafka says so of a topic that it must not know, too.
            Err(failure) => match log_error(failure.code, String::new()) {
                LogError::UnknownTopic(_) if self.is_hidden(&of.topic) => {
                    Err(self.missing(("Describe", Resource::Topic(&of.topic)), &failure.text))
                }
                _ => Err(self.plain.failure(&format!("watermarks of {of}"), &failure)),
            },
        }
    }

    /// Whether we are not allowed to know whether there is such a topic.
    fn is_hidden(&self, topic: &str) -> bool {
        let found = self.topics(&[topic], false).ok().and_then(|mut found| found.pop());
        matches!(found, Some(Err(LogError::Unauthorized(_))))
    }

    /// The ends of these partitions where they could be told.
    pub fn ends(&self, of: &[TopicPartition]) -> Vec<(TopicPartition, i64)> {
        if of.is_empty() {
            return Vec::new();
        }
        let told = match native::ends(self.plain.ask(), of, self.options.call_timeout) {
            Ok(told) => told,
            Err(failure) => {
                tracing::warn!("{}", self.plain.failure("ends of partitions", &failure));
                return Vec::new();
            }
        };
        let end = |of: &TopicPartition| {
            let good = |e: &&native::Element| e.code == Code::NoError && e.offset >= 0;
            told.iter()
                .filter(good)
                .find(|e| e.partition == of.partition && *e.topic == *of.topic)
                .map(|e| (of.clone(), e.offset))
        };
        of.iter().filter_map(end).collect()
    }

    fn group(&self, group: &str, stable: bool) -> Result<Arc<Asker>, LogError> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(asker) = groups.get(&(group.to_owned(), stable)) {
            return Ok(Arc::clone(asker));
        }
        let asker = Arc::new(Asker::open("committed positions", &settings::committed(&self.options, group, stable))?);
        groups.insert((group.to_owned(), stable), Arc::clone(&asker));
        Ok(asker)
    }

    /// The group's committed positions, in the order asked.
    pub fn committed(
        &self,
        group: &str,
        of: &[TopicPartition],
        stable: bool,
    ) -> Result<Vec<Option<Committed>>, LogError> {
        if of.is_empty() {
            return Ok(Vec::new());
        }
        let asker = self.group(group, stable)?;
        let timeout = if stable { STABLE.min(self.options.call_timeout) } else { self.options.call_timeout };
        let client = asker.ask();
        asker.watch.news();
        let told = match client.committed(of, timeout) {
            Ok(told) => told,
            // librdkafka goes on asking for the coordinator, and tells on the side that it must not know it.
            Err(failure) if asker.was_denied() => {
                return Err(self.missing(("Describe", Resource::Group(group)), &failure.text));
            }
            Err(failure) if stable && matches!(failure.code, Code::OperationTimedOut | Code::UnstableOffsetCommit) => {
                return Err(self.unstable(&asker, group, of, &failure));
            }
            Err(failure) if is_denial(failure.code) => {
                return Err(self.missing(("Describe", Resource::Group(group)), &failure.text));
            }
            Err(failure) => return Err(asker.failure(&format!("committed positions of {group}"), &failure)),
        };
        let one = |of: &TopicPartition| {
            let found = told.iter().find(|e| e.partition == of.partition && *e.topic == *of.topic);
            // Q1
            let Some(e) = found else {
                return Err(LogError::Retriable(format!("no answer about the committed position of {of}")));
            };
            match e.code {
                Code::NoError if e.offset >= 0 => {
                    Ok(Some(Committed { position: e.offset, metadata: e.metadata.clone() }))
                }
                Code::NoError => Ok(None),
                Code::UnstableOffsetCommit => Err(LogError::Unstable(of.clone())),
                Code::TopicAuthorizationFailed => {
                    Err(self.missing(("Describe", Resource::Topic(&of.topic)), &e.code.to_string()))
                }
                Code::GroupAuthorizationFailed => {
                    Err(self.missing(("Describe", Resource::Group(group)), &e.code.to_string()))
                }
                code => Err(log_error(code, format!("committed position of {of}: {code}"))),
            }
        };
        of.iter().map(one).collect()
    }

    /// Tells positions that are not stable from a coordinator that does not answer.
    fn unstable(&self, stable: &Asker, group: &str, of: &[TopicPartition], failure: &Failure) -> LogError {
        if let Err(error) = self.committed(group, of, false) {
            return error;
        }
        let blocked = of.iter().find(|of| stable.client.committed(std::slice::from_ref(*of), SEARCH).is_err());
        match blocked {
            Some(of) => LogError::Unstable(of.clone()),
            None => stable.failure(&format!("committed positions of {group}"), failure),
        }
    }

    /// The topics of these names.
    pub fn describe(&self, names: &[&str]) -> Result<Vec<Option<TopicDescription>>, LogError> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let found: Vec<Option<Found>> = self.topics(names, false)?.into_iter().collect::<Result<_, _>>()?;
        let there = names.iter().zip(&found).filter(|(_, found)| found.is_some());
        let asked: Vec<ResourceSpecifier<'_>> = there.map(|(name, _)| ResourceSpecifier::Topic(name)).collect();
        if asked.is_empty() {
            return Ok(vec![None; names.len()]);
        }
        let configs = block_on(self.admin.describe_configs(&asked, &self.admin_options()));
        let configs = configs.map_err(|error| self.admin_error("describe the topics' settings", &error))?;
        let mut settings = configs.into_iter();
        let mut all = Vec::with_capacity(names.len());
        for (name, found) in names.iter().zip(found) {
            let Some(Found { id, partitions, .. }) = found else {
                all.push(None);
                continue;
            };
            let config = match settings.next() {
                // The safe client passes over a resource's own error: then it has no settings at all.
                Some(Ok(config)) if config.entries.is_empty() => {
                    return Err(self.missing(("DescribeConfigs", Resource::Topic(name)), "no settings are told"));
                }
                Some(Ok(config)) => config,
                Some(Err(code)) => return Err(log_error(code, format!("settings of {name}: {code}"))),
                None => return Err(LogError::Retriable(format!("no answer about the settings of {name}"))),
            };
            let setting = |of: &str| config.get(of).and_then(|entry| entry.value.clone()).unwrap_or_default();
            let number =
                |of: &str| setting(of).parse::<i64>().map_err(|_| LogError::Fatal(format!("{name}: {of} is not told")));
            all.push(Some(TopicDescription {
                name: (*name).to_owned(),
                id,
                partitions,
                cleanup_policy: setting("cleanup.policy"),
                delete_retention_ms: number("delete.retention.ms")?,
                max_message_bytes: number("max.message.bytes")?,
            }));
        }
        Ok(all)
    }

    /// Topics in the order asked, each with an error of its own.
    fn topics(&self, names: &[&str], rights: bool) -> Result<Vec<Result<Option<Found>, LogError>>, LogError> {
        let found = native::topics(self.plain.ask(), names, rights, self.options.call_timeout);
        let found = found.map_err(|failure| self.plain.failure("describe topics", &failure))?;
        let of = |(name, found): (&&str, Result<Option<Found>, Failure>)| {
            found.map_err(|failure| match failure.code {
                code if is_denial(code) => self.missing(("Describe", Resource::Topic(name)), &failure.text),
                _ => self.plain.failure(&format!("describe topic {name}"), &failure),
            })
        };
        Ok(names.iter().zip(found).map(of).collect())
    }

    /// Everything of this that the broker says is not allowed to us, in one error.
    pub fn check_rights(
        &self,
        (group, of_group): (&str, &[Operation]),
        topics: &[(&str, &[Operation])],
    ) -> Result<(), LogError> {
        let names: Vec<&str> = topics.iter().map(|(name, _)| *name).collect();
        let mut missing: Vec<Right<'_>> = Vec::new();
        for ((name, operations), found) in topics.iter().zip(self.topics(&names, true)?) {
            let allowed = match found {
                Ok(found) => found.map_or(Allowed::Unknown, |found| found.allowed),
                Err(LogError::Unauthorized(_)) => Allowed::Nothing,
                Err(error) => return Err(error),
            };
            let lacking = operations.iter().filter(|operation| rights::lacks(&allowed, **operation));
            missing.extend(lacking.map(|operation| (rights::word(*operation), Resource::Topic(name))));
        }
        if !of_group.is_empty() {
            let allowed = self.group_rights(group)?;
            let lacking = of_group.iter().filter(|operation| rights::lacks(&allowed, **operation));
            missing.extend(lacking.map(|operation| (rights::word(*operation), Resource::Group(group))));
        }
        if missing.is_empty() { Ok(()) } else { Err(rights::missing(&missing, &self.options.prefix, "")) }
    }

    fn group_rights(&self, group: &str) -> Result<Allowed, LogError> {
        // Not held while the broker is asked: whoever asks meanwhile opens a handle of its own.
        let rights = || self.rights.lock().unwrap_or_else(PoisonError::into_inner);
        let known = rights().take();
        let asker = known.map_or_else(|| Asker::open("rights", &settings::questions(&self.options)), Ok)?;
        let allowed = native::group_rights(asker.ask(), group, self.options.call_timeout);
        let allowed = allowed.map_err(|failure| asker.failure("describe the group", &failure))?;
        *rights() = Some(asker);
        Ok(allowed)
    }

    /// Creates topics; one that is there already is left as it is.
    pub fn create(&self, topics: &[NewTopic]) -> Result<(), LogError> {
        let mut creations: Vec<Creation<'_>> = Vec::with_capacity(topics.len());
        for NewTopic { name, partitions, replication_factor, settings } in topics {
            let creation = Creation::new(name, *partitions, TopicReplication::Fixed(replication_factor.unwrap_or(-1)));
            creations.push(settings.iter().fold(creation, |creation, (name, value)| creation.set(name, value)));
        }
        if creations.is_empty() {
            return Ok(());
        }
        let created = block_on(self.admin.create_topics(&creations, &self.admin_options()));
        for result in created.map_err(|error| self.admin_error("create topics", &error))? {
            match result {
                Ok(_) | Err((_, Code::TopicAlreadyExists)) => {}
                Err((name, code)) if is_denial(code) => {
                    return Err(self.missing(("Create", Resource::Topic(&name)), &code.to_string()));
                }
                Err((name, code)) => return Err(log_error(code, format!("create topic {name}: {code}"))),
            }
        }
        Ok(())
    }

    /// Deletes the records before the given offsets.
    pub fn purge(&self, before: &[(TopicPartition, i64)]) -> Result<(), LogError> {
        if before.is_empty() {
            return Ok(());
        }
        let mut list = TopicPartitionList::with_capacity(before.len());
        for (of, offset) in before {
            let added = list.add_partition_offset(&of.topic, of.partition, Offset::Offset(*offset));
            added.map_err(|error| LogError::Fatal(format!("purge {of} before {offset}: {error}")))?;
        }
        let purged = block_on(self.admin.delete_records(&list, &self.admin_options()));
        let purged = purged.map_err(|error| self.admin_error("delete records", &error))?;
        for element in purged.elements() {
            if let Err(error) = element.error() {
                let what = format!("delete records of {}-{}", element.topic(), element.partition());
                return Err(match code_of(&error) {
                    code if is_denial(code) => {
                        self.missing(("Delete", Resource::Topic(element.topic())), &code.to_string())
                    }
                    Code::OffsetOutOfRange => {
                        LogError::OutOfRange(TopicPartition::new(&element.topic().into(), element.partition()), -1)
                    }
                    _ => self.admin_error(&what, &error),
                });
            }
        }
        Ok(())
    }
}

/// What empties a log for a new beginning.
impl Questions {
    /// Deletes topics and waits until the brokers tell of them no more; one that is not there is fine.
    pub fn delete_topics(&self, names: &[&str]) -> Result<(), LogError> {
        if names.is_empty() {
            return Ok(());
        }
        let deleted = block_on(self.admin.delete_topics(names, &self.admin_options()));
        for result in deleted.map_err(|error| self.admin_error("delete topics", &error))? {
            match result {
                Ok(_) | Err((_, Code::UnknownTopicOrPartition)) => {}
                Err((name, code)) if is_denial(code) => {
                    return Err(self.missing(("Delete", Resource::Topic(&name)), &code.to_string()));
                }
                Err((name, code)) => return Err(log_error(code, format!("delete topic {name}: {code}"))),
            }
        }
        let deadline = clock::now() + GONE;
        loop {
            let found = native::topics(self.plain.ask(), names, false, self.options.call_timeout);
            let found = found.map_err(|failure| self.plain.failure("describe topics", &failure))?;
            let left = names.iter().zip(&found).find(|(_, found)| !matches!(found, Ok(None)));
            match left {
                None => return Ok(()),
                Some((name, _)) if clock::now() >= deadline => {
                    let text = format!("delete topic {name}: it is still there {} s later", GONE.as_secs());
                    return Err(LogError::Retriable(text));
                }
                Some(_) => std::thread::sleep(LOOK_AGAIN),
            }
        }
    }

    /// The group's members: client id and host. Members of the newer group protocol are not told by every
    /// broker; [`Questions::delete_group`] is refused because of them all the same.
    pub fn members_of(&self, group: &str) -> Result<Vec<String>, LogError> {
        let what = format!("members of the group {group}");
        let told = self.admin.inner().fetch_group_list(Some(group), self.options.call_timeout);
        let told = told.map_err(|error| match code_of(&error) {
            Code::Partial => LogError::Retriable(format!("{what}: not every broker answered")),
            _ => self.admin_error(&what, &error),
        })?;
        let members = told.groups().iter().filter(|found| found.name() == group).flat_map(|found| found.members());
        Ok(members.map(|member| format!("{} at {}", member.client_id(), member.client_host())).collect())
    }

    /// Deletes a group with all that it has committed; one that is not there is fine.
    pub fn delete_group(&self, group: &str) -> Result<(), LogError> {
        let deleted = block_on(self.admin.delete_groups(&[group], &self.admin_options()));
        for result in deleted.map_err(|error| self.admin_error("delete the group", &error))? {
            match result {
                Ok(_) | Err((_, Code::GroupIdNotFound)) => {}
                Err((name, Code::NonEmptyGroup)) => {
                    return Err(LogError::Refused(format!("the group {name} has members")));
                }
                Err((name, code)) if is_denial(code) => {
                    return Err(self.missing(("Delete", Resource::Group(&name)), &code.to_string()));
                }
                Err((name, code)) => return Err(log_error(code, format!("delete the group {name}: {code}"))),
            }
        }
        Ok(())
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits on this thread; the admin client's own thread completes the future.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}
