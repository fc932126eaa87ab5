//! `GET /api/v1/openapi.json`: the description of the API, made from the very routes that answer.

use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::path::{Operation, Paths};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    Components, Content, InfoBuilder, LicenseBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder,
    SecurityRequirement,
};

/// What an answer says when it is an error.
#[derive(Debug, Serialize, ToSchema)]
pub struct Failure {
    error: FailureDetail,
}

/// Code, message and next step.
#[derive(Debug, Serialize, ToSchema)]
pub struct FailureDetail {
    /// A stable word.
    code: String,
    /// For people.
    message: String,
    /// What the caller can do about it; may be empty.
    hint: String,
}

/// Adds what all calls have in common to what the routes tell of themselves.
pub fn complete(mut document: OpenApi) -> OpenApi {
    document.info = InfoBuilder::new()
        .title("Tidegate")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some("State out, events in. Errors are {\"error\":{\"code\",\"message\",\"hint\"}}."))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").build()))
        .build();
    let token =
        HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("server.token, where it is set")).build();
    let components = document.components.get_or_insert_with(Components::new);
    components.add_security_scheme("token", SecurityScheme::Http(token));
    for name in ["Failure", "FailureDetail"] {
        assert!(components.schemas.contains_key(name), "some route names the schema of errors");
    }
    // axum's name for the rest of a path is none of OpenAPI's.
    let paths = std::mem::replace(&mut document.paths, Paths::new());
    for (path, mut item) in paths.paths {
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            common(operation, path.starts_with("/api/"));
        }
        document.paths.paths.insert(path.replace("{*", "{"), item);
    }
    document
}

fn common(operation: &mut Operation, protected: bool) {
    let failure = Content::new(Some(RefOr::<utoipa::openapi::Schema>::Ref(Ref::from_schema_name("Failure"))));
    let response: Response =
        ResponseBuilder::new().description("An error").content("application/json", failure).build();
    operation.responses.responses.entry("default".into()).or_insert(RefOr::T(response));
    if protected {
        let token = SecurityRequirement::new("token", Vec::<String>::new());
        operation.security = Some(vec![SecurityRequirement::default(), token]);
    }
}
