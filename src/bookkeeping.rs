//! A partition's bookkeeping as it stands in the changelog under the empty key: one snapshot, always whole
//! (`tidegate.v1.Bookkeeping`, protocol P9).

use bytes::Bytes;
use prost::Message;

use crate::event::{DecodeError, check_version, unless_newer};
use crate::proto;

/// A snapshot of the done-set, whose runs are counted from `base`, and of the horizon, written at committed position
/// `position`.
pub fn encode(position: i64, base: i64, runs: &[u64], horizon: Option<u64>) -> Bytes {
    let snapshot =
        proto::Bookkeeping { position, done_base: base, done_runs: runs.to_vec(), horizon, ..Default::default() };
    snapshot.encode_to_vec().into()
}

/// Reads a snapshot.
///
/// # Errors
/// One that cannot be read is fatal: without it records would run again.
pub fn decode(value: Bytes) -> Result<proto::Bookkeeping, DecodeError> {
    let snapshot = proto::Bookkeeping::decode(value.clone()).map_err(|error| unless_newer(error.into(), value))?;
    check_version(u64::from(snapshot.format_version))?;
    Ok(snapshot)
}
