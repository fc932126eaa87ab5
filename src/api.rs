//! The HTTP API below `/api/v1`: state out, events in.

pub mod program;
mod bytes;
mod dead_letters;
mod events;
mod everywhere;
mod frontier;
mod held;
mod instances;
mod keys;
mod openapi;
mod places;
mod query;
mod status;
mod topology;

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::routing::get;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::server::{Front, health};

/// The API's routes; [`crate::server::router`] adds what every server needs.
pub fn routes() -> Router<Front> {
    let (router, document) = described().split_for_parts();
    let document: Arc<str> = Arc::from(describe(document).to_json().expect("a description is JSON"));
    let serve = async move || ([(header::CONTENT_TYPE, "application/json")], document.to_string());
    router.route(DESCRIPTION, get(serve))
}

/// Where the description is served.
const DESCRIPTION: &str = "/api/v1/openapi.json";

/// Every route below `/api/v1` but that of the description; a route comes with its description.
fn described() -> OpenApiRouter<Front> {
    OpenApiRouter::new()
        .routes(routes!(status::status))
        .routes(routes!(status::tasks))
        .routes(routes!(status::in_flight))
        .routes(routes!(topology::topology))
        .routes(routes!(instances::instances))
        .routes(routes!(frontier::frontier))
        .routes(routes!(frontier::root))
        .routes(routes!(events::post))
        .routes(routes!(dead_letters::list))
        .routes(routes!(dead_letters::get))
        .routes(routes!(dead_letters::retry::one))
        .routes(routes!(dead_letters::retry::many))
        .routes(routes!(keys::list))
        .routes(routes!(keys::get))
}

fn describe(document: OpenApi) -> OpenApi {
    let mut document = document;
    document.merge(health::described());
    openapi::complete(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_described() {
        let text = include_str!("api.rs");
        let product = text.split("#[cfg(test)]").next().unwrap();
        assert_eq!(product.matches(".route(").count(), 1, "only the description itself has no description");
        let document = describe(described().into_openapi());
        let paths: Vec<&String> = document.paths.paths.keys().collect();
        assert_eq!(paths.len(), product.matches("routes!(").count() + 4, "health and metrics beside: {paths:?}");
        assert!(paths.iter().all(|path| !path.contains('*')), "{paths:?}");
    }
}
