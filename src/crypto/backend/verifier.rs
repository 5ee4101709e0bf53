//! Whether a backend is the one that is wanted.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use x509_parser::certificate::X509Certificate;

use super::session::Sessions;
use super::{BackendTrust, MeshPeer};
use crate::crypto::certificate;
use crate::crypto::trust::{self, names, parse};

/// Nothing was checked that could end.
const FOR_EVER: UnixTime = UnixTime::since_unix_epoch(Duration::MAX);

/// Names of a certificate that a message lists.
const NAMES_SHOWN_MAX: usize = 3;

/// Checks backends.
#[derive(Debug)]
pub(super) struct BackendVerifier {
    /// `None` takes any certificate.
    trust: Option<Arc<BackendTrust>>,
    names: Names,
    algorithms: WebPkiSupportedAlgorithms,
    /// They end with what is checked here.
    sessions: Arc<Sessions>,
}

/// What it has to be called.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// One of these.
    pub(super) given: Vec<String>,
    /// Else this; and if that is `None`, as it was asked for.
    pub(super) mesh: Option<MeshPeer>,
}

impl Names {
    fn are_of(&self, leaf: &X509Certificate<'_>, asked: &str) -> bool {
        match (&self.given[..], &self.mesh) {
            ([], Some(peer)) => names::mesh_namespace(leaf)
                .is_some_and(|own| peer.namespace.as_deref().is_none_or(|wanted| wanted == own)),
            ([], None) => names::is_any(leaf, &[asked]),
            (given, _) => names::is_any(leaf, given),
        }
    }

    /// In words.
    fn wanted(&self, asked: &str) -> String {
        match (&self.given[..], &self.mesh) {
            ([], Some(MeshPeer { namespace: Some(name) })) => {
                format!("a workload of namespace {name} in the mesh")
            }
            ([], Some(MeshPeer { namespace: None })) => "a workload of the mesh".to_owned(),
            ([], None) => asked.to_owned(),
            (given, _) => given.join(", "),
        }
    }
}

impl BackendVerifier {
    pub(super) fn new(
        trust: Option<Arc<BackendTrust>>,
        names: Names,
        algorithms: WebPkiSupportedAlgorithms,
        sessions: Arc<Sessions>,
    ) -> Self {
        Self { trust, names, algorithms, sessions }
    }

    fn require_name(
        &self,
        leaf: &CertificateDer<'_>,
        asked: &ServerName<'_>,
    ) -> Result<(), CertificateError> {
        let parsed = parse(leaf)?;
        let asked = asked.to_str();
        if self.names.are_of(&parsed, &asked) {
            return Ok(());
        }
        let mut found = certificate::subject_alt_names(&parsed);
        let more = found.len() > NAMES_SHOWN_MAX;
        found.truncate(NAMES_SHOWN_MAX);
        let found = format!("{}{}", found.join(", "), if more { ", ..." } else { "" });
        let wanted = self.names.wanted(&asked);
        Err(CertificateError::Other(OtherError(Arc::new(WrongName { found, wanted }))))
    }
}

impl ServerCertVerifier for BackendVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(BackendTrust { trust, revocation }) = self.trust.as_deref() else {
            self.sessions.checked(server_name.to_owned(), FOR_EVER);
            return Ok(ServerCertVerified::assertion());
        };
        let chain = trust.chain(end_entity, intermediates, now)?;
        let mut until = trust::valid_until(&chain)?;
        if let Some(revocation) = revocation {
            revocation.check(&chain, now, &self.algorithms)?;
            until = revocation.valid_until().map_or(until, |end| end.min(until));
        }
        self.require_name(end_entity, server_name)?;
        self.sessions.checked(server_name.to_owned(), until);
        Ok(ServerCertVerified::assertion())
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

/// The certificate holds, but it is somebody else's.
struct WrongName {
    found: String,
    wanted: String,
}

impl fmt::Display for WrongName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { found, wanted } = self;
        if found.is_empty() {
            return write!(f, "the certificate has no alternative names, {wanted} is wanted");
        }
        write!(f, "the certificate is for {found}, not for {wanted}")
    }
}

impl fmt::Debug for WrongName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for WrongName {}
