//! The shared connections to one endpoint, and their streams.
//!
//! Deliberately not here: making a connection, and what is sent on it.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use hyper::client::conn::http2::SendRequest;

use crate::address::Address;
use crate::snapshot::PoolLimits;

use super::super::error::{Error, Kind};
use super::super::tally::Life;
use super::Outgoing;

/// The shared connections to one endpoint.
#[derive(Default)]
pub(in super::super) struct Connections {
    pub(super) open: RefCell<Vec<Rc<Shared>>>,
    /// A connect is under way.
    connecting: Cell<bool>,
    /// Who waits for it, each at its place.
    pub(super) waiting: RefCell<Vec<Waker>>,
    /// How often those who wait were woken: a place from before is none any more.
    rounds: Cell<u64>,
    /// Connects that failed, for those who waited for one of them.
    pub(super) failures: Cell<u64>,
    /// Why the last one failed; `None` for its timeout.
    failure: RefCell<Option<Failure>>,
}

/// Why a connect failed.
#[derive(Clone)]
enum Failure {
    Io(io::ErrorKind),
    Tls(Arc<str>),
}

/// One connection.
pub(super) struct Shared {
    pub(super) sender: SendRequest<Outgoing>,
    /// The address of our end.
    pub(super) local: Option<SocketAddr>,
    pub(super) streams: Cell<usize>,
    /// The peer's limit, as far as it is known.
    pub(super) streams_max: Rc<Cell<usize>>,
    /// When it may be closed; the sweep moves it while streams are open.
    pub(super) expires: Cell<Instant>,
    pub(super) idle_timeout: Duration,
    /// Its part in the limits of its cluster, if it has any.
    pub(super) life: Option<Box<Life>>,
}

impl Connections {
    pub(in super::super) fn is_empty(&self) -> bool {
        self.open.borrow().is_empty()
    }

    /// Lets go of connections that ended, and of those that were idle for long.
    pub(in super::super) fn sweep(&self, now: Instant) {
        self.open.borrow_mut().retain(|shared| {
            if shared.streams.get() > 0 {
                shared.expires.set(now + shared.idle_timeout);
            }
            now < shared.expires.get() && !shared.is_spent(now)
        });
    }

    /// Lets go of all: each ends with its last stream.
    pub(in super::super) fn let_go(&self) {
        drop(self.open.take());
    }

    /// The first connection that can take a stream; the least busy one if there can be no more than
    /// there are, which `may_open` tells of their number.
    pub(super) fn with_room(
        &self,
        now: Instant,
        limits: Option<&PoolLimits>,
        may_open: impl FnOnce(usize) -> bool,
    ) -> Option<Rc<Shared>> {
        let spent: Vec<_> = {
            let mut open = self.open.borrow_mut();
            open.extract_if(.., |shared| shared.is_spent(now)).collect()
        };
        drop(spent);
        let open = self.open.borrow();
        let own_max = limits.and_then(|limits| limits.streams_max);
        let own_max = own_max.map_or(usize::MAX, |max| max as usize);
        let has_room =
            |shared: &&Rc<Shared>| shared.streams.get() < shared.streams_max.get().min(own_max);
        let free = open.iter().find(has_room);
        if free.is_none() && (open.is_empty() || may_open(open.len())) {
            return None;
        }
        free.or_else(|| open.iter().min_by_key(|shared| shared.streams.get())).cloned()
    }

    /// Tells those who wait for this connect.
    pub(super) fn failed(&self, error: &Error) {
        self.failures.set(self.failures.get() + 1);
        self.failure.replace(match &error.kind {
            Kind::Connect(error) | Kind::Reset(error) => Some(Failure::Io(error.kind())),
            Kind::BadResponse(_) => Some(Failure::Io(io::ErrorKind::InvalidData)),
            Kind::Tls(reason) => Some(Failure::Tls(Arc::clone(reason))),
            Kind::ConnectTimeout
            | Kind::NoEndpoint
            | Kind::Overflow
            | Kind::Refused
            | Kind::Timeout
            | Kind::SlowClient
            | Kind::RequestBody => None,
        });
    }

    /// The last failure.
    pub(super) fn failure(&self, remote: Address) -> Error {
        let kind = match self.failure.borrow().clone() {
            Some(Failure::Io(kind)) => Kind::Connect(kind.into()),
            Some(Failure::Tls(reason)) => Kind::Tls(reason),
            None => Kind::ConnectTimeout,
        };
        Error::unsent(Some(remote), kind)
    }

    /// Ready when no connect is under way. Who waits keeps its `place`, however often it is polled.
    pub(super) fn poll_connected(
        &self,
        cx: &Context<'_>,
        place: &mut Option<(u64, usize)>,
    ) -> Poll<()> {
        if !self.connecting.get() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.borrow_mut();
        match *place {
            Some((round, index)) if round == self.rounds.get() => {
                waiting[index].clone_from(cx.waker());
            }
            Some(_) | None => {
                *place = Some((self.rounds.get(), waiting.len()));
                waiting.push(cx.waker().clone());
            }
        }
        Poll::Pending
    }
}

impl Shared {
    /// Whether it takes no more streams.
    fn is_spent(&self, now: Instant) -> bool {
        self.sender.is_closed() || self.life.as_ref().is_some_and(|life| life.is_over(now))
    }
}

/// The right to connect; whoever waits is woken when it is given up.
pub(super) struct Connecting<'a>(&'a Connections);

impl<'a> Connecting<'a> {
    pub(super) fn begin(connections: &'a Connections) -> Option<Self> {
        (!connections.connecting.replace(true)).then(|| Self(connections))
    }
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        self.0.connecting.set(false);
        self.0.rounds.set(self.0.rounds.get() + 1);
        self.0.waiting.take().into_iter().for_each(Waker::wake);
    }
}

/// One stream of a connection: counted as long as this lives.
#[must_use]
pub(super) struct Stream {
    pub(super) shared: Rc<Shared>,
    /// The connection was made for it.
    pub(super) fresh: bool,
}

impl Stream {
    pub(super) fn new(shared: Rc<Shared>, fresh: bool) -> Self {
        shared.streams.set(shared.streams.get() + 1);
        if let Some(life) = &shared.life {
            life.carry();
        }
        Self { shared, fresh }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.streams.set(self.shared.streams.get() - 1);
    }
}
