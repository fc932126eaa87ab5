//! A real Kafka broker of one node for the tests: own ports, own folder, gone with the test.

use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// A broker; killed when it is dropped.
pub struct Broker {
    folder: Option<tempfile::TempDir>,
    lib: PathBuf,
    port: u16,
    process: Mutex<Option<Child>>,
}

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

static SHARED: OnceLock<Broker> = OnceLock::new();

extern "C" fn end_shared() {
    if let Some(broker) = SHARED.get() {
        broker.kill();
        let _ = std::fs::remove_dir_all(broker.path());
    }
}

/// The broker of all tests that do not hurt it.
pub fn shared() -> &'static Broker {
    SHARED.get_or_init(|| {
        // SAFETY: the handler uses only what lives until the process ends.
        unsafe { libc::atexit(end_shared) };
        Broker::start().expect("the tests need a broker")
    })
}

impl Broker {
    /// Installs what is needed, formats a folder and starts.
    pub fn start() -> Result<Broker> {
        let lib = installed()?;
        let folder = tempfile::Builder::new().prefix("tidegate-kafka-").tempdir()?;
        let (port, controller) = (free_port()?, free_port()?);
        let settings = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port}\ncontroller.listener.names=CONTROLLER\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\nlog.dirs={data}\n\
             auto.create.topics.enable=false\ndelete.topic.enable=true\ngroup.initial.rebalance.delay.ms=0\n\
             group.min.session.timeout.ms=1000\ntransaction.abort.timed.out.transaction.cleanup.interval.ms=1000\n\
             offsets.topic.num.partitions=4\noffsets.topic.replication.factor=1\n\
             transaction.state.log.num.partitions=4\ntransaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\nlog.retention.check.interval.ms=1000\nlog.cleaner.backoff.ms=500\n\
             num.network.threads=2\nnum.io.threads=4\nlog.flush.scheduler.interval.ms=9223372036854775807\n",
            data = folder.path().join("data").display(),
        );
        std::fs::write(folder.path().join("server.properties"), settings)?;
        let broker = Broker { folder: Some(folder), lib, port, process: Mutex::new(None) };
        let format =
            broker.java("kafka.tools.StorageTool", &["format", "-t", "dGlkZWdhdGUtdGVzdHMtMQ", "-c"])?.status()?;
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
        format!("127.0.0.1:{}", self.port)
    }

    /// What the broker has printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("broker.log")).unwrap_or_default()
    }

    /// Starts again on the same data and port; waits until the port is open.
    pub fn restart(&self) -> Result<()> {
        let mut process = spawn(self.java("kafka.Kafka", &[])?)?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
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
