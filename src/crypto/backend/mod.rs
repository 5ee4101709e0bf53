//! How the gateway is a client of backends: whom it trusts, and what it shows them.
//!
//! - A backend's chain is built and checked as Envoy does it (`trust`), be the CA a root, an
//!   intermediate or X.509 v1.
//! - What it is called counts as well: one of given names, or the one that was asked for.
//! - Sessions resume within one configuration and nowhere else, while what was checked holds.
//!
//! Deliberately not here: which name is asked for, which the caller of each handshake says.

mod session;
mod verifier;

use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};

use super::trust::{Revocation, Trust, TrustError, Usage};
use super::{CertifiedPair, Provider};
use session::Sessions;
use verifier::{BackendVerifier, Names};

/// Who vouches for backends: CA certificates and revocation lists, read.
#[derive(Debug)]
pub(crate) struct BackendTrust {
    trust: Trust,
    revocation: Option<Revocation>,
}

impl BackendTrust {
    /// Reads PEM: the certificates that backends' chains may end in, and revocation lists. With
    /// one of these, every CA of a chain needs one.
    ///
    /// # Errors
    /// They cannot be used; in words for the operator.
    pub(crate) fn new(
        provider: &Provider,
        ca_pem: &[u8],
        crl_pem: Option<&[u8]>,
    ) -> Result<Self, TrustError> {
        let algorithms = provider.rustls().signature_verification_algorithms;
        let trust = Trust::new(ca_pem, Usage::Server, algorithms)?;
        Ok(Self { trust, revocation: crl_pem.map(Revocation::new).transpose()? })
    }

    /// When the first revocation list ends, after which no backend is taken.
    pub(crate) fn crl_expires(&self) -> Option<SystemTime> {
        self.revocation.as_ref()?.expires()
    }
}

/// What connections to a backend are to be like.
#[derive(Debug, Clone)]
pub(crate) struct BackendRequest<'a> {
    /// Who vouches for it; `None` takes anyone.
    pub(crate) trust: Option<Arc<BackendTrust>>,
    /// It has one of these names; none means the one that it is asked for.
    pub(crate) subject_alt_names: &'a [String],
    /// It is in a mesh; counts for its name where `subject_alt_names` is empty.
    pub(crate) mesh: Option<&'a MeshPeer>,
    /// What the gateway proves itself with, where it is asked to.
    pub(crate) pair: Option<&'a CertifiedPair>,
    /// The protocol that is spoken inside.
    pub(crate) alpn: &'static [u8],
}

/// A workload of a mesh, which a certificate of the mesh's CA names as in SPIFFE:
/// `spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct MeshPeer {
    /// Its namespace; `None` for any.
    pub(crate) namespace: Option<Arc<str>>,
}

/// A configuration for `request`.
pub(crate) fn backend_config(
    provider: &Provider,
    request: &BackendRequest<'_>,
) -> Arc<ClientConfig> {
    let provider = provider.rustls();
    let algorithms = provider.signature_verification_algorithms;
    let names = Names { given: request.subject_alt_names.to_vec(), mesh: request.mesh.cloned() };
    let sessions = Arc::new(Sessions::new());
    let verifier =
        BackendVerifier::new(request.trust.clone(), names, algorithms, Arc::clone(&sessions));
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("both providers have suites and groups for both versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match request.pair {
        Some(pair) => builder.with_client_cert_resolver(Arc::new(Own(pair.bare()))),
        None => builder.with_no_client_auth(),
    };
    // By this a proxy of a mesh tells the mesh's TLS from that of its application.
    config.alpn_protocols = request.mesh.map(|_| b"istio".to_vec()).into_iter().collect();
    config.alpn_protocols.push(request.alpn.to_vec());
    config.resumption = Resumption::store(sessions);
    // After the handshake `tls` seals and opens records itself.
    config.enable_secret_extraction = true;
    Arc::new(config)
}

/// Shows the same certificate to every backend that asks for one.
#[derive(Debug)]
struct Own(Arc<CertifiedKey>);

impl ResolvesClientCert for Own {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _sigschemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
