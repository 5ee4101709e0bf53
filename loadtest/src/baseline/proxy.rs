//! What the two hyper baselines have in common: all but the sockets.
//!
//! - hyper's server for HTTP/1.1 and HTTP/2, its client for HTTP/1.1, both inside tokio-rustls.
//! - Everything lives on one thread; connections to the backend are kept.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::client::conn::http1 as client;
use hyper::header::{CONNECTION, HeaderName, HeaderValue};
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::spawn_local;
use tokio_rustls::TlsAcceptor;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// How a runtime makes sockets.
pub(super) trait Connect: 'static {
    /// A connected socket.
    type Stream: AsyncRead + AsyncWrite + Unpin + 'static;

    /// Connects to `address`.
    fn connect(address: SocketAddr) -> impl Future<Output = io::Result<Self::Stream>>;
}

/// Serves clients; cheap to clone.
pub(super) struct Proxy<C> {
    tls: TlsAcceptor,
    pool: Rc<Pool>,
    connect: std::marker::PhantomData<C>,
}

impl<C> Clone for Proxy<C> {
    fn clone(&self) -> Self {
        let (tls, pool) = (self.tls.clone(), Rc::clone(&self.pool));
        Self { tls, pool, connect: std::marker::PhantomData }
    }
}

struct Pool {
    backend: SocketAddr,
    /// Some may still receive the body of their answer.
    senders: RefCell<VecDeque<client::SendRequest<Incoming>>>,
}

impl<C: Connect> Proxy<C> {
    pub(super) fn new(backend: SocketAddr, tls: Arc<ServerConfig>) -> Self {
        let pool = Rc::new(Pool { backend, senders: RefCell::new(VecDeque::new()) });
        Self { tls: TlsAcceptor::from(tls), pool, connect: std::marker::PhantomData }
    }

    /// Serves a client until it goes.
    pub(super) fn spawn(&self, stream: C::Stream) {
        let proxy = self.clone();
        // What goes wrong is the client's to see.
        spawn_local(async move { proxy.serve(stream).await.ok() });
    }

    async fn serve(self, stream: C::Stream) -> io::Result<()> {
        let stream = self.tls.accept(stream).await?;
        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let stream = TokioIo::new(stream);
        let service = service_fn(move |request| self.clone().forward(request));
        if h2 {
            let server = http2::Builder::new(Local).serve_connection(stream, service);
            server.await.map_err(io::Error::other)
        } else {
            let server = http1::Builder::new().serve_connection(stream, service);
            server.await.map_err(io::Error::other)
        }
    }

    async fn forward(self, mut request: Request<Incoming>) -> io::Result<Response<Incoming>> {
        adapt(&mut request)?;
        let mut sender = match self.pool.idle() {
            Some(sender) => sender,
            None => self.open().await?,
        };
        let mut response = sender.send_request(request).await.map_err(io::Error::other)?;
        self.pool.senders.borrow_mut().push_back(sender);
        response.headers_mut().remove(CONNECTION);
        Ok(response)
    }

    async fn open(&self) -> io::Result<client::SendRequest<Incoming>> {
        let stream = TokioIo::new(C::connect(self.pool.backend).await?);
        let (sender, connection) = client::handshake(stream).await.map_err(io::Error::other)?;
        spawn_local(async move { connection.await.ok() });
        Ok(sender)
    }
}

impl Pool {
    fn idle(&self) -> Option<client::SendRequest<Incoming>> {
        let mut senders = self.senders.borrow_mut();
        senders.retain(|sender| !sender.is_closed());
        let ready = senders.iter().position(client::SendRequest::is_ready)?;
        senders.remove(ready)
    }
}

/// From the client's form to the backend's: HTTP/2 has the host in the URI, HTTP/1.1 beside it.
fn adapt(request: &mut Request<Incoming>) -> io::Result<()> {
    let uri = std::mem::take(request.uri_mut());
    let headers = request.headers_mut();
    headers.remove(CONNECTION);
    if let Some(authority) = uri.authority() {
        let host = HeaderValue::from_str(authority.as_str()).map_err(io::Error::other)?;
        headers.insert(hyper::header::HOST, host);
    }
    headers.insert(FORWARDED_FOR, HeaderValue::from_static("127.0.0.1"));
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("https"));
    let path = uri.into_parts().path_and_query;
    *request.uri_mut() = path.map_or_else(Uri::default, Uri::from);
    *request.version_mut() = hyper::Version::HTTP_11;
    Ok(())
}

/// Runs hyper's tasks on this thread.
#[derive(Debug, Clone, Copy)]
struct Local;

impl<F: Future<Output = ()> + 'static> Executor<F> for Local {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}
