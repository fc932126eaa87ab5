//! A stamp is an event's place in the serial order.
//!
//! S1: the order of stamps is the order in which one thread with one queue would take the events:
//!     by sequence, generation, depth, then path.
//! S2: two different events never have the same stamp; an equal stamp is the same event again.
//! S3: encoded stamps compare with `memcmp` as the stamps do.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use smallvec::SmallVec;

/// The greatest sequence that a record may carry, exclusive; the 8 bits above are the epoch.
pub const SEQUENCE_LIMIT: u64 = 1 << 56;

/// The greatest depth that a stamp can have: the depth is one byte of its encoding.
pub const MAX_DEPTH: usize = 255;

/// The child indices from the root down; empty for a root.
pub type Path = SmallVec<[u32; 4]>;

/// An event's place in the serial order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Stamp {
    /// The root's place in the order received; the upper 8 bits are the epoch.
    pub sequence: u64,
    /// 0 for original processing, higher for a replay.
    pub generation: u32,
    /// The event's own index among its siblings, after its parent's path.
    pub path: Path,
}

impl Stamp {
    /// The stamp of a primary event. `sequence` is below 2^56.
    pub fn root(epoch: u8, sequence: u64) -> Stamp {
        debug_assert!(sequence < SEQUENCE_LIMIT);
        Stamp { sequence: (u64::from(epoch) << 56) | sequence, generation: 0, path: Path::new() }
    }

    /// The stamp of this event's child number `index`.
    pub fn child(&self, index: u32) -> Stamp {
        let mut path = Path::with_capacity(self.path.len() + 1);
        path.extend_from_slice(&self.path);
        path.push(index);
        Stamp { sequence: self.sequence, generation: self.generation, path }
    }

    /// 0 for a root.
    pub fn depth(&self) -> usize {
        self.path.len()
    }

    /// The part of the sequence above its 56 bits.
    pub fn epoch(&self) -> u8 {
        (self.sequence >> 56) as u8
    }

    /// Appends the encoding that compares with `memcmp` as stamps do (S3).
    ///
    /// # Panics
    /// If the path is longer than [`MAX_DEPTH`].
    pub fn encode(&self, out: &mut Vec<u8>) {
        let depth = u8::try_from(self.path.len()).expect("S3: cascade.max_depth is at most 255");
        out.reserve(13 + 4 * self.path.len());
        out.extend_from_slice(&self.sequence.to_be_bytes());
        out.extend_from_slice(&self.generation.to_be_bytes());
        out.push(depth);
        for element in &self.path {
            out.extend_from_slice(&element.to_be_bytes());
        }
    }

    /// Reads what [`Stamp::encode`] wrote; `None` unless `bytes` is exactly one stamp.
    pub fn decode(bytes: &[u8]) -> Option<Stamp> {
        let (sequence, rest) = bytes.split_first_chunk::<8>()?;
        let (generation, rest) = rest.split_first_chunk::<4>()?;
        let (&depth, rest) = rest.split_first()?;
        let (elements, []) = rest.as_chunks::<4>() else { return None };
        if elements.len() != usize::from(depth) {
            return None;
        }
        Some(Stamp {
            sequence: u64::from_be_bytes(*sequence),
            generation: u32::from_be_bytes(*generation),
            path: elements.iter().map(|element| u32::from_be_bytes(*element)).collect(),
        })
    }
}

impl Ord for Stamp {
    fn cmp(&self, other: &Stamp) -> Ordering {
        self.sequence
            .cmp(&other.sequence)
            .then(self.generation.cmp(&other.generation))
            .then(self.path.len().cmp(&other.path.len()))
            .then_with(|| self.path.cmp(&other.path))
    }
}

impl PartialOrd for Stamp {
    fn partial_cmp(&self, other: &Stamp) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A sequence as people see it: `57`, or `e1:57` in epoch 1.
pub struct SequenceText(pub u64);

impl fmt::Display for SequenceText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 >> 56 {
            0 => write!(f, "{}", self.0),
            epoch => write!(f, "e{epoch}:{}", self.0 & (SEQUENCE_LIMIT - 1)),
        }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SequenceText(self.sequence).fmt(f)?;
        if self.generation > 0 {
            write!(f, ".g{}", self.generation)?;
        }
        self.path.iter().try_for_each(|element| write!(f, "/{element}"))
    }
}

/// The text is not a stamp such as `57`, `57/0/3`, `57.g2/0/3` or `e1:57`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a stamp: {0:?} (expected a form such as 57, 57/0/3, 57.g2/0/3 or e1:57)")]
pub struct InvalidStamp(String);

impl FromStr for Stamp {
    type Err = InvalidStamp;

    fn from_str(text: &str) -> Result<Stamp, InvalidStamp> {
        parse(text).ok_or_else(|| InvalidStamp(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Stamp> {
    let mut parts = text.split('/');
    let head = parts.next()?;
    let (epoch, head) = match head.strip_prefix('e') {
        Some(rest) => {
            let (epoch, rest) = rest.split_once(':')?;
            (number::<u8>(epoch)?, rest)
        }
        None => (0, head),
    };
    let (sequence, generation) = match head.split_once(".g") {
        Some((sequence, generation)) => (number::<u64>(sequence)?, number(generation)?),
        None => (number::<u64>(head)?, 0),
    };
    let path = parts.map(number).collect::<Option<Path>>()?;
    if sequence >= SEQUENCE_LIMIT || path.len() > MAX_DEPTH {
        return None;
    }
    Some(Stamp { sequence: (u64::from(epoch) << 56) | sequence, generation, path })
}

/// Decimal digits only: `FromStr` of the integers would also take a sign.
fn number<T: FromStr>(text: &str) -> Option<T> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}
