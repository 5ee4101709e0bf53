//! Doors for `benches/` to code that is private to the crate.
//!
//! - Compiled with the feature `bench` alone, and hidden from the documentation: a door is neither
//!   an interface nor a promise. Without the feature the crate is as it is shipped.
//! - A door calls what a worker calls, in the same way, and does nothing itself.
//!
//! Why not otherwise: making the modules public would turn every function in them into an
//! interface that nothing warns of when it falls out of use; including their source in a bench
//! would compile them apart from the crate and measure something else.
//!
//! Deliberately not here: what the crate's public modules offer as they are (`config`, `runtime`,
//! `snapshot`).

#![forbid(unsafe_code)]
#![allow(missing_debug_implementations, reason = "nobody prints a door")]

use std::future::Future;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use ::http::{HeaderMap, HeaderValue, StatusCode};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};

use crate::http::headers::{Peer, to_downstream, to_upstream};
use crate::io::Stream;
use crate::snapshot::Policy;
use crate::tls::{self, TlsStream};

/// How the headers of one TLS connection's requests and responses are rewritten.
pub struct Headers {
    peer: Rc<Peer>,
    policy: Policy,
}

impl Headers {
    /// For a connection from `remote`.
    #[must_use]
    pub fn new(remote: SocketAddr) -> Self {
        Self { peer: Rc::new(Peer::new(remote.into(), None)), policy: Policy::default() }
    }

    /// Those of a request, for the upstream.
    pub fn to_upstream(&self, headers: &mut HeaderMap) {
        // What comes back is for the access log.
        let _ = to_upstream(headers, &self.peer, true, &self.policy);
    }

    /// Those of a response, for the client.
    pub fn to_downstream(&self, headers: &mut HeaderMap) {
        to_downstream(headers, StatusCode::OK, HeaderValue::from_static("1"));
    }
}

/// Both ends of a TLS connection.
pub struct Records<S> {
    server: TlsStream<S>,
    client: TlsStream<S>,
}

impl<S: Stream> Records<S> {
    /// Shakes hands over the two ends of a stream that never has to wait.
    ///
    /// # Panics
    /// They do not agree.
    #[must_use]
    pub fn new(
        (near, far): (S, S),
        server: Arc<ServerConfig>,
        client: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Self {
        let accepting = async {
            let greeting = tls::greet(near).await.map_err(|_| "no hello")?;
            greeting.shake(server).await.map_err(|_| "no handshake")
        };
        let (mut accepting, mut connecting) =
            (pin!(accepting), pin!(tls::connect(far, client, name)));
        let mut cx = Context::from_waker(Waker::noop());
        let (mut server, mut client) = (None, None);
        while server.is_none() || client.is_none() {
            if server.is_none()
                && let Poll::Ready(done) = accepting.as_mut().poll(&mut cx)
            {
                server = Some(done.expect("the client agrees"));
            }
            if client.is_none()
                && let Poll::Ready(done) = connecting.as_mut().poll(&mut cx)
            {
                client = done.ok();
            }
        }
        let agree = "both are done";
        Self { server: server.expect(agree), client: client.expect(agree) }
    }

    /// Sends `data` from the server to the client, 16 KB at a time.
    ///
    /// # Panics
    /// The connection is broken.
    pub fn pass(&mut self, data: &[u8]) {
        for piece in data.chunks(16 * 1024) {
            self.server.write(&[IoSlice::new(piece)]).expect("a connection");
            self.receive(piece.len());
        }
    }

    fn receive(&mut self, mut left: usize) {
        let mut cx = Context::from_waker(Waker::noop());
        while left > 0 {
            let _: Poll<std::io::Result<()>> = self.server.poll_flush(&mut cx);
            let Poll::Ready(lent) = self.client.poll_fill(&mut cx) else { continue };
            let read = lent.expect("a connection").len();
            self.client.consume(read);
            left -= read;
        }
    }
}
