//! Identities: certificate, key and TLS policy of a server, and what to report about each
//! certificate.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use super::Origin;

/// How a TLS server proves who it is.
#[derive(Clone)]
pub enum Identity {
    /// Ready for handshakes. Ticket keys live in the configuration, so equal policy means the same
    /// `Arc`.
    Ready(Arc<rustls::ServerConfig>),
    /// There is no usable certificate: connections are closed before any is shown.
    Missing,
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

/// What is known about one certificate that a Gateway names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The path or Secret that it comes from, such as `/etc/certs/tls.crt` or `secret
    /// istio-system/httpbin`.
    pub source: String,
    /// The resource that names it.
    pub origin: Origin,
    /// Usable, or why not.
    pub state: CertificateState,
}

/// Whether a certificate can be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateState {
    /// No usable certificate.
    Missing {
        /// What is in the way, in words for the operator.
        reason: String,
    },
    /// Served.
    Ready {
        /// Lower-case hexadecimal, without leading zeros or colons.
        serial: String,
        /// DNS names and addresses that it is valid for; empty for a certificate without that
        /// extension.
        subject_alt_names: Vec<String>,
        /// Start of validity.
        valid_from: SystemTime,
        /// End of validity. An expired certificate is still served.
        expires: SystemTime,
    },
}
