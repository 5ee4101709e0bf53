//! Carries out what a route says is to be done with headers.
//!
//! - The data path parses nothing: values were taken apart when the route was made.
//! - A value that comes out empty, or would end the header, is left out.

use std::io::Write;

use ::http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use ::http::request::Parts;
use ::http::{StatusCode, Version};

use super::entry::Entry;
use super::headers::external_address_of;
use crate::address::{Address, canonical};
use crate::snapshot::{AddressPart, Edit, FieldValue, Piece, RequestPart, Template};
use crate::telemetry;

/// What values are made of beside the headers.
pub(crate) struct Context<'a> {
    pub(crate) entry: &'a Entry,
    /// Of the response, if there is one.
    pub(crate) status: Option<StatusCode>,
}

impl Context<'_> {
    /// Changes the headers of a request.
    pub(crate) fn edit_request(&self, edits: &[Edit], head: &mut Parts) {
        for edit in edits {
            remove(edit, &mut head.headers);
            let values = self.values(edit, head, None);
            put(edit, values, &mut head.headers);
        }
    }

    /// Changes the headers of the response to `request`.
    pub(crate) fn edit_response(&self, edits: &[Edit], request: &Parts, headers: &mut HeaderMap) {
        for edit in edits {
            remove(edit, headers);
            let values = self.values(edit, request, Some(headers));
            put(edit, values, headers);
        }
    }

    /// The values of all that `edit` puts, in order.
    fn values(
        &self,
        edit: &Edit,
        request: &Parts,
        response: Option<&HeaderMap>,
    ) -> Vec<Option<HeaderValue>> {
        let templates = edit.set.iter().chain(&edit.add).map(|(_, template)| template);
        templates.map(|template| self.value(template, request, response)).collect()
    }

    fn value(
        &self,
        template: &Template,
        request: &Parts,
        response: Option<&HeaderMap>,
    ) -> Option<HeaderValue> {
        let pieces = match template {
            Template::Fixed(value) => return Some(value.clone()).filter(|value| !value.is_empty()),
            Template::Made(pieces) => pieces,
        };
        let mut value = Vec::new();
        for piece in pieces {
            self.append(piece, request, response, &mut value);
        }
        if value.is_empty() {
            None
        } else {
            HeaderValue::from_maybe_shared(bytes::Bytes::from(value)).ok()
        }
    }

    fn append(
        &self,
        piece: &Piece,
        request: &Parts,
        response: Option<&HeaderMap>,
        out: &mut Vec<u8>,
    ) {
        let downstream = self.entry.downstream();
        match piece {
            Piece::Text(text) => out.extend_from_slice(text.as_bytes()),
            Piece::Peer(part) => address(downstream.remote, *part, out),
            Piece::Local(part) => address(downstream.local, *part, out),
            Piece::Remote(part) => {
                let client = external_address_of(&request.headers, downstream.remote);
                address(client, *part, out);
            }
            Piece::Endpoint(part) => {
                if let Some(endpoint) = self.entry.endpoint() {
                    address(endpoint, *part, out);
                }
            }
            Piece::Protocol => out.extend_from_slice(protocol(request.version)),
            Piece::Request(field) => cut(field, |part| part_of(part, request), out),
            Piece::Response(field) => cut(field, |name| value_of(name, response?), out),
            Piece::StartTime => {
                out.extend_from_slice(&telemetry::rfc3339_millis(self.entry.start()));
            }
            Piece::ServerName => {
                out.extend_from_slice(downstream.server_name().unwrap_or_default().as_bytes());
            }
            Piece::RouteName => out.extend_from_slice(self.entry.route_name().as_bytes()),
            Piece::Cluster => out.extend_from_slice(self.entry.cluster_name().as_bytes()),
            Piece::Status => {
                let status = self.status.as_ref().map_or("0", StatusCode::as_str);
                out.extend_from_slice(status.as_bytes());
            }
        }
    }
}

fn remove(edit: &Edit, headers: &mut HeaderMap) {
    for name in &edit.remove {
        headers.remove(name);
    }
}

fn put(edit: &Edit, values: Vec<Option<HeaderValue>>, headers: &mut HeaderMap) {
    let mut values = values.into_iter();
    for ((name, _), value) in edit.set.iter().zip(values.by_ref()) {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
    for ((name, _), value) in edit.add.iter().zip(values) {
        if let Some(value) = value {
            headers.append(name, value);
        }
    }
}

/// Appends the field, or its alternative, up to its greatest length.
fn cut<'a, T>(
    field: &'a FieldValue<T>,
    find: impl Fn(&'a T) -> Option<&'a [u8]>,
    out: &mut Vec<u8>,
) {
    let found = find(&field.name).or_else(|| find(field.alternative.as_ref()?));
    let value = found.unwrap_or_default();
    out.extend_from_slice(&value[..value.len().min(field.bytes_max)]);
}

fn part_of<'a>(part: &'a RequestPart, request: &'a Parts) -> Option<&'a [u8]> {
    match part {
        RequestPart::Method => Some(request.method.as_str().as_bytes()),
        RequestPart::Path => request.uri.path_and_query().map(|path| path.as_str().as_bytes()),
        RequestPart::Authority => {
            let own = request.uri.authority().map(|authority| authority.as_str().as_bytes());
            own.or_else(|| value_of(&HOST, &request.headers))
        }
        RequestPart::Scheme => {
            value_of(&HeaderName::from_static("x-forwarded-proto"), &request.headers)
        }
        RequestPart::Header(name) => value_of(name, &request.headers),
    }
}

fn value_of<'a>(name: &HeaderName, headers: &'a HeaderMap) -> Option<&'a [u8]> {
    headers.get(name).map(HeaderValue::as_bytes)
}

fn protocol(version: Version) -> &'static [u8] {
    if version == Version::HTTP_2 { b"HTTP/2" } else { b"HTTP/1.1" }
}

fn address(address: Address, part: AddressPart, out: &mut Vec<u8>) {
    let address = match address {
        Address::Ip(address) => canonical(address),
        // As by Envoy: the path is all of it, and there is no port.
        Address::Pipe(_) if part == AddressPart::Port => return,
        Address::Pipe(path) => return out.extend_from_slice(path.as_str().as_bytes()),
    };
    let written = match part {
        AddressPart::Whole => write!(out, "{address}"),
        AddressPart::Host => write!(out, "{}", address.ip()),
        AddressPart::Port => write!(out, "{}", address.port()),
    };
    written.expect("a Vec takes everything");
}
