//! Attacks S1 to S3 of `tidegate::stamp`: the order of stamps is that of the serial reference.

use bytes::Bytes;
use proptest::prelude::*;
use tidegate::config::Cascade;
use tidegate::event::{Action, Event, StampedEvent};
use tidegate::handler::Outcome;
use tidegate::reference;
use tidegate::stamp::{MAX_DEPTH, SEQUENCE_LIMIT, Stamp};

fn stamps() -> impl Strategy<Value = Stamp> {
    // Small numbers make equal prefixes likely, great ones reach every byte.
    let element = || prop_oneof![0u32..3, any::<u32>()];
    let sequence = prop_oneof![0u64..3, 0..SEQUENCE_LIMIT];
    let path = prop_oneof![
        9 => prop::collection::vec(element(), 0..5),
        1 => prop::collection::vec(element(), MAX_DEPTH - 1..=MAX_DEPTH),
    ];
    (prop_oneof![Just(0u8), any::<u8>()], sequence, element(), path).prop_map(|(epoch, sequence, generation, path)| {
        Stamp { generation, path: path.into(), ..Stamp::root(epoch, sequence) }
    })
}

fn encoded(stamp: &Stamp) -> Vec<u8> {
    let mut bytes = Vec::new();
    stamp.encode(&mut bytes);
    bytes
}

fn event() -> Event {
    Event { key: Bytes::from_static(b"k"), action: Action::Add, payload: None }
}

proptest! {
    /// S1, S2: what the reference takes one after the other has ascending, never equal stamps.
    #[test]
    fn the_order_of_stamps_is_that_of_the_serial_reference(
        primaries in 1u64..6,
        fan_out in prop::collection::vec(0usize..4, 1..120),
    ) {
        let primaries = (0..primaries).map(|sequence| StampedEvent {
            event: event(),
            stamp: Stamp::root(0, sequence),
            origin: Bytes::new(),
            retry: 0,
        });
        let (mut seen, mut fan_out) = (Vec::new(), fan_out.into_iter());
        let left = reference::run(primaries, &Cascade::default(), |event| {
            seen.push(event.stamp.clone());
            Some(Outcome { value: None, children: vec![self::event(); fan_out.next().unwrap_or(0)] })
        });
        prop_assert!(seen.is_sorted_by(|earlier, later| earlier < later), "{seen:?}");
        prop_assert_eq!(&left.state[&b"k"[..]].0, seen.last().unwrap(), "the last event wins");
    }

    /// S3
    #[test]
    fn encoded_stamps_compare_as_stamps_do(a in stamps(), b in stamps()) {
        prop_assert_eq!(encoded(&a).cmp(&encoded(&b)), a.cmp(&b));
        prop_assert_eq!(a == b, encoded(&a) == encoded(&b), "S2");
    }

    /// A child is after its parent and before all that is after the parent's cascade.
    #[test]
    fn a_child_stands_between_its_parent_and_the_next_root(parent in stamps(), index: u32) {
        prop_assume!(parent.depth() < MAX_DEPTH);
        let child = parent.child(index);
        prop_assert!(parent < child);
        let next = Stamp { sequence: parent.sequence.saturating_add(1), ..Stamp::default() };
        prop_assert!(next.sequence == parent.sequence || child < next);
        prop_assert_eq!(child.depth(), parent.depth() + 1);
    }

    #[test]
    fn bytes_are_read_back(stamp in stamps()) {
        let mut bytes = encoded(&stamp);
        prop_assert_eq!(Stamp::decode(&bytes), Some(stamp));
        bytes.push(0);
        prop_assert_eq!(Stamp::decode(&bytes), None);
        bytes.truncate(bytes.len() - 2);
        prop_assert_eq!(Stamp::decode(&bytes), None);
    }

    #[test]
    fn text_is_read_back(stamp in stamps()) {
        prop_assert_eq!(stamp.to_string().parse(), Ok(stamp));
    }

    #[test]
    fn garbage_is_no_stamp_and_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..60), text in "[0-9eg:./+-]{0,20}") {
        if let Some(stamp) = Stamp::decode(&bytes) {
            prop_assert_eq!(encoded(&stamp), bytes);
        }
        if let Ok(stamp) = text.parse::<Stamp>() {
            prop_assert_eq!(stamp.to_string().parse(), Ok(stamp));
        }
    }
}

#[test]
fn texts_as_documented() {
    let stamp = |text: &str| text.parse::<Stamp>().unwrap();
    assert_eq!(stamp("57"), Stamp::root(0, 57));
    assert_eq!(stamp("57/0/3"), Stamp::root(0, 57).child(0).child(3));
    assert_eq!(stamp("57.g2/0/3"), Stamp { generation: 2, ..Stamp::root(0, 57) }.child(0).child(3));
    assert_eq!(stamp("e1:57"), Stamp::root(1, 57));
    for text in ["", "/", "57/", "57/-1", "+57", "e256:1", "e1", "57.g", "57.g4294967296", "72057594037927936", " 57"] {
        assert!(text.parse::<Stamp>().is_err(), "{text:?}");
    }
    assert!(stamp("57.g2") < stamp("58"), "a later primary beats a replay");
    assert!(stamp("57/9/9") < stamp("57.g1"), "a replay beats the original cascade");
}
