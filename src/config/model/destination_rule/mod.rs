//! `DestinationRule`: how a service's endpoints are reached.
//!
//! Istio's fields and rules. What is not said is `None`, so that compile can lay the blocks of a
//! subset over those of its rule.

mod balancer;
mod outlier;
mod pool;

pub(crate) use balancer::Balancer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::client_tls::{self, ClientTls};
use super::fields::{Field, Fields, Problems};
use super::virtual_service::{CLUSTER_DOMAIN, Export, complete, read_export};
use crate::snapshot::{HostPattern, OutlierDetection, PoolLimits, ProxyVersion, RetryBudget};

/// Istio's, for a budget that does not say them.
const BUDGET_PERCENT: f64 = 20.0;
const BUDGET_RETRIES_MIN: u32 = 3;

/// A DestinationRule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DestinationRule {
    /// A short name is completed.
    pub(crate) host: HostPattern,
    pub(crate) export: Export,
    /// Labels of the workloads of its namespace that it is for; `None` for all of every namespace.
    pub(crate) selector: Option<BTreeMap<String, String>>,
    pub(crate) policy: PortPolicy,
    pub(crate) subsets: Box<[Subset]>,
}

/// A part of a service's endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subset {
    pub(crate) name: String,
    /// Its endpoints have all of them.
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) policy: PortPolicy,
}

/// A policy, and what stands in its place on some ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PortPolicy {
    pub(crate) all: Blocks,
    pub(crate) ports: BTreeMap<u16, Blocks>,
}

impl PortPolicy {
    /// Whether nothing is said.
    pub(crate) fn is_empty(&self) -> bool {
        self.all == Blocks::default() && self.ports.is_empty()
    }
}

/// What a policy says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub(crate) balancer: Option<Balancer>,
    pub(crate) pool: Option<PoolLimits>,
    pub(crate) outliers: Option<OutlierDetection>,
    pub(crate) tls: Option<Tls>,
    pub(crate) retry_budget: Option<RetryBudget>,
    pub(crate) proxy_protocol: Option<ProxyVersion>,
}

impl Blocks {
    /// With what cannot be said of one port, as `all` has it.
    pub(crate) fn with_rest_of(self, all: &Self) -> Self {
        Self { retry_budget: all.retry_budget, proxy_protocol: all.proxy_protocol, ..self }
    }
}

/// `tls` of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tls {
    Disable,
    Use(Arc<ClientTls>),
    /// Of a rule with an error: what was meant is not known, but that it was no plain text.
    Closed,
}

impl DestinationRule {
    /// Says of which namespace the service is, where its endpoints are in a mesh; `own` is the
    /// rule's.
    fn name_mesh_peers(&mut self, own: &str) {
        let namespace = namespace_of(&self.host, own);
        for blocks in self.blocks_mut() {
            if let Some(Tls::Use(tls)) = &mut blocks.tls
                && let Some(peer) = Arc::get_mut(tls).and_then(|tls| tls.mesh.as_mut())
            {
                peer.namespace.clone_from(&namespace);
            }
        }
    }

    fn blocks_mut(&mut self) -> impl Iterator<Item = &mut Blocks> {
        let subsets = self.subsets.iter_mut().map(|subset| &mut subset.policy);
        let policies = std::iter::once(&mut self.policy).chain(subsets);
        policies
            .flat_map(|policy| std::iter::once(&mut policy.all).chain(policy.ports.values_mut()))
    }

    /// What is left of a rule with an error: no connection where it has TLS. `None` if it has none.
    pub(super) fn closed(mut self) -> Option<Self> {
        let mut is_secured = false;
        for blocks in self.blocks_mut() {
            let tls = match blocks.tls.take() {
                Some(Tls::Use(_) | Tls::Closed) => Some(Tls::Closed),
                other @ (Some(Tls::Disable) | None) => other,
            };
            is_secured |= tls == Some(Tls::Closed);
            *blocks = Blocks { tls, ..Blocks::default() };
        }
        is_secured.then_some(self)
    }

    /// Each `tls` that is not to be none.
    pub(crate) fn tls(&self) -> impl Iterator<Item = &Arc<ClientTls>> {
        let subsets = self.subsets.iter().map(|subset| &subset.policy);
        let policies = std::iter::once(&self.policy).chain(subsets);
        let blocks =
            policies.flat_map(|policy| std::iter::once(&policy.all).chain(policy.ports.values()));
        blocks.filter_map(|blocks| match &blocks.tls {
            Some(Tls::Use(tls)) => Some(tls),
            Some(Tls::Disable | Tls::Closed) | None => None,
        })
    }
}

pub(super) fn read(
    spec: &Field<'_>,
    namespace: &str,
    problems: &mut Problems,
) -> Option<DestinationRule> {
    let mut spec = spec.fields(problems)?;
    let host = spec.require("host", problems);
    let host = host.and_then(|field| read_host(&field, namespace, problems));
    let exported = spec.take("exportTo");
    let export = read_export(exported.clone(), namespace, problems);
    let selector = spec.take("workloadSelector").map(|field| read_selector(&field, problems));
    if let (Some(exported), Some(_)) = (&exported, &selector)
        && !matches!(&export, Export::Own)
        && !matches!(&export, Export::Named(names) if names[..] == [namespace])
    {
        let cause = "a rule with `workloadSelector` is for its own namespace: write `[ . ]`";
        problems.error(exported, "exports the rule to other namespaces", cause);
    }
    let policy = spec.take("trafficPolicy").map(|field| read_policy(&field, problems));
    let subsets = spec.take("subsets").map(|field| read_subsets(&field, problems));
    spec.finish(problems);
    let mut rule = DestinationRule {
        host: host?,
        export,
        selector: selector.map_or(Some(None), |selector| selector.map(Some))?,
        policy: policy.unwrap_or_else(|| Some(PortPolicy::default()))?,
        subsets: subsets.unwrap_or_default().into(),
    };
    rule.name_mesh_peers(namespace);
    Some(rule)
}

/// The namespace of a service of the cluster, or `own` for a host of another kind; `None` where a
/// wildcard is for several.
fn namespace_of(host: &HostPattern, own: &str) -> Option<Arc<str>> {
    let in_cluster = |name: &'_ str| -> Option<String> {
        let name = name.strip_suffix(CLUSTER_DOMAIN)?.strip_suffix('.')?;
        Some(name.rsplit('.').next().unwrap_or_default().to_owned())
    };
    match host {
        HostPattern::Exact(name) => Some(in_cluster(name).unwrap_or_else(|| own.to_owned()).into()),
        HostPattern::Wildcard(suffix) => in_cluster(suffix).map(Into::into),
        HostPattern::Any => None,
    }
}

fn read_host(field: &Field<'_>, namespace: &str, problems: &mut Problems) -> Option<HostPattern> {
    let text = field.string(problems)?;
    let host = complete(&text.into(), namespace).parse().ok();
    if host.is_none() {
        let cause = "the name of a Service or of a ServiceEntry, or `*.` and a suffix; no port";
        problems.error(field, format!("`{text}` is no host name"), cause);
    }
    host
}

fn read_selector(field: &Field<'_>, problems: &mut Problems) -> Option<BTreeMap<String, String>> {
    let mut selector = field.fields(problems)?;
    let labels = selector.take("matchLabels").map(|labels| labels.selector(problems));
    if labels.as_ref().is_none_or(BTreeMap::is_empty) {
        let cause = "it selects every workload of its namespace";
        problems.warn(field, "has no `matchLabels`", cause);
    }
    selector.finish(problems);
    Some(labels.unwrap_or_default())
}

fn read_subsets(field: &Field<'_>, problems: &mut Problems) -> Vec<Subset> {
    let mut names = BTreeSet::new();
    let items = field.items(problems);
    let mut subsets = Vec::with_capacity(items.len());
    for item in &items {
        let Some(subset) = read_subset(item, problems) else { continue };
        if !names.insert(subset.name.clone()) {
            let cause = "give one of them another name, and use it in the routes";
            problems.error(item, format!("the subset `{}` stands twice", subset.name), cause);
        }
        subsets.push(subset);
    }
    subsets
}

fn read_subset(item: &Field<'_>, problems: &mut Problems) -> Option<Subset> {
    let mut subset = item.fields(problems)?;
    let name = subset.require("name", problems).and_then(|f| read_subset_name(&f, problems));
    let labels = subset.take("labels").map(|field| field.labels(problems)).unwrap_or_default();
    let policy = subset.take("trafficPolicy").map(|field| read_policy(&field, problems));
    subset.finish(problems);
    let policy = policy.unwrap_or_else(|| Some(PortPolicy::default()))?;
    Some(Subset { name: name?, labels, policy })
}

fn read_subset_name(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let text = field.string(problems)?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if text.is_empty() || !text.bytes().all(is_name) {
        let what = format!("must be letters, digits, `-`, `.` and `_`, not `{text}`");
        problems.error(field, what, "");
        return None;
    }
    Some(text.to_owned())
}

fn read_policy(field: &Field<'_>, problems: &mut Problems) -> Option<PortPolicy> {
    let mut policy = field.fields(problems)?;
    let ports = policy.take("portLevelSettings");
    let (tunnel, proxy) = (policy.take("tunnel"), policy.take("proxyProtocol"));
    if let (Some(_), Some(proxy)) = (&tunnel, &proxy) {
        problems.error(proxy, "there may be `tunnel` or `proxyProtocol`, not both", "");
    }
    policy.refuse(&["tunnel"], problems);
    let budget = policy.take("retryBudget");
    let others = [&ports, &tunnel, &proxy, &budget].into_iter().flatten().count();
    let mut all = read_blocks(&mut policy, others > 0, problems);
    all.retry_budget = budget.and_then(|field| read_budget(&field, problems));
    all.proxy_protocol = proxy.and_then(|field| read_proxy_protocol(&field, problems));
    let items = ports.map(|field| field.items(problems)).unwrap_or_default();
    let mut ports = BTreeMap::new();
    for item in &items {
        let Some((port, blocks)) = read_port_policy(item, problems) else { continue };
        if ports.contains_key(&port) {
            let cause = "the first one is used";
            problems.warn(item, format!("the port {port} stands twice"), cause);
        }
        ports.entry(port).or_insert(blocks);
    }
    policy.finish(problems);
    Some(PortPolicy { all, ports })
}

fn read_port_policy(item: &Field<'_>, problems: &mut Problems) -> Option<(u16, Blocks)> {
    let mut policy = item.fields(problems)?;
    let port = policy.require("port", problems);
    let blocks = read_blocks(&mut policy, false, problems);
    policy.finish(problems);
    let mut port = port?.fields(problems)?;
    let number = port.require("number", problems).and_then(|number| number.port(problems));
    port.finish(problems);
    Some((number?, blocks))
}

/// Reads the blocks; that there is none is no mistake if `has_more`.
fn read_blocks(policy: &mut Fields<'_>, has_more: bool, problems: &mut Problems) -> Blocks {
    let balancer = policy.take("loadBalancer");
    let pool = policy.take("connectionPool");
    let outliers = policy.take("outlierDetection");
    let tls = policy.take("tls");
    if [&balancer, &pool, &outliers, &tls].into_iter().all(Option::is_none) && !has_more {
        problems.error(&policy.parent, "says nothing", "remove it");
    }
    Blocks {
        balancer: balancer.and_then(|f| balancer::read(&f, outliers.is_some(), problems)),
        pool: pool.and_then(|field| pool::read(&field, problems)),
        outliers: outliers.and_then(|field| outlier::read(&field, problems)),
        tls: tls.map(|field| read_tls(&field, problems)),
        retry_budget: None,
        proxy_protocol: None,
    }
}

fn read_tls(field: &Field<'_>, problems: &mut Problems) -> Tls {
    match client_tls::read(field, problems) {
        None => Tls::Closed,
        Some(None) => Tls::Disable,
        Some(Some(tls)) => Tls::Use(Arc::new(tls)),
    }
}

fn read_proxy_protocol(field: &Field<'_>, problems: &mut Problems) -> Option<ProxyVersion> {
    let mut fields = field.fields(problems)?;
    let versions = [("V1", ProxyVersion::V1), ("V2", ProxyVersion::V2)];
    let version = fields.take("version").map(|version| version.one_of(&versions, problems));
    fields.finish(problems);
    version.unwrap_or(Some(ProxyVersion::V1))
}

fn read_budget(field: &Field<'_>, problems: &mut Problems) -> Option<RetryBudget> {
    let mut budget = field.fields(problems)?;
    let percent = budget.take("percent").map(|f| f.number(0.0..=100.0, problems));
    let min = budget.take("minRetryConcurrency").map(|f| f.integer(0..=u32::MAX, problems));
    budget.finish(problems);
    let percent = percent.unwrap_or(Some(BUDGET_PERCENT))?;
    Some(RetryBudget { percent, retries_min: min.unwrap_or(Some(BUDGET_RETRIES_MIN))? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_tells_the_namespace_of_its_service_in_the_cluster() {
        for (host, namespace) in [
            ("cart.shop.svc.cluster.local", Some("shop")),
            ("*.shop.svc.cluster.local", Some("shop")),
            ("*.svc.cluster.local", None),
            ("*.local", None),
            ("*", None),
            ("cart.test", Some("own")),
            ("*.cart.test", None),
        ] {
            assert_eq!(namespace_of(&host.parse().unwrap(), "own").as_deref(), namespace, "{host}");
        }
    }
}
