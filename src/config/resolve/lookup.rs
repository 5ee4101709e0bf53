//! One lookup: from a name to its addresses, and for how long they are good.
//!
//! - A name means here what it means to other programs of the host: `/etc/hosts` goes first, then
//!   the servers of `/etc/resolv.conf` are asked, with its search domains, `ndots`, `timeout` and
//!   `attempts`. Both files are read again when they change.
//! - Names below the cluster's domain are complete; the search domains are not tried for them.
//! - IPv4 and IPv6 addresses are asked for at once. Where a name has both, and the host has no way
//!   to those of one family, they are left out.
//! - That a name has no address is told apart from not knowing: a server that fails, or that does
//!   not answer, says nothing about the name.
//!
//! Deliberately not here: when names are looked up, and what becomes of the answers.

use std::fmt;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, Record, RecordType};
use hickory_resolver::{Hosts, TokioResolver, system_conf};

use crate::config::model::CLUSTER_DOMAIN;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";

/// Who is asked without a file that says so, as by the C library.
const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What one lookup found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Found(Found),
    /// The name does not exist, or has no address.
    Absent,
    /// Nobody knows; why.
    Failed(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// At least one.
    pub(super) addresses: Vec<IpAddr>,
    /// How long they are good.
    pub(super) ttl: Duration,
    /// The family about which nobody knows.
    pub(super) unknown: Option<Family>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn has(self, address: &IpAddr) -> bool {
        match self {
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }
}

/// What is known from the files of the host, as they are now.
pub(super) struct Host {
    /// Instead of those of the file, if there are any.
    servers: Vec<SocketAddr>,
    stamps: [Stamp; 2],
    directory: Option<Arc<Directory>>,
}

/// What tells that a file is another one than before.
type Stamp = Option<(SystemTime, u64)>;

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("servers", &self.servers).finish_non_exhaustive()
    }
}

impl Host {
    pub(super) fn new(servers: Vec<SocketAddr>) -> Self {
        Self { servers, stamps: stamps(), directory: None }
    }

    /// Whether a file is another one than when it was read; it is read again then.
    pub(super) fn read_again(&mut self) -> bool {
        let stamps = stamps();
        let differs = self.stamps != stamps;
        if differs {
            (self.stamps, self.directory) = (stamps, None);
        }
        differs
    }

    /// Where names are looked up. Must be called on a tokio runtime.
    pub(super) fn directory(&mut self) -> Arc<Directory> {
        let directory = self.directory.take().unwrap_or_else(|| {
            let read = |path| fs::read(path).unwrap_or_default();
            Arc::new(Directory::new(&read(RESOLV_CONF), hosts(), &self.servers))
        });
        Arc::clone(self.directory.insert(directory))
    }
}

fn stamps() -> [Stamp; 2] {
    [RESOLV_CONF, HOSTS].map(|path| {
        let found = fs::metadata(path).ok()?;
        Some((found.modified().ok()?, found.len()))
    })
}

fn hosts() -> Hosts {
    let mut hosts = Hosts::default();
    if let Ok(file) = File::open(Path::new(HOSTS))
        && let Err(error) = hosts.read_hosts_conf(file)
    {
        tracing::warn!("{HOSTS} cannot be read to its end: {error}");
    }
    hosts
}

/// Where names are looked up.
pub(super) struct Directory {
    hosts: Hosts,
    /// What is put behind names that may be incomplete, in this order.
    search: Vec<Name>,
    /// Names with fewer dots may be incomplete.
    dots_min: usize,
    servers: TokioResolver,
}

impl Directory {
    /// By the text of a `resolv.conf`; `servers` go before its own.
    pub(super) fn new(resolv_conf: &[u8], hosts: Hosts, servers: &[SocketAddr]) -> Self {
        let (config, mut options) = parse(resolv_conf, servers.is_empty());
        let (domain, search, written) = config.into_parts();
        let search = if search.is_empty() { domain.into_iter().collect() } else { search };
        let dots_min = options.ndots;
        // Answers are kept by whoever asks, and asked for again when they have ended.
        options.cache_size = 0;
        options.negative_max_ttl = Some(Duration::ZERO);
        // That of a canonical name counts as well.
        options.preserve_intermediates = true;
        options.use_hosts_file = ResolveHosts::Never;
        let servers =
            if servers.is_empty() { written } else { servers.iter().map(server).collect() };
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        let provider = TokioRuntimeProvider::default();
        let builder = TokioResolver::builder_with_config(config, provider).with_options(options);
        let servers = builder.build().expect("without TLS there is nothing that could fail");
        Self { hosts, search, dots_min, servers }
    }

    /// Looks `name` up.
    pub(super) async fn look_up(&self, name: &str) -> Answer {
        let Ok(written) = Name::from_str_relaxed(name) else {
            return Answer::Failed("it is no DNS name".to_owned());
        };
        if let Some(addresses) = self.in_hosts(&written) {
            return found(addresses, Duration::MAX, None);
        }
        let mut failure = None;
        for name in self.candidates(&written) {
            match self.ask(name).await {
                Asked::Found(answer) => return answer,
                Asked::Absent => {}
                Asked::Failed { why, is_said: true } => failure = failure.or(Some(why)),
                // Who does not answer this does not answer the next either.
                Asked::Failed { why, is_said: false } => return Answer::Failed(why),
            }
        }
        failure.map_or(Answer::Absent, Answer::Failed)
    }

    /// A name that has addresses of one family there has none of the other.
    fn in_hosts(&self, name: &Name) -> Option<Vec<IpAddr>> {
        let of = |kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let found = [RecordType::A, RecordType::AAAA].map(of);
        let records = found.iter().flatten().flat_map(|lookup| lookup.answers());
        let addresses: Vec<_> = records.filter_map(|record| record.data.ip_addr()).collect();
        (!addresses.is_empty()).then_some(addresses)
    }

    /// The complete names that `written` may stand for, in the order in which they are tried.
    fn candidates(&self, written: &Name) -> Vec<Name> {
        let mut complete = written.clone();
        complete.set_fqdn(true);
        if written.is_fqdn() || is_of_cluster(written) {
            return vec![complete];
        }
        let searched = self.search.iter().filter_map(|domain| {
            let mut name = written.clone().append_domain(domain).ok()?;
            name.set_fqdn(true);
            Some(name)
        });
        let mut candidates: Vec<_> = searched.collect();
        let dots = usize::from(written.num_labels()).saturating_sub(1);
        let place = if dots >= self.dots_min { 0 } else { candidates.len() };
        candidates.insert(place, complete);
        candidates
    }

    async fn ask(&self, name: Name) -> Asked {
        let (v4, v6) =
            tokio::join!(self.servers.ipv4_lookup(name.clone()), self.servers.ipv6_lookup(name));
        let part = |lookup: Result<hickory_resolver::lookup::Lookup, NetError>| {
            lookup.map_or_else(|error| Part::of_error(&error), |found| Part::of(found.answers()))
        };
        Asked::of(part(v4), part(v6))
    }
}

/// What the text of a `resolv.conf` says. Where there is no server in it the rest counts all the
/// same, and it is said who is asked if `counts`.
fn parse(resolv_conf: &[u8], counts: bool) -> (ResolverConfig, ResolverOpts) {
    let error = match system_conf::parse_resolv_conf(resolv_conf) {
        Ok(parsed) => return parsed,
        Err(error) => error,
    };
    if counts {
        tracing::warn!("{RESOLV_CONF}: {error}; names are asked of {SERVER}");
    }
    let line = format!("\nnameserver {SERVER}\n");
    let with_server = [resolv_conf, line.as_bytes()].concat();
    system_conf::parse_resolv_conf(with_server).unwrap_or_else(|_| {
        let server = NameServerConfig::udp_and_tcp(SERVER);
        (ResolverConfig::from_parts(None, Vec::new(), vec![server]), ResolverOpts::default())
    })
}

fn server(address: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

fn is_of_cluster(name: &Name) -> bool {
    Name::from_ascii(CLUSTER_DOMAIN).is_ok_and(|mut domain| {
        let mut name = name.clone();
        name.set_fqdn(true);
        domain.set_fqdn(true);
        domain.zone_of(&name)
    })
}

/// What was said about a complete name.
enum Asked {
    Found(Answer),
    Absent,
    /// Nobody knows; `is_said` if a server said so.
    Failed {
        why: String,
        is_said: bool,
    },
}

/// What was said about the addresses of one family.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Found(Vec<IpAddr>, Duration),
    Absent,
    Failed { why: String, is_said: bool },
}

impl Part {
    fn of(records: &[Record]) -> Self {
        let addresses = records.iter().filter_map(|record| record.data.ip_addr());
        // A connection to that would be one to this host; filters answer so.
        let addresses: Vec<_> = addresses.filter(|address| !address.is_unspecified()).collect();
        let ttl = records.iter().map(|record| record.ttl).min().unwrap_or_default();
        match addresses.is_empty() {
            false => Self::Found(addresses, Duration::from_secs(ttl.into())),
            true => Self::Absent,
        }
    }

    fn of_error(error: &NetError) -> Self {
        if error.is_no_records_found() {
            return Self::Absent;
        }
        Self::Failed { why: error.to_string(), is_said: matches!(error, NetError::Dns(_)) }
    }
}

impl Asked {
    fn of(v4: Part, v6: Part) -> Self {
        match (v4, v6) {
            (Part::Found(mut v4, ttl4), Part::Found(v6, ttl6)) => {
                v4.extend(v6);
                Self::Found(found(v4, ttl4.min(ttl6), None))
            }
            (Part::Found(v4, ttl), Part::Absent) => Self::Found(found(v4, ttl, None)),
            (Part::Absent, Part::Found(v6, ttl)) => Self::Found(found(v6, ttl, None)),
            (Part::Found(v4, ttl), Part::Failed { .. }) => {
                Self::Found(found(v4, ttl, Some(Family::V6)))
            }
            (Part::Failed { .. }, Part::Found(v6, ttl)) => {
                Self::Found(found(v6, ttl, Some(Family::V4)))
            }
            (Part::Absent, Part::Absent) => Self::Absent,
            (Part::Failed { why, is_said }, _) | (_, Part::Failed { why, is_said }) => {
                Self::Failed { why, is_said }
            }
        }
    }
}

fn found(addresses: Vec<IpAddr>, ttl: Duration, unknown: Option<Family>) -> Answer {
    Answer::Found(Found { addresses: reachable(addresses), ttl, unknown })
}

/// Without those of a family that this host has no way to, if that leaves any.
fn reachable(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    for family in [Family::V4, Family::V6] {
        let has_both = addresses.iter().any(|a| family.has(a))
            && !addresses.iter().all(|address| family.has(address));
        if has_both && !addresses.iter().filter(|a| family.has(a)).any(has_way_to) {
            addresses.retain(|address| !family.has(address));
        }
    }
    addresses
}

/// Whether the host has a route there. Nothing is sent.
fn has_way_to(address: &IpAddr) -> bool {
    let own = match address {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    // Any port does.
    UdpSocket::bind((own, 0)).and_then(|socket| socket.connect((*address, 9))).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a Pod in a cluster.
    const POD: &str = "search edge.svc.cluster.local svc.cluster.local cluster.local\n\
                       nameserver 10.96.0.10\noptions ndots:5 timeout:3 attempts:1 unknown\n";

    fn directory(resolv_conf: &str, hosts: &str) -> Directory {
        let mut known = Hosts::default();
        known.read_hosts_conf(hosts.as_bytes()).unwrap();
        Directory::new(resolv_conf.as_bytes(), known, &[])
    }

    fn candidates(resolv_conf: &str, name: &str) -> Vec<String> {
        let name = Name::from_str_relaxed(name).unwrap();
        let candidates = directory(resolv_conf, "").candidates(&name);
        candidates.iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn search_domains_are_tried_as_the_file_says() {
        assert_eq!(
            candidates(POD, "api.example.com"),
            [
                "api.example.com.edge.svc.cluster.local.",
                "api.example.com.svc.cluster.local.",
                "api.example.com.cluster.local.",
                "api.example.com.",
            ]
        );
        assert_eq!(candidates(POD, "api.example.com."), ["api.example.com."]);
        let complete = "web.default.svc.cluster.local";
        assert_eq!(candidates(POD, complete), [format!("{complete}.")]);
        let plain = "nameserver 10.0.0.1\nsearch corp.test\n";
        assert_eq!(candidates(plain, "a.b"), ["a.b.", "a.b.corp.test."]);
        assert_eq!(candidates(plain, "a"), ["a.corp.test.", "a."]);
        assert_eq!(candidates("domain corp.test\nnameserver 10.0.0.1\n", "a").len(), 2);
        assert_eq!(candidates("search corp.test\n", "a"), ["a.corp.test.", "a."], "no server");
    }

    #[tokio::test]
    async fn the_options_of_the_file_hold() {
        let directory = directory(POD, "");
        let options = directory.servers.options();
        assert_eq!((options.timeout, options.attempts), (Duration::from_secs(3), 1));
    }

    #[tokio::test]
    async fn the_hosts_file_goes_first() {
        // Nobody is asked: what it says of one family is all that there is.
        let hosts = "10.0.0.1 Web.test web # a comment\n10.0.0.2 web.test\n::1 six.test\n";
        let directory = directory("nameserver 192.0.2.1\n", hosts);
        let expect = |addresses: &[&str]| {
            let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
            Answer::Found(Found { addresses, ttl: Duration::MAX, unknown: None })
        };
        assert_eq!(directory.look_up("web.test").await, expect(&["10.0.0.1", "10.0.0.2"]));
        assert_eq!(directory.look_up("WEB").await, expect(&["10.0.0.1"]));
        assert_eq!(directory.look_up("six.test").await, expect(&["::1"]));
    }

    #[test]
    fn what_nobody_knows_is_not_what_does_not_exist() {
        let address: IpAddr = "127.0.0.1".parse().unwrap();
        let found = || Part::Found(vec![address], Duration::from_secs(9));
        let failed = || Part::Failed { why: "refused".to_owned(), is_said: true };
        assert!(matches!(Asked::of(Part::Absent, Part::Absent), Asked::Absent));
        for (v4, v6) in [(failed(), Part::Absent), (Part::Absent, failed()), (failed(), failed())] {
            assert!(matches!(Asked::of(v4, v6), Asked::Failed { is_said: true, .. }));
        }
        let Asked::Found(Answer::Found(half)) = Asked::of(found(), failed()) else { panic!() };
        assert_eq!(half.unknown, Some(Family::V6));
        let Asked::Found(Answer::Found(all)) = Asked::of(found(), Part::Absent) else { panic!() };
        assert_eq!(all.unknown, None);
    }

    #[test]
    fn a_family_without_a_route_is_left_out() {
        let both: Vec<IpAddr> = vec!["127.0.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let has_route = has_way_to(&both[1]);
        assert_eq!(reachable(both.clone()), both[..if has_route { 2 } else { 1 }]);
        // If it is all that there is, it stays.
        assert_eq!(reachable(both[1..].to_vec()), both[1..]);
    }
}
