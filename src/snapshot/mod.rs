//! The waist: what the gateway is to do, validated and immutable, without a trace of where it came
//! from.
//!
//! - `config` makes a [`Snapshot`], everything else only reads it. The two sides never see each
//!   other.
//! - A snapshot is built only of parts that are valid; nothing in it has to be checked again.
//! - Parts are shared between generations: what did not change is the same `Arc`.
//!
//! Deliberately not here: parsing, I/O, clocks, anything that a worker writes.

#![forbid(unsafe_code)]

mod backend_tls;
mod cluster;
mod cors;
mod edit;
mod fault;
mod grouping;
mod hashing;
mod host;
mod identity;
mod limits;
mod listener;
mod matching;
mod network;
mod publish;
mod rejection;
mod retry;
mod rewrite;
mod route;
mod tcp;
mod traffic;
mod trie;

pub use backend_tls::BackendTls;
pub use cluster::{Cluster, UpstreamProtocol};
pub use cors::Cors;
pub use edit::{AddressPart, Edit, Edits, FieldValue, Piece, RequestPart, Template};
pub use fault::{Abort, Fault, Share};
pub use grouping::{Group, GroupOrder, Grouping};
pub use hashing::{HashTable, client_hash, stable_hash};
pub use host::{HostMap, HostPattern, HostPatternError};
pub use identity::{Certificate, CertificateInfo, CertificateState, ClientCa, Identity, TlsPolicy};
pub use limits::{Limits, Policy};
pub use listener::{BindPort, Listener, ListenerKey, Serves, TlsServer, TlsServes};
pub use matching::{Condition, Field, FullRegex, Part, Subject, TextMatch};
pub use network::{Network, NetworkError};
pub use publish::{Publisher, Source, Subscription, View};
pub use rejection::{Origin, Rejection, Severity};
pub use retry::{RetryOn, RetryPolicy};
pub use rewrite::{PathRewrite, RegexRewrite, RewriteError};
pub use route::{
    Action, DirectResponse, Extras, Forward, Found, Mirror, PathMatch, Redirect, RedirectPort,
    Route, RouteSet, RouteTable, Target, VirtualHost,
};
pub use tcp::{TcpRoute, TcpRoutes, TcpTable};
pub use traffic::{
    Balance, HashCookie, HashKey, HashPolicy, Keepalive, OutlierDetection, Pings, PoolLimits,
    ProtocolChoice, ProxyVersion, RetryBudget, Spread, Traffic, TrafficPolicy, Warmup,
};

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Everything that one generation of the configuration says.
///
/// Having a `Snapshot` tells you: its listeners have distinct keys, every route leads to an action
/// that can be carried out, and every finding that its making produced is in it.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Counts up from 1; 0 is the empty snapshot that nobody configured.
    pub generation: u64,
    /// Sorted by key, keys are distinct.
    pub listeners: Vec<Arc<Listener>>,
    /// Limits and timeouts of connections and requests.
    pub limits: Limits,
    /// How the gateway treats its neighbours.
    pub policy: Policy,
    /// What was wrong with the resources that this snapshot was made of.
    pub rejections: Vec<Rejection>,
    /// Every certificate that a Gateway or a DestinationRule names, usable or not.
    pub certificates: Vec<Arc<Certificate>>,
}

impl Snapshot {
    /// The listener with `key`, if this generation still has it.
    #[must_use]
    pub fn listener(&self, key: ListenerKey) -> Option<&Arc<Listener>> {
        self.listeners
            .binary_search_by_key(&key, |listener| listener.key)
            .ok()
            .map(|index| &self.listeners[index])
    }

    /// The listener that is for a connection now, by where it was [reached] and whichever accepted
    /// it: connections outlive a change of what is bound.
    ///
    /// [reached]: ListenerKey::reached_at
    #[must_use]
    pub fn listener_for(&self, local: ListenerKey) -> Option<&Arc<Listener>> {
        let ListenerKey::Ip { address, port: port @ BindPort::Fixed(_) } = local else {
            return self.listener(local);
        };
        let at = |address| self.listener(ListenerKey::Ip { address, port });
        // Most are bound to all addresses. Those of IPv6 include those of IPv4, not the other way
        // round; there are never two that both are for a connection.
        let all_of_v4 = || at(Ipv4Addr::UNSPECIFIED.into()).filter(|_| address.is_ipv4());
        all_of_v4().or_else(|| at(Ipv6Addr::UNSPECIFIED.into())).or_else(|| at(address))
    }
}
