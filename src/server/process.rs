//! An instance with its doors, from binding to the orderly end.

use std::future::pending;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::signal::unix::{SignalKind, signal};

use super::bind::Bound;
use super::peers::Peers;
use super::{Front, Serving};
use crate::config::Config;
use crate::handler::DynHandler;
use crate::instance::{Instance, StartError};
use crate::log::Log;
use crate::{clock, metrics};

/// How long the doors may take to finish requests once the instance has ended.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

/// An instance that runs in this process and answers over HTTP.
pub struct Process {
    /// The instance.
    pub instance: Arc<Instance>,
    /// Where it answers.
    pub address: SocketAddr,
    scheme: &'static str,
    front: Front,
    serving: Serving,
}

/// The instance's name where the configuration gives none.
pub fn name(config: &mut Config, bound: &Bound) {
    if config.application.instance_id.is_empty() {
        let host = gethostname::gethostname();
        config.application.instance_id = format!("{}-{}", host.to_string_lossy(), bound.address.port());
    }
}

impl Process {
    /// Starts an instance on `log` and answers on `bound` at `doors`. Must be called inside a tokio runtime.
    pub fn start(
        config: Config,
        bound: Bound,
        log: Arc<dyn Log>,
        handler: Arc<dyn DynHandler>,
        doors: Router<Front>,
    ) -> Result<Process, StartError> {
        let renderer = metrics::install();
        let advertised = bound.advertised(&config.server);
        let peers = Peers::new(advertised.clone(), &bound.access, bound.tls.as_ref())
            .map_err(|error| StartError::Failed(format!("cannot prepare calls of other instances: {error}")))?;
        let instance = Arc::new(Instance::start(Arc::new(config), log, handler, advertised)?);
        let front = Front::new(&instance, renderer, peers);
        let router = super::router(doors, front.clone(), &bound.access);
        let serving = Serving::start(bound.listener, router, bound.tls.as_ref());
        let scheme = if bound.tls.is_some() { "https" } else { "http" };
        Ok(Process { instance, address: bound.address, scheme, front, serving })
    }

    /// Where it answers, as a URL.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Stops it because it was told to, or because it cannot go on for the reason `failed`: what it holds is given
    /// back either way, and no thread of its has a database open when the process ends.
    ///
    /// # Errors
    /// `failed`, or a shutdown that was not done in time.
    pub async fn end(self, failed: Option<StartError>) -> Result<(), StartError> {
        let stopped = self.stop().await;
        failed.map_or(stopped, Err)
    }

    /// Hands back what is in flight, commits and leaves, within `processing.shutdown_timeout`. Health and
    /// metrics answer until the instance has ended.
    pub async fn stop(self) -> Result<(), StartError> {
        let Process { mut instance, front, serving, .. } = self;
        let within = instance.config().processing.shutdown_timeout;
        let deadline = clock::now() + within;
        // 1. Requests that come now are refused; those under way hold the instance until they are answered.
        front.begin_stop();
        let ended = tokio::time::timeout(within, async move {
            let instance = loop {
                match Arc::try_unwrap(instance) {
                    Ok(instance) => break instance,
                    Err(shared) => instance = shared,
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            };
            // 2. Nobody else has it: it ends.
            instance.shutdown().await;
        })
        .await;
        // 3. The doors close last.
        serving.stop(LAST_REQUESTS.min(deadline.saturating_duration_since(clock::now()))).await;
        ended.map_err(|_| {
            StartError::Failed(format!(
                "the shutdown was not done within {}; nothing is lost: what was in flight is processed again; \
                 processing.shutdown_timeout can be raised",
                humantime::format_duration(within)
            ))
        })
    }
}

/// Resolves with the first SIGTERM or SIGINT; a SIGINT after it ends the process at once.
pub async fn told_to_stop() -> &'static str {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::warn!("signals cannot be caught: the process ends without an orderly shutdown");
        return pending().await;
    };
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tokio::spawn(async move {
        interrupt.recv().await;
        exit(130)
    });
    name
}

/// Ends this process at once. The destructors of C++ statics do not run: a thread that has a database open, or waits for
/// a log that does not answer, would abort the process when it meets them destroyed.
pub fn exit(code: u8) -> ! {
    let _ = std::io::stdout().flush();
    signal_hook::low_level::exit(i32::from(code))
}
