//! The calls into librdkafka that rdkafka's safe types do not offer: batches, cooperative assignment,
//! transactions with a given membership, topic ids. All `unsafe` of the crate is in this file.
//!
//! N1: a [`Client`] owns its handle, queue and topic handles and frees them in the order that librdkafka asks for.
//! N2: callbacks run with a pointer into a box that outlives the handle; `rebalance` runs only on the thread that
//!     consumes or closes.
//! N3: nothing that librdkafka keeps points into Rust memory: keys and values are copied when they are produced.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rdkafka_sys::bindings as sys;
use sys::rd_kafka_resp_err_t as Resp;

use super::errors::{Code, Failure};
use super::watch::Watch;
use crate::log::TopicPartition;

mod data;
mod producing;

use data::List;
pub use data::{AclOperation, Allowed, Batch, Delivery, Element, Found, Message, ends, group_rights, topics};

/// What a rebalance asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebalance {
    /// Partitions are added.
    Assign,
    /// Partitions go.
    Revoke,
    /// It failed: nothing is owned any more.
    Failed(Code),
}

/// Called on the polling thread with the handle, the kind and the partitions.
pub type OnRebalance = Box<dyn FnMut(&Handle, Rebalance, Vec<(String, i32)>) + Send>;

struct Callbacks {
    watch: Arc<Watch>,
    rebalance: Option<RefCell<OnRebalance>>,
}

/// A borrowed handle.
pub struct Handle(*mut sys::rd_kafka_t);

/// An owned handle.
pub struct Client {
    handle: Handle,
    queue: *mut sys::rd_kafka_queue_t,
    topics: Mutex<HashMap<String, TopicHandle>>,
    callbacks: *mut Callbacks,
}

struct TopicHandle(*mut sys::rd_kafka_topic_t);

// SAFETY: librdkafka's handles, queues and topic handles may be used by any thread at the same time; the rebalance
// callback is reached only from the one thread that consumes (N2), the watch is Sync.
unsafe impl Send for Client {}
unsafe impl Sync for Client {}
unsafe impl Send for TopicHandle {}

fn ms(timeout: Duration) -> c_int {
    c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX)
}

fn c(text: &str) -> CString {
    CString::new(text.replace('\0', "")).expect("zeros were removed")
}

fn text(of: *const c_char) -> String {
    if of.is_null() {
        return String::new();
    }
    // SAFETY: librdkafka's strings end with a zero and live during the call that handed them out.
    unsafe { CStr::from_ptr(of) }.to_string_lossy().into_owned()
}

fn slice<'a>(at: *const c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: callers pass a pointer and length that librdkafka gave together and that live as long as their message.
    (!at.is_null()).then(|| unsafe { std::slice::from_raw_parts(at.cast::<u8>(), len) })
}

fn plain(code: Resp) -> Result<(), Failure> {
    let code = Code::from(code);
    if code == Code::NoError {
        return Ok(());
    }
    let fatal = code == Code::Fatal;
    Err(Failure { text: code.to_string(), code, fatal, retriable: false, abortable: false })
}

fn take(error: *mut sys::rd_kafka_error_t) -> Result<(), Failure> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the error is ours to read and to free, once.
    unsafe {
        let failure = Failure {
            code: sys::rd_kafka_error_code(error).into(),
            text: text(sys::rd_kafka_error_string(error)),
            fatal: sys::rd_kafka_error_is_fatal(error) != 0,
            retriable: sys::rd_kafka_error_is_retriable(error) != 0,
            abortable: sys::rd_kafka_error_txn_requires_abort(error) != 0,
        };
        sys::rd_kafka_error_destroy(error);
        Err(failure)
    }
}

fn callbacks<'a>(opaque: *mut c_void) -> Option<&'a Callbacks> {
    // SAFETY: the opaque is the box made in `open`, which outlives the handle (N2).
    unsafe { opaque.cast::<Callbacks>().as_ref() }
}

extern "C" fn on_error(_: *mut sys::rd_kafka_t, code: c_int, reason: *const c_char, opaque: *mut c_void) {
    if let Some(callbacks) = callbacks(opaque) {
        // SAFETY: librdkafka passes one of its own codes.
        let code: Resp = unsafe { std::mem::transmute(code) };
        callbacks.watch.error(code.into(), text(reason));
    }
}

extern "C" fn on_log(rk: *const sys::rd_kafka_t, level: c_int, facility: *const c_char, line: *const c_char) {
    // SAFETY: a handle that logs is alive.
    let opaque = if rk.is_null() { null_mut() } else { unsafe { sys::rd_kafka_opaque(rk) } };
    if let Some(callbacks) = callbacks(opaque) {
        callbacks.watch.log(level, &text(facility), &text(line));
    }
}

extern "C" fn on_rebalance(
    rk: *mut sys::rd_kafka_t,
    code: Resp,
    list: *mut sys::rd_kafka_topic_partition_list_t,
    opaque: *mut c_void,
) {
    let Some(rebalance) = callbacks(opaque).and_then(|c| c.rebalance.as_ref()) else { return };
    let kind = match code.into() {
        Code::AssignPartitions => Rebalance::Assign,
        Code::RevokePartitions => Rebalance::Revoke,
        other => Rebalance::Failed(other),
    };
    let partitions = List::read(list).into_iter().map(|e| (e.topic, e.partition)).collect();
    (rebalance.borrow_mut())(&Handle(rk), kind, partitions);
}

impl Handle {
    /// Adds partitions at these positions.
    pub fn assign_more(&self, positions: &[(TopicPartition, i64)]) -> Result<(), Failure> {
        // SAFETY: the handle lives; the list is copied by the call.
        take(unsafe { sys::rd_kafka_incremental_assign(self.0, List::positions(positions).0) })
    }

    /// Takes partitions away.
    pub fn assign_less(&self, positions: &[(TopicPartition, i64)]) -> Result<(), Failure> {
        // SAFETY: as above.
        take(unsafe { sys::rd_kafka_incremental_unassign(self.0, List::positions(positions).0) })
    }

    /// Replaces what is assigned.
    pub fn assign(&self, positions: &[(TopicPartition, i64)]) -> Result<(), Failure> {
        // SAFETY: as above.
        plain(unsafe { sys::rd_kafka_assign(self.0, List::positions(positions).0) })
    }

    /// True while the partitions being revoked are lost already.
    pub fn assignment_lost(&self) -> bool {
        // SAFETY: the handle lives.
        unsafe { sys::rd_kafka_assignment_lost(self.0) != 0 }
    }

    /// Stops or resumes fetching.
    pub fn pause(&self, positions: &[(TopicPartition, i64)], pause: bool) -> Result<(), Failure> {
        let list = List::positions(positions);
        let call = if pause { sys::rd_kafka_pause_partitions } else { sys::rd_kafka_resume_partitions };
        // SAFETY: the handle and the list live during the call.
        plain(unsafe { call(self.0, list.0) })
    }

    /// Moves the positions; each element carries its own error.
    pub fn seek(&self, positions: &[(TopicPartition, i64)], timeout: Duration) -> Result<Vec<Element>, Failure> {
        let list = List::positions(positions);
        // SAFETY: as above.
        take(unsafe { sys::rd_kafka_seek_partitions(self.0, list.0, ms(timeout)) })?;
        Ok(List::read(list.0))
    }

    /// The group metadata of now, serialised; empty when there is none.
    pub fn membership(&self) -> Bytes {
        // SAFETY: the metadata and the buffer are ours, read and freed once.
        unsafe {
            let metadata = sys::rd_kafka_consumer_group_metadata(self.0);
            if metadata.is_null() {
                return Bytes::new();
            }
            let (mut buffer, mut size) = (null_mut(), 0);
            let written = take(sys::rd_kafka_consumer_group_metadata_write(metadata, &mut buffer, &mut size));
            sys::rd_kafka_consumer_group_metadata_destroy(metadata);
            if written.is_err() {
                return Bytes::new();
            }
            let bytes = slice(buffer, size).map(Bytes::copy_from_slice);
            libc::free(buffer);
            bytes.unwrap_or_default()
        }
    }
}

impl std::ops::Deref for Client {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

impl Client {
    /// A consumer (its events come to whoever consumes) or a producer (delivery reports come to [`Client::serve`]).
    pub fn open(
        consumer: bool,
        settings: &[(String, String)],
        watch: Arc<Watch>,
        rebalance: Option<OnRebalance>,
    ) -> Result<Client, String> {
        let mut why = [0 as c_char; 512];
        let callbacks = Box::into_raw(Box::new(Callbacks { watch, rebalance: rebalance.map(RefCell::new) }));
        // SAFETY: the conf is ours until rd_kafka_new succeeds; the callbacks are freed here when it does not.
        unsafe {
            let conf = sys::rd_kafka_conf_new();
            for (name, value) in settings {
                let done =
                    sys::rd_kafka_conf_set(conf, c(name).as_ptr(), c(value).as_ptr(), why.as_mut_ptr(), why.len());
                if done != sys::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK {
                    sys::rd_kafka_conf_destroy(conf);
                    drop(Box::from_raw(callbacks));
                    return Err(text(why.as_ptr()));
                }
            }
            sys::rd_kafka_conf_set_opaque(conf, callbacks.cast());
            sys::rd_kafka_conf_set_log_cb(conf, Some(on_log));
            sys::rd_kafka_conf_set_error_cb(conf, Some(on_error));
            if (*callbacks).rebalance.is_some() {
                sys::rd_kafka_conf_set_rebalance_cb(conf, Some(on_rebalance));
            }
            let kind = if consumer {
                sys::rd_kafka_type_t::RD_KAFKA_CONSUMER
            } else {
                sys::rd_kafka_type_t::RD_KAFKA_PRODUCER
            };
            if !consumer {
                sys::rd_kafka_conf_set_events(conf, sys::RD_KAFKA_EVENT_DR | sys::RD_KAFKA_EVENT_ERROR);
            }
            let rk = sys::rd_kafka_new(kind, conf, why.as_mut_ptr(), why.len());
            if rk.is_null() {
                sys::rd_kafka_conf_destroy(conf);
                drop(Box::from_raw(callbacks));
                return Err(text(why.as_ptr()));
            }
            let grouped = consumer && settings.iter().any(|(name, _)| name == "group.id");
            if grouped {
                sys::rd_kafka_poll_set_consumer(rk);
            }
            let queue = if grouped { sys::rd_kafka_queue_get_consumer(rk) } else { sys::rd_kafka_queue_get_main(rk) };
            Ok(Client { handle: Handle(rk), queue, topics: Mutex::default(), callbacks })
        }
    }

    fn raw(&self) -> *mut sys::rd_kafka_t {
        self.handle.0
    }

    fn watch(&self) -> &Watch {
        // SAFETY: freed only in drop.
        unsafe { &(*self.callbacks).watch }
    }

    /// The error after which the handle is of no more use.
    pub fn fatal(&self) -> Option<(Code, String)> {
        let mut why = [0 as c_char; 512];
        // SAFETY: the buffer has the length told.
        let code = Code::from(unsafe { sys::rd_kafka_fatal_error(self.0, why.as_mut_ptr(), why.len()) });
        (code != Code::NoError).then(|| (code, text(why.as_ptr())))
    }

    /// Joins the group.
    pub fn subscribe(&self, topics: &[Arc<str>]) -> Result<(), Failure> {
        let list = List::of(topics.iter().map(|topic| (&**topic, -1, -1001, "")));
        // SAFETY: the list is copied by the call.
        plain(unsafe { sys::rd_kafka_subscribe(self.0, list.0) })
    }

    /// Leaves the group; the rebalance callback runs inside.
    pub fn close(&self) -> Result<(), Failure> {
        // SAFETY: the handle lives.
        plain(unsafe { sys::rd_kafka_consumer_close(self.0) })
    }

    /// Wakes the thread that consumes or serves.
    pub fn wake(&self) {
        // SAFETY: the queue lives as long as the client.
        unsafe { sys::rd_kafka_queue_yield(self.queue) }
    }

    /// Adds up to `max` messages to `batch`; waits until so many are there or the timeout is over.
    pub fn consume(&self, max: usize, timeout: Duration, batch: &mut Batch) -> usize {
        let filled = batch.0.len();
        batch.0.resize(filled + max, null_mut());
        // SAFETY: there is room for `max` pointers from `filled` on.
        let got = unsafe {
            sys::rd_kafka_consume_batch_queue(self.queue, ms(timeout), batch.0.as_mut_ptr().add(filled), max)
        };
        let got = usize::try_from(got).unwrap_or(0);
        batch.0.truncate(filled + got);
        got
    }

    /// Commits synchronously; each element carries its own error.
    pub fn commit<'a>(
        &self,
        offsets: impl Iterator<Item = (&'a str, i32, i64, &'a str)>,
    ) -> Result<Vec<Element>, Failure> {
        let list = List::of(offsets);
        // SAFETY: the list lives during the call, which fills in the errors.
        plain(unsafe { sys::rd_kafka_commit(self.0, list.0, 0) })?;
        Ok(List::read(list.0))
    }

    /// The group's committed offsets; each element carries its own error.
    pub fn committed(&self, of: &[TopicPartition], timeout: Duration) -> Result<Vec<Element>, Failure> {
        let list = List::of(of.iter().map(|of| (&*of.topic, of.partition, -1001, "")));
        // SAFETY: as above.
        plain(unsafe { sys::rd_kafka_committed(self.0, list.0, ms(timeout)) })?;
        Ok(List::read(list.0))
    }

    /// Low and high watermark as the handle's isolation level shows them.
    pub fn watermarks(&self, of: &TopicPartition, timeout: Duration) -> Result<(i64, i64), Failure> {
        let (mut low, mut high) = (0, 0);
        // SAFETY: the name and both numbers live during the call.
        plain(unsafe {
            sys::rd_kafka_query_watermark_offsets(
                self.0,
                c(&of.topic).as_ptr(),
                of.partition,
                &mut low,
                &mut high,
                ms(timeout),
            )
        })?;
        Ok((low, high))
    }

    /// Waits until the handle knows the cluster.
    pub fn meet(&self, timeout: Duration) -> Result<(), Failure> {
        // SAFETY: no topic is asked for; the answer is ours and freed once.
        unsafe {
            let mut answer: *const sys::rd_kafka_metadata = null();
            plain(sys::rd_kafka_metadata(self.0, 0, null_mut(), &mut answer, ms(timeout)))?;
            sys::rd_kafka_metadata_destroy(answer);
        }
        Ok(())
    }

    /// Makes the topic known to the handle and tells how many partitions it has.
    pub fn learn(&self, topic: &str, timeout: Duration) -> Result<i32, Failure> {
        let rkt = self.topic(topic)?;
        // SAFETY: the topic handle lives as long as the client; the answer is ours and freed once.
        unsafe {
            let mut answer: *const sys::rd_kafka_metadata = null();
            plain(sys::rd_kafka_metadata(self.0, 0, rkt, &mut answer, ms(timeout)))?;
            let topics = std::slice::from_raw_parts((*answer).topics, (*answer).topic_cnt as usize);
            let found = topics.first().map(|t| (t.err, t.partition_cnt));
            sys::rd_kafka_metadata_destroy(answer);
            let (code, partitions) = found.unwrap_or((Resp::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART, 0));
            plain(code).map(|()| partitions)
        }
    }

    fn topic(&self, name: &str) -> Result<*mut sys::rd_kafka_topic_t, Failure> {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(topic) = topics.get(name) {
            return Ok(topic.0);
        }
        // SAFETY: the handle lives; null conf is the default.
        let rkt = unsafe { sys::rd_kafka_topic_new(self.0, c(name).as_ptr(), null_mut()) };
        if rkt.is_null() {
            // SAFETY: tells the error of the call before, on this thread.
            plain(unsafe { sys::rd_kafka_last_error() })?;
        }
        topics.insert(name.to_owned(), TopicHandle(rkt));
        Ok(rkt)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // SAFETY: N1: topics and queue before the handle, the callbacks after it; nobody else has them any more.
        unsafe {
            for (_, topic) in self.topics.get_mut().unwrap_or_else(PoisonError::into_inner).drain() {
                sys::rd_kafka_topic_destroy(topic.0);
            }
            sys::rd_kafka_queue_destroy(self.queue);
            sys::rd_kafka_destroy(self.0);
            drop(Box::from_raw(self.callbacks));
        }
    }
}
