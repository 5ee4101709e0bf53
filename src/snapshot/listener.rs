//! Listeners: where connections are accepted and what serves them.

use std::net::IpAddr;
use std::sync::Arc;

use super::{HostMap, Identity, RouteTable};

/// What stays the same about a listener while its contents change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerKey {
    /// The address to bind.
    pub address: IpAddr,
    /// The port in the Gateway, as clients of the Service know it.
    pub gateway_port: u16,
}

/// One address and port, and the servers of all Gateways that share it.
#[derive(Debug)]
pub struct Listener {
    /// Identifies the listener across generations.
    pub key: ListenerKey,
    /// The port to bind; 0 asks the kernel for a free one.
    pub bind_port: u16,
    /// What happens with a connection.
    pub serves: Serves,
}

/// The protocol of a listener.
#[derive(Debug)]
pub enum Serves {
    /// Plain HTTP/1.1 and HTTP/2 with prior knowledge: all servers share one table.
    Http(Arc<RouteTable>),
    /// TLS, whose server is chosen by SNI. Clients without SNI get the server of `*`, if any.
    Tls(HostMap<Arc<TlsServer>>),
}

/// A Gateway server that terminates TLS. Its routes are its own: requests never cross to another's.
#[derive(Debug)]
pub struct TlsServer {
    /// `https.<port>.<port name>.<gateway>.<namespace>`.
    pub name: String,
    /// How it proves who it is.
    pub identity: Identity,
    /// What it serves.
    pub routes: Arc<RouteTable>,
}
