//! What is to be done with a request, from its head and the snapshot alone: no I/O, no state.

use ::http::header::{HOST, HeaderMap};
use ::http::request::Parts;
use ::http::uri::{PathAndQuery, Uri};
use ::http::{StatusCode, Version};

use super::Downstream;
use super::error::Refusal;
use super::headers;
use super::path::normalise;
use super::respond::{self, Asked};
use crate::snapshot::{
    Action, DirectResponse, Forward, Found, Listener, Route, RouteTable, Serves, Snapshot, Target,
};

/// What a request's head leads to.
#[derive(Debug)]
pub(crate) enum Decision<'a> {
    /// Send the client to `location`.
    Redirect { route: Option<&'a Route>, status: StatusCode, location: String },
    /// Answer with this.
    Respond { route: &'a Route, response: &'a DirectResponse },
    /// Proxy to `target`, with `path` instead of the request's if there is one.
    Forward { route: &'a Route, target: Option<&'a Target>, path: Option<PathAndQuery> },
}

/// Decides about the request with `head` that came by `downstream`.
///
/// # Errors
/// The gateway does not serve it.
pub(crate) fn decide<'a>(
    snapshot: &'a Snapshot,
    downstream: &Downstream,
    head: &Parts,
) -> Result<Decision<'a>, Refusal> {
    if head.version == Version::HTTP_10 || head.version == Version::HTTP_09 {
        return Err(Refusal::Http10);
    }
    if head.headers.len() > snapshot.limits.header_fields_max {
        return Err(Refusal::TooManyFields);
    }
    let listener = snapshot.listener(downstream.listener).ok_or(Refusal::NoRoute)?;
    let authority = authority(head)?;
    let normal = normal_path(&head.uri)?;
    let path = normal.as_ref().map_or(head.uri.path(), PathAndQuery::path);
    let table = table(snapshot, listener, downstream, authority)?;
    let found = table.find(authority, path);
    let asked = Asked {
        scheme: scheme(&head.headers, snapshot, downstream),
        authority,
        uri: &head.uri,
        listener_port: downstream.listener.gateway_port,
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
        Action::Forward(forward) => {
            Decision::Forward { route, target: choose(forward), path: normal }
        }
    })
}

/// The host that the request is for, with its port if it names one (RFC 9112, section 3.2).
fn authority(head: &Parts) -> Result<&str, Refusal> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::BadHost);
    }
    let authority = match (head.uri.authority(), host) {
        (Some(authority), _) => authority.as_str(),
        (None, Some(host)) => host.to_str().map_err(|_| Refusal::BadHost)?,
        (None, None) => return Err(Refusal::BadHost),
    };
    if authority.is_empty() || !authority.bytes().all(is_host_byte) {
        return Err(Refusal::BadHost);
    }
    Ok(authority)
}

/// What a host with a port is made of; no user, no space, nothing that ends a header or a URL.
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':' | b'[' | b']')
}

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
    };
    let name = downstream.server_name();
    let server = match name {
        Some(name) => servers.find(name),
        None => servers.any(),
    };
    let server = server.ok_or(Refusal::NoRoute)?;
    if name.is_some_and(|name| name.eq_ignore_ascii_case(authority)) {
        return Ok(&server.routes);
    }
    match servers.find(authority) {
        Some(other) if !std::sync::Arc::ptr_eq(other, server) => {
            Err(Refusal::Misdirected(snapshot.policy.misdirected))
        }
        // Its own routes, or none at all: a new connection would change nothing.
        _ => Ok(&server.routes),
    }
}

fn scheme(headers: &HeaderMap, snapshot: &Snapshot, downstream: &Downstream) -> &'static str {
    let own = if downstream.is_tls() { "https" } else { "http" };
    headers::trusted_scheme(headers, &snapshot.policy).unwrap_or(own)
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

/// One of the targets, each as often as its weight says.
fn choose(forward: &Forward) -> Option<&Target> {
    if let [target] = forward.targets.as_slice() {
        return Some(target);
    }
    let sum = forward.targets.iter().map(|target| target.weight).sum::<u32>().max(1);
    let mut left = fastrand::u32(..sum);
    forward.targets.iter().find(|target| {
        let hit = left < target.weight;
        left = left.saturating_sub(target.weight);
        hit
    })
}
