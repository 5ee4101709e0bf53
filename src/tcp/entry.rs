//! What is remembered of a connection until it is over: its line in the access log and its part of
//! the metrics. Written when it is dropped, so once, whatever ends the connection.

use std::cell::{Cell, OnceCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::address::Address;
use crate::io::Net;
use crate::io::relay::Moved;
use crate::snapshot::{Cluster, Limits, PoolLimits};
use crate::telemetry::request::{Flags, Record};
use crate::telemetry::{TcpCounts, WorkerTelemetry};

use super::Shared;

/// Longer than anything lives.
const FOREVER: Duration = Duration::from_hours(24 * 365 * 10);

/// A connection under way.
pub(super) struct Entry<N: Net> {
    net: N,
    telemetry: Rc<WorkerTelemetry>,
    remote: Address,
    local: Address,
    server_name: Option<Box<str>>,
    start: SystemTime,
    /// The same moment as `start`, on the clock that never jumps.
    started: Instant,
    cluster: OnceCell<Arc<Cluster>>,
    upstream: Cell<Option<Address>>,
    upstream_local: Cell<Option<SocketAddr>>,
    outcome: Cell<Outcome>,
    /// Why there is no connection to an endpoint.
    failure: OnceCell<String>,
    moved: Moved,
    counts: OnceCell<Rc<TcpCounts>>,
    /// What of `moved` is in `counts`.
    counted: Cell<(u64, u64)>,
}

#[derive(Clone, Copy, Default)]
struct Outcome {
    flags: Flags,
    details: &'static str,
    termination: &'static str,
}

impl<N: Net> Entry<N> {
    /// Begins now.
    pub(super) fn new(
        shared: &Shared<N>,
        (remote, local): (Address, Address),
        server_name: Option<Box<str>>,
    ) -> Self {
        Self {
            net: shared.net.clone(),
            telemetry: Rc::clone(&shared.telemetry),
            remote,
            local,
            server_name,
            start: shared.net.wall(),
            started: shared.net.now(),
            cluster: OnceCell::new(),
            upstream: Cell::new(None),
            upstream_local: Cell::new(None),
            // Stands until something better is known: the gateway gave it up.
            outcome: Cell::default(),
            failure: OnceCell::new(),
            moved: Moved::default(),
            counts: OnceCell::new(),
            counted: Cell::default(),
        }
    }

    /// There is nobody to join it to.
    pub(super) fn failed(&self, flags: Flags, details: &'static str) {
        self.outcome.set(Outcome { flags, details, termination: "" });
    }

    /// It is for `cluster`.
    pub(super) fn goes_to(&self, cluster: Arc<Cluster>) {
        // Once: nothing changes its route.
        let _: Result<(), _> = self.cluster.set(cluster);
    }

    /// The endpoint that was tried last.
    pub(super) fn tried(&self, remote: Option<Address>) {
        self.upstream.set(remote);
    }

    /// No endpoint could be connected to.
    pub(super) fn unconnected(&self, flags: Flags, failure: String) {
        self.failed(flags, "");
        // Once: there is no further attempt.
        let _: Result<(), _> = self.failure.set(failure);
    }

    /// It is joined to an endpoint, from the address `local` of ours.
    pub(super) fn connected(&self, local: Option<SocketAddr>) {
        self.upstream_local.set(local);
        let counts = self.telemetry.tcp(self.service(), Flags::NONE);
        counts.opened();
        // Once, as above.
        let _: Result<(), _> = self.counts.set(counts);
    }

    /// Something ended it before both sides had.
    pub(super) fn broke(&self, flags: Flags, termination: &'static str) {
        self.outcome.set(Outcome { flags, details: "", termination });
    }

    /// The client.
    pub(super) fn remote(&self) -> Address {
        self.remote
    }

    /// The addresses of the client and of what it connected to, unless that is a Unix socket.
    pub(super) fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.remote.ip().zip(self.local.ip())
    }

    /// How long nothing may move: what the cluster says, else `limits`.
    pub(super) fn idle_timeout(&self, limits: &Limits) -> Duration {
        match self.pool().and_then(|pool| pool.tcp_idle_timeout) {
            Some(Duration::ZERO) => FOREVER,
            Some(timeout) => timeout,
            None => limits.tcp_idle_timeout,
        }
    }

    /// How long it may last, if the cluster says so.
    pub(super) fn age_max(&self) -> Option<Duration> {
        self.pool()?.connection_age_max
    }

    fn pool(&self) -> Option<&PoolLimits> {
        Some(&self.cluster.get()?.traffic.as_ref()?.policy.pool)
    }

    /// What moves, to be counted along.
    pub(super) fn moved(&self) -> &Moved {
        &self.moved
    }

    /// Enters into the metrics what moved since the last time: connections may last for days.
    pub(super) fn count_moved(&self) {
        let now = (self.moved.forth.get(), self.moved.back.get());
        let before = self.counted.replace(now);
        if now != before
            && let Some(counts) = self.counts.get()
        {
            counts.moved(now.0 - before.0, now.1 - before.1);
        }
    }

    fn service(&self) -> &str {
        self.cluster.get().map_or("", |cluster| &cluster.host)
    }

    fn record(&self) -> Record<'_> {
        let Outcome { flags, details, termination } = self.outcome.get();
        Record {
            duration: self.net.now() - self.started,
            flags,
            details,
            termination_details: termination,
            upstream_failure: self.failure.get().map_or("", String::as_str),
            bytes_received: self.moved.forth.get(),
            bytes_sent: self.moved.back.get(),
            upstream_host: self.upstream.get(),
            upstream_local: self.upstream_local.get().map(Address::from),
            upstream_cluster: self.cluster.get().map_or("", |cluster| &cluster.name),
            upstream_service: self.service(),
            downstream_local: Some(self.local),
            downstream_remote: Some(self.remote),
            server_name: self.server_name.as_deref().unwrap_or_default(),
            ..Record::new(self.start)
        }
    }
}

impl<N: Net> Drop for Entry<N> {
    fn drop(&mut self) {
        self.count_moved();
        let counts = self.telemetry.tcp(self.service(), self.outcome.get().flags);
        if self.counts.get().is_none() {
            counts.opened();
        }
        counts.closed();
        self.telemetry.record(&self.record());
    }
}
