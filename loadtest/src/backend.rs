//! The server behind every gateway: HTTP/1.1, keep-alive, one thread, as cheap as it can be.
//!
//! - A path that ends in `/N` is answered with N bytes; a request body is read and thrown away.
//! - `/-/counters` tells how many connections were accepted, and requests and bytes of bodies
//!   received and sent; it and its connection do not count.
//!
//! Deliberately not here: TLS, HTTP/2, anything that a gateway under test would not send.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::SocketAddr;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

const LISTENER: Token = Token(0);
const FIELDS_MAX: usize = 64;
/// A larger request head ends the connection.
const HEAD_BYTES_MAX: usize = 64 * 1024;
const READ_BYTES: usize = 64 * 1024;
const FILLER: &[u8] = &[b'x'; 256 * 1024];

/// What the backend saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Connections that carried at least one counted request.
    pub accepted: u64,
    pub requests: u64,
    /// Bytes of bodies, received and sent.
    pub bytes: u64,
}

impl Counters {
    /// `self` as [`Counters::parse`] reads it.
    fn text(self) -> String {
        format!("accepted={} requests={} bytes={}", self.accepted, self.requests, self.bytes)
    }

    /// `None` if `text` is not from a backend.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split_whitespace();
        let mut next = |name: &str| fields.next()?.strip_prefix(name)?.parse().ok();
        Some(Self {
            accepted: next("accepted=")?,
            requests: next("requests=")?,
            bytes: next("bytes=")?,
        })
    }
}

/// Serves until it is killed. The bound address is printed as the first line.
///
/// # Errors
/// The address cannot be bound, or the system refuses to wait for events.
pub(crate) fn run(address: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("{}", listener.local_addr()?);
    Backend::new(listener)?.serve()
}

struct Backend {
    poll: Poll,
    listener: TcpListener,
    connections: HashMap<Token, Connection>,
    next: usize,
    counters: Counters,
    buffer: Vec<u8>,
}

impl Backend {
    fn new(mut listener: TcpListener) -> io::Result<Self> {
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self {
            poll,
            listener,
            connections: HashMap::new(),
            next: LISTENER.0 + 1,
            counters: Counters::default(),
            buffer: vec![0; READ_BYTES],
        })
    }

    fn serve(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    token => self.drive(token),
                }
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((mut stream, _)) = self.listener.accept() {
            let token = Token(self.next);
            self.next += 1;
            let interest = Interest::READABLE | Interest::WRITABLE;
            // What cannot be set up is closed, which its peer sees.
            let ready = stream
                .set_nodelay(true)
                .and_then(|()| self.poll.registry().register(&mut stream, token, interest));
            if ready.is_ok() {
                self.connections.insert(token, Connection::new(stream));
            }
        }
    }

    fn drive(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if connection.drive(&mut self.buffer, &mut self.counters).is_err() {
            self.connections.remove(&token);
        }
    }
}

struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    /// Bytes of a request's body that are still to come.
    body: u64,
    head: Vec<u8>,
    head_sent: usize,
    /// Bytes of filler to send after `head`.
    filler: u64,
    counted: bool,
}

impl Connection {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            received: Vec::new(),
            body: 0,
            head: Vec::new(),
            head_sent: 0,
            filler: 0,
            counted: false,
        }
    }

    /// Goes on until the socket has no more bytes or no more space.
    fn drive(&mut self, buffer: &mut [u8], counters: &mut Counters) -> io::Result<()> {
        loop {
            if !self.flush(counters)? {
                return Ok(());
            }
            if self.answer(counters)? {
                continue;
            }
            match self.stream.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.receive(&buffer[..n], counters),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn receive(&mut self, mut bytes: &[u8], counters: &mut Counters) {
        let body = usize::try_from(self.body).unwrap_or(usize::MAX).min(bytes.len());
        self.body -= body as u64;
        counters.bytes += body as u64;
        bytes = &bytes[body..];
        self.received.extend_from_slice(bytes);
    }

    /// Whether a request was there to be answered. A body is read before its answer is sent.
    fn answer(&mut self, counters: &mut Counters) -> io::Result<bool> {
        if self.body > 0 || self.received.is_empty() {
            return Ok(false);
        }
        let Some(request) = Request::parse(&self.received)? else { return Ok(false) };
        if request.counters {
            let text = counters.text();
            self.head = head(text.len() as u64);
            self.head.extend_from_slice(text.as_bytes());
        } else {
            counters.requests += 1;
            counters.accepted += u64::from(!self.counted);
            self.counted = true;
            self.head = head(request.answer);
            self.filler = request.answer;
        }
        self.body = request.body;
        let rest = self.received.split_off(request.head);
        self.received.clear();
        self.receive(&rest, counters);
        Ok(true)
    }

    /// Whether all is sent. Nothing is while the request's body is still coming.
    fn flush(&mut self, counters: &mut Counters) -> io::Result<bool> {
        if self.body > 0 {
            return Ok(true);
        }
        while self.head_sent < self.head.len() || self.filler > 0 {
            let sent = match self.write() {
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            let head = sent.min(self.head.len() - self.head_sent);
            self.head_sent += head;
            self.filler -= (sent - head) as u64;
            counters.bytes += (sent - head) as u64;
        }
        self.head.clear();
        self.head_sent = 0;
        Ok(true)
    }

    fn write(&mut self) -> io::Result<usize> {
        let filler = usize::try_from(self.filler).unwrap_or(usize::MAX).min(FILLER.len());
        let head = &self.head[self.head_sent..];
        let parts = [io::IoSlice::new(head), io::IoSlice::new(&FILLER[..filler])];
        self.stream.write_vectored(&parts)
    }
}

fn head(body: u64) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {body}\r\n\r\n")
        .into_bytes()
}

/// What matters of a request.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    /// Bytes of the request's head.
    head: usize,
    body: u64,
    counters: bool,
    /// Bytes to answer with.
    answer: u64,
}

impl Request {
    /// `None` if its head is not complete.
    fn parse(bytes: &[u8]) -> io::Result<Option<Self>> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut request = httparse::Request::new(&mut fields);
        let head = match request.parse(bytes).map_err(io::Error::other)? {
            httparse::Status::Complete(head) => head,
            httparse::Status::Partial if bytes.len() > HEAD_BYTES_MAX => {
                return Err(io::Error::other("the request head is too large"));
            }
            httparse::Status::Partial => return Ok(None),
        };
        let path = request.path.unwrap_or_default();
        let body = length(request.headers)?;
        let answer = path.rsplit('/').next().and_then(|last| last.parse().ok()).unwrap_or(0);
        Ok(Some(Self { head, body, counters: path == "/-/counters", answer }))
    }
}

fn length(fields: &[httparse::Header<'_>]) -> io::Result<u64> {
    let named = |name: &str| fields.iter().find(|field| field.name.eq_ignore_ascii_case(name));
    if named("transfer-encoding").is_some() {
        return Err(io::Error::other("the backend reads bodies of a known length only"));
    }
    let Some(field) = named("content-length") else { return Ok(0) };
    let text = std::str::from_utf8(field.value).map_err(io::Error::other)?;
    text.trim().parse().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net;

    fn started() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || Backend::new(listener).unwrap().serve());
        address
    }

    fn exchange(stream: &mut net::TcpStream, request: &[u8], bytes: usize) -> String {
        stream.write_all(request).unwrap();
        let mut answer = vec![0; bytes];
        stream.read_exact(&mut answer).unwrap();
        String::from_utf8(answer).unwrap()
    }

    #[test]
    fn bodies_and_counters() {
        let mut stream = net::TcpStream::connect(started()).unwrap();
        let small = head(62).len() + 62;
        for _ in 0..2 {
            let answer = exchange(&mut stream, b"GET /62 HTTP/1.1\r\nhost: a\r\n\r\n", small);
            assert!(answer.ends_with(&"x".repeat(62)), "{answer}");
        }
        let large = head(3_000_000).len() + 3_000_000;
        exchange(&mut stream, b"GET /3000000 HTTP/1.1\r\nhost: a\r\n\r\n", large);
        let upload = b"POST /a/b/1 HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello";
        exchange(&mut stream, upload, head(1).len() + 1);
        let expected = Counters { accepted: 1, requests: 4, bytes: 2 * 62 + 3_000_000 + 5 + 1 };
        let ask = b"GET /-/counters HTTP/1.1\r\nhost: a\r\n\r\n";
        let bytes = head(expected.text().len() as u64).len() + expected.text().len();
        let answer = exchange(&mut stream, ask, bytes);
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        assert_eq!(Counters::parse(body), Some(expected));
    }

    #[test]
    fn pipelined_requests_are_answered_in_order() {
        let mut stream = net::TcpStream::connect(started()).unwrap();
        let request =
            b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\nPOST /2 HTTP/1.1\r\ncontent-length: 1\r\n\r\n";
        let answer = exchange(&mut stream, request, head(1).len() + 1);
        assert!(answer.contains("content-length: 1\r\n"), "{answer}");
        let answer = exchange(&mut stream, b"b", head(2).len() + 2);
        assert!(answer.contains("content-length: 2\r\n"), "{answer}");
    }
}
