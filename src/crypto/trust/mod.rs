//! The CA certificates that peers are trusted by, and from a peer's certificate to one of them.
//!
//! - A chain is built as BoringSSL builds it for Envoy, as far as possible within the CA file:
//!   whatever in there has no issuer in there ends it, so an intermediate may stand alone.
//! - webpki builds it first. What webpki refuses and users have, `path` builds: X.509 v1, a
//!   self-signed certificate that is its own CA, a CA that is a peer.
//! - Nothing is fetched, and nothing is kept between handshakes but who signed a revocation list.
//!
//! Deliberately not here: whether the peer is the one that is wanted (`client`, `backend`).

mod error;
pub(in crate::crypto) mod names;
mod path;
mod revocation;

pub(crate) use error::TrustError;
pub(in crate::crypto) use revocation::Revocation;

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, Der, SubjectPublicKeyInfoDer, TrustAnchor, UnixTime};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerMisbehaved,
};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::signed::{self, Signed};
use super::{certificate, pem};

/// Certificates behind its own that a peer's chain is sought among; each may cost signatures.
const PRESENTED_MAX: usize = 16;

/// What a peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::crypto) enum Usage {
    Client,
    Server,
}

/// Who may vouch for peers.
#[derive(Debug)]
pub(in crate::crypto) struct Trust {
    usage: Usage,
    /// All certificates of the file.
    listed: Vec<CertificateDer<'static>>,
    /// Those that end a chain, with what webpki wants to know of them.
    anchors: Vec<Anchor>,
    /// Those that another one in the file has issued.
    between: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug, Clone)]
struct Anchor {
    certificate: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
    /// Read once: there may be hundreds.
    validity: path::Validity,
}

/// From a peer's certificate to a CA certificate.
pub(in crate::crypto) type Chain<'a> = Vec<CertificateDer<'a>>;

impl Trust {
    /// # Errors
    /// There is no certificate, or one is damaged.
    pub(in crate::crypto) fn new(
        ca_pem: &[u8],
        usage: Usage,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Result<Self, TrustError> {
        let listed = pem::certificates(ca_pem).map_err(TrustError::Ca)?;
        certificate::public_keys(&listed).map_err(TrustError::Ca)?;
        let (anchors, between) = (Vec::new(), Vec::new());
        let mut trust = Self { usage, listed, anchors, between, algorithms };
        let (below, ends): (Vec<_>, Vec<_>) =
            trust.listed.iter().cloned().partition(|one| trust.has_issuer(one));
        // Where all have issued one another, each is as good an end as any.
        let ends = if ends.is_empty() { trust.listed.clone() } else { ends };
        trust.anchors = ends.into_iter().filter_map(|end| anchor(end, &algorithms)).collect();
        trust.between = below;
        Ok(trust)
    }

    /// Whether another certificate of the file has issued `one`.
    fn has_issuer(&self, one: &CertificateDer<'_>) -> bool {
        let (Ok(parsed), Some(signed)) = (parse(one), Signed::parse(one)) else { return false };
        !path::is_self_signed(&parsed, &self.algorithms)
            && self.listed.iter().filter(|other| *other != one).any(|other| {
                parse(other).is_ok_and(|other| {
                    other.subject().as_raw() == parsed.issuer().as_raw()
                        && path::is_authority(&other, &self.algorithms)
                        && signed.is_by(other.tbs_certificate.subject_pki.raw, &self.algorithms)
                })
            })
    }

    /// The names of all CAs.
    pub(in crate::crypto) fn subjects(&self) -> Vec<DistinguishedName> {
        let anchors = self.listed.iter().filter_map(|one| anchor_from_trusted_cert(one).ok());
        anchors.map(|anchor| DistinguishedName::in_sequence(&anchor.subject)).collect()
    }

    /// The way from `leaf` to a CA.
    ///
    /// # Errors
    /// There is none, or it does not hold at `now`.
    pub(in crate::crypto) fn chain<'a>(
        &'a self,
        leaf: &'a CertificateDer<'_>,
        presented: &'a [CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Chain<'a>, CertificateError> {
        let presented = &presented[..presented.len().min(PRESENTED_MAX)];
        let chain = match self.usual_chain(leaf, presented, now) {
            Err(webpki::Error::UnsupportedCertVersion | webpki::Error::CaUsedAsEndEntity) => {
                path::search(leaf, presented, &self.listed, now, &self.algorithms)?
            }
            Err(_) if self.listed.contains(leaf) => {
                path::search(leaf, presented, &self.listed, now, &self.algorithms)?
            }
            Err(error) => return Err(in_words_of_rustls(error)),
            Ok(chain) => chain,
        };
        path::check(&chain, self.usage, now)?;
        Ok(chain)
    }

    fn usual_chain<'a>(
        &'a self,
        leaf: &'a CertificateDer<'_>,
        presented: &'a [CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Chain<'a>, webpki::Error> {
        let end_entity = EndEntityCert::try_from(leaf)?;
        let between: Vec<_> = self.between.iter().chain(presented).map(borrowed).collect();
        let valid: Vec<_> = self.anchors_at(now).collect();
        let found = self.build(&end_entity, &valid, &between, now);
        let chain = match found {
            Err(webpki::Error::UnknownIssuer) if valid.len() < self.anchors.len() => {
                // By one that is no longer valid, which is a better reason to give.
                let all: Vec<_> = self.anchors.iter().collect();
                self.build(&end_entity, &all, &between, now)
            }
            found => found,
        };
        Ok(std::iter::once(borrowed(leaf)).chain(chain?).collect())
    }

    fn anchors_at(&self, now: UnixTime) -> impl Iterator<Item = &Anchor> {
        self.anchors.iter().filter(move |anchor| anchor.validity.check(now).is_ok())
    }

    /// What is behind the leaf in its chain.
    fn build(
        &self,
        end_entity: &EndEntityCert<'_>,
        anchors: &[&Anchor],
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Vec<CertificateDer<'static>>, webpki::Error> {
        let ends: Vec<_> = anchors.iter().map(|anchor| borrowed_anchor(&anchor.anchor)).collect();
        let usage = match self.usage {
            Usage::Client => KeyUsage::client_auth(),
            Usage::Server => KeyUsage::server_auth(),
        };
        let known = self.algorithms.all;
        let path = end_entity.verify_for_usage(known, &ends, between, now, usage, None, None)?;
        let end = anchors.iter().find(|anchor| anchor.anchor == *path.anchor());
        let end = end.expect("webpki returns one of those that it was given");
        let between = path.intermediate_certificates().map(|one| one.der().into_owned());
        Ok(between.chain([end.certificate.clone()]).collect())
    }
}

fn borrowed<'a>(certificate: &'a CertificateDer<'_>) -> CertificateDer<'a> {
    CertificateDer::from(certificate.as_ref())
}

/// `None` for what can vouch for nobody else.
fn anchor(
    certificate: CertificateDer<'static>,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Option<Anchor> {
    let parsed = parse(&certificate).ok()?;
    if !path::is_authority(&parsed, algorithms) {
        return None;
    }
    let validity = path::Validity::of(&parsed);
    let anchor = anchor_from_trusted_cert(&certificate).ok()?.to_owned();
    Some(Anchor { certificate, anchor, validity })
}

fn borrowed_anchor<'a>(anchor: &'a TrustAnchor<'static>) -> TrustAnchor<'a> {
    TrustAnchor {
        subject: Der::from_slice(&anchor.subject),
        subject_public_key_info: Der::from_slice(&anchor.subject_public_key_info),
        name_constraints: anchor.name_constraints.as_deref().map(Der::from_slice),
    }
}

/// The certificate in `der`.
pub(in crate::crypto) fn parse<'a>(
    der: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, CertificateError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) | Err(_) => Err(CertificateError::BadEncoding),
    }
}

/// Until when all certificates of `chain` are valid.
///
/// # Errors
/// One cannot be read.
pub(in crate::crypto) fn valid_until(chain: &Chain<'_>) -> Result<UnixTime, CertificateError> {
    let mut first = i64::MAX;
    for certificate in chain {
        first = first.min(parse(certificate)?.validity().not_after.timestamp());
    }
    Ok(unix_time(first))
}

/// What was before 1970 is as good as 1970.
fn unix_time(seconds: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(seconds).unwrap_or_default()))
}

/// Checks what the owner of `cert`, of whatever version, signed in a handshake of TLS 1.2.
pub(in crate::crypto) fn verify_tls12(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let leaf = parse(cert)?;
    let spki = leaf.tbs_certificate.subject_pki.raw;
    if !algorithms.supported_schemes().contains(&dss.scheme) {
        return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
    }
    if signed::is_signed(message, dss.signature(), dss.scheme, spki, algorithms) {
        return Ok(HandshakeSignatureValid::assertion());
    }
    Err(CertificateError::BadSignature.into())
}

/// The same for TLS 1.3.
pub(in crate::crypto) fn verify_tls13(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let leaf = parse(cert)?;
    let spki = SubjectPublicKeyInfoDer::from(leaf.tbs_certificate.subject_pki.raw);
    rustls::crypto::verify_tls13_signature_with_raw_key(message, &spki, dss, algorithms)
}

/// The error that makes rustls send the alert that Envoy sends.
fn in_words_of_rustls(error: webpki::Error) -> CertificateError {
    use webpki::Error;
    let is = |errors: &[Error]| errors.contains(&error);
    if is(&[Error::BadDer, Error::BadDerTime]) || matches!(error, Error::TrailingData(_)) {
        return CertificateError::BadEncoding;
    }
    if matches!(error, Error::CertExpired { .. } | Error::InvalidCertValidity) {
        return CertificateError::Expired;
    }
    if matches!(error, Error::CertNotValidYet { .. }) {
        return CertificateError::NotValidYet;
    }
    // By the name of a CA, but not by its key: it is an unknown CA.
    if is(&[Error::UnknownIssuer, Error::InvalidSignatureForPublicKey]) {
        return CertificateError::UnknownIssuer;
    }
    if matches!(error, Error::RequiredEkuNotFoundContext(_) | Error::EndEntityUsedAsCa) {
        return CertificateError::InvalidPurpose;
    }
    if is(&[Error::UnsupportedCriticalExtension]) {
        return CertificateError::UnhandledCriticalExtension;
    }
    CertificateError::Other(OtherError(Arc::new(error)))
}
