//! The server behind every gateway, as cheap as it can be.
//!
//! - HTTP/1.1 on any number of ports; if asked for, inside TLS on one more, and HTTP/2 on another.
//! - A path that ends in `/N` is answered with N bytes; a request body is read and thrown away.
//! - `/-/counters` tells what was seen, by which a measurement shows that the gateway did what the
//!   scenario is about; it and its connection do not count.

mod http1;
mod http2;

use std::fmt;
use std::io;
use std::net::{self, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use clap::Args;
use mio::net::TcpListener;

use crate::tls;
use http1::{Port, Server};
use http2::Tally;

/// Ports that are told apart in [`Counters`].
pub(crate) const ENDPOINTS: usize = 16;
const FILLER: &[u8] = &[b'x'; 256 * 1024];

/// What to serve.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Where to listen.
    #[arg(default_value = "127.0.0.1:0")]
    address: SocketAddr,
    /// How many ports serve HTTP/1.1; those beyond ADDRESS are any that are free, like all others.
    #[arg(long, default_value_t = 1)]
    ports: usize,
    /// Serve HTTP/1.1 over TLS as well: certificates in PEM.
    #[arg(long, requires = "key")]
    certificate: Option<PathBuf>,
    /// Private key in PEM.
    #[arg(long, requires = "certificate")]
    key: Option<PathBuf>,
    /// Serve HTTP/2 without TLS as well.
    #[arg(long)]
    http2: bool,
}

/// Where a backend listens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub http: Vec<SocketAddr>,
    /// At most one.
    pub https: Vec<SocketAddr>,
    /// At most one.
    pub http2: Vec<SocketAddr>,
}

/// One line, as [`Addresses::parse`] reads it.
impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = |addresses: &[SocketAddr], scheme: &str| -> Vec<String> {
            addresses.iter().map(|address| format!("{scheme}://{address}")).collect()
        };
        let all = [(&self.http, "http"), (&self.https, "https"), (&self.http2, "h2c")];
        let all = all.map(|(addresses, scheme)| named(addresses, scheme)).concat();
        f.write_str(&all.join(" "))
    }
}

impl Addresses {
    /// `None` if `line` is not from a backend.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut found = Self::default();
        for address in line.split_whitespace() {
            let (scheme, address) = address.split_once("://")?;
            let list = match scheme {
                "http" => &mut found.http,
                "https" => &mut found.https,
                "h2c" => &mut found.http2,
                _ => return None,
            };
            list.push(address.parse().ok()?);
        }
        (!found.http.is_empty()).then_some(found)
    }
}

/// What the backend saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Connections that carried at least one counted request.
    pub accepted: u64,
    pub requests: u64,
    /// Bytes of bodies, received and sent.
    pub bytes: u64,
    /// Requests with `x-forwarded-for`.
    pub forwarded: u64,
    /// Requests inside TLS.
    pub tls: u64,
    /// Requests over HTTP/2.
    pub http2: u64,
    /// Requests with an `x-user` that was seen at another port, since counters were last asked for.
    pub strays: u64,
    /// Requests at each of the ports of HTTP/1.1 without TLS.
    pub ports: [u64; ENDPOINTS],
}

impl Counters {
    /// What came after `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            accepted: self.accepted - earlier.accepted,
            requests: self.requests - earlier.requests,
            bytes: self.bytes - earlier.bytes,
            forwarded: self.forwarded - earlier.forwarded,
            tls: self.tls - earlier.tls,
            http2: self.http2 - earlier.http2,
            strays: self.strays - earlier.strays,
            ports: std::array::from_fn(|port| self.ports[port] - earlier.ports[port]),
        }
    }

    /// `self` as [`Counters::parse`] reads it.
    fn text(&self) -> String {
        let Self { accepted, requests, bytes, forwarded, tls, http2, strays, ports } = self;
        let ports = ports.map(|requests| requests.to_string()).join(",");
        format!(
            "accepted={accepted} requests={requests} bytes={bytes} forwarded={forwarded} \
             tls={tls} http2={http2} strays={strays} ports={ports}"
        )
    }

    /// `None` if `text` is not from a backend.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split_whitespace();
        let mut next = |name: &str| fields.next()?.strip_prefix(name);
        let mut number = |name: &str| next(name)?.parse().ok();
        Some(Self {
            accepted: number("accepted=")?,
            requests: number("requests=")?,
            bytes: number("bytes=")?,
            forwarded: number("forwarded=")?,
            tls: number("tls=")?,
            http2: number("http2=")?,
            strays: number("strays=")?,
            ports: ports(next("ports=")?)?,
        })
    }
}

fn ports(text: &str) -> Option<[u64; ENDPOINTS]> {
    let numbers: Option<Vec<_>> = text.split(',').map(|number| number.parse().ok()).collect();
    numbers?.try_into().ok()
}

/// How many bytes `path` asks for.
fn wanted(path: &str) -> u64 {
    path.rsplit('/').next().and_then(|last| last.parse().ok()).unwrap_or(0)
}

/// Serves until it is killed. The bound addresses are printed as the first line.
///
/// # Errors
/// An address cannot be bound, a certificate cannot be used, or the system refuses to wait for
/// events.
pub(crate) fn run(options: &Options) -> io::Result<()> {
    let (addresses, server) = bound(options)?;
    println!("{addresses}");
    server.serve()
}

/// What serves HTTP/2 does so already, on a thread of its own.
fn bound(options: &Options) -> io::Result<(Addresses, Server)> {
    let any = SocketAddr::new(options.address.ip(), 0);
    let (mut addresses, mut ports) = (Addresses::default(), Vec::new());
    for number in 0..options.ports {
        let listener = listen(if number == 0 { options.address } else { any })?;
        addresses.http.push(listener.local_addr()?);
        let listener = TcpListener::from_std(listener);
        ports.push(Port { listener, tls: None });
    }
    if let (Some(certificate), Some(key)) = (&options.certificate, &options.key) {
        let tls = Some(tls::server_config(certificate, key, &["http/1.1"])?);
        let listener = listen(any)?;
        addresses.https.push(listener.local_addr()?);
        let listener = TcpListener::from_std(listener);
        ports.push(Port { listener, tls });
    }
    let tally = Arc::new(Tally::default());
    if options.http2 {
        let listener = listen(any)?;
        addresses.http2.push(listener.local_addr()?);
        let tally = Arc::clone(&tally);
        thread::spawn(move || http2::serve(listener, &tally));
    }
    Ok((addresses, Server::new(ports, tally)?))
}

/// Connections that wait to be accepted: thousands when a gateway opens one for each stream at once.
/// A connection that finds no room is tried again by the kernel a second later.
const BACKLOG: i32 = 4096;

fn listen(address: SocketAddr) -> io::Result<net::TcpListener> {
    let listener = net::TcpListener::bind(address)?;
    // The standard library's queue has room for 128.
    rustix::net::listen(&listener, BACKLOG)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::{Authority, BACKEND};
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName};
    use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
    use std::io::{Read, Write};
    use std::time::Duration;

    const ASK: &[u8] = b"GET /-/counters HTTP/1.1\r\nhost: a\r\n\r\n";

    fn started(options: &[&str]) -> Addresses {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            options: Options,
        }
        let cli: Cli = clap::Parser::parse_from([&["backend"], options].concat());
        let (addresses, server) = bound(&cli.options).unwrap();
        thread::spawn(move || server.serve());
        addresses
    }

    fn connect(address: SocketAddr) -> net::TcpStream {
        net::TcpStream::connect(address).unwrap()
    }

    /// The answer's head and body.
    fn exchange(stream: &mut (impl Read + Write), request: &[u8]) -> (String, String) {
        stream.write_all(request).unwrap();
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let (_, length) = head.split_once("content-length: ").unwrap();
        let mut body = vec![0; length.trim().parse().unwrap()];
        stream.read_exact(&mut body).unwrap();
        (head, String::from_utf8(body).unwrap())
    }

    fn counters(addresses: &Addresses) -> Counters {
        let (_, body) = exchange(&mut connect(addresses.http[0]), ASK);
        Counters::parse(&body).unwrap()
    }

    #[test]
    fn bodies_are_counted() {
        let addresses = started(&[]);
        let mut stream = connect(addresses.http[0]);
        for _ in 0..2 {
            let (_, body) = exchange(&mut stream, b"GET /62 HTTP/1.1\r\nhost: a\r\n\r\n");
            assert_eq!(body, "x".repeat(62));
        }
        let (_, body) = exchange(&mut stream, b"GET /3000000 HTTP/1.1\r\nhost: a\r\n\r\n");
        assert_eq!(body.len(), 3_000_000);
        let upload = b"POST /a/b/1 HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello";
        exchange(&mut stream, upload);
        let (_, told) = exchange(&mut stream, ASK);
        let mut expected = Counters { accepted: 1, requests: 4, ..Counters::default() };
        expected.bytes = 2 * 62 + 3_000_000 + 5 + 1;
        expected.ports[0] = 4;
        assert_eq!(Counters::parse(&told), Some(expected));
    }

    #[test]
    fn hundreds_of_connections_are_made_at_once() {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let (address, patience) = (listener.local_addr().unwrap(), Duration::from_millis(900));
        // Nobody accepts. Without room the kernel would try again after a second.
        let connect = |_| net::TcpStream::connect_timeout(&address, patience).unwrap();
        assert_eq!((0..600).map(connect).collect::<Vec<_>>().len(), 600);
    }

    #[test]
    fn pipelined_requests_are_answered_in_order() {
        let mut stream = connect(started(&[]).http[0]);
        let request =
            b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\nPOST /2 HTTP/1.1\r\ncontent-length: 1\r\n\r\n";
        assert_eq!(exchange(&mut stream, request).1, "x");
        assert_eq!(exchange(&mut stream, b"b").1, "xx");
    }

    #[test]
    fn a_user_at_a_second_port_is_a_stray() {
        let addresses = started(&["--ports=3"]);
        let ask = |port: usize, user: &str| {
            let request =
                format!("GET /1 HTTP/1.1\r\nx-user: {user}\r\nx-forwarded-for: b\r\n\r\n");
            exchange(&mut connect(addresses.http[port]), request.as_bytes());
        };
        for (port, user) in [(0, "a"), (2, "b"), (0, "a"), (1, "b")] {
            ask(port, user);
        }
        let first = counters(&addresses);
        assert_eq!((first.strays, first.forwarded, &first.ports[..3]), (1, 4, &[2, 1, 1][..]));
        // Whoever has asked for the counters begins anew.
        ask(1, "a");
        assert_eq!(counters(&addresses).since(&first).strays, 0);
    }

    #[test]
    fn large_bodies_pass_through_tls() {
        let dir = tempfile::tempdir().unwrap();
        let files = Authority::create(dir.path()).unwrap();
        let option = |name: &str, path: &PathBuf| format!("--{name}={}", path.display());
        let (certificate, key) =
            (option("certificate", &files.certificate), option("key", &files.key));
        let addresses = started(&[&certificate, &key]);
        let tls = |ca: &PathBuf| {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            let name = ServerName::try_from(BACKEND).unwrap();
            let client = ClientConnection::new(Arc::new(config), name).unwrap();
            StreamOwned::new(client, connect(addresses.https[0]))
        };
        let mut stream = tls(&files.ca);
        for bytes in [62, 3_000_000] {
            let request = format!("GET /{bytes} HTTP/1.1\r\nhost: a\r\n\r\n");
            assert_eq!(exchange(&mut stream, request.as_bytes()).1.len(), bytes);
        }
        let seen = counters(&addresses);
        assert_eq!((seen.accepted, seen.tls, seen.ports), (1, 2, [0; ENDPOINTS]));
        let error = tls(&files.stranger).write_all(b"GET").unwrap_err();
        assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    }

    #[test]
    fn http2_is_counted_too() {
        let addresses = started(&["--http2"]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let status = runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(addresses.http2[0]).await.unwrap();
            let stream = hyper_util::rt::TokioIo::new(stream);
            let executor = hyper_util::rt::TokioExecutor::new();
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(executor, stream).await.unwrap();
            tokio::spawn(connection);
            let request = hyper::Request::get("http://a/62").header("x-forwarded-for", "b");
            sender.send_request(request.body(String::new()).unwrap()).await.unwrap().status()
        });
        assert_eq!(status, 200);
        let (requests, bytes) = (1, 62);
        let expected = Counters { accepted: 1, requests, bytes, ..Counters::default() };
        assert_eq!(counters(&addresses), Counters { http2: 1, forwarded: 1, ..expected });
    }

    #[test]
    fn what_is_printed_is_read_back() {
        let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let addresses = Addresses {
            http: vec![address(1), address(2)],
            https: vec![address(3)],
            http2: vec![address(4)],
        };
        let line = addresses.to_string();
        assert_eq!(
            line,
            "http://127.0.0.1:1 http://127.0.0.1:2 https://127.0.0.1:3 h2c://127.0.0.1:4"
        );
        assert_eq!(Addresses::parse(&line), Some(addresses));
        assert_eq!(Addresses::parse(""), None);
        let mut counters = Counters { accepted: 1, strays: 7, ..Counters::default() };
        counters.ports[15] = 9;
        assert_eq!(Counters::parse(&counters.text()), Some(counters));
        assert_eq!(counters.since(&counters), Counters::default());
        assert_eq!(Counters::parse("accepted=1"), None);
    }
}
