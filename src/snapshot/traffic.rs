//! What a DestinationRule says about the requests for a cluster.
//!
//! Having a [`TrafficPolicy`] tells you that its numbers are within bounds. `None` stands for what
//! nobody limited, so that nothing has to be compared.
//!
//! Deliberately not here: what a worker remembers of a cluster.

use std::sync::Arc;
use std::time::Duration;

use ::http::HeaderName;

use crate::address::Address;

use super::grouping::Grouping;
use super::hashing::{HashTable, stable_hash};

/// How a cluster is treated. The default is Istio's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrafficPolicy {
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// What a new endpoint gets at first.
    pub warmup: Option<Warmup>,
    /// Limits of connections and requests.
    pub pool: PoolLimits,
    /// When an endpoint is left out for a while.
    pub outliers: Option<OutlierDetection>,
    /// How many retries there may be for the requests under way.
    pub retry_budget: Option<RetryBudget>,
    /// Connections begin with a header of the PROXY protocol.
    pub proxy_protocol: Option<ProxyVersion>,
}

/// Versions of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// What a cluster has beyond its endpoints. Most have none of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    /// How it is treated.
    pub policy: TrafficPolicy,
    /// Of the endpoints, in their order; none if all are the same.
    pub weights: Box<[u32]>,
    /// Each weight and all before it together.
    pub sums: Box<[u64]>,
    /// For [`Balance::Hash`], if there is an endpoint.
    pub table: Option<Arc<HashTable>>,
    /// A hash of the list of endpoints, which tells it from the one before.
    pub list: u64,
    /// What is chosen before an endpoint, if anything is.
    pub grouping: Option<Box<Grouping>>,
}

impl Traffic {
    /// For endpoints with `weights`, if they are not all the same.
    #[must_use]
    pub fn new(policy: TrafficPolicy, weights: Box<[u32]>, table: Option<Arc<HashTable>>) -> Self {
        let add = |sum: &mut u64, weight: &u32| {
            *sum += u64::from(*weight);
            Some(*sum)
        };
        let sums = weights.iter().scan(0, add).collect();
        Self { policy, weights, sums, table, list: 0, grouping: None }
    }

    /// The same for a cluster with `endpoints`.
    #[must_use]
    pub fn among(self, endpoints: &[Address]) -> Self {
        let names: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
        Self { list: stable_hash(names.join(" ").as_bytes()), ..self }
    }
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Balance {
    /// The less busy of two random ones.
    #[default]
    LeastRequest,
    /// Each in turn.
    RoundRobin,
    /// Any.
    Random,
    /// The same for the same key, while it is there.
    Hash(HashPolicy),
}

/// How a key leads to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashPolicy {
    /// What of a request is hashed.
    pub key: HashKey,
    /// How the endpoints are spread over all hashes.
    pub spread: Spread,
}

/// What of a request is hashed. A request without it goes to any endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashKey {
    /// The values of a header.
    Header(HeaderName),
    /// The value of a cookie.
    Cookie(Box<HashCookie>),
    /// The client's address.
    SourceAddress,
    /// The first value of a parameter of the query.
    QueryParameter(String),
}

/// A cookie that keeps a client at one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashCookie {
    /// Its name.
    pub name: String,
    /// The paths that it is for; every one if it is empty.
    pub path: String,
    /// How long it lives; zero as long as the client runs; `None` if the gateway makes none.
    pub ttl: Option<Duration>,
    /// Further attributes, with or without a value.
    pub attributes: Vec<(String, String)>,
}

/// How endpoints are spread over all hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// A ring with at least this many points.
    Ring(u32),
    /// Maglev's table of this size, a prime.
    Maglev(u32),
}

/// How a new endpoint is spared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Warmup {
    /// How long.
    pub duration: Duration,
    /// Its share at first, of that which it gets in the end.
    pub minimum_percent: f64,
    /// The exponent of the curve; 1 is a straight line.
    pub aggression: f64,
}

// Both floating-point fields are finite.
impl Eq for Warmup {}

/// Limits of the connections and requests of a cluster, for the whole gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolLimits {
    /// Connections at a time.
    pub connections_max: Option<u32>,
    /// How long one connect may take.
    pub connect_timeout: Option<Duration>,
    /// How old a connection gets.
    pub connection_age_max: Option<Duration>,
    /// How long TCP may be silent both ways; zero for as long as it likes.
    pub tcp_idle_timeout: Option<Duration>,
    /// How a silent connection is probed.
    pub keepalive: Option<Keepalive>,
    /// Requests that wait for a connection.
    pub pending_max: Option<u32>,
    /// Requests under way.
    pub requests_max: Option<u32>,
    /// Requests that one connection carries in its life.
    pub requests_per_connection_max: Option<u32>,
    /// Retries under way.
    pub retries_max: Option<u32>,
    /// How long an idle connection is kept.
    pub idle_timeout: Option<Duration>,
    /// Streams of an HTTP/2 connection.
    pub streams_max: Option<u32>,
    /// How a silent HTTP/2 connection is asked for a sign of life.
    pub pings: Option<Pings>,
    /// Which protocol is spoken.
    pub protocol: ProtocolChoice,
}

/// Which protocol is spoken with endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ProtocolChoice {
    /// What the port says.
    #[default]
    OfPort,
    /// HTTP/2 in any case.
    Http2,
    /// That of the client.
    OfClient,
}

/// How a silent connection is probed; `None` is the kernel's default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// Probes without an answer until it counts as dead.
    pub probes: Option<u32>,
    /// Silence until the first.
    pub time: Option<Duration>,
    /// From one to the next.
    pub interval: Option<Duration>,
}

/// Pings of an HTTP/2 connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pings {
    /// Silence until one is sent, and from one to the next.
    pub interval: Duration,
    /// How long the answer may take.
    pub timeout: Duration,
}

/// When an endpoint is left out, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Answers 5xx in a row; zero is never. Without `splits_local` also what never got an answer.
    pub server_errors: u32,
    /// Of those 502, 503 and 504.
    pub gateway_errors: u32,
    /// Failures without an answer in a row, where they count on their own.
    pub local_failures: u32,
    /// Whether they count on their own.
    pub splits_local: bool,
    /// How often it is looked whether an endpoint may come back.
    pub interval: Duration,
    /// How long it is left out, times how often it was.
    pub ejection_time: Duration,
    /// The share of endpoints that may be left out.
    pub ejected_percent_max: u32,
    /// With a smaller share of endpoints left, none is left out; zero is never.
    pub healthy_percent_min: u32,
}

impl Default for OutlierDetection {
    /// Istio's.
    fn default() -> Self {
        Self {
            server_errors: 5,
            gateway_errors: 0,
            local_failures: 0,
            splits_local: false,
            interval: Duration::from_secs(10),
            ejection_time: Duration::from_secs(30),
            ejected_percent_max: 10,
            healthy_percent_min: 0,
        }
    }
}

/// How many retries there may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// Of the requests under way.
    pub percent: f64,
    /// In any case.
    pub retries_min: u32,
}

// The floating-point field is finite.
impl Eq for RetryBudget {}
