//! A connection, of TCP or a Unix socket, as an [`io::Stream`](crate::io::Stream).
//!
//! - Nothing is received before the first [`poll_fill`](Stream::poll_fill): a stream that is not
//!   read leaves its bytes with the kernel. Once it is read, it goes on receiving up to a bound.
//! - What is written during a turn leaves at its end, in one send.
//! - Dropping it stops its operations and closes it; the descriptor is closed when the kernel has
//!   confirmed that.
//!
//! An idle stream holds no receive or send buffer.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Buf;
use rustix::net::sockopt;

use crate::address::Address;
use crate::io::{Probed, Probes, Stream, Take};

use super::buffers::Chunk;
use super::engine::Engine;
use super::socket::{Connecting, HIGH_WATER_BYTES, Next, Socket, Writing};

/// How long to wait when an endpoint has too many connections to accept.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(10);

/// A connection, accepted or connected.
#[derive(Debug)]
pub struct TcpStream {
    engine: Rc<Engine>,
    socket: Rc<Socket>,
    /// The piece on loan. Invariant: not empty.
    lent: Option<Chunk>,
    /// Our address, of a connection that we made by TCP. Boxed: most were accepted.
    local: Option<Box<SocketAddr>>,
}

impl TcpStream {
    /// Takes over a connected socket. It has the mode that the driver wants.
    pub(super) fn adopt(engine: &Rc<Engine>, fd: OwnedFd) -> io::Result<Self> {
        let socket = Socket::new(fd);
        engine.driver.adopt(&socket)?;
        Ok(Self { engine: Rc::clone(engine), socket, lent: None, local: None })
    }

    /// Connects to `to`.
    pub(super) async fn connect(engine: Rc<Engine>, to: Address) -> io::Result<Self> {
        let fd = engine.driver.stream_socket(to)?;
        if let Address::Ip(_) = to {
            sockopt::set_tcp_nodelay(&fd, true)?;
        }
        let mut stream = Self::adopt(&engine, fd)?;
        engine.supplies.count(|counters| counters.connects += 1);
        while let Err(error) = stream.try_connect(to).await {
            // A Unix socket whose queue is full says so, where TCP's would wait by itself.
            if to.ip().is_some() || error.kind() != io::ErrorKind::WouldBlock {
                return Err(error);
            }
            engine.sleep(QUEUE_FULL_PAUSE).await;
        }
        let local = rustix::net::getsockname(&stream.socket.fd)?;
        stream.local = SocketAddr::try_from(local).ok().map(Box::new);
        Ok(stream)
    }

    async fn try_connect(&self, to: Address) -> io::Result<()> {
        self.engine.driver.connect(&self.socket, to)?;
        std::future::poll_fn(|cx| self.poll_connected(cx)).await
    }

    fn poll_connected(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        match self.socket.state.borrow().connecting {
            Connecting::Connected => Poll::Ready(Ok(())),
            Connecting::Failed(errno) => Poll::Ready(Err(errno.into())),
            Connecting::Pending(_) => {
                self.socket.reader.register(cx);
                Poll::Pending
            }
        }
    }

    /// Makes the oldest received piece the one on loan; `Ready(Ok(false))` at the end.
    fn poll_next(&mut self, cx: &Context<'_>) -> Poll<io::Result<bool>> {
        self.engine.driver.receive(&self.socket, self.engine.turn());
        let next = self.socket.state.borrow_mut().next()?;
        match next {
            Next::Chunk(chunk) => {
                self.lent = Some(chunk);
                Poll::Ready(Ok(true))
            }
            Next::Closed => Poll::Ready(Ok(false)),
            Next::Nothing => {
                self.socket.reader.register(cx);
                Poll::Pending
            }
        }
    }

    fn poll_unsent(&self, allowed: usize, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let state = self.socket.state.borrow();
        state.sendable()?;
        if state.unsent() <= allowed && (allowed > 0 || state.writing != Writing::Closing) {
            return Poll::Ready(Ok(()));
        }
        self.socket.writer.register(cx);
        Poll::Pending
    }
}

#[cfg(test)]
impl TcpStream {
    /// Bytes received and not consumed.
    pub(super) fn held(&self) -> usize {
        let lent = self.lent.as_ref().map_or(0, |chunk| chunk.bytes().len());
        self.socket.state.borrow().held() + lent
    }

    /// Bytes written that the kernel has not taken.
    pub(super) fn unsent(&self) -> usize {
        self.socket.state.borrow().unsent()
    }
}

impl Probed for TcpStream {
    fn local(&self) -> Option<SocketAddr> {
        self.local.as_deref().copied()
    }

    fn probe(&self, probes: Probes) -> io::Result<()> {
        let fd = &self.socket.fd;
        // The kernel counts in whole seconds, from one.
        let whole = |time: Duration| Duration::from_secs(time.as_secs().max(1));
        sockopt::set_socket_keepalive(fd, true)?;
        if let Some(max) = probes.max {
            sockopt::set_tcp_keepcnt(fd, max)?;
        }
        if let Some(after) = probes.after {
            sockopt::set_tcp_keepidle(fd, whole(after))?;
        }
        if let Some(interval) = probes.interval {
            sockopt::set_tcp_keepintvl(fd, whole(interval))?;
        }
        Ok(())
    }
}

impl Stream for TcpStream {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&mut [u8]>> {
        if self.lent.is_none() && !ready!(self.poll_next(cx))? {
            return Poll::Ready(Ok(&mut []));
        }
        Poll::Ready(Ok(self.lent.as_mut().map_or(&mut [], Chunk::bytes_mut)))
    }

    fn consume(&mut self, n: usize) {
        if n == 0 {
            return;
        }
        let lent = self.lent.as_mut().expect("consumed more than was lent");
        lent.consume(n);
        if lent.bytes().is_empty() {
            self.lent = None;
        }
    }

    fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_unsent(HIGH_WATER_BYTES - 1, cx)
    }

    fn write(&mut self, bytes: &[io::IoSlice<'_>]) -> io::Result<()> {
        self.append(|buffer| bytes.iter().for_each(|slice| buffer.extend_from_slice(slice)))
    }

    fn append(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut buffer = {
            let mut state = self.socket.state.borrow_mut();
            state.writable()?;
            std::mem::take(&mut state.gathered)
        };
        if buffer.capacity() == 0 {
            buffer = self.engine.supplies.spares.take();
        }
        // Foreign code: nothing is borrowed.
        fill(&mut buffer);
        if buffer.is_empty() {
            self.engine.supplies.spares.put(buffer);
            return Ok(());
        }
        let mut state = self.socket.state.borrow_mut();
        state.gathered = buffer;
        self.engine.supplies.mark_dirty(&self.socket, &mut state);
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_unsent(0, cx)
    }

    fn close_write(&mut self) {
        let mut state = self.socket.state.borrow_mut();
        if state.writing == Writing::Open {
            state.writing = Writing::Closing;
            self.engine.supplies.mark_dirty(&self.socket, &mut state);
        }
    }
}

impl Take for TcpStream {
    type Piece = Piece;

    fn take(&mut self, n: usize) -> Piece {
        assert_ne!(n, 0, "a piece has bytes");
        let mut lent = self.lent.take().expect("took more than was lent");
        if lent.bytes().len() == n {
            return Piece(lent);
        }
        let piece = Piece(Chunk::copy(&lent.bytes()[..n]));
        lent.consume(n);
        self.lent = Some(lent);
        piece
    }
}

/// Received bytes that left their stream; they occupy a receive buffer until they are dropped.
#[derive(Debug)]
pub struct Piece(Chunk);

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.0.bytes().len()
    }

    fn chunk(&self) -> &[u8] {
        self.0.bytes()
    }

    fn advance(&mut self, n: usize) {
        self.0.consume(n);
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        self.socket.reader.clear();
        self.socket.writer.clear();
        self.engine.driver.stop(&self.socket);
    }
}
