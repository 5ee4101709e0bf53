//! Listeners: where connections are accepted and what serves them.

use std::net::IpAddr;
use std::sync::Arc;

use super::{HostMap, Identity, RouteTable, TcpTable};

/// What stays the same about a listener while its contents change: what is bound, whoever asks for
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerKey {
    /// The address to bind.
    pub address: IpAddr,
    /// The port to bind.
    pub port: BindPort,
}

/// A port to bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BindPort {
    /// This one.
    Fixed(u16),
    /// Whichever is free, another for each port of Gateways.
    Free {
        /// The port in the Gateway.
        gateway_port: u16,
    },
}

impl BindPort {
    /// The port as the kernel is asked for it: 0 is one that is free.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Self::Fixed(port) => port,
            Self::Free { .. } => 0,
        }
    }
}

/// One address and port, and the servers of all Gateways that share it.
#[derive(Debug)]
pub struct Listener {
    /// Identifies the listener across generations.
    pub key: ListenerKey,
    /// The port in the Gateway, as clients of the Service know it; of several Gateways with
    /// different ones, that of the oldest.
    pub gateway_port: u16,
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
    /// Plain TCP, of one server.
    Tcp(Arc<TcpTable>),
}

/// A Gateway server for TLS. Its routes are its own: nothing ever crosses to another's.
#[derive(Debug)]
pub struct TlsServer {
    /// `https.<port>.<port name>.<gateway>.<namespace>`.
    pub name: String,
    /// What it does with a connection.
    pub serves: TlsServes,
}

/// What a TLS server does with a connection.
#[derive(Debug)]
pub enum TlsServes {
    /// Terminates TLS; inside is HTTP.
    Http(Identity, Arc<RouteTable>),
    /// Terminates TLS; what is inside is passed on as it is.
    Tcp(Identity, Arc<TcpTable>),
    /// Passes the connection on as it is, so that the endpoint terminates TLS.
    Passthrough(Arc<TcpTable>),
}

impl TlsServer {
    /// How it proves who it is; `None` when that is the endpoint's affair.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        match &self.serves {
            TlsServes::Http(identity, _) | TlsServes::Tcp(identity, _) => Some(identity),
            TlsServes::Passthrough(_) => None,
        }
    }

    /// What requests are routed by; `None` when it does not see any.
    #[must_use]
    pub fn http(&self) -> Option<&Arc<RouteTable>> {
        match &self.serves {
            TlsServes::Http(_, routes) => Some(routes),
            TlsServes::Tcp(..) | TlsServes::Passthrough(_) => None,
        }
    }
}
