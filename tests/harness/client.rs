//! A blocking HTTP/1.1 client over TLS or plain TCP that sends what it is told, byte for byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls::{SupportedProtocolVersion, version};

use super::PATIENCE;
use super::certificate::Leaf;

/// How a client does TLS. Cloning shares the tickets.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
}

impl Tls {
    /// Every version, no ALPN, tickets kept.
    pub fn new(roots: RootCertStore) -> Self {
        Self::build(roots, rustls::DEFAULT_VERSIONS, aws_lc_rs::default_provider().kx_groups)
    }

    pub fn only_tls12(roots: RootCertStore) -> Self {
        Self::build(roots, &[&version::TLS12], aws_lc_rs::default_provider().kx_groups)
    }

    pub fn only_tls13(roots: RootCertStore) -> Self {
        Self::build(roots, &[&version::TLS13], aws_lc_rs::default_provider().kx_groups)
    }

    pub fn only_group(roots: RootCertStore, group: &'static dyn SupportedKxGroup) -> Self {
        Self::build(roots, rustls::DEFAULT_VERSIONS, vec![group])
    }

    fn build(
        roots: RootCertStore,
        versions: &[&'static SupportedProtocolVersion],
        kx_groups: Vec<&'static dyn SupportedKxGroup>,
    ) -> Self {
        let provider = CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::in_memory_sessions(64);
        Self { config: Arc::new(config) }
    }

    pub fn alpn(&self, protocols: &[&str]) -> Self {
        self.with(|config| {
            config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        })
    }

    /// Shows this certificate to servers that ask for one.
    pub fn identified(&self, leaf: &Leaf) -> Self {
        self.with(|config| {
            let key = PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).unwrap();
            let chain = CertificateDer::pem_slice_iter(leaf.chain_pem.as_bytes());
            let chain = chain.collect::<Result<_, _>>().unwrap();
            let key = CertifiedKey::from_der(chain, key, config.crypto_provider()).unwrap();
            config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(key));
        })
    }

    /// For who drives rustls alone.
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    pub fn without_sni(&self) -> Self {
        self.with(|config| config.enable_sni = false)
    }

    fn with(&self, change: impl FnOnce(&mut ClientConfig)) -> Self {
        let mut config = ClientConfig::clone(&self.config);
        change(&mut config);
        Self { config: Arc::new(config) }
    }

    /// Connects and completes the handshake.
    ///
    /// # Errors
    /// What the socket or rustls says.
    pub fn handshake(
        &self,
        to: SocketAddr,
        name: &str,
    ) -> std::io::Result<(TcpStream, ClientConnection)> {
        self.handshake_on(TcpStream::connect(to)?, name)
    }

    /// Completes the handshake on a connection that there is.
    ///
    /// # Errors
    /// What the socket or rustls says.
    pub fn handshake_on(
        &self,
        mut tcp: TcpStream,
        name: &str,
    ) -> std::io::Result<(TcpStream, ClientConnection)> {
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut tls =
            ClientConnection::new(Arc::clone(&self.config), name).map_err(std::io::Error::other)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut tcp)?;
        }
        // A client certificate or Finished may still wait to be sent.
        while tls.wants_write() {
            tls.write_tls(&mut tcp)?;
        }
        Ok((tcp, tls))
    }
}

/// One connection.
pub struct Client {
    stream: BufReader<Wire>,
    host: String,
}

enum Wire {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// An answer, its body complete.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Names in lower case, in the order of arrival.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
}

impl Client {
    /// # Errors
    /// The handshake failed.
    pub fn tls(tls: &Tls, to: SocketAddr, name: &str) -> std::io::Result<Self> {
        Self::tls_on(tls, TcpStream::connect(to)?, name)
    }

    /// The same on a connection that there is.
    ///
    /// # Errors
    /// The handshake failed.
    pub fn tls_on(tls: &Tls, tcp: TcpStream, name: &str) -> std::io::Result<Self> {
        let (tcp, connection) = tls.handshake_on(tcp, name)?;
        Ok(Self::new(Wire::Tls(Box::new(StreamOwned::new(connection, tcp))), name))
    }

    /// # Errors
    /// Nobody listens there.
    pub fn plain(to: SocketAddr, host: &str) -> std::io::Result<Self> {
        let tcp = TcpStream::connect(to)?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        Ok(Self::new(Wire::Plain(tcp), host))
    }

    fn new(wire: Wire, host: &str) -> Self {
        Self { stream: BufReader::with_capacity(64 * 1024, wire), host: host.to_owned() }
    }

    /// What the handshake agreed on.
    pub fn connection(&self) -> &ClientConnection {
        match self.stream.get_ref() {
            Wire::Tls(stream) => &stream.conn,
            Wire::Plain(_) => panic!("no TLS here"),
        }
    }

    pub fn certificate(&self) -> CertificateDer<'static> {
        self.connection().peer_certificates().unwrap()[0].clone().into_owned()
    }

    /// # Errors
    /// The connection broke.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self.stream.get_mut() {
            Wire::Plain(tcp) => tcp.write_all(bytes),
            Wire::Tls(tls) => tls.write_all(bytes).and_then(|()| tls.flush()),
        }
    }

    /// Sends a request of this head (`GET / `... without the final empty line is not needed: the
    /// host, the extra header lines and the end of the head are added) and reads the answer.
    ///
    /// # Errors
    /// The connection broke, or the answer is not HTTP.
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: &[u8],
    ) -> std::io::Result<Response> {
        let head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n{headers}\r\n", self.host);
        self.send(&[head.as_bytes(), body].concat())?;
        self.response(method)
    }

    /// # Panics
    /// When the request fails.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> Response {
        self.request("GET", path, "", b"").unwrap_or_else(|e| panic!("GET {path}: {e}"))
    }

    /// A POST with `content-length`.
    ///
    /// # Panics
    /// When the request fails.
    #[track_caller]
    pub fn post(&mut self, path: &str, body: &[u8]) -> Response {
        let length = format!("content-length: {}\r\n", body.len());
        self.request("POST", path, &length, body).unwrap_or_else(|e| panic!("POST {path}: {e}"))
    }

    /// Reads the answer to a request of `method`; interim answers are skipped, except 101.
    ///
    /// # Errors
    /// The connection broke, or the answer is not HTTP.
    pub fn response(&mut self, method: &str) -> std::io::Result<Response> {
        loop {
            let mut response = self.response_head()?;
            if response.status == 101 {
                return Ok(response);
            }
            if response.status >= 200 {
                self.read_body(method, &mut response)?;
                return Ok(response);
            }
        }
    }

    /// Reads one head, interim or not.
    ///
    /// # Errors
    /// The connection broke, or it is not HTTP.
    pub fn response_head(&mut self) -> std::io::Result<Response> {
        let line = self.line()?;
        let (_, rest) = line.split_once(' ').ok_or_else(|| invalid(&line))?;
        let code = rest.split(' ').next().unwrap_or_default();
        Ok(Response {
            status: code.parse().map_err(|_| invalid(&line))?,
            headers: self.fields()?,
            body: Vec::new(),
            trailers: Vec::new(),
        })
    }

    /// Exactly `n` bytes, past any HTTP: for upgraded connections.
    ///
    /// # Errors
    /// The connection ended before.
    pub fn read_exact(&mut self, n: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; n];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// All bytes until the peer closes, whether it says goodbye or not.
    pub fn read_to_close(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A reset or a missing close_notify is an end as well; what came before it counts.
        let _ = self.stream.read_to_end(&mut bytes);
        bytes
    }

    fn read_body(&mut self, method: &str, response: &mut Response) -> std::io::Result<()> {
        if method == "HEAD" || matches!(response.status, 204 | 304) {
            return Ok(());
        }
        if response.header("transfer-encoding").is_some_and(|value| value == "chunked") {
            return self.read_chunks(response);
        }
        match response.header("content-length").map(str::parse) {
            Some(length) => {
                let length = length.map_err(|_| invalid("content-length"))?;
                response.body = self.read_exact(length)?;
            }
            None => {
                self.stream.read_to_end(&mut response.body)?;
            }
        }
        Ok(())
    }

    fn read_chunks(&mut self, response: &mut Response) -> std::io::Result<()> {
        loop {
            let line = self.line()?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| invalid(&line))?;
            if size == 0 {
                response.trailers = self.fields()?;
                return Ok(());
            }
            response.body.extend(self.read_exact(size)?);
            if self.read_exact(2)? != b"\r\n" {
                return Err(invalid("the end of a chunk"));
            }
        }
    }

    fn fields(&mut self) -> std::io::Result<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) = line.split_once(':').ok_or_else(|| invalid(&line))?;
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end_matches("\r\n").to_owned())
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Response {
    /// The first field of this name (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

fn invalid(what: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, format!("not HTTP: {what:?}"))
}
