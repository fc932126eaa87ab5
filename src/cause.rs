//! Why something became a dead letter: the stable words of its header `tidegate_cause`.

use std::fmt;
use std::str::FromStr;

/// The cause of a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// The source record is not of the configured format.
    Undecodable,
    /// The source record has no key, or an empty one.
    EmptyKey,
    /// The key is over 1 KiB.
    KeyTooLong,
    /// The key in the value differs from that of the record.
    KeyMismatch,
    /// Neither ADD nor REMOVE.
    UnknownAction,
    /// The sequence's header is missing or malformed.
    NoSequence,
    /// The sequence is too far above the greatest so far.
    SequenceJump,
    /// The sequence was promised not to come any more.
    TooLate,
    /// The event is at or below the horizon.
    BeforeHorizon,
    /// The handler said so.
    Rejected,
    /// All tries failed.
    Exhausted,
    /// A child's key is empty or over 1 KiB.
    BadChild,
    /// More children than `cascade.max_children`.
    TooManyChildren,
    /// The event is deeper than `cascade.max_depth`.
    TooDeep,
    /// What the event leads to does not fit into a record.
    TooLarge,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Cause; 15] = [
        Cause::Undecodable,
        Cause::EmptyKey,
        Cause::KeyTooLong,
        Cause::KeyMismatch,
        Cause::UnknownAction,
        Cause::NoSequence,
        Cause::SequenceJump,
        Cause::TooLate,
        Cause::BeforeHorizon,
        Cause::Rejected,
        Cause::Exhausted,
        Cause::BadChild,
        Cause::TooManyChildren,
        Cause::TooDeep,
        Cause::TooLarge,
    ];

    /// Whether it is the sequencer's: of a source record that became no event.
    pub fn is_of_record(self) -> bool {
        use Cause::{EmptyKey, KeyMismatch, KeyTooLong, NoSequence, SequenceJump, TooLate, Undecodable, UnknownAction};
        matches!(
            self,
            Undecodable | EmptyKey | KeyTooLong | KeyMismatch | UnknownAction | NoSequence | SequenceJump | TooLate
        )
    }

    /// The stable word, as it stands in the header and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Undecodable => "undecodable",
            Cause::EmptyKey => "empty_key",
            Cause::KeyTooLong => "key_too_long",
            Cause::KeyMismatch => "key_mismatch",
            Cause::UnknownAction => "unknown_action",
            Cause::NoSequence => "no_sequence",
            Cause::SequenceJump => "sequence_jump",
            Cause::TooLate => "too_late",
            Cause::BeforeHorizon => "before_horizon",
            Cause::Rejected => "rejected",
            Cause::Exhausted => "exhausted",
            Cause::BadChild => "bad_child",
            Cause::TooManyChildren => "too_many_children",
            Cause::TooDeep => "too_deep",
            Cause::TooLarge => "too_large",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The word is none of the causes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown cause: {0:?}")]
pub struct UnknownCause(String);

impl FromStr for Cause {
    type Err = UnknownCause;

    fn from_str(word: &str) -> Result<Cause, UnknownCause> {
        Cause::ALL.into_iter().find(|cause| cause.as_str() == word).ok_or_else(|| UnknownCause(word.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_back() {
        for cause in Cause::ALL {
            assert_eq!(cause.as_str().parse(), Ok(cause));
        }
        assert!("no such".parse::<Cause>().is_err());
    }
}
