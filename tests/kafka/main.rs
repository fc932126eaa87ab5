//! The log port and whole instances on a real Kafka broker.

mod appender;
mod broker;
mod cluster;
mod kit;
mod log;
mod members;
mod outage;
mod speed;
