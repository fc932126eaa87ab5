//! Talks to a running instance.

use std::time::Duration;

use serde_json::Value;
use ureq::Agent;
use ureq::http::Response;

use super::error::CliError;

/// The largest answer that is read, in bytes.
const MAX_ANSWER: u64 = 256 << 20;

/// One instance's HTTP API.
pub struct Client {
    base: String,
    agent: Agent,
}

impl Client {
    /// `server` is a URL such as `http://127.0.0.1:8080`, or `host:port`.
    pub fn new(server: &str) -> Result<Client, CliError> {
        let base = match server.split_once("://") {
            Some(("http" | "https", _)) => server.trim_end_matches('/').to_owned(),
            Some(_) => return Err(CliError::misused(format!("--server {server}: neither http:// nor https://"))),
            None => format!("http://{}", server.trim_end_matches('/')),
        };
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(5)))
            .timeout_global(Some(Duration::from_secs(60)))
            .build()
            .new_agent();
        Ok(Client { base, agent })
    }

    /// `GET path`. Where another instance owns what is asked for, that one is asked.
    pub fn get(&self, path: &str) -> Result<Value, CliError> {
        let (status, answer) = self.ask(&self.base, path)?;
        match answer["owner"].as_str() {
            Some(owner) if status == 421 => {
                let (status, answer) = self.ask(&format!("http://{owner}"), path)?;
                judge(status, answer)
            }
            _ => judge(status, answer),
        }
    }

    fn ask(&self, base: &str, path: &str) -> Result<(u16, Value), CliError> {
        self.read(base, self.agent.get(format!("{base}{path}")).call())
    }

    /// `POST path` with newline-delimited JSON.
    pub fn post_lines(&self, path: &str, body: &[u8]) -> Result<Value, CliError> {
        let request = self.agent.post(format!("{}{path}", self.base)).content_type("application/x-ndjson");
        let (status, answer) = self.read(&self.base, request.send(body))?;
        judge(status, answer)
    }

    fn read(&self, base: &str, response: Result<Response<ureq::Body>, ureq::Error>) -> Result<(u16, Value), CliError> {
        let unreachable = |error: ureq::Error| {
            CliError::failed(format!("no answer from {base}: {error}"))
                .hint("start an instance with `tidegate run`, or name another one with --server")
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
    Err(CliError::failed(format!("{message} ({status} {code})")).hint(error["hint"].as_str().unwrap_or_default()))
}
