//! How much the server takes on at once, and for how long.
//!
//! B1: what is above a bound is refused at once with 503 `busy`, never queued: a queue would only make
//!     everybody wait. Health and metrics are not counted: they tell how it is when it is busy.
//! B2: calls of other instances, and calls that wait for something, have places of their own: none of them keeps the
//!     others out, and two busy instances never block each other.

use std::sync::Arc;
use std::time::Duration;

use axum::body::HttpBody;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::{Semaphore, watch};

use super::MAX_BODY_BYTES;
use super::error::ApiError;

/// Marks a request that another instance passes on: it is answered here or not at all.
pub const FORWARDED: &str = "tidegate-forwarded";

/// Requests at a time.
const MAX_REQUESTS: usize = 256;

/// Bodies at a time, in KiB.
const MAX_BODIES_KIB: usize = 64 << 10;

/// From the head of a request to its answer, its body included.
pub const REQUEST_WITHIN: Duration = Duration::from_secs(60);

/// The longest time for which a call may ask to wait.
pub const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// Calls that wait, at a time: they cost nothing but their places.
const MAX_WAITING: usize = 1024;

/// What is under way when the instance is told to stop has so long to end: the instance waits for it,
/// and it may itself wait for another instance.
const LAST_REQUESTS_WITHIN: Duration = Duration::from_secs(3);

/// The places for requests.
#[derive(Clone, Debug)]
pub struct Limits {
    own: Arc<Semaphore>,
    forwarded: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
    within: Duration,
    stopping: watch::Receiver<bool>,
}

impl Limits {
    /// All places free, until the instance stops.
    pub fn new(stopping: watch::Receiver<bool>) -> Limits {
        Limits {
            own: Arc::new(Semaphore::new(MAX_REQUESTS)),
            forwarded: Arc::new(Semaphore::new(MAX_REQUESTS)),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            bodies: Arc::new(Semaphore::new(MAX_BODIES_KIB)),
            within: REQUEST_WITHIN,
            stopping,
        }
    }

    /// Resolves when the instance has been stopping for as long as requests may last then.
    async fn is_over(&self) {
        let mut stopping = self.stopping.clone();
        if stopping.wait_for(|stopping| *stopping).await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(LAST_REQUESTS_WITHIN).await;
    }
}

/// Whether another instance passes this request on.
pub fn is_forwarded(headers: &HeaderMap) -> bool {
    headers.contains_key(FORWARDED)
}

/// Runs the request if there is a place for it, and not for ever.
pub async fn limit(State(limits): State<Limits>, request: Request, next: Next) -> Response {
    let waits = request.uri().query().is_some_and(|query| query.split('&').any(|part| part.starts_with("wait=")));
    let (places, within) = match (is_forwarded(request.headers()), waits) {
        (true, _) => (&limits.forwarded, limits.within),
        (false, true) => (&limits.waiting, limits.within + LONGEST_WAIT),
        (false, false) => (&limits.own, limits.within),
    };
    let Ok(_place) = places.try_acquire() else { return busy("requests").into_response() };
    let kib = u32::try_from(body_bytes(&request).div_ceil(1024)).unwrap_or(u32::MAX);
    let Ok(_body) = limits.bodies.try_acquire_many(kib) else { return busy("request bodies").into_response() };
    tokio::select! {
        response = next.run(request) => response,
        () = tokio::time::sleep(within) => too_slow(within).into_response(),
        () = limits.is_over() => stopping().into_response(),
    }
}

fn too_slow(within: Duration) -> ApiError {
    let message = format!("the request was not done within {} s", within.as_secs());
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", message)
        .hint("send the body faster, or ask for less; whether events of it were appended is not known")
}

/// 503: the instance is shutting down.
pub fn stopping() -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "this instance is shutting down")
        .hint("ask another instance, or this one when it has been started again")
}

/// What the body may take: as announced, or the most that is taken.
fn body_bytes(request: &Request) -> usize {
    if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
        return 0;
    }
    let announced = request.body().size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
    announced.unwrap_or(MAX_BODY_BYTES).min(MAX_BODY_BYTES)
}

fn busy(what: &str) -> impl IntoResponse {
    let message = format!("this instance has as many {what} under way as it takes");
    let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message)
        .hint("nothing of this request was done: send it again in a second, or to another instance");
    ([(header::RETRY_AFTER, HeaderValue::from_static("1"))], error)
}

#[cfg(test)]
mod tests {
    use super::super::tls::nobody;
    use axum::Router;
    use axum::body::{Body, Bytes};
    use axum::routing::post;

    use super::*;

    #[test]
    fn bodies_count_as_announced() {
        let request = |method: Method, body: Body| Request::builder().method(method).body(body).unwrap();
        assert_eq!(body_bytes(&request(Method::POST, Body::from("abc"))), 3);
        assert_eq!(body_bytes(&request(Method::GET, Body::from("abc"))), 0);
        let endless = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
        assert_eq!(body_bytes(&request(Method::POST, Body::from_stream(endless))), MAX_BODY_BYTES);
    }

    /// A server whose requests last until they are let go.
    async fn serve(limits: Limits) -> (String, Arc<Semaphore>) {
        let go = Arc::new(Semaphore::new(0));
        let handle = Arc::clone(&go);
        let answer = async move |_: Bytes| drop(handle.acquire().await.unwrap());
        let app = Router::new().route("/", post(answer)).layer(axum::middleware::from_fn_with_state(limits, limit));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(axum::serve(listener, app).into_future());
        (url, go)
    }

    async fn ask(url: &str, body: &'static str, forwarded: bool) -> (u16, String) {
        let client = reqwest::Client::builder().tls_backend_preconfigured(nobody()).build().unwrap();
        let mut request = client.post(url).body(body);
        if forwarded {
            request = request.header(FORWARDED, "1");
        }
        let response = request.send().await.unwrap();
        let after = response.headers().get(header::RETRY_AFTER).map(|value| value.to_str().unwrap().to_owned());
        (response.status().as_u16(), after.unwrap_or_default())
    }

    #[tokio::test]
    async fn what_is_above_a_bound_is_refused_at_once() {
        let (_sender, running) = watch::channel(false);
        let places = |places| Arc::new(Semaphore::new(places));
        let limits = Limits { own: places(1), bodies: places(2), ..Limits::new(running) };
        let (url, go) = serve(limits.clone()).await;
        let first = tokio::spawn({
            let url = url.clone();
            async move { ask(&url, "abc", false).await }
        });
        while limits.own.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(ask(&url, "abc", false).await, (503, "1".into()), "B1");
        let other = tokio::spawn({
            let url = url.clone();
            async move { ask(&url, "abc", true).await }
        });
        while limits.bodies.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(ask(&url, "abc", true).await, (503, "1".into()), "the place for bodies is taken");
        go.add_permits(10);
        assert_eq!(first.await.unwrap().0, 200);
        assert_eq!(other.await.unwrap().0, 200, "B2");
        assert_eq!(ask(&url, "abc", false).await.0, 200);
    }

    #[tokio::test]
    async fn a_request_does_not_last_for_ever() {
        let (sender, running) = watch::channel(false);
        let limits = Limits { within: Duration::from_millis(50), ..Limits::new(running.clone()) };
        let (url, _go) = serve(limits.clone()).await;
        assert_eq!(ask(&url, "abc", false).await.0, 408);
        assert_eq!(limits.own.available_permits(), MAX_REQUESTS);
        let (url, _go) = serve(Limits::new(running)).await;
        sender.send_replace(true);
        assert_eq!(ask(&url, "abc", false).await.0, 503, "not longer than a stop waits for it");
    }
}
