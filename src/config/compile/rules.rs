//! From the rules of VirtualServices to routes.
//!
//! - What depends only on the gateway (`port`, `gateways`, `source...` of a match) is decided here;
//!   the data path never sees it.
//! - As in Istio, a rule that takes every request ends its VirtualService, and of several
//!   VirtualServices on one host such rules go last.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};

use super::GatewayIdentity;
use super::delegate::{Rule, rules_of};
use super::sources::Placed;
use crate::config::model::{
    self, Destination, Headers, HttpRoute, MatchBlock, Moved, NewUri, Place, Resource, RouteAction,
    Treatment, WeightedDestination,
};
use crate::crypto::Digest;
use crate::snapshot::{
    Action, Cluster, Edit, Edits, Extras, Forward, Mirror, PathMatch, PathRewrite, Redirect,
    Rejection, Route, Severity, Target, TextMatch,
};

/// For which gateway and port routes are made.
pub(super) struct Scope<'a> {
    /// Of the Gateway's server.
    pub(super) port: u16,
    /// The Gateways that share it.
    pub(super) gateways: &'a [Arc<Resource>],
    /// The gateway that serves them; `None` for none in particular.
    pub(super) identity: Option<&'a GatewayIdentity>,
}

impl Scope<'_> {
    /// Whether a block with `place` is for it.
    pub(super) fn takes(&self, place: &Place) -> bool {
        if place.port.is_some_and(|port| port != self.port) {
            return false;
        }
        if let Some(names) = &place.gateways {
            let mut keys = self.gateways.iter().map(|gateway| &gateway.key);
            return keys.any(|key| names.iter().any(|name| name.is_of(key)));
        }
        let Some(identity) = self.identity else { return true };
        place.source_namespace.as_ref().is_none_or(|namespace| *namespace == identity.namespace)
            && place
                .source_labels
                .iter()
                .all(|(name, value)| identity.labels.get(name) == Some(value))
    }
}

/// A rule that can be reached.
pub(super) struct Reached<'a> {
    rule: &'a HttpRoute,
    /// That of its VirtualService.
    namespace: &'a str,
    /// The places of those that are for the scope; empty for every request.
    blocks: Vec<usize>,
    made_of: [usize; 2],
}

impl Reached<'_> {
    fn blocks(&self) -> impl Iterator<Item = &MatchBlock> {
        self.blocks.iter().map(|place| &self.rule.matches[*place])
    }
}

/// What routes to `clusters` are made of: the same of the same. It speaks of places in memory, so
/// it holds as long as the resources of the rules and the routes themselves stay there.
pub(super) fn digest(reached: &[Reached<'_>], clusters: &[Option<Arc<Cluster>>]) -> Digest {
    let mut all = Vec::new();
    for Reached { made_of, blocks, .. } in reached {
        all.extend_from_slice(made_of);
        all.push(blocks.len());
        all.extend_from_slice(blocks);
    }
    let address = |cluster: &Arc<Cluster>| Arc::as_ptr(cluster).addr();
    all.extend(clusters.iter().map(|cluster| cluster.as_ref().map_or(0, address)));
    let bytes: Vec<_> = all.into_iter().flat_map(usize::to_ne_bytes).collect();
    Digest::of(&bytes)
}

/// Those of the rules of one VirtualService up to the first that takes every request.
pub(super) fn reached<'a>(rules: &'a [Rule<'_>], scope: &Scope<'_>) -> Vec<Reached<'a>> {
    let mut all = Vec::new();
    for Rule { rule, namespace, made_of } in rules {
        let mut blocks = Vec::new();
        let mut ends = rule.matches.is_empty();
        let all_blocks = rule.matches.iter().enumerate();
        for (place, block) in all_blocks.filter(|(_, block)| scope.takes(&block.place)) {
            blocks.push(place);
            ends = block.is_catch_all();
            if ends {
                break;
            }
        }
        if ends || !blocks.is_empty() {
            all.push(Reached { rule, namespace, blocks, made_of: *made_of });
        }
        if ends {
            break;
        }
    }
    all
}

/// Warnings for rules behind one that takes every request.
pub(super) fn report_unreachable(placed: &Placed, rejections: &mut Vec<Rejection>) {
    let rules = rules_of(placed);
    let takes_all = |rule: &HttpRoute| {
        if matches!(rule.action, RouteAction::Delegate(_)) {
            return false;
        }
        let mut blocks = rule.matches.iter();
        rule.matches.is_empty() || blocks.any(|b| b.is_catch_all() && b.place.is_everywhere())
    };
    let end = rules.iter().position(takes_all).map_or(rules.len(), |index| index + 1);
    report_taken(placed, &rules[..end], rejections);
    for (index, rule) in rules.iter().enumerate().skip(end) {
        let what = "is never reached".to_owned();
        let cause = "a rule before it takes every request; put that one last";
        let field = format!("spec.http[{index}]");
        rejections.push(placed.reject(Severity::Warning, rule.line, field, what, cause));
    }
}

/// Warnings for blocks whose paths blocks before them take without further conditions.
fn report_taken(placed: &Placed, rules: &[HttpRoute], rejections: &mut Vec<Rejection>) {
    let mut taken = Taken::default();
    for (index, rule) in rules.iter().enumerate() {
        for (block, number) in rule.matches.iter().zip(0..) {
            if let Some(by) = taken.find(block, index) {
                let field = format!("spec.http[{index}].match[{number}]");
                let what = "is never met".to_owned();
                let cause =
                    format!("`{by}` before it takes its requests; put the longer one first");
                let warning = placed.reject(Severity::Warning, rule.line, field, what, &cause);
                rejections.push(warning);
            }
            if !matches!(rule.action, RouteAction::Delegate(_)) {
                taken.add(block, index);
            }
        }
    }
}

/// The paths that blocks take, whatever else a request is, and the first rule of each.
#[derive(Default)]
struct Taken<'a> {
    exact: HashMap<&'a str, usize>,
    prefixes: HashMap<&'a str, usize>,
    /// Of the prefixes.
    lengths: BTreeSet<usize>,
}

impl<'a> Taken<'a> {
    fn add(&mut self, block: &'a MatchBlock, rule: usize) {
        if !block.conditions.is_empty() || !block.place.is_everywhere() {
            return;
        }
        match &block.uri {
            Some(TextMatch::Exact(path)) => {
                self.exact.entry(path).or_insert(rule);
            }
            Some(TextMatch::Prefix(path)) => {
                self.prefixes.entry(path).or_insert(rule);
                self.lengths.insert(path.len());
            }
            Some(TextMatch::Present | TextMatch::Regex(_)) | None => {}
        }
    }

    /// What takes all that `block` of `rule` is for, if that can be told. A path beside a prefix
    /// of the same rule is no mistake, as in Istio.
    fn find(&self, block: &'a MatchBlock, rule: usize) -> Option<&'a str> {
        let (path, is_exact) = match &block.uri {
            Some(TextMatch::Exact(path)) => (path.as_str(), true),
            Some(TextMatch::Prefix(path)) => (path.as_str(), false),
            Some(TextMatch::Present | TextMatch::Regex(_)) | None => return None,
        };
        if block.ignores_case {
            return None;
        }
        let is_other = |by: &usize| !is_exact || *by != rule;
        let mut starts = self.lengths.iter().filter_map(|length| path.get(..*length));
        let by_prefix = starts.find(|start| self.prefixes.get(start).is_some_and(is_other));
        let is_taken = is_exact && self.exact.contains_key(path);
        by_prefix.or_else(|| is_taken.then_some(path))
    }
}

/// The destinations of a rule, mirrors last, with the namespace that short names are of.
pub(super) fn destinations<'a>(
    reached: &'a Reached<'_>,
) -> impl Iterator<Item = (&'a str, &'a Destination)> {
    destinations_of(reached.rule).map(|destination| (reached.namespace, destination))
}

/// The same for all rules of `placed`, reached or not.
pub(super) fn all_destinations(placed: &Placed) -> impl Iterator<Item = (&str, &Destination)> {
    let namespace = &*placed.resource.key.namespace;
    let all = rules_of(placed).iter().flat_map(destinations_of);
    all.map(move |destination| (namespace, destination))
}

fn destinations_of(rule: &HttpRoute) -> impl Iterator<Item = &Destination> {
    let targets = weighted(rule).iter().map(|target| &target.destination);
    targets.chain(mirrors(rule).iter().map(|mirror| &mirror.destination))
}

fn weighted(rule: &HttpRoute) -> &[WeightedDestination] {
    match &rule.action {
        RouteAction::Forward(targets) => targets,
        RouteAction::Redirect(_) | RouteAction::Respond(_) | RouteAction::Delegate(_) => &[],
    }
}

fn mirrors(rule: &HttpRoute) -> &[model::Mirror] {
    match &rule.action {
        RouteAction::Forward(_) => rule.treatment().mirrors.as_deref().unwrap_or_default(),
        RouteAction::Redirect(_) | RouteAction::Respond(_) | RouteAction::Delegate(_) => &[],
    }
}

/// The routes of all rules of a virtual host; `clusters` are in the order of the destinations.
pub(super) fn build(reached: &[Reached<'_>], clusters: &[Option<Arc<Cluster>>]) -> Vec<Route> {
    let mut clusters = clusters;
    let mut routes = Vec::new();
    for reached in reached {
        let (own, rest) = clusters.split_at(destinations(reached).count());
        clusters = rest;
        add_routes(reached, own, &mut routes);
    }
    // As Istio sorts them: stable, so that all else stays in order.
    routes.sort_by_key(is_catch_all);
    routes
}

fn is_catch_all(route: &Route) -> bool {
    let every_path = match &route.path {
        PathMatch::Any => true,
        PathMatch::Prefix(prefix) => prefix == "/",
        PathMatch::Exact(_) | PathMatch::Regex(_) => false,
    };
    every_path && route.conditions.is_empty()
}

fn add_routes(reached: &Reached<'_>, clusters: &[Option<Arc<Cluster>>], routes: &mut Vec<Route>) {
    let rule = reached.rule;
    let (targets, mirrors) = clusters.split_at(weighted(rule).len());
    if reached.blocks.is_empty() {
        let action = build_action(rule, None, targets);
        let (name, extras) = (rule.name.clone(), build_extras(rule, None, mirrors));
        routes.push(Route { name, extras, ..Route::new(PathMatch::Any, action) });
    }
    for block in reached.blocks() {
        let name = match block.name.as_str() {
            "" => rule.name.clone(),
            name => format!("{}.{name}", rule.name),
        };
        let uri = block.uri.as_ref();
        routes.push(Route {
            name,
            path: path_match(uri),
            ignores_case: block.ignores_case,
            conditions: block.conditions.clone().into_boxed_slice(),
            action: build_action(rule, uri, targets),
            extras: build_extras(rule, uri, mirrors),
        });
    }
}

fn path_match(uri: Option<&TextMatch>) -> PathMatch {
    match uri {
        None | Some(TextMatch::Present) => PathMatch::Any,
        Some(TextMatch::Exact(path)) => PathMatch::Exact(path.clone()),
        Some(TextMatch::Prefix(prefix)) => PathMatch::Prefix(prefix.clone()),
        Some(TextMatch::Regex(regex)) if regex.pattern() == ".*" => PathMatch::Any,
        Some(TextMatch::Regex(regex)) => PathMatch::Regex(regex.clone()),
    }
}

fn build_action(
    rule: &HttpRoute,
    uri: Option<&TextMatch>,
    clusters: &[Option<Arc<Cluster>>],
) -> Action {
    match &rule.action {
        RouteAction::Redirect(moved) => Action::Redirect(Box::new(build_redirect(moved, uri))),
        RouteAction::Respond(response) => Action::Respond(response.clone()),
        RouteAction::Delegate(_) => unreachable!("the delegate's rules stand in its place"),
        RouteAction::Forward(targets) => {
            Action::Forward(Forward { targets: build_targets(rule, targets, clusters) })
        }
    }
}

fn build_redirect(moved: &Moved, uri: Option<&TextMatch>) -> Redirect {
    let whole = moved.path.clone().map(PathRewrite::Whole);
    let prefix = moved.prefix.as_ref().map(|with| matched_rewrite(with, uri));
    Redirect {
        status: moved.status,
        scheme: moved.scheme.clone(),
        authority: moved.authority.clone(),
        port: moved.port,
        path: whole.or(prefix),
    }
}

fn build_extras(
    rule: &HttpRoute,
    uri: Option<&TextMatch>,
    clusters: &[Option<Arc<Cluster>>],
) -> Option<Box<Extras>> {
    let treatment = rule.treatment();
    let forwards = matches!(rule.action, RouteAction::Forward(_));
    let response = treatment.headers.as_ref().filter(|_| !forwards);
    let rewrite = treatment.rewrite.as_ref().and_then(|rewrite| rewrite.uri.as_ref());
    let mirrors = mirrors(rule).iter().zip(clusters).filter(|(mirror, _)| !mirror.share.is_none());
    let extras = Extras {
        response: response.map_or_else(Vec::new, |headers| edits(&[&headers.response])),
        timeout: treatment.timeout,
        retries: treatment.retries.clone(),
        rewrite: rewrite.map(|rewrite| match rewrite {
            NewUri::Matched(with) => matched_rewrite(with, uri),
            NewUri::Regex(rewrite) => PathRewrite::Regex(rewrite.clone()),
        }),
        fault: treatment.fault.clone(),
        cors: treatment.cors.clone(),
        mirrors: mirrors
            .map(|(mirror, cluster)| Mirror { cluster: cluster.clone(), share: mirror.share })
            .collect(),
    };
    (!extras.is_empty()).then(|| Box::new(extras))
}

/// Replaces what `uri` has matched: a prefix, or the whole path. No condition is the prefix `/`.
fn matched_rewrite(with: &str, uri: Option<&TextMatch>) -> PathRewrite {
    let with = with.to_owned();
    match uri {
        None | Some(TextMatch::Present) => PathRewrite::Prefix { bytes: 1, with },
        Some(TextMatch::Prefix(prefix)) => PathRewrite::Prefix { bytes: prefix.len(), with },
        Some(TextMatch::Exact(_) | TextMatch::Regex(_)) => PathRewrite::Whole(with),
    }
}

fn build_targets(
    rule: &HttpRoute,
    targets: &[WeightedDestination],
    clusters: &[Option<Arc<Cluster>>],
) -> Vec<Target> {
    let is_only = targets.len() == 1;
    let used = targets.iter().zip(clusters).filter(|(target, _)| is_only || target.weight > 0);
    let targets = used.map(|(target, cluster)| {
        let edits = build_edits(rule.treatment(), target.headers.as_deref(), is_only);
        let edits = (!edits.is_empty()).then(|| Box::new(edits));
        Target { weight: target.weight.max(1), cluster: cluster.clone(), edits }
    });
    let mut targets: Vec<_> = targets.collect();
    targets.shrink_to_fit();
    targets
}

/// As Istio puts them together: those of an only destination join the rule's and have the last
/// word; of several, each goes first and the rule has it.
fn build_edits(treatment: &Treatment, target: Option<&Headers>, is_only: bool) -> Edits {
    static NONE: LazyLock<Headers> = LazyLock::new(Headers::default);
    let rule = treatment.headers.as_ref().unwrap_or(&NONE);
    let target = target.unwrap_or(&NONE);
    let rewritten = treatment.rewrite.as_ref().and_then(|rewrite| rewrite.authority.clone());
    let both = |rule, target| {
        if is_only { edits(&[&joined(rule, target)]) } else { edits(&[target, rule]) }
    };
    Edits {
        request: both(&rule.request, &target.request),
        response: both(&rule.response, &target.response),
        authority: rewritten
            .or_else(|| rule.authority.clone())
            .or_else(|| target.authority.clone()),
    }
}

fn edits(all: &[&Edit]) -> Vec<Edit> {
    all.iter().filter(|edit| !edit.is_empty()).map(|edit| (*edit).clone()).collect()
}

fn joined(first: &Edit, second: &Edit) -> Edit {
    let mut joined = first.clone();
    joined.remove.extend_from_slice(&second.remove);
    joined.set.extend_from_slice(&second.set);
    joined.add.extend_from_slice(&second.add);
    joined
}
