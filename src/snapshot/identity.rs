//! Identities: certificate, key and TLS policy of a server, and what to report about each
//! certificate.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::server::ProducesTickets;

use super::Origin;

/// How a TLS server proves who it is.
#[derive(Clone)]
pub enum Identity {
    /// Ready for handshakes. Ticket keys live in the configuration, so equal policy means the same
    /// `Arc`.
    Ready(Arc<rustls::ServerConfig>),
    /// There is no usable certificate, or nothing to check clients with: connections are closed
    /// before any is shown.
    Missing,
}

/// What a handshake proved, and to whom: the server and its TLS policy at that time.
///
/// Two are equal if a session of one may resume under the other; a renewed certificate changes
/// nothing about that.
#[derive(Clone)]
pub struct TlsPolicy(Arc<dyn ProducesTickets>);

impl TlsPolicy {
    /// The policy of those servers whose sessions resume with `tickets`.
    #[must_use]
    pub fn new(tickets: Arc<dyn ProducesTickets>) -> Self {
        Self(tickets)
    }

    /// The one that `config` holds clients to.
    #[must_use]
    pub fn of(config: &rustls::ServerConfig) -> Self {
        Self::new(Arc::clone(&config.ticketer))
    }
}

impl PartialEq for TlsPolicy {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for TlsPolicy {}

impl fmt::Debug for TlsPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the keys.
        f.write_str("TlsPolicy")
    }
}

impl Identity {
    /// What a client proves that handshakes now; `None` if it cannot.
    #[must_use]
    pub fn policy(&self) -> Option<TlsPolicy> {
        match self {
            Self::Ready(config) => Some(TlsPolicy::of(config)),
            Self::Missing => None,
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the configuration itself: it holds keys.
        f.write_str(match self {
            Self::Ready(_) => "Ready",
            Self::Missing => "Missing",
        })
    }
}

/// What is known about one certificate that a Gateway or a DestinationRule names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The path or Secret that it comes from, such as `/etc/certs/tls.crt` or `secret
    /// istio-system/httpbin`.
    pub source: Arc<str>,
    /// The resource that names it.
    pub origin: Origin,
    /// Usable, or why not. Shared by all that name the same certificate.
    pub state: Arc<CertificateState>,
    /// Those that vouch for the clients of its server, or for the backends of its rule; empty for a
    /// server without mutual TLS, and where those of the system do.
    pub client_ca: Vec<ClientCa>,
}

/// Whether a certificate can be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateState {
    /// No usable certificate, or nothing to check clients with.
    Missing {
        /// What is in the way, in words for the operator.
        reason: String,
    },
    /// Served, or shown to backends that ask for one.
    Ready(CertificateInfo),
    /// There is none to be shown to backends: it is about those that vouch for them.
    Unneeded,
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Lower-case hexadecimal, without leading zeros or colons.
    pub serial: String,
    /// DNS names and addresses that it is valid for; empty for a certificate without that
    /// extension.
    pub subject_alt_names: Vec<String>,
    /// Start of validity.
    pub valid_from: SystemTime,
    /// End of validity. An expired certificate is still served.
    pub expires: SystemTime,
}

/// One certificate that vouches for clients or backends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCa {
    /// The path or Secret that it comes from.
    pub source: Arc<str>,
    /// What it says.
    pub info: CertificateInfo,
}
