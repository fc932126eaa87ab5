//! Who is let in, over what, and what no client can do to an instance.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::tempdir;

use crate::running::{Caller, Running, eventually, run, tidegate};

/// Never to be seen anywhere.
const TOKEN: &str = "planted-7f3a9c-token";

fn protected(folder: &Path, arguments: &[&str]) -> Running {
    std::fs::write(folder.join("token"), format!("{TOKEN}\n")).unwrap();
    let arguments = [&["--set", "server.token_file=token"], arguments].concat();
    Running::start_for(folder, &arguments, Caller { token: Some(TOKEN.into()), ca: None })
}

/// One request as it stands; the whole answer.
fn raw(instance: &Running, request: &str) -> String {
    let mut stream = TcpStream::connect(instance.url.split_once("://").unwrap().1).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // An answer may come before all is sent, and the end of the connection with it.
    let _ = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn ask(instance: &Running, method: &str, path: &str, headers: &str) -> String {
    raw(instance, &format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n"))
}

const PATHS: [&str; 7] = ["status", "tasks", "in-flight", "keys", "keys/1", "events", "no/such/path"];

#[test]
fn every_call_of_the_api_needs_the_token() {
    let folder = tempdir().unwrap();
    let instance = protected(folder.path(), &[]);
    for path in PATHS {
        for method in ["GET", "HEAD", "POST", "OPTIONS", "DELETE"] {
            let wrong = "authorization: Bearer wrong\r\n";
            for (headers, challenge) in
                [("", "realm"), (wrong, "invalid_token"), ("authorization: Basic x\r\n", "realm")]
            {
                let answer = ask(&instance, method, &format!("/api/v1/{path}"), headers);
                assert!(answer.starts_with("HTTP/1.1 401 "), "{method} {path}: {answer}");
                assert!(answer.contains("www-authenticate: Bearer ") && answer.contains(challenge), "{answer}");
                assert!(method == "HEAD" || answer.contains("\"code\":\"unauthorized\"") && answer.contains("hint"));
            }
        }
    }
    for path in ["/api", "/api/", "/api/v2"] {
        assert!(ask(&instance, "GET", path, "").starts_with("HTTP/1.1 401 "), "{path}");
    }
    for path in ["/livez", "/readyz", "/startupz", "/metrics"] {
        assert!(ask(&instance, "GET", path, "").starts_with("HTTP/1.1 200 "), "{path}");
    }
    assert_eq!(instance.get("/api/v1/status").0, 200);
    instance.send(r#"{"key":"1","action":"ADD"}"#);
    instance.holds("1", "ADD");
}

#[test]
fn metrics_can_be_protected_too() {
    let folder = tempdir().unwrap();
    let instance = protected(folder.path(), &["--set", "server.protect_metrics=true"]);
    assert!(ask(&instance, "GET", "/metrics", "").starts_with("HTTP/1.1 401 "));
    assert!(ask(&instance, "GET", "/readyz", "").starts_with("HTTP/1.1 200 "));
    assert_eq!(instance.get_text("/metrics").0, 200);
}

#[test]
fn commands_bring_the_token() {
    let folder = tempdir().unwrap();
    let instance = protected(folder.path(), &[]);
    let said = instance.command(&["tasks"]).failed(1);
    assert!(said.contains("401 unauthorized") && said.contains("--token-file"), "{said}");
    let said = instance.command(&["topology", "--token", "wrong"]);
    assert!(said.err.starts_with("without rates: ") && said.err.contains("--token-file"), "{said:?}");
    said.ok();
    let said = instance.command(&["tasks", "--token", "wrong"]).failed(1);
    assert!(said.contains("401 unauthorized"), "{said}");
    instance.command(&["send", "1:ADD", "--token", TOKEN]).ok();
    let file = folder.path().join("token").display().to_string();
    instance.command(&["tasks", "--token-file", &file]).ok();
    let mut command = tidegate(Path::new("/"));
    command.args(["--server", &instance.url, "list"]).env("TIDEGATE_TOKEN", TOKEN);
    assert!(command.output().unwrap().status.success());
    let said = instance.command(&["tasks", "--token-file", "/no/such/file"]).failed(2);
    assert!(said.contains("/no/such/file"), "{said}");
    instance.command(&["tasks", "--token", "a b"]).failed(2);
    let said = run(folder.path(), &["run", "--listen", "127.0.0.1:0", "--token", TOKEN]).failed(2);
    assert!(said.contains("server.token_file"), "{said}");
}

#[test]
fn the_token_is_seen_nowhere() {
    let folder = tempdir().unwrap();
    let instance = protected(folder.path(), &["--set", "handler.retry.initial=10s"]);
    instance.send(r#"{"key":"bad","action":"ADD","payload":{"fail":{"times":3,"how":"panic"}}}"#);
    let mut seen: Vec<String> = PATHS.map(|path| instance.get_text(&format!("/api/v1/{path}")).1).to_vec();
    seen.extend(["/metrics", "/readyz?verbose", "/api/v1/keys?limit=0"].map(|path| instance.get_text(path).1));
    seen.push(ask(&instance, "GET", "/api/v1/status", &format!("authorization: Bearer {TOKEN}x\r\n")));
    let file = folder.path().join("token").display().to_string();
    for verb in [&["config", "show"][..], &["config", "check"]] {
        seen.push(run(folder.path(), &[verb, &["--set", &format!("server.token={TOKEN}")]].concat()).ok());
        seen.push(run(folder.path(), &[verb, &["--set", &format!("server.token_file={file}")]].concat()).ok());
    }
    let wrong = format!("server.token={TOKEN} x");
    seen.push(run(folder.path(), &["run", "--set", &wrong]).failed(2));
    seen.push(instance.command(&["get", "nobody", "--token", TOKEN]).failed(1));
    let nobody = ["--server", "http://127.0.0.1:1", "--token", TOKEN, "tasks"];
    seen.push(run(folder.path(), &nobody).failed(1));
    let mut help = tidegate(folder.path());
    seen.push(String::from_utf8(help.arg("--help").env("TIDEGATE_TOKEN", TOKEN).output().unwrap().stdout).unwrap());
    instance.signal("TERM");
    eventually("it says that it stops", || {
        let logged = instance.logged();
        let stopped = logged.iter().any(|line| line.contains("stopped"));
        seen.extend(logged);
        stopped.then_some(())
    });
    assert_eq!(instance.ended(), Some(0));
    for text in &seen {
        assert!(!text.contains(TOKEN), "{text}");
    }
}

#[test]
fn a_token_that_cannot_be_used_is_a_wrong_configuration() {
    let folder = tempdir().unwrap();
    std::fs::write(folder.path().join("empty"), "\n").unwrap();
    std::fs::write(folder.path().join("spaces"), "a b").unwrap();
    let refused = |settings: &[&str], words: &[&str]| {
        for verb in [&["run", "--listen", "127.0.0.1:0"][..], &["config", "check"]] {
            let settings = settings.iter().flat_map(|setting| ["--set", setting]);
            let arguments: Vec<&str> = verb.iter().copied().chain(settings).collect();
            let said = run(folder.path(), &arguments).failed(2);
            assert!(words.iter().all(|word| said.contains(word)), "{said}");
        }
    };
    refused(&["server.token=a", "server.token_file=empty"], &["server.token_file", "keep one"]);
    refused(&["server.token_file=empty"], &["server.token_file", "is empty"]);
    refused(&["server.token_file=missing"], &["server.token_file", "missing"]);
    refused(&["server.token_file=spaces"], &["server.token_file", "visible ASCII"]);
    refused(&["server.token=a b"], &["server.token", "visible ASCII"]);
    refused(&["server.tls.cert=x.pem"], &["server.tls.key", "HTTPS needs both"]);
    refused(&["server.tls.cert=x.pem", "server.tls.key=x.key"], &["server.tls.cert", "x.pem"]);
}

/// A certificate for 127.0.0.1 and its key, as files.
pub fn certificate(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    let (cert, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    (cert, key)
}

#[test]
fn https_with_a_token() {
    let folder = tempdir().unwrap();
    let (cert, key) = certificate(folder.path(), "own");
    let (foreign, _) = certificate(folder.path(), "foreign");
    let settings = [format!("server.tls.cert={}", cert.display()), format!("server.tls.key={}", key.display())];
    let arguments = ["--set", &settings[0], "--set", &settings[1], "--set", &format!("server.token={TOKEN}")];
    let caller = Caller { token: Some(TOKEN.into()), ca: Some(cert.clone()) };
    let instance = Running::start_for(folder.path(), &arguments, caller);
    assert!(instance.url.starts_with("https://"), "{}", instance.url);
    instance.send(r#"{"key":"1","action":"ADD"}"#);
    instance.holds("1", "ADD");
    let ca = cert.display().to_string();
    instance.command(&["get", "1", "--token", TOKEN, "--ca", &ca]).ok();
    let said = instance.command(&["get", "1", "--token", TOKEN, "--ca", &foreign.display().to_string()]).failed(1);
    assert!(said.contains("certificate"), "{said}");
    let said = instance.command(&["get", "1", "--token", TOKEN]).failed(1);
    assert!(said.contains("certificate") && said.contains("--ca"), "{said}");
    let key = key.display().to_string();
    let said = instance.command(&["get", "1", "--ca", &key]).failed(2);
    assert!(said.contains("no certificate"), "{said}");
}

#[test]
fn options_and_head_are_answered() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    let answer = ask(&instance, "OPTIONS", "/api/v1/keys", "");
    assert!(answer.starts_with("HTTP/1.1 204 ") && answer.to_ascii_lowercase().contains("allow: get,head"), "{answer}");
    let answer = ask(&instance, "OPTIONS", "/api/v1/events", "");
    assert!(answer.to_ascii_lowercase().contains("allow: post"), "{answer}");
    assert!(!answer.to_ascii_lowercase().contains("access-control"), "{answer}");
    let answer = ask(&instance, "HEAD", "/api/v1/status", "");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    let answer = ask(&instance, "DELETE", "/livez", "");
    assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("method_not_allowed"), "{answer}");
}

#[test]
fn idle_and_slow_clients_do_not_keep_others_out() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    let address = instance.url.split_once("://").unwrap().1.to_owned();
    let begun = Instant::now();
    let connect = || TcpStream::connect(&address).unwrap();
    // One says nothing, one stops within the head, one has been answered and asks for nothing more.
    let (idle, mut slow, mut kept) = (connect(), connect(), connect());
    kept.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n").unwrap();
    let many: Vec<TcpStream> = (0..500).map_while(|_| TcpStream::connect(&address).ok()).collect();
    for mut stream in [&idle, &slow, &kept] {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut rest = Vec::new();
        // Closed in good order or not: it ends.
        let _ = stream.read_to_end(&mut rest);
        assert!(begun.elapsed() < Duration::from_secs(45), "given up");
    }
    drop(many);
    eventually("others are answered", || {
        let mut stream = TcpStream::connect(&address).ok()?;
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200 ").then_some(())
    });
}

#[cfg(unix)]
#[test]
fn what_it_makes_is_for_its_user_alone() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    instance.send(r#"{"key":"1","action":"ADD"}"#);
    instance.holds("1", "ADD");
    for made in ["tidegate-data", "tidegate-data/log", "tidegate-data/state", "tidegate-data/state/one"] {
        let mode = std::fs::metadata(folder.path().join(made)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{made}");
    }
}

#[test]
fn no_body_hurts() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    let json = "application/json";
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let (status, answer) = instance.post(json, nested(100_000));
    assert_eq!((status, &answer["error"]["code"]), (400, &"bad_event".into()), "{answer}");
    let (status, answer) = instance.post(json, "[".repeat(1 << 20));
    assert_eq!((status, &answer["error"]["code"]), (400, &"bad_event".into()), "{answer}");
    let large = format!(r#"{{"key":"1","action":"ADD","payload":"{}"}}"#, "x".repeat(5 << 20));
    let (status, answer) = instance.post(json, large);
    assert_eq!((status, &answer["error"]["code"]), (413, &"too_large".into()), "{answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("event 1 ") && message.contains("max.message.bytes"), "{answer}");
    let small = r#"{"key":"1","action":"ADD"}"#;
    let large = format!(r#"{{"key":"2","action":"ADD","payload":"{}"}}"#, "x".repeat(2 << 20));
    let (status, answer) = instance.post("application/x-ndjson", format!("{small}\n{large}\n{small}"));
    assert_eq!(status, 413, "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("event 2 "), "{answer}");
    let head = ask(&instance, "GET", "/livez", &format!("x-large: {}\r\n", "x".repeat(1 << 20)));
    assert!(!head.contains(" 200 "), "{head}");
    let answer = instance.send(r#"{"key":"1","action":"ADD"}"#);
    assert_eq!(answer["first_sequence"], 0, "nothing was appended before");
    // A payload is bytes: how deep it is does not matter to anybody but the handler.
    let deep = format!(r#"{{"key":"deep","action":"ADD","payload":{}}}"#, nested(100_000));
    assert_eq!(instance.post(json, deep).0, 202);
    instance.send(r#"{"key":"2","action":"ADD"}"#);
    instance.holds("2", "ADD");
    assert_eq!(instance.get("/api/v1/keys/deep").0, 404, "no script: a dead letter");
}
