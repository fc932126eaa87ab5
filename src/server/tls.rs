//! HTTPS: what this server shows to its callers, and whom it believes when it calls another instance.
//!
//! All instances of an application share the configuration, so each of them speaks HTTPS or none, and
//! an instance believes another one that shows its own certificate, or one that the own chain signs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
};

use crate::config;

/// Why there is no HTTPS although it is asked for: exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read, or has no such thing in it.
    #[error("{key}: {}: {what}", path.display())]
    File {
        /// The key of the configuration.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong, with the next step.
        what: String,
    },
    /// They do not belong together, or are of a kind that cannot be used.
    #[error("server.tls: {} and {} cannot be used together: {what}", cert.display(), key.display())]
    Mismatch {
        /// `server.tls.cert`
        cert: PathBuf,
        /// `server.tls.key`
        key: PathBuf,
        /// Why.
        what: String,
    },
}

/// Both sides of HTTPS.
#[derive(Clone, Debug)]
pub struct Tls {
    /// For those who call this instance.
    pub server: Arc<ServerConfig>,
    /// For calls of other instances.
    pub client: ClientConfig,
}

impl Tls {
    /// Reads the files; `None` when none is set.
    ///
    /// # Errors
    /// [`TlsError`] that names the file.
    pub fn load(files: &config::ServerTls) -> Result<Option<Tls>, TlsError> {
        if files.cert.as_os_str().is_empty() && files.key.as_os_str().is_empty() {
            return Ok(None);
        }
        let wrong = |key, path: &Path, what: String| TlsError::File { key, path: path.to_owned(), what };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.cert)
            .and_then(Iterator::collect)
            .map_err(|error| wrong("server.tls.cert", &files.cert, format!("{error}; it has to be a PEM file")))?;
        let Some(own) = chain.first().cloned() else {
            let what = "there is no certificate in it; it has to have -----BEGIN CERTIFICATE-----";
            return Err(wrong("server.tls.cert", &files.cert, what.into()));
        };
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| {
            let what = format!("{error}; it has to be a PEM file with an unencrypted private key");
            wrong("server.tls.key", &files.key, what)
        })?;
        let provider = Arc::new(ring::default_provider());
        let mismatch = |error: Error| TlsError::Mismatch {
            cert: files.cert.clone(),
            key: files.key.clone(),
            what: match error {
                Error::InconsistentKeys(_) => "the private key is not that of the certificate".into(),
                error => error.to_string(),
            },
        };
        let peers = Arc::new(Peers::new(own, &chain, Arc::clone(&provider)));
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(mismatch)?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(mismatch)?
            .dangerous()
            .with_custom_certificate_verifier(peers)
            .with_no_client_auth();
        Ok(Some(Tls { server: Arc::new(server), client }))
    }
}

/// For calls without HTTPS: believes nobody.
pub fn nobody() -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for both versions of TLS")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth()
}

/// Believes the own certificate, whatever its names are: whoever has its private key has this
/// configuration. Any other one has to be signed by one of the own chain and bear the name asked for.
#[derive(Debug)]
struct Peers {
    own: CertificateDer<'static>,
    signed: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl Peers {
    fn new(own: CertificateDer<'static>, chain: &[CertificateDer<'static>], provider: Arc<CryptoProvider>) -> Peers {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(chain.iter().cloned());
        let signed = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().ok();
        Peers { own, signed, provider }
    }
}

impl ServerCertVerifier for Peers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *end_entity == self.own {
            return Ok(ServerCertVerified::assertion());
        }
        let signed = self.signed.as_ref().ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        signed.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn files_that_do_not_fit_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let one = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let two = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let cert = write(folder.path(), "one.pem", &one.cert.pem());
        let key = write(folder.path(), "one.key", &one.signing_key.serialize_pem());
        let other = write(folder.path(), "two.key", &two.signing_key.serialize_pem());
        let load = |cert: &Path, key: &Path| Tls::load(&config::ServerTls { cert: cert.into(), key: key.into() });
        assert!(load(&cert, &key).unwrap().is_some());
        assert!(Tls::load(&config::ServerTls::default()).unwrap().is_none());
        let refused = |cert: &Path, key: &Path, words: &[&str]| {
            let message = load(cert, key).unwrap_err().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        };
        refused(&cert, &other, &["one.pem", "two.key", "private key is not that of the certificate"]);
        refused(&folder.path().join("none.pem"), &key, &["server.tls.cert", "none.pem"]);
        refused(&cert, &folder.path().join("none.key"), &["server.tls.key", "none.key"]);
        refused(&key, &key, &["server.tls.cert", "no certificate"]);
        refused(&cert, &cert, &["server.tls.key", "private key"]);
    }
}
