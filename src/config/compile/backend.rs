//! From a destination to its cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::sources::Resources;
use crate::config::model::{
    CLUSTER_DOMAIN, Destination, EndpointSlice, EntryPort, Key, Kind, Resolution, Service,
    ServiceEntry, ServicePort, Spec, TargetPort, complete,
};
use crate::snapshot::{Cluster, UpstreamProtocol};

/// Istio's default.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Clusters by name, kept from one generation to the next.
pub(super) type Clusters = BTreeMap<String, Arc<Cluster>>;

/// Everything that a destination can mean.
pub(super) struct Backends<'a> {
    resources: &'a Resources,
    /// By namespace and Service.
    slices: BTreeMap<(&'a str, &'a str), Vec<&'a EndpointSlice>>,
    /// By host; the first one wins.
    entries: BTreeMap<&'a str, &'a ServiceEntry>,
    resolved: &'a dyn Fn(&str) -> Option<Vec<IpAddr>>,
    before: &'a Clusters,
    pub(super) clusters: Clusters,
    /// The DNS names that were asked for.
    pub(super) names: BTreeSet<String>,
}

impl<'a> Backends<'a> {
    /// What `resources` and DNS know, as seen from `namespace`, the gateway's.
    pub(super) fn new(
        resources: &'a Resources,
        namespace: &str,
        resolved: &'a dyn Fn(&str) -> Option<Vec<IpAddr>>,
        before: &'a Clusters,
    ) -> Self {
        let (mut slices, mut entries) = (BTreeMap::new(), BTreeMap::new());
        for (key, placed) in resources {
            if let Spec::EndpointSlice(slice) = &placed.resource.spec
                && let Some(service) = &slice.service
            {
                let service = (key.namespace.as_str(), service.as_str());
                slices.entry(service).or_insert_with(Vec::new).push(slice);
            }
            if let Spec::ServiceEntry(entry) = &placed.resource.spec
                && entry.export.reaches(namespace, &key.namespace)
            {
                for host in &entry.hosts {
                    entries.entry(host.as_str()).or_insert(entry);
                }
            }
        }
        let (clusters, names) = (Clusters::new(), BTreeSet::new());
        Self { resources, slices, entries, resolved, before, clusters, names }
    }

    /// All resources.
    pub(super) fn resources(&self) -> &'a Resources {
        self.resources
    }

    /// The cluster of `destination` of a VirtualService in `namespace`, for a listener on `port`;
    /// `None` when the service is known and has no such port.
    pub(super) fn find(
        &mut self,
        destination: &Destination,
        namespace: &str,
        port: u16,
    ) -> Option<Arc<Cluster>> {
        let full = complete(&destination.host, namespace);
        let cluster = if let Some((namespace, name, service)) = self.service(&full) {
            self.cluster_of_service(&full, namespace, &name, service, destination.port, port)?
        } else if let Some(entry) = self.entries.get(full.as_str()) {
            self.cluster_of_entry(&full, entry, destination.port, port)?
        } else if let Some(entry) = self.entries.get(destination.host.as_str()) {
            self.cluster_of_entry(&destination.host, entry, destination.port, port)?
        } else {
            self.cluster_of_dns(&full, &destination.host, destination.port.unwrap_or(port))
        };
        Some(self.intern(cluster))
    }

    /// What to say of a destination whose Service or ServiceEntry is known and lacks its port.
    pub(super) fn unknown_port(
        &self,
        destination: &Destination,
        namespace: &str,
    ) -> Option<String> {
        let wanted = destination.port?;
        let full = complete(&destination.host, namespace);
        let (kind, ports): (_, Vec<u16>) = if let Some((.., service)) = self.service(&full) {
            service.external_name.is_none().then_some(())?;
            ("Service", service.ports.iter().map(|port| port.number).collect())
        } else {
            let host = destination.host.as_str();
            let entry = self.entries.get(full.as_str()).or_else(|| self.entries.get(host))?;
            ("ServiceEntry", entry.ports.iter().map(|port| port.number).collect())
        };
        let list: Vec<_> = ports.iter().map(u16::to_string).collect();
        (!ports.contains(&wanted)).then(|| {
            format!("{kind} {} has no port {wanted}, only {}", destination.host, list.join(", "))
        })
    }

    /// The same `Arc` as before for an equal cluster.
    fn intern(&mut self, cluster: Cluster) -> Arc<Cluster> {
        let same = self.before.get(&cluster.name).filter(|old| ***old == cluster);
        let cluster = same.map_or_else(|| Arc::new(cluster), Arc::clone);
        self.clusters.insert(cluster.name.clone(), Arc::clone(&cluster));
        cluster
    }

    fn service(&self, host: &str) -> Option<(&'a str, String, &'a Service)> {
        let (name, namespace) =
            host.strip_suffix(CLUSTER_DOMAIN)?.strip_suffix('.')?.split_once('.')?;
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let key = Key { kind: Kind::Service, namespace, name };
        let (key, placed) = self.resources.get_key_value(&key)?;
        match &placed.resource.spec {
            Spec::Service(service) => Some((&key.namespace, key.name.clone(), service)),
            Spec::Gateway(_)
            | Spec::VirtualService(_)
            | Spec::ServiceEntry(_)
            | Spec::EndpointSlice(_)
            | Spec::Secret(_) => None,
        }
    }

    fn cluster_of_service(
        &mut self,
        host: &str,
        namespace: &str,
        name: &str,
        service: &Service,
        wanted: Option<u16>,
        listener: u16,
    ) -> Option<Cluster> {
        if let Some(external) = &service.external_name {
            let number = choose(wanted, service.ports.iter().map(|port| port.number), listener);
            let addresses = self.resolve(&[external]);
            let protocol = service.ports.iter().find(|port| port.number == number);
            let protocol = protocol.map_or(UpstreamProtocol::Http1, service_protocol);
            return Some(cluster(host, number, protocol, at(addresses, number)));
        }
        let number = choose(wanted, service.ports.iter().map(|port| port.number), listener);
        let port = service.ports.iter().find(|port| port.number == number)?;
        let slices = self.slices.get(&(namespace, name)).map(Vec::as_slice).unwrap_or_default();
        let endpoints = slices.iter().flat_map(|slice| slice_endpoints(slice, port)).collect();
        Some(cluster(host, number, service_protocol(port), endpoints))
    }

    fn cluster_of_entry(
        &mut self,
        host: &str,
        entry: &ServiceEntry,
        wanted: Option<u16>,
        listener: u16,
    ) -> Option<Cluster> {
        let number = choose(wanted, entry.ports.iter().map(|port| port.number), listener);
        let port = entry.ports.iter().find(|port| port.number == number)?;
        let endpoints = match entry.resolution {
            Resolution::Dns if entry.endpoints.is_empty() => at(self.resolve(&[host]), port.target),
            Resolution::Static | Resolution::Dns => self.entry_endpoints(entry, port),
        };
        Some(cluster(host, number, port.protocol, endpoints))
    }

    fn entry_endpoints(&mut self, entry: &ServiceEntry, port: &EntryPort) -> Vec<SocketAddr> {
        let mut endpoints = Vec::new();
        for endpoint in &entry.endpoints {
            let number = endpoint.ports.get(&port.name).copied().unwrap_or(port.target);
            endpoints.extend(at(self.resolve(&[&endpoint.address]), number));
        }
        endpoints
    }

    fn cluster_of_dns(&mut self, full: &str, written: &str, port: u16) -> Cluster {
        let addresses = self.resolve(&[full, written]);
        cluster(full, port, UpstreamProtocol::Http1, at(addresses, port))
    }

    /// The addresses of the first of `names` that has any.
    fn resolve(&mut self, names: &[&str]) -> Vec<IpAddr> {
        if let Some(address) = names.first().and_then(|name| name.parse().ok()) {
            return vec![address];
        }
        self.names.extend(names.iter().map(|name| (*name).to_owned()));
        let known = names.iter().filter_map(|name| (self.resolved)(name));
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
