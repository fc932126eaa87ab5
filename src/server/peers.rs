//! The other instances of the application: where they answer, and asking them.
//!
//! Q1: a question is passed on once. Who it is passed to answers for itself or says that it cannot, so
//!     two instances that each take the other for the owner never send a question in circles.
//! Q2: an owner that does not answer, or is none any more, is looked up anew once; then the caller is
//!     told which partition is missing and whose it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderValue, Method, StatusCode, header};
use serde_json::Value;
use tokio::sync::Mutex;

use super::access::Access;
use super::error::ApiError;
use super::limits::FORWARDED;
use super::tls::{Tls, nobody};
use crate::clock;
use crate::instance::Instance;

/// How long what is known of the owners may be used.
const KNOWN_FOR: Duration = Duration::from_secs(2);

/// How long a connection may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// How long an answer may take, the connection included.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Idle connections go before the other side closes them.
const IDLE: Duration = Duration::from_secs(15);

/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 128 << 20;

/// Where the owner of each partition of the repartition topic answers.
#[derive(Debug)]
pub struct Owners {
    addresses: Vec<Option<String>>,
    read_at: Instant,
}

impl Owners {
    /// Of one partition; `None` = nobody owns it at the moment.
    pub fn of(&self, partition: i32) -> Option<&str> {
        self.addresses.get(usize::try_from(partition).ok()?)?.as_deref()
    }
}

/// Why a peer did not answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PeerError {
    /// It says that it is not the owner.
    #[error("it does not own it any more")]
    Moved,
    /// It cannot be reached, or not in time.
    #[error("it does not answer: {0}")]
    Unreachable(String),
    /// It cannot answer now, and says why.
    #[error("it says: {0}")]
    Says(String),
    /// It has another token.
    #[error("it refuses this instance's token: all instances of an application need the same server.token")]
    Refused,
}

impl PeerError {
    /// An answer that is none.
    pub fn said(status: StatusCode, answer: &Value) -> PeerError {
        let message = answer["error"]["message"].as_str().unwrap_or("nothing more");
        PeerError::Says(format!("{message} ({})", status.as_u16()))
    }
}

/// Asks other instances.
#[derive(Debug)]
pub struct Peers {
    client: reqwest::Client,
    scheme: &'static str,
    authorization: Option<HeaderValue>,
    own: String,
    known: Mutex<Option<Arc<Owners>>>,
}

impl Peers {
    /// `own` is where this instance answers. All instances share the configuration: where this one has
    /// HTTPS and a token, the others have, too.
    pub fn new(own: String, access: &Access, tls: Option<&Tls>) -> Result<Peers, reqwest::Error> {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.map_or_else(nobody, |tls| tls.client.clone()))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_WITHIN)
            .timeout(ANSWER_WITHIN)
            .pool_idle_timeout(IDLE)
            .build()?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        Ok(Peers { client, scheme, authorization: access.authorization(), own, known: Mutex::new(None) })
    }

    /// Where this instance answers, as others see it.
    pub fn own(&self) -> &str {
        &self.own
    }

    /// The owners as of a moment ago, and later than `outdated` if that is given.
    ///
    /// # Errors
    /// 503 `not_ready` when the log does not tell them.
    pub async fn owners(&self, instance: &Instance, outdated: Option<&Arc<Owners>>) -> Result<Arc<Owners>, ApiError> {
        // Held meanwhile: many questions at once look the owners up once.
        let mut known = self.known.lock().await;
        let usable = |known: &&Arc<Owners>| {
            known.read_at.elapsed() < KNOWN_FOR && outdated.is_none_or(|outdated| known.read_at > outdated.read_at)
        };
        if let Some(known) = known.as_ref().filter(usable) {
            return Ok(Arc::clone(known));
        }
        let read_at = clock::now();
        let addresses = instance.owners(instance.key_partitions()).await.map_err(|error| {
            let message = format!("the log does not tell who owns the partitions: {error}");
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", message).hint("ask again shortly")
        })?;
        let read = Arc::new(Owners { addresses, read_at });
        *known = Some(Arc::clone(&read));
        Ok(read)
    }

    /// `GET path` of the instance at `address`: its status and JSON, whatever they are.
    ///
    /// # Errors
    /// [`PeerError`] when it has no answer of its own.
    pub async fn get(&self, address: &str, path: &str) -> Result<(StatusCode, Value), PeerError> {
        self.ask(address, Method::GET, path).await
    }

    async fn ask(&self, address: &str, method: Method, path: &str) -> Result<(StatusCode, Value), PeerError> {
        let url = format!("{}://{address}{path}", self.scheme);
        let mut request = self.client.request(method, url).header(FORWARDED, "1");
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let unreachable = |error: reqwest::Error| PeerError::Unreachable(causes(&error.without_url()));
        let mut response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        match status {
            StatusCode::MISDIRECTED_REQUEST => return Err(PeerError::Moved),
            StatusCode::UNAUTHORIZED => return Err(PeerError::Refused),
            _ => {}
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER {
                return Err(PeerError::Unreachable(format!("its answer has more than {MAX_ANSWER} bytes")));
            }
        }
        let body = serde_json::from_slice(&body)
            .map_err(|_| PeerError::Unreachable(format!("its answer ({status}) is not JSON")))?;
        Ok((status, body))
    }

    /// `GET path` or `POST path` of the owner of a partition: its status and JSON.
    ///
    /// # Errors
    /// 503 with the partition and its owner (Q2).
    pub async fn ask_owner(
        &self,
        instance: &Instance,
        partition: i32,
        method: Method,
        path: &str,
    ) -> Result<(StatusCode, Value), ApiError> {
        let mut outdated: Option<Arc<Owners>> = None;
        let mut last: Option<(String, PeerError)> = None;
        for _ in 0..2 {
            let owners = self.owners(instance, outdated.as_ref()).await?;
            let Some(owner) = owners.of(partition) else { return Err(no_owner(partition)) };
            let again = last.as_ref().is_some_and(|(asked, _)| asked == owner);
            if again {
                break;
            }
            if owner == self.own {
                outdated = Some(owners);
                continue;
            }
            match self.ask(owner, method.clone(), path).await {
                Ok(answer) if !answer.0.is_server_error() => return Ok(answer),
                Ok((status, answer)) => last = Some((owner.to_owned(), PeerError::said(status, &answer))),
                Err(error) => last = Some((owner.to_owned(), error)),
            }
            outdated = Some(owners);
        }
        Err(match last {
            Some((owner, error)) => silent_owner(partition, &owner, &error),
            None => in_motion(partition, &self.own),
        })
    }
}

/// 503: nobody owns the partition.
pub fn no_owner(partition: i32) -> ApiError {
    let message = format!("partition {partition} is owned by no instance at the moment");
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", message)
        .hint("it is about to be assigned: ask again shortly")
        .with("partition", partition)
        .with("owner", Value::Null)
}

/// 503: the owner has no answer.
pub fn silent_owner(partition: i32, owner: &str, error: &PeerError) -> ApiError {
    let message = format!("partition {partition} is owned by the instance at {owner}: {error}");
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", message)
        .hint("ask again shortly; if it lasts, look at that instance, at its server.advertised and at the network")
        .with("partition", partition)
        .with("owner", owner)
}

/// 503: this instance was the last owner and is none at the moment, or not yet.
pub fn in_motion(partition: i32, own: &str) -> ApiError {
    let message = format!("partition {partition} is on its way to or from this instance");
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", message)
        .hint("ask again shortly")
        .with("partition", partition)
        .with("owner", own)
}

/// An error with what led to it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}
