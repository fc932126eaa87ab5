//! Where the server listens, and under which conditions.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

use tokio::net::TcpListener;

use super::access::{Access, AccessError};
use super::tls::{Tls, TlsError};
use crate::config;

const DEFAULT_PORT: u16 = 8080;

/// How many ports above the default one are tried.
const TRIES: u16 = 100;

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// `server.listen` is not an address: exit code 2.
    #[error("server.listen: {0:?} is not an address; write host:port, for example 127.0.0.1:8080")]
    NotAnAddress(String),
    /// Others could reach it, and nothing asks them who they are: exit code 2.
    #[error(
        "server.listen: {0} can be reached from other machines, and there is no token that would keep them out; set \
         server.token_file or server.token, listen on 127.0.0.1, or add --insecure if the network is trusted"
    )]
    OffLoopback(SocketAddr),
    /// The token cannot be used: exit code 2.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The files for HTTPS cannot be used: exit code 2.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address is taken or not ours: exit code 1.
    #[error("cannot listen on {address}: {error}; {next_step}")]
    Refused {
        /// The address that was asked for.
        address: String,
        /// What the system says.
        error: io::Error,
        /// What to do about it.
        next_step: &'static str,
    },
}

/// A listener, its address, and what it asks callers for.
pub struct Bound {
    /// Accepts connections.
    pub listener: TcpListener,
    /// The address, with the port that it really has.
    pub address: SocketAddr,
    /// The token.
    pub access: Access,
    /// HTTPS, where the configuration has it.
    pub tls: Option<Tls>,
}

impl Bound {
    /// `host:port` as others write it: `server.advertised`, else the bound address, with this machine's
    /// name where that is a wildcard.
    pub fn advertised(&self, config: &config::Server) -> String {
        if !config.advertised.is_empty() {
            config.advertised.clone()
        } else if self.address.ip().is_unspecified() {
            format!("{}:{}", gethostname::gethostname().to_string_lossy(), self.address.port())
        } else {
            self.address.to_string()
        }
    }
}

/// Whether token and files for HTTPS can be used.
///
/// # Errors
/// [`BindError::Access`] and [`BindError::Tls`].
pub fn check(config: &config::Server) -> Result<(Access, Option<Tls>), BindError> {
    Ok((Access::load(config)?, Tls::load(&config.tls)?))
}

/// Listens on `server.listen`; when that is unset, on 127.0.0.1 with port 8080 or the next free one.
/// Must be called inside a tokio runtime.
///
/// # Errors
/// [`BindError`]: what is wrong with the configuration is told before anything is listened on.
pub async fn bind(config: &config::Server, insecure: bool) -> Result<Bound, BindError> {
    let (access, tls) = check(config)?;
    let (listener, address) = match config.listen.as_str() {
        "" => next_free().await?,
        listen => at(listen, insecure || access.is_protected()).await?,
    };
    if access.is_protected() && tls.is_none() && !address.ip().is_loopback() {
        tracing::warn!("the token goes over the network as it is: set server.tls, or put a proxy with HTTPS before it");
    }
    Ok(Bound { listener, address, access, tls })
}

async fn at(asked: &str, may_be_reached: bool) -> Result<(TcpListener, SocketAddr), BindError> {
    let not_an_address = || BindError::NotAnAddress(asked.to_owned());
    let mut addresses = asked.to_socket_addrs().map_err(|_| not_an_address())?;
    let address = addresses.next().ok_or_else(not_an_address)?;
    if !address.ip().is_loopback() && !may_be_reached {
        return Err(BindError::OffLoopback(address));
    }
    listen(address).await.map_err(|error| {
        let next_step = match error.kind() {
            io::ErrorKind::AddrInUse => "stop the program that uses it, or set server.listen to another port",
            io::ErrorKind::PermissionDenied => "choose a port above 1023",
            _ => "set server.listen to an address of this machine",
        };
        BindError::Refused { address: asked.to_owned(), error, next_step }
    })
}

async fn next_free() -> Result<(TcpListener, SocketAddr), BindError> {
    let mut last = None;
    for port in DEFAULT_PORT..DEFAULT_PORT + TRIES {
        match listen(SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port)).await {
            Ok(bound) => return Ok(bound),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = Some(error),
            Err(error) => {
                last = Some(error);
                break;
            }
        }
    }
    Err(BindError::Refused {
        address: format!("127.0.0.1, ports {DEFAULT_PORT} to {}", DEFAULT_PORT + TRIES - 1),
        error: last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()),
        next_step: "set server.listen to a free port",
    })
}

async fn listen(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(listen: &str) -> config::Server {
        config::Server { listen: listen.into(), ..config::Server::default() }
    }

    #[tokio::test]
    async fn unset_takes_the_next_free_port_and_set_does_not() {
        let first = bind(&server(""), false).await.unwrap();
        let second = bind(&server(""), false).await.unwrap();
        assert_ne!(first.address.port(), second.address.port());
        let taken = first.address.to_string();
        let error = bind(&server(&taken), false).await.err().unwrap().to_string();
        assert!(error.contains(&taken) && error.contains("server.listen"), "{error}");
    }

    #[tokio::test]
    async fn off_loopback_needs_a_token_or_insecure() {
        assert!(matches!(bind(&server("0.0.0.0:0"), false).await, Err(BindError::OffLoopback(_))));
        let bound = bind(&server("0.0.0.0:0"), true).await.unwrap();
        assert!(!bound.advertised(&server("0.0.0.0:0")).starts_with("0.0.0.0"));
        assert!(matches!(bind(&server("8080"), false).await, Err(BindError::NotAnAddress(_))));
        let protected = config::Server { token: "s3cret".to_owned().into(), ..server("0.0.0.0:0") };
        assert!(bind(&protected, false).await.unwrap().access.is_protected());
    }
}
