//! The headers that a gateway takes away and adds, in both directions.
//!
//! - What concerns one hop only never passes (RFC 9110, section 7.6.1).
//! - What a client could use to pretend to be a gateway (`x-envoy-*`, `x-forwarded-client-cert`) is
//!   dropped; `x-forwarded-for` is extended by the peer's address, and of a client's certificate is
//!   told what the handshake proved.
//! - How many proxies in front are believed is the operator's word, [`Policy::trusted_proxies`].
//!
//! Deliberately not here: message framing, which the codec writes anew.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use ::http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, DATE, HOST, HeaderMap, HeaderName, HeaderValue, SERVER, TE,
    TRAILER,
};

use ::http::request::Parts;
use ::http::uri::PathAndQuery;
use ::http::{StatusCode, Uri};
use bytes::Bytes;

use crate::address::Address;
use crate::snapshot::{Field, Policy};

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static X_ENVOY_ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
static X_ENVOY_EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");
const X_ENVOY_EXPECTED_TIMEOUT: HeaderName =
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
const X_ENVOY_ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
const X_ENVOY_ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const X_ENVOY_UPSTREAM_SERVICE_TIME: HeaderName =
    HeaderName::from_static("x-envoy-upstream-service-time");

/// What every client of an Istio gateway sees; tools and dashboards look for it.
const SERVER_NAME: HeaderValue = HeaderValue::from_static("istio-envoy");

/// What is told of the peer, as header values that are made once for a connection.
#[derive(Debug)]
pub(crate) struct Peer {
    /// `None` of a Unix socket.
    address: Option<HeaderValue>,
    certificate: Option<HeaderValue>,
}

impl Peer {
    pub(crate) fn new(remote: Address, certificate: Option<HeaderValue>) -> Self {
        let address = remote
            .canonical_ip()
            .map(|ip| HeaderValue::try_from(ip.to_string()).expect("an address is visible ASCII"));
        Self { address, certificate }
    }
}

/// What the gateway itself says of a request to its upstream.
///
/// The client's own fields of these names are gone from the map. Most requests never need these
/// there: they are written behind it, and [`insert`](Self::insert) is for those that do.
#[derive(Debug)]
pub(crate) struct Vouched {
    peer: Rc<Peer>,
    /// `None` is the peer's address alone.
    x_forwarded_for: Option<HeaderValue>,
    /// `None` is the peer's.
    external_address: Option<HeaderValue>,
    scheme: &'static str,
    request_id: HeaderValue,
}

impl Vouched {
    fn new(peer: &Rc<Peer>, is_tls: bool) -> Self {
        let scheme = if is_tls { "https" } else { "http" };
        let (peer, request_id) = (Rc::clone(peer), request_id());
        Self { peer, x_forwarded_for: None, external_address: None, scheme, request_id }
    }

    pub(crate) fn x_forwarded_for(&self) -> Option<&HeaderValue> {
        self.x_forwarded_for.as_ref().or(self.peer.address.as_ref())
    }

    pub(crate) fn request_id(&self) -> &HeaderValue {
        &self.request_id
    }

    /// The client as far as the trusted proxies tell; `peer` is who is connected.
    pub(crate) fn client(&self, peer: Address) -> Address {
        self.external_address.as_ref().map_or(peer, |external| told_or(external, peer))
    }

    /// `http` or `https`, as the client sees it.
    pub(crate) fn scheme(&self) -> &'static str {
        self.scheme
    }

    /// All of it, for the first attempt.
    pub(crate) fn fields(&self) -> Told<'_> {
        static HTTP: HeaderValue = HeaderValue::from_static("http");
        static HTTPS: HeaderValue = HeaderValue::from_static("https");
        static FIRST: HeaderValue = HeaderValue::from_static("1");
        let proto = (&X_FORWARDED_PROTO, if self.scheme == "https" { &HTTPS } else { &HTTP });
        let others = [proto, (&X_REQUEST_ID, &self.request_id), (&X_ENVOY_ATTEMPT_COUNT, &FIRST)];
        let external = self.external_address.as_ref().or(self.peer.address.as_ref());
        Told::new(others, self.x_forwarded_for(), external)
    }

    /// Adds it to `headers`, where somebody looks for it there.
    pub(crate) fn insert(&self, headers: &mut HeaderMap) {
        for (name, value) in self.fields().iter() {
            headers.insert(*name, (*value).clone());
        }
    }

    /// Takes over what the client says as far as `policy` trusts who is in front.
    fn heed(&mut self, headers: &HeaderMap, policy: &Policy) {
        self.external_address = external_address(headers, policy);
        self.x_forwarded_for = appended(headers, &self.peer);
        if let Some(scheme) = trusted_scheme(headers, policy) {
            self.scheme = scheme;
        }
    }
}

/// The fields of a [`Vouched`], of which those with addresses may be missing.
pub(crate) struct Told<'a> {
    /// Invariant: as many as `len` are to be told.
    fields: [Field<'a>; 5],
    len: usize,
}

impl<'a> Told<'a> {
    fn new(
        [proto, id, attempt]: [Field<'a>; 3],
        forwarded_for: Option<&'a HeaderValue>,
        external: Option<&'a HeaderValue>,
    ) -> Self {
        let field = |name, value: Option<&'a HeaderValue>| value.map(|value| (name, value));
        let forwarded_for = field(&X_FORWARDED_FOR, forwarded_for);
        let external = field(&X_ENVOY_EXTERNAL_ADDRESS, external);
        let len = 3 + usize::from(forwarded_for.is_some()) + usize::from(external.is_some());
        // Where there is only one, it is the first of both.
        let (first, second) = (forwarded_for.or(external), external);
        let fields = [proto, id, attempt, first.unwrap_or(proto), second.unwrap_or(proto)];
        Self { fields, len }
    }
}

impl<'a> std::ops::Deref for Told<'a> {
    type Target = [Field<'a>];

    fn deref(&self) -> &Self::Target {
        &self.fields[..self.len]
    }
}

/// Makes `headers`, as the client sent them, those that the upstream gets together with what comes
/// back.
pub(crate) fn to_upstream(
    headers: &mut HeaderMap,
    peer: &Rc<Peer>,
    is_tls: bool,
    policy: &Policy,
) -> Vouched {
    let mut vouched = Vouched::new(peer, is_tls);
    if headers.len() > headers.keys_len() {
        join_cookies(headers);
    }
    // One look at each name is cheaper than a look-up for each that must not pass, and mostly
    // enough.
    if headers.keys().any(stays_here) {
        vouched.heed(headers, policy);
        remove_hop_by_hop(headers);
        remove_where(headers, |name| is_privileged(name) || is_vouched(name));
    }
    if let Some(certificate) = &peer.certificate {
        headers.insert(X_FORWARDED_CLIENT_CERT, certificate.clone());
    }
    vouched
}

/// Makes the cookie, which HTTP/2 may split, one field again: no other protocol knows it otherwise
/// (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<_> = headers.get_all(COOKIE).iter().collect();
    if crumbs.len() < 2 {
        return;
    }
    let is_sensitive = crumbs.iter().any(|crumb| crumb.is_sensitive());
    let crumbs: Vec<_> = crumbs.into_iter().map(HeaderValue::as_bytes).collect();
    let joined = Bytes::from(crumbs.join(&b"; "[..]));
    let mut whole = HeaderValue::from_maybe_shared(joined).expect("made of values alone");
    whole.set_sensitive(is_sensitive);
    headers.insert(COOKIE, whole);
}

/// Whether a request's field of this name does not pass as the client sent it.
fn stays_here(name: &HeaderName) -> bool {
    is_hop_by_hop(name) || is_privileged(name) || is_vouched(name)
}

/// Whether the gateway says this itself, see [`Vouched`].
fn is_vouched(name: &HeaderName) -> bool {
    matches!(name.as_str(), "x-forwarded-for" | "x-forwarded-proto" | "x-request-id")
}

/// Says that this is the `attempt`-th attempt.
pub(crate) fn count_attempt(headers: &mut HeaderMap, attempt: u32) {
    headers.insert(&X_ENVOY_ATTEMPT_COUNT, HeaderValue::from(attempt));
}

/// Tells the upstream how long it is waited for, in milliseconds.
pub(crate) fn expect_within(headers: &mut HeaderMap, limit: Duration) {
    let milliseconds = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    headers.insert(X_ENVOY_EXPECTED_TIMEOUT, HeaderValue::from(milliseconds));
}

/// Sends a request to `path`, and says what it was before.
pub(crate) fn replace_path(head: &mut Parts, path: PathAndQuery) {
    let own = head.uri.path_and_query().map(|own| HeaderValue::from_str(own.as_str()));
    if let Some(Ok(own)) = own {
        head.headers.insert(X_ENVOY_ORIGINAL_PATH, own);
    }
    set_path(head, path);
}

/// Gives a request `path` instead of its own.
pub(crate) fn set_path(head: &mut Parts, path: PathAndQuery) {
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    parts.path_and_query = Some(path);
    head.uri = Uri::from_parts(parts).expect("only the path changed, and it has one");
}

/// Sends a request to `authority`, and says what the client named.
pub(crate) fn replace_host(head: &mut Parts, authority: &HeaderValue) {
    let own = head.uri.authority().map(|own| HeaderValue::from_str(own.as_str()));
    let own = own.and_then(Result::ok).or_else(|| head.headers.get(HOST).cloned());
    if let Some(own) = own.filter(|own| own != authority) {
        head.headers.insert(X_ENVOY_ORIGINAL_HOST, own);
    }
    head.headers.insert(HOST, authority.clone());
}

/// Makes the headers of an upstream's response those that the client gets.
pub(crate) fn to_downstream(
    headers: &mut HeaderMap,
    status: StatusCode,
    service_time: HeaderValue,
) {
    remove_hop_by_hop(headers);
    if status == StatusCode::NO_CONTENT {
        // Forbidden there (RFC 9110, section 8.6), and HTTP/2 clients reset the stream for it.
        headers.remove(CONTENT_LENGTH);
    }
    headers.insert(SERVER, SERVER_NAME);
    headers.insert(X_ENVOY_UPSTREAM_SERVICE_TIME, service_time);
}

/// Marks a response that the gateway gives itself.
pub(crate) fn own(headers: &mut HeaderMap) {
    headers.insert(SERVER, SERVER_NAME);
}

/// Removes what concerns one hop only. `te: trailers` stays, which gRPC insists on.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    // One look at each name is cheaper than seven look-ups, and mostly enough.
    if !headers.keys().any(is_hop_by_hop) {
        return;
    }
    if headers.contains_key(CONNECTION) {
        remove_named(headers);
    }
    let wants_trailers = headers.get_all(TE).iter().any(names_trailers);
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

fn names_trailers(te: &HeaderValue) -> bool {
    te.as_bytes()
        .split(|byte| *byte == b',')
        .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

const HOP_BY_HOP: [&str; 6] =
    ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];

fn is_hop_by_hop(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(&name.as_str())
}

/// Makes the trailers of a request those that the upstream gets: what the gateway vouches for in
/// the head cannot be said again behind the body.
pub(crate) fn clean_trailers(trailers: &mut HeaderMap) {
    remove_where(trailers, |name| stays_here(name) || name.as_str().starts_with("x-forwarded-"));
}

/// Removes the fields whose names are `unwanted`; mostly there are none, and one pass tells.
fn remove_where(headers: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| unwanted(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Removes the headers that `Connection` names, unless the gateway depends on them itself: a client
/// must not be able to strip what a proxy before or behind relies on.
fn remove_named(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| !is_end_to_end(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
}

fn is_end_to_end(name: &HeaderName) -> bool {
    let text = name.as_str();
    matches!(text, "host" | "content-length" | "cookie" | "authorization" | "te")
        || *name == TRAILER
        || *name == DATE
        || text.starts_with("x-forwarded-")
}

fn is_privileged(name: &HeaderName) -> bool {
    let text = name.as_str();
    text.starts_with("x-envoy-")
        || *name == X_FORWARDED_CLIENT_CERT
        || (text.contains('_') && is_lookalike(text))
}

/// Whether a backend that makes no difference between `_` and `-` (CGI, WSGI) takes `name` for one
/// that the gateway vouches for.
fn is_lookalike(name: &str) -> bool {
    let dashed = name.bytes().map(|byte| if byte == b'_' { b'-' } else { byte });
    ["x-forwarded-", "x-envoy-", "x-request-id"]
        .iter()
        .any(|start| dashed.clone().take(start.len()).eq(start.bytes()))
}

/// The client's address as far as the trusted proxies can tell: with `n` of them the n-th entry of
/// `x-forwarded-for` from its end. `None` is the peer.
fn external_address(headers: &HeaderMap, policy: &Policy) -> Option<HeaderValue> {
    let back = policy.trusted_proxies.checked_sub(1)?;
    let entries: Vec<&str> = headers
        .get_all(&X_FORWARDED_FOR)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    let entry = entries.iter().rev().nth(back as usize)?;
    entry.parse::<IpAddr>().ok()?;
    HeaderValue::from_str(entry).ok()
}

/// The client of a request with these headers, once they are those for the upstream, as far as the
/// trusted proxies tell; `peer` is who is connected.
pub(crate) fn external_address_of(headers: &HeaderMap, peer: Address) -> Address {
    headers.get(&X_ENVOY_EXTERNAL_ADDRESS).map_or(peer, |external| told_or(external, peer))
}

/// The address that is told, whose port nobody knows, unless it is that of `peer`.
fn told_or(external: &HeaderValue, peer: Address) -> Address {
    match external.to_str().ok().and_then(|text| text.parse::<IpAddr>().ok()) {
        Some(ip) if peer.canonical_ip() != Some(ip) => (ip, 0).into(),
        Some(_) | None => peer,
    }
}

/// The client's `x-forwarded-for` and the peer behind it, if the client sent any.
fn appended(headers: &HeaderMap, peer: &Peer) -> Option<HeaderValue> {
    let mut joined = Vec::new();
    for value in headers.get_all(&X_FORWARDED_FOR) {
        joined.extend_from_slice(value.as_bytes());
        joined.push(b',');
    }
    if joined.is_empty() {
        return None;
    }
    match &peer.address {
        Some(address) => joined.extend_from_slice(address.as_bytes()),
        None => joined.truncate(joined.len() - 1),
    }
    HeaderValue::from_maybe_shared(Bytes::from(joined)).ok()
}

/// The scheme that a proxy in front names, where one is trusted and names one that makes sense.
fn trusted_scheme(headers: &HeaderMap, policy: &Policy) -> Option<&'static str> {
    if policy.trusted_proxies == 0 {
        return None;
    }
    forwarded_scheme(headers)
}

fn forwarded_scheme(headers: &HeaderMap) -> Option<&'static str> {
    match headers.get(&X_FORWARDED_PROTO)?.as_bytes() {
        b"http" => Some("http"),
        b"https" => Some("https"),
        _ => None,
    }
}

/// A fresh random UUID (RFC 9562, version 4). Not a secret, so a fast generator serves.
fn request_id() -> HeaderValue {
    let random = fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let mut digits = [0; 32];
    for (eight, part) in digits.chunks_exact_mut(8).zip(random.to_be_bytes().chunks_exact(4)) {
        eight.copy_from_slice(&hexadecimal(part.try_into().expect("four bytes")));
    }
    let mut text = [b'-'; 36];
    for (at, part) in [(0, 0..8), (9, 8..12), (14, 12..16), (19, 16..20), (24, 20..32)] {
        text[at..at + part.len()].copy_from_slice(&digits[part]);
    }
    HeaderValue::from_bytes(&text).expect("hexadecimal digits and dashes")
}

/// The eight digits of `bytes`, all at once: a digit lies in each byte of a word.
fn hexadecimal(bytes: [u8; 4]) -> [u8; 8] {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let mut digits = u64::from(u32::from_be_bytes(bytes));
    digits = (digits << 16 | digits) & 0x0000_ffff_0000_ffff;
    digits = (digits << 8 | digits) & 0x00ff_00ff_00ff_00ff;
    digits = (digits << 4 | digits) & (EACH * 0x0f);
    // 1 in each byte of ten or more.
    let letters = (digits + EACH * 6) >> 4 & EACH;
    (digits + EACH * u64::from(b'0') + letters * u64::from(b'a' - b'9' - 1)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::PipePath;

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn peer() -> Rc<Peer> {
        Rc::new(Peer::new(([10, 0, 0, 9], 1234).into(), None))
    }

    /// Makes of `headers` all that an upstream gets.
    fn forward(headers: &mut HeaderMap, peer: &Rc<Peer>, is_tls: bool, policy: &Policy) -> Vouched {
        let vouched = to_upstream(headers, peer, is_tls, policy);
        for (name, _) in vouched.fields().iter() {
            assert!(!headers.contains_key(*name), "{name} would be there twice");
        }
        vouched.insert(headers);
        vouched
    }

    fn trusting(trusted_proxies: u32) -> Policy {
        Policy { trusted_proxies, ..Policy::default() }
    }

    #[test]
    fn hop_by_hop_headers_do_not_pass() {
        let mut headers = map(&[
            ("connection", "close, X-Secret"),
            ("connection", "x-forwarded-for"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("x-forwarded-for", "1.2.3.4"),
            ("accept", "*/*"),
        ]);
        remove_hop_by_hop(&mut headers);
        let left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left.len(), 3, "{left:?}");
        assert_eq!(headers["te"], "trailers");
        assert_eq!(headers["x-forwarded-for"], "1.2.3.4", "a client cannot strip it");
    }

    #[test]
    fn a_client_cannot_pose_as_a_gateway() {
        let mut headers = map(&[
            ("x-envoy-internal", "true"),
            ("x-envoy-retry-on", "5xx"),
            ("x-forwarded-client-cert", "Hash=1"),
            ("x-forwarded-proto", "https"),
            ("x-request-id", "mine"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x_forwarded_for", "127.0.0.1"),
            ("x-forwarded_client-cert", "Hash=2"),
            ("x_envoy_internal", "true"),
            ("x_harmless", "1"),
        ]);
        let vouched = forward(&mut headers, &peer(), false, &trusting(0));
        assert_eq!(vouched.x_forwarded_for().unwrap(), "6.6.6.6,10.0.0.9");
        assert_eq!(headers["x-forwarded-for"], "6.6.6.6,10.0.0.9");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-envoy-external-address"], "10.0.0.9");
        assert_eq!(headers["x-envoy-attempt-count"], "1");
        assert_ne!(headers["x-request-id"], "mine");
        for name in ["x-envoy-internal", "x-envoy-retry-on", "x-forwarded-client-cert"] {
            assert!(!headers.contains_key(name), "{name}");
        }
        for name in ["x_forwarded_for", "x-forwarded_client-cert", "x_envoy_internal"] {
            assert!(!headers.contains_key(name), "{name}");
        }
        assert!(headers.contains_key("x_harmless"));
    }

    #[test]
    fn of_a_client_without_an_address_none_is_told() {
        let peer = || Rc::new(Peer::new(Address::Pipe(PipePath::UNNAMED), None));
        let mut headers = map(&[]);
        let vouched = forward(&mut headers, &peer(), true, &trusting(1));
        assert_eq!(vouched.x_forwarded_for(), None);
        assert_eq!(vouched.client(Address::Pipe(PipePath::UNNAMED)).ip(), None);
        for name in ["x-forwarded-for", "x-envoy-external-address"] {
            assert!(!headers.contains_key(name), "{name}");
        }
        assert_eq!(headers["x-forwarded-proto"], "https");
        // What it says of others passes as it is, and counts as far as it is trusted.
        for (trusted, external) in [(0, None), (1, Some("2.2.2.2")), (2, Some("1.1.1.1"))] {
            let mut headers = map(&[("x-forwarded-for", "1.1.1.1, 2.2.2.2")]);
            let vouched = forward(&mut headers, &peer(), true, &trusting(trusted));
            assert_eq!(headers["x-forwarded-for"], "1.1.1.1, 2.2.2.2");
            let told = headers.get("x-envoy-external-address").map(|value| value.to_str().unwrap());
            assert_eq!(told, external);
            let client = vouched.client(Address::Pipe(PipePath::UNNAMED)).ip();
            assert_eq!(client.map(|client| client.ip().to_string()).as_deref(), external);
        }
    }

    #[test]
    fn what_the_client_proved_replaces_what_it_says() {
        let proved = HeaderValue::from_static("Hash=1");
        let peer = Rc::new(Peer::new(([10, 0, 0, 9], 1234).into(), Some(proved)));
        let mut headers = map(&[
            ("x-forwarded-client-cert", "Hash=6"),
            ("x-forwarded-client-cert", "Hash=7"),
            ("x_forwarded_client_cert", "Hash=8"),
        ]);
        forward(&mut headers, &peer, true, &trusting(1));
        let told: Vec<_> = headers.get_all("x-forwarded-client-cert").iter().collect();
        assert_eq!(told, ["Hash=1"]);
        assert!(!headers.contains_key("x_forwarded_client_cert"));
    }

    #[test]
    fn no_content_has_no_length() {
        for (status, left) in [(204, false), (200, true), (304, true)] {
            let mut headers = map(&[("content-length", "5")]);
            let status = StatusCode::from_u16(status).unwrap();
            to_downstream(&mut headers, status, HeaderValue::from_static("1"));
            assert_eq!(headers.contains_key("content-length"), left, "{status}");
        }
    }

    #[test]
    fn trailers_cannot_say_what_the_gateway_vouches_for() {
        let mut trailers = map(&[
            ("grpc-status", "0"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x-envoy-internal", "true"),
            ("x_forwarded_proto", "https"),
            ("connection", "close"),
        ]);
        clean_trailers(&mut trailers);
        let left: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["grpc-status"]);
    }

    #[test]
    fn trusted_proxies_tell_who_the_client_is() {
        let mut headers = map(&[
            ("x-forwarded-for", "56.5.6.7, 72.9.5.6, 98.1.2.3"),
            ("x-forwarded-proto", "https"),
        ]);
        forward(&mut headers, &peer(), false, &trusting(2));
        assert_eq!(headers["x-envoy-external-address"], "72.9.5.6");
        assert_eq!(headers["x-forwarded-proto"], "https");
        let mut headers = map(&[("x-forwarded-for", "nonsense"), ("x-forwarded-proto", "ftp")]);
        forward(&mut headers, &peer(), true, &trusting(1));
        assert_eq!(headers["x-envoy-external-address"], "10.0.0.9");
        assert_eq!(headers["x-forwarded-proto"], "https");
    }

    #[test]
    fn trailers_say_nothing_that_the_gateway_vouches_for() {
        let mut trailers = map(&[
            ("x-request-id", "1"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-client-cert", "Hash=1"),
            ("x_envoy_internal", "true"),
            ("connection", "close"),
            ("grpc-status", "0"),
        ]);
        clean_trailers(&mut trailers);
        assert_eq!(trailers, map(&[("grpc-status", "0")]));
    }

    #[test]
    fn a_request_id_is_a_uuid_of_version_4() {
        let (one, two) = (request_id(), request_id());
        assert_ne!(one, two);
        let text = one.to_str().unwrap();
        let lengths: Vec<usize> = text.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert_eq!(&text[14..15], "4");
        assert!("89ab".contains(&text[19..20]), "{text}");
    }

    #[test]
    fn digits_are_those_of_the_standard_library() {
        for number in [0, 1, 0x0123_4567, 0x89ab_cdef, 0xf0e1_9a0a, u32::MAX] {
            let digits = hexadecimal(number.to_be_bytes());
            assert_eq!(std::str::from_utf8(&digits).unwrap(), format!("{number:08x}"));
        }
    }
}
