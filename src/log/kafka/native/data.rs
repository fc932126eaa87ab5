//! What goes to and comes from librdkafka in bulk: lists of partitions, fetched messages, answers to admin requests.
//!
//! N4: a [`Message`] is read only while its [`Batch`] holds it; the batch frees each message once.

use std::ffi::{CString, c_char, c_void};
use std::ptr::{null, null_mut};
use std::time::Duration;

use bytes::Bytes;
use rdkafka_sys::bindings as sys;
pub use sys::rd_kafka_AclOperation_t as AclOperation;

use super::{Client, Code, Failure, c, ms, plain, slice, text};
use crate::log::{Headers, TopicPartition};

/// An element of a list of partitions that librdkafka gave back.
#[derive(Debug)]
pub struct Element {
    /// The topic's name.
    pub topic: String,
    /// The partition's number.
    pub partition: i32,
    /// An offset or one of librdkafka's negative marks.
    pub offset: i64,
    /// The committed metadata.
    pub metadata: String,
    /// The element's own error.
    pub code: Code,
}

/// A delivery report.
pub struct Delivery {
    /// What was given to [`Client::produce`], plus the record's index.
    pub opaque: usize,
    /// Where it went.
    pub place: String,
    /// Its offset, where delivered.
    pub offset: i64,
    /// `NoError` when delivered.
    pub code: Code,
}

/// A list of partitions, in librdkafka's memory.
pub(super) struct List(pub(super) *mut sys::rd_kafka_topic_partition_list_t);

impl List {
    pub(super) fn of<'a>(items: impl Iterator<Item = (&'a str, i32, i64, &'a str)>) -> List {
        // SAFETY: the list is new; elements are written right after they were added; the metadata is from malloc,
        // as librdkafka frees it.
        unsafe {
            let list = List(sys::rd_kafka_topic_partition_list_new(8));
            for (topic, partition, offset, metadata) in items {
                let element = sys::rd_kafka_topic_partition_list_add(list.0, c(topic).as_ptr(), partition);
                (*element).offset = offset;
                if !metadata.is_empty() {
                    (*element).metadata = libc::malloc(metadata.len());
                    (*element).metadata_size = metadata.len();
                    libc::memcpy((*element).metadata, metadata.as_ptr().cast(), metadata.len());
                }
            }
            list
        }
    }

    pub(super) fn positions(items: &[(TopicPartition, i64)]) -> List {
        List::of(items.iter().map(|(of, offset)| (&*of.topic, of.partition, *offset, "")))
    }

    pub(super) fn read(list: *const sys::rd_kafka_topic_partition_list_t) -> Vec<Element> {
        if list.is_null() {
            return Vec::new();
        }
        // SAFETY: the list holds `cnt` elements and is not changed meanwhile.
        let elements = unsafe {
            std::slice::from_raw_parts((*list).elems, (*list).cnt as usize * usize::from(!(*list).elems.is_null()))
        };
        elements.iter().map(element).collect()
    }
}

fn element(e: &sys::rd_kafka_topic_partition_t) -> Element {
    let metadata = slice(e.metadata, e.metadata_size).map(|b| String::from_utf8_lossy(b).into_owned());
    Element {
        topic: text(e.topic),
        partition: e.partition,
        offset: e.offset,
        metadata: metadata.unwrap_or_default(),
        code: e.err.into(),
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: ours, freed once.
        unsafe { sys::rd_kafka_topic_partition_list_destroy(self.0) }
    }
}

/// Messages that were fetched and not yet freed.
#[derive(Default)]
pub struct Batch(pub(super) Vec<*mut sys::rd_kafka_message_t>);

/// A fetched message, or the error that stands in its place.
pub struct Message<'a>(&'a sys::rd_kafka_message_t);

// SAFETY: the batch owns its messages; they are not tied to a thread.
unsafe impl Send for Batch {}

impl Batch {
    /// The messages, in the order in which they were fetched.
    pub fn iter(&self) -> impl Iterator<Item = Message<'_>> {
        // SAFETY: the pointers are from librdkafka and are freed only with the batch (N4).
        self.0.iter().map(|m| Message(unsafe { &**m }))
    }

    /// Frees the messages.
    pub fn clear(&mut self) {
        for m in self.0.drain(..) {
            // SAFETY: each was handed to us once and leaves the batch here.
            unsafe { sys::rd_kafka_message_destroy(m) }
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Message<'_> {
    /// `NoError` for a record.
    pub fn code(&self) -> Code {
        self.0.err.into()
    }

    /// What an error says.
    pub fn error_text(&self) -> String {
        // SAFETY: the message lives (N4).
        text(unsafe { sys::rd_kafka_message_errstr(self.0) })
    }

    /// Tells topics apart within a batch; 0 for none.
    pub fn topic_mark(&self) -> usize {
        self.0.rkt as usize
    }

    /// The topic's name.
    pub fn topic(&self) -> String {
        if self.0.rkt.is_null() {
            return String::new();
        }
        // SAFETY: the message holds its topic.
        text(unsafe { sys::rd_kafka_topic_name(self.0.rkt) })
    }

    /// The partition's number.
    pub fn partition(&self) -> i32 {
        self.0.partition
    }

    /// The record's offset.
    pub fn offset(&self) -> i64 {
        self.0.offset
    }

    /// `None` is the null key.
    pub fn key(&self) -> Option<&[u8]> {
        slice(self.0.key, self.0.key_len)
    }

    /// `None` is a tombstone.
    pub fn value(&self) -> Option<&[u8]> {
        slice(self.0.payload, self.0.len)
    }

    /// Milliseconds since 1970.
    pub fn timestamp_ms(&self) -> i64 {
        // SAFETY: the message lives; a null type is allowed.
        unsafe { sys::rd_kafka_message_timestamp(self.0, null_mut()) }
    }

    /// Copies of the headers.
    pub fn headers(&self) -> Headers {
        let mut all = Headers::new();
        let mut list = null_mut();
        // SAFETY: the headers belong to the message, which lives.
        unsafe {
            if Code::from(sys::rd_kafka_message_headers(self.0, &mut list)) != Code::NoError {
                return all;
            }
            let (mut name, mut value, mut size): (*const c_char, *const c_void, usize) = (null(), null(), 0);
            while Code::from(sys::rd_kafka_header_get_all(list, all.len(), &mut name, &mut value, &mut size))
                == Code::NoError
            {
                all.push((text(name), slice(value, size).map(Bytes::copy_from_slice).unwrap_or_default()));
            }
        }
        all
    }
}

/// An admin request's answer, with the queue that it came to.
struct Answer(*mut sys::rd_kafka_queue_t, *mut sys::rd_kafka_event_t);

impl Answer {
    /// Sends a request whose answer is to come to the queue given, and waits for it.
    fn to(
        client: &Client,
        timeout: Duration,
        request: impl FnOnce(*mut sys::rd_kafka_queue_t),
    ) -> Result<Answer, Failure> {
        // SAFETY: queue and event are ours, freed in drop.
        unsafe {
            let queue = sys::rd_kafka_queue_new(client.raw());
            request(queue);
            let answer = Answer(queue, sys::rd_kafka_queue_poll(queue, ms(timeout)));
            if answer.1.is_null() {
                plain(sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__TIMED_OUT)?;
            }
            plain(sys::rd_kafka_event_error(answer.1))
                .map_err(|failure| Failure { text: text(sys::rd_kafka_event_error_string(answer.1)), ..failure })?;
            Ok(answer)
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // SAFETY: ours, freed once; a null event is allowed.
        unsafe {
            sys::rd_kafka_event_destroy(self.1);
            sys::rd_kafka_queue_destroy(self.0);
        }
    }
}

/// Options of an admin request, freed after it was sent.
struct Options(*mut sys::rd_kafka_AdminOptions_t);

impl Options {
    fn of(client: &Client, request: sys::rd_kafka_admin_op_t, timeout: Duration) -> Options {
        let mut why = [0 as c_char; 256];
        // SAFETY: the options are ours; the buffer has the length told.
        unsafe {
            let options = Options(sys::rd_kafka_AdminOptions_new(client.raw(), request));
            sys::rd_kafka_AdminOptions_set_request_timeout(options.0, ms(timeout), why.as_mut_ptr(), why.len());
            options
        }
    }

    /// Asks what is allowed, too.
    fn include_rights(&self) -> Result<(), Failure> {
        // SAFETY: the options are ours.
        super::take(unsafe { sys::rd_kafka_AdminOptions_set_include_authorized_operations(self.0, 1) })
    }
}

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: ours, freed once.
        unsafe { sys::rd_kafka_AdminOptions_destroy(self.0) }
    }
}

/// The high watermarks, undecided transactions included, by one request; each element carries its own error.
pub fn ends(client: &Client, of: &[TopicPartition], timeout: Duration) -> Result<Vec<Element>, Failure> {
    let latest = sys::rd_kafka_OffsetSpec_t::RD_KAFKA_OFFSET_SPEC_LATEST as i64;
    let list = List::of(of.iter().map(|of| (&*of.topic, of.partition, latest, "")));
    let options = Options::of(client, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS, timeout);
    // SAFETY: list and options live until the request is sent and are copied by it; the infos live as long as the
    // answer.
    unsafe {
        let all = sys::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_UNCOMMITTED;
        let error = sys::rd_kafka_AdminOptions_set_isolation_level(options.0, all);
        super::take(error)?;
        let answer =
            Answer::to(client, timeout, |queue| sys::rd_kafka_ListOffsets(client.raw(), list.0, options.0, queue))?;
        let mut count = 0;
        let infos =
            sys::rd_kafka_ListOffsets_result_infos(sys::rd_kafka_event_ListOffsets_result(answer.1), &mut count);
        let infos = if infos.is_null() { &[][..] } else { std::slice::from_raw_parts(infos, count) };
        Ok(infos.iter().map(|info| element(&*sys::rd_kafka_ListOffsetsResultInfo_topic_partition(*info))).collect())
    }
}

/// What the broker lets us do with a topic or group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// These operations.
    Told(Vec<AclOperation>),
    /// Nothing, not even to know of it.
    Nothing,
    /// The broker does not say, or there is no such thing.
    Unknown,
}

impl Allowed {
    /// # Safety
    /// `operations` is null or points to `count` of them.
    unsafe fn of(operations: *const AclOperation, count: usize) -> Allowed {
        if operations.is_null() {
            return Allowed::Unknown;
        }
        // SAFETY: see above.
        Allowed::Told(unsafe { std::slice::from_raw_parts(operations, count) }.to_vec())
    }
}

/// A topic as its leader knows it.
#[derive(Clone, Debug)]
pub struct Found {
    /// Tells it from an earlier one of the same name.
    pub id: String,
    /// How many partitions it has.
    pub partitions: i32,
    /// Told where it was asked for.
    pub allowed: Allowed,
}

/// Topics in the order asked, each with an error of its own; `None` where there is no such topic. `rights` asks what
/// is allowed, too.
pub fn topics(
    client: &Client,
    names: &[&str],
    rights: bool,
    timeout: Duration,
) -> Result<Vec<Result<Option<Found>, Failure>>, Failure> {
    let owned: Vec<CString> = names.iter().map(|name| c(name)).collect();
    let mut pointers: Vec<*const c_char> = owned.iter().map(|name| name.as_ptr()).collect();
    let options = Options::of(client, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, timeout);
    if rights {
        options.include_rights()?;
    }
    let mut found: Vec<Result<Option<Found>, Failure>> = names.iter().map(|_| Ok(None)).collect();
    // SAFETY: names and options live until the request is sent and are copied by it; descriptions live as long as
    // the answer; the id's text belongs to the id.
    unsafe {
        let collection = sys::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        let answer = Answer::to(client, timeout, |queue| {
            sys::rd_kafka_DescribeTopics(client.raw(), collection, options.0, queue);
        });
        sys::rd_kafka_TopicCollection_destroy(collection);
        let answer = answer?;
        let mut count = 0;
        let topics =
            sys::rd_kafka_DescribeTopics_result_topics(sys::rd_kafka_event_DescribeTopics_result(answer.1), &mut count);
        let topics = if topics.is_null() { &[][..] } else { std::slice::from_raw_parts(topics, count) };
        for topic in topics {
            let name = text(sys::rd_kafka_TopicDescription_name(*topic));
            let failure = failure(sys::rd_kafka_TopicDescription_error(*topic));
            let Some(slot) = names.iter().position(|asked| **asked == *name).map(|at| &mut found[at]) else { continue };
            *slot = match failure {
                None => {
                    let mut partitions = 0;
                    sys::rd_kafka_TopicDescription_partitions(*topic, &mut partitions);
                    let id = text(sys::rd_kafka_Uuid_base64str(sys::rd_kafka_TopicDescription_topic_id(*topic)));
                    let mut operations = 0;
                    let allowed = sys::rd_kafka_TopicDescription_authorized_operations(*topic, &mut operations);
                    let allowed = Allowed::of(allowed, operations);
                    Ok(Some(Found { id, partitions: i32::try_from(partitions).unwrap_or(i32::MAX), allowed }))
                }
                Some(failure) => match failure.code {
                    Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => Ok(None),
                    _ => Err(failure),
                },
            };
        }
    }
    Ok(found)
}

/// A request of this deadline ends with its answer, or with its handle.
const UNTIL_THE_END: Duration = Duration::from_secs(3600);

/// What is allowed with a group. After an error the handle is not to be used any more: the question may still be under way.
pub fn group_rights(client: &Client, group: &str, timeout: Duration) -> Result<Allowed, Failure> {
    let name = c(group);
    let mut names = [name.as_ptr()];
    let request = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS;
    let options = Options::of(client, request, UNTIL_THE_END);
    options.include_rights()?;
    // SAFETY: as above.
    unsafe {
        let answer = Answer::to(client, timeout, |queue| {
            sys::rd_kafka_DescribeConsumerGroups(client.raw(), names.as_mut_ptr(), 1, options.0, queue);
        });
        let answer = match answer {
            Err(failure) if failure.code == Code::GroupAuthorizationFailed => return Ok(Allowed::Nothing),
            answer => answer?,
        };
        let result = sys::rd_kafka_event_DescribeConsumerGroups_result(answer.1);
        let mut count = 0;
        let groups = sys::rd_kafka_DescribeConsumerGroups_result_groups(result, &mut count);
        if groups.is_null() || count == 0 {
            return Ok(Allowed::Unknown);
        }
        match failure(sys::rd_kafka_ConsumerGroupDescription_error(*groups)) {
            None => {
                let mut operations = 0;
                let allowed = sys::rd_kafka_ConsumerGroupDescription_authorized_operations(*groups, &mut operations);
                Ok(Allowed::of(allowed, operations))
            }
            Some(failure) => match failure.code {
                Code::GroupAuthorizationFailed => Ok(Allowed::Nothing),
                Code::GroupIdNotFound => Ok(Allowed::Unknown),
                _ => Err(failure),
            },
        }
    }
}

/// A borrowed error of an element; `None` where all is well.
///
/// # Safety
/// `error` is null or alive.
unsafe fn failure(error: *const sys::rd_kafka_error_t) -> Option<Failure> {
    // SAFETY: see above.
    let (code, text) = unsafe {
        if error.is_null() {
            return None;
        }
        (Code::from(sys::rd_kafka_error_code(error)), text(sys::rd_kafka_error_string(error)))
    };
    (code != Code::NoError).then_some(Failure { code, text, fatal: false, retriable: false, abortable: false })
}
