//! Talks to a running instance.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use ureq::http::Response;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, RequestBuilder};

use super::error::CliError;
use crate::config::secret::Secret;

/// The largest answer that is read, in bytes.
const MAX_ANSWER: u64 = 256 << 20;

/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Which instance is talked to, and how.
#[derive(Args, Clone, Debug)]
pub struct ServerOptions {
    /// The instance to talk to.
    #[arg(long, global = true, default_value = "http://127.0.0.1:8080", value_name = "URL")]
    server: String,
    /// The instance's server.token; --token-file keeps it out of the list of processes.
    #[arg(long, global = true, env = "TIDEGATE_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<Secret>,
    /// The file with the instance's server.token; goes before --token and TIDEGATE_TOKEN.
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The certificate (PEM) that signed the instance's, for https://; the usual ones when not given.
    #[arg(long, global = true, value_name = "FILE")]
    ca: Option<PathBuf>,
}

impl ServerOptions {
    /// For commands that talk to no running instance: an option without effect would look like an obeyed one.
    ///
    /// # Errors
    /// When one is given.
    pub fn refuse(&self) -> Result<(), CliError> {
        let from_environment = std::env::var("TIDEGATE_TOKEN").ok();
        let token = self.token.as_ref().filter(|token| from_environment.as_deref() != Some(token.reveal()));
        if token.is_none() && self.token_file.is_none() && self.ca.is_none() {
            return Ok(());
        }
        Err(CliError::misused("--token, --token-file and --ca are for commands that talk to a running instance")
            .hint("an instance takes its own token from server.token_file, as in --set server.token_file=FILE"))
    }

    fn token(&self) -> Result<Option<Secret>, CliError> {
        let token = match &self.token_file {
            Some(path) => {
                let token = Secret::from(read(path, "--token-file")?.trim_ascii().to_owned());
                if token.is_empty() {
                    return Err(CliError::misused(format!("--token-file {}: it is empty", path.display())));
                }
                Some(token)
            }
            None => self.token.clone().filter(|token| !token.is_empty()),
        };
        if let Some(token) = &token {
            token.check_token().map_err(|what| CliError::misused(format!("the token: {what}")))?;
        }
        Ok(token)
    }

    fn roots(&self) -> Result<RootCerts, CliError> {
        let Some(path) = &self.ca else { return Ok(RootCerts::WebPki) };
        let text = read(path, "--ca")?;
        let certificates: Vec<Certificate<'static>> = parse_pem(text.as_bytes())
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .collect();
        if certificates.is_empty() {
            return Err(CliError::misused(format!("--ca {}: there is no certificate in it", path.display()))
                .hint("give a PEM file with -----BEGIN CERTIFICATE-----"));
        }
        Ok(RootCerts::Specific(Arc::new(certificates)))
    }
}

fn read(path: &Path, option: &str) -> Result<String, CliError> {
    std::fs::read_to_string(path)
        .map_err(|error| CliError::misused(format!("{option} {}: cannot read it: {error}", path.display())))
}

/// One instance's HTTP API.
pub struct Client {
    base: String,
    token: Option<Secret>,
    agent: Agent,
    /// How long an answer may take.
    within: Duration,
}

impl Client {
    /// `--server` is a URL such as `http://127.0.0.1:8080`, or `host:port`.
    pub fn new(options: &ServerOptions) -> Result<Client, CliError> {
        let server = options.server.trim_end_matches('/');
        let base = match server.split_once("://") {
            Some(("http" | "https", _)) => server.to_owned(),
            Some(_) => return Err(CliError::misused(format!("--server {server}: neither http:// nor https://"))),
            None => format!("http://{server}"),
        };
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // A token never follows to another place.
            .max_redirects(0)
            .tls_config(TlsConfig::builder().root_certs(options.roots()?).build())
            .timeout_connect(Some(Duration::from_secs(5)))
            .build()
            .new_agent();
        Ok(Client { base, token: options.token()?, agent, within: ANSWER_WITHIN })
    }

    /// The same for calls that wait for something for at most so long.
    pub fn waiting(&self, timeout: Duration) -> Client {
        let (base, token, agent) = (self.base.clone(), self.token.clone(), self.agent.clone());
        Client { base, token, agent, within: ANSWER_WITHIN + timeout }
    }

    fn with_token<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        let request = request.config().timeout_global(Some(self.within)).build();
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {}", token.reveal())),
            None => request,
        }
    }

    /// `GET path`
    pub fn get(&self, path: &str) -> Result<Value, CliError> {
        let request = self.with_token(self.agent.get(format!("{}{path}", self.base)));
        let (status, answer) = self.read(request.call())?;
        judge(status, answer)
    }

    /// `POST path` without a body.
    pub fn post(&self, path: &str) -> Result<Value, CliError> {
        let request = self.with_token(self.agent.post(format!("{}{path}", self.base)));
        let (status, answer) = self.read(request.send_empty())?;
        judge(status, answer)
    }

    /// `POST path` with newline-delimited JSON.
    pub fn post_lines(&self, path: &str, body: &[u8]) -> Result<Value, CliError> {
        let request = self.with_token(self.agent.post(format!("{}{path}", self.base)));
        let (status, answer) = self.read(request.content_type("application/x-ndjson").send(body))?;
        judge(status, answer)
    }

    fn read(&self, response: Result<Response<ureq::Body>, ureq::Error>) -> Result<(u16, Value), CliError> {
        let base = &self.base;
        let unreachable = |error: ureq::Error| {
            CliError::failed(format!("no answer from {base}: {error}"))
                .hint("start an instance with `tidegate run`, or name another one with --server (and the signer of its certificate with --ca)")
        };
        let mut response = response.map_err(unreachable)?;
        let status = response.status().as_u16();
        let text = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec().map_err(unreachable)?;
        let answer = serde_json::from_slice(&text).map_err(|_| {
            CliError::failed(format!("{base} answers {status} with something that is not JSON"))
                .hint("does --server name a Tidegate instance?")
        })?;
        Ok((status, answer))
    }
}

fn judge(status: u16, answer: Value) -> Result<Value, CliError> {
    if (200..300).contains(&status) {
        return Ok(answer);
    }
    let error = &answer["error"];
    let message = error["message"].as_str().unwrap_or("the request failed");
    let code = error["code"].as_str().unwrap_or("error");
    let failed = CliError::failed(format!("{message} ({status} {code})"));
    Err(failed.hint(error["hint"].as_str().unwrap_or_default()).passing(status == 503))
}
