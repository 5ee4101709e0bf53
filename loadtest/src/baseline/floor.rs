//! The floor: HTTP/1.1 over TLS on the bare loop, the least that a proxy of this kind can do.
//!
//! - A request's head is parsed, its `connection` field left out, the client's address and the
//!   scheme added; an answer's head is parsed for its length, its `connection` field left out.
//! - Bodies have a known length. What is malformed ends its connection.
//! - Connections to the backend are kept and used by any client.

use std::io::{self, BufRead, IoSlice, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection};

use super::ring::{self, Key, Service, Sockets};

const FIELDS_MAX: usize = 64;
/// Every client is on this host.
const FORWARDED: &[u8] = b"x-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: https\r\n\r\n";

/// Serves until it fails.
///
/// # Errors
/// As [`ring::serve`].
pub(super) fn serve(
    address: SocketAddr,
    backend: SocketAddr,
    tls: Arc<ServerConfig>,
) -> io::Result<()> {
    let (ends, idle, head) = (Vec::new(), Vec::new(), Vec::new());
    ring::serve(address, &mut Floor { backend, tls, ends, idle, head })
}

struct Floor {
    backend: SocketAddr,
    tls: Arc<ServerConfig>,
    /// By socket: what it is to us.
    ends: Vec<End>,
    /// Upstream sockets without a request.
    idle: Vec<Key>,
    /// An answer's head as it is sent; here so that it is allocated once.
    head: Vec<u8>,
}

enum End {
    Nothing,
    Client(Box<Client>),
    Upstream(Upstream),
}

struct Client {
    tls: ServerConnection,
    /// Decrypted and not yet forwarded.
    input: Vec<u8>,
    upstream: Option<Key>,
    /// Bytes of the request's body that are still to come.
    body: u64,
}

#[derive(Default)]
struct Upstream {
    client: Option<Key>,
    /// The beginning of an answer's head that did not arrive in one piece.
    input: Vec<u8>,
    /// Bytes of the answer's body that are still to come, once its head is there.
    body: Option<u64>,
}

impl Service for Floor {
    fn accepted(&mut self, sockets: &mut Sockets, socket: Key) {
        let Ok(mut tls) = ServerConnection::new(Arc::clone(&self.tls)) else {
            return sockets.close(socket);
        };
        // No back-pressure, see the module above.
        tls.set_buffer_limit(None);
        let client = Client { tls, input: Vec::new(), upstream: None, body: 0 };
        self.place(socket, End::Client(Box::new(client)));
    }

    fn received(&mut self, sockets: &mut Sockets, socket: Key, bytes: &[u8]) {
        let done = match std::mem::replace(&mut self.ends[socket], End::Nothing) {
            End::Client(mut client) => {
                let done = self.client_sent(sockets, socket, &mut client, bytes);
                self.ends[socket] = End::Client(client);
                done
            }
            End::Upstream(mut upstream) => {
                let done = self.backend_sent(sockets, socket, &mut upstream, bytes);
                self.ends[socket] = End::Upstream(upstream);
                done
            }
            End::Nothing => Ok(()),
        };
        if done.is_err() {
            self.closed(sockets, socket);
            sockets.close(socket);
        }
    }

    fn closed(&mut self, sockets: &mut Sockets, socket: Key) {
        let other = match std::mem::replace(&mut self.ends[socket], End::Nothing) {
            End::Client(client) => client.upstream,
            End::Upstream(upstream) => upstream.client,
            End::Nothing => None,
        };
        self.idle.retain(|idle| *idle != socket);
        if let Some(other) = other {
            self.ends[other] = End::Nothing;
            sockets.close(other);
        }
    }
}

impl Floor {
    fn place(&mut self, socket: Key, end: End) {
        if self.ends.len() <= socket {
            self.ends.resize_with(socket + 1, || End::Nothing);
        }
        self.ends[socket] = end;
    }

    fn client_sent(
        &mut self,
        sockets: &mut Sockets,
        socket: Key,
        client: &mut Client,
        mut bytes: &[u8],
    ) -> io::Result<()> {
        while !bytes.is_empty() {
            client.tls.read_tls(&mut bytes)?;
            client.tls.process_new_packets().map_err(io::Error::other)?;
            client.decrypted()?;
        }
        self.forward(sockets, socket, client)?;
        flush(&mut client.tls, sockets.output(socket))
    }

    /// Sends on what has arrived of the request, or of the next one if there is none under way.
    fn forward(
        &mut self,
        sockets: &mut Sockets,
        socket: Key,
        client: &mut Client,
    ) -> io::Result<()> {
        if client.upstream.is_none() {
            let Some(request) = Request::parse(&client.input)? else { return Ok(()) };
            let upstream = self.upstream(sockets, socket)?;
            request.write(&client.input, sockets.output(upstream))?;
            client.body = request.body;
            client.upstream = Some(upstream);
            client.input.drain(..request.head);
        }
        let Some(upstream) = client.upstream else { return Ok(()) };
        let body = within(client.body, client.input.len());
        if body > 0 {
            sockets.output(upstream).extend_from_slice(&client.input[..body]);
            client.input.drain(..body);
            client.body -= body as u64;
        }
        Ok(())
    }

    fn upstream(&mut self, sockets: &mut Sockets, client: Key) -> io::Result<Key> {
        let key = match self.idle.pop() {
            Some(key) => key,
            None => sockets.connect(self.backend)?,
        };
        self.place(key, End::Upstream(Upstream { client: Some(client), ..Upstream::default() }));
        Ok(key)
    }

    fn backend_sent(
        &mut self,
        sockets: &mut Sockets,
        socket: Key,
        upstream: &mut Upstream,
        bytes: &[u8],
    ) -> io::Result<()> {
        let Some(key) = upstream.client else { return Err(io::ErrorKind::InvalidData.into()) };
        let End::Client(mut client) = std::mem::replace(&mut self.ends[key], End::Nothing) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let answered = self.answer(upstream, &mut client, bytes);
        let mut done = answered.as_ref().map(drop).map_err(|error| error.kind().into());
        if let Ok(true) = answered {
            *upstream = Upstream::default();
            self.idle.push(socket);
            client.upstream = None;
            done = self.forward(sockets, key, &mut client);
        }
        done = done.and_then(|()| flush(&mut client.tls, sockets.output(key)));
        self.ends[key] = End::Client(client);
        done
    }

    /// Whether the answer is complete.
    fn answer(
        &mut self,
        upstream: &mut Upstream,
        client: &mut Client,
        bytes: &[u8],
    ) -> io::Result<bool> {
        let Some(left) = &mut upstream.body else {
            if upstream.input.is_empty() {
                return self.begin_answer(upstream, client, bytes);
            }
            let mut whole = std::mem::take(&mut upstream.input);
            whole.extend_from_slice(bytes);
            return self.begin_answer(upstream, client, &whole);
        };
        *left = left.checked_sub(bytes.len() as u64).ok_or(io::ErrorKind::InvalidData)?;
        let complete = *left == 0;
        client.tls.writer().write_all(bytes)?;
        Ok(complete)
    }

    fn begin_answer(
        &mut self,
        upstream: &mut Upstream,
        client: &mut Client,
        bytes: &[u8],
    ) -> io::Result<bool> {
        let Some((size, length)) = answer_head(bytes, &mut self.head)? else {
            upstream.input = bytes.to_vec();
            return Ok(false);
        };
        let body = &bytes[size..];
        let left = length.checked_sub(body.len() as u64).ok_or(io::ErrorKind::InvalidData)?;
        // In one record, as far as they fit.
        let parts = [IoSlice::new(&self.head), IoSlice::new(body)];
        let written = client.tls.writer().write_vectored(&parts)?;
        debug_assert_eq!(written, self.head.len() + body.len(), "the buffer has no limit");
        upstream.body = Some(left);
        Ok(left == 0)
    }
}

impl Client {
    /// Takes what TLS has decrypted.
    fn decrypted(&mut self) -> io::Result<()> {
        loop {
            let mut reader = self.tls.reader();
            let taken = match reader.fill_buf() {
                Ok([]) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => {
                    self.input.extend_from_slice(bytes);
                    bytes.len()
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            reader.consume(taken);
        }
    }
}

/// What matters of a request.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    /// Bytes of its head.
    head: usize,
    body: u64,
}

impl Request {
    /// `None` if the head is not complete.
    fn parse(bytes: &[u8]) -> io::Result<Option<Self>> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut request = httparse::Request::new(&mut fields);
        let httparse::Status::Complete(head) = request.parse(bytes).map_err(io::Error::other)?
        else {
            return Ok(None);
        };
        let body = length(request.headers)?.unwrap_or(0);
        Ok(Some(Self { head, body }))
    }

    /// Appends the head as the backend gets it.
    fn write(&self, bytes: &[u8], output: &mut Vec<u8>) -> io::Result<()> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut request = httparse::Request::new(&mut fields);
        request.parse(&bytes[..self.head]).map_err(io::Error::other)?;
        for part in [request.method.unwrap_or_default(), " ", request.path.unwrap_or_default()] {
            output.extend_from_slice(part.as_bytes());
        }
        output.extend_from_slice(b" HTTP/1.1\r\n");
        write_fields(request.headers, output);
        output.extend_from_slice(FORWARDED);
        Ok(())
    }
}

/// Sizes of the head and of the body, and in `head` what the client gets of it; `None` if it is not
/// complete.
fn answer_head(bytes: &[u8], head: &mut Vec<u8>) -> io::Result<Option<(usize, u64)>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(size) = response.parse(bytes).map_err(io::Error::other)? else {
        return Ok(None);
    };
    head.clear();
    let (code, reason) = (response.code.unwrap_or(0), response.reason.unwrap_or_default());
    write!(head, "HTTP/1.1 {code} {reason}\r\n")?;
    write_fields(response.headers, head);
    head.extend_from_slice(b"\r\n");
    let length = length(response.headers)?;
    let length = length.ok_or_else(|| io::Error::other("an answer without content-length"))?;
    Ok(Some((size, length)))
}

fn write_fields(fields: &[httparse::Header<'_>], output: &mut Vec<u8>) {
    for field in fields.iter().filter(|field| !field.name.eq_ignore_ascii_case("connection")) {
        for part in [field.name.as_bytes(), b": ", field.value, b"\r\n"] {
            output.extend_from_slice(part);
        }
    }
}

fn length(fields: &[httparse::Header<'_>]) -> io::Result<Option<u64>> {
    let named = |name: &str| fields.iter().find(|field| field.name.eq_ignore_ascii_case(name));
    if named("transfer-encoding").is_some() {
        return Err(io::Error::other("the floor knows bodies of a known length only"));
    }
    let Some(field) = named("content-length") else { return Ok(None) };
    let text = std::str::from_utf8(field.value).map_err(io::Error::other)?;
    text.trim().parse().map(Some).map_err(io::Error::other)
}

/// Appends to `output` what TLS has to send.
fn flush(tls: &mut ServerConnection, output: &mut Vec<u8>) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(output)?;
    }
    Ok(())
}

fn within(bytes: u64, available: usize) -> usize {
    usize::try_from(bytes).map_or(available, |bytes| bytes.min(available))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_loses_its_connection_field_and_tells_who_asks() {
        let bytes =
            b"POST /5 HTTP/1.1\r\nhost: a\r\nConnection: close\r\ncontent-length: 3\r\n\r\nabc";
        let request = Request::parse(bytes).unwrap().unwrap();
        assert_eq!(request, Request { head: bytes.len() - 3, body: 3 });
        let mut output = Vec::new();
        request.write(bytes, &mut output).unwrap();
        let text = String::from_utf8(output).unwrap();
        assert_eq!(
            text,
            "POST /5 HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\
             x-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: https\r\n\r\n"
        );
        assert_eq!(Request::parse(&bytes[..20]).unwrap(), None);
    }

    #[test]
    fn an_answer_needs_a_length() {
        let mut head = Vec::new();
        let bytes = b"HTTP/1.1 200 OK\r\nconnection: keep-alive\r\ncontent-length: 3\r\n\r\nab";
        let size = bytes.len() - 2;
        assert_eq!(answer_head(bytes, &mut head).unwrap(), Some((size, 3)));
        assert_eq!(head, b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n");
        assert_eq!(answer_head(&bytes[..30], &mut head).unwrap(), None);
        assert!(answer_head(b"HTTP/1.1 200 OK\r\n\r\n", &mut head).is_err());
    }
}
