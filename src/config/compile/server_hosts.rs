//! Which servers of a Gateway have hosts in common with a VirtualService.
//!
//! - A host is met with those that cover it and those that it covers, not with all: a Gateway may
//!   have thousands of servers, and thousands of VirtualServices.
//! - Sorted by their labels from the right, what lies below a name stands together.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::config::model::{Server, ServerHost};
use crate::snapshot::HostPattern;

/// The hosts of some servers. Built once, then only read.
pub(super) struct ServerHosts<'a> {
    /// Sorted by the namespace before the host, then by labels from the right.
    entries: Vec<Entry<'a>>,
}

/// A host of a server.
#[derive(Debug, Clone, Copy)]
struct Entry<'a> {
    host: &'a ServerHost,
    /// The server's place among all.
    server: usize,
}

impl<'a> ServerHosts<'a> {
    pub(super) fn of(servers: &'a [Server]) -> Self {
        let hosts = servers.iter().enumerate().flat_map(|(place, server)| {
            server.hosts.iter().map(move |host| Entry { host: &host.value, server: place })
        });
        let mut entries: Vec<_> = hosts.collect();
        entries.sort_unstable_by(Entry::order);
        Self { entries }
    }

    /// The places of the servers that share `host` with a VirtualService in `namespace`, each with
    /// the narrower of both hosts.
    pub(super) fn shared(
        &self,
        namespace: &Arc<str>,
        host: &HostPattern,
    ) -> impl Iterator<Item = (usize, HostPattern)> {
        let sections = [self.section(None), self.section(Some(namespace))].into_iter();
        let near = sections.flat_map(|section| near(section, host));
        near.filter_map(|entry| Some((entry.server, entry.host.pattern.intersect(host)?)))
    }

    /// The hosts with this namespace before them.
    fn section(&self, namespace: Option<&Arc<str>>) -> &[Entry<'a>] {
        let start = self.entries.partition_point(|entry| entry.namespace() < namespace);
        let end = self.entries.partition_point(|entry| entry.namespace() <= namespace);
        &self.entries[start..end]
    }
}

impl<'a> Entry<'a> {
    fn namespace(&self) -> Option<&'a Arc<str>> {
        self.host.namespace.as_ref()
    }

    fn name(&self) -> &'a str {
        name(&self.host.pattern)
    }

    fn order(&self, other: &Self) -> Ordering {
        let by_namespace = self.namespace().cmp(&other.namespace());
        by_namespace.then_with(|| by_labels(self.name(), other.name()))
    }
}

/// Of a section, all that may have names in common with `host`.
fn near<'s, 'a>(
    section: &'s [Entry<'a>],
    host: &HostPattern,
) -> impl Iterator<Item = &'s Entry<'a>> {
    let name = name(host);
    let above = parents(name).flat_map(|parent| at(section, parent));
    let rest = match host {
        HostPattern::Exact(_) => at(section, name),
        HostPattern::Wildcard(_) | HostPattern::Any => at_and_below(section, name),
    };
    above.chain(rest)
}

fn at<'s, 'a>(section: &'s [Entry<'a>], name: &str) -> &'s [Entry<'a>] {
    let found = at_and_below(section, name);
    &found[..found.partition_point(|entry| entry.name() == name)]
}

fn at_and_below<'s, 'a>(section: &'s [Entry<'a>], name: &str) -> &'s [Entry<'a>] {
    let start = section.partition_point(|entry| by_labels(entry.name(), name).is_lt());
    let found = &section[start..];
    &found[..found.partition_point(|entry| ends_with_labels(entry.name(), name))]
}

/// Without the `*.`, if there is one; empty for `*`.
fn name(host: &HostPattern) -> &str {
    match host {
        HostPattern::Exact(name) | HostPattern::Wildcard(name) => name,
        HostPattern::Any => "",
    }
}

/// `name` without its first label, and so on. The last is empty, and has none.
fn parents(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(parent(name), |name| parent(name))
}

fn parent(name: &str) -> Option<&str> {
    (!name.is_empty()).then(|| name.split_once('.').map_or("", |(_, parent)| parent))
}

/// From the right; none of an empty name.
fn labels(name: &str) -> impl Iterator<Item = &str> {
    name.rsplit('.').filter(|label| !label.is_empty())
}

fn by_labels(a: &str, b: &str) -> Ordering {
    labels(a).cmp(labels(b))
}

fn ends_with_labels(name: &str, end: &str) -> bool {
    let mut own = labels(name);
    labels(end).all(|label| own.next() == Some(label))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::{Located, ServerProtocol};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn server(hosts: &[String]) -> Server {
        let host = |text: &String| {
            let (namespace, host) = match text.split_once('/') {
                Some((namespace, host)) => (Some(namespace.into()), host),
                None => (None, text.as_str()),
            };
            let value = ServerHost { namespace, pattern: host.parse().unwrap() };
            Located { line: 1, value }
        };
        Server {
            index: 0,
            line: 1,
            port: 80,
            port_name: "http".into(),
            bind: None,
            hosts: hosts.iter().map(host).collect(),
            protocol: ServerProtocol::Tcp,
        }
    }

    #[test]
    fn a_host_meets_no_more_servers_where_there_are_more() {
        for servers in [10, 1000] {
            let hosts = |place| [format!("h{place}.example.com"), format!("n{place}/*.b.test")];
            let mut servers: Vec<_> = (0..servers).map(|place| server(&hosts(place))).collect();
            servers.push(server(&["*.example.com".to_owned(), "n1/*".to_owned()]));
            let known = ServerHosts::of(&servers);
            let met = |namespace: &str, host: &str| {
                let section =
                    |namespace| near(known.section(namespace), &host.parse().unwrap()).count();
                section(None) + section(Some(&namespace.into()))
            };
            assert_eq!(met("n1", "h1.example.com"), 3, "its own and the wildcards");
            assert_eq!(met("n2", "*.a.b.test"), 1, "that of its namespace");
            assert_eq!(met("n2", "example.com"), 1, "the wildcard beside it");
        }
    }

    proptest! {
        #[test]
        fn what_is_shared_agrees_with_trying_every_host(
            servers in prop::collection::vec(
                prop::collection::vec("(n/|m/)?(\\*|(\\*\\.)?([ab]\\.){0,3}[ab]{1,2})", 1..4),
                0..6,
            ),
            host in "\\*|(\\*\\.)?([ab]\\.){0,3}[ab]{1,2}",
        ) {
            let servers: Vec<_> = servers.iter().map(|hosts| server(hosts)).collect();
            let (namespace, host) = ("n".into(), host.parse().unwrap());
            let found: BTreeSet<_> = ServerHosts::of(&servers).shared(&namespace, &host).collect();
            prop_assert_eq!(found, naive(&servers, &namespace, &host));
        }
    }

    fn naive(
        servers: &[Server],
        namespace: &Arc<str>,
        host: &HostPattern,
    ) -> BTreeSet<(usize, HostPattern)> {
        let all = servers
            .iter()
            .enumerate()
            .flat_map(|(place, server)| server.hosts.iter().map(move |own| (place, &own.value)));
        let own = all.filter(|(_, own)| own.namespace.as_ref().is_none_or(|own| own == namespace));
        own.filter_map(|(place, own)| Some((place, own.pattern.intersect(host)?))).collect()
    }
}
