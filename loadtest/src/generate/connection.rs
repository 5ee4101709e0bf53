//! One connection of the generator: a socket, TLS, and at most one request under way.

use std::error::Error;
use std::fmt;
use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustls::{ClientConnection, HandshakeKind};

use super::http2;

const FIELDS_MAX: usize = 64;

/// What is spoken inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Any number of requests, one after the other.
    Http1,
    /// One request.
    Http2,
}

/// An answer with another status than 200.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused(pub u16);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "answered with {}", self.0)
    }
}

impl Error for Refused {}

/// What [`Connection::drive`] reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing that matters.
    Waiting,
    /// The handshake is done and no request was to be sent.
    Ready,
    Answered {
        /// When the request was due.
        due: Instant,
        /// Since then.
        latency: Duration,
    },
    /// The connection is of no further use.
    Failed,
}

/// See the module.
pub(super) struct Connection {
    stream: TcpStream,
    tls: ClientConnection,
    /// Whether [`Progress::Ready`] was told.
    ready: bool,
    /// When the request under way was due.
    due: Option<Instant>,
    /// The request, and how much of it rustls has taken.
    request: Rc<[u8]>,
    request_taken: usize,
    answer: Answer,
}

/// An answer that is arriving.
enum Answer {
    Http1 {
        /// The beginning of its head.
        head: Vec<u8>,
        /// Bytes of its body that are still to come, once its head is complete.
        body: Option<u64>,
    },
    Http2(http2::Answer),
}

impl Connection {
    pub(super) fn new(
        address: SocketAddr,
        tls: ClientConnection,
        protocol: Protocol,
    ) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let answer = match protocol {
            Protocol::Http1 => Answer::Http1 { head: Vec::new(), body: None },
            Protocol::Http2 => Answer::Http2(http2::Answer::default()),
        };
        let request = Rc::default();
        Ok(Self { stream, tls, ready: false, due: None, request, request_taken: 0, answer })
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.stream, token, Interest::READABLE | Interest::WRITABLE)
    }

    /// Whether its handshake was shortened by a ticket.
    pub(super) fn resumed(&self) -> bool {
        self.tls.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Whether a request is under way.
    pub(super) fn is_asked(&self) -> bool {
        self.due.is_some()
    }

    /// Sends a request that was due at `due`; before the handshake is done, it waits for that.
    pub(super) fn send(&mut self, request: &Rc<[u8]>, due: Instant) {
        self.due = Some(due);
        self.ready = true;
        self.request = Rc::clone(request);
        self.request_taken = 0;
        // A failure shows at the next event.
        if !self.tls.is_handshaking() {
            self.write().ok();
        }
    }

    /// Says farewell, as a browser does.
    pub(super) fn close(&mut self) {
        self.tls.send_close_notify();
        // The other side may be gone already.
        self.write().ok();
    }

    /// Does what can be done without waiting.
    pub(super) fn drive(&mut self) -> io::Result<Progress> {
        loop {
            self.write()?;
            if !self.tls.is_handshaking() && !self.ready {
                self.ready = true;
                return Ok(Progress::Ready);
            }
            let read = match self.tls.read_tls(&mut self.stream) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
                Err(error) => return Err(error),
            };
            self.tls.process_new_packets().map_err(io::Error::other)?;
            if self.receive()? {
                let now = Instant::now();
                let due = self.due.take().unwrap_or(now);
                return Ok(Progress::Answered { due, latency: now - due });
            }
            if !read {
                return Ok(Progress::Waiting);
            }
        }
    }

    fn write(&mut self) -> io::Result<()> {
        loop {
            if !self.tls.is_handshaking() && self.request_taken < self.request.len() {
                let rest = &self.request[self.request_taken..];
                self.request_taken += self.tls.writer().write(rest)?;
            }
            if !self.tls.wants_write() {
                return Ok(());
            }
            match self.tls.write_tls(&mut self.stream) {
                Ok(_) => {}
                Err(error) if would_wait(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the answer is complete.
    fn receive(&mut self) -> io::Result<bool> {
        let mut complete = false;
        while !complete {
            let mut reader = self.tls.reader();
            let bytes = match reader.fill_buf() {
                Ok([]) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            let (taken, reply);
            (taken, complete, reply) = self.answer.take(bytes)?;
            reader.consume(taken);
            self.tls.writer().write_all(&reply)?;
        }
        self.write()?;
        Ok(true)
    }
}

impl Answer {
    /// Takes what belongs to this answer: how much that was, whether the answer is complete, and
    /// what the protocol wants to be said to it.
    fn take(&mut self, bytes: &[u8]) -> io::Result<(usize, bool, Vec<u8>)> {
        match self {
            Self::Http1 { head, body } => {
                let taken = take(head, body, bytes)?;
                let complete = *body == Some(0);
                if complete {
                    *body = None;
                }
                Ok((taken, complete, Vec::new()))
            }
            Self::Http2(answer) => {
                let (complete, reply) = answer.take(bytes)?;
                Ok((bytes.len(), complete, reply))
            }
        }
    }
}

/// A socket that is still connecting says so when it is written to.
fn would_wait(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.kind() == io::ErrorKind::NotConnected
}

/// Takes what belongs to the head or the body; returns how much that was.
fn take(head: &mut Vec<u8>, body: &mut Option<u64>, bytes: &[u8]) -> io::Result<usize> {
    if let Some(rest) = body {
        let taken = usize::try_from(*rest).unwrap_or(usize::MAX).min(bytes.len());
        *rest -= taken as u64;
        return Ok(taken);
    }
    let before = head.len();
    head.extend_from_slice(bytes);
    let Some((size, length)) = parse(head)? else { return Ok(bytes.len()) };
    *body = Some(length);
    head.clear();
    Ok(size - before)
}

/// Sizes of the head and of the body, once the head is complete.
fn parse(bytes: &[u8]) -> io::Result<Option<(usize, u64)>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(size) = response.parse(bytes).map_err(io::Error::other)? else {
        return Ok(None);
    };
    let code = response.code.unwrap_or(0);
    if code != 200 {
        return Err(io::Error::other(Refused(code)));
    }
    let length = response.headers.iter().find(|f| f.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|field| std::str::from_utf8(field.value).ok()?.parse().ok());
    let length = length.ok_or_else(|| io::Error::other("an answer without content-length"))?;
    Ok(Some((size, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_may_arrive_in_any_pieces() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        for split in 1..answer.len() {
            let (mut head, mut body) = (Vec::new(), None);
            for mut piece in [&answer[..split], &answer[split..]] {
                while !piece.is_empty() {
                    let taken = take(&mut head, &mut body, piece).unwrap();
                    piece = &piece[taken..];
                }
            }
            assert_eq!(body, Some(0), "{split}");
        }
    }

    #[test]
    fn anything_but_200_with_a_length_is_an_error() {
        assert!(parse(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\ncontent-le").unwrap().is_none());
    }
}
