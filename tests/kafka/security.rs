//! Instances and tools on listeners with TLS, client certificates and passwords; what goes wrong there is named, and
//! no secret is told by anything.

use std::path::Path;
use std::process::Command;

use crate::cluster::app::App;
use crate::cluster::check;
use crate::cluster::load::Load;
use crate::rights;
use crate::secured::{MUTUAL, SCRAM, Secured, TLS, in_a_file, secured};

/// An instance gets ready, processes and leaves; `verify` finds what the serial reference has.
fn works(app: &App) {
    let instance = app.start("one");
    app.until("it owns all", || instance.owns() == 6);
    let load = Load::begin(app, 1);
    app.until("enough is sent", || load.sent() >= 200);
    load.end();
    check::all(app);
    assert_eq!(instance.terminate(), Some(0), "{}", app.logs());
}

/// The value of the property, taken out of the list.
fn take(properties: &mut Vec<(String, String)>, name: &str) -> String {
    let at = properties.iter().position(|(its, _)| its == name).expect("it is set");
    properties.remove(at).1
}

#[test]
fn an_instance_runs_on_a_listener_with_tls() {
    let mut app = secured().app("tls", TLS);
    in_a_file(&mut app, "tidegate.toml", &secured().properties(TLS, None));
    works(&app);
}

#[test]
fn an_instance_runs_with_a_client_certificate_by_the_environment_alone() {
    let mut app = secured().app("mutual", MUTUAL);
    let properties = secured().properties(MUTUAL, None);
    let table: Vec<String> = properties.iter().map(|(name, value)| format!("{name:?} = {value:?}")).collect();
    app.environment.push(("TIDEGATE_KAFKA__PROPERTIES".into(), format!("{{ {} }}", table.join(", "))));
    works(&app);
}

#[test]
fn an_instance_runs_with_a_password_that_stands_in_a_file_of_its_own() {
    let (secured, user) = (secured(), secured().user());
    let mut app = secured.app("scram", SCRAM);
    secured.acls.grant(&user.name, &rights::needed(&app));
    let mut properties = secured.properties(SCRAM, Some(&user));
    let file = app.folder.path().join("password");
    std::fs::write(&file, take(&mut properties, "sasl.password") + "\n").expect("written");
    properties.push(("sasl.password_file".into(), file.display().to_string()));
    in_a_file(&mut app, "tidegate.toml", &properties);
    works(&app);
}

/// The instance waits and says why; so do the tools, and end.
fn refused(name: &str, listener: &str, properties: &[(String, String)], cause: &str) {
    let mut app = secured().app(name, listener);
    in_a_file(&mut app, "tidegate.toml", properties);
    let instance = app.start("one");
    std::thread::scope(|scope| {
        for verb in [&["verify"][..], &["topics", "list"][..]] {
            let app = &app;
            scope.spawn(move || {
                let ended = app.tool(verb);
                let said = String::from_utf8_lossy(&ended.stderr).into_owned();
                assert_eq!(ended.status.code(), Some(1), "{verb:?}: {said}");
                for part in [cause, "kafka.properties", "docs/security.md"] {
                    assert!(said.contains(part), "{verb:?} does not say {part:?}: {said}");
                }
            });
        }
    });
    app.until("/readyz has the cause", || instance.trouble().contains(cause));
    app.until("so has its log", || instance.said().contains(cause));
    let lines = instance.said().lines().count();
    assert!(lines <= 12, "{lines} lines:\n{}", app.logs());
    assert_eq!(instance.terminate(), Some(0), "it waited, and ends in order:\n{}", app.logs());
}

#[test]
fn what_keeps_a_client_out_is_named_by_the_instance_and_the_tools() {
    let (secured, user) = (secured(), secured().user());
    let mut foreign = secured.properties(TLS, None);
    take(&mut foreign, "ssl.ca.location");
    foreign.push(("ssl.ca.location".into(), secured.path("foreign.pem").display().to_string()));
    let mut wrong = secured.properties(SCRAM, Some(&user));
    take(&mut wrong, "sasl.password");
    wrong.push(("sasl.password".into(), "not-the-password".into()));
    let without = secured.properties(TLS, None);
    std::thread::scope(|scope| {
        scope.spawn(|| refused("authority", TLS, &foreign, "certificate verify failed"));
        scope.spawn(|| refused("password", SCRAM, &wrong, "invalid credentials"));
        scope.spawn(|| refused("nameless", MUTUAL, &without, "alert"));
        scope.spawn(|| refused("protocol", TLS, &[], "connection closed by peer"));
    });
}

/// What must not be found, and where it was planted.
fn planted(secured: &Secured, password: &str) -> Vec<(&'static str, String)> {
    let key = std::fs::read_to_string(secured.path("client.key")).expect("a key");
    let body: Vec<String> = key.lines().filter(|line| !line.starts_with('-')).map(str::to_owned).collect();
    let mut all = vec![("sasl.password", password.to_owned()), ("ssl.key.password", "planted-key-password".to_owned())];
    all.extend(body.into_iter().map(|line| ("ssl.key.pem", line)));
    all
}

fn search(place: &str, text: &str, secrets: &[(&'static str, String)]) {
    for (name, secret) in secrets {
        assert!(!text.contains(secret), "{place} tells {name}:\n{text}");
    }
}

fn told_by(mut command: Command) -> (Option<i32>, String) {
    let ended = command.env("RUST_LOG", "debug").output().expect("the binary starts");
    let text = String::from_utf8_lossy(&ended.stdout).into_owned() + &String::from_utf8_lossy(&ended.stderr);
    (ended.status.code(), text)
}

#[test]
fn secrets_are_told_by_nothing_that_is_printed_or_served() {
    let (secured, user) = (secured(), secured().user());
    let mut app = secured.app("secrets", SCRAM);
    secured.acls.grant(&user.name, &rights::needed(&app));
    let secrets = planted(secured, &user.password);
    let read = |name: &str| std::fs::read_to_string(secured.path(name)).expect("a file");
    let mut properties = secured.properties(SCRAM, Some(&user));
    let password = take(&mut properties, "sasl.password");
    properties.extend([
        ("ssl.key.pem".into(), read("client.key")),
        ("ssl.certificate.pem".into(), read("client.crt")),
        ("ssl.key.password".into(), "planted-key-password".into()),
        ("debug".into(), "all".into()),
    ]);
    in_a_file(&mut app, "tidegate.toml", &properties);
    app.environment.push(("TIDEGATE_KAFKA__PROPERTIES__SASL__PASSWORD".into(), password));
    app.environment.push(("RUST_LOG".into(), "debug".into()));
    // 1. An instance that runs, with librdkafka's own log in full.
    let instance = app.start("one");
    app.until("it owns all", || instance.owns() == 6);
    for path in ["/readyz?verbose", "/livez?verbose", "/metrics", "/api/v1/status", "/api/v1/tasks", "/no/such"] {
        let (_, text) = instance.page(path).expect("an answer");
        search(path, &text, &secrets);
    }
    assert_eq!(instance.terminate(), Some(0), "{}", app.logs());
    let said = instance.said();
    assert!(said.contains("SCRAM"), "librdkafka's own lines are in it: {} bytes", said.len());
    search("the instance's log", &said, &secrets);
    // 2. Commands that succeed.
    for verb in [&["config", "show"][..], &["config", "check"], &["topics", "list"]] {
        let (code, text) = told_by(app.command(verb));
        assert_eq!(code, Some(0), "{verb:?}: {text}");
        search(&verb.join(" "), &text, &secrets);
    }
    // 3. Commands that fail, each for another reason, with the secret in the middle of it.
    let of_the_file = |line: &str| {
        let path = app.folder.path().join("broken.toml");
        let text = std::fs::read_to_string(app.folder.path().join("tidegate.toml")).expect("written above");
        std::fs::write(&path, text + line).expect("written");
        path
    };
    let password = &secrets[0].1;
    for broken in [
        format!("\"sasl.password\" = [{password:?}]\n"),
        format!("\"sasl.password\" = {password}\n"),
        format!("\"sasl.pasword\" = {password:?}\n"),
        format!("\"transactional.id\" = {password:?}\n"),
        "\"ssl.ca.pem\" = \"-----BEGIN CERTIFICATE-----\\nbroken\"\n".to_owned(),
        format!("[kafka]\n\"sasl.password\" = {password:?}\n"),
    ] {
        let (code, text) = told_by(with_file(&app, &of_the_file(&broken)));
        assert_eq!(code, Some(2), "{text}");
        search("a refusal", &text, &secrets);
    }
}

/// A command that opens Kafka, with another configuration file.
fn with_file(app: &App, path: &Path) -> Command {
    let mut command = app.command(&["topics", "list"]);
    let arguments: Vec<_> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
    let at = arguments.iter().position(|argument| argument == "--config").expect("it has one");
    let mut other = Command::new(command.get_program());
    other.args(&arguments[..=at]).arg(path).args(&arguments[at + 2..]);
    other.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command = other;
    command.env_remove("TIDEGATE_KAFKA__PROPERTIES__SASL__PASSWORD");
    command
}
