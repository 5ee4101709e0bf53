//! The PROXY protocol, versions 1 and 2: what a load balancer says of a connection before its first
//! byte (haproxy.org, "The PROXY protocol", March 2020).
//!
//! - [`parse`] is a pure function of the bytes so far; [`read`] takes exactly the header from a
//!   stream, so that what follows is the client's.
//! - Strict: a header that is not whole, in form and in bounds is an error.
//! - Additional values of version 2 (TLVs) are skipped, its checksum among them.
//!
//! Deliberately not here: who is trusted to send one.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll, ready};

use crate::address::canonical;
use crate::io::Stream;

/// How version 1 begins.
const V1: &[u8] = b"PROXY ";

/// Longest line of version 1, with its end.
const V1_BYTES_MAX: usize = 107;

/// How version 2 begins.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2 up to its addresses.
const V2_BYTES: usize = 16;

/// Most of version 2 behind that: addresses and some kilobytes of additional values.
const V2_REST_MAX: usize = 4096;

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Header {
    /// The connection is for somebody else.
    Proxied {
        /// The client.
        source: SocketAddr,
        /// What the client connected to.
        destination: SocketAddr,
    },
    /// The connection is the sender's own, such as a health check, or it does not say whose.
    Own,
}

/// The bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Malformed;

/// Why there is no header.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// The connection ended before a first byte.
    Unused,
    /// It ended, or broke, in the middle.
    Closed,
    Malformed,
}

/// Takes the header from the beginning of `stream`.
///
/// # Errors
/// There is none. `stream` is of no use any more.
pub(crate) async fn read(stream: &mut impl Stream) -> Result<Header, ReadError> {
    let mut begun = Vec::new();
    poll_fn(|cx| poll_read(stream, &mut begun, cx)).await
}

fn poll_read(
    stream: &mut impl Stream,
    begun: &mut Vec<u8>,
    cx: &mut Context<'_>,
) -> Poll<Result<Header, ReadError>> {
    loop {
        let lent = ready!(stream.poll_fill(cx)).map_err(|_: io::Error| ReadError::Closed)?;
        if lent.is_empty() {
            let unused = begun.is_empty();
            return Poll::Ready(Err(if unused { ReadError::Unused } else { ReadError::Closed }));
        }
        let (before, all) = (begun.len(), lent.len());
        // No more than can be part of a header: what follows it may be as long as it likes.
        let room = V2_BYTES + V2_REST_MAX - before;
        begun.extend_from_slice(&lent[..all.min(room)]);
        match parse(begun) {
            Ok(Some((header, bytes))) => {
                stream.consume(bytes - before);
                return Poll::Ready(Ok(header));
            }
            Ok(None) => stream.consume(all.min(room)),
            Err(Malformed) => return Poll::Ready(Err(ReadError::Malformed)),
        }
    }
}

/// The header that `bytes` begin with, and how long it is; `None` while it is not whole.
fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    if begins(bytes, V1) {
        parse_v1(bytes)
    } else if begins(bytes, V2) {
        parse_v2(bytes)
    } else {
        Err(Malformed)
    }
}

/// Whether `bytes` are how `signature` begins, or go on behind it.
fn begins(bytes: &[u8], signature: &[u8]) -> bool {
    let shared = bytes.len().min(signature.len());
    bytes[..shared] == signature[..shared]
}

fn parse_v1(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    let looked_at = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = looked_at.windows(2).position(|pair| pair == b"\r\n") else {
        return if looked_at.len() < V1_BYTES_MAX { Ok(None) } else { Err(Malformed) };
    };
    let line = std::str::from_utf8(&looked_at[V1.len()..end]).map_err(|_| Malformed)?;
    let header = match line.split_once(' ') {
        Some(("TCP4", rest)) => addresses_v1(rest, IpAddr::is_ipv4)?,
        Some(("TCP6", rest)) => addresses_v1(rest, IpAddr::is_ipv6)?,
        Some(("UNKNOWN", _)) => Header::Own,
        None if line == "UNKNOWN" => Header::Own,
        Some(_) | None => return Err(Malformed),
    };
    Ok(Some((header, end + 2)))
}

fn addresses_v1(text: &str, is_of_family: fn(&IpAddr) -> bool) -> Result<Header, Malformed> {
    let parts: Vec<_> = text.split(' ').collect();
    let [source, destination, source_port, destination_port] = parts[..] else {
        return Err(Malformed);
    };
    let address = |text: &str| text.parse().ok().filter(is_of_family).ok_or(Malformed);
    let source = canonical((address(source)?, port_v1(source_port)?).into());
    let destination = canonical((address(destination)?, port_v1(destination_port)?).into());
    Ok(Header::Proxied { source, destination })
}

/// Decimal, without leading zeros.
fn port_v1(text: &str) -> Result<u16, Malformed> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_plain || (text.len() > 1 && text.starts_with('0')) {
        return Err(Malformed);
    }
    text.parse().map_err(|_| Malformed)
}

fn parse_v2(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    let Some((head, rest)) = bytes.split_at_checked(V2_BYTES) else { return Ok(None) };
    let (command, family) = (head[12], head[13]);
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if length > V2_REST_MAX {
        return Err(Malformed);
    }
    let is_own = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err(Malformed),
    };
    let Some(rest) = rest.get(..length) else { return Ok(None) };
    // Whatever else the sender says of its own connection is to be passed over.
    let header = if is_own { Header::Own } else { proxied_v2(family, rest)? };
    Ok(Some((header, V2_BYTES + length)))
}

fn proxied_v2(family: u8, rest: &[u8]) -> Result<Header, Malformed> {
    match family {
        // TCP over IPv4 and IPv6.
        0x11 => addresses_v2::<4>(rest),
        0x21 => addresses_v2::<16>(rest),
        // Unspecified, and unix sockets: there is no address to speak of.
        0x00 | 0x31 | 0x32 => Ok(Header::Own),
        // Datagrams do not come by a stream; all else is not assigned.
        _ => Err(Malformed),
    }
}

/// Two addresses of `N` bytes each, then their ports.
fn addresses_v2<const N: usize>(bytes: &[u8]) -> Result<Header, Malformed>
where
    IpAddr: From<[u8; N]>,
{
    let (source, rest) = bytes.split_first_chunk::<N>().ok_or(Malformed)?;
    let (destination, rest) = rest.split_first_chunk::<N>().ok_or(Malformed)?;
    let (source_port, rest) = rest.split_first_chunk().ok_or(Malformed)?;
    let (destination_port, _) = rest.split_first_chunk().ok_or(Malformed)?;
    let at = |address: [u8; N], port| {
        canonical(SocketAddr::new(address.into(), u16::from_be_bytes(port)))
    };
    Ok(Header::Proxied {
        source: at(*source, *source_port),
        destination: at(*destination, *destination_port),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::pipe::{self, Chunking};
    use crate::snapshot::ProxyVersion;
    use crate::upstream::header;
    use proptest::prelude::*;
    use std::io::IoSlice;
    use std::pin::pin;
    use std::task::Waker;

    fn proxied(source: &str, destination: &str) -> Header {
        let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
        Header::Proxied { source, destination }
    }

    /// A header of version 2.
    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [V2, &[command, family], &length, rest].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 7, 0xdb, 0xa0, 0x01, 0xbb];

    fn v6() -> Vec<u8> {
        let mut bytes = vec![0; 36];
        (bytes[0], bytes[1], bytes[15]) = (0x20, 0x01, 1);
        (bytes[16], bytes[17], bytes[31]) = (0x20, 0x01, 2);
        bytes[32..].copy_from_slice(&[0, 80, 1, 187]);
        bytes
    }

    #[test]
    fn the_examples_of_the_specification() {
        let longest_v6 = format!("PROXY TCP6 {0} {0} 65535 65535\r\n", ["ffff"; 8].join(":"));
        let worst = format!("PROXY UNKNOWN {0} {0} 65535 65535\r\n", ["ffff"; 8].join(":"));
        assert_eq!((longest_v6.len(), worst.len()), (104, V1_BYTES_MAX));
        let all_ones = format!("[{}]:65535", ["ffff"; 8].join(":"));
        let cases = [
            (
                "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
                proxied("255.255.255.255:65535", "255.255.255.255:65535"),
            ),
            (&longest_v6, proxied(&all_ones, &all_ones)),
            ("PROXY UNKNOWN\r\n", Header::Own),
            (&worst, Header::Own),
            (
                "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
                proxied("192.168.0.1:56324", "192.168.0.11:443"),
            ),
            (
                "PROXY TCP6 ::ffff:192.168.0.1 ::ffff:192.168.0.11 56324 443\r\n",
                proxied("192.168.0.1:56324", "192.168.0.11:443"),
            ),
        ];
        for (text, header) in cases {
            let with_more = format!("{text}GET / HTTP/1.1\r\nHost: 192.168.0.11\r\n\r\n");
            assert_eq!(parse(with_more.as_bytes()), Ok(Some((header, text.len()))), "{text}");
        }
    }

    #[test]
    fn version_2_of_each_command_and_family() {
        let four = proxied("192.0.2.1:56224", "198.51.100.7:443");
        let six = proxied("[2001::1]:80", "[2001::2]:443");
        // IPv4 in the form of IPv6, as senders that listen on both have it.
        let ip = |v4: &[u8]| [&[0; 10][..], &[0xff, 0xff], v4].concat();
        let mapped = [ip(&V4[..4]), ip(&V4[4..8]), V4[8..].to_vec()].concat();
        let with_values = [&V4[..], &[0x03, 0, 4, 1, 2, 3, 4, 0x01, 0, 2, b'h', b'2']].concat();
        let cases = [
            (v2(0x21, 0x11, &V4), four),
            (v2(0x21, 0x11, &with_values), four),
            (v2(0x21, 0x21, &v6()), six),
            (v2(0x21, 0x21, &mapped), four),
            (v2(0x20, 0x00, &[]), Header::Own),
            (v2(0x20, 0x11, &V4), Header::Own),
            // Whose own connection it is may say anything about addresses.
            (v2(0x20, 0x11, &[]), Header::Own),
            (v2(0x20, 0x12, &V4), Header::Own),
            (v2(0x20, 0xff, &[1, 2, 3]), Header::Own),
            (v2(0x21, 0x00, &[]), Header::Own),
            (v2(0x21, 0x00, &[1, 2, 3]), Header::Own),
            (v2(0x21, 0x31, &[0; 216]), Header::Own),
            (v2(0x21, 0x11, &[&V4[..], &[0; V2_REST_MAX - 12]].concat()), four),
        ];
        for (bytes, header) in cases {
            assert_eq!(parse(&bytes), Ok(Some((header, bytes.len()))), "{bytes:?}");
        }
    }

    #[test]
    fn what_is_not_in_form_or_in_bounds_is_refused() {
        let too_long = format!("PROXY UNKNOWN {}", "x".repeat(V1_BYTES_MAX));
        let texts = [
            "GET / HTTP/1.1\r\n",
            "proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n",
            "PROXY TCP4 1.2.3.04 1.2.3.4 1 2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n\r\n",
            "PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY UNKNOWNS\r\n",
            "PROXY \r\n",
            &too_long,
        ];
        for text in texts {
            assert_eq!(parse(text.as_bytes()), Err(Malformed), "{text}");
        }
        let binaries = [
            v2(0x11, 0x11, &V4),
            v2(0x22, 0x11, &V4),
            v2(0x21, 0x12, &V4),
            v2(0x21, 0x22, &v6()),
            v2(0x21, 0x41, &V4),
            v2(0x21, 0x11, &V4[..11]),
            v2(0x21, 0x21, &V4),
            v2(0x21, 0x11, &[0; V2_REST_MAX + 1]),
        ];
        for bytes in binaries {
            assert_eq!(parse(&bytes), Err(Malformed), "{bytes:?}");
        }
    }

    #[test]
    fn nothing_behind_the_header_is_taken() {
        for chunking in [Chunking::Bytes, Chunking::UpTo(7), Chunking::UpTo(4096)] {
            let headers = [b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n".to_vec(), v2(0x21, 0x11, &V4)];
            for header in headers {
                let (mut client, mut near) = pipe::pair(chunking);
                client.write(&[IoSlice::new(&header), IoSlice::new(b"the rest")]).unwrap();
                client.close_write();
                let mut cx = Context::from_waker(Waker::noop());
                let found = pin!(read(&mut near)).poll(&mut cx);
                assert!(matches!(found, Poll::Ready(Ok(Header::Proxied { .. }))), "{found:?}");
                assert_eq!(crate::upstream::world::read(&mut near), "the rest");
            }
        }
    }

    #[test]
    fn an_end_before_the_header_is_told_from_one_within() {
        for (bytes, is_unused) in [(&b""[..], true), (b"PROXY TCP4", false)] {
            let (mut client, mut near) = pipe::pair(Chunking::UpTo(64));
            client.write(&[IoSlice::new(bytes)]).unwrap();
            client.close_write();
            let mut cx = Context::from_waker(Waker::noop());
            let Poll::Ready(Err(error)) = pin!(read(&mut near)).poll(&mut cx) else {
                panic!("there is no header");
            };
            assert_eq!(matches!(error, ReadError::Unused), is_unused);
        }
    }

    fn addresses() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
        let four = any::<(([u8; 4], u16), ([u8; 4], u16))>()
            .prop_map(|(a, b)| (SocketAddr::from(a), SocketAddr::from(b)));
        // Not IPv4 in disguise, which is written as what it is.
        let six = any::<(([u8; 16], u16), ([u8; 16], u16))>().prop_map(|(mut a, mut b)| {
            (a.0[0], b.0[0]) = (0x20, 0x20);
            (SocketAddr::from(a), SocketAddr::from(b))
        });
        prop_oneof![four, six]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(pair in addresses(), is_v2: bool, more: Vec<u8>) {
            let version = if is_v2 { ProxyVersion::V2 } else { ProxyVersion::V1 };
            let header = header(version, Some(pair));
            let expected = Header::Proxied { source: pair.0, destination: pair.1 };
            let all = [header.clone(), more].concat();
            prop_assert_eq!(parse(&all), Ok(Some((expected, header.len()))));
            for end in 0..header.len() {
                prop_assert_eq!(parse(&header[..end]), Ok(None));
            }
        }

        #[test]
        fn no_bytes_are_too_much(bytes: Vec<u8>, is_v2: bool, family: u8, length: u16) {
            let head = [V2, &[0x21, family], &length.to_be_bytes()[..]].concat();
            let begin = if is_v2 { &head[..] } else { V1 };
            let all = [begin, &bytes[..]].concat();
            if let Ok(Some((_, taken))) = parse(&all) {
                prop_assert!(taken <= all.len() && taken <= V2_BYTES + V2_REST_MAX);
            }
            // Never more is waited for than there may be.
            let long = [&all[..], &[b'x'; V2_BYTES + V2_REST_MAX]].concat();
            prop_assert_ne!(parse(&long), Ok(None));
        }
    }
}
