//! `/livez`, `/readyz`, `/startupz`: 200, or 503 with the checks that fail; `?verbose` lists all of them.
//!
//! Live never depends on the log: an instance that waits for its broker must not be killed for it.
//! Ready is an instance that has been running once, has no trouble and is not going down; it stays
//! ready through a rebalance, because all instances go through one at the same time.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use utoipa::{OpenApi, ToSchema};

use super::Front;
use super::error::ApiError;
use crate::instance::view::Status;

/// How it is.
#[derive(ToSchema)]
#[allow(dead_code, reason = "describes what `answer` makes")]
struct Health {
    /// `ok` or `failed`.
    status: String,
    /// The checks that fail; with `verbose` all of them.
    checks: Option<Vec<HealthCheck>>,
}

/// One check.
#[derive(ToSchema)]
#[allow(dead_code, reason = "describes what `answer` makes")]
struct HealthCheck {
    /// Its name.
    name: String,
    /// Whether all is well.
    ok: bool,
    /// What is wrong.
    message: Option<String>,
}

#[derive(OpenApi)]
#[openapi(paths(live, startup, ready, super::metrics_page))]
struct Described;

/// The description of what every server has beside its doors.
pub fn described() -> utoipa::openapi::OpenApi {
    Described::openapi()
}

/// A check's name, and what is wrong if anything is.
struct Check(&'static str, Option<String>);

/// Whether the process is to be left alone; never depends on the log.
#[utoipa::path(
    get,
    path = "/livez",
    tag = "health",
    params(("verbose" = Option<bool>, Query, description = "All checks, not only those that fail")),
    responses((status = 200, body = Health), (status = 503, body = Health))
)]
pub async fn live(State(front): State<Front>, RawQuery(query): RawQuery) -> Response {
    let failed = front.instance().is_ok_and(|instance| instance.status().state == "failed");
    answer("livez", vec![Check("engine", failed.then(|| "the engine has failed".into()))], query)
}

/// Whether the instance has been running once.
#[utoipa::path(
    get,
    path = "/startupz",
    tag = "health",
    params(("verbose" = Option<bool>, Query, description = "All checks, not only those that fail")),
    responses((status = 200, body = Health), (status = 503, body = Health))
)]
pub async fn startup(State(front): State<Front>, RawQuery(query): RawQuery) -> Response {
    let status = front.instance().map_or_else(|_| stopping(), |instance| instance.status());
    answer("startupz", vec![started(&front, &status)], query)
}

/// Whether the instance can be given work and questions.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "health",
    params(("verbose" = Option<bool>, Query, description = "All checks, not only those that fail")),
    responses((status = 200, body = Health), (status = 503, body = Health))
)]
pub async fn ready(State(front): State<Front>, RawQuery(query): RawQuery) -> Response {
    answer("readyz", ready_checks(&front), query)
}

/// Whether `/readyz` answers 200.
pub(super) fn is_ready(front: &Front) -> bool {
    ready_checks(front).iter().all(|Check(_, wrong)| wrong.is_none())
}

fn ready_checks(front: &Front) -> Vec<Check> {
    let Ok(instance) = front.instance() else {
        return vec![Check("state", Some("the instance is stopping".into()))];
    };
    let status = instance.status();
    let going = matches!(status.state, "stopping" | "failed").then(|| format!("the instance is {}", status.state));
    let troubles = (!status.troubles.is_empty()).then(|| status.troubles.join("; "));
    vec![started(front, &status), Check("state", going), Check("troubles", troubles)]
}

fn stopping() -> Status {
    Status { state: "stopping", ..Status::default() }
}

fn started(front: &Front, status: &Status) -> Check {
    let restores = status.restores.as_ref().map(|restores| format!(": {restores}")).unwrap_or_default();
    let wrong = (!front.has_started(status.state)).then(|| format!("not yet running: {}{restores}", status.state));
    Check("started", wrong)
}

fn answer(name: &str, checks: Vec<Check>, query: Option<String>) -> Response {
    let verbose = query.is_some_and(|query| query.split('&').any(|part| part == "verbose" || part == "verbose=true"));
    let wrong: Vec<&str> = checks.iter().filter_map(|Check(_, wrong)| wrong.as_deref()).collect();
    let listed: Vec<Value> = checks
        .iter()
        .filter(|Check(_, wrong)| verbose || wrong.is_some())
        .map(|Check(name, wrong)| json!({ "name": name, "ok": wrong.is_none(), "message": wrong }))
        .collect();
    if !wrong.is_empty() {
        return ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", format!("{name}: {}", wrong.join("; ")))
            .hint("/api/v1/status and the instance's log tell more")
            .with("status", "failed")
            .with("checks", listed)
            .into_response();
    }
    let mut body = json!({ "status": "ok" });
    if verbose {
        body["checks"] = listed.into();
    }
    Json(body).into_response()
}
