//! The generator's side of TLS: one version, one cipher suite, one group.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};

use super::connection::{Connection, Protocol};

const PATIENCE: Duration = Duration::from_secs(5);

/// A key exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// The elliptic curve alone.
    #[value(name = "x25519")]
    X25519,
    /// With the post-quantum KEM.
    #[value(name = "x25519mlkem768")]
    X25519MlKem768,
}

/// Makes connections of one client, which keeps its own tickets.
pub(super) struct Client {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    protocol: Protocol,
}

impl Client {
    pub(super) fn new(
        name: &str,
        group: Group,
        resume: bool,
        protocol: Protocol,
    ) -> io::Result<Self> {
        let mut provider = default_provider();
        provider.cipher_suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256];
        provider.kx_groups = match group {
            Group::X25519 => vec![kx_group::X25519],
            Group::X25519MlKem768 => vec![kx_group::X25519MLKEM768],
        };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Unverified))
            .with_no_client_auth();
        config.alpn_protocols = vec![match protocol {
            Protocol::Http1 => b"http/1.1".to_vec(),
            Protocol::Http2 => b"h2".to_vec(),
        }];
        config.resumption =
            if resume { Resumption::in_memory_sessions(8) } else { Resumption::disabled() };
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        Ok(Self { config: Arc::new(config), name, protocol })
    }

    pub(super) fn connect(&self, address: SocketAddr) -> io::Result<Connection> {
        Connection::new(address, self.tls()?, self.protocol)
    }

    /// The server's certificate, found out by a handshake that is waited for.
    pub(super) fn certificate(&self, address: SocketAddr) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut tls = self.tls()?;
        while tls.is_handshaking() {
            tls.complete_io(&mut stream)?;
        }
        let chain = tls.peer_certificates().unwrap_or_default();
        let first = chain.first().ok_or_else(|| io::Error::other("no certificate"))?;
        Ok(first.to_vec())
    }

    fn tls(&self) -> io::Result<ClientConnection> {
        ClientConnection::new(Arc::clone(&self.config), self.name.clone()).map_err(io::Error::other)
    }
}

/// Trusts everyone: the gateways' certificate is the load test's own.
#[derive(Debug)]
struct Unverified;

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::RSA_PSS_SHA256]
    }
}
