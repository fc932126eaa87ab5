//! Where the server listens.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

use tokio::net::TcpListener;

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
        "server.listen: {0} can be reached from other machines, and there is no token yet that would keep them out; \
         listen on 127.0.0.1, or add --insecure if the network is trusted"
    )]
    OffLoopback(SocketAddr),
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

/// A listener and its address.
pub struct Bound {
    /// Accepts connections.
    pub listener: TcpListener,
    /// The address, with the port that it really has.
    pub address: SocketAddr,
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

/// Listens on `server.listen`; when that is unset, on 127.0.0.1 with port 8080 or the next free one.
/// Must be called inside a tokio runtime.
pub async fn bind(config: &config::Server, insecure: bool) -> Result<Bound, BindError> {
    if config.listen.is_empty() {
        return next_free().await;
    }
    let mut addresses = config.listen.to_socket_addrs().map_err(|_| BindError::NotAnAddress(config.listen.clone()))?;
    let address = addresses.next().ok_or_else(|| BindError::NotAnAddress(config.listen.clone()))?;
    if !address.ip().is_loopback() && !insecure {
        return Err(BindError::OffLoopback(address));
    }
    listen(address).await.map_err(|error| {
        let next_step = match error.kind() {
            io::ErrorKind::AddrInUse => "stop the program that uses it, or set server.listen to another port",
            io::ErrorKind::PermissionDenied => "choose a port above 1023",
            _ => "set server.listen to an address of this machine",
        };
        BindError::Refused { address: config.listen.clone(), error, next_step }
    })
}

async fn next_free() -> Result<Bound, BindError> {
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

async fn listen(address: SocketAddr) -> io::Result<Bound> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    Ok(Bound { listener, address })
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
    async fn off_loopback_needs_insecure() {
        assert!(matches!(bind(&server("0.0.0.0:0"), false).await, Err(BindError::OffLoopback(_))));
        let bound = bind(&server("0.0.0.0:0"), true).await.unwrap();
        assert!(!bound.advertised(&server("0.0.0.0:0")).starts_with("0.0.0.0"));
        assert!(matches!(bind(&server("8080"), false).await, Err(BindError::NotAnAddress(_))));
    }
}
