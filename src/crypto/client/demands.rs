//! What a client has to be beyond a certificate that holds: names and pins.

use std::net::IpAddr;

use ring::digest::{SHA256, digest};
use rustls::CertificateError;
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use super::{Pins, parse};

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
        let named = self.names.is_empty() || self.is_named(&parsed);
        if named && self.is_pinned(leaf, parsed.tbs_certificate.subject_pki.raw) {
            return Ok(());
        }
        // As BoringSSL says for what Envoy's own checks refuse.
        Err(CertificateError::Other(rustls::OtherError(std::sync::Arc::new(Unwanted))))
    }

    fn is_named(&self, leaf: &X509Certificate<'_>) -> bool {
        let Ok(Some(extension)) = leaf.subject_alternative_name() else { return false };
        let mut names = extension.value.general_names.iter();
        names.any(|name| self.names.iter().any(|wanted| is_name(name, wanted)))
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

fn is_name(name: &GeneralName<'_>, wanted: &str) -> bool {
    if let GeneralName::DNSName(dns) = name {
        return is_dns_name(dns, wanted);
    }
    if let GeneralName::URI(text) | GeneralName::RFC822Name(text) = name {
        return *text == wanted;
    }
    let (GeneralName::IPAddress(bytes), Ok(address)) = (name, wanted.parse::<IpAddr>()) else {
        return false;
    };
    match address {
        IpAddr::V4(address) => *bytes == address.octets(),
        IpAddr::V6(address) => *bytes == address.octets(),
    }
}

/// Letter case makes no difference, and a certificate for `*.example.com` has each name of one more
/// label.
fn is_dns_name(dns: &str, wanted: &str) -> bool {
    let (dns, wanted) = (dns.to_ascii_lowercase(), wanted.to_ascii_lowercase());
    let below = dns.strip_prefix("*.").filter(|suffix| !suffix.is_empty());
    dns == wanted || below.is_some() && wanted.split_once('.').map(|(_, rest)| rest) == below
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
