//! Reads X.509 certificates of every version: what to report about them, and their public key.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use super::{IdentityError, pem};

/// What an operator wants to know about a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Description {
    /// Lower-case hexadecimal, without leading zeros or colons; `0` for zero.
    pub(crate) serial: String,
    /// DNS names, addresses, URIs and mail addresses; empty without that extension. Characters
    /// that no name contains are escaped.
    pub(crate) subject_alt_names: Vec<String>,
    /// Start of validity.
    pub(crate) valid_from: SystemTime,
    /// End of validity.
    pub(crate) expires: SystemTime,
    /// Whom it speaks for, `CN=httpbin.example.com`.
    pub(crate) subject: String,
    /// Who signed it.
    pub(crate) issuer: String,
}

/// Describes the first certificate in `certificate_pem`.
///
/// # Errors
/// There is none, or it is damaged.
pub(crate) fn describe(certificate_pem: &[u8]) -> Result<Description, IdentityError> {
    let chain = pem::certificates(certificate_pem)?;
    Ok(description(&parse(&chain, 0)?))
}

/// Describes all certificates in `certificate_pem`, of which there is at least one.
///
/// # Errors
/// There is none, or one is damaged.
pub(crate) fn describe_all(certificate_pem: &[u8]) -> Result<Vec<Description>, IdentityError> {
    let all = pem::certificates(certificate_pem)?;
    (0..all.len()).map(|index| Ok(description(&parse(&all, index)?))).collect()
}

fn description(certificate: &X509Certificate<'_>) -> Description {
    Description {
        serial: hexadecimal(certificate.raw_serial()),
        subject_alt_names: subject_alt_names(certificate),
        valid_from: system_time(certificate.validity().not_before),
        expires: system_time(certificate.validity().not_after),
        subject: printable(&certificate.subject().to_string()),
        issuer: printable(&certificate.issuer().to_string()),
    }
}

/// Checks that all of `chain` are certificates and returns the DER of their public keys.
pub(super) fn public_keys<'a>(
    chain: &'a [CertificateDer<'_>],
) -> Result<Vec<&'a [u8]>, IdentityError> {
    (0..chain.len()).map(|index| Ok(parse(chain, index)?.tbs_certificate.subject_pki.raw)).collect()
}

fn parse<'a>(
    chain: &'a [CertificateDer<'_>],
    index: usize,
) -> Result<X509Certificate<'a>, IdentityError> {
    match X509Certificate::from_der(&chain[index]) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) | Err(_) => Err(IdentityError::NotX509 { certificate: index + 1 }),
    }
}

fn hexadecimal(serial: &[u8]) -> String {
    let digits: String = serial.iter().map(|byte| format!("{byte:02x}")).collect();
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() { "0".into() } else { digits.into() }
}

pub(super) fn subject_alt_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let mut names: Vec<_> = extension.value.general_names.iter().filter_map(alt_name).collect();
    // Kept for as long as the certificate is served.
    names.shrink_to_fit();
    names
}

fn alt_name(name: &GeneralName<'_>) -> Option<String> {
    if let GeneralName::DNSName(text) | GeneralName::URI(text) | GeneralName::RFC822Name(text) =
        name
    {
        return Some(printable(text));
    }
    let GeneralName::IPAddress(bytes) = name else { return None };
    let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
    let address = v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)).ok()?;
    Some(address.to_string())
}

/// Names go into logs: one with a line break in it must not look like two lines.
fn printable(name: &str) -> String {
    name.escape_debug().to_string()
}

fn system_time(time: ASN1Time) -> SystemTime {
    let since_epoch = Duration::from_secs(time.timestamp().unsigned_abs());
    if time.timestamp() < 0 {
        SystemTime::UNIX_EPOCH - since_epoch
    } else {
        SystemTime::UNIX_EPOCH + since_epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &[u8] = include_bytes!("testdata/v1-rsa.crt");
    const SEC1: &[u8] = include_bytes!("testdata/sec1-ec.crt");

    #[test]
    fn a_version_1_certificate_is_described() {
        let described = describe(V1).unwrap();
        assert_eq!(described.serial, "0");
        assert!(described.subject_alt_names.is_empty());
        assert_eq!(described.subject, "CN=httpbin.example.com, O=httpbin organization");
        assert_eq!(described.issuer, "O=example Inc., CN=example.com");
        let days =
            described.expires.duration_since(described.valid_from).unwrap().as_secs() / 86400;
        assert_eq!(days, 36500);
    }

    #[test]
    fn names_and_serial_are_reported() {
        let described = describe(SEC1).unwrap();
        assert_eq!(described.serial, "a1b2c");
        assert_eq!(described.subject_alt_names, ["sec1.example.com", "192.0.2.7"]);
        let from = Duration::from_secs(1_795_457_939);
        assert_eq!(described.valid_from, SystemTime::UNIX_EPOCH + from);
    }

    #[test]
    fn dates_before_1970_and_odd_names_are_described() {
        let mut params = rcgen::CertificateParams::new(vec!["a.example".into()]).unwrap();
        params.not_before = rcgen::date_time_ymd(1960, 1, 1);
        params.not_after = rcgen::date_time_ymd(9999, 12, 31);
        params.distinguished_name.push(rcgen::DnType::CommonName, "two\nlines");
        let key = rcgen::KeyPair::generate().unwrap();
        let described = describe(params.self_signed(&key).unwrap().pem().as_bytes()).unwrap();
        assert!(described.valid_from < SystemTime::UNIX_EPOCH);
        assert!(described.expires > SystemTime::UNIX_EPOCH);
        assert!(described.subject.contains("two\\nlines"), "{}", described.subject);
    }

    #[test]
    fn what_is_not_a_certificate_is_refused() {
        let nothing = IdentityError::NoCertificate { holds_key: false };
        assert_eq!(describe(b"hello"), Err(nothing));
        let key = include_bytes!("testdata/v1-rsa.key");
        assert_eq!(describe(key), Err(IdentityError::NoCertificate { holds_key: true }));
        let hollow = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(describe(hollow), Err(IdentityError::NotX509 { certificate: 1 }));
    }
}
