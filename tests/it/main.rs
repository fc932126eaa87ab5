//! Tests of everything that needs no Kafka, in one binary.

mod codec;
mod embedded_log;
mod stamp;
mod tidy;
