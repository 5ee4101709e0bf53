//! An HTTP/1.1 backend of plain blocking threads whose behaviour is in the path.
//!
//! | path | answer |
//! |---|---|
//! | `/status/N` | status N, body `status N` |
//! | `/name` | the backend's name |
//! | `/head` | the request's head, byte for byte as it arrived |
//! | `/body` | the request's body |
//! | `/sum` | length and checksum of the request's body, and its trailers |
//! | `/bytes/N` | N bytes of [`pattern`](super::pattern) |
//! | `/chunked/N` | the same, chunked, in pieces of uneven size |
//! | `/trailers` | a chunked body with a trailer section |
//! | `/hop` | an answer full of hop-by-hop headers |
//! | `/hold` | answers only after [`Backend::release`] |
//! | `/early` | an interim 103 before the answer |
//! | `/late` | the head at once, the body after [`Backend::release`] |
//! | `/close` | closes instead of answering |
//! | `/cut` | promises 100 bytes, sends 10, closes |
//! | `/garbage` | answers with something that is not HTTP |
//! | `/bye` | answers with `connection: close` and closes |
//! | `/websocket` | switches protocols, then echoes bytes |

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use super::{checksum, eventually, pattern};

/// A running backend; it stops accepting when dropped.
pub struct Backend {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    connections: AtomicUsize,
    requests: AtomicUsize,
    stopped: AtomicBool,
    released: Mutex<bool>,
    release: Condvar,
}

impl Backend {
    pub fn start(name: &str) -> Self {
        Self::start_at(name, (Ipv4Addr::LOCALHOST, 0).into())
    }

    pub fn start_at(name: &str, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            connections: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            released: Mutex::new(false),
            release: Condvar::new(),
        });
        thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Self { address, shared }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Requests whose head was read so far.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// Waits until `n` requests have arrived.
    pub fn wait_requests(&self, n: usize) {
        eventually(&format!("{n} requests at the backend"), || self.requests() >= n);
    }

    /// Lets `/hold` and `/late` go on, those that wait and all later ones.
    pub fn release(&self) {
        *self.shared.released.lock().unwrap() = true;
        self.shared.release.notify_all();
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.release();
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread; when that fails it is gone already.
        drop(TcpStream::connect(self.address));
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stopped.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        shared.connections.fetch_add(1, Ordering::SeqCst);
        let shared = Arc::clone(shared);
        // A broken connection is the peer's affair: the thread ends.
        thread::spawn(move || drop(serve(&stream, &shared)));
    }
}

fn serve(stream: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some(head) = read_head(&mut reader)? {
        shared.requests.fetch_add(1, Ordering::SeqCst);
        let request = Request::new(head);
        if request.header("expect").is_some() {
            (&*stream).write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        if !answer(&request, &mut reader, stream, shared)? {
            return Ok(());
        }
    }
    Ok(())
}

/// Answers one request; false ends the connection.
fn answer(
    request: &Request,
    reader: &mut BufReader<&TcpStream>,
    mut out: &TcpStream,
    shared: &Shared,
) -> std::io::Result<bool> {
    let (first, argument) = request.path_parts();
    let number = argument.parse().unwrap_or(0);
    if first == "websocket" {
        return websocket(request, reader, out).map(|()| false);
    }
    let (body, trailers) = read_body(request, reader)?;
    match first {
        "status" => plain(out, number, format!("status {number}").as_bytes(), request)?,
        "head" => plain(out, 200, request.head.as_bytes(), request)?,
        "body" => plain(out, 200, &body, request)?,
        "sum" => {
            let text = format!("{} {:x} {trailers}", body.len(), checksum(&body));
            plain(out, 200, text.as_bytes(), request)?;
        }
        "bytes" => plain(out, 200, &pattern(number), request)?,
        "chunked" => chunked(out, &pattern(number), "")?,
        "trailers" => chunked(out, b"with trailers", "x-checksum: 1234\r\n")?,
        "hop" => out.write_all(HOP)?,
        "hold" => {
            shared.wait_released();
            plain(out, 200, b"held", request)?;
        }
        "early" => {
            out.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n")?;
            plain(out, 200, b"early", request)?;
        }
        "late" => {
            out.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n")?;
            shared.wait_released();
            out.write_all(b"late")?;
        }
        "cut" => out.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n0123456789")?,
        "garbage" => out.write_all(b"SSH-2.0-not-http\r\n\r\n")?,
        "bye" => {
            let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 3\r\n\r\nbye";
            out.write_all(head.as_bytes())?;
        }
        "close" => {}
        _ => plain(out, 200, shared.name.as_bytes(), request)?,
    }
    Ok(!matches!(first, "close" | "cut" | "garbage" | "bye"))
}

const HOP: &[u8] = b"HTTP/1.1 200 OK\r\n\
    connection: keep-alive, x-private\r\n\
    keep-alive: timeout=5\r\n\
    x-private: secret\r\n\
    x-public: kept\r\n\
    server: backend/1.0\r\n\
    proxy-connection: keep-alive\r\n\
    content-length: 3\r\n\r\nhop";

fn plain(
    mut out: &TcpStream,
    status: usize,
    body: &[u8],
    request: &Request,
) -> std::io::Result<()> {
    let bodiless = matches!(status, 204 | 304);
    let length =
        if bodiless { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    let head = format!("HTTP/1.1 {status} Whatever\r\n{length}server: backend/1.0\r\n\r\n");
    let body = if bodiless || request.method() == "HEAD" { &[] } else { body };
    out.write_all(&[head.as_bytes(), body].concat())
}

fn chunked(mut out: &TcpStream, mut body: &[u8], trailers: &str) -> std::io::Result<()> {
    // A client learns which trailers to expect; hyper passes no others on to HTTP/1.1.
    let announced = trailers.split_once(':').map(|(name, _)| format!("trailer: {name}\r\n"));
    let announced = announced.unwrap_or_default();
    let head = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n{announced}\r\n");
    out.write_all(head.as_bytes())?;
    let mut size = 1;
    while !body.is_empty() {
        let (piece, rest) = body.split_at(size.min(body.len()));
        out.write_all(&[format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat())?;
        body = rest;
        size = size * 7 % 30_011 + 1;
    }
    out.write_all(format!("0\r\n{trailers}\r\n").as_bytes())
}

fn websocket(
    request: &Request,
    reader: &mut BufReader<&TcpStream>,
    mut out: &TcpStream,
) -> std::io::Result<()> {
    let upgrade = request.header("upgrade").unwrap_or_default();
    let key = request.header("sec-websocket-key").unwrap_or_default();
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: {upgrade}\r\n\
         x-seen-key: {key}\r\n\r\n"
    );
    out.write_all(head.as_bytes())?;
    let mut bytes = [0; 4096];
    loop {
        let n = reader.read(&mut bytes)?;
        if n == 0 {
            return out.shutdown(std::net::Shutdown::Write);
        }
        out.write_all(&bytes[..n])?;
    }
}

impl Shared {
    fn wait_released(&self) {
        let released = self.released.lock().unwrap();
        drop(self.release.wait_while(released, |released| !*released).unwrap());
    }
}

struct Request {
    /// From the request line to the empty line, which is included.
    head: String,
}

impl Request {
    fn new(head: String) -> Self {
        Self { head }
    }

    fn method(&self) -> &str {
        self.head.split(' ').next().unwrap()
    }

    /// `/status/200?x` as `("status", "200")`.
    fn path_parts(&self) -> (&str, &str) {
        let target = self.head.split(' ').nth(1).unwrap_or_default();
        let path = target.split('?').next().unwrap_or_default().trim_start_matches('/');
        path.split_once('/').unwrap_or((path, ""))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }
}

fn read_head(reader: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let mut head = String::new();
    loop {
        let start = head.len();
        if reader.read_line(&mut head)? == 0 {
            return Ok(None);
        }
        if &head[start..] == "\r\n" {
            return Ok(Some(head));
        }
    }
}

/// The body and the text of its trailer section.
fn read_body(request: &Request, reader: &mut impl BufRead) -> std::io::Result<(Vec<u8>, String)> {
    let mut body = Vec::new();
    if let Some(length) = request.header("content-length") {
        body.resize(length.parse().unwrap(), 0);
        reader.read_exact(&mut body)?;
    }
    if request.header("transfer-encoding").is_none() {
        return Ok((body, String::new()));
    }
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim().split(';').next().unwrap(), 16).unwrap();
        if size == 0 {
            break;
        }
        let start = body.len();
        body.resize(start + size + 2, 0);
        reader.read_exact(&mut body[start..])?;
        body.truncate(start + size);
    }
    let mut trailers = String::new();
    while !trailers.ends_with("\r\n\r\n") && trailers != "\r\n" {
        if reader.read_line(&mut trailers)? == 0 {
            break;
        }
    }
    Ok((body, trailers.trim().replace("\r\n", ";")))
}
