//! An httpbin-like HTTP/1.1 backend on a loopback port, on a thread of its own.
//!
//! - It answers as httpbin does, so that a page written for httpbin can be followed.
//! - Dropping it lets open requests finish for a short while, then ends the thread.
//!
//! Deliberately not here: speed. It is what the gateway is tried with, not what it is measured
//! with.

mod answer;
mod body;
mod websocket;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long open requests may go on when the backend is dropped.
const GRACE: Duration = Duration::from_secs(5);

/// The running backend.
#[derive(Debug)]
pub struct Backend {
    address: SocketAddr,
    /// Dropped to end the thread.
    running: Option<watch::Sender<()>>,
    /// `Some` until the drop.
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    /// Starts it on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// No port or thread is to be had.
    pub fn start() -> io::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (running, ended) = watch::channel(());
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let thread = std::thread::Builder::new()
            .name("demo-backend".to_owned())
            .spawn(move || runtime.block_on(serve(listener, ended)))?;
        Ok(Self { address, running: Some(running), thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.running = None;
        if let Some(thread) = self.thread.take() {
            // A panic in it was reported when it happened.
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, mut ended: watch::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // A failed accept concerns only that client.
                if let Ok((stream, peer)) = accepted {
                    connections.spawn(serve_connection(stream, peer, ended.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
            _ = ended.changed() => break,
        }
    }
    drop(listener);
    let finished = async { while connections.join_next().await.is_some() {} };
    // What is not finished by then is cut off with the runtime.
    let _ = tokio::time::timeout(GRACE, finished).await;
}

async fn serve_connection(stream: TcpStream, peer: SocketAddr, mut ended: watch::Receiver<()>) {
    // Without it the backend is only slower.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| infallible(answer::answer(request, peer.ip())));
    let connection =
        http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
    let mut connection = pin!(connection);
    tokio::select! {
        // How a client ends its connection is its own affair.
        _ = connection.as_mut() => return,
        _ = ended.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

async fn infallible<T>(answer: impl Future<Output = T>) -> Result<T, Infallible> {
    Ok(answer.await)
}

#[cfg(test)]
mod tests;
