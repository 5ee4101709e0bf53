//! Accepts connections.
//!
//! - Accepted connections wait in a short queue for [`Listener::accept`]; when it is full, they
//!   wait in the kernel's.
//! - TCP_NODELAY is set on a listening socket of TCP, from which connections inherit it.
//! - Closing hands out every connection that the kernel had completed; dropping loses them.
//! - An [`Accepted`] belongs to no thread: until it is opened, any thread's runtime may have it.
//!
//! It does not bind: whoever does decides on SO_REUSEPORT and the backlog.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{SocketFlags, acceptfrom_with, getsockname};

use crate::address::{Address, PipePath, canonical};

use super::engine::{self, Engine};
use super::handle::Sleep;
use super::slot::Key;
use super::stream::TcpStream;
use super::wake::Waiter;

/// Accepted connections that may wait for `accept`.
const QUEUE_MAX: usize = 16;
/// How long to wait when descriptors, memory or a permission lack: closing a file takes about that
/// long.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    engine: Rc<Engine>,
    socket: Rc<Listening>,
    /// Runs while descriptors, memory or a permission lack.
    pause: Option<Sleep>,
}

/// An accepted connection, of which nothing was read. Dropping it closes it.
#[derive(Debug)]
pub struct Accepted {
    socket: OwnedFd,
    /// The mode that it was accepted with.
    flags: SocketFlags,
    /// Who connected. IPv4 is never written as IPv6; to a Unix socket nobody has a name: it would
    /// be one that the client chose.
    pub peer: Address,
    /// What it connected to.
    pub local: Address,
}

/// What the kernel accepted, with the peer's address where it is of IP.
pub(super) type Connection = (OwnedFd, Option<SocketAddr>);

/// A listening socket as the drivers see it.
#[derive(Debug)]
pub(super) struct Listening {
    pub(super) socket: OwnedFd,
    pub(super) acceptor: Waiter,
    pub(super) state: RefCell<State>,
    /// `None` when it listens on all addresses, so that each connection has its own.
    local: Option<Address>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Accepted and not handed out.
    pub(super) accepted: VecDeque<Connection>,
    /// Accepts that the kernel has (io_uring).
    pub(super) armed: Vec<Key>,
    pub(super) error: Option<Errno>,
    /// Nothing more is to be accepted by the driver.
    pub(super) closing: bool,
    /// Its registration, and whether an accept is worth a try (epoll).
    pub(super) registration: Option<Key>,
    pub(super) drained: bool,
}

impl Listener {
    pub(super) fn new(engine: Rc<Engine>, socket: OwnedFd) -> io::Result<Self> {
        rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
        let local = SocketAddr::try_from(getsockname(&socket)?)?;
        let local = Some(local).filter(|local| !local.ip().is_unspecified());
        Self::on(engine, socket, local.map(Address::Ip))
    }

    /// On a Unix socket, at `path`.
    pub(super) fn of_pipe(engine: Rc<Engine>, socket: OwnedFd, path: PipePath) -> io::Result<Self> {
        Self::on(engine, socket, Some(Address::Pipe(path)))
    }

    fn on(engine: Rc<Engine>, socket: OwnedFd, local: Option<Address>) -> io::Result<Self> {
        let (acceptor, state) = (Waiter::default(), RefCell::default());
        let socket = Rc::new(Listening { socket, acceptor, state, local });
        engine.driver.listen(&socket)?;
        Ok(Self { engine, socket, pause: None })
    }

    /// The address and port where it listens.
    ///
    /// # Errors
    /// The kernel does not tell, or it is a Unix socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(getsockname(&self.socket.socket)?.try_into()?)
    }

    /// The next connection. Dropping the future loses none.
    ///
    /// # Errors
    /// The listening socket itself broke. Errors of single connections are passed over, and when
    /// descriptors or memory run out it waits for some to come back.
    pub async fn accept(&mut self) -> io::Result<Accepted> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// Stops listening and hands out the connections that nobody has accepted yet.
    pub async fn close(self) -> Vec<Accepted> {
        self.engine.driver.stop_accepting(&self.socket);
        poll_fn(|cx| self.poll_stopped(cx)).await;
        self.drain_queue();
        let accepted = std::mem::take(&mut self.socket.state.borrow_mut().accepted);
        accepted.into_iter().filter_map(|connection| self.describe(connection).ok()).collect()
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        loop {
            if let Some(accepted) = self.take_queued() {
                return Poll::Ready(Ok(accepted));
            }
            if let Some(pause) = &mut self.pause {
                // Accepts that were under way may still succeed.
                self.socket.acceptor.register(cx);
                ready!(Future::poll(Pin::new(pause), cx));
                self.pause = None;
            }
            let error = self.socket.state.borrow().error;
            match error {
                Some(errno) if is_shortage(errno) => self.wait_out_shortage(),
                Some(errno) => return Poll::Ready(Err(errno.into())),
                None => {
                    self.engine.driver.accept(&self.socket);
                    ready!(self.socket.poll_outcome(cx));
                }
            }
        }
    }

    /// The connection that waits longest. Those whose address the kernel does not tell are dropped.
    fn take_queued(&self) -> Option<Accepted> {
        loop {
            let connection = self.socket.state.borrow_mut().accepted.pop_front()?;
            if let Ok(accepted) = self.describe(connection) {
                return Some(accepted);
            }
            count_refused(&self.engine);
        }
    }

    fn wait_out_shortage(&mut self) {
        self.socket.state.borrow_mut().error = None;
        count_refused(&self.engine);
        self.pause = Some(self.engine.sleep(REFUSED_PAUSE));
    }

    fn describe(&self, (socket, peer): Connection) -> io::Result<Accepted> {
        let flags = self.engine.driver.socket_flags();
        let local = match self.socket.local {
            Some(local @ Address::Pipe(_)) => {
                let peer = Address::Pipe(PipePath::UNNAMED);
                return Ok(Accepted { socket, flags, peer, local });
            }
            Some(Address::Ip(local)) => local,
            None => SocketAddr::try_from(getsockname(&socket)?)?,
        };
        let peer = peer.ok_or(Errno::AFNOSUPPORT)?;
        let (peer, local) = (canonical(peer).into(), canonical(local).into());
        Ok(Accepted { socket, flags, peer, local })
    }

    fn poll_stopped(&self, cx: &Context<'_>) -> Poll<()> {
        if self.socket.state.borrow().armed.is_empty() {
            return Poll::Ready(());
        }
        self.socket.acceptor.register(cx);
        Poll::Pending
    }

    /// Accepts what the kernel has completed.
    fn drain_queue(&self) {
        // Without it the first accept on an empty queue would wait.
        if ioctl_fionbio(&self.socket.socket, true).is_err() {
            return;
        }
        loop {
            match self.socket.accept_now(self.engine.driver.socket_flags()) {
                Ok(connection) => self.socket.state.borrow_mut().accepted.push_back(connection),
                Err(errno) if is_passing(errno) => {}
                Err(_) => return,
            }
        }
    }
}

impl Accepted {
    /// Makes it a stream of this thread's runtime, whichever thread accepted it.
    ///
    /// # Errors
    /// The kernel refused to set it up; it is closed.
    ///
    /// # Panics
    /// On a thread that has no runtime.
    pub fn open(self) -> io::Result<TcpStream> {
        let engine = engine::current();
        let opened = self.open_on(&engine);
        match opened {
            Ok(_) => engine.supplies.count(|counters| counters.accepts += 1),
            Err(_) => count_refused(&engine),
        }
        opened
    }

    fn open_on(self, engine: &Rc<Engine>) -> io::Result<TcpStream> {
        let flags = engine.driver.socket_flags();
        if flags != self.flags {
            // The two threads have different drivers.
            ioctl_fionbio(&self.socket, flags.contains(SocketFlags::NONBLOCK))?;
        }
        TcpStream::adopt(engine, self.socket)
    }
}

fn count_refused(engine: &Engine) {
    engine.supplies.count(|counters| counters.accepts_refused += 1);
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.engine.driver.stop_accepting(&self.socket);
        self.socket.acceptor.clear();
    }
}

impl Listening {
    /// Accepts a connection that is already there.
    pub(super) fn accept_now(&self, flags: SocketFlags) -> Result<Connection, Errno> {
        let (fd, peer) = acceptfrom_with(&self.socket, flags)?;
        Ok((fd, peer.and_then(|peer| SocketAddr::try_from(peer).ok())))
    }

    /// Whether the driver should accept more.
    pub(super) fn wants_more(&self) -> bool {
        let state = self.state.borrow();
        !state.closing && state.error.is_none() && state.accepted.len() < QUEUE_MAX
    }

    /// Takes the outcome of an accept: a connection, or an error unless it is only a connection's.
    pub(super) fn settle(&self, outcome: Result<Connection, Errno>) {
        let mut state = self.state.borrow_mut();
        match outcome {
            Ok(connection) => state.accepted.push_back(connection),
            Err(Errno::CANCELED) => {}
            Err(errno) if is_passing(errno) => {}
            Err(errno) => state.error = Some(errno),
        }
    }

    fn poll_outcome(&self, cx: &Context<'_>) -> Poll<()> {
        let state = self.state.borrow();
        if !state.accepted.is_empty() || state.error.is_some() {
            return Poll::Ready(());
        }
        self.acceptor.register(cx);
        Poll::Pending
    }
}

/// Concerns one connection or one moment, not the listening socket (see accept(2)).
pub(super) fn is_passing(errno: Errno) -> bool {
    [
        Errno::CONNABORTED,
        Errno::INTR,
        Errno::HOSTDOWN,
        Errno::HOSTUNREACH,
        Errno::NETDOWN,
        Errno::NETUNREACH,
        Errno::NONET,
        Errno::NOPROTOOPT,
        Errno::PROTO,
        Errno::TIMEDOUT,
    ]
    .contains(&errno)
}

/// Passes when something is closed, freed or allowed: the connection is still there, so trying
/// again at once would be the same again.
fn is_shortage(errno: Errno) -> bool {
    [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::PERM].contains(&errno)
}
