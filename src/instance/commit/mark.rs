//! The metadata of a committed position (protocol P5): `<producer> <number> <address> [released] [format=<n>]`.
//!
//! Further words may follow in later versions; who does not know them passes over them. A version whose
//! marks cannot be understood without knowing more says `format=<n>`.

use std::fmt;

/// The newest format of marks that this build reads; it is the one without a word for it.
pub const FORMAT: u32 = 0;

/// Who committed a position, in which commit, where its owner answers, and whether it was given back in
/// good order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The transactional id.
    pub producer: String,
    /// Rises with each commit of the id; 0 is the claim of a partition.
    pub number: u64,
    /// `host:port` of the owner's HTTP side.
    pub address: String,
    /// The owner gave the partition back: nothing of its transactions can be open.
    pub released: bool,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = if self.address.is_empty() { "-" } else { &self.address };
        write!(f, "{} {} {address}", self.producer, self.number)?;
        if self.released { f.write_str(" released") } else { Ok(()) }
    }
}

impl Mark {
    /// Reads metadata; `None` when it is not ours.
    pub fn parse(metadata: &str) -> Option<Mark> {
        let mut words = metadata.split(' ');
        let (producer, number, address) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
        let released = words.any(|word| word == "released");
        let address = if address == "-" { String::new() } else { address.to_owned() };
        Some(Mark { producer: producer.to_owned(), number, address, released })
    }

    /// The format that the metadata says it has, where that is newer than this build reads.
    pub fn newer(metadata: &str) -> Option<u32> {
        let format = metadata.split(' ').find_map(|word| word.strip_prefix("format="))?;
        format.parse().ok().filter(|format| *format > FORMAT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_back() {
        for (address, released) in [("127.0.0.1:8080", false), ("", true)] {
            let mark = Mark { producer: "app-x-1".into(), number: 9, address: address.into(), released };
            let text = mark.to_string();
            assert_eq!(Mark::parse(&text), Some(mark.clone()));
            assert_eq!(Mark::parse(&format!("{text} of-a-later-version x=1")), Some(mark), "further words");
            assert_eq!(Mark::newer(&text), None);
        }
        for foreign in ["", "a", "a 1", "a x b"] {
            assert_eq!(Mark::parse(foreign), None, "{foreign:?}");
        }
        assert_eq!(Mark::newer("a 1 b format=0"), None);
        assert_eq!(Mark::newer("a b format=1"), Some(1));
    }
}
