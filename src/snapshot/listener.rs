//! Listeners: where connections are accepted and what serves them.

use std::net::IpAddr;
use std::sync::Arc;

use crate::address::{Address, PipePath};

use super::{HostMap, Identity, RouteTable, TcpTable};

/// What stays the same about a listener while its contents change: what is bound, whoever asks for
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ListenerKey {
    /// A port.
    Ip {
        /// The address to bind.
        address: IpAddr,
        /// The port to bind.
        port: BindPort,
    },
    /// A Unix socket.
    Pipe(PipePath),
}

impl ListenerKey {
    /// What a connection to `local` that it accepted is known by: tomorrow the address may be
    /// another listener's. A free port is never another's.
    #[must_use]
    pub fn reached_at(self, local: Address) -> Self {
        match (self, local) {
            (Self::Ip { address, port: port @ BindPort::Fixed(_) }, Address::Ip(local))
                if address.is_unspecified() =>
            {
                Self::Ip { address: local.ip(), port }
            }
            (Self::Ip { .. } | Self::Pipe(_), _) => self,
        }
    }

    /// What the kernel is asked to bind.
    #[must_use]
    pub fn address(self) -> Address {
        match self {
            Self::Ip { address, port } => (address, port.number()).into(),
            Self::Pipe(path) => Address::Pipe(path),
        }
    }

    /// Istio's way to name its listener, `0.0.0.0_443`, with the port in the Gateway.
    #[must_use]
    pub fn name(self, gateway_port: u16) -> String {
        match self {
            Self::Ip { address, .. } => format!("{address}_{gateway_port}"),
            Self::Pipe(path) => format!("unix://{path}_{gateway_port}"),
        }
    }

    /// Whether the other is bound to the same port, and one of both to all addresses.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        match (self, other) {
            (
                Self::Ip { address, port: BindPort::Fixed(port) },
                Self::Ip { address: other, port: BindPort::Fixed(others) },
            ) => {
                port == others
                    && address != other
                    && (address.is_unspecified() || other.is_unspecified())
            }
            (Self::Ip { .. } | Self::Pipe(_), _) => false,
        }
    }
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

/// What is bound, and the servers of all Gateways that share it.
#[derive(Debug)]
pub struct Listener {
    /// Identifies the listener across generations.
    pub key: ListenerKey,
    /// The port in the Gateway, as clients of the Service know it; of several Gateways with
    /// different ones, that of the oldest. 0 of a Unix socket.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Snapshot;

    fn key(address: &str, port: BindPort) -> ListenerKey {
        ListenerKey::Ip { address: address.parse().unwrap(), port }
    }

    fn snapshot(keys: &[ListenerKey]) -> Snapshot {
        let mut keys = keys.to_vec();
        keys.sort_unstable();
        let serves = || Serves::Http(Arc::default());
        let listener = |key| Arc::new(Listener { key, gateway_port: 443, serves: serves() });
        Snapshot { listeners: keys.into_iter().map(listener).collect(), ..Snapshot::default() }
    }

    /// Where it is found now what came to `local` by the listener at `accepted`.
    fn found(now: &[ListenerKey], accepted: ListenerKey, local: &str) -> Option<ListenerKey> {
        let local = accepted.reached_at((local.parse::<IpAddr>().unwrap(), 1).into());
        snapshot(now).listener_for(local).map(|listener| listener.key)
    }

    #[test]
    fn a_connection_is_of_the_listener_that_has_its_address_now() {
        let at = |address| key(address, BindPort::Fixed(443));
        let (one, other) = (at("10.0.0.1"), at("10.0.0.2"));
        for all in ["0.0.0.0", "::"].map(at) {
            assert_eq!(found(&[all], all, "10.0.0.1"), Some(all), "nothing changed");
            assert_eq!(found(&[all], one, "10.0.0.1"), Some(all), "it is bound to all");
            assert_eq!(found(&[other, one], all, "10.0.0.1"), Some(one), "it is bound to parts");
            assert_eq!(found(&[other], all, "10.0.0.1"), None, "it is not bound there any more");
            assert_eq!(found(&[key("10.0.0.1", BindPort::Fixed(80))], all, "10.0.0.1"), None);
        }
        assert_eq!(found(&[other], one, "10.0.0.1"), None);
        assert_eq!(found(&[at("0.0.0.0")], at("::"), "10.0.0.1"), Some(at("0.0.0.0")));
        assert_eq!(found(&[at("0.0.0.0")], at("::"), "fd00::1"), None, "that is IPv4 alone");
    }

    #[test]
    fn a_free_port_is_of_one_listener_alone() {
        let at = |address| key(address, BindPort::Free { gateway_port: 443 });
        let (all, one) = (at("0.0.0.0"), at("10.0.0.1"));
        assert_eq!(found(&[all, one], all, "10.0.0.1"), Some(all));
        assert_eq!(found(&[all, one], one, "10.0.0.1"), Some(one));
        assert_eq!(found(&[one], all, "10.0.0.1"), None);
    }
}
