//! One endpoint: its idle connections, and how many requests are under way at it.
//!
//! Deliberately not here: which endpoint a request gets, and whether it may have a connection.

use std::cell::{Cell, RefCell};
use std::io::IoSlice;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::address::Address;
use crate::io::{Connect, Net, Probed as _, Probes, Stream};
use crate::snapshot::{Cluster, Keepalive, PoolLimits};

use super::error::Kind;
use super::h2;
use super::proxy_header::{self, Client};
use super::tally::{self, Held, Life, Tally};
use super::transport::{Secured, Transport};

/// One endpoint.
pub(super) struct Endpoint<N: Net> {
    pub(super) remote: Address,
    /// How its connections are secured.
    secured: Option<Secured>,
    pub(super) active: Cell<usize>,
    /// Connections, where they are counted.
    pub(super) open: tally::Own,
    /// The cluster has it no more, or another TLS policy: nothing is kept.
    pub(super) is_retired: Cell<bool>,
    /// Oldest first.
    pub(super) idle: RefCell<Vec<Idle<Transport<N::Stream>>>>,
    pub(super) shared: h2::Connections,
}

/// A connection that is kept.
pub(super) struct Idle<S> {
    pub(super) stream: S,
    pub(super) life: Option<Box<Life>>,
    pub(super) expires: Instant,
}

/// One request under way at an endpoint: counted as long as this lives.
#[must_use]
pub(super) struct Active<N: Net> {
    endpoint: Rc<Endpoint<N>>,
    /// In the cluster's count, if it has one.
    held: Option<Held>,
}

/// A connection that was kept, and its part in the limits of its cluster.
pub(super) type Kept<N> = (Transport<<N as Connect>::Stream>, Option<Box<Life>>);

impl<N: Net> Endpoint<N> {
    pub(super) fn new(remote: Address, secured: Option<Secured>) -> Self {
        Self {
            remote,
            secured,
            active: Cell::new(0),
            open: Rc::default(),
            is_retired: Cell::new(false),
            idle: RefCell::default(),
            shared: h2::Connections::default(),
        }
    }

    /// Opens a connection.
    pub(super) async fn connect(
        &self,
        net: &N,
        cluster: &Cluster,
        client: Option<Client>,
    ) -> Result<Transport<N::Stream>, Kind> {
        if let Some(secured) = &self.secured {
            // Without what a handshake takes the endpoint is left in peace.
            secured.config()?;
        }
        let mut stream = net.connect(self.remote).await.map_err(Kind::Connect)?;
        let traffic = cluster.traffic.as_ref();
        let keepalive = traffic.and_then(|traffic| traffic.policy.pool.keepalive);
        // Who is on this host cannot vanish without the kernel's knowing.
        if let Some(keepalive) = keepalive.filter(|_| self.remote.ip().is_some()) {
            stream.probe(keepalive.into()).map_err(Kind::Connect)?;
        }
        if let Some(version) = traffic.and_then(|traffic| traffic.policy.proxy_protocol) {
            let header = proxy_header::header(version, client);
            stream.write(&[IoSlice::new(&header)]).map_err(Kind::Connect)?;
        }
        match &self.secured {
            None => Ok(Transport::Plain(stream)),
            // Boxed: most connects do not carry the room for it.
            Some(secured) => Box::pin(secured.shake(stream, self.remote)).await,
        }
    }

    /// The newest idle connection that still lives.
    pub(super) fn take_idle(&self, now: Instant) -> Option<Kept<N>> {
        loop {
            let mut newest = self.idle.borrow_mut().pop()?;
            if newest.lives(now) {
                return Some((newest.stream, newest.life));
            }
        }
    }

    /// Drops what is dead or expired; whether the endpoint is worth remembering.
    pub(super) fn sweep(&self, now: Instant) -> bool {
        let dead: Vec<_> = {
            let mut idle = self.idle.borrow_mut();
            idle.extract_if(.., |idle| !idle.lives(now)).collect()
        };
        // Who waits for a connection is called by this, and looks here.
        drop(dead);
        self.shared.sweep(now);
        self.is_used()
    }

    /// Whether it is worth remembering.
    pub(super) fn is_used(&self) -> bool {
        self.active.get() > 0 || !self.idle.borrow().is_empty() || !self.shared.is_empty()
    }
}

impl<S: Stream> Idle<S> {
    /// Neither expired nor closed, and the peer said nothing unasked.
    fn lives(&mut self, now: Instant) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        now < self.expires
            && self.life.as_ref().is_none_or(|life| !life.is_over(now))
            && matches!(self.stream.poll_fill(&mut cx), Poll::Pending)
    }
}

impl<N: Net> Active<N> {
    pub(super) fn new(endpoint: &Rc<Endpoint<N>>, held: Option<Held>) -> Self {
        endpoint.active.set(endpoint.active.get() + 1);
        Self { endpoint: Rc::clone(endpoint), held }
    }

    /// Counts one more at the same endpoint.
    pub(super) fn again(&self) -> Self {
        Self::new(&self.endpoint, None)
    }

    /// Whether somebody waits for a connection to the same endpoint.
    pub(super) fn is_awaited(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.tally.is_awaited(&self.open))
    }

    /// What is counted for its cluster.
    pub(super) fn tally(&self) -> Option<Rc<Tally>> {
        self.held.as_ref().map(Held::tally)
    }

    /// Whether the limits of its cluster leave room for one more connection.
    pub(super) fn may_open(&self, limits: Option<&PoolLimits>) -> bool {
        let tally = self.tally().zip(limits);
        tally.is_none_or(|(tally, limits)| tally.has_room(limits))
    }

    /// The part of one more connection in the limits of its cluster, whether there is room or not.
    pub(super) fn life(&self, cluster: &Cluster, now: Instant) -> Option<Box<Life>> {
        let (tally, traffic) = (self.tally()?, cluster.traffic.as_ref()?);
        Some(Life::new(&tally, &self.open, &traffic.policy.pool, now))
    }
}

impl<N: Net> std::ops::Deref for Active<N> {
    type Target = Endpoint<N>;

    fn deref(&self) -> &Endpoint<N> {
        &self.endpoint
    }
}

impl<N: Net> Drop for Active<N> {
    fn drop(&mut self) {
        self.endpoint.active.set(self.endpoint.active.get() - 1);
    }
}

impl From<Keepalive> for Probes {
    fn from(Keepalive { probes, time, interval }: Keepalive) -> Self {
        Self { max: probes, after: time, interval }
    }
}
