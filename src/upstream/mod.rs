//! Connections to endpoints: pools, choice of endpoint, TLS, HTTP/1.1 and HTTP/2 towards them.
//!
//! - [`Upstreams`] is one worker's twin of `snapshot::Cluster`: what it keeps belongs to endpoints,
//!   so a reload changes nothing of it.
//! - A request goes to the less busy of two random endpoints. When a kept connection turns out
//!   dead, a fresh one is tried, only where nothing can be carried out twice. Every other failure
//!   is told to the caller, who may have a policy and name the endpoints that are to be avoided.
//! - Request and response bodies stream independently, each with back-pressure; a connection is
//!   used again only after both ended cleanly.
//! - Every message is written anew with exactly one framing; what an endpoint sends is held to
//!   strict framing and to the limits, and anything ambiguous is an error.
//!
//! Deliberately not here: which headers a proxy adds or removes, retries by policy, names.

#![forbid(unsafe_code)]

pub(crate) mod adapt;
mod balance;
mod body;
mod endpoint;
mod error;
mod group;
mod h1;
mod h2;
mod outlier;
mod patience;
mod pool;
mod proxy_header;
mod tally;
mod transport;
mod view;
mod warmup;
#[cfg(test)]
pub(crate) mod world;

pub(crate) use body::{Body, Data};
pub(crate) use error::{Error, Kind, Retry};
#[cfg(feature = "bench")]
pub(crate) use h1::read_head;
#[cfg(test)]
pub(crate) use proxy_header::header;
pub(crate) use transport::Transport;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use ::http::{Response, StatusCode, Version, request::Parts};
use bytes::Bytes;

use crate::address::Address;
use crate::io::Net;
use crate::snapshot::{Cluster, Field, Limits, ProtocolChoice, UpstreamProtocol};
use crate::telemetry::WorkerTelemetry;

use self::endpoint::Active;
use self::outlier::Outcome;
use self::pool::{Lease, Pools};
use self::proxy_header::Client;
use self::tally::{Held, Life};

/// One worker's connections to all endpoints.
pub(crate) struct Upstreams<N: Net>(Rc<Pools<N>>);

/// An answered request; its body may still be under way in both directions.
pub(crate) struct Exchange<N: Net, B> {
    /// The final response head, as the endpoint sent it but for its framing.
    pub(crate) response: Response<Body<N, B>>,
    /// The endpoint.
    pub(crate) remote: Address,
    /// Our end of the connection, where the stream tells.
    pub(crate) local: Option<SocketAddr>,
}

/// The answer to a request for another protocol.
pub(crate) enum Upgraded<N: Net> {
    /// The endpoint agreed (101): `stream` speaks the other protocol, beginning with the bytes that
    /// came after the head.
    Switched {
        /// The 101 head.
        response: Response<()>,
        /// The connection.
        stream: Transport<N::Stream>,
        /// The endpoint.
        remote: Address,
        /// Counts it as one request at its endpoint until it is dropped.
        active: Counted<N>,
    },
    /// The endpoint answered in HTTP.
    Refused(Box<Exchange<N, Nothing>>),
}

/// A connection for anything but HTTP.
pub(crate) struct Opened<N: Net> {
    pub(crate) stream: Transport<N::Stream>,
    /// The endpoint.
    pub(crate) remote: Address,
    /// Counts it as one request at its endpoint until it is dropped.
    pub(crate) active: Counted<N>,
}

/// A request under way at an endpoint, for the choice of endpoints.
#[must_use]
pub(crate) struct Counted<N: Net> {
    _active: Active<N>,
    _life: Option<Box<Life>>,
}

/// A retry under way, where its cluster counts them.
#[must_use]
pub(crate) struct Retrying {
    _held: Option<Held>,
}

/// The body of a request without one.
pub(crate) struct Nothing;

/// Where a request goes.
#[derive(Clone, Copy)]
pub(crate) struct To<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) limits: &'a Limits,
    /// Which generation of the configuration the cluster is of.
    pub(crate) generation: u64,
    /// Endpoints that are chosen only if there are no others.
    pub(crate) avoid: &'a [Address],
    /// Endpoints whose whole groups are left for others, if there are any.
    pub(crate) leave: &'a [Address],
    /// Fields that are sent with the request, beside those in its head.
    pub(crate) own: &'a [Field<'a>],
    /// What leads it to an endpoint where the cluster hashes requests.
    pub(crate) key: Option<u64>,
    /// Where it is told how far the request came.
    pub(crate) reached: Option<&'a Cell<Reached>>,
}

/// How far a request came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Reached {
    /// No endpoint was chosen.
    #[default]
    Nothing,
    /// It may wait for a connection to this endpoint, which knows nothing of it.
    Chosen(Address),
    /// This endpoint is connected to for it, or asked.
    Asked(Address),
}

impl Reached {
    /// The endpoint.
    pub(crate) fn endpoint(self) -> Option<Address> {
        match self {
            Self::Nothing => None,
            Self::Chosen(endpoint) | Self::Asked(endpoint) => Some(endpoint),
        }
    }
}

impl<'a> To<'a> {
    /// To any endpoint of `cluster`, with nothing beside the request.
    pub(crate) fn new(cluster: &'a Cluster, limits: &'a Limits, generation: u64) -> Self {
        let (avoid, leave, own, key, reached) = (&[], &[], &[], None, None);
        Self { cluster, limits, generation, avoid, leave, own, key, reached }
    }

    /// Tells how far the request came, if anybody asks.
    fn reach(&self, reached: Reached) {
        if let Some(cell) = self.reached {
            cell.set(reached);
        }
    }

    /// What the endpoint is spoken to in for a request with `head`.
    fn protocol(&self, head: &Parts) -> UpstreamProtocol {
        match &self.cluster.traffic {
            Some(traffic) if traffic.policy.pool.protocol == ProtocolChoice::OfClient => {
                match head.version {
                    Version::HTTP_2 => UpstreamProtocol::Http2,
                    _ => UpstreamProtocol::Http1,
                }
            }
            Some(_) | None => self.cluster.protocol,
        }
    }
}

/// The limits of one exchange, taken out of the snapshot.
#[derive(Clone, Copy)]
struct Bounds {
    head_bytes_max: usize,
    header_fields_max: usize,
    stream_idle_timeout: Duration,
    idle_max: usize,
    idle_timeout: Duration,
}

impl<N: Net> Clone for Upstreams<N> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<N: Net> Upstreams<N> {
    /// No connections yet; what is opened, used again or tried again is counted in `telemetry`.
    pub(crate) fn new(net: N, telemetry: Rc<WorkerTelemetry>) -> Self {
        Self(Pools::new(net, telemetry))
    }

    /// Sends a request to an endpoint of `to` and returns at the final response head.
    ///
    /// The headers are free of hop-by-hop fields; `content-length` and `transfer-encoding` are made
    /// anew from the body. The URI is a path, or absolute.
    ///
    /// # Errors
    /// Says whose fault it is and whether the request may be sent again.
    pub(crate) async fn send<B>(
        &self,
        to: To<'_>,
        head: &Parts,
        body: B,
    ) -> Result<Exchange<N, B>, Error>
    where
        B: http_body::Body<Data = Bytes> + Unpin + 'static,
    {
        let result = match to.protocol(head) {
            UpstreamProtocol::Http1 => {
                let lease = self.lease(to, head).await?;
                h1::send(&self.0, lease, to, head, body).await
            }
            // Boxed: most requests do not carry the room for it.
            UpstreamProtocol::Http2 => Box::pin(h2::send(&self.0, to, head, body)).await,
        };
        if to.cluster.traffic.is_some() {
            let answered = |e: &Exchange<N, B>| (e.remote, e.response.status());
            self.note(to.cluster, result.as_ref().map(answered));
        }
        result
    }

    /// Tells outlier detection what came of a request that was sent.
    fn note(&self, cluster: &Cluster, result: Result<(Address, StatusCode), &Error>) {
        let (endpoint, outcome) = match result {
            Ok((endpoint, status)) => (Some(endpoint), Outcome::of(status)),
            Err(error) => match error.kind {
                // Noted where it happened.
                Kind::Connect(_) | Kind::Tls(_) | Kind::ConnectTimeout => return,
                // No fault of the endpoint.
                Kind::NoEndpoint | Kind::Overflow | Kind::SlowClient | Kind::RequestBody => return,
                Kind::Reset(_) | Kind::Refused | Kind::BadResponse(_) | Kind::Timeout => {
                    (error.remote, Outcome::NoAnswer)
                }
            },
        };
        if let Some(endpoint) = endpoint {
            self.0.note(cluster, endpoint, outcome);
        }
    }

    /// The limits of clusters are shared by so many workers.
    pub(crate) fn shared_by(self, workers: usize) -> Self {
        self.0.share_limits(u32::try_from(workers).unwrap_or(u32::MAX));
        self
    }

    /// One more retry of a request for `cluster`; `None` if there are too many under way.
    pub(crate) fn begin_retry(&self, cluster: &Cluster) -> Option<Retrying> {
        self.0.hold_retry(cluster).map(|held| Retrying { _held: held })
    }

    /// Sends a request for another protocol, which its `upgrade` header names (`websocket` if it
    /// has none), over HTTP/1.1.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub(crate) async fn upgrade(&self, to: To<'_>, head: &Parts) -> Result<Upgraded<N>, Error> {
        let lease = self.lease(to, head).await?;
        let result = h1::upgrade(&self.0, lease, to, head).await;
        self.note(
            to.cluster,
            result.as_ref().map(|upgraded| match upgraded {
                Upgraded::Switched { response, remote, .. } => (*remote, response.status()),
                Upgraded::Refused(exchange) => (exchange.remote, exchange.response.status()),
            }),
        );
        result
    }

    /// Tells outlier detection of a request for `cluster` that nobody waits for any more: the
    /// endpoint that it reached took longer than its route allows. One that waits in our own queue
    /// says nothing of the endpoint.
    pub(crate) fn note_late(&self, cluster: &Cluster, reached: Reached) {
        if let Reached::Asked(endpoint) = reached {
            self.0.note(cluster, endpoint, Outcome::NoAnswer);
        }
    }

    /// Opens a connection to an endpoint of `to` for `client`, who does not speak HTTP to us and
    /// may have no address. Where
    /// its cluster speaks TLS and has no name for that, the endpoint is asked for the service's.
    ///
    /// # Errors
    /// There is no endpoint, or no connection to it.
    pub(crate) async fn open(
        &self,
        to: To<'_>,
        client: Option<Client>,
    ) -> Result<Opened<N>, Error> {
        let cluster = to.cluster;
        // Limits of requests are none of its business; those of connections are.
        let wanted = (cluster.protocol, None);
        let active = self.0.choose_named(to, wanted, Some(&cluster.host))?;
        let Lease { stream, life, active, .. } = self.0.open(active, cluster, client).await?;
        let remote = active.remote;
        // All that is known of what is no HTTP: it was connected to, which ends a row of failures.
        self.0.note(cluster, remote, Outcome::Good);
        Ok(Opened { stream, remote, active: Counted { _active: active, _life: life } })
    }

    /// How many names of clients are remembered for clusters without rules.
    #[cfg(test)]
    fn names(&self) -> usize {
        self.0.names()
    }

    async fn lease(&self, to: To<'_>, head: &Parts) -> Result<Lease<N>, Error> {
        let active = self.0.choose(to, head)?;
        self.0.lease(active, to).await
    }
}

impl Bounds {
    fn new(To { limits, cluster, .. }: To<'_>) -> Self {
        let traffic = cluster.traffic.as_ref();
        let idle_timeout = traffic.and_then(|traffic| traffic.policy.pool.idle_timeout);
        Self { idle_timeout: idle_timeout.unwrap_or(limits.upstream_idle_timeout), ..limits.into() }
    }
}

impl From<&Limits> for Bounds {
    fn from(limits: &Limits) -> Self {
        Self {
            head_bytes_max: limits.head_bytes_max,
            header_fields_max: limits.header_fields_max,
            stream_idle_timeout: limits.stream_idle_timeout,
            idle_max: limits.upstream_idle_max,
            idle_timeout: limits.upstream_idle_timeout,
        }
    }
}

impl http_body::Body for Nothing {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }
}
