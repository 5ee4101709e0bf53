//! Doors for `fuzz/` to what reads bytes of strangers, each with what has to hold for any bytes.
//!
//! - Compiled with the feature `bench`, like the doors for `benches/`, and hidden as they are.
//! - A door panics when something does not hold. That the code itself panics is found as well.
//! - Bytes come in pieces of several sizes, since no reader may mind how they are cut.
//!
//! Deliberately not here: where inputs come from. `fuzz/` makes them up; the tests below show that
//! each door lets good input through to the end.

#![forbid(unsafe_code)]

use std::future::Future;
use std::io::IoSlice;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use crate::config;
use crate::crypto::{BackendTrust, Choice, PairPem, Provider, describe_all, load};
use crate::http::path::normalise;
use crate::io::Stream;
use crate::io::pipe::{self, Chunking, End};
use crate::tcp::proxy_protocol;
use crate::tls;
use crate::upstream;

/// Pieces in which bytes arrive.
const STEPS: [usize; 3] = [1, 7, 16 * 1024];

/// Polls of a future that has all it will ever get. More mean that it goes round in circles.
const POLLS_MAX: usize = 10_000;

/// A client's first bytes on a TLS port: whether they are a ClientHello, and its server name.
///
/// # Panics
/// It depends on how they are cut.
#[must_use]
pub fn hello(bytes: &[u8]) -> Option<Option<Box<str>>> {
    same_in_any_pieces(bytes, |stream| {
        let greeting = finish(tls::greet(stream)).ok()?;
        Some(greeting.hello().sni.clone())
    })
}

/// A PROXY header: how it is read, and how many bytes are left behind it.
///
/// # Panics
/// It depends on how the bytes are cut.
#[must_use]
pub fn proxy_header(bytes: &[u8]) -> Option<(String, usize)> {
    same_in_any_pieces(bytes, |mut stream| {
        let header = finish(proxy_protocol::read(&mut stream)).ok()?;
        Some((format!("{header:?}"), rest(stream)))
    })
}

/// The head of an endpoint's HTTP/1.1 response: its status, and how many bytes belong to it.
///
/// # Panics
/// It depends on how the bytes are cut.
#[must_use]
pub fn response_head(bytes: &[u8]) -> Option<(u16, usize)> {
    let [first, others @ ..] = STEPS.map(|step| upstream::read_head(bytes, step));
    assert!(others.iter().all(|other| *other == first), "{first:?} {others:?}");
    first
}

/// The normal form of a request's path.
///
/// # Panics
/// It has another normal form itself, or still a way up.
pub fn path(text: &str) {
    let text = format!("/{text}");
    let Ok(normal) = normalise(&text) else { return };
    assert!(normal.starts_with('/'), "{text:?} {normal:?}");
    assert!(!normal.split('/').any(|segment| matches!(segment, "." | "..")), "{normal:?}");
    assert_eq!(normalise(&normal).as_deref(), Ok(&*normal), "{text:?}");
}

/// A file of resources: whether there is no error in it.
#[must_use]
pub fn resources(bytes: &[u8]) -> bool {
    config::check_bytes(bytes)
}

/// What a Secret holds, each as `bytes`: whether it is a certificate with its key, and whether it
/// is a CA with its revocation lists.
#[must_use]
pub fn secret(bytes: &[u8]) -> (bool, bool) {
    let provider = Provider::new(Choice::Ring);
    let pair = PairPem { certificate: bytes, key: bytes, staple: Some(bytes) };
    let is_pair = load(&provider, &pair).is_ok();
    // For the eyes of the operator, also where nothing can be served.
    let is_described = describe_all(bytes).is_ok();
    assert!(is_described || !is_pair, "what is served can be shown");
    (is_pair, BackendTrust::new(&provider, bytes, Some(bytes)).is_ok())
}

fn same_in_any_pieces<T: PartialEq>(bytes: &[u8], read: impl Fn(End) -> T) -> T {
    let [first, others @ ..] = STEPS.map(|step| read(sent(bytes, step)));
    assert!(others.into_iter().all(|other| other == first), "it depends on how it is cut");
    first
}

/// A stream on which `bytes` come by `step`, and then its end.
fn sent(bytes: &[u8], step: usize) -> End {
    let (mut far, near) = pipe::pair(Chunking::UpTo(step));
    far.write(&[IoSlice::new(bytes)]).expect("nobody has closed it");
    near
}

/// What comes of `future`.
fn finish<T>(future: impl Future<Output = T>) -> T {
    let (mut future, mut cx) = (pin!(future), Context::from_waker(Waker::noop()));
    for _ in 0..POLLS_MAX {
        if let Poll::Ready(done) = future.as_mut().poll(&mut cx) {
            return done;
        }
    }
    panic!("nothing more comes, and it waits");
}

/// The bytes that are left in `stream`.
fn rest(mut stream: End) -> usize {
    let (mut cx, mut bytes) = (Context::from_waker(Waker::noop()), 0);
    while let Poll::Ready(Ok(lent @ [_, ..])) = stream.poll_fill(&mut cx) {
        let more = lent.len();
        bytes += more;
        stream.consume(more);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_header_is_read_to_its_end() {
        let (header, left) = proxy_header(b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET /").unwrap();
        assert!(header.contains("1.2.3.4:1"), "{header}");
        assert_eq!(left, 5);
        assert_eq!(proxy_header(b"GET / HTTP/1.1\r\n\r\n"), None);
    }

    #[test]
    fn a_head_is_read_to_its_end() {
        let head = "HTTP/1.1 204 No Content\r\nx-a: b\r\n\r\n";
        let bytes = head.len();
        assert_eq!(response_head(format!("{head}behind").as_bytes()), Some((204, bytes)));
        assert_eq!(response_head(&head.as_bytes()[..bytes - 1]), None);
        assert_eq!(response_head(b"HTTP/1.1 x\r\n\r\n"), None);
    }

    #[test]
    fn a_hello_is_read() {
        let name = rustls::pki_types::ServerName::try_from("a.test").unwrap();
        let config =
            rustls::ClientConfig::builder_with_provider(Provider::new(Choice::Ring).rustls())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
        let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        assert_eq!(hello(&bytes), Some(Some("a.test".into())));
        assert_eq!(hello(b"GET / HTTP/1.1\r\n\r\n"), None);
    }

    #[test]
    fn odd_paths_have_a_normal_form() {
        for text in ["", "a/../../b", "%2e%2e/%2F..", "a\\..\\b", "%00", "%", "%252e/.", "...//./."]
        {
            path(text);
        }
    }

    #[test]
    fn resources_are_compiled() {
        assert!(resources(include_bytes!("config/testdata/page.yaml")));
        assert!(!resources(b"kind: ["));
    }

    #[test]
    fn a_secret_is_read() {
        let made = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        let both = made.cert.pem() + &made.signing_key.serialize_pem();
        let (is_pair, is_ca) = secret(both.as_bytes());
        assert!(!is_pair, "its staple is none");
        assert!(!is_ca, "there is no revocation list");
        assert_eq!(secret(b""), (false, false));
    }
}
