//! From the `tls` and `tcp` rules of VirtualServices to the tables of one server.
//!
//! Which blocks a server has is known as soon as there is a plan; where they lead to is looked up
//! when backends change. What comes out the same is the same `Arc`.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::route::{Router, virtual_service};
use super::rules::Scope;
use super::server_hosts::ServerHosts;
use super::sources::Placed;
use crate::config::model::{Destination, TcpMatch, TcpRule, VirtualService};
use crate::snapshot::{
    Forward, HostPattern, Rejection, Severity, Target, TcpRoute, TcpRoutes, TcpTable,
};

/// The blocks for each name. Sorted by name.
pub(super) type TcpPlan = BTreeMap<HostPattern, Vec<Block>>;

/// A match block of a rule, or a rule that has none.
pub(super) struct Block {
    service: Placed,
    /// Which of the VirtualService's lists.
    list: List,
    rule: usize,
    /// `None`: every connection.
    block: Option<usize>,
}

/// Lists of rules for connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum List {
    Tls,
    Tcp,
}

impl List {
    /// The list of `service`.
    pub(super) fn of(self, service: &VirtualService) -> &[TcpRule] {
        match self {
            Self::Tls => &service.tls,
            Self::Tcp => &service.tcp,
        }
    }
}

/// Adds the blocks of `placed` that are for `scope` to `plan`: by the names that clients ask the
/// server of `hosts` for where TLS is passed on, else all of them at `*`.
pub(super) fn plan(
    placed: &Placed,
    list: List,
    scope: &Scope<'_>,
    hosts: &ServerHosts<'_>,
    plan: &mut TcpPlan,
) {
    let Some(service) = virtual_service(placed) else { return };
    for (rule, found) in list.of(service).iter().enumerate() {
        let mut add = |pattern, block| {
            let service = placed.clone();
            plan.entry(pattern).or_default().push(Block { service, list, rule, block });
        };
        if found.matches.is_empty() {
            add(HostPattern::Any, None);
        }
        let blocks = found.matches.iter().enumerate();
        for (place, block) in blocks.filter(|(_, block)| scope.takes(&block.place)) {
            for pattern in names(placed, block, list, hosts) {
                add(pattern, Some(place));
            }
        }
    }
}

/// The names of `block` that the server of `hosts` takes, the narrower of each two.
fn names(
    placed: &Placed,
    block: &TcpMatch,
    list: List,
    hosts: &ServerHosts<'_>,
) -> BTreeSet<HostPattern> {
    if list == List::Tcp {
        return BTreeSet::from([HostPattern::Any]);
    }
    let namespace = &placed.resource.key.namespace;
    let shared = block.names.iter().flat_map(|name| hosts.shared(namespace, name));
    shared.map(|(_, name)| name).collect()
}

/// The destinations of all rules of `placed` that are for connections.
pub(super) fn all_destinations(placed: &Placed) -> impl Iterator<Item = &Destination> {
    let rules = virtual_service(placed).into_iter().flat_map(|s| s.tls.iter().chain(&s.tcp));
    rules.flat_map(|rule| &rule.targets).map(|target| &target.destination)
}

/// Warnings for rules behind others that take every connection for the same names.
pub(super) fn report_unreachable(placed: &Placed, rejections: &mut Vec<Rejection>) {
    let Some(service) = virtual_service(placed) else { return };
    for (list, name) in [(List::Tls, "tls"), (List::Tcp, "tcp")] {
        let mut taken = HashSet::new();
        for (index, rule) in list.of(service).iter().enumerate() {
            let mut wanted = rule.matches.iter().flat_map(|block| asked(block, list));
            let is_met = if rule.matches.is_empty() {
                !taken.contains(&HostPattern::Any)
            } else {
                wanted.any(|name| !taken.contains(&name))
            };
            if !is_met {
                let field = format!("spec.{name}[{index}]");
                let cause = "rules before it take every connection for the same names";
                let what = "is never reached".to_owned();
                rejections.push(placed.reject(Severity::Warning, rule.line, field, what, cause));
            }
            let all = rule.matches.iter().filter(|block| block.takes_all());
            taken.extend(all.flat_map(|block| asked(block, list)));
            if rule.matches.is_empty() {
                taken.insert(HostPattern::Any);
            }
        }
    }
}

/// The names that `block` is for.
fn asked(block: &TcpMatch, list: List) -> Vec<HostPattern> {
    match list {
        List::Tls => block.names.to_vec(),
        List::Tcp => vec![HostPattern::Any],
    }
}

/// A table and what it is made of, from one generation to the next.
#[derive(Default)]
pub(super) struct TcpUnit {
    plan: TcpPlan,
    table: Arc<TcpTable>,
}

impl TcpUnit {
    /// The unit that is to become what `plan` says.
    pub(super) fn replan(&mut self, plan: TcpPlan) {
        self.plan = plan;
    }

    /// For how many names it has routes.
    pub(super) fn hosts(&self) -> usize {
        self.plan.len()
    }

    /// The table as it was built last.
    pub(super) fn table(&self) -> &Arc<TcpTable> {
        &self.table
    }

    /// Builds what is not as it was, for a listener on `port`; says whether the table is another.
    pub(super) fn refresh(&mut self, port: u16, router: &mut Router<'_>) -> bool {
        let mut new = TcpTable::default();
        let mut differs = self.plan.len() != self.table.hosts.iter().count();
        for (pattern, blocks) in &self.plan {
            let routes = TcpRoutes(blocks.iter().map(|block| block.build(port, router)).collect());
            let same = self.table.hosts.get(pattern).filter(|old| old.is_same(&routes));
            differs |= same.is_none();
            new.hosts.insert(pattern.clone(), same.cloned().unwrap_or_else(|| Arc::new(routes)));
        }
        if differs {
            self.table = Arc::new(new);
        }
        differs
    }
}

impl Block {
    fn rule(&self) -> &TcpRule {
        let service = virtual_service(&self.service).expect("only those have rules");
        &self.list.of(service)[self.rule]
    }

    fn build(&self, port: u16, router: &mut Router<'_>) -> TcpRoute {
        let rule = self.rule();
        let block = self.block.map(|block| &rule.matches[block]);
        let namespace = &self.service.resource.key.namespace;
        let is_only = rule.targets.len() == 1;
        let used = rule.targets.iter().filter(|target| is_only || target.weight > 0);
        let targets = used.map(|target| {
            let cluster = router.backends.find(&target.destination, namespace, port);
            Target { weight: target.weight.max(1), cluster, edits: None }
        });
        TcpRoute {
            sources: block.map_or_else(Box::default, |block| block.sources.clone()),
            destinations: block.map_or_else(Box::default, |block| block.destinations.clone()),
            forward: Forward { targets: targets.collect() },
        }
    }
}
