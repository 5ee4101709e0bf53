//! What a client has to be beyond a certificate that holds: names and pins.

use ring::digest::{SHA256, digest};
use rustls::CertificateError;
use rustls::pki_types::CertificateDer;

use super::Pins;
use crate::crypto::trust::{names, parse};

/// Names and pins of one server. An empty list demands nothing.
#[derive(Debug)]
pub(super) struct Demands {
    names: Vec<String>,
    pins: Pins,
}

impl Demands {
    pub(super) fn new(names: &[String], pins: &Pins) -> Self {
        Self { names: names.to_vec(), pins: pins.clone() }
    }

    /// # Errors
    /// `leaf` has none of the names, or none of the pins is its.
    pub(super) fn check(&self, leaf: &CertificateDer<'_>) -> Result<(), CertificateError> {
        let parsed = parse(leaf)?;
        let named = self.names.is_empty() || names::is_any(&parsed, &self.names);
        if named && self.is_pinned(leaf, parsed.tbs_certificate.subject_pki.raw) {
            return Ok(());
        }
        // As BoringSSL says for what Envoy's own checks refuse.
        Err(CertificateError::Other(rustls::OtherError(std::sync::Arc::new(Unwanted))))
    }

    fn is_pinned(&self, leaf: &[u8], spki: &[u8]) -> bool {
        let Pins { keys, certificates } = &self.pins;
        let holds = |pins: &[[u8; 32]], bytes: &[u8]| {
            !pins.is_empty() && pins.iter().any(|pin| digest(&SHA256, bytes).as_ref() == pin)
        };
        let none = keys.is_empty() && certificates.is_empty();
        none || holds(keys, spki) || holds(certificates, leaf)
    }
}

/// The certificate holds, but its owner is not wanted here.
#[derive(Debug)]
struct Unwanted;

impl std::fmt::Display for Unwanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the client has none of the names and none of the pins of this server")
    }
}

impl std::error::Error for Unwanted {}
