//! Tests of everything that needs no Kafka, in one binary.

mod books;
mod cli;
mod codec;
mod configuration;
mod docs;
mod dead_letters;
mod doors;
mod embedded_log;
mod parts;
mod guarantee;
mod held_up;
mod http;
mod monitoring;
mod openapi;
mod reset;
mod restoring;
mod running;
mod settled;
mod set_aside;
mod several;
mod stamp;
mod threads;
mod tidy;
mod upgrade;
mod topics;
mod verbs;
