//! The plumbing that every door shares: binding, the token, HTTPS, bounds, health, metrics, errors,
//! calls of other instances, and an orderly end.
//!
//! D1: whoever has not brought the token learns nothing below `/api`, and takes no place there.

pub mod access;
pub mod bind;
mod connection;
pub mod error;
pub mod health;
pub mod limits;
pub mod peers;
pub mod process;
pub mod tls;

use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use axum_server::{Handle, Server};
use futures_util::FutureExt;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::instance::Instance;
use crate::metrics::{self, Renderer};
use access::{Access, guard};
use connection::Places;
use error::ApiError;
use limits::{Limits, limit};
use peers::Peers;
use tls::Tls;

/// The largest request body, in bytes.
pub const MAX_BODY_BYTES: usize = 8 << 20;

/// A client has so long for the head of a request, from the moment at which one may be sent; so this
/// is also how long a connection may be idle. Clients keep idle ones for a shorter time.
const HEAD_WITHIN: Duration = Duration::from_secs(30);

/// A new connection has so long for its first request.
const FIRST_REQUEST_WITHIN: Duration = Duration::from_secs(10);

/// Streams of one HTTP/2 connection.
const MAX_STREAMS: u32 = 64;

/// The instance as the doors see it. It never keeps the instance alive, so that whoever started it
/// can take it back to shut it down.
#[derive(Clone)]
pub struct Front(Arc<Shared>);

struct Shared {
    instance: Weak<Instance>,
    started: AtomicBool,
    stopping: watch::Sender<bool>,
    metrics: Renderer,
    peers: Peers,
}

impl Front {
    /// The doors to `instance`, which pass on to `peers` what is not its own.
    pub fn new(instance: &Arc<Instance>, metrics: Renderer, peers: Peers) -> Front {
        let (started, stopping) = (AtomicBool::new(false), watch::Sender::new(false));
        Front(Arc::new(Shared { instance: Arc::downgrade(instance), started, stopping, metrics, peers }))
    }

    /// The other instances.
    pub fn peers(&self) -> &Peers {
        &self.0.peers
    }

    /// The instance, for one request.
    ///
    /// # Errors
    /// 503 `stopping` once the shutdown has begun.
    pub fn instance(&self) -> Result<Arc<Instance>, ApiError> {
        let instance = (!*self.0.stopping.borrow()).then(|| self.0.instance.upgrade()).flatten();
        instance.ok_or_else(limits::stopping)
    }

    /// From now on requests are answered with 503, except health and metrics; those under way have a
    /// moment to end.
    pub fn begin_stop(&self) {
        self.0.stopping.send_replace(true);
    }

    /// True once the instance has been seen running; it stays so.
    fn has_started(&self, state: &str) -> bool {
        if state == "running" {
            self.0.started.store(true, Ordering::Relaxed);
        }
        self.0.started.load(Ordering::Relaxed)
    }
}

/// The whole router: `doors`, each of which asks for the token, and the health endpoints, metrics and
/// error answers around them.
pub fn router(doors: Router<Front>, front: Front, access: &Access) -> Router {
    let guarded = from_fn_with_state(access.clone(), guard);
    let page = get(metrics_page);
    // D1: the guard is the outermost layer of what it guards.
    let doors = doors
        .method_not_allowed_fallback(not_allowed)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(from_fn_with_state(Limits::new(front.0.stopping.subscribe()), limit))
        .layer(guarded.clone());
    let asks = access.clone();
    let unknown = async move |uri: Uri, headers: HeaderMap| {
        if uri.path().starts_with("/api") {
            asks.admits(&headers).map_err(IntoResponse::into_response)?;
        }
        Err::<(), Response>(nothing_here().into_response())
    };
    Router::new()
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/startupz", get(health::startup))
        .route("/metrics", if access.protect_metrics { page.layer(guarded) } else { page })
        .method_not_allowed_fallback(not_allowed)
        .merge(doors)
        .fallback(unknown)
        .layer(from_fn(catch_panic))
        .with_state(front)
}

fn nothing_here() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
        .hint("the API is below /api/v1, for example /api/v1/status")
}

/// The header `Allow` is added to both answers.
async fn not_allowed(method: Method) -> Response {
    if method == Method::OPTIONS {
        return StatusCode::NO_CONTENT.into_response();
    }
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not take this method")
        .hint("the header Allow names those that it takes")
        .into_response()
}

/// What was measured, in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "health", responses((status = 200, body = String, content_type = "text/plain")))]
async fn metrics_page(State(front): State<Front>) -> Response {
    metrics::ready(health::is_ready(&front));
    let version = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, version)], front.0.metrics.render()).into_response()
}

/// A request that panics is answered, and only this request fails.
async fn catch_panic(uri: Uri, request: Request, next: Next) -> Response {
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => {
            tracing::error!("the request {} panicked", uri.path());
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the request failed for a reason of our own")
                .hint("the instance's log has the details; please report them")
                .into_response()
        }
    }
}

/// A server that answers until it is stopped.
pub struct Serving {
    handle: Handle<SocketAddr>,
    task: JoinHandle<io::Result<()>>,
}

impl Serving {
    /// Answers on `listener`, with HTTPS where there is `tls`. Must be called inside a tokio runtime.
    pub fn start(listener: TcpListener, router: Router, tls: Option<&Tls>) -> Serving {
        let (handle, places) = (Handle::new(), Places::new());
        let server = Server::from_listener(listener).handle(handle.clone());
        let doors = router.into_make_service();
        let task = match tls {
            None => tokio::spawn(patient(server.acceptor(places)).serve(doors)),
            Some(tls) => {
                let config = RustlsConfig::from_config(Arc::clone(&tls.server));
                tokio::spawn(patient(server.acceptor(RustlsAcceptor::new(config).acceptor(places))).serve(doors))
            }
        };
        Serving { handle, task }
    }

    /// Takes no more connections, finishes the requests under way, and gives up after `within`.
    pub async fn stop(self, within: Duration) {
        self.handle.graceful_shutdown(Some(within));
        let abort = self.task.abort_handle();
        if tokio::time::timeout(within, self.task).await.is_err() {
            abort.abort();
        }
    }
}

/// A server that gives slow clients their time, and no more.
fn patient<A>(mut server: Server<SocketAddr, A>) -> Server<SocketAddr, A> {
    server.http_builder().http1().header_read_timeout(HEAD_WITHIN);
    server.http_builder().http2().max_concurrent_streams(MAX_STREAMS).keep_alive_interval(HEAD_WITHIN);
    server.first_request_timeout(FIRST_REQUEST_WITHIN)
}
