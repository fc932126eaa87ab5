//! Tests on the embedded log, most of them through the binary.

mod cli;
mod http;
mod running;
