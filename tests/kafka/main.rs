//! The log port and whole instances on a real Kafka broker.

mod acls;
mod appender;
mod broker;
mod chaos;
mod cluster;
mod kit;
mod log;
mod markers;
mod members;
mod outage;
mod rights;
mod secured;
mod security;
mod settled;
mod speed;
mod visit;
