//! What is to be done with a request, from its head and the snapshot alone: no I/O, no state.

use ::http::header::{COOKIE, HOST, HeaderMap, TRANSFER_ENCODING};
use ::http::request::Parts;
use ::http::uri::{PathAndQuery, Uri};
use ::http::{Method, StatusCode, Version};

use super::Downstream;
use super::error::Refusal;
use super::headers::Vouched;
use super::path::normalise;
use super::respond::{self, Asked};
use crate::snapshot::{
    Action, DirectResponse, Field, Found, Identity, Listener, Route, RouteTable, Serves, Snapshot,
    Subject, Target,
};

/// What a request's head leads to.
#[derive(Debug)]
pub(crate) enum Decision<'a> {
    /// Send the client to `location`.
    Redirect { route: Option<&'a Route>, status: StatusCode, location: String },
    /// Answer with this.
    Respond { route: &'a Route, response: &'a DirectResponse },
    /// Proxy to `target`, with `path` instead of the request's if there is one; in the end with
    /// `rewritten` instead of that.
    Forward {
        route: &'a Route,
        target: Option<&'a Target>,
        path: Option<PathAndQuery>,
        rewritten: Option<PathAndQuery>,
    },
}

/// Whether the request with `head`, as the client sent it, is one that can be decided about.
///
/// # Errors
/// The gateway does not serve its like.
pub(crate) fn vet(snapshot: &Snapshot, head: &Parts) -> Result<(), Refusal> {
    if head.version == Version::HTTP_10 || head.version == Version::HTTP_09 {
        return Err(Refusal::Http10);
    }
    let most = snapshot.limits.header_fields_max;
    if head.headers.len() > most && fields(&head.headers) > most {
        return Err(Refusal::TooManyFields);
    }
    if !is_framed_plainly(&head.headers) {
        return Err(Refusal::BadEncoding);
    }
    // Whatever it names as a path: an endpoint that agrees takes all that follows on the connection
    // for what is in the tunnel, and the next client's request may follow.
    if head.method == Method::CONNECT {
        return Err(Refusal::BadPath);
    }
    Ok(())
}

/// Decides about the request with `head`, whose headers are those for the upstream together with
/// what is `vouched` for, that came by `downstream`.
///
/// # Errors
/// The gateway does not serve it.
pub(crate) fn decide<'a>(
    snapshot: &'a Snapshot,
    downstream: &Downstream,
    head: &Parts,
    vouched: &Vouched,
) -> Result<Decision<'a>, Refusal> {
    let listener = snapshot.listener_for(downstream.listener).ok_or(Refusal::NoRoute)?;
    let authority = authority(head)?;
    let normal = normal_path(&head.uri)?;
    let path = normal.as_ref().map_or_else(|| head.uri.path(), PathAndQuery::path);
    let table = table(snapshot, listener, downstream, authority)?;
    let found =
        table.find(authority, &subject(head, path, authority, (vouched, &vouched.fields())));
    let asked = Asked {
        scheme: vouched.scheme(),
        authority,
        uri: &head.uri,
        path,
        listener_port: listener.gateway_port,
    };
    if let Some(location) = https_redirect(&found, &asked) {
        let status = StatusCode::MOVED_PERMANENTLY;
        return Ok(Decision::Redirect { route: None, status, location });
    }
    let Found::Route(_, route) = found else {
        return Err(Refusal::NoRoute);
    };
    Ok(match &route.action {
        Action::Respond(response) => Decision::Respond { route, response },
        Action::Redirect(redirect) => {
            let location = respond::location(redirect, &asked);
            Decision::Redirect { route: Some(route), status: redirect.status, location }
        }
        Action::Forward(forward) => Decision::Forward {
            route,
            target: forward.choose(|sum| fastrand::u32(..sum)),
            rewritten: rewritten(route, path, head.uri.query())?,
            path: normal,
        },
    })
}

/// What its route is chosen by.
fn subject<'a>(
    head: &'a Parts,
    path: &'a str,
    authority: &'a str,
    (vouched, own): (&'a Vouched, &'a [Field<'a>]),
) -> Subject<'a> {
    let (method, query, scheme) = (head.method.as_str(), head.uri.query(), vouched.scheme());
    Subject { path, query, method, scheme, authority, headers: &head.headers, own }
}

/// How many there are, a cookie that HTTP/2 has split counted as one.
fn fields(headers: &HeaderMap) -> usize {
    let crumbs = headers.get_all(COOKIE).iter().count();
    headers.len() - crumbs.saturating_sub(1)
}

/// Whether the body needs no decoding beyond its chunks. hyper also lets `gzip, chunked` pass; the
/// field concerns one hop only, so the upstream would never learn of the `gzip`.
fn is_framed_plainly(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        && codings.next().is_none()
}

/// The host that the request is for, with its port if it names one (RFC 9112, section 3.2).
fn authority(head: &Parts) -> Result<&str, Refusal> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::BadHost);
    }
    let authority = match (head.uri.authority(), host) {
        // Not even an absolute URI replaces it (RFC 9112, section 3.2).
        (Some(_), None) if head.version == Version::HTTP_11 => return Err(Refusal::BadHost),
        (Some(authority), _) => authority.as_str(),
        (None, Some(host)) => host.to_str().map_err(|_| Refusal::BadHost)?,
        (None, None) => return Err(Refusal::BadHost),
    };
    if authority.is_empty() || !authority.bytes().all(|byte| HOST_BYTES[usize::from(byte)]) {
        return Err(Refusal::BadHost);
    }
    Ok(authority)
}

/// What a host with a port is made of; no user, no space, nothing that ends a header or a URL.
const HOST_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128_u8 {
        table[byte as usize] =
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':' | b'[' | b']');
        byte += 1;
    }
    table
};

/// The normal form of the path with its query, where it differs from what the client sent.
fn normal_path(uri: &Uri) -> Result<Option<PathAndQuery>, Refusal> {
    if !uri.path().starts_with('/') {
        return Err(Refusal::BadPath);
    }
    match normalise(uri.path()) {
        Ok(std::borrow::Cow::Borrowed(_)) => Ok(None),
        Ok(std::borrow::Cow::Owned(mut path)) => {
            if let Some(query) = uri.query() {
                path.push('?');
                path.push_str(query);
            }
            PathAndQuery::try_from(path).map(Some).map_err(|_| Refusal::BadPath)
        }
        Err(_) => Err(Refusal::BadPath),
    }
}

/// The path that `route` makes of `path`, if it makes another one.
fn rewritten(
    route: &Route,
    path: &str,
    query: Option<&str>,
) -> Result<Option<PathAndQuery>, Refusal> {
    let rewrite = route.extras.as_ref().and_then(|extras| extras.rewrite.as_ref());
    let Some(rewrite) = rewrite else { return Ok(None) };
    let mut path = rewrite.apply(path);
    if let Some(query) = query {
        path.push(if path.contains('?') { '&' } else { '?' });
        path.push_str(query);
    }
    if !path.starts_with('/') {
        return Err(Refusal::BadPath);
    }
    PathAndQuery::try_from(path).map(Some).map_err(|_| Refusal::BadPath)
}

/// The routes of the server that the connection belongs to.
///
/// # Errors
/// The host belongs to another server: on this connection the client has proved nothing to it, nor
/// it to the client.
fn table<'a>(
    snapshot: &Snapshot,
    listener: &'a Listener,
    downstream: &Downstream,
    authority: &str,
) -> Result<&'a RouteTable, Refusal> {
    let servers = match &listener.serves {
        Serves::Http(table) => return Ok(table),
        Serves::Tls(servers) => servers,
        // It served HTTP when the connection was made.
        Serves::Tcp(_) => return Err(Refusal::Outdated(snapshot.policy.misdirected)),
    };
    let name = downstream.server_name();
    let server = match name {
        Some(name) => servers.find(name),
        None => servers.any(),
    };
    let server = server.ok_or(Refusal::NoRoute)?;
    let policy = server.identity().and_then(Identity::policy);
    let is_other = downstream.tls.as_ref().is_some_and(|tls| tls.policy != policy);
    let Some(routes) = server.http().filter(|_| !is_other) else {
        return Err(Refusal::Outdated(snapshot.policy.misdirected));
    };
    if name.is_some_and(|name| is_for(authority, name)) {
        return Ok(routes);
    }
    match servers.find(authority) {
        Some(other) if !std::sync::Arc::ptr_eq(other, server) => {
            Err(Refusal::Misdirected(snapshot.policy.misdirected))
        }
        // Its own routes, or none at all: a new connection would change nothing.
        _ => Ok(routes),
    }
}

/// Whether `authority` is plainly `name`, with or without a port. A no is no more than a maybe.
fn is_for(authority: &str, name: &str) -> bool {
    let Some((host, port)) = authority.as_bytes().split_at_checked(name.len()) else {
        return false;
    };
    host.eq_ignore_ascii_case(name.as_bytes())
        && port.strip_prefix(b":").unwrap_or(port).iter().all(u8::is_ascii_digit)
        && port.first().is_none_or(|first| *first == b':')
}

/// Where a plain request goes that the server only takes by https.
fn https_redirect(found: &Found<'_>, asked: &Asked<'_>) -> Option<String> {
    match found {
        Found::NoRoute(host) | Found::Route(host, _)
            if host.https_redirect && asked.scheme == "http" =>
        {
            Some(respond::https_location(asked))
        }
        Found::NoHost | Found::NoRoute(_) | Found::Route(..) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Tls;
    use crate::http::headers::{Peer, to_upstream};
    use crate::snapshot::{
        BindPort, HostMap, HostPattern, ListenerKey, PathMatch, Policy, TlsPolicy, TlsServer,
        TlsServes, VirtualHost,
    };
    use ::http::Request;
    use rustls::server::ProducesTickets;
    use std::net::{IpAddr, Ipv4Addr};
    use std::rc::Rc;
    use std::sync::Arc;
    use std::time::Instant;

    const KEY: ListenerKey =
        ListenerKey::Ip { address: IpAddr::V4(Ipv4Addr::LOCALHOST), port: BindPort::Fixed(443) };

    /// A server for `pattern` with a route for `host`.
    fn server(pattern: &str, host: &str) -> (HostPattern, Arc<TlsServer>) {
        let body = bytes::Bytes::new();
        let action = Action::Respond(DirectResponse { status: StatusCode::OK, body });
        let route = Route::new(PathMatch::Any, action);
        let mut routes = RouteTable::default();
        let virtual_host = VirtualHost::new(host.to_owned(), false, vec![route]);
        routes.hosts.insert(host.parse().unwrap(), Arc::new(virtual_host));
        let server = TlsServer {
            name: pattern.to_owned(),
            serves: TlsServes::Http(Identity::Missing, Arc::new(routes)),
        };
        (pattern.parse().unwrap(), Arc::new(server))
    }

    /// The servers of the conformance test of Gateway API.
    fn snapshot() -> Snapshot {
        let mut servers = HostMap::default();
        for (pattern, host) in [
            ("*", "example.org"),
            ("second-example.org", "second-example.org"),
            ("*.wildcard.org", "*.wildcard.org"),
            ("fourth-example.wildcard.org", "fourth-example.wildcard.org"),
        ] {
            let (pattern, server) = server(pattern, host);
            servers.insert(pattern, server);
        }
        let listener = Listener { key: KEY, gateway_port: 443, serves: Serves::Tls(servers) };
        Snapshot { listeners: vec![Arc::new(listener)], ..Snapshot::default() }
    }

    fn downstream(server_name: Option<&str>, policy: Option<TlsPolicy>) -> Downstream {
        let addresses = ("10.0.0.9:1".parse().unwrap(), "10.0.0.1:443".parse().unwrap());
        let server_name = server_name.map(Into::into);
        let tls = Tls { server_name, policy, client_certificate: None };
        Downstream::new(addresses, KEY, Some(tls), Instant::now())
    }

    fn head(request: ::http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    /// What is said of a request that says nothing of itself.
    fn vouched() -> Vouched {
        let peer = Rc::new(Peer::new("10.0.0.9:1".parse().unwrap(), None));
        to_upstream(&mut HeaderMap::new(), &peer, true, &Policy::default())
    }

    fn status(snapshot: &Snapshot, downstream: &Downstream, head: &Parts) -> u16 {
        match vet(snapshot, head).and_then(|()| decide(snapshot, downstream, head, &vouched())) {
            Ok(Decision::Respond { response, .. }) => response.status.as_u16(),
            Ok(other) => panic!("{other:?}"),
            Err(refusal) => refusal.answer().status.as_u16(),
        }
    }

    #[test]
    fn a_host_of_another_server_is_misdirected() {
        let snapshot = snapshot();
        let cases = [
            ("example.org", "example.org", 200),
            ("example.org", "second-example.org", 421),
            ("example.org", "unknown-example.org", 404),
            ("second-example.org", "second-example.org", 200),
            ("second-example.org", "example.org", 421),
            ("second-example.org", "unknown-example.org", 421),
            ("third-example.wildcard.org", "third-example.wildcard.org", 200),
            ("third-example.wildcard.org", "fith-example.wildcard.org", 200),
            ("third-example.wildcard.org", "fourth-example.wildcard.org", 421),
            ("third-example.wildcard.org", "second-example.org", 421),
            ("third-example.wildcard.org", "unknown-example.org", 421),
            ("fourth-example.wildcard.org", "fourth-example.wildcard.org", 200),
            ("fourth-example.wildcard.org", "fith-example.wildcard.org", 421),
            ("unknown-example.org", "example.org", 200),
            ("unknown-example.org", "unknown-example.org", 404),
        ];
        for (sni, host, expected) in cases {
            let http2 = head(Request::get(format!("https://{host}/")).version(Version::HTTP_2));
            let http1 = head(Request::get("/").header(HOST, format!("{host}:443")));
            for head in [http2, http1] {
                let found = status(&snapshot, &downstream(Some(sni), None), &head);
                assert_eq!(found, expected, "SNI {sni}, host {host}, {:?}", head.version);
            }
        }
        let own = head(Request::get("/").header(HOST, "example.org"));
        assert_eq!(status(&snapshot, &downstream(None, None), &own), 200, "no SNI is `*`");
        let other = head(Request::get("/").header(HOST, "second-example.org"));
        assert_eq!(status(&snapshot, &downstream(None, None), &other), 421);
    }

    #[derive(Debug)]
    struct NoTickets;

    impl ProducesTickets for NoTickets {
        fn enabled(&self) -> bool {
            false
        }
        fn lifetime(&self) -> u32 {
            0
        }
        fn encrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
            None
        }
        fn decrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
            None
        }
    }

    #[test]
    fn a_handshake_under_another_policy_opens_nothing() {
        let old = downstream(Some("example.org"), Some(TlsPolicy::new(Arc::new(NoTickets))));
        let request = head(Request::get("/").header(HOST, "example.org"));
        let refusal = decide(&snapshot(), &old, &request, &vouched()).unwrap_err();
        assert!(matches!(refusal, Refusal::Outdated(StatusCode::MISDIRECTED_REQUEST)));
    }

    #[test]
    fn a_cookie_is_one_field_however_it_is_split() {
        let (snapshot, downstream) = (snapshot(), downstream(Some("example.org"), None));
        for (name, expected) in [("cookie", 200), ("x-crumb", 431)] {
            let get = Request::get("/").header(HOST, "example.org");
            let most = snapshot.limits.header_fields_max;
            let request = (0..most).fold(get, |get, n| get.header(name, format!("c{n}=1")));
            assert_eq!(status(&snapshot, &downstream, &head(request)), expected, "{name}");
        }
    }

    #[test]
    fn a_request_that_could_be_read_in_two_ways_is_refused() {
        let get = || Request::get("/").header(HOST, "example.org");
        let cases = [
            (Request::get("/"), 400),
            (Request::get("http://example.org/"), 400),
            (get().header(HOST, "example.org"), 400),
            (Request::get("/").header(HOST, ""), 400),
            (Request::get("/").header(HOST, "a@example.org"), 400),
            (Request::get("/").header(HOST, "example.org/x"), 400),
            (Request::get("*").header(HOST, "example.org"), 400),
            (Request::get("/%00").header(HOST, "example.org"), 400),
            (get().header(TRANSFER_ENCODING, "gzip, chunked"), 501),
            (get().header(TRANSFER_ENCODING, "chunked").header(TRANSFER_ENCODING, "chunked"), 501),
            (get().header(TRANSFER_ENCODING, "Chunked"), 200),
            (Request::get("http://example.org/").header(HOST, "second-example.org"), 200),
        ];
        let (snapshot, downstream) = (snapshot(), downstream(Some("example.org"), None));
        for (request, expected) in cases {
            let head = head(request);
            assert_eq!(status(&snapshot, &downstream, &head), expected, "{head:?}");
        }
    }
}
