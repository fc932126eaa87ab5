//! Producing: batches grouped by partition, records with headers, transactions under a given membership.
//!
//! N3 (see [`super`]): keys, values and headers are copied by the calls that take them.

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::time::Duration;

use bytes::Bytes;
use rdkafka_sys::bindings as sys;
use sys::rd_kafka_resp_err_t as Resp;

use super::{Client, Delivery, Failure, List, ms, plain, take, text};
use crate::log::{NewRecord, TopicPartition};

impl Client {
    /// Enqueues records without headers; `opaque` plus the index comes back with the report. On error tells how
    /// many were enqueued.
    pub fn produce(&self, to: &TopicPartition, records: &[NewRecord], opaque: usize) -> Result<(), (usize, Failure)> {
        let rkt = self.topic(&to.topic).map_err(|failure| (0, failure))?;
        let part = |bytes: &Option<Bytes>| {
            bytes.as_ref().map_or((null_mut(), 0), |b| (b.as_ptr().cast_mut().cast::<c_void>(), b.len()))
        };
        let mut messages: Vec<sys::rd_kafka_message_t> = Vec::with_capacity(records.len());
        for (index, record) in records.iter().enumerate() {
            let ((payload, len), (key, key_len)) = (part(&record.value), part(&record.key));
            let private = if opaque == 0 { null_mut() } else { (opaque + index) as *mut c_void };
            let (err, partition) = (Resp::RD_KAFKA_RESP_ERR_NO_ERROR, to.partition);
            messages.push(sys::rd_kafka_message_t {
                err,
                rkt,
                partition,
                payload,
                len,
                key,
                key_len,
                offset: 0,
                _private: private,
            });
        }
        // SAFETY: the messages live during the call, which copies what they point to (N3).
        unsafe {
            sys::rd_kafka_produce_batch(
                rkt,
                to.partition,
                sys::RD_KAFKA_MSG_F_COPY,
                messages.as_mut_ptr(),
                messages.len() as c_int,
            )
        };
        match messages.iter().position(|m| m.err != Resp::RD_KAFKA_RESP_ERR_NO_ERROR) {
            None => Ok(()),
            Some(at) => plain(messages[at].err).map_err(|failure| (at, failure)),
        }
    }

    /// Enqueues one record with its headers.
    pub fn produce_with_headers(&self, to: &TopicPartition, record: &NewRecord, opaque: usize) -> Result<(), Failure> {
        use sys::rd_kafka_vtype_t as Is;
        type Value = sys::rd_kafka_vu_s__bindgen_ty_1;
        let rkt = self.topic(&to.topic)?;
        let memory = |bytes: &Option<Bytes>| {
            let (ptr, size) = bytes.as_ref().map_or((null_mut(), 0), |b| (b.as_ptr().cast_mut().cast(), b.len()));
            Value { mem: sys::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 { ptr, size } }
        };
        // SAFETY: everything pointed to lives during the call and is copied (N3); the headers belong to librdkafka
        // when it succeeds and are freed here when it does not.
        unsafe {
            let headers = sys::rd_kafka_headers_new(record.headers.len());
            for (name, value) in &record.headers {
                let (name, size) = (name.as_ptr().cast(), name.len() as isize);
                sys::rd_kafka_header_add(headers, name, size, value.as_ptr().cast(), value.len() as isize);
            }
            let values = [
                sys::rd_kafka_vu_t { vtype: Is::RD_KAFKA_VTYPE_RKT, u: Value { rkt } },
                sys::rd_kafka_vu_t { vtype: Is::RD_KAFKA_VTYPE_PARTITION, u: Value { i32_: to.partition } },
                sys::rd_kafka_vu_t { vtype: Is::RD_KAFKA_VTYPE_MSGFLAGS, u: Value { i: sys::RD_KAFKA_MSG_F_COPY } },
                sys::rd_kafka_vu_t { vtype: Is::RD_KAFKA_VTYPE_KEY, u: memory(&record.key) },
                sys::rd_kafka_vu_t { vtype: Is::RD_KAFKA_VTYPE_VALUE, u: memory(&record.value) },
                sys::rd_kafka_vu_t { vtype: Is::RD_KAFKA_VTYPE_OPAQUE, u: Value { ptr: opaque as *mut c_void } },
                sys::rd_kafka_vu_t { vtype: Is::RD_KAFKA_VTYPE_HEADERS, u: Value { headers } },
            ];
            let produced = take(sys::rd_kafka_produceva(self.0, values.as_ptr(), values.len()));
            if produced.is_err() {
                sys::rd_kafka_headers_destroy(headers);
            }
            produced
        }
    }

    /// Serves one event: errors go to the watch, delivery reports to `report`.
    pub fn serve(&self, timeout: Duration, report: &mut dyn FnMut(Delivery)) {
        // SAFETY: the event is ours and freed once; its messages live as long as it does.
        unsafe {
            let event = sys::rd_kafka_queue_poll(self.queue, ms(timeout));
            if event.is_null() {
                return;
            }
            match sys::rd_kafka_event_type(event) {
                sys::RD_KAFKA_EVENT_ERROR => {
                    self.watch()
                        .error(sys::rd_kafka_event_error(event).into(), text(sys::rd_kafka_event_error_string(event)));
                }
                sys::RD_KAFKA_EVENT_DR => {
                    while let Some(m) = sys::rd_kafka_event_message_next(event).as_ref() {
                        let place = format!("{}-{}", text(sys::rd_kafka_topic_name(m.rkt)), m.partition);
                        report(Delivery { opaque: m._private as usize, place, offset: m.offset, code: m.err.into() });
                    }
                }
                _ => {}
            }
            sys::rd_kafka_event_destroy(event);
        }
    }

    /// Waits until nothing is on its way.
    pub fn flush(&self, timeout: Duration) -> Result<(), Failure> {
        // SAFETY: the handle lives; here and in the next four.
        plain(unsafe { sys::rd_kafka_flush(self.0, ms(timeout)) })
    }

    /// Fences earlier holders of the transactional id and decides their transaction.
    pub fn init_transactions(&self, timeout: Duration) -> Result<(), Failure> {
        // SAFETY: see flush.
        take(unsafe { sys::rd_kafka_init_transactions(self.0, ms(timeout)) })
    }

    /// Begins a transaction.
    pub fn begin(&self) -> Result<(), Failure> {
        // SAFETY: see flush.
        take(unsafe { sys::rd_kafka_begin_transaction(self.0) })
    }

    /// Commits the transaction.
    pub fn commit_transaction(&self, timeout: Duration) -> Result<(), Failure> {
        // SAFETY: see flush.
        take(unsafe { sys::rd_kafka_commit_transaction(self.0, ms(timeout)) })
    }

    /// Aborts the transaction.
    pub fn abort_transaction(&self, timeout: Duration) -> Result<(), Failure> {
        // SAFETY: see flush.
        take(unsafe { sys::rd_kafka_abort_transaction(self.0, ms(timeout)) })
    }

    /// Adds the group's positions to the transaction under this membership.
    pub fn send_offsets<'a>(
        &self,
        offsets: impl Iterator<Item = (&'a str, i32, i64, &'a str)>,
        membership: &[u8],
        timeout: Duration,
    ) -> Result<(), Failure> {
        let list = List::of(offsets);
        let mut metadata = null_mut();
        // SAFETY: the bytes live during the call; the metadata is ours and freed once.
        unsafe {
            take(sys::rd_kafka_consumer_group_metadata_read(
                &mut metadata,
                membership.as_ptr().cast(),
                membership.len(),
            ))?;
            let sent = take(sys::rd_kafka_send_offsets_to_transaction(self.0, list.0, metadata, ms(timeout)));
            sys::rd_kafka_consumer_group_metadata_destroy(metadata);
            sent
        }
    }
}
