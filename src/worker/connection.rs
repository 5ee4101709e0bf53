//! The life of a connection: accepted, secured, served, closed.
//!
//! ```text
//! accepted --plain--> http
//!    \--TLS--> ClientHello --> server by SNI --> handshake --> http
//!                   \-- none --> closed without a word
//! ```
//!
//! - A snapshot is held only while something is looked up in it, never as long as the connection.
//! - What is over a limit is closed at once and counted: nobody waits for a slot.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::Worker;
use crate::drain::Watch;
use crate::http::{self, Downstream, Protocol};
use crate::io::{Clock, Net, Stream, timeout};
use crate::snapshot::{Identity, ListenerKey, Serves};
use crate::telemetry::request::{Flags, Record};
use crate::tls::{self, AcceptError, Hello, TlsStream};

/// A connection that has just been accepted.
pub(super) struct Connection<N: Net> {
    pub(super) worker: Rc<Worker<N>>,
    pub(super) listener: ListenerKey,
    pub(super) remote: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) watch: Watch,
}

impl<N: Net> Connection<N> {
    /// Serves the connection from its first byte to its last.
    pub(super) async fn serve<S: Stream>(self, stream: S) {
        let worker = Rc::clone(&self.worker);
        let counters = worker.gateway.telemetry.counters();
        counters.connections_accepted.increment();
        if self.is_over_limit() {
            counters.connections_over_limit.increment();
            return;
        }
        counters.connections_active.increment();
        self.serve_within_limits(stream).await;
        counters.connections_active.decrement();
    }

    fn is_over_limit(&self) -> bool {
        let mut snapshots = self.worker.gateway.snapshots.borrow_mut();
        self.worker.drain.watches() > snapshots.current().limits.connections_max
    }

    async fn serve_within_limits<S: Stream>(self, stream: S) {
        match self.is_tls() {
            Some(true) => self.secure(stream).await,
            Some(false) => {
                let downstream = self.downstream(None);
                let gateway = Rc::clone(&self.worker.gateway);
                http::serve(gateway, downstream, stream, Protocol::Detect, self.watch).await;
            }
            // The listener went away between the accept and now.
            None => {}
        }
    }

    fn is_tls(&self) -> Option<bool> {
        let mut snapshots = self.worker.gateway.snapshots.borrow_mut();
        let listener = snapshots.current().listener(self.listener)?;
        Some(matches!(listener.serves, Serves::Tls(_)))
    }

    async fn secure<S: Stream>(self, stream: S) {
        let stream = match self.handshake(stream).await {
            Ok(stream) => stream,
            Err(failure) => return self.note(&failure),
        };
        let counters = self.worker.gateway.telemetry.counters();
        counters.handshakes_ok.increment();
        if stream.resumed() {
            counters.handshakes_resumed.increment();
        }
        let protocol = match stream.alpn() {
            Some(b"h2") => Protocol::Http2,
            _ => Protocol::Http1,
        };
        let server_name = stream.server_name().map(Into::into);
        let downstream = self.downstream(Some(http::Tls { server_name }));
        let gateway = Rc::clone(&self.worker.gateway);
        http::serve(gateway, downstream, stream, protocol, self.watch).await;
    }

    async fn handshake<S: Stream>(&self, stream: S) -> Result<TlsStream<S>, Failure> {
        let (limit, handshakes_max) = {
            let mut snapshots = self.worker.gateway.snapshots.borrow_mut();
            let limits = &snapshots.current().limits;
            (limits.handshake_timeout, limits.handshakes_max)
        };
        let under_way = &self.worker.handshakes;
        if under_way.get() >= handshakes_max {
            return Err(Failure::OverLimit);
        }
        under_way.set(under_way.get() + 1);
        let accepting = tls::accept(stream, |hello| self.choose(hello));
        let accepted = timeout(&self.worker.gateway.net, limit, accepting).await;
        under_way.set(under_way.get() - 1);
        match accepted {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(Failure::Refused(error)),
            Err(_) => Err(Failure::TooSlow),
        }
    }

    /// The configuration of the server that the SNI selects; none if there is no such server, or it
    /// has no usable certificate.
    fn choose(&self, hello: &Hello) -> Option<Arc<rustls::ServerConfig>> {
        let mut snapshots = self.worker.gateway.snapshots.borrow_mut();
        let listener = snapshots.current().listener(self.listener)?;
        let Serves::Tls(servers) = &listener.serves else {
            return None;
        };
        let server = match &hello.sni {
            Some(name) => servers.find(name),
            None => servers.any(),
        };
        match &server?.identity {
            Identity::Ready(config) => Some(Arc::clone(config)),
            Identity::Missing => None,
        }
    }

    fn downstream(&self, tls: Option<http::Tls>) -> Rc<Downstream> {
        let now = self.worker.gateway.net.now();
        Rc::new(Downstream::new((self.remote, self.local), self.listener, tls, now))
    }

    fn note(&self, failure: &Failure) {
        let counters = self.worker.gateway.telemetry.counters();
        let (counter, flags, details) = match failure {
            Failure::OverLimit => {
                (&counters.connections_over_limit, Flags::NONE, "handshake_limit")
            }
            Failure::TooSlow => (&counters.handshakes_timeout, Flags::NONE, "handshake_timeout"),
            Failure::Refused(AcceptError::NoServer { .. }) => {
                (&counters.handshakes_no_server, Flags::NO_ROUTE, "filter_chain_not_found")
            }
            Failure::Refused(AcceptError::NotTls) => {
                (&counters.handshakes_not_tls, Flags::DOWNSTREAM_PROTOCOL_ERROR, "not_tls")
            }
            Failure::Refused(_) => (&counters.handshakes_tls_error, Flags::NONE, "tls_error"),
        };
        counter.increment();
        let server_name = match failure {
            Failure::Refused(AcceptError::NoServer { sni: Some(name) }) => name,
            _ => "",
        };
        self.worker.gateway.telemetry.record(&Record {
            flags,
            details,
            server_name,
            downstream_local: Some(self.local),
            downstream_remote: Some(self.remote),
            ..Record::new(self.worker.gateway.net.wall())
        });
    }
}

/// Why a connection did not get through its handshake.
enum Failure {
    /// Too many others were under way.
    OverLimit,
    /// It was not done in time.
    TooSlow,
    Refused(AcceptError),
}
