//! The plumbing that every door shares: binding, health, metrics, errors, and an orderly end.

pub mod bind;
pub mod error;
pub mod health;
pub mod process;

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, middleware};
use futures_util::FutureExt;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::instance::Instance;
use crate::metrics::Renderer;
use error::ApiError;

/// The largest request body, in bytes.
pub const MAX_BODY_BYTES: usize = 8 << 20;

/// The instance as the doors see it. It never keeps the instance alive, so that whoever started it
/// can take it back to shut it down.
#[derive(Clone)]
pub struct Front(Arc<Shared>);

struct Shared {
    instance: Weak<Instance>,
    started: AtomicBool,
    stopping: AtomicBool,
    metrics: Renderer,
}

impl Front {
    /// The doors to `instance`.
    pub fn new(instance: &Arc<Instance>, metrics: Renderer) -> Front {
        let instance = Arc::downgrade(instance);
        Front(Arc::new(Shared { instance, started: AtomicBool::new(false), stopping: AtomicBool::new(false), metrics }))
    }

    /// The instance, for one request.
    ///
    /// # Errors
    /// 503 `stopping` once the shutdown has begun.
    pub fn instance(&self) -> Result<Arc<Instance>, ApiError> {
        let instance = (!self.0.stopping.load(Ordering::Acquire)).then(|| self.0.instance.upgrade()).flatten();
        instance.ok_or_else(|| {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "this instance is shutting down")
                .hint("ask another instance, or this one when it has been started again")
        })
    }

    /// From now on requests are answered with 503, except health and metrics.
    pub fn begin_stop(&self) {
        self.0.stopping.store(true, Ordering::Release);
    }

    /// True once the instance has been seen running; it stays so.
    fn has_started(&self, state: &str) -> bool {
        if state == "running" {
            self.0.started.store(true, Ordering::Relaxed);
        }
        self.0.started.load(Ordering::Relaxed)
    }
}

/// The whole router: `routes` and the health endpoints, metrics and error answers around them.
pub fn router(routes: Router<Front>, front: Front) -> Router {
    Router::new()
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/startupz", get(health::startup))
        .route("/metrics", get(metrics_page))
        .merge(routes)
        .fallback(async || {
            ApiError::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
                .hint("the API is below /api/v1, for example /api/v1/status")
        })
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not take this method")
                .hint("the header Allow names those that it takes")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn(catch_panic))
        .with_state(front)
}

async fn metrics_page(State(front): State<Front>) -> Response {
    let version = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, version)], front.0.metrics.render()).into_response()
}

/// A request that panics is answered, and only this request fails.
async fn catch_panic(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => {
            tracing::error!("the request {path} panicked");
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the request failed for a reason of our own")
                .hint("the instance's log has the details; please report them")
                .into_response()
        }
    }
}

/// A server that answers until it is stopped.
pub struct Serving {
    stop: oneshot::Sender<()>,
    task: JoinHandle<io::Result<()>>,
}

impl Serving {
    /// Answers on `listener`. Must be called inside a tokio runtime.
    pub fn start(listener: TcpListener, router: Router) -> Serving {
        let (stop, stopped) = oneshot::channel::<()>();
        let serve = axum::serve(listener, router).with_graceful_shutdown(async {
            let _ = stopped.await;
        });
        Serving { stop, task: tokio::spawn(serve.into_future()) }
    }

    /// Takes no more connections, finishes the requests under way, and gives up after `within`.
    pub async fn stop(self, within: Duration) {
        drop(self.stop);
        let abort = self.task.abort_handle();
        if tokio::time::timeout(within, self.task).await.is_err() {
            abort.abort();
        }
    }
}
