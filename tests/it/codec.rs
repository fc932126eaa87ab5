//! The codecs written by hand against the generated types: the same bytes, both ways.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use prost::Message;
use tidegate::bookkeeping;
use tidegate::counts;
use tidegate::entry::Entry;
use tidegate::event::{Action, DecodeError, Event, FORMAT_VERSION, StampedEvent, encode_origin};
use tidegate::proto;
use tidegate::stamp::Stamp;

fn stamps() -> impl Strategy<Value = Stamp> {
    let number = || prop_oneof![0u32..3, any::<u32>()];
    (prop_oneof![0u64..3, any::<u64>()], number(), prop::collection::vec(number(), 0..6))
        .prop_map(|(sequence, generation, path)| Stamp { sequence, generation, path: path.into() })
}

fn bytes(length: std::ops::Range<usize>) -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), length).prop_map(Bytes::from)
}

fn actions() -> impl Strategy<Value = Action> {
    prop_oneof![Just(Action::Add), Just(Action::Remove)]
}

/// An origin as it is encoded, and as it is.
fn origins() -> impl Strategy<Value = (Bytes, proto::Origin)> {
    ("[a-z.]{0,12}", 0i32..9, any::<i64>(), any::<i64>()).prop_map(|(topic, partition, offset, timestamp_ms)| {
        let encoded = encode_origin(&topic, partition, offset, timestamp_ms);
        (encoded, proto::Origin { topic, partition, offset, timestamp_ms })
    })
}

fn number(action: Action) -> i32 {
    match action {
        Action::Add => proto::Action::Add as i32,
        Action::Remove => proto::Action::Remove as i32,
    }
}

prop_compose! {
    fn events()(
        key in bytes(1..20),
        stamp in stamps(),
        action in actions(),
        payload in prop::option::of(bytes(0..40)),
        origin in origins(),
        retry in prop_oneof![Just(0u32), any::<u32>()],
    ) -> (StampedEvent, proto::StampedEvent) {
        let message = proto::StampedEvent {
            stamp: Some((&stamp).into()),
            action: number(action),
            payload: payload.clone(),
            origin: Some(origin.1),
            retry,
            begins: None,
            format_version: 0,
        };
        (StampedEvent { event: Event { key, action, payload }, stamp, origin: origin.0, retry }, message)
    }
}

prop_compose! {
    fn entries()(
        stamp in stamps(),
        action in actions(),
        value in prop::option::of(bytes(0..40)),
        origin in origins(),
    ) -> (Entry, proto::Entry) {
        let message = proto::Entry {
            stamp: Some((&stamp).into()),
            action: number(action),
            value: value.clone(),
            origin: Some(origin.1),
            format_version: 0,
        };
        (Entry { stamp, action, value, origin: origin.0 }, message)
    }
}

/// Fields that a later version might add, of every wire type.
fn unknown_fields() -> Vec<u8> {
    let mut fields = vec![0xa0, 0x06, 0x96, 0x01]; // 100: varint
    fields.extend([0xaa, 0x06, 2, b'h', b'i']); // 101: bytes
    fields.extend([0xb1, 0x06, 1, 2, 3, 4, 5, 6, 7, 8]); // 102: 64 bits
    fields.extend([0xbd, 0x06, 1, 2, 3, 4]); // 103: 32 bits
    fields
}

fn with_version(mut message: Vec<u8>, version: u32) -> Bytes {
    prost::encoding::uint32::encode(15, &version, &mut message);
    message.into()
}

proptest! {
    #[test]
    fn events_are_the_generated_type((event, message) in events()) {
        let mut written = BytesMut::new();
        event.encode(&mut written);
        prop_assert_eq!(&written[..], &message.encode_to_vec()[..]);
        prop_assert_eq!(proto::StampedEvent::decode(written.freeze()).unwrap(), message.clone());
        let key = event.event.key.clone();
        prop_assert_eq!(StampedEvent::decode(key, message.encode_to_vec().into()), Ok(event.clone()));
        prop_assert_eq!(event.clone().detached(), event);
    }

    #[test]
    fn entries_are_the_generated_type((entry, message) in entries()) {
        let mut written = BytesMut::new();
        entry.encode(&mut written);
        prop_assert_eq!(&written[..], &message.encode_to_vec()[..]);
        prop_assert_eq!(proto::Entry::decode(written.freeze()).unwrap(), message.clone());
        prop_assert_eq!(Entry::decode(message.encode_to_vec().into()), Ok(entry));
    }

    #[test]
    fn fields_of_a_later_version_are_ignored((event, message) in events(), (entry, state) in entries()) {
        let with_unknown = |message: Vec<u8>| Bytes::from([unknown_fields(), message, unknown_fields()].concat());
        let key = event.event.key.clone();
        prop_assert_eq!(StampedEvent::decode(key, with_unknown(message.encode_to_vec())), Ok(event));
        prop_assert_eq!(Entry::decode(with_unknown(state.encode_to_vec())), Ok(entry));
    }

    #[test]
    fn a_newer_format_is_refused((event, message) in events(), (_, state) in entries(), above in 1u32..) {
        let version = FORMAT_VERSION.saturating_add(above);
        let newer = DecodeError::Newer(version);
        let key = event.event.key;
        prop_assert_eq!(StampedEvent::decode(key, with_version(message.encode_to_vec(), version)), Err(newer));
        prop_assert_eq!(Entry::decode(with_version(state.encode_to_vec(), version)), Err(DecodeError::Newer(version)));
    }

    #[test]
    fn what_is_cut_off_or_garbage_never_panics((event, message) in events(), cut in any::<prop::sample::Index>(), noise in bytes(0..80)) {
        let whole = Bytes::from(message.encode_to_vec());
        let part = whole.slice(..cut.index(whole.len()));
        for value in [part, noise] {
            let _ = Entry::decode(value.clone());
            let _ = StampedEvent::decode(event.event.key.clone(), value);
        }
    }
}

#[test]
fn bookkeeping_and_counts_ignore_later_fields_and_refuse_later_formats() {
    let later = |message: Vec<u8>| Bytes::from([unknown_fields(), message].concat());
    let snapshot = bookkeeping::encode(7, 5, &[1, 2], Some(3));
    let read = bookkeeping::decode(later(snapshot.to_vec())).unwrap();
    assert_eq!((read.position, read.done_base, &read.done_runs[..]), (7, 5, &[1, 2][..]));
    assert_eq!(bookkeeping::decode(with_version(snapshot.to_vec(), 1)), Err(DecodeError::Newer(1)));
    let counts = proto::Progress { last: true, ..Default::default() };
    assert_eq!(counts::decode(later(counts.encode_to_vec())), Ok(counts.clone()));
    assert_eq!(counts::decode(with_version(counts.encode_to_vec(), 1)), Err(DecodeError::Newer(1)));
}

/// A newer one is never taken for a broken one: events that cannot be read become dead letters.
#[test]
fn what_cannot_be_read_and_says_that_it_is_newer_is_newer() {
    // Field 1 has one byte that is no message, and no number either.
    let unreadable = with_version(vec![0x0a, 1, 0xff], 3);
    let newer = DecodeError::Newer(3);
    assert_eq!(StampedEvent::decode(Bytes::from_static(b"k"), unreadable.clone()), Err(newer));
    assert_eq!(Entry::decode(unreadable.clone()), Err(DecodeError::Newer(3)));
    assert_eq!(bookkeeping::decode(unreadable.clone()), Err(DecodeError::Newer(3)));
    assert_eq!(counts::decode(unreadable.clone()), Err(DecodeError::Newer(3)));
    // The same without the word about it.
    let broken = unreadable.slice(..3);
    assert!(matches!(StampedEvent::decode(Bytes::from_static(b"k"), broken.clone()), Err(DecodeError::Malformed(_))));
    assert!(matches!(Entry::decode(broken.clone()), Err(DecodeError::Malformed(_))));
    assert!(matches!(bookkeeping::decode(broken.clone()), Err(DecodeError::Malformed(_))));
    assert!(matches!(counts::decode(broken), Err(DecodeError::Malformed(_))));
}

#[test]
fn what_no_event_can_be_is_malformed() {
    let key = Bytes::from_static(b"k");
    let stamp = proto::Stamp { sequence: 1, ..Default::default() };
    let encoded = |message: &proto::StampedEvent| Bytes::from(message.encode_to_vec());
    let malformed = |key: &Bytes, message: &proto::StampedEvent| {
        matches!(StampedEvent::decode(key.clone(), encoded(message)), Err(DecodeError::Malformed(_)))
    };
    let whole = proto::StampedEvent { stamp: Some(stamp.clone()), action: 1, ..Default::default() };
    assert!(!malformed(&key, &whole));
    assert!(malformed(&key, &proto::StampedEvent { stamp: None, ..whole.clone() }), "no stamp");
    assert!(malformed(&key, &proto::StampedEvent { action: 0, ..whole.clone() }), "no action");
    assert!(malformed(&key, &proto::StampedEvent { action: 9, ..whole.clone() }), "unknown action");
    assert!(malformed(&Bytes::new(), &whole), "an empty key");
    assert!(malformed(&Bytes::from(vec![b'k'; 1025]), &whole), "a key over 1 KiB");
    let deep = Some(proto::Stamp { path: vec![0; 256], ..stamp });
    assert!(malformed(&key, &proto::StampedEvent { stamp: deep, ..whole }), "too deep a path");
}
