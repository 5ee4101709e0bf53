//! hyper on tokio-uring: one io_uring, one thread.
//!
//! tokio-uring takes buffers and gives them back; hyper and rustls lend theirs. [`Stream`] copies
//! in between, which is what anybody who puts the two together has to do.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_uring::BufResult;
use tokio_uring::net::{TcpListener, TcpStream};

use super::proxy::{Connect, Proxy};

const BUFFER_BYTES: usize = 16 * 1024;

/// Serves until it fails.
///
/// # Errors
/// The address cannot be bound or the kernel denies io_uring.
pub(super) fn serve(
    address: SocketAddr,
    backend: SocketAddr,
    tls: Arc<ServerConfig>,
) -> io::Result<()> {
    tokio_uring::start(accept(address, Proxy::new(backend, tls)))
}

async fn accept(address: SocketAddr, proxy: Proxy<Uring>) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    loop {
        let (stream, _) = listener.accept().await?;
        proxy.spawn(Stream::new(stream)?);
    }
}

struct Uring;

impl Connect for Uring {
    type Stream = Stream;

    async fn connect(address: SocketAddr) -> io::Result<Stream> {
        Stream::new(TcpStream::connect(address).await?)
    }
}

/// An operation under way and the buffer that it uses.
type Operation<T> = Pin<Box<dyn Future<Output = BufResult<T, Vec<u8>>>>>;

/// A socket of tokio-uring as tokio's traits want it.
struct Stream {
    socket: Rc<TcpStream>,
    reading: Side<usize>,
    /// What of the read buffer was not taken yet.
    taken: usize,
    writing: Side<()>,
}

enum Side<T> {
    Idle(Vec<u8>),
    Busy(Operation<T>),
}

impl<T> Side<T> {
    /// Waits for the operation, if one is under way.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self::Busy(operation) = self else { return Poll::Ready(Ok(())) };
        let (result, buffer) = ready!(operation.as_mut().poll(context));
        *self = Self::Idle(buffer);
        Poll::Ready(result.map(drop))
    }

    /// The buffer, which is empty until the operation that it is for is done.
    fn buffer(&mut self) -> Vec<u8> {
        match self {
            Self::Idle(buffer) => std::mem::take(buffer),
            Self::Busy(_) => Vec::new(),
        }
    }
}

impl Stream {
    fn new(socket: TcpStream) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        let (reading, writing) = (Side::Idle(Vec::new()), Side::Idle(Vec::new()));
        Ok(Self { socket: Rc::new(socket), reading, taken: 0, writing })
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.reading.poll(context))?;
            let taken = self.taken;
            if let Side::Idle(buffer) = &self.reading
                && taken < buffer.len()
            {
                let rest = &buffer[taken..];
                let size = rest.len().min(into.remaining());
                into.put_slice(&rest[..size]);
                self.taken += size;
                return Poll::Ready(Ok(()));
            }
            let mut buffer = self.reading.buffer();
            buffer.clear();
            buffer.reserve(BUFFER_BYTES);
            self.taken = 0;
            let socket = Rc::clone(&self.socket);
            self.reading = Side::Busy(Box::pin(async move { socket.read(buffer).await }));
            ready!(self.reading.poll(context))?;
            if matches!(&self.reading, Side::Idle(buffer) if buffer.is_empty()) {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.writing.poll(context))?;
        let mut buffer = self.writing.buffer();
        buffer.clear();
        buffer.extend_from_slice(&bytes[..bytes.len().min(BUFFER_BYTES)]);
        let size = buffer.len();
        let socket = Rc::clone(&self.socket);
        self.writing = Side::Busy(Box::pin(async move { socket.write_all(buffer).await }));
        // Begins it; who writes next or flushes waits for it.
        match self.writing.poll(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(size)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writing.poll(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.writing.poll(context))?;
        Poll::Ready(self.socket.shutdown(std::net::Shutdown::Write))
    }
}
