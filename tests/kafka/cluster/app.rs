//! An application with its source topic, and its instances as processes of their own.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidegate::log::TopicPartition;
use tidegate::log::kafka::KafkaLog;
use tidegate::topics::Topics;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::PARTITIONS;
use crate::broker::{self, Broker};
use crate::kit;

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many of an instance's last lines a failure shows.
const LINES: usize = 60;

pub struct App {
    pub id: String,
    pub servers: String,
    pub source: Arc<str>,
    pub topics: Topics,
    pub log: KafkaLog,
    /// How many partitions its internal topics have.
    pub tasks: i32,
    /// More settings of its instances, `key=value`.
    pub settings: Vec<String>,
    /// Further arguments of every command; they override the others.
    pub arguments: Vec<String>,
    /// Variables of every command.
    pub environment: Vec<(String, String)>,
    /// What its instances ask callers for.
    pub token: Option<String>,
    /// The file with the certificate that signed its instances'.
    pub ca: Option<PathBuf>,
    pub folder: tempfile::TempDir,
}

impl App {
    /// With a new source topic; no instance runs yet.
    pub fn new(broker: &Broker, name: &str) -> App {
        let servers = broker.servers();
        let log = kit::connect(&servers);
        let source = kit::topic(&log, &format!("{name}-source"), 1, &[]);
        App::on(servers, source, log, name)
    }

    /// On a source topic that may not be there.
    pub fn on(servers: String, source: Arc<str>, log: KafkaLog, name: &str) -> App {
        let id = kit::unique(name);
        let topics = Topics::new(&id, &[source.to_string()]);
        let folder = tempfile::Builder::new().prefix("tidegate-cluster-").tempdir().expect("a folder");
        let (settings, arguments, environment) = (Vec::new(), Vec::new(), Vec::new());
        let (token, ca) = (None, None);
        App { id, servers, source, topics, log, tasks: PARTITIONS, settings, arguments, environment, token, ca, folder }
    }

    /// With further settings.
    pub fn with(mut self, settings: &[(&str, &str)]) -> App {
        self.settings.extend(settings.iter().map(|(key, value)| format!("{key}={value}")));
        self
    }

    /// With so many partitions.
    pub fn of(self, tasks: i32) -> App {
        App { tasks, ..self }
    }

    /// The partitions of one of its topics.
    pub fn partitions(&self, topic: &Arc<str>) -> Vec<TopicPartition> {
        (0..self.tasks).map(|partition| TopicPartition::new(topic, partition)).collect()
    }

    /// The binary with a command, without settings from the environment.
    pub fn bare(&self, verb: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TIDEGATE_")) {
            command.env_remove(name);
        }
        command.args(verb).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("NO_COLOR", "1").env_remove("RUST_LOG");
        command
    }

    /// The same for this application.
    pub fn command(&self, verb: &[&str]) -> Command {
        let mut command = self.bare(verb);
        command.args(["-b", &self.servers, "--application-id", &self.id]);
        command.args(["--set", "handler.kind=scripted", "--set", "processing.repartition_purge=off"]);
        command.arg("--set").arg(format!("source.topics=[\"{}\"]", self.source));
        command.arg("--set").arg(format!("processing.partitions={}", self.tasks));
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        command.args(&self.arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command to its end.
    pub fn tool(&self, verb: &[&str]) -> Output {
        self.command(verb).output().expect("the binary starts")
    }

    /// Starts an instance; its state folder is that of an earlier one of the same name.
    pub fn start(&self, name: &str) -> Instance<'_> {
        self.start_with(name, &[])
    }

    /// The same with more settings.
    pub fn start_with(&self, name: &str, settings: &[&str]) -> Instance<'_> {
        let mut command = self.command(&["run", "--listen", "127.0.0.1:0"]);
        for setting in settings {
            command.args(["--set", setting]);
        }
        command.arg("--set").arg(format!("application.instance_id={name}"));
        self.spawn(name, command)
    }

    /// Starts an instance of fresh outcomes: this test binary with the one test that is one.
    pub fn start_fresh(&self, name: &str) -> Instance<'_> {
        self.start_fresh_with(name, json!({}))
    }

    /// The same with more in its spec.
    pub fn start_fresh_with(&self, name: &str, more: Value) -> Instance<'_> {
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        command.args([super::fresh::TEST, "--exact", "--nocapture"]).current_dir(self.folder.path());
        let mut spec = json!({ "servers": self.servers, "id": self.id, "source": &*self.source, "name": name });
        spec["more"] = more;
        command.env(super::fresh::SPEC, spec.to_string()).stdin(Stdio::null()).env_remove("RUST_LOG");
        self.spawn(name, command)
    }

    fn spawn(&self, name: &str, mut command: Command) -> Instance<'_> {
        let log = self.folder.path().join(format!("{name}.log"));
        let from = std::fs::metadata(&log).map_or(0, |found| found.len() as usize);
        let file = std::fs::File::options().create(true).append(true).open(&log).expect("a log file");
        command.stdout(file.try_clone().expect("a handle")).stderr(file);
        let child = broker::spawn(command).expect("the instance starts");
        Instance { app: self, log, from, child: Mutex::new(child) }
    }

    /// A client that believes its instances' certificate.
    pub fn agent(&self, patience: Duration) -> Agent {
        let mut tls = TlsConfig::builder();
        if let Some(ca) = &self.ca {
            let certificate = Certificate::from_pem(&std::fs::read(ca).expect("a file")).expect("a certificate");
            tls = tls.root_certs(RootCerts::new_with_certs(&[certificate]));
        }
        let agent = Agent::config_builder().timeout_global(Some(patience)).tls_config(tls.build());
        agent.http_status_as_error(false).allow_non_standard_methods(true).build().new_agent()
    }

    /// Waits until `check`; fails with the instances' logs.
    pub fn until(&self, what: &str, mut check: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !check() {
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The last lines of what every instance has said.
    pub fn logs(&self) -> String {
        let files = std::fs::read_dir(self.folder.path()).expect("the folder").flatten().map(|entry| entry.path());
        let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|it| it == "log")).collect();
        files.sort();
        let mut text = String::new();
        for file in files {
            let said = std::fs::read_to_string(&file).unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            text += &format!("--- {}\n{}\n", file.display(), lines[lines.len().saturating_sub(LINES)..].join("\n"));
        }
        text
    }
}

/// A process; killed when it is dropped.
pub struct Instance<'a> {
    app: &'a App,
    log: PathBuf,
    from: usize,
    child: Mutex<Child>,
}

impl Instance<'_> {
    /// What it has said since its start.
    pub fn said(&self) -> String {
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        said.get(self.from..).unwrap_or_default().to_owned()
    }

    /// Where it answers, once it has said so.
    pub fn url(&self) -> Option<String> {
        let said = self.said();
        let address = said.lines().find_map(|line| line.split_once("answers on "))?.1;
        Some(address.trim().to_owned())
    }

    /// An answer of its API.
    pub fn get(&self, path: &str) -> Option<Value> {
        let (status, text) = self.page(path)?;
        (status == 200).then(|| serde_json::from_str(&text).ok())?
    }

    /// Status and text of what it serves.
    pub fn page(&self, path: &str) -> Option<(u16, String)> {
        let agent = self.app.agent(Duration::from_secs(2));
        let mut request = agent.get(format!("{}{path}", self.url()?));
        if let Some(token) = &self.app.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut answer = request.call().ok()?;
        Some((answer.status().as_u16(), answer.body_mut().read_to_string().ok()?))
    }

    /// Why it says that it is not ready; empty when it is, or does not answer.
    pub fn trouble(&self) -> String {
        self.page("/readyz").filter(|(status, _)| *status == 503).map(|(_, text)| text).unwrap_or_default()
    }

    /// Whether it says that it is ready.
    pub fn ready(&self) -> bool {
        self.get("/readyz").is_some()
    }

    /// How many partitions it owns and has at work; none while one of them is being opened.
    pub fn owns(&self) -> usize {
        self.partitions().len()
    }

    /// The partitions that it owns and has at work; none while one of them is being opened.
    pub fn partitions(&self) -> Vec<i32> {
        let status = self.get("/api/v1/status").or_else(|| {
            let said = self.said();
            said.lines().rev().find_map(|line| line.strip_prefix(super::fresh::STATUS)?.parse().ok())
        });
        let Some(status) = status.filter(|status| status["state"] == "running") else { return Vec::new() };
        let partitions = status["partitions"].as_array().into_iter().flatten();
        partitions.filter_map(|partition| partition.as_i64().map(|partition| partition as i32)).collect()
    }

    /// How many of its engine threads have a running task.
    pub fn threads(&self) -> usize {
        let Some(answer) = self.get("/api/v1/tasks") else { return 0 };
        let tasks = answer["tasks"].as_array().into_iter().flatten();
        let running = tasks.filter(|task| task["role"] == "task" && task["state"] == "running");
        running.filter_map(|task| task["thread"].as_u64()).collect::<std::collections::BTreeSet<_>>().len()
    }

    /// The process's id.
    pub fn process(&self) -> u32 {
        self.child.lock().expect("no panic with it").id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        let child = self.child.lock().expect("no panic with it");
        // SAFETY: the process is our own child and has not been waited for.
        unsafe { libc::kill(child.id().cast_signed(), signal) };
    }

    /// Waits for its end; the exit code.
    pub fn ended(&self) -> Option<i32> {
        let mut code = None;
        self.app.until("the instance ends", || {
            code = self.child.lock().expect("no panic with it").try_wait().expect("our own child");
            code.is_some()
        });
        code.and_then(|status| status.code())
    }

    /// Asks it to end, and waits; the exit code.
    pub fn terminate(&self) -> Option<i32> {
        self.signal(libc::SIGTERM);
        self.ended()
    }

    /// Ends it at once.
    pub fn kill(&self) {
        let mut child = self.child.lock().expect("no panic with it");
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Instance<'_> {
    fn drop(&mut self) {
        self.kill();
    }
}
