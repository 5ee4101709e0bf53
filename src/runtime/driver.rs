//! The two drivers behind one interface.
//!
//! What a driver does for a socket or listener ends in its state and in a wake; see
//! [`Socket`]. A driver calls wakers only while nothing is borrowed.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::ioctl_fionbio;
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, socket_with,
};

use crate::address::Address;

use super::listener::Listening;
use super::socket::{Socket, Supplies};
use super::{epoll, uring};

/// The driver of one thread.
#[allow(clippy::large_enum_variant, reason = "there is one per thread")]
#[derive(Debug)]
pub(super) enum Driver {
    Epoll(epoll::Driver),
    Uring(uring::Driver),
}

macro_rules! dispatch {
    ($self:ident.$method:ident($($argument:expr),*)) => {
        match $self {
            Self::Epoll(driver) => driver.$method($($argument),*),
            Self::Uring(driver) => driver.$method($($argument),*),
        }
    };
}

impl Driver {
    /// What its sockets share.
    pub(super) fn supplies(&self) -> &Rc<Supplies> {
        dispatch!(self.supplies())
    }

    /// Prepares a listening socket.
    pub(super) fn listen(&self, listening: &Rc<Listening>) -> io::Result<()> {
        dispatch!(self.listen(listening))
    }

    /// Accepts connections into the queue of `listening`, now or later.
    pub(super) fn accept(&self, listening: &Rc<Listening>) {
        dispatch!(self.accept(listening));
    }

    /// Accepts no more. Connections may still arrive until its `armed` is empty.
    pub(super) fn stop_accepting(&self, listening: &Rc<Listening>) {
        dispatch!(self.stop_accepting(listening));
    }

    /// Prepares a stream socket, which has [`socket_flags`](Self::socket_flags).
    pub(super) fn adopt(&self, socket: &Rc<Socket>) -> io::Result<()> {
        dispatch!(self.adopt(socket))
    }

    /// Connects; `connecting` tells the outcome and the reader is woken.
    pub(super) fn connect(&self, socket: &Rc<Socket>, to: Address) -> io::Result<()> {
        let name = name(to)?;
        match (self, to) {
            (Self::Epoll(driver), _) => driver.connect(socket, &name),
            (Self::Uring(driver), Address::Ip(_)) => driver.connect(socket, name),
            // To a Unix socket it is done at once, or its queue is full. The ring would have a
            // thread wait for that, which cannot always be told to stop.
            (Self::Uring(_), Address::Pipe(_)) => {
                ioctl_fionbio(&socket.fd, true)?;
                let connected = rustix::net::connect(&socket.fd, &name);
                ioctl_fionbio(&socket.fd, false)?;
                Ok(connected?)
            }
        }
    }

    /// Sees to it that bytes are received if more are wanted, and the reader is woken by them.
    pub(super) fn receive(&self, socket: &Rc<Socket>, turn: u64) {
        dispatch!(self.receive(socket, turn));
    }

    /// Sends what was gathered, and closes the write half when it is time.
    pub(super) fn flush(&self, socket: &Rc<Socket>) {
        dispatch!(self.flush(socket));
    }

    /// The stream is gone: ends everything that is under way.
    pub(super) fn stop(&self, socket: &Rc<Socket>) {
        dispatch!(self.stop(socket));
    }

    /// Hands over what was started, waits for at most `timeout` (`None`: for as long as it takes)
    /// until something has happened, and settles what has.
    pub(super) fn park(&self, timeout: Option<Duration>, turn: u64) {
        dispatch!(self.park(timeout, turn));
    }

    /// The runtime has ended: takes back all that the kernel still has, whoever holds streams.
    pub(super) fn close(&self) {
        match self {
            // The kernel has nothing but readiness to tell.
            Self::Epoll(_) => {}
            Self::Uring(driver) => driver.close(),
        }
    }

    /// The mode that sockets must have: io_uring waits by itself, but only on blocking ones.
    pub(super) fn socket_flags(&self) -> SocketFlags {
        match self {
            Self::Epoll(_) => SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Self::Uring(_) => SocketFlags::CLOEXEC,
        }
    }

    /// A new stream socket for a connection to `to`.
    pub(super) fn stream_socket(&self, to: Address) -> io::Result<OwnedFd> {
        let family = match to {
            Address::Ip(SocketAddr::V4(_)) => AddressFamily::INET,
            Address::Ip(SocketAddr::V6(_)) => AddressFamily::INET6,
            Address::Pipe(_) => AddressFamily::UNIX,
        };
        Ok(socket_with(family, SocketType::STREAM, self.socket_flags(), None)?)
    }
}

/// How the kernel names `address`.
fn name(address: Address) -> io::Result<SocketAddrAny> {
    Ok(match address {
        Address::Ip(address) => address.into(),
        Address::Pipe(path) => match path.abstract_name() {
            Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?.into(),
            None => SocketAddrUnix::new(path.as_str())?.into(),
        },
    })
}
