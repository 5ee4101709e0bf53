//! Clusters: the endpoints that requests for one service and port go to.

use std::sync::Arc;
use std::time::Duration;

use crate::address::Address;

use super::BackendTls;
use super::traffic::Traffic;

/// A service on one port, resolved.
///
/// Having a `Cluster` tells you that the destination exists; it may still have no endpoint right
/// now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Envoy's name of it, `outbound|8000||httpbin.default.svc.cluster.local`.
    pub name: String,
    /// The host that it stands for, `httpbin.default.svc.cluster.local`.
    pub host: String,
    /// What its endpoints speak.
    pub protocol: UpstreamProtocol,
    /// Distinct, sorted.
    pub endpoints: Vec<Address>,
    /// How long one connect may take, with its handshake if there is one.
    pub connect_timeout: Duration,
    /// What a DestinationRule or the weights of its endpoints ask for; `None` for the defaults.
    pub traffic: Option<Box<Traffic>>,
    /// How its endpoints are spoken TLS with, if they are.
    pub tls: Option<Arc<BackendTls>>,
}

/// The protocol towards an endpoint, from the port's name or `appProtocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UpstreamProtocol {
    /// HTTP/1.1 over TCP, the default.
    Http1,
    /// HTTP/2 with prior knowledge over TCP (`http2`, `grpc`, `kubernetes.io/h2c`).
    Http2,
}
