//! Chains that webpki does not build, and what BoringSSL asks of every certificate of a chain
//! beyond webpki.
//!
//! The builder here knows no name constraints: a chain with some is left to webpki.

use rustls::CertificateError;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ExtendedKeyUsage;
use x509_parser::oid_registry as oid;
use x509_parser::x509::X509Version;

use super::{Chain, Usage, parse};
use crate::crypto::signed::Signed;

/// Certificates of a chain, and signatures that are tried to find one.
const CHAIN_LENGTH_MAX: usize = 8;
const SIGNATURES_MAX: usize = 64;

/// Extensions that are looked at, and so may be critical.
const KNOWN: [oid::Oid<'static>; 4] = [
    oid::OID_X509_EXT_BASIC_CONSTRAINTS,
    oid::OID_X509_EXT_KEY_USAGE,
    oid::OID_X509_EXT_EXTENDED_KEY_USAGE,
    oid::OID_X509_EXT_SUBJECT_ALT_NAME,
];

/// A way from `leaf` by what the peer `presented` to one of the `listed`.
///
/// # Errors
/// There is none, or it has what is not understood here.
pub(super) fn search<'a>(
    leaf: &'a CertificateDer<'_>,
    presented: &'a [CertificateDer<'_>],
    listed: &'a [CertificateDer<'static>],
    now: UnixTime,
    algorithms: &'a WebPkiSupportedAlgorithms,
) -> Result<Chain<'a>, CertificateError> {
    let mut candidates = Vec::new();
    for der in listed.iter().chain(presented) {
        // What cannot be read vouches for nobody.
        candidates.extend(Link::new(der).ok());
    }
    // A certificate that was renewed is tried before what it replaces.
    candidates.sort_by_key(|link| !is_valid(&link.parsed, now));
    let mut search = Search { listed, candidates, algorithms, left: SIGNATURES_MAX };
    let mut chain = vec![Link::new(leaf)?];
    search.extend(&mut chain)?;
    for link in &chain {
        refuse_unknown_extensions(&link.parsed)?;
    }
    Ok(chain.into_iter().map(|link| CertificateDer::from(link.der)).collect())
}

#[derive(Clone)]
struct Link<'a> {
    der: &'a [u8],
    parsed: X509Certificate<'a>,
}

impl<'a> Link<'a> {
    fn new(der: &'a CertificateDer<'_>) -> Result<Self, CertificateError> {
        Ok(Self { der, parsed: parse(der)? })
    }
}

struct Search<'a> {
    listed: &'a [CertificateDer<'static>],
    candidates: Vec<Link<'a>>,
    algorithms: &'a WebPkiSupportedAlgorithms,
    /// Signatures that may still be tried.
    left: usize,
}

impl<'a> Search<'a> {
    /// Extends `chain` until what it ends in is listed and has no issuer.
    fn extend(&mut self, chain: &mut Vec<Link<'a>>) -> Result<(), CertificateError> {
        let last = chain.last().expect("a chain begins with its leaf").clone();
        let signed = Signed::parse(last.der).ok_or(CertificateError::BadEncoding)?;
        for candidate in self.candidates.clone() {
            if chain.len() == CHAIN_LENGTH_MAX || chain.iter().any(|l| l.der == candidate.der) {
                continue;
            }
            if !self.is_issuer(&candidate.parsed, &last.parsed, &signed) {
                continue;
            }
            chain.push(candidate);
            if self.extend(chain).is_ok() {
                return Ok(());
            }
            chain.pop();
        }
        let is_listed = self.listed.iter().any(|listed| listed.as_ref() == last.der);
        if is_listed { Ok(()) } else { Err(CertificateError::UnknownIssuer) }
    }

    fn is_issuer(
        &mut self,
        issuer: &X509Certificate<'_>,
        of: &X509Certificate<'_>,
        signed: &Signed<'_>,
    ) -> bool {
        if issuer.subject().as_raw() != of.issuer().as_raw() {
            return false;
        }
        let Some(left) = self.left.checked_sub(1) else { return false };
        self.left = left;
        is_authority(issuer, self.algorithms)
            && signed.is_by(issuer.tbs_certificate.subject_pki.raw, self.algorithms)
    }
}

fn refuse_unknown_extensions(certificate: &X509Certificate<'_>) -> Result<(), CertificateError> {
    let unknown = |extension: &&x509_parser::extensions::X509Extension<'_>| {
        extension.oid == oid::OID_X509_EXT_NAME_CONSTRAINTS
            || extension.critical && !KNOWN.contains(&extension.oid)
    };
    match certificate.extensions().iter().find(unknown) {
        Some(_) => Err(CertificateError::UnhandledCriticalExtension),
        None => Ok(()),
    }
}

/// Whether `certificate` may vouch for others.
pub(super) fn is_authority(
    certificate: &X509Certificate<'_>,
    algorithms: &WebPkiSupportedAlgorithms,
) -> bool {
    let Ok(usage) = certificate.key_usage() else { return false };
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return false;
    }
    if certificate.version() == X509Version::V1 {
        // It cannot say that it is a CA. Only one that nobody else vouches for is taken for one: a
        // peer's own of version 1 is signed by another's key.
        return is_self_signed(certificate, algorithms);
    }
    matches!(certificate.basic_constraints(), Ok(Some(basic)) if basic.value.ca)
}

/// Whether `certificate` is signed by its own key.
pub(super) fn is_self_signed(
    certificate: &X509Certificate<'_>,
    algorithms: &WebPkiSupportedAlgorithms,
) -> bool {
    let spki = certificate.tbs_certificate.subject_pki.raw;
    certificate.subject().as_raw() == certificate.issuer().as_raw()
        && Signed::parse(certificate.as_raw()).is_some_and(|signed| signed.is_by(spki, algorithms))
}

/// Whether `now` is within the validity of `certificate`.
pub(super) fn is_valid(certificate: &X509Certificate<'_>, now: UnixTime) -> bool {
    validity(certificate, now).is_ok()
}

fn validity(certificate: &X509Certificate<'_>, now: UnixTime) -> Result<(), CertificateError> {
    Validity::of(certificate).check(now)
}

/// From when until when a certificate is valid.
#[derive(Debug, Clone, Copy)]
pub(super) struct Validity {
    from: i64,
    until: i64,
}

impl Validity {
    pub(super) fn of(certificate: &X509Certificate<'_>) -> Self {
        let validity = certificate.validity();
        Self { from: validity.not_before.timestamp(), until: validity.not_after.timestamp() }
    }

    pub(super) fn check(self, now: UnixTime) -> Result<(), CertificateError> {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now < self.from {
            return Err(CertificateError::NotValidYet);
        }
        if now > self.until {
            return Err(CertificateError::Expired);
        }
        Ok(())
    }
}

/// Checks all certificates of `chain`, the CA at its end among them.
///
/// # Errors
/// One is not valid at `now`, or not made for what it is used for.
pub(super) fn check(
    chain: &Chain<'_>,
    usage: Usage,
    now: UnixTime,
) -> Result<(), CertificateError> {
    let parsed = chain.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    for certificate in &parsed {
        validity(certificate, now)?;
        require_usage(certificate, usage)?;
    }
    let (leaf, authorities) = parsed.split_first().expect("a chain begins with its leaf");
    require_signing(leaf)?;
    let mut between = 0;
    for authority in authorities {
        if path_length(authority).is_some_and(|most| most < between) {
            return Err(CertificateError::InvalidPurpose);
        }
        between += u32::from(authority.subject().as_raw() != authority.issuer().as_raw());
    }
    Ok(())
}

fn path_length(authority: &X509Certificate<'_>) -> Option<u32> {
    authority.basic_constraints().ok()??.value.path_len_constraint
}

/// What names its purposes, CA or peer, names this one.
fn require_usage(certificate: &X509Certificate<'_>, usage: Usage) -> Result<(), CertificateError> {
    let fits = |named: &ExtendedKeyUsage<'_>| match usage {
        Usage::Client => named.client_auth,
        Usage::Server => named.server_auth,
    };
    match certificate.extended_key_usage() {
        Ok(Some(named)) if !fits(named.value) => Err(CertificateError::InvalidPurpose),
        Ok(_) => Ok(()),
        Err(_) => Err(CertificateError::BadEncoding),
    }
}

/// What names the uses of its key names one that a handshake has.
fn require_signing(leaf: &X509Certificate<'_>) -> Result<(), CertificateError> {
    match leaf.key_usage() {
        Ok(Some(usage)) if !usage.value.digital_signature() && !usage.value.key_agreement() => {
            Err(CertificateError::InvalidPurpose)
        }
        Ok(_) => Ok(()),
        Err(_) => Err(CertificateError::BadEncoding),
    }
}
