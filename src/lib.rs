//! Tidegate processes keyed events that are slow and spawn further events, on many instances at once,
//! and leaves the state that **one thread with one queue** would have left.
//!
//! # The path of an event
//!
//! 1. [`sequencer`] takes a primary event from the source topic, gives it its [`stamp`] (its place in
//!    the serial order) and routes it by key to the repartition topic.
//! 2. [`log`] delivers it to the owner of the key's partition.
//! 3. [`task::queue`] holds it until it is the first of its key, in the order of stamps.
//! 4. [`task::gate`] compares its stamp with the one that the key holds: newer, duplicate or superseded.
//! 5. [`handler`] runs: the user's code, many keys at the same time.
//! 6. [`task::execute`] turns the outcome into the key's entry and into children, whose stamps come
//!    right behind their parent's.
//! 7. [`instance::commit`] makes all of it visible in one transaction, with the positions reached; or, without
//!    transactions, in stages that lose nothing.
//! 8. [`store`] takes the committed entries in one batch.
//!
//! Beside it every instance reads what the commits count ([`instance`]'s observer), and [`frontier`] tells what is final:
//!
//! * With sequences in headers, [`marks`] say what can no longer come.
//! * What was final long enough ago is the horizon: [`task::sweep`] finds the markers of removed keys that it has passed,
//!   and they leave the changelog and the [`store`] like entries.
//! * A dead letter that is sent again ([`retry`], accepted in [`instance::retrying`]) enters at step 2 with its old stamp,
//!   and waits before step 3 until the order of the progress topic has decided that it counts.
//!
//! A child is then at step 2 of another task. Between the steps the event is in the hands of
//! [`instance::engine`], the state machine that one engine thread steps. The side path of a partition
//! that changes its owner is [`instance::opening`], [`task::restore`], [`changelog`], [`store`].
//!
//! # Layers
//!
//! A module imports from the layers above its own, never sideways, never back.

// 0: vocabulary, no I/O
pub mod stamp;
pub mod event;
pub mod entry;
pub mod cause;
pub mod json;
pub mod topics;
pub mod clock;
pub mod config;
pub mod metrics;
pub mod proto;
pub mod counts;
pub mod marks;
pub mod retry;
pub mod bookkeeping;
pub mod dead_letter;
pub mod planted;
// 1: one foreign system each
pub mod log;
pub mod store;
pub mod handler;
// 2: the ends of the pipe, and what it is measured by
pub mod sequencer;
pub mod changelog;
pub mod progress;
pub mod output;
pub mod frontier;
pub mod reference;

// 3: one partition
pub mod task;
// 4: one process
pub mod instance;
// 5: shared plumbing of the servers
pub mod server;
// 6: doors
pub mod api;
pub mod cli;

pub use api::program::Tidegate;
