//! Rules that stand in another VirtualService: which ones, and what becomes of both.
//!
//! As in Istio: one level deep; what the delegate matches has to lie within what its root matches;
//! what the delegate does not say, the root says.

use std::borrow::Cow;
use std::ptr;

use super::route::virtual_service;
use super::sources::{Placed, Resources};
use crate::config::model::{
    HttpRoute, Key, Kind, MatchBlock, Place, ResourceName, RouteAction, Treatment, VirtualService,
};
use crate::snapshot::{Condition, Rejection, Severity, TextMatch};

/// A rule as it is served.
pub(super) struct Rule<'a> {
    pub(super) rule: Cow<'a, HttpRoute>,
    /// What short names of destinations belong to.
    pub(super) namespace: &'a str,
    /// Where the rule stands in memory, and the one that delegates to it if there is one: nothing
    /// else makes it what it is.
    pub(super) made_of: [usize; 2],
}

/// The rules of `placed` with those of its delegates in their places.
pub(super) fn rules<'a>(placed: &'a Placed, resources: &'a Resources) -> Vec<Rule<'a>> {
    let own = &*placed.resource.key.namespace;
    let mut rules = Vec::new();
    for rule in rules_of(placed) {
        let RouteAction::Delegate(name) = &rule.action else {
            let made_of = [address(rule), 0];
            rules.push(Rule { rule: Cow::Borrowed(rule), namespace: own, made_of });
            continue;
        };
        let Ok(delegate) = find(name, own, resources) else { continue };
        let namespace = &*delegate.resource.key.namespace;
        for inner in rules_of(delegate) {
            let made_of = [address(inner), address(rule)];
            let merged = merge(rule, inner);
            rules.extend(merged.map(|rule| Rule { rule: Cow::Owned(rule), namespace, made_of }));
        }
    }
    rules
}

fn address(rule: &HttpRoute) -> usize {
    ptr::from_ref(rule).addr()
}

/// The delegates of `placed` that are used.
pub(super) fn delegates<'a>(
    placed: &'a Placed,
    resources: &'a Resources,
) -> impl Iterator<Item = &'a Placed> {
    let own = &*placed.resource.key.namespace;
    let names = rules_of(placed).iter().filter_map(|rule| match &rule.action {
        RouteAction::Delegate(name) => Some(name),
        RouteAction::Forward(_) | RouteAction::Redirect(_) | RouteAction::Respond(_) => None,
    });
    names.filter_map(move |name| find(name, own, resources).ok())
}

/// Warnings for delegates that are not there and for rules of theirs that are never met.
pub(super) fn report(placed: &Placed, resources: &Resources, rejections: &mut Vec<Rejection>) {
    let own = &*placed.resource.key.namespace;
    for (index, rule) in rules_of(placed).iter().enumerate() {
        let RouteAction::Delegate(name) = &rule.action else { continue };
        let field = format!("spec.http[{index}].delegate");
        let delegate = match find(name, own, resources) {
            Ok(delegate) => delegate,
            Err(what) => {
                let cause = "this rule is left out";
                rejections.push(placed.reject(Severity::Warning, rule.line, field, what, cause));
                continue;
            }
        };
        for inner in rules_of(delegate).iter().filter(|inner| merge(rule, inner).is_none()) {
            let what = format!("is never met from {}", placed.resource.key);
            let cause = "its conditions have to lie within those of the rule that delegates to it";
            let found = delegate.reject(Severity::Warning, inner.line, "spec.http", what, cause);
            rejections.push(found);
        }
    }
}

pub(super) fn rules_of(placed: &Placed) -> &[HttpRoute] {
    virtual_service(placed).map(|service| &*service.http).unwrap_or_default()
}

/// The delegate `name` for a VirtualService in `namespace`.
fn find<'a>(
    name: &ResourceName,
    namespace: &str,
    resources: &'a Resources,
) -> Result<&'a Placed, String> {
    let shown = format!("{} in namespace {}", name.name, name.namespace);
    let key = Key {
        kind: Kind::VirtualService,
        namespace: name.namespace.clone(),
        name: name.name.clone(),
    };
    let missing = || format!("there is no usable VirtualService {shown}");
    let placed = resources.get(&key).ok_or_else(missing)?;
    let service: &VirtualService = virtual_service(placed).ok_or_else(missing)?;
    if !service.hosts.is_empty() {
        return Err(format!("VirtualService {shown} is no delegate, because it has hosts"));
    }
    if !service.export.reaches(namespace, &key.namespace) {
        return Err(format!("VirtualService {shown} is not exported to namespace {namespace}"));
    }
    Ok(placed)
}

/// One rule of both, `None` if they contradict each other.
fn merge(root: &HttpRoute, leaf: &HttpRoute) -> Option<HttpRoute> {
    let treatment = merge_treatments(root.treatment(), leaf.treatment());
    let merged = HttpRoute {
        name: joined(&root.name, &leaf.name),
        matches: merge_matches(&root.matches, &leaf.matches)?.into(),
        ..leaf.clone()
    };
    Some(merged.with(treatment))
}

fn joined(root: &str, leaf: &str) -> String {
    if root.is_empty() || leaf.is_empty() {
        format!("{root}{leaf}")
    } else {
        format!("{root}-{leaf}")
    }
}

fn merge_treatments(root: &Treatment, leaf: &Treatment) -> Treatment {
    Treatment {
        headers: leaf.headers.as_ref().or(root.headers.as_ref()).cloned(),
        rewrite: leaf.rewrite.as_ref().or(root.rewrite.as_ref()).cloned(),
        timeout: leaf.timeout.or(root.timeout),
        retries: leaf.retries.as_ref().or(root.retries.as_ref()).cloned(),
        fault: leaf.fault.as_ref().or(root.fault.as_ref()).cloned(),
        cors: leaf.cors.as_ref().or(root.cors.as_ref()).cloned(),
        mirrors: leaf.mirrors.as_ref().or(root.mirrors.as_ref()).cloned(),
    }
}

/// Every block of the delegate joins all blocks of the root that it lies within; there has to be
/// one.
fn merge_matches(root: &[MatchBlock], leaf: &[MatchBlock]) -> Option<Vec<MatchBlock>> {
    if root.is_empty() {
        return Some(leaf.to_vec());
    }
    if leaf.is_empty() {
        return Some(root.to_vec());
    }
    let mut merged = Vec::new();
    for inner in leaf {
        let before = merged.len();
        let within = root.iter().filter(|outer| !conflicts(outer, inner));
        merged.extend(within.map(|outer| merge_blocks(outer, inner)));
        if merged.len() == before {
            return None;
        }
    }
    Some(merged)
}

fn merge_blocks(root: &MatchBlock, leaf: &MatchBlock) -> MatchBlock {
    let mut conditions = leaf.conditions.clone();
    let is_new = |condition: &&Condition| same_subject(&leaf.conditions, condition).is_none();
    conditions.extend(root.conditions.iter().filter(is_new).cloned());
    MatchBlock {
        name: joined(&root.name, &leaf.name),
        uri: leaf.uri.as_ref().or(root.uri.as_ref()).cloned(),
        ignores_case: leaf.ignores_case,
        conditions,
        place: merge_places(&root.place, &leaf.place),
    }
}

fn merge_places(root: &Place, leaf: &Place) -> Place {
    let mut source_labels = root.source_labels.clone();
    source_labels.extend(leaf.source_labels.clone());
    let source_namespace = leaf.source_namespace.as_ref().or(root.source_namespace.as_ref());
    Place {
        port: leaf.port.or(root.port),
        gateways: leaf.gateways.as_ref().or(root.gateways.as_ref()).cloned(),
        source_labels,
        source_namespace: source_namespace.cloned(),
    }
}

fn conflicts(root: &MatchBlock, leaf: &MatchBlock) -> bool {
    let uris = root.uri.as_ref().zip(leaf.uri.as_ref());
    let parts = leaf.conditions.iter().filter_map(|condition| {
        same_subject(&root.conditions, condition).map(|root| (&root.text, &condition.text))
    });
    uris.into_iter().chain(parts).any(|(root, leaf)| !is_within(root, leaf))
        || root.ignores_case != leaf.ignores_case
        || places_conflict(&root.place, &leaf.place)
}

fn places_conflict(root: &Place, leaf: &Place) -> bool {
    let differ = |root: Option<u16>, leaf: Option<u16>| root.zip(leaf).is_some_and(|(r, l)| r != l);
    differ(root.port, leaf.port)
        || root.source_namespace.is_some() && root.source_namespace != leaf.source_namespace
        || leaf
            .source_labels
            .iter()
            .any(|(name, value)| root.source_labels.get(name).is_some_and(|other| other != value))
        || root
            .gateways
            .as_ref()
            .zip(leaf.gateways.as_ref())
            .is_some_and(|(root, leaf)| leaf.iter().any(|gateway| !root.contains(gateway)))
}

/// The condition of `conditions` about the same part of a request.
fn same_subject<'a>(conditions: &'a [Condition], other: &Condition) -> Option<&'a Condition> {
    let mut conditions = conditions.iter();
    conditions.find(|own| own.part == other.part && own.inverted == other.inverted)
}

/// Whether what `leaf` matches is certainly matched by `root`.
fn is_within(root: &TextMatch, leaf: &TextMatch) -> bool {
    match (root, leaf) {
        (TextMatch::Exact(root), TextMatch::Exact(leaf)) => root == leaf,
        (TextMatch::Prefix(root), TextMatch::Prefix(leaf) | TextMatch::Exact(leaf)) => {
            leaf.starts_with(root.as_str())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> TextMatch {
        TextMatch::Prefix(text.to_owned())
    }

    fn exact(text: &str) -> TextMatch {
        TextMatch::Exact(text.to_owned())
    }

    fn block(uri: TextMatch) -> MatchBlock {
        MatchBlock { uri: Some(uri), ..MatchBlock::default() }
    }

    #[test]
    fn a_delegate_matches_within_its_root() {
        assert!(
            is_within(&prefix("/a"), &prefix("/a/b")) && is_within(&prefix("/a"), &exact("/a"))
        );
        assert!(is_within(&exact("/a"), &exact("/a")));
        assert!(!is_within(&prefix("/a/b"), &prefix("/a")));
        assert!(!is_within(&exact("/a"), &prefix("/a")) && !is_within(&exact("/a"), &exact("/b")));
        assert!(!is_within(&TextMatch::Present, &exact("/a")));
    }

    #[test]
    fn blocks_join_those_that_they_lie_within() {
        let root = [block(prefix("/a")), block(prefix("/b")), MatchBlock::default()];
        let leaf = [block(prefix("/a/x"))];
        let uris = |merged: Option<Vec<MatchBlock>>| merged.map(|blocks| blocks.len());
        assert_eq!(uris(merge_matches(&root, &leaf)), Some(2));
        assert_eq!(uris(merge_matches(&root[..2], &[block(prefix("/c"))])), None);
        assert_eq!(uris(merge_matches(&[], &leaf)), Some(1));
        assert_eq!(uris(merge_matches(&root, &[])), Some(3));
    }

    #[test]
    fn everything_else_of_a_block_must_agree_too() {
        let base = || block(prefix("/a"));
        let changes: [fn(&mut MatchBlock); 4] = [
            |block| block.ignores_case = true,
            |block| block.place.port = Some(81),
            |block| block.place.source_namespace = Some("x".to_owned()),
            |block| block.conditions = vec![],
        ];
        let mut root = base();
        root.place.port = Some(80);
        let conflict: Vec<_> = changes
            .iter()
            .map(|change| {
                let mut leaf = base();
                change(&mut leaf);
                conflicts(&root, &leaf)
            })
            .collect();
        assert_eq!(conflict, [true, true, false, false]);
        root.place.source_namespace = Some("y".to_owned());
        assert!(conflicts(&root, &base()));
        root = base();
        root.place.gateways = Some(vec![]);
        let gateway = ResourceName { namespace: "a".into(), name: "b".into() };
        let mut leaf = base();
        leaf.place.gateways = Some(vec![gateway]);
        assert!(conflicts(&root, &leaf));
    }
}
