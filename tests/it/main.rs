//! Tests of everything that needs no Kafka, in one binary.

mod codec;
mod stamp;
mod tidy;
