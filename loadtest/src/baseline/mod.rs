//! Baselines: proxies without features, to hold gateways against.
//!
//! - [`floor`]: what TLS and HTTP/1.1 must cost on this machine at least, as far as we know how.
//! - [`relay`]: the same loop without TLS and HTTP: what the kernel takes of that.
//! - [`hyper_tokio`] and [`hyper_tokio_uring`]: what one gets by putting libraries together.
//!
//! Each has one thread, forwards to one backend over connections that it keeps, speaks TLS as the
//! gateways under test do and tells the backend the client's address and the scheme.
//! Deliberately not here: routes, limits, timeouts, logs, counters, reloading, error pages. In the
//! floor and the relay, back-pressure neither: what a client does not take is kept in memory.

mod floor;
mod hyper_tokio;
mod hyper_tokio_uring;
mod proxy;
mod relay;
#[allow(unsafe_code, reason = "shares memory with the kernel")]
mod ring;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::tls;

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// A bare io_uring loop with rustls and httparse, HTTP/1.1 only.
    Floor,
    /// The same loop without TLS and HTTP: bytes to and fro.
    Relay,
    /// hyper on both sides, tokio, tokio-rustls.
    HyperTokio,
    /// hyper on both sides, tokio-uring, tokio-rustls.
    HyperTokioUring,
}

/// What it serves.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Which one.
    #[arg(value_enum)]
    kind: Kind,
    /// Address and port to listen on.
    #[arg(long)]
    listen: SocketAddr,
    /// Where requests go.
    #[arg(long)]
    backend: SocketAddr,
    /// Certificates in PEM; the relay needs none.
    #[arg(long, required_if_eq_any([("kind", "floor"), ("kind", "hyper-tokio"), ("kind", "hyper-tokio-uring")]))]
    certificate: Option<PathBuf>,
    /// Private key in PEM; the relay needs none.
    #[arg(long, requires = "certificate")]
    key: Option<PathBuf>,
}

/// Serves until it is killed.
///
/// # Errors
/// The address cannot be bound, the certificate cannot be used, or the kernel denies io_uring.
pub(crate) fn run(options: &Options) -> io::Result<()> {
    let Options { kind, listen, backend, .. } = *options;
    let tls = |protocols: &[&str]| {
        let (Some(certificate), Some(key)) = (&options.certificate, &options.key) else {
            return Err(io::Error::other("--certificate and --key are needed"));
        };
        tls::server_config(certificate, key, protocols)
    };
    match kind {
        Kind::Floor => floor::serve(listen, backend, tls(&["http/1.1"])?),
        Kind::Relay => relay::serve(listen, backend),
        Kind::HyperTokio => hyper_tokio::serve(listen, backend, tls(&["h2", "http/1.1"])?),
        Kind::HyperTokioUring => {
            hyper_tokio_uring::serve(listen, backend, tls(&["h2", "http/1.1"])?)
        }
    }
}
