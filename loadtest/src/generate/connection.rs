//! One connection of the generator: a socket, TLS, and at most one request under way.

use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustls::{ClientConnection, HandshakeKind};

const FIELDS_MAX: usize = 64;

/// What [`Connection::drive`] reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing that matters.
    Waiting,
    /// The handshake is done and no request was to be sent.
    Ready,
    Answered {
        /// Since the request was due.
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
    /// The request, or the rest of it that did not fit rustls's buffer.
    unsent: Vec<u8>,
    unsent_from: usize,
    /// The beginning of an answer's head.
    head: Vec<u8>,
    /// Bytes of the answer's body that are still to come, once its head is complete.
    body: Option<u64>,
}

impl Connection {
    pub(super) fn new(address: SocketAddr, tls: ClientConnection) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            tls,
            ready: false,
            due: None,
            unsent: Vec::new(),
            unsent_from: 0,
            head: Vec::new(),
            body: None,
        })
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.stream, token, Interest::READABLE | Interest::WRITABLE)
    }

    /// Whether its handshake was shortened by a ticket.
    pub(super) fn resumed(&self) -> bool {
        self.tls.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Sends a request that was due at `due`; before the handshake is done, it waits for that.
    pub(super) fn send(&mut self, request: &[u8], due: Instant) {
        self.due = Some(due);
        self.ready = true;
        self.unsent.clear();
        self.unsent.extend_from_slice(request);
        self.unsent_from = 0;
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
                let due = self.due.take();
                let latency = due.map(|due| due.elapsed()).unwrap_or_default();
                return Ok(Progress::Answered { latency });
            }
            if !read {
                return Ok(Progress::Waiting);
            }
        }
    }

    fn write(&mut self) -> io::Result<()> {
        loop {
            if !self.tls.is_handshaking() && self.unsent_from < self.unsent.len() {
                self.unsent_from += self.tls.writer().write(&self.unsent[self.unsent_from..])?;
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
        loop {
            let mut reader = self.tls.reader();
            let taken = match reader.fill_buf() {
                Ok([]) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => take(&mut self.head, &mut self.body, bytes)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            reader.consume(taken);
            if self.body == Some(0) {
                self.body = None;
                return Ok(true);
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
    if response.code != Some(200) {
        return Err(io::Error::other(format!("answered with {:?}", response.code)));
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
