//! Routing of connections that are not HTTP to the gateway: TCP, TLS that is passed on, and what
//! is inside of TLS that was terminated.
//!
//! [`TcpTable::find`] is a pure function: the narrowest name first, then the first route whose
//! addresses hold. As in Envoy, a wider name is not tried when no route of the narrower one does.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Forward, HostMap, Network};

/// The routes of one server.
#[derive(Debug, Default)]
pub struct TcpTable {
    /// By SNI where TLS is passed on, else all of them stand at `*`.
    pub hosts: HostMap<Arc<TcpRoutes>>,
}

/// The routes for one name, in order of precedence.
#[derive(Debug, Default)]
pub struct TcpRoutes(pub Box<[TcpRoute]>);

/// A match block of a `tls` or `tcp` rule, and where the rule leads to.
#[derive(Debug)]
pub struct TcpRoute {
    /// Where the client may be; empty for anywhere.
    pub sources: Box<[Network]>,
    /// What the client may have connected to; empty for anything.
    pub destinations: Box<[Network]>,
    /// Where connections go; what is said of headers has no meaning here.
    pub forward: Forward,
}

impl TcpTable {
    /// The route for a connection from `source` to `destination` that asks for `name`. One by a
    /// Unix socket has no address, which is in no range.
    #[must_use]
    pub fn find(
        &self,
        name: Option<&str>,
        source: Option<IpAddr>,
        destination: Option<IpAddr>,
    ) -> Option<&TcpRoute> {
        let routes = match name {
            Some(name) => self.hosts.find(name),
            None => self.hosts.any(),
        };
        routes?.0.iter().find(|route| route.takes(source, destination))
    }
}

impl TcpRoute {
    fn takes(&self, source: Option<IpAddr>, destination: Option<IpAddr>) -> bool {
        let holds = |ranges: &[Network], address: Option<IpAddr>| {
            ranges.is_empty()
                || address.is_some_and(|address| ranges.iter().any(|r| r.contains(address)))
        };
        holds(&self.sources, source) && holds(&self.destinations, destination)
    }

    /// Whether it does the same: leads to the very same clusters.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let (own, others) = (&self.forward.targets, &other.forward.targets);
        let same_targets = own.len() == others.len()
            && own.iter().zip(others).all(|(own, other)| {
                let both = own.cluster.as_ref().zip(other.cluster.as_ref());
                let neither = own.cluster.is_none() && other.cluster.is_none();
                own.weight == other.weight
                    && both.map_or(neither, |(own, other)| Arc::ptr_eq(own, other))
            });
        same_targets && self.sources == other.sources && self.destinations == other.destinations
    }
}

impl TcpRoutes {
    /// Whether each of them does the same.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let mut pairs = self.0.iter().zip(&other.0);
        self.0.len() == other.0.len() && pairs.all(|(own, other)| own.is_same(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(sources: &[&str], destinations: &[&str]) -> TcpRoute {
        let ranges = |all: &[&str]| all.iter().map(|range| range.parse().unwrap()).collect();
        TcpRoute {
            sources: ranges(sources),
            destinations: ranges(destinations),
            forward: Forward { targets: Vec::new() },
        }
    }

    #[test]
    fn the_narrowest_name_and_then_the_first_route_wins() {
        let mut table = TcpTable::default();
        let narrow = [route(&["10.0.0.0/8"], &[]), route(&[], &["192.0.2.1"])];
        let routes = [("a.test", Vec::from(narrow)), ("*.test", vec![route(&[], &[])])];
        for (host, routes) in routes {
            table.hosts.insert(host.parse().unwrap(), Arc::new(TcpRoutes(routes.into())));
        }
        let place = |name, source: &str, destination: &str| {
            let [source, destination] = [source, destination].map(|text| text.parse().ok());
            let found = table.find(name, source, destination)?;
            let find =
                |routes: &Arc<TcpRoutes>| routes.0.iter().position(|r| std::ptr::eq(r, found));
            table.hosts.iter().find_map(|(host, routes)| Some((host.to_string(), find(routes)?)))
        };
        let at = |host: &str, place| Some((host.to_owned(), place));
        assert_eq!(place(Some("a.test"), "10.1.1.1", "192.0.2.1"), at("a.test", 0));
        assert_eq!(place(Some("a.test"), "11.1.1.1", "192.0.2.1"), at("a.test", 1));
        assert_eq!(place(Some("a.test"), "11.1.1.1", "192.0.2.2"), None, "no wider name");
        assert_eq!(place(Some("b.test"), "11.1.1.1", "192.0.2.2"), at("*.test", 0));
        assert_eq!(place(Some("b.example"), "11.1.1.1", "192.0.2.2"), None);
        assert_eq!(place(None, "11.1.1.1", "192.0.2.2"), None);
        assert_eq!(place(Some("a.test"), "unix", "unix"), None, "in no range");
        assert_eq!(place(Some("b.test"), "unix", "unix"), at("*.test", 0));
    }
}
