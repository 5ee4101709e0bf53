//! From the VirtualServices of one server to its route table: what can stay is the same `Arc`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::GatewayIdentity;
use super::backend::Backends;
use super::delegate;
use super::rules::{self, Scope};
use super::sources::Placed;
use crate::config::model::{Resource, Spec, VirtualService};
use crate::snapshot::{Cluster, HostPattern, RouteTable, VirtualHost};

/// Tables and virtual hosts of one generation, kept for the next.
#[derive(Default)]
pub(super) struct Tables {
    /// Whose they are: conditions on the source are decided when a table is built.
    identity: Option<GatewayIdentity>,
    tables: BTreeMap<String, Table>,
}

struct Table {
    hosts: BTreeMap<HostPattern, BuiltHost>,
    table: Arc<RouteTable>,
}

/// A virtual host and all that it was made of.
struct BuiltHost {
    made_of: Ingredients,
    host: Arc<VirtualHost>,
}

/// What makes a virtual host the same one.
struct Ingredients {
    port: u16,
    https_redirect: bool,
    services: Vec<Bound>,
    /// The VirtualServices that those delegate to.
    delegates: Vec<Arc<Resource>>,
    /// In the order of the destinations.
    clusters: Vec<Option<Arc<Cluster>>>,
}

/// What a virtual host is to be made of.
#[derive(Default)]
pub(super) struct HostPlan {
    pub(super) https_redirect: bool,
    /// VirtualServices, in order of precedence.
    pub(super) services: Vec<Bound>,
}

/// A VirtualService, and the Gateways by which it came to this host.
#[derive(Clone)]
pub(super) struct Bound {
    pub(super) service: Placed,
    pub(super) gateways: Vec<Arc<Resource>>,
}

impl Bound {
    /// It came to this host by these Gateways too.
    pub(super) fn add_gateways(&mut self, gateways: Vec<Arc<Resource>>) {
        for gateway in gateways {
            if self.gateways.iter().all(|other| other.key != gateway.key) {
                self.gateways.push(gateway);
            }
        }
    }

    /// Whether it would make the same routes.
    fn is_same(&self, other: &Self) -> bool {
        let same_gateway = |(a, b): (&Arc<Resource>, &Arc<Resource>)| a.key == b.key;
        Arc::ptr_eq(&self.service.resource, &other.service.resource)
            && self.gateways.len() == other.gateways.len()
            && self.gateways.iter().zip(&other.gateways).all(same_gateway)
    }
}

/// The virtual hosts of one table.
pub(super) type TablePlan = BTreeMap<HostPattern, HostPlan>;

impl Tables {
    /// None yet, for this gateway.
    pub(super) fn new(identity: GatewayIdentity) -> Self {
        Self { identity: Some(identity), tables: BTreeMap::new() }
    }

    /// Builds the table `name` of a listener on `port`; what is as in `before` is the same `Arc`.
    pub(super) fn build(
        &mut self,
        name: &str,
        port: u16,
        plan: TablePlan,
        before: &Self,
        backends: &mut Backends<'_>,
    ) -> Arc<RouteTable> {
        let before = before.tables.get(name).filter(|_| before.identity == self.identity);
        let mut hosts = BTreeMap::new();
        for (pattern, plan) in plan {
            let old = before.and_then(|table| table.hosts.get(&pattern));
            let host = self.build_host(&pattern, port, plan, old, backends);
            hosts.insert(pattern, host);
        }
        let same = before.filter(|table| is_same(&table.hosts, &hosts));
        let table = same.map_or_else(|| Arc::new(collect(&hosts)), |same| Arc::clone(&same.table));
        self.tables.insert(name.to_owned(), Table { hosts, table: Arc::clone(&table) });
        table
    }
}

fn collect(hosts: &BTreeMap<HostPattern, BuiltHost>) -> RouteTable {
    let mut table = RouteTable::default();
    for (pattern, built) in hosts {
        table.hosts.insert(pattern.clone(), Arc::clone(&built.host));
    }
    table
}

fn is_same(old: &BTreeMap<HostPattern, BuiltHost>, new: &BTreeMap<HostPattern, BuiltHost>) -> bool {
    old.len() == new.len()
        && old.iter().zip(new).all(|((a, x), (b, y))| a == b && Arc::ptr_eq(&x.host, &y.host))
}

impl Tables {
    fn build_host(
        &self,
        pattern: &HostPattern,
        port: u16,
        plan: HostPlan,
        old: Option<&BuiltHost>,
        backends: &mut Backends<'_>,
    ) -> BuiltHost {
        let HostPlan { https_redirect, services } = plan;
        let resources = backends.resources();
        let expanded: Vec<_> =
            services.iter().map(|bound| delegate::rules(&bound.service, resources)).collect();
        let reached: Vec<_> = services
            .iter()
            .zip(&expanded)
            .flat_map(|(bound, rules)| {
                let (gateways, identity) = (&bound.gateways, self.identity.as_ref());
                rules::reached(rules, &Scope { port, gateways, identity })
            })
            .collect();
        let delegates = services.iter().flat_map(|b| delegate::delegates(&b.service, resources));
        let delegates: Vec<_> = delegates.map(|placed| Arc::clone(&placed.resource)).collect();
        let clusters: Vec<_> = reached
            .iter()
            .flat_map(rules::destinations)
            .map(|(namespace, destination)| backends.find(destination, namespace, port))
            .collect();
        let build = |clusters: &[_]| {
            let routes = rules::build(&reached, clusters);
            Arc::new(VirtualHost::new(format!("{pattern}:{port}"), https_redirect, routes))
        };
        let made_of =
            Ingredients { port, https_redirect, services: Vec::new(), delegates, clusters };
        let same = old.filter(|old| old.made_of.is_same(&made_of, &services));
        let host = same.map_or_else(|| build(&made_of.clusters), |old| Arc::clone(&old.host));
        BuiltHost { made_of: Ingredients { services, ..made_of }, host }
    }
}

impl Ingredients {
    /// Whether the same host comes of it as of `other` with `services`.
    fn is_same(&self, other: &Self, services: &[Bound]) -> bool {
        let same_cluster = |(a, b): (&Option<Arc<Cluster>>, &Option<Arc<Cluster>>)| {
            a.as_ref().map(Arc::as_ptr) == b.as_ref().map(Arc::as_ptr)
        };
        (self.port, self.https_redirect) == (other.port, other.https_redirect)
            && self.services.len() == services.len()
            && self.services.iter().zip(services).all(|(a, b)| a.is_same(b))
            && self.delegates.len() == other.delegates.len()
            && self.delegates.iter().zip(&other.delegates).all(|(a, b)| Arc::ptr_eq(a, b))
            && self.clusters.len() == other.clusters.len()
            && self.clusters.iter().zip(&other.clusters).all(same_cluster)
    }
}

/// The VirtualService in `placed`.
pub(super) fn virtual_service(placed: &Placed) -> Option<&VirtualService> {
    match &placed.resource.spec {
        Spec::VirtualService(service) => Some(service),
        Spec::Gateway(_)
        | Spec::ServiceEntry(_)
        | Spec::Service(_)
        | Spec::EndpointSlice(_)
        | Spec::Secret(_) => None,
    }
}
