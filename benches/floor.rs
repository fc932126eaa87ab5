//! The floor: the same records as Tidegate, without what makes it Tidegate.
//!
//! A hand-written loop over librdkafka's batch calls does the least that any program must do which
//! keeps state and spawns children through Kafka: it reads primary events from a source topic of one
//! partition, sends each by key to a repartition topic, reads it there, looks its key up in a map,
//! writes one changelog record and one child (to another key, through the same repartition topic),
//! reads the child and writes its changelog record too; all in transactions with the consumer's
//! offsets in them. There are no stamps, no order within a key, no store on disk, no bookkeeping, no
//! restore: a program that does these things cannot be cheaper than this one.
//!
//! Figures count *events*: a primary is one, its child is another.

use std::ffi::{CStr, CString, c_char, c_void};
use std::hash::BuildHasher;
use std::process::ExitCode;
use std::ptr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use rdkafka_sys as rdsys;
use rdsys::rd_kafka_resp_err_t as Code;

/// Records taken in one call.
const BATCH: usize = 8192;
/// `k` and eight digits.
const KEY_BYTES: usize = 9;
/// Of each event, like the 100-byte values of the other measurements.
const VALUE_BYTES: usize = 100;
/// The first byte of a value tells what it is.
const PRIMARY: u8 = b'P';
const CHILD: u8 = b'C';

type Key = [u8; KEY_BYTES];
type Failure = Box<dyn std::error::Error>;

/// Measures the least that such a workload costs on a real Kafka.
#[derive(Parser)]
struct Arguments {
    /// The broker: host:port.
    #[arg(long, default_value = "127.0.0.1:9092")]
    bootstrap: String,
    /// Primary events; each has one child.
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
    /// Different keys, at most 100 million.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    keys: u64,
    /// Partitions of the repartition and of the changelog topic.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(i32).range(1..=1000))]
    partitions: i32,
    /// From one commit to the next, in milliseconds.
    #[arg(long, default_value_t = 100)]
    commit_interval: u64,
    /// Gives up after so many seconds.
    #[arg(long, default_value_t = 300)]
    deadline: u64,
    /// Passed by `cargo bench`; without meaning.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("floor: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(arguments.deadline);
    let run = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let name = |suffix: &str| CString::new(format!("floor-{run}-{suffix}")).expect("no zero byte in it");
    let topics = Topics { source: name("source"), repartition: name("repartition"), changelog: name("changelog") };
    let admin = Client::producer(arguments, &[])?;
    let sizes =
        [(&topics.source, 1), (&topics.repartition, arguments.partitions), (&topics.changelog, arguments.partitions)];
    admin.create_topics(&sizes)?;
    let result =
        preload(arguments, &topics, deadline).and_then(|()| measure(arguments, &topics, &name("app"), deadline));
    admin.delete_topics(&[&topics.source, &topics.repartition, &topics.changelog]);
    let measured = result?;
    report(arguments, &measured);
    Ok(())
}

struct Topics {
    source: CString,
    repartition: CString,
    changelog: CString,
}

/// What a run took, from the first record read to the last commit.
struct Measured {
    wall: Duration,
    cpu: Duration,
    peak_rss: u64,
    commits: u64,
    commit_time: Duration,
}

fn report(arguments: &Arguments, measured: &Measured) {
    let events = 2.0 * arguments.events as f64;
    let wall = measured.wall.as_secs_f64();
    println!(
        "floor: {} primaries, as many children, {} keys, {} partitions, transactions of {} ms",
        arguments.events, arguments.keys, arguments.partitions, arguments.commit_interval
    );
    println!("  events/s                       {:>12.0}", events / wall);
    println!("  primaries/s                    {:>12.0}", arguments.events as f64 / wall);
    println!("  CPU-seconds per million events {:>12.2}", measured.cpu.as_secs_f64() / events * 1e6);
    println!("  peak resident memory, MiB      {:>12.0}", measured.peak_rss as f64 / f64::from(1 << 20));
    println!("  wall, seconds                  {wall:>12.2}");
    println!(
        "  commits, mean ms each          {:>8} {:>5.1}",
        measured.commits,
        measured.commit_time.as_secs_f64() * 1e3 / measured.commits.max(1) as f64
    );
}

/// Fills the source topic.
fn preload(arguments: &Arguments, topics: &Topics, deadline: Instant) -> Result<(), Failure> {
    let producer = Client::producer(arguments, &[])?;
    let source = producer.topic(&topics.source)?;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut keys: Vec<Key> = Vec::with_capacity(BATCH);
    let mut value = [b'x'; VALUE_BYTES];
    value[0] = PRIMARY;
    let mut sent = 0;
    while sent < arguments.events {
        let count = (arguments.events - sent).min(BATCH as u64);
        keys.clear();
        for _ in 0..count {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            keys.push(key(random % arguments.keys));
        }
        let mut group: Vec<_> = keys.iter().map(|key| message(key, value.as_ptr(), VALUE_BYTES)).collect();
        producer.produce(&source, 0, &mut group, deadline)?;
        sent += count;
    }
    producer.flush(deadline)
}

/// The timed part.
fn measure(arguments: &Arguments, topics: &Topics, group: &CStr, deadline: Instant) -> Result<Measured, Failure> {
    let group = group.to_str()?;
    let producer = Client::producer(arguments, &[("transactional.id", group), ("transaction.timeout.ms", "10000")])?;
    let consumer = Client::consumer(arguments, group)?;
    let mut pipe = Pipe {
        repartition: producer.topic(&topics.repartition)?,
        changelog: producer.topic(&topics.changelog)?,
        producer: &producer,
        keys: arguments.keys,
        state: HashMap::with_capacity(arguments.keys as usize),
        events: groups(arguments.partitions),
        entries: groups(arguments.partitions),
        child_keys: Vec::with_capacity(BATCH),
        child_value: [b'x'; VALUE_BYTES],
        positions: vec![-1; arguments.partitions as usize + 1],
        handled: [0; 2],
        deadline,
    };
    pipe.child_value[0] = CHILD;
    producer.transaction("init_transactions", deadline, || {
        // SAFETY: the handle lives as long as `producer`.
        unsafe { rdsys::rd_kafka_init_transactions(producer.handle, 10_000) }
    })?;
    consumer.subscribe(&[&topics.source, &topics.repartition])?;
    let queue = consumer.queue();
    let mut batch: Vec<*mut rdsys::rd_kafka_message_t> = vec![ptr::null_mut(); BATCH];
    let mut begun = None;
    let mut next_commit = Instant::now();
    let (mut commits, mut commit_time) = (0, Duration::ZERO);
    let mut open = false;
    while pipe.handled != [arguments.events; 2] || open {
        if Instant::now() > deadline {
            return Err(format!("not done in {} s: {:?} handled", arguments.deadline, pipe.handled).into());
        }
        // SAFETY: `queue` is the consumer's, `batch` has room for BATCH pointers.
        let taken = unsafe { rdsys::rd_kafka_consume_batch_queue(queue, 1, batch.as_mut_ptr(), BATCH) };
        let taken = usize::try_from(taken).map_err(|_| "cannot consume")?;
        if taken > 0 {
            begun.get_or_insert_with(|| (Instant::now(), cpu_time(), reset_peak_rss()));
            if !open {
                // SAFETY: the handle lives as long as `producer`.
                check(unsafe { rdsys::rd_kafka_begin_transaction(producer.handle) })?;
                (open, next_commit) = (true, Instant::now() + Duration::from_millis(arguments.commit_interval));
            }
            pipe.take(&batch[..taken])?;
        }
        if open && (Instant::now() >= next_commit || pipe.handled == [arguments.events; 2]) {
            let start = Instant::now();
            pipe.commit(&consumer, topics)?;
            commit_time += start.elapsed();
            commits += 1;
            open = false;
        }
    }
    let (wall, cpu, ()) = begun.ok_or("nothing was read")?;
    let measured = Measured { wall: wall.elapsed(), cpu: cpu_time() - cpu, peak_rss: peak_rss(), commits, commit_time };
    // SAFETY: taken from the consumer above and not used after.
    unsafe { rdsys::rd_kafka_queue_destroy(queue) };
    consumer.close();
    Ok(measured)
}

/// What a key holds.
struct Slot {
    events: u64,
    value: Vec<u8>,
}

type Group = Vec<rdsys::rd_kafka_message_t>;

fn groups(partitions: i32) -> Vec<Group> {
    (0..partitions).map(|_| Group::with_capacity(BATCH)).collect()
}

/// The loop's state. Grouped messages point into the batch that is being taken, into `child_keys` and
/// into `child_value`; they are handed over before the batch is given back.
struct Pipe<'a> {
    producer: &'a Client,
    repartition: Topic,
    changelog: Topic,
    keys: u64,
    state: HashMap<Key, Slot>,
    events: Vec<Group>,
    entries: Vec<Group>,
    child_keys: Vec<Key>,
    child_value: [u8; VALUE_BYTES],
    /// The next offset to read: of each repartition partition, then of the source; -1 = not touched.
    positions: Vec<i64>,
    /// Primaries and children that have an entry.
    handled: [u64; 2],
    deadline: Instant,
}

impl Pipe<'_> {
    fn take(&mut self, batch: &[*mut rdsys::rd_kafka_message_t]) -> Result<(), Failure> {
        let mut failed = None;
        self.child_keys.clear();
        for record in batch {
            // SAFETY: librdkafka gave the pointer; the record is ours until it is destroyed below.
            let record = unsafe { &**record };
            if record.err != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                failed = Some(format!("reading: {}", describe(record.err)));
                continue;
            }
            self.take_one(record);
        }
        for partition in 0..self.events.len() {
            self.producer.produce(&self.repartition, partition as i32, &mut self.events[partition], self.deadline)?;
            self.producer.produce(&self.changelog, partition as i32, &mut self.entries[partition], self.deadline)?;
        }
        for record in batch {
            // SAFETY: each record is destroyed once; what was produced was copied.
            unsafe { rdsys::rd_kafka_message_destroy(*record) };
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    fn take_one(&mut self, record: &rdsys::rd_kafka_message_t) {
        // SAFETY: key and payload are `key_len` and `len` bytes within the record.
        let (bytes, value) = unsafe {
            let bytes = std::slice::from_raw_parts(record.key.cast::<u8>(), record.key_len);
            (bytes, std::slice::from_raw_parts(record.payload.cast::<u8>(), record.len))
        };
        let key: Key = bytes.try_into().expect("written by this program");
        let partition = self.partition(&key);
        // SAFETY: topic handles of the two subscribed topics; the name is a C string of the handle's lifetime.
        let from_source =
            unsafe { CStr::from_ptr(rdsys::rd_kafka_topic_name(record.rkt)) }.to_bytes().ends_with(b"source");
        if from_source {
            *self.positions.last_mut().expect("one for the source") = record.offset + 1;
            self.events[partition].push(message(bytes, value.as_ptr(), value.len()));
            return;
        }
        self.positions[record.partition as usize] = record.offset + 1;
        let slot = match self.state.entry(key) {
            Entry::Occupied(slot) => slot.into_mut(),
            Entry::Vacant(slot) => slot.insert(Slot { events: 0, value: Vec::with_capacity(VALUE_BYTES) }),
        };
        slot.events += 1;
        slot.value.clear();
        slot.value.extend_from_slice(value);
        self.entries[partition].push(message(bytes, value.as_ptr(), value.len()));
        if value[0] == CHILD {
            self.handled[1] += 1;
            return;
        }
        self.handled[0] += 1;
        let number = key[1..].iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
        let child = self::key((number * 7 + 1) % self.keys);
        let partition = self.partition(&child);
        // At most BATCH of them, so the vector never moves what the messages point to.
        self.child_keys.push(child);
        let child = self.child_keys.last().expect("just pushed");
        self.events[partition].push(message(child, self.child_value.as_ptr(), VALUE_BYTES));
    }

    fn partition(&self, key: &Key) -> usize {
        (self.state.hasher().hash_one(key) >> 32) as usize % self.events.len()
    }

    fn commit(&mut self, consumer: &Client, topics: &Topics) -> Result<(), Failure> {
        // SAFETY: the list and the metadata are made here, given to librdkafka by reference, and freed here.
        unsafe {
            let list = rdsys::rd_kafka_topic_partition_list_new(self.positions.len() as i32);
            let source = self.positions.len() - 1;
            for (partition, position) in self.positions.iter_mut().enumerate().filter(|(_, position)| **position >= 0) {
                let (topic, partition) =
                    if partition == source { (&topics.source, 0) } else { (&topics.repartition, partition) };
                (*rdsys::rd_kafka_topic_partition_list_add(list, topic.as_ptr(), partition as i32)).offset = *position;
                *position = -1;
            }
            let membership = rdsys::rd_kafka_consumer_group_metadata(consumer.handle);
            let sent = self.producer.transaction("send_offsets", self.deadline, || {
                rdsys::rd_kafka_send_offsets_to_transaction(self.producer.handle, list, membership, 10_000)
            });
            rdsys::rd_kafka_consumer_group_metadata_destroy(membership);
            rdsys::rd_kafka_topic_partition_list_destroy(list);
            sent?;
        }
        self.producer.transaction("commit", self.deadline, || {
            // SAFETY: the handle lives as long as the producer.
            unsafe { rdsys::rd_kafka_commit_transaction(self.producer.handle, 10_000) }
        })
    }
}

fn key(number: u64) -> Key {
    let mut key = *b"k00000000";
    let mut rest = number;
    for digit in key[1..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    key
}

/// A message that points to `key` and `value`: both must outlive the call that takes it.
fn message(key: &[u8], value: *const u8, length: usize) -> rdsys::rd_kafka_message_t {
    rdsys::rd_kafka_message_t {
        err: Code::RD_KAFKA_RESP_ERR_NO_ERROR,
        rkt: ptr::null_mut(),
        partition: 0,
        payload: value.cast_mut().cast::<c_void>(),
        len: length,
        key: key.as_ptr().cast_mut().cast::<c_void>(),
        key_len: key.len(),
        offset: 0,
        _private: ptr::null_mut(),
    }
}

fn describe(code: Code) -> String {
    // SAFETY: a static string for every code.
    unsafe { CStr::from_ptr(rdsys::rd_kafka_err2str(code)) }.to_string_lossy().into_owned()
}

/// Takes the error over and frees it.
fn check(error: *mut rdsys::rd_kafka_error_t) -> Result<(), Failure> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: not null, ours, freed once.
    unsafe {
        let text = CStr::from_ptr(rdsys::rd_kafka_error_string(error)).to_string_lossy().into_owned();
        rdsys::rd_kafka_error_destroy(error);
        Err(text.into())
    }
}

/// A topic's handle; freed with its client.
struct Topic {
    handle: *mut rdsys::rd_kafka_topic_t,
}

impl Drop for Topic {
    fn drop(&mut self) {
        // SAFETY: made by `Client::topic`, destroyed once, and before the client (which outlives it in every caller).
        unsafe { rdsys::rd_kafka_topic_destroy(self.handle) };
    }
}

/// A producer or consumer.
struct Client {
    handle: *mut rdsys::rd_kafka_t,
}

impl Drop for Client {
    fn drop(&mut self) {
        // SAFETY: destroyed once; topics and queues of it are gone.
        unsafe { rdsys::rd_kafka_destroy(self.handle) };
    }
}

impl Client {
    fn producer(arguments: &Arguments, further: &[(&str, &str)]) -> Result<Client, Failure> {
        let mut settings = vec![
            ("bootstrap.servers", arguments.bootstrap.as_str()),
            ("enable.idempotence", "true"),
            ("delivery.report.only.error", "true"),
            ("linger.ms", "5"),
            ("batch.num.messages", "100000"),
            ("retry.backoff.ms", "2"),
            ("queue.buffering.max.messages", "1000000"),
            ("queue.buffering.max.kbytes", "262144"),
        ];
        settings.extend_from_slice(further);
        Client::new(rdsys::rd_kafka_type_t::RD_KAFKA_PRODUCER, &settings)
    }

    fn consumer(arguments: &Arguments, group: &str) -> Result<Client, Failure> {
        let settings = [
            ("bootstrap.servers", arguments.bootstrap.as_str()),
            ("group.id", group),
            ("isolation.level", "read_committed"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "earliest"),
            ("check.crcs", "true"),
            ("fetch.queue.backoff.ms", "1"),
            ("queued.max.messages.kbytes", "16384"),
        ];
        let client = Client::new(rdsys::rd_kafka_type_t::RD_KAFKA_CONSUMER, &settings)?;
        // SAFETY: a consumer's handle; rebalances are served by the consumer's queue from here on.
        unsafe { rdsys::rd_kafka_poll_set_consumer(client.handle) };
        Ok(client)
    }

    fn new(kind: rdsys::rd_kafka_type_t, settings: &[(&str, &str)]) -> Result<Client, Failure> {
        let mut text = [0 as c_char; 512];
        // SAFETY: every pointer is to a live C string or to `text` with its length; `rd_kafka_new` takes the
        // configuration over when it succeeds, and the program ends when it does not.
        unsafe {
            let conf = rdsys::rd_kafka_conf_new();
            for (name, value) in settings {
                let (name, value) = (CString::new(*name)?, CString::new(*value)?);
                let set = rdsys::rd_kafka_conf_set(conf, name.as_ptr(), value.as_ptr(), text.as_mut_ptr(), text.len());
                if set != rdsys::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK {
                    return Err(CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned().into());
                }
            }
            // Delivery reports as events: a commit then waits on a condition and not in steps of 10 ms.
            if kind == rdsys::rd_kafka_type_t::RD_KAFKA_PRODUCER {
                rdsys::rd_kafka_conf_set_events(conf, rdsys::RD_KAFKA_EVENT_DR);
            }
            let handle = rdsys::rd_kafka_new(kind, conf, text.as_mut_ptr(), text.len());
            if handle.is_null() {
                return Err(CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned().into());
            }
            Ok(Client { handle })
        }
    }

    /// A topic whose metadata is known: before that a batch would fail its transaction.
    fn topic(&self, name: &CStr) -> Result<Topic, Failure> {
        // SAFETY: the handle is alive, the name a C string; the metadata is freed.
        unsafe {
            let topic = Topic { handle: rdsys::rd_kafka_topic_new(self.handle, name.as_ptr(), ptr::null_mut()) };
            let mut metadata = ptr::null();
            let code = rdsys::rd_kafka_metadata(self.handle, 0, topic.handle, &mut metadata, 10_000);
            if code != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Err(format!("metadata of {name:?}: {}", describe(code)).into());
            }
            rdsys::rd_kafka_metadata_destroy(metadata);
            Ok(topic)
        }
    }

    /// Hands a group over and empties it; waits while the producer's queue is full.
    fn produce(&self, topic: &Topic, partition: i32, group: &mut Group, deadline: Instant) -> Result<(), Failure> {
        let mut rest = &mut group[..];
        while !rest.is_empty() {
            // SAFETY: keys and values of the messages are alive; F_COPY copies them before the call returns.
            let taken = unsafe {
                let copy = rdsys::RD_KAFKA_MSG_F_COPY;
                rdsys::rd_kafka_produce_batch(topic.handle, partition, copy, rest.as_mut_ptr(), rest.len() as i32)
            } as usize;
            if taken == rest.len() {
                break;
            }
            // What was refused has its code; a full queue refuses everything from one message on.
            let code = rest.iter().map(|message| message.err).find(|code| *code != Code::RD_KAFKA_RESP_ERR_NO_ERROR);
            if code != Some(Code::RD_KAFKA_RESP_ERR__QUEUE_FULL) || Instant::now() > deadline {
                return Err(format!("producing: {}", code.map_or("refused".into(), describe)).into());
            }
            rest = &mut rest[taken..];
            rest.iter_mut().for_each(|message| message.err = Code::RD_KAFKA_RESP_ERR_NO_ERROR);
            std::thread::sleep(Duration::from_millis(1));
        }
        group.clear();
        Ok(())
    }

    /// Waits until everything that was produced is acknowledged.
    fn flush(&self, deadline: Instant) -> Result<(), Failure> {
        let left = deadline.saturating_duration_since(Instant::now()).as_millis() as i32;
        // SAFETY: the handle is alive.
        match unsafe { rdsys::rd_kafka_flush(self.handle, left) } {
            Code::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
            code => Err(format!("flush: {}", describe(code)).into()),
        }
    }

    /// Calls again as long as the error says that one may.
    fn transaction(
        &self,
        what: &str,
        deadline: Instant,
        call: impl Fn() -> *mut rdsys::rd_kafka_error_t,
    ) -> Result<(), Failure> {
        loop {
            let error = call();
            // SAFETY: asked only when not null; `check` frees it.
            let retriable = !error.is_null() && unsafe { rdsys::rd_kafka_error_is_retriable(error) } != 0;
            match check(error) {
                Ok(()) => return Ok(()),
                Err(_) if retriable && Instant::now() < deadline => {}
                Err(error) => return Err(format!("{what}: {error}").into()),
            }
        }
    }

    fn subscribe(&self, topics: &[&CString]) -> Result<(), Failure> {
        // SAFETY: the list is made, given by reference and freed here.
        let code = unsafe {
            let list = rdsys::rd_kafka_topic_partition_list_new(topics.len() as i32);
            for topic in topics {
                rdsys::rd_kafka_topic_partition_list_add(list, topic.as_ptr(), -1);
            }
            let code = rdsys::rd_kafka_subscribe(self.handle, list);
            rdsys::rd_kafka_topic_partition_list_destroy(list);
            code
        };
        if code == Code::RD_KAFKA_RESP_ERR_NO_ERROR {
            Ok(())
        } else {
            Err(format!("subscribe: {}", describe(code)).into())
        }
    }

    fn queue(&self) -> *mut rdsys::rd_kafka_queue_t {
        // SAFETY: a consumer's handle; the caller destroys the queue.
        unsafe { rdsys::rd_kafka_queue_get_consumer(self.handle) }
    }

    fn close(&self) {
        // SAFETY: a consumer's handle, closed once.
        unsafe { rdsys::rd_kafka_consumer_close(self.handle) };
    }

    fn create_topics(&self, topics: &[(&CString, i32)]) -> Result<(), Failure> {
        let mut text = [0 as c_char; 512];
        // SAFETY: everything made here is freed here; the event is looked at before it is destroyed.
        unsafe {
            let queue = rdsys::rd_kafka_queue_new(self.handle);
            let mut new: Vec<_> = topics
                .iter()
                .map(|(name, partitions)| {
                    rdsys::rd_kafka_NewTopic_new(name.as_ptr(), *partitions, 1, text.as_mut_ptr(), text.len())
                })
                .collect();
            rdsys::rd_kafka_CreateTopics(self.handle, new.as_mut_ptr(), new.len(), ptr::null(), queue);
            let event = rdsys::rd_kafka_queue_poll(queue, 20_000);
            let mut code =
                if event.is_null() { Code::RD_KAFKA_RESP_ERR__TIMED_OUT } else { rdsys::rd_kafka_event_error(event) };
            let result = rdsys::rd_kafka_event_CreateTopics_result(event);
            if !result.is_null() {
                let mut count = 0;
                let each = rdsys::rd_kafka_CreateTopics_result_topics(result, &mut count);
                for index in 0..count {
                    let one = rdsys::rd_kafka_topic_result_error(*each.add(index));
                    code = if one == Code::RD_KAFKA_RESP_ERR_NO_ERROR { code } else { one };
                }
            }
            rdsys::rd_kafka_event_destroy(event);
            rdsys::rd_kafka_NewTopic_destroy_array(new.as_mut_ptr(), new.len());
            rdsys::rd_kafka_queue_destroy(queue);
            if code == Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                Ok(())
            } else {
                Err(format!("creating topics: {}", describe(code)).into())
            }
        }
    }

    /// Tidies up; what fails is left behind.
    fn delete_topics(&self, topics: &[&CString]) {
        // SAFETY: as in `create_topics`.
        unsafe {
            let queue = rdsys::rd_kafka_queue_new(self.handle);
            let mut gone: Vec<_> = topics.iter().map(|name| rdsys::rd_kafka_DeleteTopic_new(name.as_ptr())).collect();
            rdsys::rd_kafka_DeleteTopics(self.handle, gone.as_mut_ptr(), gone.len(), ptr::null(), queue);
            rdsys::rd_kafka_event_destroy(rdsys::rd_kafka_queue_poll(queue, 10_000));
            rdsys::rd_kafka_DeleteTopic_destroy_array(gone.as_mut_ptr(), gone.len());
            rdsys::rd_kafka_queue_destroy(queue);
        }
    }
}

/// User and system time of the whole process, librdkafka's threads included.
fn cpu_time() -> Duration {
    let usage = usage();
    let time = |value: libc::timeval| Duration::new(value.tv_sec as u64, value.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

fn usage() -> libc::rusage {
    // SAFETY: all-zero is a valid rusage, and getrusage fills it.
    unsafe {
        let mut usage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    }
}

/// Forgets the peak of the preload, where the system can.
fn reset_peak_rss() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// In bytes.
fn peak_rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|number| number.parse::<u64>().ok());
    kib.unwrap_or_else(|| usage().ru_maxrss as u64) * 1024
}
