//! Tests of everything that needs no Kafka, in one binary.

mod cli;
mod codec;
mod doors;
mod embedded_log;
mod engine;
mod guarantee;
mod http;
mod openapi;
mod running;
mod several;
mod stamp;
mod threads;
mod tidy;
