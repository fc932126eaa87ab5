//! Step 4 of 8: the gate decides whether an event is newer, a duplicate or superseded.
//!
//! Pure: a stamp and what the key holds give a decision.

use std::cmp::Ordering;

use crate::config::Superseded;
use crate::stamp::Stamp;

/// What is to be done with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is newer than all that the key has received: run, write, spawn.
    Apply,
    /// It came too late to change the key, but its children belong into the serial order all the same:
    /// run, spawn, write nothing.
    Expand,
    /// It came too late to change the key, and `processing.superseded = "drop"` leaves it at that: do nothing.
    Drop,
    /// It is the event that the key already holds: its children exist. Do nothing.
    Duplicate,
}

/// Decides for an event of stamp `event` at a key whose greatest stamp is `held`.
pub fn decide(event: &Stamp, held: Option<&Stamp>, superseded: Superseded) -> Decision {
    match held.map_or(Ordering::Greater, |held| event.cmp(held)) {
        Ordering::Greater => Decision::Apply,
        Ordering::Equal => Decision::Duplicate,
        Ordering::Less => match superseded {
            Superseded::Expand => Decision::Expand,
            Superseded::Drop => Decision::Drop,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_contract() {
        let stamp = |text: &str| text.parse::<Stamp>().unwrap();
        for (policy, too_late) in [(Superseded::Expand, Decision::Expand), (Superseded::Drop, Decision::Drop)] {
            let decide = |event, held: Option<&str>| super::decide(&stamp(event), held.map(stamp).as_ref(), policy);
            assert_eq!(decide("5", None), Decision::Apply);
            assert_eq!(decide("5", Some("4/9")), Decision::Apply);
            assert_eq!(decide("5/0", Some("5/0")), Decision::Duplicate);
            assert_eq!(decide("1/0", Some("2")), too_late);
            assert_eq!(decide("5.g1", Some("5/3/3")), Decision::Apply);
        }
    }
}
