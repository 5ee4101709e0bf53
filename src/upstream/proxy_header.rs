//! What is said of a connection to an endpoint before its first byte, where a DestinationRule asks
//! for it: the header of the PROXY protocol.

use std::net::{IpAddr, SocketAddr};

use crate::address::canonical;
use crate::snapshot::ProxyVersion;

/// How version 2 begins.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2 and its commands.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;

/// TCP over each family, and none.
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
const UNSPECIFIED: u8 = 0;

/// A client, and what it connected to.
pub(crate) type Client = (SocketAddr, SocketAddr);

/// The header for a connection that is for `client` alone, or for nobody in particular.
pub(crate) fn header(version: ProxyVersion, client: Option<Client>) -> Vec<u8> {
    let client = client.map(of_one_family);
    match version {
        ProxyVersion::V1 => v1(client).into_bytes(),
        ProxyVersion::V2 => v2(client),
    }
}

fn v1(client: Option<Client>) -> String {
    let Some((source, destination)) = client else { return "PROXY UNKNOWN\r\n".to_owned() };
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (source.ip(), destination.ip());
    format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port())
}

fn v2(client: Option<Client>) -> Vec<u8> {
    let (command, family, addresses) = match client {
        Some((source, destination)) => {
            let family = if source.is_ipv4() { TCP_OVER_IPV4 } else { TCP_OVER_IPV6 };
            (PROXY, family, addresses(source, destination))
        }
        None => (LOCAL, UNSPECIFIED, Vec::new()),
    };
    let length = u16::try_from(addresses.len()).expect("36 at most");
    [V2, &[command, family], &length.to_be_bytes(), &addresses].concat()
}

fn addresses(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(36);
    for address in [source, destination] {
        match address.ip() {
            IpAddr::V4(ip) => bytes.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => bytes.extend_from_slice(&ip.octets()),
        }
    }
    for address in [source, destination] {
        bytes.extend_from_slice(&address.port().to_be_bytes());
    }
    bytes
}

/// Both of the same family: a header has no room for two.
fn of_one_family((source, destination): Client) -> Client {
    let wide = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    let (source, destination) = (canonical(source), canonical(destination));
    if source.is_ipv4() == destination.is_ipv4() {
        (source, destination)
    } else {
        (wide(source), wide(destination))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_each_family_and_of_none() {
        let pair = |source: &str, destination: &str| {
            Some((source.parse().unwrap(), destination.parse().unwrap()))
        };
        let four = pair("192.0.2.1:1", "[::ffff:198.51.100.7]:443");
        let mixed = pair("192.0.2.1:1", "[2001:db8::1]:443");
        let text = |client| String::from_utf8(header(ProxyVersion::V1, client)).unwrap();
        assert_eq!(text(four), "PROXY TCP4 192.0.2.1 198.51.100.7 1 443\r\n");
        assert_eq!(text(mixed), "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::1 1 443\r\n");
        assert_eq!(text(None), "PROXY UNKNOWN\r\n");
        let v2 = |client| header(ProxyVersion::V2, client)[12..].to_vec();
        let addresses = [192, 0, 2, 1, 198, 51, 100, 7, 0, 1, 1, 0xbb];
        assert_eq!(v2(four), [&[0x21, 0x11, 0, 12][..], &addresses].concat());
        assert_eq!(v2(mixed)[..4], [0x21, 0x21, 0, 36]);
        assert_eq!(v2(None), [0x20, 0, 0, 0]);
    }
}
