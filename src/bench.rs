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

use std::net::SocketAddr;
use std::rc::Rc;

use ::http::{HeaderMap, HeaderValue, StatusCode};

use crate::http::headers::{Peer, to_downstream, to_upstream};
use crate::snapshot::Policy;

/// How the headers of one TLS connection's requests and responses are rewritten.
pub struct Headers {
    peer: Rc<Peer>,
    policy: Policy,
}

impl Headers {
    /// For a connection from `remote`.
    #[must_use]
    pub fn new(remote: SocketAddr) -> Self {
        Self { peer: Rc::new(Peer::new(remote, None)), policy: Policy::default() }
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
