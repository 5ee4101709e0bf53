//! HTTP downstream: serves requests, forwards them, answers for the gateway itself.
//!
//! A request's way: `serve` drives the connection through hyper, `decide` says what is to be done
//! by the newest snapshot, `forward` does it with `upstream`, in as many `attempts` as its route
//! allows; `respond` answers where there is nothing to forward; `entry` remembers all of it for the
//! log.
//!
//! - Sees streams and a clock, never a socket: it runs over in-memory pipes as well.
//! - A request keeps the snapshot that it began with.
//! - Every request is answered and logged once, whatever happens to it.
//!
//! Deliberately not here: TLS, choosing endpoints, and how a connection came to be accepted; what
//! is to be known of that is in [`Downstream`].

#![forbid(unsafe_code)]

mod activity;
mod affinity;
mod attempts;
mod body;
mod cors;
mod deadline;
mod decide;
mod detect;
mod edit;
mod entry;
mod error;
mod forward;
mod grpc;
pub(crate) mod headers;
mod hurry;
mod idle;
mod mirror;
mod outgoing;
pub(crate) mod path;
mod pieces;
mod respond;
mod retry;
mod serve;
mod streams;
mod tee;
#[cfg(test)]
mod tests;

pub(crate) use hurry::hurry;
pub(crate) use idle::Idle;
pub(crate) use mirror::Mirrors;
pub(crate) use serve::serve;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use ::http::HeaderValue;

use crate::address::Address;
use crate::io::Net;
use crate::snapshot::{ListenerKey, Subscription, TlsPolicy};
use crate::telemetry::WorkerTelemetry;
use crate::upstream::Upstreams;
use activity::Activity;

/// What all requests of a worker share.
pub(crate) struct Gateway<N: Net> {
    pub(crate) net: N,
    pub(crate) snapshots: RefCell<Subscription>,
    pub(crate) upstreams: Upstreams<N>,
    pub(crate) telemetry: Rc<WorkerTelemetry>,
    pub(crate) mirrors: Mirrors,
    /// Each request is the last of its connection.
    pub(crate) retires_connections: Cell<bool>,
    pub(crate) idle: Idle,
}

/// What a request has to know of the connection that it came by.
#[derive(Debug)]
pub(crate) struct Downstream {
    pub(crate) remote: Address,
    pub(crate) local: Address,
    pub(crate) listener: ListenerKey,
    /// Its end of TLS, if it came by that.
    pub(crate) tls: Option<Tls>,
    activity: Activity,
}

/// What a request has to know of the TLS that it came by.
#[derive(Debug)]
pub(crate) struct Tls {
    /// The SNI, in lower case.
    pub(crate) server_name: Option<Box<str>>,
    /// What the handshake was held to. `None` only where tests make none.
    pub(crate) policy: Option<TlsPolicy>,
    /// What is told to upstreams of the client's certificate; `None` when it showed none.
    pub(crate) client_certificate: Option<HeaderValue>,
}

/// How a connection speaks HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
    /// The first bytes tell.
    Detect,
}

impl Downstream {
    pub(crate) fn new(
        (remote, local): (Address, Address),
        listener: ListenerKey,
        tls: Option<Tls>,
        now: Instant,
    ) -> Self {
        Self { remote, local, listener, tls, activity: Activity::new(now) }
    }

    fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    fn server_name(&self) -> Option<&str> {
        self.tls.as_ref()?.server_name.as_deref()
    }
}
