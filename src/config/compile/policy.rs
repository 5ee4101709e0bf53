//! From DestinationRules to what holds for one cluster.
//!
//! - As in Istio, the gateway's namespace is asked first, then the service's, then the root
//!   namespace; within one the most specific host wins, and rules for the same host are one rule:
//!   their subsets together, and the policy of the first that has one.
//! - What stands for a port replaces the whole policy; what stands for a subset replaces block by
//!   block.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use super::GatewayIdentity;
use super::sources::{Placed, Resources};
use crate::config::model::{
    Balancer, Blocks, DestinationRule, Kind, PortPolicy, Resource, Spec, Subset,
};
use crate::snapshot::{HostPattern, TrafficPolicy};

/// Where rules for every namespace stand.
const ROOT_NAMESPACE: &str = "istio-system";

type ByHost<'a> = HashMap<HostPattern, Vec<&'a DestinationRule>>;

/// The DestinationRules that the gateway may see, each list in order of precedence.
pub(super) struct Rules<'a> {
    gateway: &'a str,
    by_namespace: HashMap<&'a str, ByHost<'a>>,
    anywhere: ByHost<'a>,
}

/// What the rules say of one host.
pub(super) struct RulesOfHost<'r, 'a>(&'r [&'a DestinationRule]);

impl<'a> Rules<'a> {
    /// Those of `resources` that `gateway` may see.
    pub(super) fn new(resources: &'a Resources, gateway: &'a GatewayIdentity) -> Self {
        let mut visible: Vec<_> = visible(resources, gateway)
            .map(|(placed, rule)| (&placed.resource.key, &placed.resource.created, rule))
            .collect();
        // Rules for certain workloads go first, then the oldest.
        visible.sort_by_key(|(key, created, rule)| {
            (Reverse(rule.selector.is_some()), *created, &key.name, &key.namespace)
        });
        let mut rules = Self {
            gateway: &gateway.namespace,
            by_namespace: HashMap::new(),
            anywhere: HashMap::new(),
        };
        for (key, _, rule) in visible {
            let here = rules.by_namespace.entry(&*key.namespace).or_default();
            for by_host in [here, &mut rules.anywhere] {
                by_host.entry(rule.host.clone()).or_default().push(rule);
            }
        }
        rules
    }

    /// What holds for `host`, a service of `namespace`; without one it is none that is known.
    pub(super) fn of(&self, host: &str, namespace: Option<&str>) -> RulesOfHost<'_, 'a> {
        if self.anywhere.is_empty() {
            return RulesOfHost(&[]);
        }
        let places = [Some(self.gateway), namespace, Some(ROOT_NAMESPACE)].into_iter().flatten();
        let mut lists: Vec<_> = places.filter_map(|place| self.by_namespace.get(place)).collect();
        if namespace.is_none() {
            lists.push(&self.anywhere);
        }
        let patterns: Vec<_> = patterns(host).collect();
        let mut all = lists.into_iter().flat_map(|list| patterns.iter().map(|host| list.get(host)));
        RulesOfHost(all.find_map(|found| found).map(Vec::as_slice).unwrap_or_default())
    }
}

/// The rules of `resources` that `gateway` may see, by namespace and name.
pub(super) fn visible<'a>(
    resources: &'a Resources,
    gateway: &GatewayIdentity,
) -> impl Iterator<Item = (&'a Placed, &'a DestinationRule)> {
    resources
        .of_kind(Kind::DestinationRule)
        .filter_map(|(_, placed)| Some((placed, rule(&placed.resource)?)))
        .filter(|(placed, rule)| is_for(rule, &placed.resource.key.namespace, gateway))
}

fn rule(resource: &Resource) -> Option<&DestinationRule> {
    match &resource.spec {
        Spec::DestinationRule(rule) => Some(rule),
        Spec::Gateway(_)
        | Spec::VirtualService(_)
        | Spec::ServiceEntry(_)
        | Spec::WorkloadEntry(_)
        | Spec::Service(_)
        | Spec::EndpointSlice(_)
        | Spec::Pod(_)
        | Spec::Secret(_)
        | Spec::ConfigMap(_) => None,
    }
}

fn is_for(rule: &DestinationRule, namespace: &str, gateway: &GatewayIdentity) -> bool {
    let is_selected = rule.selector.as_ref().is_none_or(|labels| {
        namespace == gateway.namespace
            && labels.iter().all(|(name, value)| gateway.labels.get(name) == Some(value))
    });
    is_selected && rule.export.reaches(&gateway.namespace, namespace)
}

/// The patterns that match `host`, the most specific first.
fn patterns(host: &str) -> impl Iterator<Item = HostPattern> + '_ {
    let below =
        host.match_indices('.').map(|(dot, _)| HostPattern::Wildcard(host[dot + 1..].into()));
    std::iter::once(HostPattern::Exact(host.into())).chain(below).chain([HostPattern::Any])
}

impl<'a> RulesOfHost<'_, 'a> {
    /// The subset `name`.
    pub(super) fn subset(&self, name: &str) -> Option<&'a Subset> {
        self.0.iter().flat_map(|rule| &rule.subsets).find(|subset| subset.name == name)
    }

    /// The names of all subsets.
    pub(super) fn subsets(&self) -> impl Iterator<Item = &'a str> {
        self.0.iter().flat_map(|rule| &rule.subsets).map(|subset| subset.name.as_str())
    }

    /// What holds for `port` of `subset`.
    pub(super) fn blocks(&self, subset: Option<&Subset>, port: u16) -> Blocks {
        let first = self.0.iter().map(|rule| &rule.policy).find(|policy| !policy.is_empty());
        let mut blocks = first.map(|policy| of_port(policy, port)).unwrap_or_default();
        if let Some(subset) = subset {
            lay_over(&mut blocks, &subset.policy, port);
        }
        blocks
    }
}

/// A policy for the port stands for all but what cannot be said of one.
fn of_port(policy: &PortPolicy, port: u16) -> Blocks {
    match policy.ports.get(&port) {
        Some(own) => own.clone().with_rest_of(&policy.all),
        None => policy.all.clone(),
    }
}

fn lay_over(blocks: &mut Blocks, subset: &PortPolicy, port: u16) {
    let Blocks { balancer, pool, outliers, tls, retry_budget, proxy_protocol } = subset.all.clone();
    blocks.balancer = balancer.or_else(|| blocks.balancer.take());
    blocks.pool = pool.or_else(|| blocks.pool.take());
    blocks.outliers = outliers.or_else(|| blocks.outliers.take());
    blocks.tls = tls.or_else(|| blocks.tls.take());
    blocks.retry_budget = retry_budget.or(blocks.retry_budget);
    blocks.proxy_protocol = proxy_protocol.or(blocks.proxy_protocol);
    if let Some(own) = subset.ports.get(&port) {
        *blocks = own.clone().with_rest_of(blocks);
    }
}

/// What `blocks` say, with Istio's defaults for what they do not.
pub(super) fn policy(blocks: &Blocks) -> TrafficPolicy {
    let balancer = blocks.balancer.as_ref();
    TrafficPolicy {
        balance: balancer.map(|balancer: &Balancer| balancer.balance.clone()).unwrap_or_default(),
        warmup: balancer.and_then(|balancer| balancer.warmup),
        pool: blocks.pool.clone().unwrap_or_default(),
        outliers: blocks.outliers.clone(),
        retry_budget: blocks.retry_budget,
        proxy_protocol: blocks.proxy_protocol,
    }
}

/// Whether something with `labels` is in a subset of `wanted`.
pub(super) fn has_all(
    labels: &BTreeMap<String, String>,
    wanted: &BTreeMap<String, String>,
) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}
