//! Reads all committed records that a partition holds, from its start to its end, outside of any group.

use std::time::Duration;

use super::{Isolation, Log, LogError, Record, TopicPartition};
use crate::clock;

/// How long a read waits for records before it looks again.
const POLL: Duration = Duration::from_millis(100);

/// How long [`Until::Stable`] takes silence behind a record for the end.
const SILENCE: Duration = Duration::from_secs(1);

/// How long the next record may take, where silence is no end.
const PATIENCE: Duration = Duration::from_secs(10);

/// How sure the end has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// All that can be decided at this moment; what an undecided transaction holds up is left out.
    Stable,
    /// Everything that the partition holds now; undecided transactions are waited for.
    End,
}

/// Gives the records to `take`, in order.
///
/// # Errors
/// What the log says, and what `take` says; [`LogError::Retriable`] when nothing comes for long.
pub fn read(
    log: &dyn Log,
    of: &TopicPartition,
    headers: bool,
    until: Until,
    mut take: impl FnMut(Record) -> Result<(), LogError>,
) -> Result<(), LogError> {
    let ends = log.watermarks(of)?;
    let mut reader = log.reader(of, ends.low, Isolation::ReadCommitted, headers)?;
    let mut heard = clock::now();
    while reader.position() < ends.high {
        // A new consumer needs its time for the first record.
        if until == Until::Stable && reader.position() > ends.low && clock::since(heard) > SILENCE {
            break;
        }
        if clock::since(heard) > PATIENCE {
            let (at, high) = (reader.position(), ends.high);
            return Err(LogError::Retriable(format!("{of} gives nothing from {at} to {high}, its end")));
        }
        for record in reader.next(POLL)? {
            heard = clock::now();
            take(record)?;
        }
    }
    Ok(())
}
