//! From the VirtualServices of one server to its route table.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::backend::Backends;
use super::sources::Placed;
use crate::config::model::{
    Destination, HttpRoute, RouteAction, Spec, VirtualService, WeightedDestination,
};
use crate::snapshot::{
    Action, Cluster, Forward, HostPattern, PathMatch, Rejection, Route, RouteTable, Severity,
    Target, VirtualHost,
};

/// Tables and virtual hosts of one generation, kept for the next.
#[derive(Default)]
pub(super) struct Tables {
    tables: BTreeMap<String, Table>,
}

struct Table {
    hosts: BTreeMap<HostPattern, BuiltHost>,
    table: Arc<RouteTable>,
}

/// A virtual host and all that it was made of.
#[derive(Clone)]
struct BuiltHost {
    port: u16,
    https_redirect: bool,
    services: Vec<Placed>,
    /// In the order of the destinations.
    clusters: Vec<Option<Arc<Cluster>>>,
    host: Arc<VirtualHost>,
}

/// What a virtual host is to be made of.
#[derive(Default)]
pub(super) struct HostPlan {
    pub(super) https_redirect: bool,
    /// VirtualServices, in order of precedence.
    pub(super) services: Vec<Placed>,
}

/// The virtual hosts of one table.
pub(super) type TablePlan = BTreeMap<HostPattern, HostPlan>;

impl Tables {
    /// Builds the table `name` of a listener on `port`; what is as in `before` is the same `Arc`.
    pub(super) fn build(
        &mut self,
        name: &str,
        port: u16,
        plan: TablePlan,
        before: &Self,
        backends: &mut Backends<'_>,
    ) -> Arc<RouteTable> {
        let before = before.tables.get(name);
        let mut hosts = BTreeMap::new();
        for (pattern, plan) in plan {
            let old = before.and_then(|table| table.hosts.get(&pattern));
            let host = build_host(&pattern, port, plan, old, backends);
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

fn build_host(
    pattern: &HostPattern,
    port: u16,
    plan: HostPlan,
    old: Option<&BuiltHost>,
    backends: &mut Backends<'_>,
) -> BuiltHost {
    let HostPlan { https_redirect, services } = plan;
    let clusters: Vec<_> = services
        .iter()
        .flat_map(destinations)
        .map(|(namespace, destination)| backends.find(destination, namespace, port))
        .collect();
    let same = old.filter(|old| old.is_made_of(port, https_redirect, &services, &clusters));
    let host = match same {
        Some(old) => Arc::clone(&old.host),
        None => {
            let routes = build_routes(&services, &clusters);
            Arc::new(VirtualHost::new(format!("{pattern}:{port}"), https_redirect, routes))
        }
    };
    BuiltHost { port, https_redirect, services, clusters, host }
}

impl BuiltHost {
    fn is_made_of(
        &self,
        port: u16,
        https_redirect: bool,
        services: &[Placed],
        clusters: &[Option<Arc<Cluster>>],
    ) -> bool {
        let same_service = |(a, b): (&Placed, &Placed)| Arc::ptr_eq(&a.resource, &b.resource);
        let same_cluster = |(a, b): (&Option<Arc<Cluster>>, &Option<Arc<Cluster>>)| {
            a.as_ref().map(Arc::as_ptr) == b.as_ref().map(Arc::as_ptr)
        };
        (self.port, self.https_redirect) == (port, https_redirect)
            && self.services.len() == services.len()
            && self.services.iter().zip(services).all(same_service)
            && self.clusters.len() == clusters.len()
            && self.clusters.iter().zip(clusters).all(same_cluster)
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

/// The rules that can be reached: those up to the first that takes every request.
fn rules(placed: &Placed) -> impl Iterator<Item = &HttpRoute> {
    let rules = virtual_service(placed).map(|service| service.http.as_slice()).unwrap_or_default();
    let end = rules.iter().position(takes_all).map_or(rules.len(), |index| index + 1);
    rules[..end].iter()
}

fn takes_all(rule: &HttpRoute) -> bool {
    rule.matches.is_empty() || rule.matches.iter().any(|condition| is_catch_all(&condition.path))
}

fn is_catch_all(path: &PathMatch) -> bool {
    match path {
        PathMatch::Any => true,
        PathMatch::Prefix(prefix) => prefix == "/",
        PathMatch::Exact(_) | PathMatch::Regex(_) => false,
    }
}

/// Warnings for rules behind one that takes every request.
pub(super) fn report_unreachable(placed: &Placed, rejections: &mut Vec<Rejection>) {
    let all = virtual_service(placed).map(|service| service.http.as_slice()).unwrap_or_default();
    let reached = rules(placed).count();
    for (index, rule) in all.iter().enumerate().skip(reached) {
        let what = "is never reached".to_owned();
        let cause = "a rule before it takes every request; put that one last";
        let field = format!("spec.http[{index}]");
        rejections.push(placed.reject(Severity::Warning, rule.line, field, what, cause));
    }
}

/// The destinations of all rules that can be reached, with the VirtualService's namespace.
pub(super) fn destinations(placed: &Placed) -> impl Iterator<Item = (&str, &Destination)> {
    let namespace = placed.resource.key.namespace.as_str();
    rules(placed).flat_map(weighted).map(move |target| (namespace, &target.destination))
}

fn weighted(rule: &HttpRoute) -> &[WeightedDestination] {
    match &rule.action {
        RouteAction::Forward(targets) => targets,
        RouteAction::Redirect(_) | RouteAction::Respond(_) => &[],
    }
}

fn build_routes(services: &[Placed], clusters: &[Option<Arc<Cluster>>]) -> Vec<Route> {
    let mut clusters = clusters.iter();
    let mut routes = Vec::new();
    for rule in services.iter().flat_map(rules) {
        let targets: Vec<_> =
            weighted(rule).iter().zip(clusters.by_ref().take(weighted(rule).len())).collect();
        add_routes(rule, &targets, &mut routes);
    }
    // As Istio sorts them: stable, so that all else stays in order.
    routes.sort_by_key(|route| is_catch_all(&route.path));
    routes
}

fn add_routes(
    rule: &HttpRoute,
    targets: &[(&WeightedDestination, &Option<Arc<Cluster>>)],
    routes: &mut Vec<Route>,
) {
    let mut add = |name: String, path| {
        let action = build_action(rule, targets);
        routes.push(Route { name, path, action });
    };
    if rule.matches.is_empty() {
        return add(rule.name.clone(), PathMatch::Any);
    }
    for condition in &rule.matches {
        let name = match condition.name.as_str() {
            "" => rule.name.clone(),
            name => format!("{}.{name}", rule.name),
        };
        add(name, condition.path.clone());
        if is_catch_all(&condition.path) {
            break;
        }
    }
}

fn build_action(
    rule: &HttpRoute,
    targets: &[(&WeightedDestination, &Option<Arc<Cluster>>)],
) -> Action {
    match &rule.action {
        RouteAction::Redirect(redirect) => Action::Redirect(redirect.clone()),
        RouteAction::Respond(response) => Action::Respond(response.clone()),
        RouteAction::Forward(_) => Action::Forward(Forward { targets: build_targets(targets) }),
    }
}

fn build_targets(targets: &[(&WeightedDestination, &Option<Arc<Cluster>>)]) -> Vec<Target> {
    let target =
        |weight, cluster: &Option<Arc<Cluster>>| Target { weight, cluster: cluster.clone() };
    if let [(only, cluster)] = targets {
        return vec![target(only.weight.max(1), cluster)];
    }
    let used = targets.iter().filter(|(destination, _)| destination.weight > 0);
    used.map(|(destination, cluster)| target(destination.weight, cluster)).collect()
}
