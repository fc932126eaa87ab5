//! The Kafka side of delivery: one thread polls always, hands out records and takes part in rebalances.
//!
//! M1: commands are carried out between polls, in order, so that each record carries the epoch of the start it follows (L1).
//! M2: a partition is delivered only while it is owned and started; records that slip through before are dropped, and
//!     fetched again from the start's position.
//! M3: a record that cannot be read stops its partition and is told; nothing after it is delivered.
//! M4: the thread runs no code of others but the sink.
//! M5: unshared topics have a handle and a thread of their own: what is assigned there by hand never mixes with what the
//!     group assigns.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::arena::Arena;
use super::errors::{Code, is_denial, log_error, passing};
use super::group::{Group, SharedSink, on_rebalance, tell};
use super::native::{Batch, Client};
use super::rights::{self, Resource};
use super::settings::{self, KafkaOptions};
use super::watch::Watch;
use crate::clock;
use crate::log::{
    EventSink, Fetched, Join, LogError, Member, MemberEvent, Membership, OffsetCommit, Record, TopicPartition,
};

/// Messages taken by one poll, at most.
const BATCH: usize = 4096;
/// How long an idle poll waits; a command wakes it.
const IDLE: Duration = Duration::from_millis(50);
/// How long the start of a partition may take.
const SEEK: Duration = Duration::from_secs(5);

/// After so long a trouble that lasts is told again: whoever heard of it may have taken it for over.
const TELL_AGAIN: Duration = Duration::from_secs(10);

enum Command {
    Start(TopicPartition, i64, u64),
    Stop(Vec<TopicPartition>),
    Pause(Vec<TopicPartition>),
    Resume(Vec<TopicPartition>),
    Leave,
}

/// A member of the group.
pub struct KafkaMember {
    watch: Arc<Watch>,
    group: Arc<Group>,
    shared: Polling,
    /// Reads unshared topics, where there are any (M5).
    unshared: Option<Polling>,
    unshared_topics: Vec<Arc<str>>,
    names: Names,
}

/// A handle with the thread that polls it.
struct Polling {
    client: Arc<Client>,
    commands: Sender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// For messages about rights that are missing.
struct Names {
    group: String,
    prefix: String,
}

impl Names {
    fn of(options: &KafkaOptions, join: &Join) -> Names {
        Names { group: join.group.clone(), prefix: options.prefix.clone() }
    }

    /// What is missing when this is denied; the topic where it is known.
    fn missing(&self, code: Code, topic: Option<&str>, why: &str) -> LogError {
        let resource = match (code, topic) {
            (Code::TopicAuthorizationFailed, Some(topic)) => Resource::Topic(topic),
            (Code::GroupAuthorizationFailed, _) => Resource::Group(&self.group),
            _ => return log_error(code, format!("not authorized: {why}")),
        };
        rights::missing(&[("Read", resource)], &self.prefix, why)
    }
}

impl KafkaMember {
    /// Subscribes and starts the thread; does not wait for the broker.
    pub fn open(options: &KafkaOptions, join: Join, sink: EventSink) -> Result<KafkaMember, LogError> {
        let watch = Arc::new(Watch::new(&join.client_id));
        // Unshared topics are read by the owner of partition 0 of the first shared one.
        let seat = join.topics.first().map(|topic| TopicPartition::new(topic, 0));
        let group = Arc::new(Group::new(&join.topics, seat, options.session_timeout));
        let sink: SharedSink = Arc::new(Mutex::new(sink));
        let settings = settings::member(options, &join.group, &join.client_id);
        let rebalance = on_rebalance(Arc::clone(&group), Arc::clone(&sink));
        let client = Client::open(true, &settings, Arc::clone(&watch), Some(rebalance)).map_err(LogError::Fatal)?;
        client.subscribe(&join.topics).map_err(|failure| LogError::Fatal(failure.text))?;
        let part = Part { watch: Arc::clone(&watch), group: Arc::clone(&group), by_hand: false };
        let shared = Polling::start(options, &join, part, client, Arc::clone(&sink))?;
        let unshared = if join.unshared.is_empty() {
            None
        } else {
            let watch = Arc::new(Watch::new(&format!("{} by hand", join.client_id)));
            let client = Client::open(true, &settings, Arc::clone(&watch), None).map_err(LogError::Fatal)?;
            let part = Part {
                watch,
                group: Arc::new(Group::new(&join.unshared, None, options.session_timeout)),
                by_hand: true,
            };
            Some(Polling::start(options, &join, part, client, sink)?)
        };
        let names = Names::of(options, &join);
        Ok(KafkaMember { watch, group, shared, unshared, unshared_topics: join.unshared, names })
    }

    fn of(&self, topic: &Arc<str>) -> &Polling {
        self.unshared.as_ref().filter(|_| self.unshared_topics.contains(topic)).unwrap_or(&self.shared)
    }

    /// Each partition's command goes where it is polled.
    fn send(&self, partitions: Vec<TopicPartition>, command: fn(Vec<TopicPartition>) -> Command) {
        let (unshared, shared): (Vec<_>, Vec<_>) =
            partitions.into_iter().partition(|of| self.unshared_topics.contains(&of.topic));
        if !shared.is_empty() {
            self.shared.send(command(shared));
        }
        if let Some(polling) = self.unshared.as_ref().filter(|_| !unshared.is_empty()) {
            polling.send(command(unshared));
        }
    }
}

/// What tells the two threads of a member apart.
struct Part {
    watch: Arc<Watch>,
    group: Arc<Group>,
    by_hand: bool,
}

impl Polling {
    fn start(
        options: &KafkaOptions,
        join: &Join,
        part: Part,
        client: Client,
        sink: SharedSink,
    ) -> Result<Polling, LogError> {
        let client = Arc::new(client);
        let (commands, received) = unbounded();
        let Part { watch, group, by_hand } = part;
        let poller = Poller {
            client: Arc::clone(&client),
            watch,
            group,
            by_hand,
            sink,
            commands: received,
            with_headers: join.with_headers.clone(),
            arena: Arena::default(),
            told: HashMap::new(),
            next: HashMap::new(),
            call_timeout: options.call_timeout,
            names: Names::of(options, join),
        };
        let kind = if by_hand { "reads" } else { "member" };
        let thread = std::thread::Builder::new().name(format!("{kind}-{}", join.client_id)).spawn(move || poller.run());
        let thread = thread.map_err(|error| LogError::Retriable(format!("no thread for the member: {error}")))?;
        Ok(Polling { client, commands, thread: Mutex::new(Some(thread)) })
    }

    fn send(&self, command: Command) {
        // A member that has left takes no commands, and needs none.
        let _ = self.commands.send(command);
        self.client.wake();
    }

    fn leave(&self) {
        self.send(Command::Leave);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("a thread of the member has panicked");
        }
    }
}

impl Member for KafkaMember {
    fn start(&self, partition: TopicPartition, position: i64, epoch: u64) {
        self.of(&partition.topic).send(Command::Start(partition, position, epoch));
    }

    fn stop(&self, partitions: Vec<TopicPartition>) {
        self.send(partitions, Command::Stop);
    }

    fn pause(&self, partitions: Vec<TopicPartition>) {
        self.send(partitions, Command::Pause);
    }

    fn resume(&self, partitions: Vec<TopicPartition>) {
        self.send(partitions, Command::Resume);
    }

    fn commit(&self, offsets: &[OffsetCommit], membership: &Membership) -> Result<(), LogError> {
        let by_hand = offsets.iter().any(|o| self.unshared_topics.contains(&o.of.topic));
        self.group.while_member(offsets, by_hand, membership, || {
            let list = offsets.iter().map(|o| (&*o.of.topic, o.of.partition, o.position, o.metadata.as_str()));
            let explain = |code: Code, topic: Option<&str>, text: &str| match is_denial(code) {
                true => self.names.missing(code, topic, text),
                false => log_error(code, self.watch.explain(&format!("commit: {text}"))),
            };
            let committed = self.shared.client.commit(list);
            let committed = committed.map_err(|failure| explain(failure.code, None, &failure.text))?;
            match committed.iter().find(|e| e.code != Code::NoError) {
                Some(e) => Err(explain(e.code, Some(&e.topic), &format!("{}-{}: {}", e.topic, e.partition, e.code))),
                None => Ok(()),
            }
        })
    }

    fn leave(&self) {
        self.shared.leave();
        if let Some(unshared) = &self.unshared {
            unshared.leave();
        }
    }
}

impl Drop for KafkaMember {
    fn drop(&mut self) {
        self.shared.send(Command::Leave);
        if let Some(unshared) = &self.unshared {
            unshared.send(Command::Leave);
        }
    }
}

struct Poller {
    client: Arc<Client>,
    watch: Arc<Watch>,
    group: Arc<Group>,
    /// Partitions are assigned by commands, not by the group (M5).
    by_hand: bool,
    sink: SharedSink,
    commands: Receiver<Command>,
    with_headers: Vec<Arc<str>>,
    arena: Arena,
    told: HashMap<String, Instant>,
    next: HashMap<TopicPartition, i64>,
    call_timeout: Duration,
    names: Names,
}

/// What one poll brought of one partition.
struct Run {
    topic_mark: usize,
    partition: i32,
    of: TopicPartition,
    epoch: Option<u64>,
    headers: bool,
    stopped: bool,
    records: Vec<Record>,
}

impl Poller {
    fn run(mut self) {
        let mut batch = Batch::default();
        while self.obey() {
            // A batch call waits until the batch is full: the first is waited for, the others only taken along.
            if self.client.consume(1, IDLE, &mut batch) > 0 {
                self.client.consume(BATCH - 1, Duration::ZERO, &mut batch);
                self.deliver(&batch);
                batch.clear();
            }
            for (code, text) in self.watch.news() {
                self.trouble(code, None, &text);
            }
        }
        batch.clear();
        if let Err(failure) = self.client.close() {
            tracing::warn!("leaving the group: {}", failure.text);
        }
    }

    /// Carries the commands out (M1); false when the member is to leave.
    fn obey(&mut self) -> bool {
        let mut starts = Vec::new();
        let mut stay = true;
        while let Ok(command) = self.commands.try_recv() {
            if !matches!(command, Command::Start(..)) {
                self.start(std::mem::take(&mut starts));
            }
            match command {
                Command::Start(of, position, epoch) => {
                    if starts.iter().any(|(started, _, _)| *started == of) {
                        self.start(std::mem::take(&mut starts));
                    }
                    starts.push((of, position, epoch));
                }
                Command::Stop(partitions) => self.let_go(&partitions),
                Command::Pause(partitions) => self.pause(&partitions, true),
                Command::Resume(partitions) => self.pause(&partitions, false),
                Command::Leave => {
                    stay = false;
                    break;
                }
            }
        }
        self.start(starts);
        stay
    }

    fn start(&mut self, starts: Vec<(TopicPartition, i64, u64)>) {
        let mut positions = Vec::with_capacity(starts.len());
        for (of, position, epoch) in starts {
            if self.by_hand {
                self.group.take(&of);
            }
            if self.group.set_epoch(&of, Some(epoch)) {
                self.next.insert(of.clone(), position);
                positions.push((of, position));
            }
        }
        if positions.is_empty() {
            return;
        }
        // What is not assigned yet cannot be moved.
        let elements = (!self.by_hand).then(|| self.client.seek(&positions, SEEK));
        let good = |of: &TopicPartition| match &elements {
            Some(Ok(all)) => {
                all.iter().any(|e| e.code == Code::NoError && e.partition == of.partition && *e.topic == *of.topic)
            }
            Some(Err(_)) | None => false,
        };
        for position in positions.iter().filter(|(of, _)| !good(of)) {
            // A partition that stopped after an error cannot be moved, only taken up anew.
            let one = std::slice::from_ref(position);
            let taken_back = self.client.assign_less(one);
            let again = if self.by_hand { Ok(()) } else { taken_back };
            let again = again.and_then(|()| self.client.assign_more(one));
            if let Err(failure) = again {
                self.trouble(failure.code, Some(&position.0), &format!("start at {}: {}", position.1, failure.text));
            }
        }
        if let Err(failure) = self.client.pause(&positions, false) {
            self.trouble(failure.code, None, &format!("resume: {}", failure.text));
        }
    }

    /// Partitions that were assigned by hand are read no more.
    fn let_go(&mut self, partitions: &[TopicPartition]) {
        for of in partitions.iter().filter(|of| self.by_hand && self.group.drop_partition(of)) {
            self.next.remove(of);
            if let Err(failure) = self.client.assign_less(&[(of.clone(), -1001)]) {
                tracing::warn!(%of, "unassign: {}", failure.text);
            }
        }
    }

    fn pause(&mut self, partitions: &[TopicPartition], pause: bool) {
        // A partition that is not started has no position to resume from.
        let started = |of: &&TopicPartition| self.group.epoch(of).is_some();
        let list: Vec<_> = partitions.iter().filter(started).map(|of| (of.clone(), -1001)).collect();
        if list.is_empty() {
            return;
        }
        if let Err(failure) = self.client.pause(&list, pause) {
            self.trouble(failure.code, None, &format!("pause or resume: {}", failure.text));
        }
    }

    fn deliver(&mut self, batch: &Batch) {
        let mut runs: Vec<Run> = Vec::new();
        let mut names: HashMap<usize, Arc<str>> = HashMap::new();
        let (mut at, mut failures) = (usize::MAX, Vec::new());
        for message in batch.iter() {
            let (topic_mark, partition) = (message.topic_mark(), message.partition());
            if topic_mark == 0 {
                failures.push((message.code(), None, message.error_text()));
                continue;
            }
            let same = |run: &Run| run.topic_mark == topic_mark && run.partition == partition;
            if !runs.get(at).is_some_and(same) {
                at = runs.iter().position(same).unwrap_or(runs.len());
                if at == runs.len() {
                    let name = names.entry(topic_mark).or_insert_with(|| self.group.name(&message.topic()));
                    let of = TopicPartition::new(name, partition);
                    let (epoch, headers) = (self.group.epoch(&of), self.with_headers.contains(name));
                    runs.push(Run { topic_mark, partition, of, epoch, headers, stopped: false, records: Vec::new() });
                }
            }
            let run = &mut runs[at];
            match message.code() {
                Code::NoError if run.epoch.is_none() || run.stopped => {} // M2, M3
                Code::NoError => run.records.push(self.arena.record(&message, run.headers)),
                Code::PartitionEOF => {}
                _ if run.epoch.is_none() || run.stopped => {}
                code => {
                    run.stopped = !passing(code) && !elsewhere(code);
                    failures.push((code, Some((run.of.clone(), run.stopped)), message.error_text()));
                }
            }
        }
        for Run { of, epoch, records, .. } in runs {
            if let (Some(epoch), false) = (epoch, records.is_empty()) {
                if let (Some(next), Some(last)) = (self.next.get_mut(&of), records.last()) {
                    *next = last.offset + 1;
                }
                tell(&self.sink, MemberEvent::Fetched(Fetched { of, epoch, records }));
            }
        }
        for (code, of, text) in failures {
            match of {
                Some((of, true)) => self.stop(code, &of, &text),
                Some((of, false)) => {
                    self.go_back(&of);
                    self.trouble(code, Some(&of), &text);
                }
                None => self.trouble(code, None, &text),
            }
        }
    }

    /// librdkafka's batch calls count an error as a record; a pause would then go on one too far (M3).
    fn go_back(&mut self, of: &TopicPartition) {
        if let Some(next) = self.next.get(of) {
            // When it cannot be moved it has stopped, and the trouble told says so.
            let _ = self.client.seek(&[(of.clone(), *next)], SEEK);
        }
    }

    /// M3: the partition stands still until it is started again.
    fn stop(&mut self, code: Code, of: &TopicPartition, text: &str) {
        self.group.set_epoch(of, None);
        // A failure to pause is harmless: without an epoch nothing is delivered.
        let _ = self.client.pause(&[(of.clone(), -1001)], true);
        let error = match code {
            Code::AutoOffsetReset | Code::OffsetOutOfRange => {
                let low = self.client.watermarks(of, self.call_timeout).map_or(-1, |(low, _)| low);
                LogError::OutOfRange(of.clone(), low)
            }
            code => log_error(code, format!("{of} cannot be read on: {text}")),
        };
        tell(&self.sink, MemberEvent::Failed(error));
    }

    /// Tells a trouble that goes on once in a while.
    fn trouble(&mut self, code: Code, of: Option<&TopicPartition>, text: &str) {
        if code == Code::Fatal {
            let text = self.client.fatal().map_or_else(|| text.to_owned(), |(_, text)| text);
            tell(&self.sink, MemberEvent::Failed(LogError::Fatal(text)));
            return;
        }
        let place = of.map_or(String::new(), |of| format!("{of}: "));
        let text = match is_denial(code) {
            true => self.names.missing(code, of.map(|of| &*of.topic), text).to_string(),
            false => format!("{place}{text}"),
        };
        let now = clock::now();
        self.told.retain(|_, told| now.saturating_duration_since(*told) < TELL_AGAIN);
        if self.told.insert(format!("{place}{code:?}"), now).is_none() {
            tell(&self.sink, MemberEvent::Trouble(text));
        }
    }
}

/// Errors that name a topic or its rights and pass when an operator has put it right.
fn elsewhere(code: Code) -> bool {
    matches!(code, Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition | Code::PollExceeded)
        || is_denial(code)
}
