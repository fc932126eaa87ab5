//! The log port on a real Kafka broker.

mod broker;
mod kit;
mod log;
mod members;
mod outage;
mod speed;
