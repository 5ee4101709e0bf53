//! hyper on tokio: epoll, one thread.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;
use tokio::task::LocalSet;

use super::proxy::{Connect, Proxy};

/// Serves until it fails.
///
/// # Errors
/// The address cannot be bound.
pub(super) fn serve(
    address: SocketAddr,
    backend: SocketAddr,
    tls: Arc<ServerConfig>,
) -> io::Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
    LocalSet::new().block_on(&runtime, accept(address, &Proxy::new(backend, tls)))
}

async fn accept(address: SocketAddr, proxy: &Proxy<Tokio>) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        proxy.spawn(stream);
    }
}

struct Tokio;

impl Connect for Tokio {
    type Stream = TcpStream;

    async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}
