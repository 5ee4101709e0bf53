//! Response heads: from lent bytes to `http::Response` and the framing of what follows.
//!
//! - A head that lies in one lent run is parsed where it lies; only one that straddles runs is
//!   collected first, up to the limit.
//! - Framing is strict: a length in digits, agreed on if repeated; or exactly `chunked`; never
//!   both.

use std::mem::MaybeUninit;

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header};
use bytes::Bytes;

use super::super::Bounds;

/// Fields that a head can have at most, whatever the limits say: they are parsed on the stack.
const FIELDS_CEILING: usize = 256;

/// Fields that are added on the way to the client: server, date, time and one to spare.
const FIELDS_ADDED: usize = 4;

/// A response head.
pub(super) struct Head {
    pub(super) response: Response<()>,
    pub(super) framing: Framing,
    /// The endpoint will keep the connection after a clean exchange.
    pub(super) keep: bool,
}

/// How a response body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// After this many bytes.
    Length(u64),
    /// With the last chunk.
    Chunked,
    /// With the connection.
    Close,
}

/// Collects a head until it is whole.
pub(super) struct Reader {
    bounds: Bounds,
    /// Empty unless a head straddles lent runs. Invariant: shorter than `head_bytes_max`.
    carry: Vec<u8>,
}

impl Reader {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, carry: Vec::new() }
    }

    /// Nothing of a head was seen yet.
    pub(super) fn is_empty(&self) -> bool {
        self.carry.is_empty()
    }

    /// Takes what it needs from the start of `lent` and says how much; the head, once whole.
    pub(super) fn feed(
        &mut self,
        lent: &[u8],
        method: &Method,
    ) -> Result<(usize, Option<Head>), &'static str> {
        if self.carry.is_empty() {
            return match parse(lent, method, &self.bounds)? {
                Some((n, head)) => Ok((n, Some(head))),
                None => self.collect(lent).map(|()| (lent.len(), None)),
            };
        }
        let before = self.carry.len();
        self.collect(lent)?;
        // A head ends in a line feed: without a new one, it is not worth parsing again.
        if !lent.contains(&b'\n') {
            return Ok((lent.len(), None));
        }
        let Some((n, head)) = parse(&self.carry, method, &self.bounds)? else {
            return Ok((lent.len(), None));
        };
        self.carry.clear();
        Ok((n - before, Some(head)))
    }

    fn collect(&mut self, lent: &[u8]) -> Result<(), &'static str> {
        // What follows the head may lie in the same run: it is counted, but only for one run.
        if self.carry.len() >= self.bounds.head_bytes_max {
            return Err("head too large");
        }
        self.carry.extend_from_slice(lent);
        Ok(())
    }
}

/// Reads the head of a response to GET at the start of `bytes`, which come by `step`: its status,
/// and how many bytes it has.
#[cfg(feature = "bench")]
pub(crate) fn read_head(bytes: &[u8], step: usize) -> Option<(u16, usize)> {
    let mut reader = Reader::new(Bounds::from(&crate::snapshot::Limits::default()));
    let mut taken = 0;
    for piece in bytes.chunks(step) {
        let (n, head) = reader.feed(piece, &Method::GET).ok()?;
        taken += n;
        if let Some(head) = head {
            return Some((head.response.status().as_u16(), taken));
        }
    }
    None
}

/// Parses the head at the start of `bytes`, if it is whole.
fn parse(
    bytes: &[u8],
    method: &Method,
    bounds: &Bounds,
) -> Result<Option<(usize, Head)>, &'static str> {
    let mut space = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; FIELDS_CEILING];
    let fields = bounds.header_fields_max.min(FIELDS_CEILING);
    let mut parsed = httparse::Response::new(&mut []);
    let n = match httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut parsed,
        bytes,
        &mut space[..fields],
    ) {
        Ok(httparse::Status::Complete(n)) if n <= bounds.head_bytes_max => n,
        Ok(httparse::Status::Partial) if bytes.len() < bounds.head_bytes_max => return Ok(None),
        Ok(_) => return Err("head too large"),
        Err(httparse::Error::TooManyHeaders) => return Err("too many header fields"),
        Err(_) => return Err("head malformed"),
    };
    build(&bytes[..n], &parsed, method).map(|head| Some((n, head)))
}

fn build(
    bytes: &[u8],
    parsed: &httparse::Response<'_, '_>,
    method: &Method,
) -> Result<Head, &'static str> {
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or("status code out of range")?;
    let modern = parsed.version == Some(1);
    let mut fields = Fields::new(modern);
    let headers = headers(bytes, parsed.headers, |name, value| fields.take(name, value))?;
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = if modern { Version::HTTP_11 } else { Version::HTTP_10 };
    *response.headers_mut() = headers;
    let (framing, keep) = fields.framing(status, method)?;
    Ok(Head { response, framing, keep })
}

/// Builds the map of those `fields` that `wanted` lets through.
///
/// One copy of the whole head that all values share: two allocations, where a copy of each value
/// would be one for every field.
fn headers(
    head: &[u8],
    fields: &[httparse::Header<'_>],
    mut wanted: impl FnMut(&HeaderName, &[u8]) -> Result<bool, &'static str>,
) -> Result<HeaderMap, &'static str> {
    let shared = Bytes::copy_from_slice(head);
    // Room for what a gateway adds, so that the map does not have to grow for it.
    let mut map = HeaderMap::with_capacity(fields.len() + FIELDS_ADDED);
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| "header name")?;
        if !wanted(&name, field.value)? {
            continue;
        }
        let start = field.value.as_ptr().addr() - head.as_ptr().addr();
        let value = if field.value.is_empty() {
            HeaderValue::from_static("")
        } else {
            let slice = shared.slice(start..start + field.value.len());
            HeaderValue::from_maybe_shared(slice).map_err(|_| "header value")?
        };
        map.append(name, value);
    }
    Ok(map)
}

/// Parses the trailer section `block`, which ends in an empty line.
pub(super) fn parse_trailers(block: &[u8], fields_max: usize) -> Result<HeaderMap, &'static str> {
    let mut space = [httparse::EMPTY_HEADER; FIELDS_CEILING];
    let room = &mut space[..fields_max.min(FIELDS_CEILING)];
    match httparse::parse_headers(block, room) {
        Ok(httparse::Status::Complete((_, fields))) => {
            headers(block, fields, |name, _| Ok(!forbidden_in_trailers(name)))
        }
        Ok(httparse::Status::Partial) | Err(_) => Err("trailers malformed"),
    }
}

/// Whether a trailer `name` could be taken for framing or routing further on.
pub(super) fn forbidden_in_trailers(name: &HeaderName) -> bool {
    const FORBIDDEN: [HeaderName; 8] = [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::HOST,
        header::SET_COOKIE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    FORBIDDEN.contains(name)
}

/// What the header fields say about framing.
struct Fields {
    /// HTTP/1.1.
    modern: bool,
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
}

impl Fields {
    fn new(modern: bool) -> Self {
        Self { modern, length: None, chunked: false, close: false, keep_alive: false }
    }

    /// Notes one field; whether it is passed on.
    fn take(&mut self, name: &HeaderName, value: &[u8]) -> Result<bool, &'static str> {
        if name == header::CONTENT_LENGTH {
            let length = parse_length(value).ok_or("content-length is not a number")?;
            let repeated = self.length.replace(length);
            return match repeated {
                Some(other) if other != length => Err("two different content-lengths"),
                other => Ok(other.is_none()),
            };
        }
        if name == header::TRANSFER_ENCODING {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err("transfer-encoding other than chunked");
            }
            self.chunked = true;
            return Ok(false);
        }
        if name == header::CONNECTION {
            self.close |= has_token(value, b"close");
            self.keep_alive |= has_token(value, b"keep-alive");
            // These two are between the endpoint and us. Others name fields, which is for whoever
            // passes the head on to deal with.
            let ours = [&b"keep-alive"[..], b"close"];
            return Ok(!ours.iter().any(|own| value.eq_ignore_ascii_case(own)));
        }
        Ok(name != "keep-alive")
    }

    /// The framing, and whether the connection can be used again after it.
    fn framing(
        &self,
        status: StatusCode,
        method: &Method,
    ) -> Result<(Framing, bool), &'static str> {
        if self.chunked && self.length.is_some() {
            return Err("both content-length and transfer-encoding");
        }
        if self.chunked && !self.modern {
            return Err("transfer-encoding in HTTP/1.0");
        }
        let keep = !self.close && (self.modern || self.keep_alive);
        let bodyless = status == StatusCode::NO_CONTENT || status.is_informational();
        if bodyless || method == Method::HEAD || status == StatusCode::NOT_MODIFIED {
            // A body announced where none can be may follow all the same.
            let announced = bodyless && (self.chunked || self.length.unwrap_or(0) > 0);
            return Ok((Framing::Length(0), keep && !announced));
        }
        Ok(match (self.chunked, self.length) {
            (true, _) => (Framing::Chunked, keep),
            (false, Some(length)) => (Framing::Length(length), keep),
            (false, None) => (Framing::Close, false),
        })
    }
}

/// Digits only, and fewer than overflow.
fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn has_token(value: &[u8], token: &[u8]) -> bool {
    value.split(|&byte| byte == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(token))
}
