//! The CA certificates of a server, and from a client's certificate to one of them.

use std::sync::Arc;

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use rustls::{CertificateError, DistinguishedName, OtherError};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::{TrustError, parse, path};
use crate::crypto::signed::Signed;
use crate::crypto::{certificate, pem};

/// Certificates behind its own that a client's chain is sought among; each may cost signatures.
const PRESENTED_MAX: usize = 16;

/// Who may vouch for clients.
#[derive(Debug)]
pub(super) struct Trust {
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
}

/// From a client's certificate to a CA certificate.
pub(super) type Chain<'a> = Vec<CertificateDer<'a>>;

impl Trust {
    /// # Errors
    /// There is no certificate, or one is damaged.
    pub(super) fn new(
        ca_pem: &[u8],
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Result<Self, TrustError> {
        let listed = pem::certificates(ca_pem).map_err(TrustError::Ca)?;
        certificate::public_keys(&listed).map_err(TrustError::Ca)?;
        let mut trust = Self { listed, anchors: Vec::new(), between: Vec::new(), algorithms };
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
    pub(super) fn subjects(&self) -> Vec<DistinguishedName> {
        let anchors = self.listed.iter().filter_map(|one| anchor_from_trusted_cert(one).ok());
        anchors.map(|anchor| DistinguishedName::in_sequence(&anchor.subject)).collect()
    }

    /// The way from `leaf` to a CA.
    ///
    /// # Errors
    /// There is none, or it does not hold at `now`.
    pub(super) fn chain<'a>(
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
        path::check(&chain, now)?;
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
        self.anchors.iter().filter(move |anchor| {
            parse(&anchor.certificate).is_ok_and(|parsed| path::is_valid(&parsed, now))
        })
    }

    /// What is behind the leaf in its chain.
    fn build(
        &self,
        end_entity: &EndEntityCert<'_>,
        anchors: &[&Anchor],
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Vec<CertificateDer<'static>>, webpki::Error> {
        let ends: Vec<_> = anchors.iter().map(|anchor| anchor.anchor.clone()).collect();
        let usage = KeyUsage::client_auth();
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
    if !parse(&certificate).is_ok_and(|parsed| path::is_authority(&parsed, algorithms)) {
        return None;
    }
    let anchor = anchor_from_trusted_cert(&certificate).ok()?.to_owned();
    Some(Anchor { certificate, anchor })
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
    // By the name of a CA, but not by its key: for this server it is an unknown CA.
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
