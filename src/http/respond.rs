//! Answers that the gateway gives itself: refusals, redirects, direct responses.
//!
//! - Each of them ends the request's entry in the log with a reason.
//! - A gRPC client is told in its own terms: 200 with `grpc-status`, because it ignores HTTP's.

use std::borrow::Cow;
use std::rc::Rc;

use ::http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION};
use ::http::uri::Uri;
use ::http::{Response, StatusCode};
use bytes::Bytes;

use super::body::ResponseBody;
use super::entry::Entry;
use super::error::{Answer, Refusal};
use super::{grpc, headers};
use crate::io::Net;
use crate::snapshot::{Abort, DirectResponse, Redirect, RedirectPort};
use crate::telemetry::request::Flags;

/// Tells clients that know Envoy that it is of no use to ask again at once.
const X_ENVOY_OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Makes responses to one request.
pub(crate) struct Responder<N: Net> {
    pub(crate) entry: Rc<Entry>,
    pub(crate) clock: N,
    /// The response has no body, whatever it would hold (RFC 9110, section 9.3.2).
    pub(crate) is_head: bool,
}

impl<N: Net> Responder<N> {
    /// Says why the request is not served.
    pub(crate) fn refuse(self, refusal: &Refusal) -> Response<ResponseBody<N>> {
        let answer = refusal.answer();
        let code = GRPC_CODES[grpc_status(answer.status)];
        let mut response = self.fail(&answer, code);
        if answer.flags == Flags::UPSTREAM_OVERFLOW {
            let overloaded = HeaderValue::from_static("true");
            response.headers_mut().insert(X_ENVOY_OVERLOADED, overloaded);
        }
        response
    }

    /// Fails on purpose.
    pub(crate) fn abort(self, abort: Abort) -> Response<ResponseBody<N>> {
        let (status, code) = match abort {
            Abort::Http(status) => (status, grpc_status(status)),
            Abort::Grpc(code) => (http_status(code), usize::from(code)),
        };
        let (flags, details) = (Flags::FAULT_INJECTED, "fault_filter_abort");
        let answer = Answer { status, flags, details, text: "fault filter abort" };
        self.fail(&answer, GRPC_CODES.get(code).unwrap_or(&"2"))
    }

    /// The status that the client gets is the one that is logged and counted: of gRPC, 200.
    fn fail(self, answer: &Answer, code: &'static str) -> Response<ResponseBody<N>> {
        let entry = Rc::clone(&self.entry);
        let status = if entry.is_grpc() { StatusCode::OK } else { answer.status };
        entry.answered(status, answer.flags, answer.details);
        let Some(call) = entry.call() else {
            return self.respond(status, Bytes::from_static(answer.text.as_bytes()));
        };
        let mut response = self.respond(status, Bytes::new());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(grpc::STATUS, HeaderValue::from_static(code));
        // Texts of ours are plain ASCII without `%`, so they need no escaping.
        headers.insert(GRPC_MESSAGE, HeaderValue::from_static(answer.text));
        call.ends_with(headers);
        response
    }

    /// Answers the preflight of a browser.
    pub(crate) fn preflight(self, headers: HeaderMap) -> Response<ResponseBody<N>> {
        self.entry.answered(StatusCode::OK, Flags::NONE, "cors_response");
        let mut response = self.respond(StatusCode::OK, Bytes::new());
        response.headers_mut().extend(headers);
        response
    }

    /// Gives the response that a route names.
    pub(crate) fn direct(self, response: &DirectResponse) -> Response<ResponseBody<N>> {
        self.entry.answered(response.status, Flags::NONE, "direct_response");
        self.respond(response.status, response.body.clone())
    }

    /// Sends the client elsewhere.
    pub(crate) fn redirect(self, status: StatusCode, location: &str) -> Response<ResponseBody<N>> {
        let Ok(location) = HeaderValue::from_str(location) else {
            return self.refuse(&Refusal::BadHost);
        };
        self.entry.answered(status, Flags::NONE, "direct_response");
        let mut response = self.respond(status, Bytes::new());
        response.headers_mut().insert(LOCATION, location);
        response
    }

    fn respond(self, status: StatusCode, text: Bytes) -> Response<ResponseBody<N>> {
        let has_text = !text.is_empty();
        let mut response =
            Response::new(ResponseBody::own(text, self.entry, self.clock, self.is_head));
        *response.status_mut() = status;
        headers::own(response.headers_mut());
        if has_text {
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        response
    }
}

/// gRPC's statuses as header values.
const GRPC_CODES: [&str; 17] =
    ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16"];

/// gRPC's mapping of HTTP statuses to its own.
fn grpc_status(status: StatusCode) -> usize {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// The other way round, as Envoy has it.
fn http_status(code: u8) -> StatusCode {
    let status = match code {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    };
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// What a redirect has to know of the request.
pub(crate) struct Asked<'a> {
    pub(crate) scheme: &'static str,
    /// Host header or `:authority`, with its port if it has one.
    pub(crate) authority: &'a str,
    pub(crate) uri: &'a Uri,
    /// The path by which the route was found.
    pub(crate) path: &'a str,
    /// The Gateway server's port.
    pub(crate) listener_port: u16,
}

/// The same address by https; the port stays as the client wrote it.
pub(crate) fn https_location(asked: &Asked<'_>) -> String {
    format!("https://{}{}", asked.authority, path_and_query(asked.uri))
}

/// Where `redirect` leads.
pub(crate) fn location(redirect: &Redirect, asked: &Asked<'_>) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or(asked.scheme);
    let (host, asked_port) = split_port(asked.authority);
    let host = redirect.authority.as_deref().unwrap_or(host);
    let changed = redirect.authority.is_some() || redirect.scheme.is_some();
    let port = match redirect.port {
        RedirectPort::FromHost => {
            if changed {
                None
            } else {
                asked_port
            }
        }
        RedirectPort::ProtocolDefault => None,
        // A Unix socket has none.
        RedirectPort::Listener => Some(asked.listener_port).filter(|port| *port != 0),
        RedirectPort::Fixed(port) => Some(port),
    };
    let is_default = matches!((scheme, port), ("http", Some(80)) | ("https", Some(443)));
    let port = port.filter(|_| !is_default).map(|port| format!(":{port}")).unwrap_or_default();
    let path = match &redirect.path {
        Some(rewrite) => Cow::Owned(rewrite.apply(asked.path)),
        None => Cow::Borrowed(asked.uri.path()),
    };
    let query = asked.uri.query().filter(|_| !path.contains('?'));
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    format!("{scheme}://{host}{port}{path}{query}")
}

fn split_port(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (authority, None),
        },
        None => (authority, None),
    }
}

fn path_and_query(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", |path| path.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::PathRewrite;

    fn asked(uri: &Uri) -> Asked<'_> {
        let (scheme, authority) = ("http", "a.example.com:8080");
        Asked { scheme, authority, uri, path: uri.path(), listener_port: 80 }
    }

    fn redirect() -> Redirect {
        Redirect {
            status: StatusCode::MOVED_PERMANENTLY,
            scheme: None,
            authority: None,
            port: RedirectPort::FromHost,
            path: None,
        }
    }

    #[test]
    fn https_keeps_host_port_path_and_query() {
        let uri = "/a/b?c=d".parse().unwrap();
        assert_eq!(https_location(&asked(&uri)), "https://a.example.com:8080/a/b?c=d");
    }

    #[test]
    fn what_a_redirect_does_not_set_stays() {
        let uri: Uri = "/old?q=1".parse().unwrap();
        let to = |redirect: Redirect| location(&redirect, &asked(&uri));
        assert_eq!(to(redirect()), "http://a.example.com:8080/old?q=1");
        let path = Some(PathRewrite::Whole("/new".to_owned()));
        assert_eq!(to(Redirect { path, ..redirect() }), "http://a.example.com:8080/new?q=1");
        let path = Some(PathRewrite::Whole("/new?own".to_owned()));
        assert_eq!(to(Redirect { path, ..redirect() }), "http://a.example.com:8080/new?own");
        let path = Some(PathRewrite::Prefix { bytes: 2, with: "/c".to_owned() });
        assert_eq!(to(Redirect { path, ..redirect() }), "http://a.example.com:8080/cld?q=1");
        let scheme = Some("https".to_owned());
        assert_eq!(to(Redirect { scheme, ..redirect() }), "https://a.example.com/old?q=1");
        let authority = Some("b.example.com".to_owned());
        assert_eq!(to(Redirect { authority, ..redirect() }), "http://b.example.com/old?q=1");
    }

    #[test]
    fn the_default_port_of_a_scheme_is_left_out() {
        let uri: Uri = "/".parse().unwrap();
        let to = |port, scheme: &str| {
            let scheme = Some(scheme.to_owned());
            location(&Redirect { port, scheme, ..redirect() }, &asked(&uri))
        };
        assert_eq!(to(RedirectPort::Listener, "http"), "http://a.example.com/");
        assert_eq!(to(RedirectPort::Listener, "https"), "https://a.example.com:80/");
        assert_eq!(to(RedirectPort::Fixed(443), "https"), "https://a.example.com/");
        assert_eq!(to(RedirectPort::Fixed(8443), "https"), "https://a.example.com:8443/");
        assert_eq!(to(RedirectPort::ProtocolDefault, "http"), "http://a.example.com/");
    }
}
