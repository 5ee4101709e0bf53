//! One entry of `tls` or `tcp`: for which connections, and where they go.

use std::net::IpAddr;
use std::sync::Arc;

use super::super::fields::{Field, Fields, Problems};
use super::complete;
use super::condition::Place;
use super::rule::{self, WeightedDestination};
use crate::config::model::Located;
use crate::snapshot::{HostPattern, Network};

/// One rule.
#[derive(Debug, Clone)]
pub(crate) struct TcpRule {
    pub(crate) line: u64,
    /// Any of them; empty means every connection. At least one in `tls`.
    pub(crate) matches: Box<[TcpMatch]>,
    /// At least one.
    pub(crate) targets: Box<[WeightedDestination]>,
}

/// All of it has to hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct TcpMatch {
    /// What the client asks for: any of them. At least one in `tls`, none in `tcp`.
    pub(crate) names: Box<[HostPattern]>,
    /// Where the client is; empty for anywhere.
    pub(crate) sources: Box<[Network]>,
    /// What the client connected to; empty for anything.
    pub(crate) destinations: Box<[Network]>,
    pub(crate) place: Place,
}

impl TcpMatch {
    /// Whether it takes every connection for its names, or any at all.
    pub(crate) fn takes_all(&self) -> bool {
        self.sources.is_empty() && self.destinations.is_empty() && self.place.is_everywhere()
    }
}

/// The VirtualService that rules are of.
pub(super) struct Owner<'a> {
    pub(super) namespace: &'a str,
    pub(super) hosts: &'a [Located<HostPattern>],
}

/// Reads `tls`.
pub(super) fn read_tls(
    field: Option<Field<'_>>,
    owner: &Owner<'_>,
    problems: &mut Problems,
) -> Vec<TcpRule> {
    let read = |block: &Field<'_>, problems: &mut Problems| {
        let mut fields = block.fields(problems)?;
        let names = fields.require("sniHosts", problems);
        let names = names.map(|names| read_names(&names, owner, problems));
        let found = read_block(fields, owner, problems)?;
        Some(TcpMatch { names: names?, ..found })
    };
    read_all(field, owner, problems, |rule, problems| {
        let blocks = rule.require("match", problems)?;
        let items = blocks.items(problems);
        if items.is_empty() {
            problems.error(&blocks, "needs at least one block with `sniHosts`", "");
        }
        Some(items.iter().filter_map(|block| read(block, problems)).collect())
    })
}

/// Reads `tcp`.
pub(super) fn read_tcp(
    field: Option<Field<'_>>,
    owner: &Owner<'_>,
    problems: &mut Problems,
) -> Vec<TcpRule> {
    let read = |block: &Field<'_>, problems: &mut Problems| {
        let mut fields = block.fields(problems)?;
        let source = fields.take("sourceSubnet").map(|field| read_network(&field, problems));
        let found = read_block(fields, owner, problems)?;
        let sources = match source {
            Some(source) => [source?].into(),
            None => Box::default(),
        };
        Some(TcpMatch { sources, ..found })
    };
    read_all(field, owner, problems, |rule, problems| {
        let blocks = rule.take("match").map(|field| field.items(problems)).unwrap_or_default();
        Some(blocks.iter().filter_map(|block| read(block, problems)).collect())
    })
}

fn read_all(
    field: Option<Field<'_>>,
    owner: &Owner<'_>,
    problems: &mut Problems,
    read_matches: impl Fn(&mut Fields<'_>, &mut Problems) -> Option<Vec<TcpMatch>>,
) -> Vec<TcpRule> {
    let Some(list) = field else { return Vec::new() };
    if owner.hosts.is_empty() {
        let cause = "without `hosts` it is a delegate, and only `http` rules delegate";
        problems.error(&list, "has no meaning without `hosts`", cause);
    }
    let items = list.items(problems);
    if items.is_empty() {
        problems.error(&list, "needs at least one rule", "");
    }
    let read = |item: &Field<'_>| {
        let mut rule = item.fields(problems)?;
        let matches = read_matches(&mut rule, problems);
        let route = rule.require("route", problems);
        let targets = route.and_then(|route| rule::read_route(&route, false, problems));
        rule.finish(problems);
        Some(TcpRule { line: item.line, matches: matches?.into(), targets: targets? })
    };
    items.iter().filter_map(read).collect()
}

/// What both kinds of blocks have.
fn read_block(
    mut fields: Fields<'_>,
    owner: &Owner<'_>,
    problems: &mut Problems,
) -> Option<TcpMatch> {
    let place = Place::read(&mut fields, owner.namespace, problems);
    let items = fields.take("destinationSubnets").map(|field| field.items(problems));
    let items = items.unwrap_or_default();
    let destinations = items.iter().filter_map(|item| read_network(item, problems)).collect();
    fields.finish(problems);
    Some(TcpMatch { destinations, place: place?, ..TcpMatch::default() })
}

fn read_network(field: &Field<'_>, problems: &mut Problems) -> Option<Network> {
    let text = field.string(problems)?;
    match text.parse() {
        Ok(network) => Some(network),
        Err(error) => {
            problems.error(field, format!("`{text}`: {error}"), "");
            None
        }
    }
}

fn read_names(field: &Field<'_>, owner: &Owner<'_>, problems: &mut Problems) -> Box<[HostPattern]> {
    let items = field.items(problems);
    if items.is_empty() {
        problems.error(field, "needs at least one name", "");
    }
    items.iter().filter_map(|item| read_name(item, owner, problems)).collect()
}

fn read_name(item: &Field<'_>, owner: &Owner<'_>, problems: &mut Problems) -> Option<HostPattern> {
    let text = item.string(problems)?;
    let name: HostPattern = match text.parse() {
        Ok(name) => name,
        Err(error) => {
            problems.error(item, format!("`{text}`: {error}"), "no scheme, port or path");
            return None;
        }
    };
    if text.parse::<IpAddr>().is_ok() {
        let cause = "clients name hosts there, never addresses; the rule is for no connection";
        problems.warn(item, format!("`{text}` is an address"), cause);
        return Some(name);
    }
    // A short name is one of `hosts` if it is when it is completed like them.
    let full: Arc<str> = complete(&text.into(), owner.namespace);
    let is_covered = |host: &HostPattern| {
        host.covers(&name) || full.parse().is_ok_and(|full| host.covers(&full))
    };
    if owner.hosts.is_empty() || owner.hosts.iter().any(|host| is_covered(&host.value)) {
        return Some(name);
    }
    let cause = "add it to `spec.hosts`, or a wildcard that covers it";
    problems.error(item, format!("`{text}` is none of the VirtualService's hosts"), cause);
    None
}
