//! Tests of everything that needs no Kafka, in one binary.

mod embedded_log;
mod tidy;
