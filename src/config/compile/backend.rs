//! From a service that a route names to its cluster.
//!
//! What a name leads to is looked up once in a generation, and not at all while no backend changed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::backend_tls::{BackendTlsUnits, CLOSED};
use super::locality::{self, Groups};
use super::policy::{self, Rules};
use super::sources::Resources;
use super::{GatewayIdentity, Wanted, WantedNames};
use crate::address::Address;
use crate::config::model::{
    BackendTls, CLUSTER_DOMAIN, Destination, EndpointSlice, EntryAddress, EntryEndpoint, EntryPort,
    Kind, Locality, Pod, Resolution, Service, ServiceEntry, ServicePort, Spec, TargetPort,
    complete,
};
use crate::snapshot::{
    Balance, Cluster, Group, Grouping, HashTable, HostPattern, ProtocolChoice, Traffic,
    TrafficPolicy, UpstreamProtocol,
};

/// Istio's default.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

type Labels = BTreeMap<String, String>;

/// Of an endpoint that has none.
static NO_LABELS: Labels = Labels::new();

/// The DNS names that a service needs.
type Asked = Vec<(String, Wanted)>;

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
    subset: Option<Arc<str>>,
    port: Option<u16>,
}

impl ServiceName {
    fn of(destination: &Destination, namespace: &str) -> Self {
        let Destination { host, subset, port, .. } = destination;
        let full = complete(host, namespace);
        Self { host: Arc::clone(host), full, subset: subset.clone(), port: *port }
    }
}

/// What a service leads to.
struct Found {
    /// `None` when the service is known and has no such port, or no such subset.
    cluster: Option<Arc<Cluster>>,
    /// The DNS names that were asked for.
    names: Asked,
    /// It would lead to the gateway's own administration.
    is_barred: bool,
}

/// Where a service is.
struct Place<'a> {
    host: &'a str,
    /// The service's, if it is one that is known.
    namespace: Option<&'a str>,
    port: u16,
    protocol: UpstreamProtocol,
    endpoints: Vec<Candidate<'a>>,
    /// Of whose certificates its endpoints have one, where it says so.
    subject_alt_names: &'a [String],
}

impl<'a> Place<'a> {
    /// Of which no more is known.
    fn new(
        host: &'a str,
        port: u16,
        protocol: UpstreamProtocol,
        endpoints: Vec<Candidate<'a>>,
    ) -> Self {
        Self { host, namespace: None, port, protocol, endpoints, subject_alt_names: &[] }
    }
}

/// One of a service's endpoints.
pub(super) struct Candidate<'a> {
    pub(super) address: Address,
    pub(super) weight: u32,
    pub(super) labels: &'a Labels,
    /// As far as it is told.
    pub(super) locality: Locality<'a>,
}

impl Candidate<'_> {
    /// With nothing said of it.
    fn new(address: Address) -> Self {
        Self { address, weight: 1, labels: &NO_LABELS, locality: Locality::default() }
    }
}

/// The ServiceEntries by host; the first one wins.
#[derive(Default)]
struct Entries<'a> {
    exact: HashMap<&'a str, (&'a str, &'a ServiceEntry)>,
    /// By what stands behind `*.`.
    wildcard: HashMap<&'a str, (&'a str, &'a ServiceEntry)>,
}

impl<'a> Entries<'a> {
    fn add(&mut self, namespace: &'a str, entry: &'a ServiceEntry) {
        for host in &entry.hosts {
            let (map, name) = match host {
                HostPattern::Exact(name) => (&mut self.exact, name),
                HostPattern::Wildcard(suffix) => (&mut self.wildcard, suffix),
                HostPattern::Any => continue,
            };
            map.entry(name).or_insert((namespace, entry));
        }
    }

    /// The one with the most specific host for `host`.
    fn get(&self, host: &str) -> Option<(&'a str, &'a ServiceEntry)> {
        let exact = self.exact.get(host);
        let mut suffixes = host.match_indices('.').map(|(dot, _)| &host[dot + 1..]);
        exact.or_else(|| suffixes.find_map(|suffix| self.wildcard.get(suffix))).copied()
    }
}

/// What clusters are made of.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) resources: &'a Resources,
    /// Who sees it.
    pub(super) gateway: &'a GatewayIdentity,
    pub(super) secured: &'a BackendTlsUnits,
    /// The addresses of a DNS name, as far as they are known.
    pub(super) resolved: &'a dyn Fn(&str) -> Option<Vec<IpAddr>>,
}

/// Everything that a destination can mean.
pub(super) struct Backends<'a> {
    /// By namespace and name.
    services: HashMap<(&'a str, &'a str), &'a Service>,
    /// By namespace and Service.
    slices: HashMap<(&'a str, &'a str), Vec<&'a EndpointSlice>>,
    /// By namespace and name.
    pods: HashMap<(&'a str, &'a str), &'a Pod>,
    /// With their namespaces.
    entries: Entries<'a>,
    /// What a ServiceEntry can select: WorkloadEntries and Pods. By namespace.
    workloads: HashMap<&'a str, Vec<&'a EntryEndpoint>>,
    rules: Rules<'a>,
    gateway: &'a GatewayIdentity,
    secured: &'a BackendTlsUnits,
    resolved: &'a dyn Fn(&str) -> Option<Vec<IpAddr>>,
    before: Clusters,
    /// Whether all in `before` still holds.
    is_current: bool,
    after: Clusters,
    /// Services that would lead to the gateway's own administration.
    barred: HashSet<ServiceName>,
}

impl<'a> Backends<'a> {
    /// What is `known`, which is the same as it was for `before` if `is_current`.
    pub(super) fn new(known: Known<'a>, before: Clusters, is_current: bool) -> Self {
        let Known { resources, gateway, secured, resolved } = known;
        let (mut services, mut slices) = (HashMap::new(), HashMap::new());
        let (mut entries, mut pods) = (Entries::default(), HashMap::new());
        let mut workloads = HashMap::new();
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
        for (key, placed) in resources.of_kind(Kind::Pod) {
            if let Spec::Pod(pod) = &placed.resource.spec {
                pods.insert((&*key.namespace, &*key.name), pod);
                let selectable = pod.endpoint.as_deref().into_iter();
                workloads.entry(&*key.namespace).or_insert_with(Vec::new).extend(selectable);
            }
        }
        for (key, placed) in resources.of_kind(Kind::ServiceEntry) {
            if let Spec::ServiceEntry(entry) = &placed.resource.spec
                && entry.export.reaches(&gateway.namespace, &key.namespace)
            {
                entries.add(&key.namespace, entry);
            }
        }
        for (key, placed) in resources.of_kind(Kind::WorkloadEntry) {
            if let Spec::WorkloadEntry(endpoint) = &placed.resource.spec {
                workloads.entry(&*key.namespace).or_insert_with(Vec::new).push(&**endpoint);
            }
        }
        let (rules, after) = (Rules::new(resources, gateway), Clusters::default());
        Self {
            services,
            slices,
            pods,
            entries,
            workloads,
            rules,
            gateway,
            secured,
            resolved,
            before,
            is_current,
            after,
            barred: HashSet::new(),
        }
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
        self.barred.extend(found.is_barred.then(|| wanted.0.clone()));
        self.after.0.insert(wanted, found);
        cluster
    }

    /// The clusters that were asked for, and the DNS names that they need.
    pub(super) fn finish(self) -> (Clusters, WantedNames) {
        let mut names = WantedNames::new();
        for (name, wanted) in self.after.0.values().flat_map(|found| &found.names) {
            match names.get_mut(name) {
                Some(already) => *already = (*already).max(*wanted),
                None => drop(names.insert(name.clone(), *wanted)),
            }
        }
        (self.after, names)
    }

    fn look_up(&self, service: &ServiceName, port: u16, before: Option<Found>) -> Found {
        let mut names = Vec::new();
        let mut place = self.place(service, port, &mut names);
        let is_barred = place.as_mut().is_some_and(|place| {
            place.endpoints.extract_if(.., |e| self.gateway.is_admin(e.address)).count() > 0
        });
        let old = before.and_then(|before| before.cluster);
        let subset = service.subset.as_deref();
        let new = place.and_then(|place| self.cluster(place, subset, old.as_deref()));
        // The same `Arc` for an equal cluster.
        let same = old.filter(|old| new.as_ref() == Some(&**old));
        Found { cluster: same.or_else(|| new.map(Arc::new)), names, is_barred }
    }

    fn place<'s>(
        &'s self,
        ServiceName { host, full, port: wanted, .. }: &'s ServiceName,
        port: u16,
        names: &mut Asked,
    ) -> Option<Place<'s>> {
        if let Some((key, service)) = self.service(full) {
            self.place_of_service(full, key, service, *wanted, port, names)
        } else if let Some(entry) = self.entries.get(full) {
            self.place_of_entry(full, entry, *wanted, port, names)
        } else if let Some(entry) = self.entries.get(host) {
            self.place_of_entry(host, entry, *wanted, port, names)
        } else {
            Some(self.place_of_dns(full, host, wanted.unwrap_or(port), names))
        }
    }

    /// The cluster at `place`, or what of it is in `subset`; `old` is what it was before.
    fn cluster(
        &self,
        place: Place<'_>,
        subset: Option<&str>,
        old: Option<&Cluster>,
    ) -> Option<Cluster> {
        let Place { host, namespace, port, protocol, mut endpoints, subject_alt_names } = place;
        let rules = self.rules.of(host, namespace);
        let part = match subset {
            Some(name) => Some(rules.subset(name)?),
            None => None,
        };
        if let Some(part) = part {
            endpoints.retain(|endpoint| policy::has_all(endpoint.labels, &part.labels));
        }
        let blocks = rules.blocks(part, port);
        let policy = policy::policy(&blocks);
        distinct(&mut endpoints);
        let rule = blocks.balancer.as_ref().and_then(|balancer| balancer.locality.as_ref());
        let detects = policy.outliers.is_some();
        let groups = locality::group(&mut endpoints, rule, detects, self.gateway);
        let protocol = match policy.pool.protocol {
            ProtocolChoice::Http2 => UpstreamProtocol::Http2,
            ProtocolChoice::OfPort | ProtocolChoice::OfClient => protocol,
        };
        Some(Cluster {
            name: format!("outbound|{port}|{}|{host}", subset.unwrap_or_default()),
            host: host.to_owned(),
            protocol,
            connect_timeout: policy.pool.connect_timeout.unwrap_or(CONNECT_TIMEOUT),
            traffic: traffic(policy, &endpoints, groups, old),
            tls: match &blocks.tls {
                Some(BackendTls::Use(tls)) => {
                    Some(self.secured.find(tls, subject_alt_names, protocol))
                }
                Some(BackendTls::Closed) => Some(Arc::clone(&CLOSED)),
                Some(BackendTls::Disable) | None => None,
            },
            endpoints: endpoints.iter().map(|endpoint| endpoint.address).collect(),
        })
    }

    /// What to say of a destination that leads nowhere: its Service or ServiceEntry is known and
    /// lacks its port, or no DestinationRule has its subset. `listeners` are the ports of all
    /// Gateways.
    pub(super) fn unknown(
        &self,
        destination: &Destination,
        namespace: &str,
        listeners: &BTreeSet<u16>,
    ) -> Option<String> {
        self.unknown_port(destination, namespace, listeners)
            .or_else(|| self.unknown_subset(destination, namespace))
    }

    /// What to say of a destination with an endpoint that nobody is led to.
    pub(super) fn barred(&self, destination: &Destination, namespace: &str) -> Option<String> {
        let is_barred = self.barred.contains(&ServiceName::of(destination, namespace));
        let (host, admin) = (&destination.host, self.gateway.admin);
        is_barred.then(|| format!("{host} leads to the gateway's own administration at {admin}"))
    }

    fn unknown_port(
        &self,
        destination: &Destination,
        namespace: &str,
        listeners: &BTreeSet<u16>,
    ) -> Option<String> {
        let ServiceName { host, full, .. } = ServiceName::of(destination, namespace);
        let (kind, ports): (_, Vec<u16>) = if let Some((_, service)) = self.service(&full) {
            service.external_name.is_none().then_some(())?;
            ("Service", service.ports.iter().map(|port| port.number).collect())
        } else {
            let (_, entry) = self.entries.get(&full).or_else(|| self.entries.get(&host))?;
            ("ServiceEntry", entry.ports.iter().map(|port| port.number).collect())
        };
        let list: Vec<_> = ports.iter().map(u16::to_string).collect();
        let Some(wanted) = destination.port else {
            // Without one it is the sole port, else that of the listener.
            let is_lost = ports.len() > 1 && ports.iter().all(|port| !listeners.contains(port));
            let list = list.join(" or ");
            return is_lost.then(|| format!("name the port of {kind} {host}, which is {list}"));
        };
        let others = if list.is_empty() {
            "nor any".to_owned()
        } else {
            format!("only {}", list.join(", "))
        };
        (!ports.contains(&wanted)).then(|| format!("{kind} {host} has no port {wanted}, {others}"))
    }

    fn unknown_subset(&self, destination: &Destination, namespace: &str) -> Option<String> {
        let subset = destination.subset.as_deref()?;
        let name = ServiceName::of(destination, namespace);
        let (host, namespace) = match self.service(&name.full) {
            Some(((namespace, _), _)) => (&name.full, Some(namespace)),
            None => match (self.entries.get(&name.full), self.entries.get(&name.host)) {
                (Some((namespace, _)), _) => (&name.full, Some(namespace)),
                (None, Some((namespace, _))) => (&name.host, Some(namespace)),
                (None, None) => (&name.full, None),
            },
        };
        let rules = self.rules.of(host, namespace);
        if rules.subset(subset).is_some() {
            return None;
        }
        let known: Vec<_> = rules.subsets().collect();
        let only =
            if known.is_empty() { String::new() } else { format!(", only {}", known.join(", ")) };
        Some(format!("no DestinationRule for {host} has a subset `{subset}`{only}"))
    }

    fn service<'b>(&'b self, host: &'b str) -> Option<((&'b str, &'b str), &'b Service)> {
        let (name, namespace) =
            host.strip_suffix(CLUSTER_DOMAIN)?.strip_suffix('.')?.split_once('.')?;
        let (key, service) = self.services.get_key_value(&(namespace, name))?;
        Some((*key, service))
    }

    fn place_of_service<'s>(
        &'s self,
        host: &'s str,
        key: (&'s str, &'s str),
        service: &Service,
        wanted: Option<u16>,
        listener: u16,
        names: &mut Asked,
    ) -> Option<Place<'s>> {
        let number = choose(wanted, service.ports.iter().map(|port| port.number), listener);
        let port = service.ports.iter().find(|port| port.number == number);
        let (endpoints, protocol) = if let Some(external) = &service.external_name {
            let protocol = port.map_or(UpstreamProtocol::Http1, service_protocol);
            (at(self.resolve(&[external], Wanted::All, names), number), protocol)
        } else {
            let port = port?;
            let slices = self.slices.get(&key).map(Vec::as_slice).unwrap_or_default();
            let endpoints = slices.iter().flat_map(|slice| self.endpoints_of(key.0, slice, port));
            (endpoints.collect(), service_protocol(port))
        };
        let place = Place::new(host, number, protocol, endpoints);
        Some(Place { namespace: Some(key.0), ..place })
    }

    fn endpoints_of(
        &self,
        namespace: &str,
        slice: &'a EndpointSlice,
        port: &ServicePort,
    ) -> Vec<Candidate<'a>> {
        let pod = |name: &str| self.pods.get(&(namespace, name)).map(|pod| &pod.labels);
        let number = slice_port(slice, port);
        let endpoints = slice.endpoints.iter().filter_map(move |endpoint| {
            let labels = endpoint.pod.as_deref().and_then(pod).unwrap_or(&slice.labels);
            let address = Address::from((endpoint.address, number?));
            let zone = endpoint.zone.as_deref().unwrap_or_default();
            let locality = Locality { zone, ..Locality::default() };
            Some(Candidate { address, weight: 1, labels, locality })
        });
        endpoints.collect()
    }

    fn place_of_entry<'s>(
        &'s self,
        host: &'s str,
        (namespace, entry): (&'s str, &'s ServiceEntry),
        wanted: Option<u16>,
        listener: u16,
        names: &mut Asked,
    ) -> Option<Place<'s>> {
        let number = choose(wanted, entry.ports.iter().map(|port| port.number), listener);
        let port = entry.ports.iter().find(|port| port.number == number)?;
        let is_own_name = match entry.resolution {
            Resolution::Static => false,
            Resolution::Dns | Resolution::FirstOfDns => {
                entry.endpoints.is_empty() && entry.selector.is_none()
            }
            Resolution::None => true,
        };
        let endpoints = if is_own_name {
            at(self.resolve(&[host], extent(entry.resolution), names), port.target)
        } else {
            self.entry_endpoints(namespace, entry, port, names)
        };
        let place = Place::new(host, number, port.protocol, endpoints);
        let (namespace, subject_alt_names) = (Some(namespace), &entry.subject_alt_names[..]);
        Some(Place { namespace, subject_alt_names, ..place })
    }

    /// Those that are written in `entry`, or that it selects.
    fn entry_endpoints<'s>(
        &'s self,
        namespace: &str,
        entry: &'s ServiceEntry,
        port: &EntryPort,
        names: &mut Asked,
    ) -> Vec<Candidate<'s>> {
        let selected = entry.selector.iter().flat_map(|labels| {
            let all = self.workloads.get(namespace).into_iter().flatten().copied();
            all.filter(|workload| policy::has_all(&workload.labels, labels))
        });
        let mut endpoints = Vec::new();
        let wanted = extent(entry.resolution);
        for endpoint in entry.endpoints.iter().chain(selected) {
            let number = endpoint.ports.get(&port.name).copied().unwrap_or(port.target);
            let found = match &endpoint.address {
                EntryAddress::Nowhere => Vec::new(),
                EntryAddress::Host(host) => at(self.resolve(&[host], wanted, names), number),
                EntryAddress::Pipe(path) => vec![Candidate::new(Address::Pipe(*path))],
            };
            let (weight, labels) = (endpoint.weight, &endpoint.labels);
            let locality = Locality::parse(&endpoint.locality);
            endpoints.extend(found.into_iter().map(|found| Candidate {
                weight,
                labels,
                locality,
                ..found
            }));
        }
        endpoints
    }

    fn place_of_dns<'s>(
        &self,
        full: &'s str,
        written: &str,
        port: u16,
        names: &mut Asked,
    ) -> Place<'s> {
        let endpoints = at(self.resolve(&[full, written], Wanted::All, names), port);
        Place::new(full, port, UpstreamProtocol::Http1, endpoints)
    }

    /// The `wanted` addresses of the first of `candidates` that has any; all of these become
    /// `names`.
    fn resolve(&self, candidates: &[&str], wanted: Wanted, names: &mut Asked) -> Vec<IpAddr> {
        if let Some(address) = candidates.first().and_then(|name| name.parse().ok()) {
            return vec![address];
        }
        names.extend(candidates.iter().map(|name| ((*name).to_owned(), wanted)));
        let mut known = candidates.iter().filter_map(|name| (self.resolved)(name));
        let mut found = known.find(|addresses| !addresses.is_empty()).unwrap_or_default();
        if wanted == Wanted::First {
            found.truncate(1);
        }
        found
    }
}

/// Which addresses of its names are endpoints.
fn extent(resolution: Resolution) -> Wanted {
    match resolution {
        Resolution::FirstOfDns => Wanted::First,
        Resolution::Static | Resolution::Dns | Resolution::None => Wanted::All,
    }
}

/// Explicit, else the sole one, else that of the listener.
fn choose(wanted: Option<u16>, mut ports: impl Iterator<Item = u16>, listener: u16) -> u16 {
    wanted.unwrap_or_else(|| match (ports.next(), ports.next()) {
        (Some(only), None) => only,
        _ => listener,
    })
}

fn at<'a>(addresses: Vec<IpAddr>, port: u16) -> Vec<Candidate<'a>> {
    addresses.into_iter().map(|address| Candidate::new((address, port).into())).collect()
}

/// Sorts them, and leaves each once.
fn distinct(all: &mut Vec<Candidate<'_>>) {
    all.sort_by_key(|endpoint| endpoint.address);
    all.dedup_by_key(|endpoint| endpoint.address);
}

/// Addresses and weights of endpoints; no weights if all are the same.
fn weighed<'c>(endpoints: impl Iterator<Item = &'c Candidate<'c>>) -> (Vec<Address>, Box<[u32]>) {
    let (addresses, weights): (Vec<_>, Vec<_>) =
        endpoints.map(|endpoint| (endpoint.address, endpoint.weight)).unzip();
    let is_plain = weights.windows(2).all(|two| two[0] == two[1]);
    (addresses, if is_plain { Box::default() } else { weights.into() })
}

/// What `policy`, weights and groups ask for, if it is not what is done anyway. A table of `old`
/// that was made of the same is used again.
fn traffic(
    policy: TrafficPolicy,
    all: &[Candidate<'_>],
    groups: Option<Groups>,
    old: Option<&Cluster>,
) -> Option<Box<Traffic>> {
    let (endpoints, weights) = weighed(all.iter());
    if policy == TrafficPolicy::default() && weights.is_empty() && groups.is_none() {
        return None;
    }
    let grouping = groups.map(|groups| Box::new(grouping(&policy, all, groups)));
    let table = match (&policy.balance, &grouping) {
        (Balance::Hash(hash), None) => {
            let before = old.and_then(|old| Some((old, old.traffic.as_ref()?)));
            let same = before.filter(|(old, before)| {
                let is_spread = matches!(&before.policy.balance, Balance::Hash(other)
                    if other.spread == hash.spread);
                is_spread && old.endpoints == endpoints && before.weights == weights
            });
            match same.and_then(|(_, before)| before.table.clone()) {
                Some(table) => Some(table),
                None => HashTable::new(&endpoints, &weights, hash.spread).map(Arc::new),
            }
        }
        // Each group has its own.
        (Balance::Hash(_), Some(_))
        | (Balance::LeastRequest | Balance::RoundRobin | Balance::Random, _) => None,
    };
    let traffic = Traffic::new(policy, weights, table).among(&endpoints);
    Some(Box::new(Traffic { grouping, ..traffic }))
}

fn grouping(policy: &TrafficPolicy, all: &[Candidate<'_>], (order, groups): Groups) -> Grouping {
    let groups = groups.into_iter().map(|(weight, places)| {
        let (endpoints, weights) = weighed(places.iter().map(|place| &all[*place]));
        let table = match &policy.balance {
            Balance::Hash(hash) => HashTable::new(&endpoints, &weights, hash.spread).map(Arc::new),
            Balance::LeastRequest | Balance::RoundRobin | Balance::Random => None,
        };
        let traffic = Traffic::new(policy.clone(), weights, table);
        Group { weight, places: places.into(), traffic }
    });
    Grouping { order, groups: groups.collect() }
}

/// The port that the endpoints of `slice` have for a Service's.
fn slice_port(slice: &EndpointSlice, port: &ServicePort) -> Option<u16> {
    let found = slice.ports.iter().find(|other| other.name == port.name);
    match (found, &port.target) {
        (Some(found), TargetPort::Number(target)) => Some(found.number.unwrap_or(*target)),
        (Some(found), TargetPort::Name(_)) => found.number,
        (None, TargetPort::Number(target)) if slice.ports.is_empty() => Some(*target),
        (None, _) => None,
    }
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
