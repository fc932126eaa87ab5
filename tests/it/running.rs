//! The binary as a child process: an instance on a folder of its own, and commands that talk to it.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// The binary, without settings from the environment.
pub fn tidegate(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.current_dir(folder).stdin(Stdio::null()).env("NO_COLOR", "1").env_remove("RUST_LOG");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TIDEGATE_")) {
        command.env_remove(name);
    }
    command
}

/// Runs a command to its end.
pub fn run(folder: &Path, arguments: &[&str]) -> Ended {
    Ended::from(tidegate(folder).args(arguments).output().unwrap())
}

/// A command that has ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Ended {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Ended {
    /// It succeeded; what it printed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// It failed with this code; what it said.
    #[track_caller]
    pub fn failed(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.err
    }
}

/// Asks again and again until there is an answer.
#[track_caller]
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An instance in a process of its own; killed when it is dropped.
pub struct Running {
    pub url: String,
    child: Child,
    lines: Receiver<String>,
    agent: ureq::Agent,
    caller: Caller,
}

/// What callers bring.
#[derive(Clone, Default)]
pub struct Caller {
    /// The token.
    pub token: Option<String>,
    /// The file with the certificate that they believe.
    pub ca: Option<PathBuf>,
}

impl Caller {
    /// A client that believes it.
    pub fn agent(&self) -> ureq::Agent {
        let mut tls = ureq::tls::TlsConfig::builder();
        if let Some(ca) = &self.ca {
            let certificate = ureq::tls::Certificate::from_pem(&std::fs::read(ca).unwrap()).unwrap();
            tls = tls.root_certs(ureq::tls::RootCerts::new_with_certs(&[certificate]));
        }
        ureq::Agent::config_builder()
            .http_status_as_error(false)
            .tls_config(tls.build())
            .timeout_global(Some(PATIENCE))
            .allow_non_standard_methods(true)
            .build()
            .new_agent()
    }
}

impl Running {
    /// Starts an instance with the handler `scripted` in `folder` and waits until it is ready.
    pub fn start(folder: &Path, arguments: &[&str]) -> Running {
        Running::start_for(folder, arguments, Caller::default())
    }

    /// The same for callers that bring something.
    pub fn start_for(folder: &Path, arguments: &[&str], caller: Caller) -> Running {
        let mut command = tidegate(folder);
        command.args(["run", "--handler", "scripted", "--listen", "127.0.0.1:0"]);
        command.args(["--set", "processing.partitions=4", "--set", "application.instance_id=one"]);
        let mut child = command.args(arguments).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let (send, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                eprintln!("{line}");
                let _ = send.send(line);
            }
        });
        let url = loop {
            let line = lines.recv_timeout(PATIENCE).expect("the instance says where it answers");
            if let Some((_, url)) = line.split_once("answers on ") {
                break url.trim().to_owned();
            }
        };
        let running = Running { url, child, lines, agent: caller.agent(), caller };
        eventually("ready", || (running.get("/readyz").0 == 200).then_some(()));
        running
    }

    /// `GET path`: the status and the JSON.
    pub fn get(&self, path: &str) -> (u16, Value) {
        let (status, text) = self.get_text(path);
        (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}")))
    }

    /// `GET path`: the status and the body.
    pub fn get_text(&self, path: &str) -> (u16, String) {
        let mut response = self.with_token(self.agent.get(format!("{}{path}", self.url))).call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    fn with_token<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.caller.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    /// `POST /api/v1/events`
    pub fn post(&self, content_type: &str, body: impl AsRef<[u8]>) -> (u16, Value) {
        self.post_to("/api/v1/events", content_type, body)
    }

    /// `POST path`
    pub fn post_to(&self, path: &str, content_type: &str, body: impl AsRef<[u8]>) -> (u16, Value) {
        let request = self.with_token(self.agent.post(format!("{}{path}", self.url)).content_type(content_type));
        let mut response = request.send(body.as_ref()).unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), serde_json::from_str(&text).unwrap())
    }

    /// Posts events, a JSON object a line, that have to be accepted.
    pub fn send(&self, lines: &str) -> Value {
        let (status, answer) = self.post("application/x-ndjson", lines);
        assert_eq!(status, 202, "{answer}");
        answer
    }

    /// What the key holds once it holds something with this action.
    pub fn holds(&self, key: &str, action: &str) -> Value {
        eventually(&format!("{key} = {action}"), || {
            let (status, held) = self.get(&format!("/api/v1/keys/{key}"));
            (status == 200 && held["action"] == action).then_some(held)
        })
    }

    /// Waits until nothing is in flight and nothing lags behind.
    pub fn drained(&self) {
        let mut calm = 0;
        eventually("drained", || {
            let (_, answer) = self.get("/api/v1/tasks");
            let idle = |task: &Value| {
                task["in_flight"] == 0 && task["waiting"] == 0 && (task["lag"].is_null() || task["lag"] == 0)
            };
            // A status is up to 250 ms old: 20 calm ones in a row are 400 ms.
            calm = if answer["tasks"].as_array().unwrap().iter().all(idle) { calm + 1 } else { 0 };
            (calm >= 20).then_some(())
        });
    }

    /// A command that talks to this instance.
    pub fn command(&self, arguments: &[&str]) -> Ended {
        self.command_with(arguments, "")
    }

    /// A command that talks to this instance and reads `input`.
    pub fn command_with(&self, arguments: &[&str], input: &str) -> Ended {
        let mut command = tidegate(Path::new("/"));
        command.args(["--server", &self.url]).args(arguments).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        Ended::from(child.wait_with_output().unwrap())
    }

    /// Sends a signal such as `TERM`.
    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// Waits for its end; the exit code, `None` when a signal ended it.
    pub fn ended(mut self) -> Option<i32> {
        eventually("the process ends", || self.child.try_wait().unwrap()).code()
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// What it has logged since the last call.
    pub fn logged(&self) -> Vec<String> {
        self.lines.try_iter().collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends `TERM` or `INT` to a child that has not been waited for.
pub fn signal(child: &Child, name: &str) {
    let signal = match name {
        "TERM" => libc::SIGTERM,
        "INT" => libc::SIGINT,
        other => panic!("unknown signal {other}"),
    };
    // SAFETY: no memory is passed; the process is our own child and has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id().cast_signed(), signal) }, 0);
}
