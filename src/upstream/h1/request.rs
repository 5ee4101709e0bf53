//! The request on the wire: its head, and its body as it comes.
//!
//! - Written straight into the stream's send buffer: no string in between.
//! - Exactly one framing, made from the body itself; framing fields in the map are ignored.
//! - Nothing can inject a line: `Method`, `PathAndQuery`, `Authority`, `HeaderName` and
//!   `HeaderValue` cannot hold CR or LF (tested below), and nothing else is written.

use std::io::{IoSlice, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, header, request};
use bytes::{Buf, Bytes};

use crate::io::Stream;
use crate::snapshot::Field;

use super::super::adapt::WRITE_BYTES_MAX;
use super::super::error::Kind;
use super::head::forbidden_in_trailers;

/// How a request body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// No body, and nothing says so.
    None,
    /// This many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
}

impl Framing {
    /// What fits `body` of a request with `method`.
    pub(super) fn of(body: &impl http_body::Body, method: &Method) -> Self {
        let expects_body = [Method::POST, Method::PUT, Method::PATCH].contains(method);
        match (body.is_end_stream(), body.size_hint().exact()) {
            (true, _) | (false, Some(0)) if expects_body => Self::Length(0),
            (true, _) | (false, Some(0)) => Self::None,
            (false, Some(length)) => Self::Length(length),
            (false, None) => Self::Chunked,
        }
    }
}

/// Appends the head of a request to `out`, with the fields `own` beside its own.
pub(super) fn write_head(
    out: &mut Vec<u8>,
    head: &request::Parts,
    own: &[Field<'_>],
    framing: Framing,
) {
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.uri.path_and_query().map_or("/", |path| path.as_str()).as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    out.extend_from_slice(host(head));
    out.extend_from_slice(b"\r\n");
    write_fields(out, &head.headers, |name| !is_ours(name));
    for (name, value) in own {
        write_field(out, name, value);
    }
    match framing {
        Framing::None => {}
        Framing::Length(length) => write_all(out, format_args!("content-length: {length}\r\n")),
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
}

/// Appends the fields that ask for another protocol.
pub(super) fn write_upgrade(out: &mut Vec<u8>, head: &request::Parts) {
    let protocol = head.headers.get(header::UPGRADE).map_or(&b"websocket"[..], |p| p.as_bytes());
    out.extend_from_slice(b"connection: upgrade\r\nupgrade: ");
    out.extend_from_slice(protocol);
    out.extend_from_slice(b"\r\n");
}

/// The Host that the request names: in its header, else in its URI; empty if in neither.
fn host(head: &request::Parts) -> &[u8] {
    if let Some(host) = head.headers.get(header::HOST) {
        return host.as_bytes();
    }
    let authority = head.uri.authority().map_or("", |authority| authority.as_str());
    authority.rsplit('@').next().unwrap_or("").as_bytes()
}

/// Whether this field is written by us alone, if at all.
fn is_ours(name: &HeaderName) -> bool {
    const OURS: [HeaderName; 6] = [
        header::HOST,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::UPGRADE,
        // Answered downstream, by whoever reads the body.
        header::EXPECT,
    ];
    OURS.contains(name)
}

fn write_fields(out: &mut Vec<u8>, fields: &HeaderMap, wanted: impl Fn(&HeaderName) -> bool) {
    for (name, value) in fields.iter().filter(|(name, _)| wanted(name)) {
        write_field(out, name, value);
    }
}

fn write_field(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn write_all(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a Vec takes everything");
}

/// A request body on its way out.
///
/// ```text
///   Open -> Done      everything is in the send buffer
///     \---> Cut       the endpoint takes no more; it may have answered already
/// ```
pub(super) struct Upload<B> {
    body: B,
    framing: Framing,
    state: State,
    /// Data that was taken from the body and not written yet.
    pending: Bytes,
    /// Something was taken from the body: the request cannot be sent again.
    pub(super) touched: bool,
    /// The client is to send the next frame.
    is_awaited: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Done,
    Cut,
}

/// The body failed, or was not as long as it said.
pub(super) struct BodyFailed;

impl<B: http_body::Body<Data = Bytes> + Unpin> Upload<B> {
    pub(super) fn new(body: B, framing: Framing) -> Self {
        let empty = matches!(framing, Framing::None | Framing::Length(0));
        let state = if empty { State::Done } else { State::Open };
        let (pending, touched, is_awaited) = (Bytes::new(), false, false);
        Self { body, framing, state, pending, touched, is_awaited }
    }

    pub(super) fn framing(&self) -> Framing {
        self.framing
    }

    /// All of it is in the send buffer.
    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whose fault it is that nothing moves.
    pub(super) fn blame(&self) -> Kind {
        if self.is_awaited { Kind::SlowClient } else { Kind::Timeout }
    }

    /// Moves what can be moved; ready when nothing is left to do. The flag says that bytes moved.
    pub(super) fn poll(
        &mut self,
        stream: &mut impl Stream,
        cx: &mut Context<'_>,
        moved: &mut bool,
    ) -> Poll<Result<(), BodyFailed>> {
        while self.state == State::Open {
            if ready!(stream.poll_write_ready(cx)).is_err() {
                self.state = State::Cut;
                break;
            }
            if self.pending.is_empty() {
                ready!(self.poll_next(stream, cx))?;
            }
            *moved = true;
            self.write_piece(stream);
        }
        Poll::Ready(Ok(()))
    }

    /// Takes the next frame; its data becomes `pending`.
    fn poll_next(
        &mut self,
        stream: &mut impl Stream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), BodyFailed>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.is_awaited = frame.is_pending();
        let Some(frame) = ready!(frame) else {
            return Poll::Ready(self.finish(stream, &HeaderMap::new()));
        };
        self.touched = true;
        let frame = frame.map_err(|_| BodyFailed)?;
        Poll::Ready(match frame.into_data() {
            Ok(data) => self.accept(data),
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => self.finish(stream, &trailers),
                Err(_) => Ok(()),
            },
        })
    }

    fn accept(&mut self, data: Bytes) -> Result<(), BodyFailed> {
        if let Framing::Length(left) = &mut self.framing {
            *left = left.checked_sub(data.len() as u64).ok_or(BodyFailed)?;
        }
        self.pending = data;
        Ok(())
    }

    /// Writes one piece of `pending`, so that the send buffer overshoots its mark by no more.
    fn write_piece(&mut self, stream: &mut impl Stream) {
        if self.pending.is_empty() || self.state != State::Open {
            return;
        }
        let n = self.pending.len().min(WRITE_BYTES_MAX);
        let piece = &self.pending[..n];
        let written = if self.framing == Framing::Chunked {
            // The size line has to be made: 16 digits and CR LF at most.
            let mut line = [0; 18];
            let mut rest = &mut line[..];
            write!(rest, "{n:x}\r\n").expect("a size fits");
            let unused = rest.len();
            let line = &line[..18 - unused];
            stream.write(&[IoSlice::new(line), IoSlice::new(piece), IoSlice::new(b"\r\n")])
        } else {
            stream.write(&[IoSlice::new(piece)])
        };
        self.pending.advance(n);
        if written.is_err() {
            self.state = State::Cut;
        } else if self.pending.is_empty() && self.framing == Framing::Length(0) {
            self.state = State::Done;
        }
    }

    /// Ends the body on the wire.
    fn finish(&mut self, stream: &mut impl Stream, trailers: &HeaderMap) -> Result<(), BodyFailed> {
        let written = match self.framing {
            Framing::Length(1..) => return Err(BodyFailed),
            Framing::Length(0) | Framing::None => Ok(()),
            Framing::Chunked => stream.append(|out| {
                out.extend_from_slice(b"0\r\n");
                write_fields(out, trailers, |name| !forbidden_in_trailers(name));
                out.extend_from_slice(b"\r\n");
            }),
        };
        self.state = if written.is_ok() { State::Done } else { State::Cut };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::http::Request;

    fn written(request: Request<()>, framing: Framing) -> String {
        let mut out = Vec::new();
        write_head(&mut out, &request.into_parts().0, &[], framing);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_head_has_one_host_and_one_framing() {
        let request = Request::post("http://user@a.example:80/x?y=1")
            .header("content-length", "7")
            .header("transfer-encoding", "gzip")
            .header("expect", "100-continue")
            .header("connection", "close")
            .header("x-a", "1");
        let expected = "POST /x?y=1 HTTP/1.1\r\nhost: a.example:80\r\nx-a: 1\r\n";
        let head = written(request.body(()).unwrap(), Framing::Length(5));
        assert_eq!(head, format!("{expected}content-length: 5\r\n"));

        let request = Request::get("/").header("host", "b.example").header("host", "c.example");
        let head = written(request.body(()).unwrap(), Framing::Chunked);
        assert_eq!(head, "GET / HTTP/1.1\r\nhost: b.example\r\ntransfer-encoding: chunked\r\n");

        let mut out = Vec::new();
        let (head, ()) = Request::get("/").header("x-a", "1").body(()).unwrap().into_parts();
        let value = HeaderValue::from_static("2");
        write_head(&mut out, &head, &[(&header::VIA, &value)], Framing::None);
        assert_eq!(out, b"GET / HTTP/1.1\r\nhost: \r\nx-a: 1\r\nvia: 2\r\n");

        let request = Request::get("http://a.example").body(()).unwrap();
        assert_eq!(written(request, Framing::None), "GET / HTTP/1.1\r\nhost: a.example\r\n");
    }

    #[test]
    fn no_validated_type_can_hold_a_line_end() {
        for hostile in ["a\rb", "a\nb", "a\r\nx: y", "a\0b"] {
            assert!(Method::from_bytes(hostile.as_bytes()).is_err());
            assert!(hostile.parse::<::http::uri::PathAndQuery>().is_err());
            assert!(hostile.parse::<::http::uri::Authority>().is_err());
            assert!(HeaderName::from_bytes(hostile.as_bytes()).is_err());
            assert!(HeaderValue::from_bytes(hostile.as_bytes()).is_err());
        }
    }
}
