//! Revocation lists: with one, every CA of a peer's chain needs one that is valid.
//!
//! Read here and not by webpki, which wants version 2 of the format with extensions; `openssl ca
//! -gencrl` writes neither unless told to.

use std::collections::HashSet;
use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use rustls::CertificateError;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateRevocationListDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::X509Extension;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::{Chain, TrustError, parse, unix_time};
use crate::crypto::pem;
use crate::crypto::signed::Signed;

/// The lists that go with some CA certificates.
#[derive(Debug)]
pub(in crate::crypto) struct Revocation {
    lists: Vec<List>,
}

struct List {
    der: CertificateRevocationListDer<'static>,
    /// The name of who issued it.
    issuer: Box<[u8]>,
    /// Serial numbers.
    revoked: HashSet<Box<[u8]>>,
    valid_from: i64,
    /// Where it says none, it is valid for good.
    valid_until: Option<i64>,
    /// The key that it was found to be signed by: a large one is not hashed at every handshake.
    signed_by: OnceLock<Box<[u8]>>,
}

impl Revocation {
    /// # Errors
    /// There is no list, or one cannot be used.
    pub(in crate::crypto) fn new(crl_pem: &[u8]) -> Result<Self, TrustError> {
        let lists = pem::revocation_lists(crl_pem)?;
        let lists = (1..).zip(lists).map(|(index, der)| List::new(index, der));
        Ok(Self { lists: lists.collect::<Result<_, _>>()? })
    }

    /// When the first list ends.
    pub(in crate::crypto) fn expires(&self) -> Option<SystemTime> {
        let since_epoch = Duration::from_secs(self.valid_until()?.as_secs());
        Some(SystemTime::UNIX_EPOCH + since_epoch)
    }

    /// The same, as it is compared with the time of a handshake.
    pub(in crate::crypto) fn valid_until(&self) -> Option<UnixTime> {
        self.lists.iter().filter_map(|list| list.valid_until).min().map(unix_time)
    }

    /// Checks all of `chain` but its end, which is trusted as it is.
    ///
    /// # Errors
    /// A certificate is revoked, or nothing valid is known about it.
    pub(in crate::crypto) fn check(
        &self,
        chain: &Chain<'_>,
        now: UnixTime,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<(), CertificateError> {
        let chain = chain.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        for pair in chain.windows(2) {
            self.check_one(&pair[0], &pair[1], now, algorithms)?;
        }
        Ok(())
    }

    fn check_one(
        &self,
        certificate: &X509Certificate<'_>,
        issuer: &X509Certificate<'_>,
        now: UnixTime,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<(), CertificateError> {
        let mut status = Err(CertificateError::UnknownRevocationStatus);
        let (serial, key) = (certificate.raw_serial(), issuer.tbs_certificate.subject_pki.raw);
        for list in self.lists.iter().filter(|list| list.concerns(certificate)) {
            if !list.is_signed_by(key, algorithms) {
                continue;
            }
            if list.revoked.contains(number(serial)) {
                return Err(CertificateError::Revoked);
            }
            if list.is_valid(now) {
                status = Ok(());
            } else if status.is_err() {
                status = Err(CertificateError::ExpiredRevocationList);
            }
        }
        status
    }
}

impl List {
    fn new(index: usize, der: CertificateRevocationListDer<'static>) -> Result<Self, TrustError> {
        let Ok(([], list)) = CertificateRevocationList::from_der(&der) else {
            return Err(TrustError::NotCrl { list: index });
        };
        let entries = || list.iter_revoked_certificates();
        let extensions = || entries().flat_map(|entry| entry.extensions());
        if list.extensions().iter().chain(extensions()).any(is_critical) {
            return Err(TrustError::PartialCrl { list: index });
        }
        Ok(Self {
            issuer: list.issuer().as_raw().into(),
            revoked: entries().map(|entry| number(entry.raw_serial()).into()).collect(),
            valid_from: list.last_update().timestamp(),
            valid_until: list.next_update().map(|time| time.timestamp()),
            signed_by: OnceLock::new(),
            der: der.clone(),
        })
    }

    fn concerns(&self, certificate: &X509Certificate<'_>) -> bool {
        *self.issuer == *certificate.issuer().as_raw()
    }

    fn is_valid(&self, now: UnixTime) -> bool {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        self.valid_from <= now && self.valid_until.is_none_or(|until| now <= until)
    }

    fn is_signed_by(&self, spki: &[u8], algorithms: &WebPkiSupportedAlgorithms) -> bool {
        if self.signed_by.get().is_some_and(|key| **key == *spki) {
            return true;
        }
        let signed = Signed::parse(&self.der).is_some_and(|signed| signed.is_by(spki, algorithms));
        if signed {
            // Another worker may have been faster with the same.
            let _ = self.signed_by.set(spki.into());
        }
        signed
    }
}

impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} revoked", self.revoked.len())
    }
}

/// Extensions that must be understood make a list say less than it seems to: for some certificates
/// only, or by another issuer, or beside another list.
fn is_critical(extension: &X509Extension<'_>) -> bool {
    extension.critical
}

/// A serial number without what makes no difference.
fn number(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    &serial[zeros..]
}
