//! Which clients a server with mutual TLS takes.
//!
//! Deliberately not here: chains and revocation lists (`trust`), and keeping the last good CA file,
//! which `config` does.

mod demands;
mod resumption;

use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::Provider;
use super::trust::{self, Revocation, Trust, TrustError, Usage};
use demands::Demands;
pub(crate) use resumption::CheckedTickets;

/// Bytes of CA names that a server lists for its clients: the protocol allows 64 KiB. Without a
/// list a client picks its certificate itself.
const HINT_BYTES_MAX: usize = 32 * 1024;

/// What a Gateway server says about its clients.
#[derive(Debug, Clone)]
pub(crate) struct ClientRequest<'a> {
    /// Whether a client without a certificate is taken, too.
    pub(crate) optional: bool,
    /// The certificates that clients' chains may end in, PEM.
    pub(crate) ca_pem: &'a [u8],
    /// Revocation lists, PEM. With one, every CA of a chain needs one.
    pub(crate) crl_pem: Option<&'a [u8]>,
    /// A client has one of these names; none means any name.
    pub(crate) subject_alt_names: &'a [String],
    /// SHA-256 of the keys and of the certificates of which a client has one; none means any.
    pub(crate) pins: &'a Pins,
    /// Whether a certificate is taken that does not hold.
    pub(crate) accept_untrusted: bool,
}

/// SHA-256 of what is accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Pins {
    /// Of SubjectPublicKeyInfos.
    pub(crate) keys: Vec<[u8; 32]>,
    /// Of whole certificates.
    pub(crate) certificates: Vec<[u8; 32]>,
}

/// Checks the clients of one server.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    optional: bool,
    accept_untrusted: bool,
    algorithms: WebPkiSupportedAlgorithms,
    trust: Trust,
    revocation: Option<Revocation>,
    demands: Demands,
    hints: Vec<DistinguishedName>,
}

impl ClientVerifier {
    /// Reads what `request` brings.
    ///
    /// # Errors
    /// The CA certificates or the revocation lists cannot be used; in words for the operator.
    pub(crate) fn new(
        provider: &Provider,
        request: &ClientRequest<'_>,
    ) -> Result<Arc<Self>, TrustError> {
        let algorithms = provider.rustls().signature_verification_algorithms;
        let trust = Trust::new(request.ca_pem, Usage::Client, algorithms)?;
        let hints = trust.subjects();
        let fits = hints.iter().map(|name| name.as_ref().len() + 2).sum::<usize>() < HINT_BYTES_MAX;
        Ok(Arc::new(Self {
            optional: request.optional,
            accept_untrusted: request.accept_untrusted,
            algorithms,
            trust,
            revocation: request.crl_pem.map(Revocation::new).transpose()?,
            demands: Demands::new(request.subject_alt_names, request.pins),
            hints: if fits { hints } else { Vec::new() },
        }))
    }

    /// When the first revocation list ends, after which nobody is taken.
    pub(crate) fn crl_expires(&self) -> Option<SystemTime> {
        self.revocation.as_ref()?.expires()
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        presented: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), CertificateError> {
        let chain = self.trust.chain(leaf, presented, now)?;
        if let Some(revocation) = &self.revocation {
            revocation.check(&chain, now, &self.algorithms)?;
        }
        self.demands.check(leaf)
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        !self.optional
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.check(end_entity, intermediates, now) {
            Err(error) if !self.accept_untrusted => Err(error.into()),
            Ok(()) | Err(_) => Ok(ClientCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        trust::verify_tls12(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        trust::verify_tls13(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
