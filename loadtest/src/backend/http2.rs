//! The backend's HTTP/2 without TLS: hyper on a thread of its own.

use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::net;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;

use super::{Counters, wanted};

/// What was seen here.
#[derive(Debug, Default)]
pub(super) struct Tally {
    accepted: AtomicU64,
    requests: AtomicU64,
    bytes: AtomicU64,
    forwarded: AtomicU64,
}

impl Tally {
    /// `counters` with what was seen here.
    pub(super) fn added_to(&self, mut counters: Counters) -> Counters {
        let requests = self.requests.load(Relaxed);
        counters.accepted += self.accepted.load(Relaxed);
        counters.requests += requests;
        counters.http2 += requests;
        counters.bytes += self.bytes.load(Relaxed);
        counters.forwarded += self.forwarded.load(Relaxed);
        counters
    }

    fn count(&self, request: &Request<Incoming>, is_first: bool, bytes: usize) {
        let forwarded = request.headers().contains_key("x-forwarded-for");
        self.accepted.fetch_add(is_first.into(), Relaxed);
        self.requests.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
        self.forwarded.fetch_add(forwarded.into(), Relaxed);
    }
}

/// Serves until the socket, which does not block, fails.
///
/// # Errors
/// The system refuses connections.
pub(super) fn serve(listener: net::TcpListener, tally: &Arc<Tally>) -> io::Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(connection(stream, Arc::clone(tally)));
        }
    })
}

async fn connection(stream: TcpStream, tally: Arc<Tally>) {
    let is_first = AtomicBool::new(true);
    let service = service_fn(move |request: Request<Incoming>| {
        let body = "x".repeat(usize::try_from(wanted(request.uri().path())).unwrap_or(0));
        tally.count(&request, is_first.swap(false, Relaxed), body.len());
        ready(Ok::<_, Infallible>(Response::new(body)))
    });
    let server = http2::Builder::new(TokioExecutor::new());
    // What goes wrong is the client's to see.
    server.serve_connection(TokioIo::new(stream), service).await.ok();
}
