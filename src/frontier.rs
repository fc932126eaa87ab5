//! What is final: which roots are settled, and the sequence up to which everything is.
//!
//! Every instance reads `<app>-progress` and folds it into a [`Book`]; there is no leader to lose. The topic has one
//! partition and its order is causal, because a child can be consumed only once its parent's transaction is
//! visible: in every prefix of it, a root whose every depth sums to zero has nothing pending of what was received
//! (protocol P16).

pub mod book;
mod came;
mod cascades;
#[cfg(test)]
mod cost;
mod dead_letters;
mod horizon;
#[cfg(test)]
mod oracle;
mod retries;
mod runs;
pub mod snapshot;
mod times;

pub use book::{Book, Root, Standing, Unavailable};
pub use retries::Verdict;
