//! Connections: only so many at a time, and none that stands still while it is written to.
//!
//! N1: a connection holds its place from its acceptance to its end; without a free place it is closed
//!     at once, so that connections never take the files that the stores and the log need.

use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum_server::accept::Accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

/// The most connections at a time, where the process may open enough files.
const MAX_CONNECTIONS: usize = 4096;

/// A client that takes nothing of its answer for so long is given up.
const STALLED: Duration = Duration::from_secs(30);

/// Gives each connection a place.
#[derive(Clone, Debug)]
pub struct Places {
    places: Arc<Semaphore>,
    /// See [`STALLED`].
    patience: Duration,
}

impl Places {
    /// As many as leave three quarters of the process's files to others.
    pub fn new() -> Places {
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let places = open_files(&limits).map_or(MAX_CONNECTIONS, |files| (files / 4).clamp(64, MAX_CONNECTIONS));
        Places { places: Arc::new(Semaphore::new(places)), patience: STALLED }
    }
}

/// The soft limit of open files, from the text of `/proc/self/limits`.
fn open_files(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

impl<S> Accept<TcpStream, S> for Places {
    type Stream = Connection;
    type Service = S;
    type Future = Ready<io::Result<(Connection, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let accepted = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => stream
                .set_nodelay(true)
                .map(|()| (Connection { stream, patience: self.patience, stalled: None, _place: place }, service)),
            Err(_) => Err(io::Error::other("all places for connections are taken")),
        };
        ready(accepted)
    }
}

/// A connection with its place.
pub struct Connection {
    stream: TcpStream,
    patience: Duration,
    /// Runs while the client does not take what is written.
    stalled: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    fn watch<T>(&mut self, polled: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(polled, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(polled, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn the_limit_of_files_is_read() {
        let text = "Limit                     Soft Limit  Hard Limit  Units\nMax open files            1024        524288      files\n";
        assert_eq!(open_files(text), Some(1024));
        assert_eq!(open_files("Max open files  unlimited unlimited files"), None);
        assert!((64..=MAX_CONNECTIONS).contains(&Places::new().places.available_permits()));
    }

    async fn pair(places: &Places) -> (TcpStream, io::Result<(Connection, ())>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, places.accept(listener.accept().await.unwrap().0, ()).await)
    }

    #[tokio::test]
    async fn a_place_is_held_to_the_end() {
        let places = Places { places: Arc::new(Semaphore::new(1)), patience: STALLED };
        let (_client, first) = pair(&places).await;
        let first = first.unwrap();
        assert!(pair(&places).await.1.is_err(), "N1");
        drop(first);
        assert!(pair(&places).await.1.is_ok());
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_given_up() {
        let places = Places { patience: Duration::from_millis(100), ..Places::new() };
        let (_client, accepted) = pair(&places).await;
        let (mut connection, ()) = accepted.unwrap();
        let error = loop {
            if let Err(error) = connection.write_all(&[0; 1 << 16]).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
