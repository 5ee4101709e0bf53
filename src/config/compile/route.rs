//! From the VirtualServices of one server to its route table.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::GatewayIdentity;
use super::backend::Backends;
use super::delegate;
use super::listener::gateway;
use super::rules::{self, Scope};
use super::sources::{Placed, Resources};
use super::tcp;
use crate::config::model::{Destination, Kind, Resource, Spec, VirtualService};
use crate::crypto::Digest;
use crate::snapshot::{HostPattern, Rejection, RouteSet, RouteTable, Severity, VirtualHost};

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
}

/// The virtual hosts of one table. Sorted by pattern.
pub(super) type TablePlan = Box<[(HostPattern, HostPlan)]>;

/// Makes the routes of one generation.
pub(super) struct Router<'a> {
    pub(super) resources: &'a Resources,
    /// Who decides conditions on the source.
    pub(super) identity: &'a GatewayIdentity,
    pub(super) backends: Backends<'a>,
    /// The ports of all Gateways.
    listeners: BTreeSet<u16>,
    /// Those of the hosts so far, by what they are made of.
    routes: HashMap<Digest, Arc<RouteSet>>,
}

impl<'a> Router<'a> {
    /// One that has made none yet.
    pub(super) fn new(
        resources: &'a Resources,
        identity: &'a GatewayIdentity,
        backends: Backends<'a>,
    ) -> Self {
        let gateways = resources.of_kind(Kind::Gateway);
        let servers = gateways.filter_map(|(_, placed)| gateway(placed)).flat_map(|g| &g.servers);
        let listeners = servers.map(|server| server.port).collect();
        Self { resources, identity, backends, listeners, routes: HashMap::new() }
    }

    /// Warnings for rules beyond their own syntax.
    pub(super) fn report(&self) -> Vec<Rejection> {
        let mut rejections = Vec::new();
        let services = self.resources.of_kind(Kind::VirtualService).map(|(_, placed)| placed);
        for placed in services.filter(|placed| !is_for_the_mesh_alone(placed)) {
            rules::report_unreachable(placed, &mut rejections);
            tcp::report_unreachable(placed, &mut rejections);
            delegate::report(placed, self.resources, &mut rejections);
            for (_, destination) in rules::all_destinations(placed) {
                let cause = "requests are answered with 503";
                rejections.extend(self.report_unknown(placed, destination, cause));
            }
            for destination in tcp::all_destinations(placed) {
                rejections.extend(self.report_unknown(
                    placed,
                    destination,
                    "connections are closed",
                ));
            }
        }
        rejections
    }

    /// A warning if the service is known and lacks what is asked of it, or has an endpoint that
    /// nobody is led to.
    fn report_unknown(
        &self,
        placed: &Placed,
        destination: &Destination,
        cause: &str,
    ) -> Option<Rejection> {
        let (backends, namespace) = (&self.backends, &placed.resource.key.namespace);
        let (what, cause) = match backends.unknown(destination, namespace, &self.listeners) {
            Some(what) => (what, cause),
            None => (backends.barred(destination, namespace)?, "that endpoint is left out"),
        };
        let (line, field) = (destination.line, &*destination.field);
        Some(placed.reject(Severity::Warning, line, field, what, cause))
    }
}

/// A table and what it is made of, from one generation to the next.
#[derive(Default)]
pub(super) struct TableUnit {
    plan: TablePlan,
    /// Sorted by pattern.
    hosts: Box<[HostUnit]>,
    table: Arc<RouteTable>,
}

/// A virtual host and what it was made of.
struct HostUnit {
    pattern: HostPattern,
    routes: Digest,
    /// What `routes` speaks of.
    _resources: Box<[Arc<Resource>]>,
    host: Arc<VirtualHost>,
}

impl TableUnit {
    /// The unit that is to become what `plan` says.
    pub(super) fn replan(&mut self, plan: TablePlan) {
        self.plan = plan;
    }

    /// How many virtual hosts it has.
    pub(super) fn hosts(&self) -> usize {
        self.hosts.len()
    }

    /// The table as it was built last.
    pub(super) fn table(&self) -> &Arc<RouteTable> {
        &self.table
    }

    /// Builds what is not as it was, for a listener on `port`; says whether the table is another.
    pub(super) fn refresh(&mut self, port: u16, router: &mut Router<'_>) -> bool {
        let mut hosts = Vec::with_capacity(self.plan.len());
        for (pattern, plan) in &self.plan {
            let old = self.hosts.binary_search_by(|host| host.pattern.cmp(pattern));
            let old = old.ok().map(|place| &self.hosts[place]);
            hosts.push(HostUnit::new(pattern, port, plan, old, router));
        }
        let is_same = |(a, b): (&HostUnit, &HostUnit)| {
            a.pattern == b.pattern && Arc::ptr_eq(&a.host, &b.host)
        };
        let same = hosts.len() == self.hosts.len() && hosts.iter().zip(&self.hosts).all(is_same);
        self.hosts = hosts.into();
        if !same {
            let mut table = RouteTable::default();
            for HostUnit { pattern, host, .. } in &self.hosts {
                table.hosts.insert(pattern.clone(), Arc::clone(host));
            }
            self.table = Arc::new(table);
        }
        !same
    }
}

impl HostUnit {
    fn new(
        pattern: &HostPattern,
        port: u16,
        plan: &HostPlan,
        old: Option<&Self>,
        router: &mut Router<'_>,
    ) -> Self {
        let (resources, identity) = (router.resources, Some(router.identity));
        let services = || plan.services.iter();
        let expanded: Vec<_> =
            services().map(|bound| delegate::rules(&bound.service, resources)).collect();
        let reached: Vec<_> = services()
            .zip(&expanded)
            .flat_map(|(Bound { gateways, .. }, rules)| {
                rules::reached(rules, &Scope { port, gateways, identity })
            })
            .collect();
        let clusters: Vec<_> = reached
            .iter()
            .flat_map(rules::destinations)
            .map(|(namespace, destination)| router.backends.find(destination, namespace, port))
            .collect();
        let digest = rules::digest(&reached, &clusters);
        let same = old.filter(|old| old.routes == digest).map(|old| &old.host);
        let routes = router.routes.entry(digest).or_insert_with(|| match same {
            Some(same) => Arc::clone(same.route_set()),
            None => Arc::new(RouteSet::new(rules::build(&reached, &clusters))),
        });
        let name = format!("{pattern}:{port}");
        let same = same.filter(|s| s.https_redirect == plan.https_redirect && *s.name == *name);
        let host = same.map(Arc::clone).unwrap_or_else(|| {
            Arc::new(VirtualHost::sharing(name, plan.https_redirect, Arc::clone(routes)))
        });
        let delegates = services().flat_map(|b| delegate::delegates(&b.service, resources));
        let all = services().map(|bound| &bound.service).chain(delegates);
        let resources = all.map(|placed| Arc::clone(&placed.resource)).collect();
        Self { pattern: pattern.clone(), routes: digest, _resources: resources, host }
    }
}

/// Whether sidecars alone go by it: what is wrong with it concerns nobody here.
pub(super) fn is_for_the_mesh_alone(placed: &Placed) -> bool {
    // One without hosts is a delegate, and belongs to whoever names it.
    virtual_service(placed).is_some_and(|s| s.gateways.is_empty() && !s.hosts.is_empty())
}

/// The VirtualService in `placed`.
pub(super) fn virtual_service(placed: &Placed) -> Option<&VirtualService> {
    match &placed.resource.spec {
        Spec::VirtualService(service) => Some(service),
        Spec::Gateway(_)
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
