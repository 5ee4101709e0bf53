//! TLS towards the endpoints of a cluster.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

/// How a cluster's endpoints are spoken TLS with.
///
/// Two are equal if a connection that was opened by one may be used by the other: certificates,
/// keys, names and whom they trust are the same.
pub struct BackendTls {
    number: u64,
    /// What handshakes are made with; `None` while there is nothing to check endpoints with, or to
    /// show them: no connection is opened then.
    pub config: Option<Arc<ClientConfig>>,
    /// The name that an endpoint is asked for; `None` for the one in the request's host.
    pub name: Option<ServerName<'static>>,
}

impl BackendTls {
    /// One that is equal to no other.
    #[must_use]
    pub fn new(config: Option<Arc<ClientConfig>>, name: Option<ServerName<'static>>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self { number: NEXT.fetch_add(1, Ordering::Relaxed), config, name }
    }

    /// Tells it from any other of this process; never 0.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl PartialEq for BackendTls {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for BackendTls {}

impl fmt::Debug for BackendTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the configuration itself: it may hold a key.
        let is_ready = self.config.is_some();
        f.debug_struct("BackendTls").field("name", &self.name).field("ready", &is_ready).finish()
    }
}
