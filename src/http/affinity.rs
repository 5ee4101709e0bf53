//! What leads a request to the same endpoint as others before it.

use ::http::header::{COOKIE, HeaderMap, HeaderValue, SET_COOKIE};
use ::http::request::Parts;

use super::headers;
use crate::address::Address;
use crate::snapshot::{Balance, Cluster, HashCookie, HashKey, client_hash, stable_hash};

/// What a request is known again by.
#[derive(Debug, Default)]
pub(crate) struct Affinity {
    /// `None` leads it to any endpoint.
    pub(crate) key: Option<u64>,
    /// The cookie that the client is given.
    cookie: Option<HeaderValue>,
}

impl Affinity {
    /// That of the request with `head`, whose headers are those for the upstream and that `peer`
    /// sent, towards `cluster`.
    pub(crate) fn of(cluster: &Cluster, head: &Parts, peer: Address) -> Self {
        let balance = cluster.traffic.as_ref().map(|traffic| &traffic.policy.balance);
        let Some(Balance::Hash(hash)) = balance else { return Self::default() };
        match &hash.key {
            HashKey::Header(name) => {
                let values: Vec<_> =
                    head.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
                Self::by((!values.is_empty()).then(|| stable_hash(&values.join(&b','))))
            }
            HashKey::Cookie(cookie) => Self::of_cookie(cookie, &head.headers),
            HashKey::SourceAddress => {
                Self::by(client_hash(headers::external_address_of(&head.headers, peer)))
            }
            HashKey::QueryParameter(name) => {
                let value = head.uri.query().and_then(|query| parameter(query, name));
                Self::by(value.map(|value| stable_hash(value.as_bytes())))
            }
        }
    }

    fn by(key: Option<u64>) -> Self {
        Self { key, cookie: None }
    }

    /// By the client's cookie, or by one that it is given.
    fn of_cookie(cookie: &HashCookie, headers: &HeaderMap) -> Self {
        if let Some(value) = cookie_value(headers, &cookie.name) {
            return Self::by(Some(stable_hash(value.as_bytes())));
        }
        if cookie.ttl.is_none() {
            return Self::default();
        }
        let value = format!("{:016x}", fastrand::u64(..));
        Self {
            key: Some(stable_hash(value.as_bytes())),
            cookie: HeaderValue::try_from(set_cookie(cookie, &value)).ok(),
        }
    }

    /// Gives the client its cookie, if it gets one.
    pub(crate) fn remind(self, headers: &mut HeaderMap) {
        if let Some(cookie) = self.cookie {
            headers.append(SET_COOKIE, cookie);
        }
    }
}

/// The first value of a parameter.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// The value of a cookie that the client sent, without quotes; an empty one is none, as in Envoy:
/// it would lead all such clients to one endpoint.
fn cookie_value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(key, _)| key.trim() == name)?;
    let value = value.trim();
    let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
    (!value.is_empty()).then_some(value)
}

/// As Envoy writes it.
fn set_cookie(cookie: &HashCookie, value: &str) -> String {
    let mut text = format!("{}=\"{value}\"", cookie.name);
    if let Some(ttl) = cookie.ttl.filter(|ttl| !ttl.is_zero()) {
        text += &format!("; Max-Age={}", ttl.as_secs());
    }
    if !cookie.path.is_empty() {
        text += &format!("; Path={}", cookie.path);
    }
    for (name, value) in &cookie.attributes {
        let equals = if value.is_empty() { "" } else { "=" };
        text += &format!("; {name}{equals}{value}");
    }
    text + "; HttpOnly"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{HashPolicy, Spread, Traffic, TrafficPolicy, UpstreamProtocol};
    use ::http::Request;
    use ::http::request::Builder;
    use std::time::Duration;

    fn affinity(key: HashKey, request: Builder) -> Affinity {
        let balance = Balance::Hash(HashPolicy { key, spread: Spread::Ring(1) });
        let policy = TrafficPolicy { balance, ..TrafficPolicy::default() };
        let traffic = Some(Box::new(Traffic::new(policy, Box::default(), None)));
        let cluster =
            Cluster { traffic, ..crate::upstream::world::cluster(1, UpstreamProtocol::Http1) };
        let (head, ()) = request.body(()).unwrap().into_parts();
        Affinity::of(&cluster, &head, ([10, 0, 0, 9], 1234).into())
    }

    fn cookie(ttl: Option<Duration>) -> HashKey {
        let attributes =
            vec![("SameSite".to_owned(), "Lax".to_owned()), ("Secure".to_owned(), String::new())];
        let (name, path) = ("user".to_owned(), "/shop".to_owned());
        HashKey::Cookie(Box::new(HashCookie { name, path, ttl, attributes }))
    }

    #[test]
    fn a_header_a_parameter_or_the_address_is_the_key() {
        let header = || HashKey::Header("x-user".parse().unwrap());
        let key = |key, request| affinity(key, request).key;
        let hash = |text: &str| Some(stable_hash(text.as_bytes()));
        assert_eq!(key(header(), Request::get("/").header("x-user", "anna")), hash("anna"));
        let twice = Request::get("/").header("x-user", "anna").header("x-user", "otto");
        assert_eq!(key(header(), twice), hash("anna,otto"));
        assert_eq!(key(header(), Request::get("/")), None);
        let parameter = || HashKey::QueryParameter("user".to_owned());
        assert_eq!(key(parameter(), Request::get("/?a=b&user=anna&user=otto")), hash("anna"));
        assert_eq!(key(parameter(), Request::get("/?users=anna")), None);
        assert_eq!(key(HashKey::SourceAddress, Request::get("/")), hash("10.0.0.9"));
        let forwarded = Request::get("/").header("x-envoy-external-address", "1.2.3.4");
        assert_eq!(key(HashKey::SourceAddress, forwarded), hash("1.2.3.4"));
    }

    #[test]
    fn a_client_without_the_cookie_is_given_one() {
        let known = Request::get("/").header("cookie", "a=b; user=\"anna\"");
        let known = affinity(cookie(Some(Duration::ZERO)), known);
        assert_eq!((known.key, known.cookie), (Some(stable_hash(b"anna")), None));
        assert_eq!(affinity(cookie(None), Request::get("/")).key, None);
        for empty in ["user=", "user=\"\"", "user=; user=anna"] {
            let request = || Request::get("/").header("cookie", empty);
            assert_eq!(affinity(cookie(None), request()).key, None, "{empty}");
            let given = affinity(cookie(Some(Duration::ZERO)), request());
            assert!(given.cookie.is_some(), "{empty}");
        }
        for (ttl, age) in [(0, ""), (3600, "; Max-Age=3600")] {
            let given = affinity(cookie(Some(Duration::from_secs(ttl))), Request::get("/"));
            let mut headers = HeaderMap::new();
            let key = given.key.unwrap();
            given.remind(&mut headers);
            let line = headers[SET_COOKIE].to_str().unwrap();
            let (pair, rest) = line.split_once(';').unwrap();
            assert_eq!(rest, &format!("{age}; Path=/shop; SameSite=Lax; Secure; HttpOnly")[1..]);
            let again = affinity(cookie(None), Request::get("/").header("cookie", pair));
            assert_eq!(again.key, Some(key));
        }
    }
}
