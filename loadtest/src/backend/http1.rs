//! The backend's HTTP/1.1: keep-alive, on any number of ports, one of them inside TLS.
//!
//! Deliberately not here: anything that a gateway under test would not send.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::http2::Tally;
use super::{Counters, FILLER};

const FIELDS_MAX: usize = 64;
/// A larger request head ends the connection.
const HEAD_BYTES_MAX: usize = 64 * 1024;
const READ_BYTES: usize = 64 * 1024;

/// A port to serve.
pub(super) struct Port {
    pub listener: TcpListener,
    /// `None` without TLS.
    pub tls: Option<Arc<ServerConfig>>,
}

/// Serves all ports on this thread.
pub(super) struct Server {
    poll: Poll,
    /// The token of each is its place.
    ports: Vec<Port>,
    connections: HashMap<Token, Connection>,
    next: usize,
    seen: Seen,
    buffer: Vec<u8>,
}

impl Server {
    /// Counters that are asked for have those of `http2` in them.
    ///
    /// # Errors
    /// The system refuses to wait for events.
    pub(super) fn new(mut ports: Vec<Port>, http2: Arc<Tally>) -> io::Result<Self> {
        let poll = Poll::new()?;
        for (index, port) in ports.iter_mut().enumerate() {
            poll.registry().register(&mut port.listener, Token(index), Interest::READABLE)?;
        }
        let seen = Seen { counters: Counters::default(), users: HashMap::new(), http2 };
        let (next, buffer) = (ports.len(), vec![0; READ_BYTES]);
        Ok(Self { poll, ports, connections: HashMap::new(), next, seen, buffer })
    }

    /// # Errors
    /// The system refuses to wait for events.
    pub(super) fn serve(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                let Token(index) = event.token();
                if index < self.ports.len() { self.accept(index) } else { self.drive(Token(index)) }
            }
        }
    }

    fn accept(&mut self, port: usize) {
        while let Ok((mut stream, _)) = self.ports[port].listener.accept() {
            let token = Token(self.next);
            self.next += 1;
            let interest = Interest::READABLE | Interest::WRITABLE;
            // What cannot be set up is closed, which its peer sees.
            let ready = stream
                .set_nodelay(true)
                .and_then(|()| self.poll.registry().register(&mut stream, token, interest))
                .and_then(|()| Stream::new(stream, self.ports[port].tls.as_ref()));
            if let Ok(stream) = ready {
                self.connections.insert(token, Connection::new(stream, port));
            }
        }
    }

    fn drive(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if connection.drive(&mut self.buffer, &mut self.seen).is_err() {
            self.connections.remove(&token);
        }
    }
}

/// What was served so far.
struct Seen {
    counters: Counters,
    /// The port at which each user was first seen, since counters were last asked for.
    users: HashMap<Vec<u8>, usize>,
    http2: Arc<Tally>,
}

impl Seen {
    /// `is_first`: on its connection.
    fn request(&mut self, request: &Request, port: usize, tls: bool, is_first: bool) {
        let counters = &mut self.counters;
        counters.requests += 1;
        counters.accepted += u64::from(is_first);
        counters.forwarded += u64::from(request.forwarded);
        counters.tls += u64::from(tls);
        if let Some(served) = counters.ports.get_mut(port).filter(|_| !tls) {
            *served += 1;
        }
        if let Some(user) = &request.user {
            let first = *self.users.entry(user.clone()).or_insert(port);
            counters.strays += u64::from(first != port);
        }
    }

    fn told(&mut self) -> Counters {
        self.users.clear();
        self.http2.added_to(self.counters)
    }
}

/// A client's socket, or TLS over it.
enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Stream {
    fn new(stream: TcpStream, tls: Option<&Arc<ServerConfig>>) -> io::Result<Self> {
        let Some(config) = tls else { return Ok(Self::Plain(stream)) };
        let tls = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        Ok(Self::Tls(Box::new(StreamOwned::new(tls, stream))))
    }

    fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }

    fn write_vectored(&mut self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write_vectored(parts),
            Self::Tls(stream) => stream.write_vectored(parts),
        }
    }
}

struct Connection {
    stream: Stream,
    port: usize,
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
    fn new(stream: Stream, port: usize) -> Self {
        Self {
            stream,
            port,
            received: Vec::new(),
            body: 0,
            head: Vec::new(),
            head_sent: 0,
            filler: 0,
            counted: false,
        }
    }

    /// Goes on until the socket has no more bytes or no more space.
    fn drive(&mut self, buffer: &mut [u8], seen: &mut Seen) -> io::Result<()> {
        loop {
            if !self.flush(&mut seen.counters)? {
                return Ok(());
            }
            if self.answer(seen)? {
                continue;
            }
            match self.stream.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.receive(&buffer[..n], &mut seen.counters),
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
    fn answer(&mut self, seen: &mut Seen) -> io::Result<bool> {
        if self.body > 0 || self.received.is_empty() {
            return Ok(false);
        }
        let Some(request) = Request::parse(&self.received)? else { return Ok(false) };
        if request.counters {
            let text = seen.told().text();
            self.head = head(text.len() as u64);
            self.head.extend_from_slice(text.as_bytes());
        } else {
            seen.request(&request, self.port, self.stream.is_tls(), !self.counted);
            self.counted = true;
            self.head = head(request.answer);
            self.filler = request.answer;
        }
        self.body = request.body;
        let rest = self.received.split_off(request.head);
        self.received.clear();
        self.receive(&rest, &mut seen.counters);
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
    /// Whether it was forwarded by a proxy that says for whom.
    forwarded: bool,
    /// Its `x-user`.
    user: Option<Vec<u8>>,
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
        let (answer, counters) = (super::wanted(path), path == "/-/counters");
        let forwarded = field(request.headers, "x-forwarded-for").is_some();
        let user = field(request.headers, "x-user").map(<[u8]>::to_vec);
        Ok(Some(Self { head, body, counters, answer, forwarded, user }))
    }
}

fn field<'a>(fields: &[httparse::Header<'a>], name: &str) -> Option<&'a [u8]> {
    fields.iter().find(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
}

fn length(fields: &[httparse::Header<'_>]) -> io::Result<u64> {
    if field(fields, "transfer-encoding").is_some() {
        return Err(io::Error::other("the backend reads bodies of a known length only"));
    }
    let Some(value) = field(fields, "content-length") else { return Ok(0) };
    let text = std::str::from_utf8(value).map_err(io::Error::other)?;
    text.trim().parse().map_err(io::Error::other)
}
