//! From Gateways to what is served on each port: which servers there are and which VirtualServices
//! bind to them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::route::{Bound, TablePlan, virtual_service};
use super::sources::{Placed, Resources};
use super::{GatewayIdentity, Listen};
use crate::config::model::{Gateway, Located, Server, ServerHost, ServerProtocol, Spec, Tls};
use crate::snapshot::{HostPattern, ListenerKey, Rejection, Severity};

/// What is to be served on one address and port.
pub(super) struct ListenerPlan {
    pub(super) bind_port: u16,
    pub(super) serves: ServesPlan,
}

/// Plain servers share one table; a TLS server has its own.
pub(super) enum ServesPlan {
    Http(TablePlan),
    Tls(Vec<TlsPlan>),
}

/// One TLS server.
pub(super) struct TlsPlan {
    /// `https.<port>.<port name>.<gateway>.<namespace>`.
    pub(super) name: String,
    pub(super) gateway: Placed,
    pub(super) server: Server,
    pub(super) tls: Tls,
    /// Those that no server before it has.
    pub(super) patterns: BTreeSet<HostPattern>,
    pub(super) table: TablePlan,
}

/// The listeners by key.
pub(super) type ListenerPlans = BTreeMap<ListenerKey, ListenerPlan>;

/// Collects the listeners of all Gateways that select this gateway.
pub(super) struct Planner<'a> {
    pub(super) identity: &'a GatewayIdentity,
    pub(super) listen: &'a Listen,
    /// In order of precedence.
    services: Vec<&'a Placed>,
    /// The places in `services` of those that name a Gateway, by its namespace and name.
    by_gateway: BTreeMap<(&'a str, &'a str), BTreeSet<usize>>,
    /// The hosts of TLS servers and whose they are.
    claims: BTreeMap<(ListenerKey, ServerHost), String>,
    /// The same without the namespaces before them.
    patterns: BTreeSet<(ListenerKey, HostPattern)>,
    plans: ListenerPlans,
    rejections: &'a mut Vec<Rejection>,
    /// The VirtualServices, by their place in `services`, that some server has.
    bound: BTreeSet<usize>,
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        identity: &'a GatewayIdentity,
        listen: &'a Listen,
        resources: &'a Resources,
        rejections: &'a mut Vec<Rejection>,
    ) -> Self {
        let services = services_in_order(resources, &identity.namespace);
        let by_gateway = index(&services);
        let (claims, patterns) = (BTreeMap::new(), BTreeSet::new());
        let (plans, bound) = (ListenerPlans::new(), BTreeSet::new());
        Self { identity, listen, services, by_gateway, claims, patterns, plans, rejections, bound }
    }

    /// What all Gateways of `resources` come to.
    pub(super) fn plan(mut self, resources: &Resources) -> ListenerPlans {
        let gateways = gateways_in_order(resources);
        for (placed, gateway) in &gateways {
            if self.selects(placed, gateway) {
                for server in &gateway.servers {
                    self.add(placed, server);
                }
            }
        }
        self.report_unbound(resources);
        self.plans
    }

    fn selects(&mut self, placed: &Placed, gateway: &Gateway) -> bool {
        let ours = &self.identity.labels;
        let selects = gateway.selector.iter().all(|(name, value)| ours.get(name) == Some(value));
        if !selects {
            let labels: Vec<_> =
                ours.iter().map(|(name, value)| format!("{name}: {value}")).collect();
            let what = "selects other gateways than this one, so it is not used here".to_owned();
            let cause = format!("this gateway has the labels {}", labels.join(", "));
            let line = placed.resource.line;
            let found = placed.reject(Severity::Warning, line, "spec.selector", what, &cause);
            self.rejections.push(found);
        }
        selects
    }

    fn add(&mut self, gateway: &Placed, server: &Server) {
        let address = server.bind.unwrap_or(self.listen.address);
        let key = ListenerKey { address, gateway_port: server.port };
        let bind_port = self.listen.ports.get(&server.port).copied().unwrap_or(server.port);
        if let Some(other) = self.port_taken(key, bind_port) {
            let what = format!("port {bind_port} is already bound for port {other} of a Gateway");
            return self.refuse(gateway, server, "port", what, "change `listen.ports`");
        }
        match &server.protocol {
            ServerProtocol::Http { https_redirect } => {
                self.add_http(key, bind_port, gateway, server, *https_redirect);
            }
            ServerProtocol::Https(tls) => self.add_tls(key, bind_port, gateway, server, tls),
        }
    }

    /// The other Gateway port that is bound there already.
    fn port_taken(&self, key: ListenerKey, bind_port: u16) -> Option<u16> {
        let overlaps = |other: &ListenerKey| {
            other.address == key.address
                || other.address.is_unspecified()
                || key.address.is_unspecified()
        };
        self.plans
            .iter()
            .find(|(other, plan)| {
                **other != key && bind_port != 0 && plan.bind_port == bind_port && overlaps(other)
            })
            .map(|(other, _)| other.gateway_port)
    }

    fn add_http(
        &mut self,
        key: ListenerKey,
        bind_port: u16,
        gateway: &Placed,
        server: &Server,
        https_redirect: bool,
    ) {
        let mut table = self.bind(gateway, server);
        if https_redirect {
            for host in &server.hosts {
                table.entry(host.value.pattern.clone()).or_default();
            }
            table.values_mut().for_each(|host| host.https_redirect = true);
        }
        let plan = self.plans.entry(key).or_insert_with(|| ListenerPlan {
            bind_port,
            serves: ServesPlan::Http(TablePlan::new()),
        });
        match &mut plan.serves {
            ServesPlan::Http(shared) => merge(shared, table),
            ServesPlan::Tls(_) => {
                let what = format!("port {} already serves TLS", key.gateway_port);
                self.refuse(gateway, server, "port", what, "the older Gateway wins");
            }
        }
    }

    fn add_tls(
        &mut self,
        key: ListenerKey,
        bind_port: u16,
        gateway: &Placed,
        server: &Server,
        tls: &Tls,
    ) {
        let table = self.bind(gateway, server);
        let conflict = self.conflict(key, server);
        let plan = self
            .plans
            .entry(key)
            .or_insert_with(|| ListenerPlan { bind_port, serves: ServesPlan::Tls(Vec::new()) });
        let ServesPlan::Tls(servers) = &mut plan.serves else {
            let what = format!("port {} already serves plain HTTP", key.gateway_port);
            return self.refuse(gateway, server, "port", what, "the older Gateway wins");
        };
        if let Some((host, owner)) = conflict {
            let what = format!("the host {host} on this port already belongs to {owner}");
            let cause = "the older Gateway wins; this whole server is left out, as by Istio";
            return self.refuse(gateway, server, "hosts", what, cause);
        }
        let patterns = claim(&mut self.claims, &mut self.patterns, key, gateway, server);
        if patterns.len() < server.hosts.len() {
            self.rejections.push(shadowed(gateway, server));
        }
        let name = server_name(gateway, server);
        let (gateway, server, tls) = (gateway.clone(), server.clone(), tls.clone());
        servers.push(TlsPlan { name, gateway, server, tls, patterns, table });
    }

    /// The first host of `server` that a server before it has claimed, and whose that is.
    fn conflict(&self, key: ListenerKey, server: &Server) -> Option<(HostPattern, String)> {
        server.hosts.iter().find_map(|Located { value: host, .. }| {
            let owner = self.claims.get(&(key, host.clone()))?;
            Some((host.pattern.clone(), owner.clone()))
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
    fn bind(&mut self, gateway: &Placed, server: &Server) -> TablePlan {
        let mut table = TablePlan::new();
        let key = &gateway.resource.key;
        let named = self.by_gateway.get(&(key.namespace.as_str(), key.name.as_str()));
        for &index in named.into_iter().flatten() {
            let placed = self.services[index];
            for pattern in shared_hosts(placed, server) {
                self.bound.insert(index);
                let gateways = vec![Arc::clone(&gateway.resource)];
                let bound = Bound { service: placed.clone(), gateways };
                table.entry(pattern).or_default().services.push(bound);
            }
        }
        table
    }

    /// Warns of VirtualServices that no server has, and says why.
    fn report_unbound(&mut self, resources: &Resources) {
        for (index, placed) in self.services.iter().enumerate() {
            if self.bound.contains(&index) {
                continue;
            }
            if let Some(found) = unbound(placed, resources) {
                self.rejections.push(found);
            }
        }
    }
}

fn server_name(gateway: &Placed, server: &Server) -> String {
    let key = &gateway.resource.key;
    format!("https.{}.{}.{}.{}", server.port, server.port_name, key.name, key.namespace)
}

fn merge(shared: &mut TablePlan, table: TablePlan) {
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

/// Claims the hosts of `server`; returns the patterns that no server before it has.
fn claim(
    claims: &mut BTreeMap<(ListenerKey, ServerHost), String>,
    patterns: &mut BTreeSet<(ListenerKey, HostPattern)>,
    key: ListenerKey,
    gateway: &Placed,
    server: &Server,
) -> BTreeSet<HostPattern> {
    let owner = format!("server `{}` of {}", server.port_name, gateway.resource.key);
    let mut own = BTreeSet::new();
    for Located { value: host, .. } in &server.hosts {
        claims.entry((key, host.clone())).or_insert_with(|| owner.clone());
        if patterns.insert((key, host.pattern.clone())) {
            own.insert(host.pattern.clone());
        }
    }
    own
}

fn shadowed(gateway: &Placed, server: &Server) -> Rejection {
    let field = format!("spec.servers[{}].hosts", server.index);
    let what = "a host that another server has, or that stands twice, leads there".to_owned();
    let cause = "clients name the host alone, not the namespace before it";
    gateway.reject(Severity::Warning, server.line, field, what, cause)
}

fn index<'a>(services: &[&'a Placed]) -> BTreeMap<(&'a str, &'a str), BTreeSet<usize>> {
    let mut index = BTreeMap::new();
    for (place, placed) in services.iter().enumerate() {
        let gateways = virtual_service(placed).map(|service| service.gateways.as_slice());
        for Located { value: name, .. } in gateways.unwrap_or_default() {
            let key = (name.namespace.as_str(), name.name.as_str());
            index.entry(key).or_insert_with(BTreeSet::new).insert(place);
        }
    }
    index
}

/// The hosts that `server` and the VirtualService have in common, the narrower of each two.
fn shared_hosts(placed: &Placed, server: &Server) -> BTreeSet<HostPattern> {
    let Some(service) = virtual_service(placed) else { return BTreeSet::new() };
    let namespace = &placed.resource.key.namespace;
    let allowed = server
        .hosts
        .iter()
        .map(|host| &host.value)
        .filter(|host| host.namespace.as_ref().is_none_or(|allowed| allowed == namespace));
    allowed
        .flat_map(|host| service.hosts.iter().filter_map(|own| host.pattern.intersect(&own.value)))
        .collect()
}

/// Those that the gateway can see: private ones first, then the oldest.
fn services_in_order<'a>(resources: &'a Resources, namespace: &str) -> Vec<&'a Placed> {
    let mut services: Vec<_> = resources
        .values()
        .filter_map(|placed| Some((placed, &virtual_service(placed)?.export)))
        .filter(|(placed, export)| export.reaches(namespace, &placed.resource.key.namespace))
        .collect();
    services.sort_by_key(|(placed, export)| (export.rank(), age(placed)));
    services.into_iter().map(|(placed, _)| placed).collect()
}

fn gateways_in_order(resources: &Resources) -> Vec<(&Placed, &Gateway)> {
    let mut gateways: Vec<_> = resources
        .values()
        .filter_map(|placed| match &placed.resource.spec {
            Spec::Gateway(gateway) => Some((placed, gateway)),
            Spec::VirtualService(_)
            | Spec::ServiceEntry(_)
            | Spec::Service(_)
            | Spec::EndpointSlice(_)
            | Spec::Secret(_) => None,
        })
        .collect();
    gateways.sort_by_key(|(placed, _)| age(placed));
    gateways
}

/// Istio's order: creation, name, namespace.
fn age(placed: &Placed) -> (&str, &str, &str) {
    let resource = &placed.resource;
    (&resource.created, &resource.key.name, &resource.key.namespace)
}

fn unbound(placed: &Placed, resources: &Resources) -> Option<Rejection> {
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
    let gateways = gateways_in_order(resources);
    for (index, name) in service.gateways.iter().enumerate() {
        if gateways.iter().all(|(gateway, _)| !name.value.is_of(&gateway.resource.key)) {
            let what = format!(
                "there is no usable Gateway {} in namespace {}",
                name.value.name, name.value.namespace
            );
            let cause = "a name without namespace means the VirtualService's own; write \
                         `namespace/name` for another";
            let field = format!("spec.gateways[{index}]");
            return Some(placed.reject(Severity::Warning, name.line, field, what, cause));
        }
    }
    let what = format!("no server of Gateway {} takes any of these hosts", first.value.name);
    let cause = "its `hosts`, or the namespaces before them, do not match; or it is not in use";
    let line = service.hosts.first().map_or(line, |host| host.line);
    Some(placed.reject(Severity::Warning, line, "spec.hosts", what, cause))
}
