//! Connections that are not HTTP to the gateway: TLS that the endpoint terminates, what is inside
//! of TLS that was terminated here, and plain TCP.
//!
//! - An endpoint is connected to at once, so that it may speak first, and gets every byte that the
//!   client sent.
//! - Each direction ends on its own (half-close), and a side that does not read makes the other
//!   wait: a connection holds no more than what both sides' send buffers may.
//! - Nothing of a client is sent before an endpoint is connected to, so another may be tried after
//!   one that cannot be: as often as a request by default. Envoy's TCP proxy tries one alone, and a
//!   single dead endpoint then fails its share of connections until it is taken out.
//! - Every connection is counted and logged once, also when a drain cuts it.
//!
//! [`proxy_protocol`] reads what a load balancer says of a connection, whatever it is for.
//!
//! Deliberately not here: accepting, ClientHello and handshake, and which route a connection has.

#![forbid(unsafe_code)]

mod entry;
pub(crate) mod proxy_protocol;
#[cfg(test)]
mod tests;

use std::future::{Future, poll_fn};
use std::io::IoSlice;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::address::Address;
use crate::drain::Watch;
use crate::io::relay::{Broken, relay_active};
use crate::io::{Net, Stream, linger};
use crate::snapshot::{Balance, Cluster, HashKey, HashPolicy, Limits, TcpRoute, client_hash};
use crate::telemetry::WorkerTelemetry;
use crate::telemetry::request::Flags;
use crate::upstream::{Error, Kind, Opened, To, Upstreams};

use entry::Entry;

/// Endpoints that are tried for one connection: as many as for a request without a policy.
const ATTEMPTS_MAX: usize = 3;

/// What all connections of a worker share.
pub(crate) struct Shared<N: Net> {
    pub(crate) net: N,
    pub(crate) upstreams: Upstreams<N>,
    pub(crate) telemetry: Rc<WorkerTelemetry>,
}

/// A connection that came from a client.
pub(crate) struct Downstream<S> {
    pub(crate) stream: S,
    /// What was taken from `stream` and belongs before what is left in it.
    pub(crate) taken: Vec<u8>,
    pub(crate) remote: Address,
    pub(crate) local: Address,
    /// The SNI.
    pub(crate) server_name: Option<Box<str>>,
}

/// What was in force when the connection came.
pub(crate) struct Terms {
    pub(crate) limits: Limits,
    /// Which generation of the configuration said so.
    pub(crate) generation: u64,
}

/// A connection's future. Boxed, so that none carries the largest of them.
pub(crate) type Served = Pin<Box<dyn Future<Output = ()>>>;

/// Joins the connection to an endpoint of `route` until both have ended; closes it if there is
/// nobody to join it to. A drain waits for it as long as `watch` lives.
pub(crate) fn serve<N: Net, S: Stream>(
    shared: Shared<N>,
    downstream: Downstream<S>,
    terms: Terms,
    route: Option<&TcpRoute>,
    watch: Watch,
) -> Served {
    let target = route.and_then(|route| route.forward.choose(|sum| fastrand::u32(..sum)));
    let Downstream { stream, taken, remote, local, server_name } = downstream;
    let entry = Entry::new(&shared, (remote, local), server_name);
    let cluster = match target.map(|target| target.cluster.clone()) {
        Some(Some(cluster)) => cluster,
        Some(None) => {
            entry.failed(Flags::NO_CLUSTER, "cluster_not_found");
            return Box::pin(std::future::ready(()));
        }
        None => {
            entry.failed(Flags::NO_ROUTE, "route_not_found");
            return Box::pin(std::future::ready(()));
        }
    };
    let joining = Joining { shared, terms, entry, _watch: watch };
    // Two boxes, one after the other, so that no connection carries the room of its connect.
    let connecting = Box::pin(joining.run(cluster, stream, taken));
    Box::pin(async move {
        if let Some(joined) = connecting.await {
            joined.await;
        }
    })
}

/// A connection on its way.
struct Joining<N: Net> {
    shared: Shared<N>,
    terms: Terms,
    entry: Entry<N>,
    _watch: Watch,
}

impl<N: Net> Joining<N> {
    /// Connects; what comes after that, if it comes to that.
    async fn run<S: Stream>(
        self,
        cluster: Arc<Cluster>,
        near: S,
        taken: Vec<u8>,
    ) -> Option<Served> {
        self.entry.goes_to(Arc::clone(&cluster));
        match self.connect(&cluster).await {
            Ok(opened) => Some(Box::pin(self.join(near, opened, &taken))),
            Err(error) => {
                let flags = flags(&error);
                self.entry.tried(error.remote);
                self.entry.unconnected(flags, error.to_string());
                None
            }
        }
    }

    /// A connection to the first endpoint that takes one; else what came of the last attempt that
    /// was made at one.
    async fn connect(&self, cluster: &Cluster) -> Result<Opened<N>, Error> {
        let mut avoid = Vec::new();
        let key = hash_key(cluster, self.entry.remote());
        let mut failed = None;
        loop {
            let Terms { limits, generation } = &self.terms;
            let to = To { avoid: &avoid, key, ..To::new(cluster, limits, *generation) };
            let error = match self.shared.upstreams.open(to, self.entry.addresses()).await {
                Ok(opened) => return Ok(opened),
                Err(error) => error,
            };
            // Nobody, or nobody else: outlier detection may have left the others out meanwhile.
            let Some(remote) = error.remote.filter(|remote| !avoid.contains(remote)) else {
                return Err(failed.unwrap_or(error));
            };
            avoid.push(remote);
            let is_full = matches!(error.kind, Kind::Overflow);
            if is_full || avoid.len() >= cluster.endpoints.len().min(ATTEMPTS_MAX) {
                return Err(error);
            }
            failed = Some(error);
        }
    }

    /// Passes on what comes from either side, beginning with what was taken.
    ///
    /// No `async fn`: what that moves out of its arguments lies in it twice.
    fn join<S: Stream>(
        self,
        mut near: S,
        opened: Opened<N>,
        taken: &[u8],
    ) -> impl Future<Output = ()> + use<N, S> {
        let Self { shared: Shared { net, .. }, terms, entry, _watch: watch } = self;
        let limits = terms.limits;
        let Opened { stream: mut far, remote, active } = opened;
        entry.tried(Some(remote));
        entry.connected(far.local());
        let written = far.write(&[IoSlice::new(taken)]);
        entry.moved().forth.set(taken.len() as u64);
        let times = (entry.idle_timeout(&limits), entry.age_max());
        let grace = limits.linger_timeout;
        async move {
            let _held = &watch;
            let ended = match written {
                Ok(()) => relay(&net, times, (&mut near, &mut far), &entry).await,
                Err(error) => Some(Err(Broken::Far(error))),
            };
            // Its place is free, however long the client takes from here on.
            drop((far, active));
            match ended {
                Some(Ok(())) => {}
                None => entry.broke(Flags::NONE, "max_connection_duration"),
                Some(Err(Broken::Near(_))) => entry.broke(Flags::DOWNSTREAM_TERMINATION, ""),
                Some(Err(Broken::Idle)) => entry.broke(Flags::NONE, "tcp_session_idle_timeout"),
                Some(Err(Broken::Far(_))) => {
                    entry.broke(Flags::UPSTREAM_TERMINATION, "");
                    // What the endpoint said before is still on its way. Boxed: it is rare.
                    Box::pin(linger(&net, grace, near)).await;
                }
            }
        }
    }
}

/// Relays, and counts along. None when the connection has reached the age of `age_max`.
async fn relay<N: Net>(
    net: &N,
    (idle, age_max): (Duration, Option<Duration>),
    (near, far): (&mut impl Stream, &mut impl Stream),
    entry: &Entry<N>,
) -> Option<Result<(), Broken>> {
    let mut relaying = pin!(relay_active((net, idle), near, far, entry.moved()));
    // Boxed: few have it.
    let mut aged = age_max.map(|age| Box::new(net.sleep(age)));
    poll_fn(|cx| {
        let ended = relaying.as_mut().poll(cx);
        entry.count_moved();
        match &mut aged {
            Some(aged) if ended.is_pending() => Pin::new(&mut **aged).poll(cx).map(|()| None),
            _ => ended.map(Some),
        }
    })
    .await
}

/// What went wrong before there was a connection.
fn flags(error: &Error) -> Flags {
    match error.kind {
        Kind::NoEndpoint => Flags::NO_HEALTHY_UPSTREAM,
        Kind::Overflow => Flags::UPSTREAM_OVERFLOW,
        // As Envoy says it whenever no connection could be made.
        Kind::Connect(_)
        | Kind::Tls(_)
        | Kind::ConnectTimeout
        | Kind::Reset(_)
        | Kind::Refused
        | Kind::BadResponse(_)
        | Kind::Timeout
        | Kind::SlowClient
        | Kind::RequestBody => Flags::UPSTREAM_CONNECT_FAILURE | Flags::UPSTREAM_RETRY_LIMIT,
    }
}

/// What leads `client` to an endpoint where the cluster hashes addresses, the one thing that can be
/// hashed here.
fn hash_key(cluster: &Cluster, client: Address) -> Option<u64> {
    let balance = &cluster.traffic.as_ref()?.policy.balance;
    let Balance::Hash(HashPolicy { key: HashKey::SourceAddress, .. }) = balance else {
        return None;
    };
    client_hash(client)
}
