//! From a service that a route names to its cluster.
//!
//! What a name leads to is looked up once in a generation, and not at all while no backend changed.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::sources::Resources;
use crate::config::model::{
    CLUSTER_DOMAIN, Destination, EndpointSlice, EntryPort, Kind, Resolution, Service, ServiceEntry,
    ServicePort, Spec, TargetPort, complete,
};
use crate::snapshot::{Cluster, UpstreamProtocol};

/// Istio's default.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What each service leads to, for listeners on a port; kept from one generation to the next.
#[derive(Default)]
pub(super) struct Clusters(HashMap<(ServiceName, u16), Found>);

/// What a destination means, the same for all that say the same.
#[derive(Clone, PartialEq, Eq, Hash)]
struct ServiceName {
    /// As written, in lower case.
    host: Arc<str>,
    /// Completed with the VirtualService's namespace.
    full: Arc<str>,
    port: Option<u16>,
}

impl ServiceName {
    fn of(destination: &Destination, namespace: &str) -> Self {
        let Destination { host, port, .. } = destination;
        Self { host: Arc::clone(host), full: complete(host, namespace), port: *port }
    }
}

/// What a service leads to.
struct Found {
    /// `None` when the service is known and has no such port.
    cluster: Option<Arc<Cluster>>,
    /// The DNS names that were asked for.
    names: Vec<String>,
}

/// Everything that a destination can mean.
pub(super) struct Backends<'a> {
    /// By namespace and name.
    services: HashMap<(&'a str, &'a str), &'a Service>,
    /// By namespace and Service.
    slices: HashMap<(&'a str, &'a str), Vec<&'a EndpointSlice>>,
    /// By host; the first one wins.
    entries: HashMap<&'a str, &'a ServiceEntry>,
    resolved: &'a dyn Fn(&str) -> Option<Vec<IpAddr>>,
    before: Clusters,
    /// Whether all in `before` still holds.
    is_current: bool,
    after: Clusters,
}

impl<'a> Backends<'a> {
    /// What `resources` and DNS know, as seen from `namespace`, the gateway's. They know the same
    /// as they did for `before` if `is_current`.
    pub(super) fn new(
        resources: &'a Resources,
        namespace: &str,
        resolved: &'a dyn Fn(&str) -> Option<Vec<IpAddr>>,
        before: Clusters,
        is_current: bool,
    ) -> Self {
        let (mut services, mut slices) = (HashMap::new(), HashMap::new());
        let mut entries = HashMap::new();
        for (key, placed) in resources.of_kind(Kind::Service) {
            if let Spec::Service(service) = &placed.resource.spec {
                services.insert((&*key.namespace, &*key.name), service);
            }
        }
        for (key, placed) in resources.of_kind(Kind::EndpointSlice) {
            if let Spec::EndpointSlice(slice) = &placed.resource.spec
                && let Some(service) = &slice.service
            {
                let service = (&*key.namespace, service.as_str());
                slices.entry(service).or_insert_with(Vec::new).push(slice);
            }
        }
        for (key, placed) in resources.of_kind(Kind::ServiceEntry) {
            if let Spec::ServiceEntry(entry) = &placed.resource.spec
                && entry.export.reaches(namespace, &key.namespace)
            {
                for host in &entry.hosts {
                    entries.entry(host.as_str()).or_insert(entry);
                }
            }
        }
        let after = Clusters::default();
        Self { services, slices, entries, resolved, before, is_current, after }
    }

    /// The cluster of `destination` of a VirtualService in `namespace`, for a listener on `port`;
    /// `None` when the service is known and has no such port.
    pub(super) fn find(
        &mut self,
        destination: &Destination,
        namespace: &str,
        port: u16,
    ) -> Option<Arc<Cluster>> {
        let wanted = (ServiceName::of(destination, namespace), port);
        if let Some(found) = self.after.0.get(&wanted) {
            return found.cluster.clone();
        }
        let before = self.before.0.remove(&wanted);
        let found = match before {
            Some(before) if self.is_current => before,
            before => self.look_up(&wanted.0, port, before),
        };
        let cluster = found.cluster.clone();
        self.after.0.insert(wanted, found);
        cluster
    }

    /// The clusters that were asked for, and the DNS names that they need.
    pub(super) fn finish(self) -> (Clusters, BTreeSet<String>) {
        let names = self.after.0.values().flat_map(|found| &found.names).cloned().collect();
        (self.after, names)
    }

    fn look_up(&self, service: &ServiceName, port: u16, before: Option<Found>) -> Found {
        let mut names = Vec::new();
        let new = self.cluster(service, port, &mut names);
        // The same `Arc` for an equal cluster.
        let old = before.and_then(|before| before.cluster);
        let same = old.filter(|old| new.as_ref() == Some(&**old));
        Found { cluster: same.or_else(|| new.map(Arc::new)), names }
    }

    fn cluster(
        &self,
        ServiceName { host, full, port: wanted }: &ServiceName,
        port: u16,
        names: &mut Vec<String>,
    ) -> Option<Cluster> {
        if let Some((key, service)) = self.service(full) {
            self.cluster_of_service(full, key, service, *wanted, port, names)
        } else if let Some(entry) = self.entries.get(&**full) {
            self.cluster_of_entry(full, entry, *wanted, port, names)
        } else if let Some(entry) = self.entries.get(&**host) {
            self.cluster_of_entry(host, entry, *wanted, port, names)
        } else {
            Some(self.cluster_of_dns(full, host, wanted.unwrap_or(port), names))
        }
    }

    /// What to say of a destination whose Service or ServiceEntry is known and lacks its port.
    pub(super) fn unknown_port(
        &self,
        destination: &Destination,
        namespace: &str,
    ) -> Option<String> {
        let wanted = destination.port?;
        let ServiceName { host, full, .. } = ServiceName::of(destination, namespace);
        let (kind, ports): (_, Vec<u16>) = if let Some((_, service)) = self.service(&full) {
            service.external_name.is_none().then_some(())?;
            ("Service", service.ports.iter().map(|port| port.number).collect())
        } else {
            let entry = self.entries.get(&*full).or_else(|| self.entries.get(&*host))?;
            ("ServiceEntry", entry.ports.iter().map(|port| port.number).collect())
        };
        let list: Vec<_> = ports.iter().map(u16::to_string).collect();
        (!ports.contains(&wanted))
            .then(|| format!("{kind} {host} has no port {wanted}, only {}", list.join(", ")))
    }

    fn service<'b>(&'b self, host: &'b str) -> Option<((&'b str, &'b str), &'b Service)> {
        let (name, namespace) =
            host.strip_suffix(CLUSTER_DOMAIN)?.strip_suffix('.')?.split_once('.')?;
        let (key, service) = self.services.get_key_value(&(namespace, name))?;
        Some((*key, service))
    }

    fn cluster_of_service(
        &self,
        host: &str,
        key: (&str, &str),
        service: &Service,
        wanted: Option<u16>,
        listener: u16,
        names: &mut Vec<String>,
    ) -> Option<Cluster> {
        if let Some(external) = &service.external_name {
            let number = choose(wanted, service.ports.iter().map(|port| port.number), listener);
            let addresses = self.resolve(&[external], names);
            let protocol = service.ports.iter().find(|port| port.number == number);
            let protocol = protocol.map_or(UpstreamProtocol::Http1, service_protocol);
            return Some(cluster(host, number, protocol, at(addresses, number)));
        }
        let number = choose(wanted, service.ports.iter().map(|port| port.number), listener);
        let port = service.ports.iter().find(|port| port.number == number)?;
        let slices = self.slices.get(&key).map(Vec::as_slice).unwrap_or_default();
        let endpoints = slices.iter().flat_map(|slice| slice_endpoints(slice, port)).collect();
        Some(cluster(host, number, service_protocol(port), endpoints))
    }

    fn cluster_of_entry(
        &self,
        host: &str,
        entry: &ServiceEntry,
        wanted: Option<u16>,
        listener: u16,
        names: &mut Vec<String>,
    ) -> Option<Cluster> {
        let number = choose(wanted, entry.ports.iter().map(|port| port.number), listener);
        let port = entry.ports.iter().find(|port| port.number == number)?;
        let endpoints = match entry.resolution {
            Resolution::Dns if entry.endpoints.is_empty() => {
                at(self.resolve(&[host], names), port.target)
            }
            Resolution::Static | Resolution::Dns => self.entry_endpoints(entry, port, names),
        };
        Some(cluster(host, number, port.protocol, endpoints))
    }

    fn entry_endpoints(
        &self,
        entry: &ServiceEntry,
        port: &EntryPort,
        names: &mut Vec<String>,
    ) -> Vec<SocketAddr> {
        let mut endpoints = Vec::new();
        for endpoint in &entry.endpoints {
            let number = endpoint.ports.get(&port.name).copied().unwrap_or(port.target);
            endpoints.extend(at(self.resolve(&[&endpoint.address], names), number));
        }
        endpoints
    }

    fn cluster_of_dns(
        &self,
        full: &str,
        written: &str,
        port: u16,
        names: &mut Vec<String>,
    ) -> Cluster {
        let addresses = self.resolve(&[full, written], names);
        cluster(full, port, UpstreamProtocol::Http1, at(addresses, port))
    }

    /// The addresses of the first of `candidates` that has any; all of them become `names`.
    fn resolve(&self, candidates: &[&str], names: &mut Vec<String>) -> Vec<IpAddr> {
        if let Some(address) = candidates.first().and_then(|name| name.parse().ok()) {
            return vec![address];
        }
        names.extend(candidates.iter().map(|name| (*name).to_owned()));
        let known = candidates.iter().filter_map(|name| (self.resolved)(name));
        known.into_iter().find(|addresses| !addresses.is_empty()).unwrap_or_default()
    }
}

/// Explicit, else the sole one, else that of the listener.
fn choose(wanted: Option<u16>, mut ports: impl Iterator<Item = u16>, listener: u16) -> u16 {
    wanted.unwrap_or_else(|| match (ports.next(), ports.next()) {
        (Some(only), None) => only,
        _ => listener,
    })
}

fn at(addresses: Vec<IpAddr>, port: u16) -> Vec<SocketAddr> {
    addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect()
}

fn cluster(
    host: &str,
    port: u16,
    protocol: UpstreamProtocol,
    mut endpoints: Vec<SocketAddr>,
) -> Cluster {
    endpoints.sort_unstable();
    endpoints.dedup();
    let (name, host) = (format!("outbound|{port}||{host}"), host.to_owned());
    Cluster { name, host, protocol, endpoints, connect_timeout: CONNECT_TIMEOUT }
}

fn slice_endpoints(slice: &EndpointSlice, port: &ServicePort) -> Vec<SocketAddr> {
    let found = slice.ports.iter().find(|other| other.name == port.name);
    let number = match (found, &port.target) {
        (Some(found), TargetPort::Number(target)) => Some(found.number.unwrap_or(*target)),
        (Some(found), TargetPort::Name(_)) => found.number,
        (None, TargetPort::Number(target)) if slice.ports.is_empty() => Some(*target),
        (None, _) => None,
    };
    let addresses = slice.addresses.iter();
    number.map(|n| addresses.map(|a| SocketAddr::new(*a, n)).collect()).unwrap_or_default()
}

/// `appProtocol` wins over the port's name, as in Istio.
fn service_protocol(port: &ServicePort) -> UpstreamProtocol {
    let http2 = match &port.app_protocol {
        Some(app) => {
            let app = app.to_ascii_lowercase();
            matches!(app.as_str(), "kubernetes.io/h2c" | "http2" | "grpc" | "grpc-web" | "h2c")
        }
        None => {
            let word = port.name.split('-').next().unwrap_or_default();
            matches!(word, "http2" | "grpc" | "h2c")
        }
    };
    if http2 { UpstreamProtocol::Http2 } else { UpstreamProtocol::Http1 }
}
