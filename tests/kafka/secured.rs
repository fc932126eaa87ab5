//! A broker as clusters are run: TLS, client certificates, SCRAM, and nobody may do what was not granted.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::acls::Acls;
use crate::broker::{self, Broker, Extras};
use crate::cluster::app::App;

/// TLS; without a certificate of the client, who is nobody in particular.
pub const TLS: &str = "TLS";
/// TLS with a certificate of the client.
pub const MUTUAL: &str = "MUTUAL";
/// TLS and a password.
pub const SCRAM: &str = "SCRAM";

/// How many users there are; each test takes those that it needs.
const USERS: usize = 12;

/// The broker with its certificates.
pub struct Secured {
    pub broker: &'static Broker,
    pub acls: Acls,
    folder: tempfile::TempDir,
    taken: AtomicUsize,
}

/// A name and its password.
pub struct User {
    pub name: String,
    pub password: String,
}

fn user(number: usize) -> User {
    User { name: format!("user-{number}"), password: format!("pass-of-{number}") }
}

/// An authority by which certificates are signed; its own is written to `<name>.pem`.
fn authority(folder: &Path, name: &str) -> Issuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate");
    std::fs::write(folder.join(format!("{name}.pem")), certificate.pem()).expect("written");
    Issuer::new(params, key)
}

/// A signed certificate for 127.0.0.1: `<name>.key` and `<name>.crt`, and both in `<name>.pem`.
fn certificate(folder: &Path, issuer: &Issuer<'static, KeyPair>, name: &str) {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, issuer).expect("a certificate");
    let write = |end: &str, text: String| std::fs::write(folder.join(format!("{name}.{end}")), text).expect("written");
    write("key", key.serialize_pem());
    write("crt", certificate.pem());
    write("pem", key.serialize_pem() + &certificate.pem());
}

/// The broker of all tests about security.
pub fn secured() -> &'static Secured {
    static BROKER: OnceLock<Secured> = OnceLock::new();
    BROKER.get_or_init(|| {
        let folder = tempfile::Builder::new().prefix("tidegate-certificates-").tempdir().expect("a folder");
        let root = authority(folder.path(), "root");
        authority(folder.path(), "foreign");
        certificate(folder.path(), &root, "broker");
        certificate(folder.path(), &root, "client");
        let path = |name: &str| folder.path().join(name).display().to_string();
        // Who comes without any name may do everything: the tests themselves, and TLS without client certificates.
        let settings = format!(
            "ssl.keystore.type=PEM\nssl.keystore.location={}\nssl.truststore.type=PEM\nssl.truststore.location={}\n\
             listener.name.mutual.ssl.client.auth=required\nsasl.enabled.mechanisms=SCRAM-SHA-512\n\
             listener.name.scram.scram-sha-512.sasl.jaas.config=\
             org.apache.kafka.common.security.scram.ScramLoginModule required;\n\
             authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
             allow.everyone.if.no.acl.found=false\nsuper.users=User:ANONYMOUS;User:CN=client\n",
            path("broker.pem"),
            path("root.pem"),
        );
        let listeners = &[(TLS, "SSL"), (MUTUAL, "SSL"), (SCRAM, "SASL_SSL")];
        let users = (0..USERS).map(user).map(|User { name, password }| (name, password)).collect();
        let broker = broker::keep(Broker::start_with(Extras { listeners, settings, users }).expect("a secured broker"));
        Secured { broker, acls: Acls::open(&broker.servers()), folder, taken: AtomicUsize::new(0) }
    })
}

impl Secured {
    /// A user who may do nothing yet.
    pub fn user(&self) -> User {
        let number = self.taken.fetch_add(1, Ordering::SeqCst);
        assert!(number < USERS, "every test has users of its own: raise USERS");
        user(number)
    }

    /// The path of a certificate or key.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The properties with which a client reaches a listener.
    pub fn properties(&self, listener: &str, user: Option<&User>) -> Vec<(String, String)> {
        let path = |name: &str| self.path(name).display().to_string();
        let protocol = if listener == SCRAM { "SASL_SSL" } else { "SSL" };
        let mut all = vec![("security.protocol", protocol.to_owned()), ("ssl.ca.location", path("root.pem"))];
        if listener == MUTUAL {
            all.extend([("ssl.certificate.location", path("client.crt")), ("ssl.key.location", path("client.key"))]);
        }
        if let Some(user) = user {
            all.push(("sasl.mechanism", "SCRAM-SHA-512".to_owned()));
            all.extend([("sasl.username", user.name.clone()), ("sasl.password", user.password.clone())]);
        }
        all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// An application whose commands reach the broker by this listener; the test itself by that for everybody.
    pub fn app(&self, name: &str, listener: &str) -> App {
        let mut app = App::new(self.broker, name);
        app.arguments = vec!["--set".into(), format!("kafka.bootstrap_servers={}", self.broker.servers_of(listener))];
        app
    }
}

/// Writes the properties into a configuration file, which every command of the application reads.
pub fn in_a_file(app: &mut App, name: &str, properties: &[(String, String)]) {
    let lines: String = properties.iter().map(|(name, value)| format!("{name:?} = {value:?}\n")).collect();
    let path = app.folder.path().join(name);
    std::fs::write(&path, format!("[kafka.properties]\n{lines}")).expect("written");
    app.arguments.extend(["--config".into(), path.display().to_string()]);
}
