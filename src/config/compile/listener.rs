//! From Gateways to the listeners and servers that they ask for.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::route::{Bound, HostPlan, TablePlan, virtual_service};
use super::rules::Scope;
use super::server_hosts::ServerHosts;
use super::sources::{Placed, Resources};
use super::tcp::{self, List, TcpPlan};
use super::{GatewayIdentity, Listen};
use crate::config::model::{
    Bind, Credential, Gateway, Key, Kind, Located, Server, ServerHost, ServerProtocol, Spec, Tls,
    VirtualService,
};
use crate::snapshot::{BindPort, HostPattern, ListenerKey, Origin, Rejection, Severity};

/// What the resources ask for, and what is wrong with that.
pub(super) struct Plan {
    pub(super) listeners: ListenerPlans,
    pub(super) rejections: Vec<Rejection>,
    /// The Gateways that select others than this one, as rejections name them.
    pub(super) foreign: HashSet<String>,
}

/// The listeners by key.
pub(super) type ListenerPlans = BTreeMap<ListenerKey, ListenerPlan>;

/// What is to be served on one address and port.
pub(super) struct ListenerPlan {
    /// The port in the oldest Gateway.
    pub(super) gateway_port: u16,
    pub(super) serves: ServesPlan,
}

/// Plain HTTP servers share one table; a TLS server has its own, and a TCP server is alone.
pub(super) enum ServesPlan {
    Http(BTreeMap<HostPattern, HostPlan>),
    Tls(Vec<TlsPlan>),
    Tcp(TcpPlan),
}

impl ServesPlan {
    /// In words, for who comes too late.
    fn words(&self) -> &'static str {
        match self {
            Self::Http(_) => "plain HTTP",
            Self::Tls(_) => "TLS",
            Self::Tcp(_) => "TCP",
        }
    }
}

/// One TLS server.
pub(super) struct TlsPlan {
    pub(super) source: ServerSource,
    /// Those that no server before it has.
    pub(super) patterns: Box<[HostPattern]>,
    pub(super) routes: TlsRoutesPlan,
}

/// What a TLS server does with connections.
pub(super) enum TlsRoutesPlan {
    Http(TablePlan),
    Tcp(TcpPlan),
    Passthrough(TcpPlan),
}

/// Where a TLS server is written.
#[derive(Clone)]
pub(super) struct ServerSource {
    pub(super) gateway: Placed,
    /// Its place among the Gateway's servers.
    place: usize,
}

impl ServerSource {
    /// As it is written.
    pub(super) fn server(&self) -> &Server {
        let gateway = gateway(&self.gateway).expect("a server stands in a Gateway");
        &gateway.servers[self.place]
    }

    /// How it terminates TLS.
    pub(super) fn tls(&self) -> &Tls {
        match &self.server().protocol {
            ServerProtocol::Https(tls) | ServerProtocol::Tls(tls) => tls,
            ServerProtocol::Http { .. } | ServerProtocol::Passthrough | ServerProtocol::Tcp => {
                unreachable!("only of servers that terminate TLS this is asked")
            }
        }
    }

    /// Where its certificates come from.
    pub(super) fn credentials(&self) -> &[Credential] {
        &self.tls().credentials
    }

    /// What makes it the same server in the next generation: all that is in its name.
    pub(super) fn id(&self) -> (Arc<str>, Arc<str>, Arc<str>, u16) {
        let (key, server) = (&self.gateway.resource.key, self.server());
        let port_name = Arc::clone(&server.port_name);
        (Arc::clone(&key.namespace), Arc::clone(&key.name), port_name, server.port)
    }

    /// `https.<port>.<port name>.<gateway>.<namespace>`; `tls` instead where there is no HTTP.
    pub(super) fn name(&self) -> String {
        let (key, server) = (&self.gateway.resource.key, self.server());
        let kind =
            if matches!(server.protocol, ServerProtocol::Https(_)) { "https" } else { "tls" };
        format!("{kind}.{}.{}.{}.{}", server.port, server.port_name, key.name, key.namespace)
    }

    /// The place where it begins.
    pub(super) fn origin(&self) -> Origin {
        self.gateway.origin(self.server().line)
    }

    /// Whether the same text in the same place says so.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.place == other.place && self.gateway.is_same(&other.gateway)
    }
}

/// Collects the listeners of all Gateways that select this gateway.
pub(super) struct Planner<'a> {
    identity: &'a GatewayIdentity,
    listen: &'a Listen,
    resources: &'a Resources,
    /// Namespace and name of the Gateways that select this gateway.
    selecting: HashSet<(&'a str, &'a str)>,
    /// The others.
    foreign: HashSet<String>,
    /// In order of precedence.
    services: Vec<&'a Placed>,
    /// The places in `services` of those that name a Gateway, by its namespace and name.
    by_gateway: HashMap<(&'a str, &'a str), Vec<usize>>,
    /// The hosts of TLS servers and whose they are.
    claims: HashMap<(ListenerKey, &'a ServerHost), (&'a Placed, &'a Server)>,
    /// The same without the namespaces before them.
    patterns: HashSet<(ListenerKey, HostPattern)>,
    listeners: ListenerPlans,
    rejections: Vec<Rejection>,
    /// Of the VirtualServices, by their place in `services`, what some server has of it.
    bound: Vec<Binding>,
}

/// The hosts that a server has in common with VirtualServices, the narrower of each two, by the
/// place of the VirtualService in order of precedence.
type Met = BTreeMap<usize, BTreeSet<HostPattern>>;

/// What servers have of a VirtualService.
#[derive(Debug, Clone, Copy, Default)]
struct Binding {
    /// Hosts.
    hosts: bool,
    /// Rules, by [`Rules`].
    used: [bool; 3],
}

/// The lists of rules of a VirtualService.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    Http,
    Tls,
    Tcp,
}

impl Rules {
    const ALL: [Self; 3] = [Self::Http, Self::Tls, Self::Tcp];

    /// Those that a server goes by.
    fn of_server(protocol: &ServerProtocol) -> Self {
        match protocol {
            ServerProtocol::Http { .. } | ServerProtocol::Https(_) => Self::Http,
            ServerProtocol::Passthrough => Self::Tls,
            ServerProtocol::Tls(_) | ServerProtocol::Tcp => Self::Tcp,
        }
    }

    /// The line of the first; `None` if there is none.
    fn line(self, service: &VirtualService) -> Option<u64> {
        match self {
            Self::Http => service.http.first().map(|rule| rule.line),
            Self::Tls => service.tls.first().map(|rule| rule.line),
            Self::Tcp => service.tcp.first().map(|rule| rule.line),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tls => "tls",
            Self::Tcp => "tcp",
        }
    }

    /// What they are for.
    fn purpose(self) -> &'static str {
        match self {
            Self::Http => {
                "`http` rules are for servers that see requests: with protocol HTTP, or HTTPS with \
                 `mode: SIMPLE`"
            }
            Self::Tls => "`tls` rules are for servers with `mode: PASSTHROUGH`",
            Self::Tcp => {
                "`tcp` rules are for servers with protocol TCP, or TLS with `mode: SIMPLE`"
            }
        }
    }
}

impl<'a> Planner<'a> {
    /// What all Gateways of `resources` come to.
    pub(super) fn plan(
        identity: &'a GatewayIdentity,
        listen: &'a Listen,
        resources: &'a Resources,
    ) -> Plan {
        let services = services_in_order(resources, &identity.namespace);
        let mut planner = Self {
            identity,
            listen,
            resources,
            by_gateway: index(&services),
            bound: vec![Binding::default(); services.len()],
            selecting: HashSet::new(),
            foreign: HashSet::new(),
            services,
            claims: HashMap::new(),
            patterns: HashSet::new(),
            listeners: ListenerPlans::new(),
            rejections: Vec::new(),
        };
        for (placed, gateway) in gateways_in_order(resources) {
            if planner.selects(placed, gateway) {
                let key = &placed.resource.key;
                planner.selecting.insert((&key.namespace, &key.name));
                let met = planner.meet(placed, gateway);
                for ((place, server), met) in gateway.servers.iter().enumerate().zip(met) {
                    planner.add(placed, place, server, met);
                }
            }
        }
        planner.report_unbound();
        let Self { listeners, rejections, foreign, .. } = planner;
        Plan { listeners, rejections, foreign }
    }

    fn selects(&mut self, placed: &Placed, gateway: &Gateway) -> bool {
        let ours = &self.identity.labels;
        let has = |name: &str, value: &str| ours.get(name).is_some_and(|own| own == value);
        let selects = gateway.selector.iter().all(|(name, value)| has(name, value));
        if !selects {
            let labels: Vec<_> =
                ours.iter().map(|(name, value)| format!("{name}: {value}")).collect();
            let what = "selects other gateways than this one, so it is not used here".to_owned();
            let cause = format!("this gateway has the labels {}", labels.join(", "));
            let line = placed.resource.line;
            let found = placed.reject(Severity::Warning, line, "spec.selector", what, &cause);
            self.rejections.push(found);
            self.foreign.insert(placed.resource.key.to_string());
        }
        selects
    }

    /// What each server of `gateway` has in common with the VirtualServices that name it.
    fn meet(&self, placed: &Placed, gateway: &Gateway) -> Vec<Met> {
        let hosts = ServerHosts::of(&gateway.servers);
        let mut met = vec![Met::new(); gateway.servers.len()];
        let key = &placed.resource.key;
        let named = self.by_gateway.get(&(&*key.namespace, &*key.name));
        for &index in named.into_iter().flatten() {
            let placed = self.services[index];
            let Some(service) = virtual_service(placed) else { continue };
            let namespace = &placed.resource.key.namespace;
            for host in &service.hosts {
                for (server, shared) in hosts.shared(namespace, &host.value) {
                    met[server].entry(index).or_default().insert(shared);
                }
            }
        }
        met
    }

    fn add(&mut self, gateway: &'a Placed, place: usize, server: &'a Server, met: Met) {
        let key = self.key(server);
        if let Some(other) = self.overlapped(key) {
            let (what, cause) = overlapping(other, key);
            return self.refuse(gateway, server, "port", what, cause);
        }
        match &server.protocol {
            ServerProtocol::Http { https_redirect } => {
                self.add_http(key, gateway, server, met, *https_redirect);
            }
            ServerProtocol::Https(_) | ServerProtocol::Tls(_) | ServerProtocol::Passthrough => {
                self.add_tls(key, gateway, place, server, met);
            }
            ServerProtocol::Tcp => self.add_tcp(key, gateway, server, met),
        }
    }

    /// What is bound for a server.
    fn key(&self, server: &Server) -> ListenerKey {
        let address = match server.bind {
            Some(Bind::Pipe(path)) => return ListenerKey::Pipe(path),
            Some(Bind::Ip(address)) => address,
            None => self.listen.address,
        };
        ListenerKey::Ip { address, port: self.bind_port(server.port) }
    }

    /// What is bound for the port of a Gateway.
    fn bind_port(&self, gateway_port: u16) -> BindPort {
        match self.listen.ports.get(&gateway_port).copied().unwrap_or(gateway_port) {
            0 => BindPort::Free { gateway_port },
            port => BindPort::Fixed(port),
        }
    }

    /// The listener on the same port of which `key` would be bound a part.
    fn overlapped(&self, key: ListenerKey) -> Option<ListenerKey> {
        self.listeners.keys().copied().find(|other| other.overlaps(key))
    }

    fn add_http(
        &mut self,
        key: ListenerKey,
        gateway: &'a Placed,
        server: &'a Server,
        met: Met,
        https_redirect: bool,
    ) {
        let mut table = self.bind(gateway, server, met);
        if https_redirect {
            for host in &server.hosts {
                table.entry(host.value.pattern.clone()).or_default();
            }
            table.values_mut().for_each(|host| host.https_redirect = true);
        }
        let plan = self.listeners.entry(key).or_insert_with(|| ListenerPlan {
            gateway_port: server.port,
            serves: ServesPlan::Http(BTreeMap::new()),
        });
        match &mut plan.serves {
            ServesPlan::Http(shared) => merge(shared, table),
            other @ (ServesPlan::Tls(_) | ServesPlan::Tcp(_)) => {
                let taken = other.words();
                self.refuse_port(gateway, server, taken);
            }
        }
    }

    /// A TCP server is the only one on its port: nothing tells connections apart.
    fn add_tcp(&mut self, key: ListenerKey, gateway: &'a Placed, server: &'a Server, met: Met) {
        let serves = self.bind_tcp(gateway, server, met);
        if let Some(plan) = self.listeners.get(&key) {
            let taken = plan.serves.words();
            return self.refuse_port(gateway, server, taken);
        }
        let serves = ServesPlan::Tcp(serves);
        self.listeners.insert(key, ListenerPlan { gateway_port: server.port, serves });
    }

    fn refuse_port(&mut self, gateway: &Placed, server: &Server, taken: &str) {
        let (field, what) = match server.bind {
            Some(Bind::Pipe(path)) => ("bind", path.to_string()),
            Some(Bind::Ip(_)) | None => ("port", format!("port {}", server.port)),
        };
        let what = format!("{what} already serves {taken}");
        self.refuse(gateway, server, field, what, "the older Gateway wins");
    }

    fn add_tls(
        &mut self,
        key: ListenerKey,
        gateway: &'a Placed,
        place: usize,
        server: &'a Server,
        met: Met,
    ) {
        let routes = self.tls_routes(gateway, server, met);
        let conflict = self.conflict(key, server);
        let plan = self.listeners.entry(key).or_insert_with(|| ListenerPlan {
            gateway_port: server.port,
            serves: ServesPlan::Tls(Vec::new()),
        });
        if !matches!(plan.serves, ServesPlan::Tls(_)) {
            let taken = plan.serves.words();
            return self.refuse_port(gateway, server, taken);
        }
        if let Some((host, owner)) = conflict {
            let what = format!("the host {host} on this port already belongs to {owner}");
            let cause = "the older Gateway wins; this whole server is left out, as by Istio";
            return self.refuse(gateway, server, "hosts", what, cause);
        }
        let patterns = self.claim(key, gateway, server, &routes);
        let source = ServerSource { gateway: gateway.clone(), place };
        if let Some(ListenerPlan { serves: ServesPlan::Tls(servers), .. }) =
            self.listeners.get_mut(&key)
        {
            servers.push(TlsPlan { source, patterns, routes });
        }
    }

    fn tls_routes(&mut self, gateway: &'a Placed, server: &'a Server, met: Met) -> TlsRoutesPlan {
        match server.protocol {
            ServerProtocol::Passthrough => {
                TlsRoutesPlan::Passthrough(self.bind_tcp(gateway, server, met))
            }
            ServerProtocol::Tls(_) => TlsRoutesPlan::Tcp(self.bind_tcp(gateway, server, met)),
            ServerProtocol::Https(_) | ServerProtocol::Http { .. } | ServerProtocol::Tcp => {
                TlsRoutesPlan::Http(self.bind(gateway, server, met).into_iter().collect())
            }
        }
    }

    /// The names that lead to `server`: those that no server before it has. Where TLS is passed on,
    /// only names with a route count, as in Istio.
    fn claim(
        &mut self,
        key: ListenerKey,
        gateway: &'a Placed,
        server: &'a Server,
        routes: &TlsRoutesPlan,
    ) -> Box<[HostPattern]> {
        for Located { value: host, .. } in &server.hosts {
            self.claims.entry((key, host)).or_insert((gateway, server));
        }
        let wanted: Vec<&HostPattern> = match routes {
            TlsRoutesPlan::Passthrough(plan) => plan.keys().collect(),
            TlsRoutesPlan::Http(_) | TlsRoutesPlan::Tcp(_) => {
                server.hosts.iter().map(|host| &host.value.pattern).collect()
            }
        };
        let mut own = BTreeSet::new();
        for pattern in &wanted {
            if self.patterns.insert((key, (*pattern).clone())) {
                own.insert((*pattern).clone());
            }
        }
        if own.len() < wanted.len() {
            self.rejections.push(shadowed(gateway, server));
        }
        own.into_iter().collect()
    }

    /// The first host of `server` that a server before it has claimed, and whose that is.
    fn conflict(&self, key: ListenerKey, server: &'a Server) -> Option<(&'a HostPattern, String)> {
        server.hosts.iter().find_map(|Located { value: host, .. }| {
            let (gateway, owner) = self.claims.get(&(key, host))?;
            let owner = format!("server `{}` of {}", owner.port_name, gateway.resource.key);
            Some((&host.pattern, owner))
        })
    }

    fn refuse(
        &mut self,
        gateway: &Placed,
        server: &Server,
        field: &str,
        what: String,
        cause: &str,
    ) {
        let field = format!("spec.servers[{}].{field}", server.index);
        let found = gateway.reject(Severity::Error, server.line, field, what, cause);
        self.rejections.push(found);
    }

    /// The virtual hosts that the VirtualServices make on `server`.
    fn bind(
        &mut self,
        gateway: &Placed,
        server: &Server,
        met: Met,
    ) -> BTreeMap<HostPattern, HostPlan> {
        let mut table = BTreeMap::<_, HostPlan>::new();
        for (placed, hosts) in self.takers(gateway, server, met) {
            for pattern in hosts {
                let host = table.entry(pattern).or_default();
                host.services.reserve_exact(1);
                let gateways = vec![Arc::clone(&gateway.resource)];
                host.services.push(Bound { service: placed.clone(), gateways });
            }
        }
        table
    }

    /// The blocks that the VirtualServices have for connections to `server`.
    fn bind_tcp(&mut self, gateway: &Placed, server: &Server, met: Met) -> TcpPlan {
        let list = match Rules::of_server(&server.protocol) {
            Rules::Tls => List::Tls,
            Rules::Tcp | Rules::Http => List::Tcp,
        };
        let gateways = std::slice::from_ref(&gateway.resource);
        let scope = Scope { port: server.port, gateways, identity: Some(self.identity) };
        let hosts = ServerHosts::of(std::slice::from_ref(server));
        let mut plan = TcpPlan::new();
        for (placed, _) in self.takers(gateway, server, met) {
            tcp::plan(placed, list, &scope, &hosts, &mut plan);
        }
        plan
    }

    /// The VirtualServices with rules of the kind that `server` goes by, of all that it has `met`.
    fn takers(
        &mut self,
        gateway: &Placed,
        server: &Server,
        met: Met,
    ) -> Vec<(&'a Placed, BTreeSet<HostPattern>)> {
        let rules = Rules::of_server(&server.protocol);
        let (mut takers, mut others) = (Vec::new(), Vec::new());
        for (index, hosts) in met {
            let placed = self.services[index];
            self.bound[index].hosts = true;
            if virtual_service(placed).and_then(|service| rules.line(service)).is_some() {
                self.bound[index].used[rules as usize] = true;
                takers.push((placed, hosts));
            } else {
                others.push(placed);
            }
        }
        // Plain HTTP beside passthrough is common: it redirects, or answers 404.
        let is_plain = matches!(server.protocol, ServerProtocol::Http { .. });
        if takers.is_empty() && !is_plain {
            self.rejections.extend(others.first().map(|other| misfit(gateway, server, other)));
        }
        takers
    }

    /// Warns of VirtualServices that no server has, and says why.
    fn report_unbound(&mut self) {
        let gateways = self.resources.of_kind(Kind::Gateway);
        let gateways: HashSet<_> = gateways.map(|(key, _)| (&*key.namespace, &*key.name)).collect();
        for (placed, bound) in self.services.iter().zip(&self.bound) {
            if bound.hosts {
                self.rejections.extend(unused_rules(placed, *bound));
            } else {
                self.rejections.extend(unused(placed, &gateways, &self.selecting));
            }
        }
    }
}

/// A server that `other` has hosts of, and nobody rules for.
fn misfit(gateway: &Placed, server: &Server, other: &Placed) -> Rejection {
    let rules = Rules::of_server(&server.protocol);
    let field = format!("spec.servers[{}]", server.index);
    let what = format!("no VirtualService has `{}` rules for it", rules.name());
    let cause = format!("{} has others; {}", other.resource.key, rules.purpose());
    gateway.reject(Severity::Warning, server.line, field, what, &cause)
}

/// Warnings for the rules of a VirtualService that none of its servers goes by.
fn unused_rules(placed: &Placed, bound: Binding) -> Vec<Rejection> {
    let Some(service) = virtual_service(placed) else { return Vec::new() };
    let unused = Rules::ALL.into_iter().filter(|rules| !bound.used[*rules as usize]);
    let found = unused.filter_map(|rules| {
        let (line, field) = (rules.line(service)?, format!("spec.{}", rules.name()));
        let what = "no server that takes these hosts goes by such rules".to_owned();
        Some(placed.reject(Severity::Warning, line, field, what, rules.purpose()))
    });
    found.collect()
}

fn merge(shared: &mut BTreeMap<HostPattern, HostPlan>, table: BTreeMap<HostPattern, HostPlan>) {
    for (pattern, host) in table {
        let entry = shared.entry(pattern).or_default();
        entry.https_redirect |= host.https_redirect;
        for bound in host.services {
            let key = &bound.service.resource.key;
            match entry.services.iter_mut().find(|other| other.service.resource.key == *key) {
                Some(other) => other.add_gateways(bound.gateways),
                None => entry.services.push(bound),
            }
        }
    }
}

fn shadowed(gateway: &Placed, server: &Server) -> Rejection {
    let field = format!("spec.servers[{}].hosts", server.index);
    let what = "a host that another server has, or that stands twice, leads there".to_owned();
    let cause = "clients name the host alone, not the namespace before it";
    gateway.reject(Severity::Warning, server.line, field, what, cause)
}

fn index<'a>(services: &[&'a Placed]) -> HashMap<(&'a str, &'a str), Vec<usize>> {
    let mut index = HashMap::<_, Vec<_>>::new();
    for (place, placed) in services.iter().enumerate() {
        let gateways = virtual_service(placed).map(|service| &*service.gateways);
        for Located { value: name, .. } in gateways.unwrap_or_default() {
            let places = index.entry((&*name.namespace, &*name.name)).or_default();
            if places.last() != Some(&place) {
                places.push(place);
            }
        }
    }
    index
}

/// Those that the gateway can see: private ones first, then the oldest.
fn services_in_order<'a>(resources: &'a Resources, namespace: &str) -> Vec<&'a Placed> {
    let mut services: Vec<_> = resources
        .of_kind(Kind::VirtualService)
        .filter_map(|(_, placed)| Some((placed, &virtual_service(placed)?.export)))
        .filter(|(placed, export)| export.reaches(namespace, &placed.resource.key.namespace))
        .collect();
    services.sort_by_key(|(placed, export)| (export.rank(), age(placed)));
    services.into_iter().map(|(placed, _)| placed).collect()
}

fn gateways_in_order(resources: &Resources) -> Vec<(&Placed, &Gateway)> {
    let placed = resources.of_kind(Kind::Gateway);
    let mut gateways: Vec<_> =
        placed.filter_map(|(_, placed)| Some((placed, gateway(placed)?))).collect();
    gateways.sort_by_key(|(placed, _)| age(placed));
    gateways
}

/// The Gateway in `placed`.
pub(super) fn gateway(placed: &Placed) -> Option<&Gateway> {
    match &placed.resource.spec {
        Spec::Gateway(gateway) => Some(gateway),
        Spec::VirtualService(_)
        | Spec::ServiceEntry(_)
        | Spec::WorkloadEntry(_)
        | Spec::DestinationRule(_)
        | Spec::Service(_)
        | Spec::EndpointSlice(_)
        | Spec::Pod(_)
        | Spec::Secret(_)
        | Spec::ConfigMap(_) => None,
    }
}

/// Istio's order: creation, name, namespace.
fn age(placed: &Placed) -> (&str, &str, &str) {
    let resource = &placed.resource;
    let Key { namespace, name, .. } = &resource.key;
    (&resource.created, name, namespace)
}

/// Why no server has the VirtualService `placed`: of all `gateways`, only those of `selecting` are
/// in use.
fn unused(
    placed: &Placed,
    gateways: &HashSet<(&str, &str)>,
    selecting: &HashSet<(&str, &str)>,
) -> Option<Rejection> {
    let service = virtual_service(placed)?;
    if service.hosts.is_empty() {
        // A delegate belongs to whoever names it.
        return None;
    }
    let line = placed.resource.line;
    let Some(first) = service.gateways.first() else {
        let what = "is not bound to a gateway, so it is not used here".to_owned();
        let cause = "without `gateways` it is for the mesh alone";
        return Some(placed.reject(Severity::Warning, line, "spec.gateways", what, cause));
    };
    for (index, Located { line, value }) in service.gateways.iter().enumerate() {
        let (namespace, name) = (&*value.namespace, &*value.name);
        if !gateways.contains(&(namespace, name)) {
            let what = format!("there is no usable Gateway {name} in namespace {namespace}");
            let cause = "a name without namespace means the VirtualService's own; write \
                         `namespace/name` for another";
            let field = format!("spec.gateways[{index}]");
            return Some(placed.reject(Severity::Warning, *line, field, what, cause));
        }
    }
    let mut named = service.gateways.iter().map(|gateway| &gateway.value);
    if !named.any(|name| selecting.contains(&(&*name.namespace, &*name.name))) {
        let what = "is not used here, as its Gateway is not".to_owned();
        let cause = format!("the `selector` of {} selects others", first.value.name);
        return Some(placed.reject(Severity::Warning, first.line, "spec.gateways", what, &cause));
    }
    let what = format!("no server of Gateway {} takes any of these hosts", first.value.name);
    let cause = "its `hosts`, or the namespaces before them, do not match; or the server is \
                 left out";
    let line = service.hosts.first().map_or(line, |host| host.line);
    Some(placed.reject(Severity::Warning, line, "spec.hosts", what, cause))
}

/// Why `key` cannot be bound beside `other`, and what to do about it.
fn overlapping(other: ListenerKey, key: ListenerKey) -> (String, &'static str) {
    let (key, other) = (key.address(), other.address());
    let what = format!("{key} overlaps {other}, where another server is bound");
    (what, "write the same `bind` for both, or none, or give one of them another port")
}
