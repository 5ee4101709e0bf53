//! What is told of a client's certificate, in the form that Envoy gives
//! `x-forwarded-client-cert`: `Hash=...;Cert="...";Subject="...";URI=...;DNS=...`.
//!
//! The text is visible ASCII, and nothing in a certificate can end a value before its time: where
//! Envoy copies a name as it is, what would separate it is percent-encoded.

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::prelude::FromDer;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// Characters of base64 in a line of PEM.
const LINE: usize = 64;

/// The element for `certificate`, which was used in a handshake; `None` where it cannot be read.
pub(crate) fn forwarded(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let mut element = "Hash=".to_owned();
    for byte in digest(&SHA256, certificate).as_ref() {
        push(&mut element, format_args!("{byte:02x}"));
    }
    push(&mut element, format_args!(";Cert=\"{}\"", encoded_pem(certificate)));
    push(&mut element, format_args!(";Subject=\"{}\"", distinguished(parsed.subject())));
    let (uris, dns) = names(&parsed);
    for uri in uris.iter().map(String::as_str).chain(uris.is_empty().then_some("")) {
        push(&mut element, format_args!(";URI={uri}"));
    }
    for name in dns {
        push(&mut element, format_args!(";DNS={name}"));
    }
    Some(element)
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("a String takes everything");
}

/// PEM, percent-encoded as Envoy does.
fn encoded_pem(der: &[u8]) -> String {
    let base64 = BASE64_STANDARD.encode(der);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in base64.as_bytes().chunks(LINE) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    let mut encoded = String::with_capacity(pem.len() + pem.len() / 8);
    for character in pem.chars() {
        match character {
            '\n' => encoded.push_str("%0A"),
            ' ' => encoded.push_str("%20"),
            '+' => encoded.push_str("%2B"),
            '/' => encoded.push_str("%2F"),
            '=' => encoded.push_str("%3D"),
            other => encoded.push(other),
        }
    }
    encoded
}

/// The URIs and DNS names.
fn names(certificate: &X509Certificate<'_>) -> (Vec<String>, Vec<String>) {
    let (mut uris, mut dns) = (Vec::new(), Vec::new());
    if let Ok(Some(extension)) = certificate.subject_alternative_name() {
        for name in &extension.value.general_names {
            if let GeneralName::URI(uri) = name {
                uris.push(separate(uri));
            }
            if let GeneralName::DNSName(name) = name {
                dns.push(separate(name));
            }
        }
    }
    (uris, dns)
}

/// `name` without what would end it.
fn separate(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_graphic() && !matches!(byte, b';' | b',' | b'"' | b'\\') {
            text.push(char::from(byte));
        } else {
            push(&mut text, format_args!("%{byte:02X}"));
        }
    }
    text
}

/// The name as RFC 2253 writes it: the most special part first.
fn distinguished(name: &X509Name<'_>) -> String {
    let parts: Vec<_> = name.iter().collect();
    let relative = parts.iter().rev().map(|part| {
        let attributes: Vec<_> = part.iter().map(attribute).collect();
        attributes.join("+")
    });
    relative.collect::<Vec<_>>().join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let name = oid2abbrev(attribute.attr_type(), oid_registry())
        .map_or_else(|_| attribute.attr_type().to_id_string(), str::to_owned);
    let value = attribute.as_str().map_or_else(
        |_| attribute.as_slice().iter().map(|byte| format!("\\{byte:02X}")).collect(),
        escaped,
    );
    format!("{name}={value}")
}

/// RFC 2253, section 2.4, and every byte that is not visible ASCII or a space as `\XX`.
fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for (index, byte) in value.bytes().enumerate() {
        let is_edge = index == 0 || index + 1 == value.len();
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => {
                text.extend(['\\', char::from(byte)]);
            }
            b'#' if index == 0 => text.push_str("\\#"),
            b' ' if is_edge => text.push_str("\\ "),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => push(&mut text, format_args!("\\{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    fn element(params: &CertificateParams) -> (CertificateDer<'static>, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        let element = forwarded(&certificate).unwrap();
        (certificate, element)
    }

    #[test]
    fn the_element_has_all_that_istio_asks_for_in_envoys_order() {
        let mut params = CertificateParams::new(vec!["a.test".into(), "b.test".into()]).unwrap();
        params.subject_alt_names.push(SanType::URI("spiffe://test/a".try_into().unwrap()));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Dis, Inc. \"x\"; é");
        params.distinguished_name.push(DnType::CommonName, "client");
        let (certificate, element) = element(&params);
        let hash: String = digest(&SHA256, &certificate)
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let start = format!("Hash={hash};Cert=\"-----BEGIN%20CERTIFICATE-----%0AMII");
        assert!(element.starts_with(&start), "{element}");
        let end = "%0A-----END%20CERTIFICATE-----%0A\";Subject=\"CN=client,\
                   O=Dis\\, Inc. \\\"x\\\"\\; \\C3\\A9\";URI=spiffe://test/a;DNS=a.test;DNS=b.test";
        assert!(element.ends_with(end), "{element}");
        let decoded = element.split('"').nth(1).unwrap();
        let decoded = decoded
            .replace("%0A", "\n")
            .replace("%20", " ")
            .replace("%2B", "+")
            .replace("%2F", "/")
            .replace("%3D", "=");
        let read = crate::crypto::pem::certificates(decoded.as_bytes()).unwrap();
        assert_eq!(read, [certificate]);
    }

    #[test]
    fn no_name_can_pose_as_another_element() {
        let mut params = CertificateParams::default();
        let uri = "spiffe://test/a;DNS=admin.test,Hash=0\"\r\nx: y";
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, " #x\";URI=admin\r\n ");
        let (_, element) = element(&params);
        assert!(element.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{element}");
        let end = ";Subject=\"CN=\\ #x\\\"\\;URI=admin\\0D\\0A\\ \";URI=spiffe://test/a%3BDNS=admin\
                   .test%2CHash=0%22%0D%0Ax:%20y";
        assert!(element.ends_with(end), "{element}");
    }

    #[test]
    fn without_names_the_uri_is_empty_and_version_1_is_read() {
        let pem = include_bytes!("testdata/v1-rsa.crt");
        let certificate = crate::crypto::pem::certificates(pem).unwrap().remove(0);
        let element = forwarded(&certificate).unwrap();
        let end = ";Subject=\"O=httpbin organization,CN=httpbin.example.com\";URI=";
        assert!(element.ends_with(end), "{element}");
    }
}
