//! Takes PEM apart into certificates, revocation lists and the one private key.
//!
//! - Text between blocks and blocks of other kinds are skipped: files from `openssl s_client`,
//!   `openssl ecparam` and combined files load.
//! - A damaged block is an error, even behind a good one.

use std::fmt;

use rustls::pki_types::pem::{self, PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use super::{IdentityError, TrustError};

/// What is wrong with a PEM block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It has no END line, or that of another kind.
    NoEnd,
    /// Its BEGIN line is damaged.
    BadBegin,
    /// What is between BEGIN and END is not base64.
    NotBase64,
    /// It is larger than anything sensible.
    TooLarge,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoEnd => "has no END line",
            Self::BadBegin => "has a damaged BEGIN line",
            Self::NotBase64 => "is not base64",
            Self::TooLarge => "is too large",
        })
    }
}

/// All certificates, in their order; at least one.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let sections =
        sections(pem).map_err(|(block, fault)| IdentityError::CertificatePem { block, fault })?;
    let holds_key = sections.iter().any(|(kind, _)| is_key(*kind));
    let mut certificates: Vec<_> = sections
        .into_iter()
        .filter_map(|(kind, der)| CertificateDer::from_pem(kind, der))
        .collect();
    // Kept for as long as they are served; collected in place, they have the room of all sections.
    certificates.shrink_to_fit();
    if certificates.is_empty() && is_binary(pem) {
        return Err(IdentityError::Binary);
    }
    if certificates.is_empty() {
        return Err(IdentityError::NoCertificate { holds_key });
    }
    Ok(certificates)
}

/// All revocation lists, in their order; at least one.
pub(super) fn revocation_lists(
    pem: &[u8],
) -> Result<Vec<CertificateRevocationListDer<'static>>, TrustError> {
    let sections = sections(pem).map_err(|(block, fault)| TrustError::CrlPem { block, fault })?;
    let lists: Vec<_> = sections
        .into_iter()
        .filter_map(|(kind, der)| CertificateRevocationListDer::from_pem(kind, der))
        .collect();
    if lists.is_empty() { Err(TrustError::NoCrl) } else { Ok(lists) }
}

/// The only private key.
pub(super) fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, IdentityError> {
    if is_encrypted(pem) {
        return Err(IdentityError::EncryptedKey);
    }
    let sections =
        sections(pem).map_err(|(block, fault)| IdentityError::KeyPem { block, fault })?;
    let holds_certificate = sections.iter().any(|(kind, _)| *kind == SectionKind::Certificate);
    let mut keys: Vec<_> =
        sections.into_iter().filter_map(|(kind, der)| PrivateKeyDer::from_pem(kind, der)).collect();
    match (keys.pop(), keys.len()) {
        (None, _) if is_binary(pem) => Err(IdentityError::Binary),
        (None, _) => Err(IdentityError::NoKey { holds_certificate }),
        (Some(key), 0) => Ok(key),
        (Some(_), others) => Err(IdentityError::SeveralKeys { found: others + 1 }),
    }
}

type Section = (SectionKind, Vec<u8>);

/// Every block of a known kind, or which block is damaged and how.
fn sections(pem: &[u8]) -> Result<Vec<Section>, (usize, Fault)> {
    let mut found = Vec::new();
    for section in Section::pem_slice_iter(pem) {
        match section {
            Ok(section) => found.push(section),
            Err(error) => return Err((found.len() + 1, fault(&error))),
        }
    }
    Ok(found)
}

fn fault(error: &pem::Error) -> Fault {
    // The errors quote the input, which may be a key: only their kind is passed on.
    if matches!(error, pem::Error::MissingSectionEnd { .. }) {
        Fault::NoEnd
    } else if matches!(error, pem::Error::IllegalSectionStart { .. }) {
        Fault::BadBegin
    } else if matches!(error, pem::Error::SectionTooLarge) {
        Fault::TooLarge
    } else {
        Fault::NotBase64
    }
}

fn is_key(kind: SectionKind) -> bool {
    matches!(kind, SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey)
}

/// DER and PKCS#12 both begin with the tag of a SEQUENCE, and hold bytes that no text has.
fn is_binary(pem: &[u8]) -> bool {
    pem.first() == Some(&0x30) && std::str::from_utf8(pem).is_err()
}

/// PKCS#8 says so in its BEGIN line, the older formats in a header inside the block.
fn is_encrypted(pem: &[u8]) -> bool {
    pem.split(|byte| matches!(byte, b'\n' | b'\r')).any(|line| {
        line.starts_with(b"-----BEGIN ENCRYPTED PRIVATE KEY")
            || line.starts_with(b"Proc-Type: 4,ENCRYPTED")
    })
}
