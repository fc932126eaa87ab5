//! Retries of dead letters: what the open record in `<app>-progress` tells of one, and the event that begins it.
//!
//! M1: the mark stands on the record that begins a retry and on no other: children inherit the number alone, and what
//!     fails again becomes a dead letter without it.

use bytes::{Bytes, BytesMut};
use prost::Message;
use prost::encoding::encoded_len_varint;

use crate::event::{DecodeError, Field, Fields, StampedEvent, put_bytes};
use crate::proto;

/// The field of [`proto::StampedEvent`] that is the mark.
const MARK: u32 = 6;

/// Where a dead letter stands: partition and offset of the dead-letter topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Letter {
    /// Its partition: that of its key, as everywhere.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
}

/// A dead letter that is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Retry {
    /// The dead letter.
    pub letter: Letter,
    /// Tells this retry from every other of the same dead letter.
    pub nonce: u64,
    /// Also where the dead letter has been retried before.
    pub forced: bool,
    /// The cascade: its root's sequence,
    pub sequence: u64,
    /// its generation,
    pub generation: u32,
    /// and the number of the retry among those of this sequence and generation, from 1; 0 = sent as a new event.
    pub number: u32,
}

impl Retry {
    /// The value of the record that begins the retry: the event with the mark.
    pub fn mark(&self, event: &StampedEvent) -> Bytes {
        let Letter { partition, offset } = self.letter;
        let mark = proto::Retry { partition, offset, nonce: self.nonce, forced: self.forced, ..Default::default() };
        let mut value = BytesMut::with_capacity(event.weight() + mark.encoded_len() + encoded_len_varint(u64::MAX));
        event.encode(&mut value);
        put_bytes(&mut value, MARK, &mark.encode_to_vec());
        value.freeze()
    }

    /// The retry that the record of this value begins, if it begins one. `event` is what stands in it.
    ///
    /// # Errors
    /// [`DecodeError::Malformed`] for a mark that cannot be read.
    pub fn begun_by(event: &StampedEvent, value: Bytes) -> Result<Option<Retry>, DecodeError> {
        if event.retry == 0 {
            return Ok(None);
        }
        let mut fields = Fields::new(value);
        while let Some((tag, field)) = fields.next()? {
            let (MARK, Field::Bytes(mark)) = (tag, field) else { continue };
            let mark = proto::Retry::decode(mark)?;
            let (sequence, generation, number) = (event.stamp.sequence, event.stamp.generation, event.retry);
            return Ok(Some(Retry { sequence, generation, number, ..mark.into() }));
        }
        Ok(None)
    }
}

impl From<proto::Retry> for Retry {
    fn from(retry: proto::Retry) -> Retry {
        let proto::Retry { partition, offset, nonce, forced, sequence, generation, number } = retry;
        Retry { letter: Letter { partition, offset }, nonce, forced, sequence, generation, number }
    }
}

impl From<&Retry> for proto::Retry {
    fn from(retry: &Retry) -> proto::Retry {
        let Retry { letter: Letter { partition, offset }, nonce, forced, sequence, generation, number } = *retry;
        proto::Retry { partition, offset, nonce, forced, sequence, generation, number }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Action, Event};

    #[test]
    fn a_mark_stands_on_one_record_and_hides_nothing_of_the_event() {
        let event = Event { key: "k".into(), action: Action::Add, payload: Some("p".into()) };
        let stamp = "e1:5.g2/0/3".parse().unwrap();
        let event = StampedEvent { event, stamp, origin: Bytes::from_static(b"\x08\x01"), retry: 7 };
        let retry = Retry {
            letter: Letter { partition: 3, offset: 1 << 40 },
            nonce: u64::MAX - 1,
            forced: true,
            sequence: event.stamp.sequence,
            generation: 2,
            number: 7,
        };
        let value = retry.mark(&event);
        assert_eq!(StampedEvent::decode("k".into(), value.clone()), Ok(event.clone()));
        assert_eq!(Retry::begun_by(&event, value), Ok(Some(retry)));
        assert_eq!(Retry::from(proto::Retry::from(&retry)), retry);
        // M1: an event of the same retry further down.
        let mut value = BytesMut::new();
        event.encode(&mut value);
        assert_eq!(Retry::begun_by(&event, value.freeze()), Ok(None));
    }
}
