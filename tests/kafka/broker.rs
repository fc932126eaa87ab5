//! A real Kafka broker of one node for the tests: own ports, own folder, gone with the test.

use std::fmt::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// A broker; killed when it is dropped.
pub struct Broker {
    folder: Option<tempfile::TempDir>,
    lib: PathBuf,
    ports: Vec<(&'static str, u16)>,
    process: Mutex<Option<Child>>,
}

/// What a broker has beside a listener for everybody.
#[derive(Default)]
pub struct Extras {
    /// Names and protocols of further listeners.
    pub listeners: &'static [(&'static str, &'static str)],
    /// Lines of its settings.
    pub settings: String,
    /// Names and passwords for SCRAM-SHA-512.
    pub users: Vec<(String, String)>,
}

/// The listener for everybody.
pub const OPEN: &str = "PLAINTEXT";

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn installed() -> Result<PathBuf> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kafka/install.sh");
    ensure!(Command::new("sh").arg(script).status()?.success(), "tests/kafka/install.sh has failed");
    let home = match std::env::var_os("TIDEGATE_KAFKA_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME")?).join(".cache/tidegate/kafka-4.3.1"),
    };
    Ok(home.join("lib"))
}

/// Starts a process that never outlives the tests. From a thread that lives as long as they do: the death signal
/// follows the thread.
pub fn spawn(mut command: Command) -> Result<Child> {
    // SAFETY: prctl is safe to call between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    type Request = (Command, Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<Sender<Request>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (requests, received) = channel::<Request>();
        std::thread::spawn(move || {
            received.into_iter().for_each(|(mut command, answer)| drop(answer.send(command.spawn())))
        });
        Mutex::new(requests)
    });
    let (answer, child) = channel();
    spawner.lock().expect("nobody panics with it").send((command, answer))?;
    Ok(child.recv()??)
}

static SHARED: Mutex<Vec<&Broker>> = Mutex::new(Vec::new());

extern "C" fn end_shared() {
    for broker in SHARED.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        broker.kill();
        let _ = std::fs::remove_dir_all(broker.path());
    }
}

/// Keeps a broker until the process ends.
pub fn keep(broker: Broker) -> &'static Broker {
    let broker: &Broker = Box::leak(Box::new(broker));
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if shared.is_empty() {
        // SAFETY: the handler uses only what lives until the process ends.
        unsafe { libc::atexit(end_shared) };
    }
    shared.push(broker);
    broker
}

/// The broker of all tests that do not hurt it.
pub fn shared() -> &'static Broker {
    static BROKER: OnceLock<&Broker> = OnceLock::new();
    BROKER.get_or_init(|| keep(Broker::start().expect("the tests need a broker")))
}

impl Broker {
    /// Installs what is needed, formats a folder and starts.
    pub fn start() -> Result<Broker> {
        Broker::start_with(Extras::default())
    }

    /// The same with more than that.
    pub fn start_with(extras: Extras) -> Result<Broker> {
        let lib = installed()?;
        let folder = tempfile::Builder::new().prefix("tidegate-kafka-").tempdir()?;
        let controller = free_port()?;
        let (mut ports, mut listeners, mut protocols) = (Vec::new(), String::new(), "CONTROLLER:PLAINTEXT".to_owned());
        for (name, protocol) in [(OPEN, OPEN)].iter().chain(extras.listeners) {
            let port = free_port()?;
            write!(listeners, "{name}://127.0.0.1:{port},")?;
            write!(protocols, ",{name}:{protocol}")?;
            ports.push((*name, port));
        }
        let settings = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners={listeners}CONTROLLER://127.0.0.1:{controller}\nadvertised.listeners={advertised}\n\
             controller.listener.names=CONTROLLER\ninter.broker.listener.name={OPEN}\n\
             listener.security.protocol.map={protocols}\nlog.dirs={data}\n{more}\
             auto.create.topics.enable=false\ndelete.topic.enable=true\ngroup.initial.rebalance.delay.ms=0\n\
             group.min.session.timeout.ms=1000\ntransaction.abort.timed.out.transaction.cleanup.interval.ms=1000\n\
             offsets.topic.num.partitions=4\noffsets.topic.replication.factor=1\n\
             transaction.state.log.num.partitions=4\ntransaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\nlog.retention.check.interval.ms=1000\nlog.cleaner.backoff.ms=500\n\
             num.network.threads=2\nnum.io.threads=4\nlog.flush.scheduler.interval.ms=9223372036854775807\n",
            data = folder.path().join("data").display(),
            advertised = listeners.trim_end_matches(','),
            more = extras.settings,
        );
        std::fs::write(folder.path().join("server.properties"), settings)?;
        let broker = Broker { folder: Some(folder), lib, ports, process: Mutex::new(None) };
        let users = extras.users.iter().map(|(name, word)| format!("SCRAM-SHA-512=[name={name},password={word}]"));
        let users: Vec<String> = users.flat_map(|user| ["--add-scram".to_owned(), user]).collect();
        let mut arguments = vec!["format", "-t", "dGlkZWdhdGUtdGVzdHMtMQ"];
        arguments.extend(users.iter().map(String::as_str).chain(["-c"]));
        let format = broker.java("kafka.tools.StorageTool", &arguments)?.status()?;
        ensure!(format.success(), "the folder could not be formatted:\n{}", broker.log());
        broker.restart()?;
        Ok(broker)
    }

    fn path(&self) -> &Path {
        self.folder.as_ref().expect("taken only in drop").path()
    }

    fn java(&self, main: &str, arguments: &[&str]) -> Result<Command> {
        let log = std::fs::File::options().create(true).append(true).open(self.path().join("broker.log"))?;
        let mut command = Command::new("java");
        command
            .args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"])
            .arg(format!("{}/*", self.lib.display()));
        command.arg(main).args(arguments).arg(self.path().join("server.properties"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }

    /// `host:port` for clients.
    pub fn servers(&self) -> String {
        self.servers_of(OPEN)
    }

    /// `host:port` of one of its listeners.
    pub fn servers_of(&self, listener: &str) -> String {
        let (_, port) = self.ports.iter().find(|(name, _)| *name == listener).expect("a listener of it");
        format!("127.0.0.1:{port}")
    }

    /// How much of its disk the records of a partition take.
    pub fn bytes_of(&self, topic: &str, partition: i32) -> u64 {
        let files = std::fs::read_dir(self.path().join(format!("data/{topic}-{partition}"))).expect("its folder");
        let segments = files.flatten().filter(|file| file.path().extension().is_some_and(|it| it == "log"));
        // The cleaner may have removed one meanwhile.
        segments.filter_map(|segment| segment.metadata().ok()).map(|found| found.len()).sum()
    }

    /// What the broker has printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("broker.log")).unwrap_or_default()
    }

    /// Starts again on the same data and port; waits until the port is open.
    pub fn restart(&self) -> Result<()> {
        let mut process = spawn(self.java("kafka.Kafka", &[])?)?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(self.servers()).is_err() {
            ensure!(process.try_wait()?.is_none(), "the broker has ended:\n{}", self.log());
            ensure!(Instant::now() < deadline, "the broker does not open its port:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        *self.process.lock().expect("no test panics with it") = Some(process);
        Ok(())
    }

    fn signal(&self, signal: i32) {
        let mut slot = self.process.lock().expect("no test panics with it");
        if let Some(mut process) = slot.take() {
            // SAFETY: the process is our own child and has not been waited for.
            unsafe { libc::kill(process.id().cast_signed(), signal) };
            let _ = process.wait();
        }
    }

    /// Stops in an orderly way.
    pub fn stop(&self) {
        self.signal(libc::SIGTERM);
    }

    /// The same while its clients stand still; `tell` passes a signal on to them.
    ///
    /// While a single node stops, its partitions have no leader for a moment, and Kafka 4.3.1 then takes a transaction
    /// that is being ended for complete although its end is not written everywhere; such a partition is not read on by
    /// anybody (protocol P14). A cluster moves the leaders first. So nobody ends one just then.
    pub fn stop_while_they_pause(&self, tell: impl Fn(i32)) {
        tell(libc::SIGSTOP);
        // What is being ended is ended in milliseconds; nobody can ask for it.
        std::thread::sleep(Duration::from_millis(500));
        self.stop();
        tell(libc::SIGCONT);
    }

    /// Stops at once.
    pub fn kill(&self) {
        self.signal(libc::SIGKILL);
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking()
            && let Some(folder) = self.folder.take()
        {
            eprintln!("the broker's folder is kept: {}", folder.keep().display());
        }
    }
}
