//! What the one writer of a thread's stores is to do (R8).

use std::sync::Arc;

use bytes::Bytes;

use super::Input;
use crate::store::Store;
use crate::store::schema::Checkpoint;
use crate::task::overlay::Entries;

/// What is to be written into a store.
#[derive(Clone, Debug)]
pub struct Flush {
    /// The task's partition.
    pub partition: i32,
    /// The task's incarnation.
    pub incarnation: u64,
    /// The store.
    pub store: Arc<Store>,
    /// Committed entries.
    pub entries: Arc<Entries>,
    /// The bookkeeping, when it changed.
    pub bookkeeping: Option<Bytes>,
    /// The place in the changelog that all this covers.
    pub checkpoint: Checkpoint,
    /// Also onto the disk: the partition is given back.
    pub durable: bool,
}

/// Which markers are to be found.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// The task's partition.
    pub partition: i32,
    /// The task's incarnation.
    pub incarnation: u64,
    /// The store.
    pub store: Arc<Store>,
    /// Those at or below this sequence.
    pub horizon: u64,
    /// From behind this row on.
    pub after: Vec<u8>,
    /// Among so many rows.
    pub at_most: usize,
}

impl Sweep {
    /// Looks, and says what the engine is to be told.
    pub fn carry_out(self) -> Input {
        let Sweep { partition, incarnation, store, horizon, after, at_most } = self;
        Input::Swept { partition, incarnation, result: store.markers(horizon, &after, at_most) }
    }
}
