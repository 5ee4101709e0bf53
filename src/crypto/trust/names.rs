//! Whether a certificate has a name.

use std::net::IpAddr;

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

/// Whether one of its alternative names is one of `wanted`: DNS names, URIs, mail or IP addresses.
pub(in crate::crypto) fn is_any(leaf: &X509Certificate<'_>, wanted: &[impl AsRef<str>]) -> bool {
    let Ok(Some(extension)) = leaf.subject_alternative_name() else { return false };
    let mut names = extension.value.general_names.iter();
    names.any(|name| wanted.iter().any(|wanted| is_name(name, wanted.as_ref())))
}

/// The namespace in a workload's identity, `spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT`; `None` if it
/// has none, or more than one URI (SPIFFE X.509-SVID, section 2).
pub(in crate::crypto) fn mesh_namespace<'a>(leaf: &'a X509Certificate<'_>) -> Option<&'a str> {
    let extension = leaf.subject_alternative_name().ok()??;
    let names = extension.value.general_names.iter();
    let mut uris =
        names.filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None });
    let (Some(uri), None) = (uris.next(), uris.next()) else { return None };
    let mut parts = uri.strip_prefix("spiffe://")?.split('/');
    let mut part = || parts.next().filter(|part| !part.is_empty());
    let (_domain, ns, namespace) = (part()?, part()?, part()?);
    let (sa, _account) = (part()?, part()?);
    (ns == "ns" && sa == "sa" && parts.next().is_none()).then_some(namespace)
}

/// What `wanted` looks like says which kind of name it is. Another kind does not count, be its text
/// the same: a CA that is constrained to some DNS names may write anything into a URI.
fn is_name(name: &GeneralName<'_>, wanted: &str) -> bool {
    if let Ok(address) = wanted.parse::<IpAddr>() {
        return matches!(name, GeneralName::IPAddress(bytes) if is_address(bytes, address));
    }
    if wanted.contains(':') {
        return matches!(name, GeneralName::URI(uri) if *uri == wanted);
    }
    if wanted.contains('@') {
        return matches!(name, GeneralName::RFC822Name(mail) if *mail == wanted);
    }
    matches!(name, GeneralName::DNSName(dns) if is_dns_name(dns, wanted))
}

fn is_address(bytes: &[u8], address: IpAddr) -> bool {
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
