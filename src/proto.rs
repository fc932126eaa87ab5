//! The protobuf messages of `proto/`, as generated. The hot path reads and writes two of them
//! ([`crate::event`], [`crate::entry`]) without these types, byte for byte the same.

#![allow(missing_docs, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/tidegate.v1.rs"));
