//! The HTTP API below `/api/v1`: state out, events in.

pub mod program;
mod bytes;
mod events;
mod keys;
mod query;
mod status;

use axum::Router;
use axum::routing::get;

use crate::server::Front;

/// The API's routes; [`crate::server::router`] adds what every server needs.
pub fn routes() -> Router<Front> {
    Router::new()
        .route("/api/v1/status", get(status::status))
        .route("/api/v1/tasks", get(status::tasks))
        .route("/api/v1/in-flight", get(status::in_flight))
        .route("/api/v1/events", axum::routing::post(events::post))
        .route("/api/v1/keys", get(keys::list))
        .route("/api/v1/keys/{*key}", get(keys::get))
}
