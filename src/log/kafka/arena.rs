//! Keys and values of fetched records, copied into shared chunks: no allocation per record.

use bytes::{Bytes, BytesMut};

use super::native::Message;
use crate::log::{Headers, Record};

/// Bytes of one chunk; a record that is kept keeps its chunk.
const CHUNK: usize = 64 * 1024;

/// Copies records out of librdkafka's memory.
#[derive(Default)]
pub struct Arena {
    chunk: BytesMut,
}

impl Arena {
    /// A copy of the bytes.
    fn keep(&mut self, bytes: &[u8]) -> Bytes {
        if bytes.is_empty() {
            return Bytes::new();
        }
        if bytes.len() > CHUNK / 4 {
            return Bytes::copy_from_slice(bytes);
        }
        if self.chunk.capacity() < bytes.len() {
            self.chunk = BytesMut::with_capacity(CHUNK);
        }
        self.chunk.extend_from_slice(bytes);
        self.chunk.split().freeze()
    }

    /// A copy of the message.
    pub fn record(&mut self, message: &Message<'_>, headers: bool) -> Record {
        Record {
            offset: message.offset(),
            timestamp_ms: message.timestamp_ms(),
            key: message.key().map(|key| self.keep(key)),
            value: message.value().map(|value| self.keep(value)),
            headers: if headers { message.headers() } else { Headers::new() },
        }
    }
}
