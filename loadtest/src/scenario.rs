//! The scenarios: what is sent, by which generator, what one operation is, who is measured.

use std::iter;
use std::net::SocketAddr;

use clap::builder::PossibleValue;

use crate::backend::Addresses;
use crate::certificate::Key;
use crate::generate::Group;
use crate::peer::Kind;

/// How the load is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Generator {
    /// `wrk`, HTTP/1.1.
    Wrk { connections: usize },
    /// `h2load`, HTTP/2.
    H2load { clients: usize, streams: usize },
    /// Our own, HTTP/1.1, as many requests as can be.
    Own { connections: usize },
    /// Our own, HTTP/1.1, each request with a body.
    Upload { connections: usize, bytes: usize },
    /// Our own, one request for each connection.
    Handshake { connections: usize, resume: bool },
    /// Our own, requests at a fixed rate.
    Rate { connections: usize, rate: Rate },
    /// Our own: connections that do nothing after one request.
    Idle { connections: usize, http2: bool },
}

impl Generator {
    /// Whether it is `loadtest generate`, which says when the warm-up begins.
    pub(crate) fn is_own(self) -> bool {
        !matches!(self, Self::Wrk { .. } | Self::H2load { .. })
    }

    /// At a time.
    pub(crate) fn connections(self) -> usize {
        match self {
            Self::Wrk { connections }
            | Self::H2load { clients: connections, .. }
            | Self::Own { connections }
            | Self::Upload { connections, .. }
            | Self::Handshake { connections, .. }
            | Self::Rate { connections, .. }
            | Self::Idle { connections, .. } => connections,
        }
    }
}

/// Requests a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Rate {
    /// So many.
    Fixed(f64),
    /// This share of what the slowest gateway can do, found out before the rounds.
    OfSlowest(f64),
}

/// The figure that a scenario is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Figure {
    /// CPU-microseconds of the gateway's processes for each operation.
    Cpu,
    /// Memory of the gateway's processes for each connection, in KiB.
    Memory,
    /// 99th percentile of latency, in microseconds.
    Tail,
    /// The busiest worker's part of the CPU time of all workers, in percent.
    Busiest,
}

impl Figure {
    /// For a picture.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Memory => "memory",
            Self::Tail => "p99 latency",
            Self::Busiest => "balance",
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Cpu => "CPU us/operation",
            Self::Memory => "KiB/connection",
            Self::Tail => "p99 in us",
            Self::Busiest => "% of the work on the busiest worker",
        }
    }
}

/// What drives ringgate's sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    /// Its choice.
    Auto,
    /// io_uring.
    Uring,
    /// epoll.
    Epoll,
}

/// ringgate's worker threads; the other gateways have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Workers {
    pub count: usize,
    pub driver: Driver,
    /// Whether one with more to do hands over fresh connections.
    pub balance: bool,
}

/// What the gateway is set up to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setup {
    /// Requests go to one endpoint.
    Plain,
    /// The same inside TLS; the endpoint's certificate is checked.
    BackendTls,
    /// The same over HTTP/2 without TLS.
    BackendH2,
    /// Requests go to the less busy of two random ones of sixteen endpoints.
    Balanced,
    /// Requests go to one of sixteen endpoints by a consistent hash of `x-user`.
    Hashed,
    /// A thousand routes of one host; the last one leads to an endpoint of its own.
    Routes,
    /// TLS ends in the gateway, which passes on what is inside.
    Tcp,
    /// TLS is passed on as it is, to where the name in it says.
    Passthrough,
}

impl Setup {
    /// What holds in templates.
    pub(crate) fn words(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &["http", "plain"],
            Self::BackendTls => &["http", "backend-tls"],
            Self::BackendH2 => &["http", "backend-h2"],
            Self::Balanced => &["http", "balanced"],
            Self::Hashed => &["http", "hashed"],
            Self::Routes => &["http", "routes"],
            Self::Tcp => &["tcp"],
            Self::Passthrough => &["passthrough"],
        }
    }

    /// Where the gateway forwards to, but for the last one of many routes.
    pub(crate) fn endpoints(self, backend: &Addresses) -> &[SocketAddr] {
        match self {
            Self::Plain | Self::Routes | Self::Tcp => &backend.http[..1],
            Self::BackendTls | Self::Passthrough => &backend.https,
            Self::BackendH2 => &backend.http2,
            Self::Balanced | Self::Hashed => &backend.http,
        }
    }

    /// Prefixes of paths, but for the last one: that is [`LAST_ROUTE`].
    pub(crate) fn routes(self) -> Vec<String> {
        let count = if self == Self::Routes { ROUTES - 1 } else { 0 };
        // None is the beginning of another one.
        (0..count).map(|number| format!("/route-{number:04}")).collect()
    }

    /// Whether the gateway sees no requests, only bytes.
    pub(crate) fn is_relay(self) -> bool {
        matches!(self, Self::Tcp | Self::Passthrough)
    }
}

const ROUTES: usize = 1_000;
/// The prefix of the last route.
pub(crate) const LAST_ROUTE: &str = "/route-0999";

/// One thing to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario {
    /// On the command line and in files.
    pub name: &'static str,
    /// In tables.
    pub what: &'static str,
    pub generator: Generator,
    pub figure: Figure,
    pub path: &'static str,
    pub setup: Setup,
    pub key: Key,
    pub group: Group,
    /// Hosts beside `localhost`, each with a certificate and ten routes. One of them is asked for.
    pub hosts: usize,
    pub workers: Workers,
    /// Who is measured beside ringgate.
    pub peers: &'static [Kind],
}

impl Scenario {
    /// Programs that are needed beside this one and the gateways, with their packages.
    pub(crate) fn tools(&self) -> Vec<(&'static str, &'static str)> {
        let mut tools = match self.generator {
            Generator::Wrk { .. } => vec![("wrk", "wrk")],
            Generator::H2load { .. } => vec![("h2load", "nghttp2-client")],
            Generator::Own { .. }
            | Generator::Upload { .. }
            | Generator::Handshake { .. }
            | Generator::Rate { .. }
            | Generator::Idle { .. } => vec![],
        };
        if self.key == Key::Rsa {
            tools.push(("openssl", "openssl"));
        }
        tools
    }

    /// Whether its rate is to be found out.
    pub(crate) fn needs_rate(&self) -> bool {
        matches!(self.generator, Generator::Rate { rate: Rate::OfSlowest(_), .. })
    }

    /// Bytes of an operation's body, where it is so large that a measurement begins and ends in the
    /// middle of some: operations are then counted in bytes.
    pub(crate) fn large_body(&self) -> Option<u64> {
        let bytes = if let Generator::Upload { bytes, .. } = self.generator {
            bytes as u64
        } else {
            self.path.trim_start_matches('/').parse().unwrap_or(0)
        };
        (bytes >= LARGE_BODY).then_some(bytes)
    }
}

const LARGE_BODY: u64 = 1 << 20;

const GATEWAYS: &[Kind] = &[Kind::Haproxy, Kind::Nginx, Kind::Envoy];
const RELAYS: &[Kind] = &[Kind::Haproxy, Kind::Nginx, Kind::Envoy, Kind::Relay];
const ALL_HTTP1: &[Kind] = &[
    Kind::Haproxy,
    Kind::Nginx,
    Kind::Envoy,
    Kind::Floor,
    Kind::HyperTokio,
    Kind::HyperTokioUring,
];
const ALL_HTTP2: &[Kind] =
    &[Kind::Haproxy, Kind::Nginx, Kind::Envoy, Kind::HyperTokio, Kind::HyperTokioUring];
const EVERYONE: &[Kind] = &[
    Kind::Haproxy,
    Kind::Nginx,
    Kind::Envoy,
    Kind::Floor,
    Kind::Relay,
    Kind::HyperTokio,
    Kind::HyperTokioUring,
];

const BASE: Scenario = Scenario {
    name: "",
    what: "",
    generator: Generator::Own { connections: 64 },
    figure: Figure::Cpu,
    path: "/62",
    setup: Setup::Plain,
    key: Key::Ecdsa,
    group: Group::X25519,
    hosts: 0,
    workers: Workers { count: 1, driver: Driver::Auto, balance: true },
    peers: GATEWAYS,
};
const RATE: Scenario = Scenario { figure: Figure::Tail, ..BASE };
const SMALL: Scenario = Scenario { generator: Generator::Wrk { connections: 64 }, ..BASE };
const LARGE: Scenario =
    Scenario { generator: Generator::Own { connections: 8 }, path: "/1048576", ..BASE };
/// A host in the middle of the others.
const HOSTS: Scenario = Scenario { path: "/route-7/62", ..BASE };
const WORKERS: Scenario = Scenario {
    generator: Generator::H2load { clients: 8, streams: 64 },
    figure: Figure::Busiest,
    peers: &[],
    ..BASE
};

/// All of them, the most telling first.
pub(crate) const ALL: &[Scenario] = &[
    Scenario {
        name: "small-h1",
        what: "HTTP/1.1, 64 connections, 62-byte bodies",
        generator: Generator::Wrk { connections: 64 },
        peers: EVERYONE,
        ..BASE
    },
    Scenario {
        name: "small-h2",
        what: "HTTP/2, 16 connections of 32 streams, 62-byte bodies",
        generator: Generator::H2load { clients: 16, streams: 32 },
        peers: ALL_HTTP2,
        ..BASE
    },
    Scenario {
        name: "full-ecdsa",
        what: "full handshake and one request, ECDSA P-256, X25519",
        generator: Generator::Handshake { connections: 32, resume: false },
        peers: ALL_HTTP1,
        ..BASE
    },
    Scenario {
        name: "resumed",
        what: "handshake resumed by a ticket and one request, X25519",
        generator: Generator::Handshake { connections: 32, resume: true },
        peers: ALL_HTTP1,
        ..BASE
    },
    Scenario {
        name: "bulk-16k",
        what: "HTTP/1.1, 32 connections, 16 KB down",
        generator: Generator::Own { connections: 32 },
        path: "/16384",
        peers: ALL_HTTP1,
        ..BASE
    },
    Scenario {
        name: "bulk-1m",
        what: "HTTP/1.1, 8 connections, 1 MB down",
        generator: Generator::Own { connections: 8 },
        path: "/1048576",
        peers: ALL_HTTP1,
        ..BASE
    },
    Scenario {
        name: "idle-h1",
        what: "4,000 idle HTTP/1.1 connections",
        generator: Generator::Idle { connections: 4_000, http2: false },
        figure: Figure::Memory,
        peers: ALL_HTTP1,
        ..BASE
    },
    Scenario {
        name: "latency",
        what: "HTTP/1.1, 64 connections, open loop at 60 % of what the slowest gateway can do",
        generator: Generator::Rate { connections: 64, rate: Rate::OfSlowest(0.6) },
        ..RATE
    },
    Scenario { name: "hosts-0", what: "no host but `localhost`", path: "/62", ..HOSTS },
    Scenario {
        name: "hosts-10",
        what: "10 hosts with a certificate and ten routes each; small HTTP/1.1 requests to one",
        hosts: 10,
        ..HOSTS
    },
    Scenario { name: "hosts-1000", what: "the same with 1,000 hosts", hosts: 1_000, ..HOSTS },
    Scenario { name: "hosts-10000", what: "the same with 10,000 hosts", hosts: 10_000, ..HOSTS },
    Scenario {
        name: "small-h1-1k",
        what: "HTTP/1.1, 64 connections, 1 KB bodies",
        generator: Generator::Wrk { connections: 64 },
        path: "/1024",
        ..BASE
    },
    Scenario {
        name: "small-h2-1x100",
        what: "HTTP/2, one connection of 100 streams, 62-byte bodies",
        generator: Generator::H2load { clients: 1, streams: 100 },
        ..BASE
    },
    Scenario {
        name: "bulk-64k",
        what: "HTTP/1.1, 16 connections, 64 KB down",
        generator: Generator::Own { connections: 16 },
        path: "/65536",
        ..BASE
    },
    Scenario {
        name: "bulk-100m",
        what: "HTTP/1.1, 2 connections, 100 MB down",
        generator: Generator::Own { connections: 2 },
        path: "/104857600",
        ..BASE
    },
    Scenario {
        name: "upload-1m",
        what: "HTTP/1.1, 8 connections, 1 MB up",
        generator: Generator::Upload { connections: 8, bytes: 1 << 20 },
        ..BASE
    },
    Scenario {
        name: "upload-100m",
        what: "HTTP/1.1, 2 connections, 100 MB up",
        generator: Generator::Upload { connections: 2, bytes: 100 << 20 },
        ..BASE
    },
    Scenario {
        name: "full-rsa",
        what: "full handshake and one request, RSA-2048, X25519",
        generator: Generator::Handshake { connections: 32, resume: false },
        key: Key::Rsa,
        ..BASE
    },
    Scenario {
        name: "full-ecdsa-pq",
        what: "full handshake and one request, ECDSA P-256, X25519MLKEM768",
        generator: Generator::Handshake { connections: 32, resume: false },
        group: Group::X25519MlKem768,
        ..BASE
    },
    Scenario {
        name: "idle-h2",
        what: "4,000 idle HTTP/2 connections",
        generator: Generator::Idle { connections: 4_000, http2: true },
        figure: Figure::Memory,
        peers: ALL_HTTP2,
        ..BASE
    },
    Scenario {
        name: "backend-tls",
        what: "as `small-h1`, with TLS to the backend, whose certificate is checked",
        setup: Setup::BackendTls,
        ..SMALL
    },
    Scenario {
        name: "backend-tls-1m",
        what: "as `bulk-1m`, with TLS to the backend, whose certificate is checked",
        setup: Setup::BackendTls,
        ..LARGE
    },
    Scenario {
        name: "backend-h2",
        what: "as `small-h1`, with HTTP/2 without TLS to the backend",
        setup: Setup::BackendH2,
        // nginx speaks HTTP/2 to gRPC services only.
        peers: &[Kind::Haproxy, Kind::Envoy],
        ..SMALL
    },
    Scenario {
        name: "balanced",
        what: "as `small-h1`, to the less busy of two random ones of 16 endpoints",
        setup: Setup::Balanced,
        ..SMALL
    },
    Scenario {
        name: "hashed",
        what: "as `small-h1`, to one of 16 endpoints by a consistent hash of a header",
        setup: Setup::Hashed,
        ..SMALL
    },
    Scenario {
        name: "routes",
        what: "as `small-h1`, by the last of 1,000 prefixes of one host",
        path: "/route-0999/62",
        setup: Setup::Routes,
        ..SMALL
    },
    Scenario {
        name: "tcp",
        what: "TLS ended and bytes passed on: what `small-h1` sends",
        setup: Setup::Tcp,
        ..SMALL
    },
    Scenario {
        name: "tcp-1m",
        what: "TLS ended and bytes passed on: what `bulk-1m` sends",
        setup: Setup::Tcp,
        ..LARGE
    },
    Scenario {
        name: "passthrough",
        what: "TLS passed on by its SNI: what `small-h1` sends",
        setup: Setup::Passthrough,
        peers: RELAYS,
        ..SMALL
    },
    Scenario {
        name: "passthrough-1m",
        what: "TLS passed on by its SNI: what `bulk-1m` sends",
        setup: Setup::Passthrough,
        peers: RELAYS,
        ..LARGE
    },
    Scenario {
        name: "passthrough-fresh",
        what: "TLS passed on by its SNI: a connection for each request",
        generator: Generator::Handshake { connections: 32, resume: false },
        setup: Setup::Passthrough,
        peers: RELAYS,
        ..BASE
    },
    Scenario {
        name: "connections-1",
        what: "HTTP/1.1, one connection, 4,000 requests a second, open loop",
        generator: Generator::Rate { connections: 1, rate: Rate::Fixed(4_000.0) },
        ..RATE
    },
    Scenario {
        name: "connections-16",
        what: "the same over 16 connections",
        generator: Generator::Rate { connections: 16, rate: Rate::Fixed(4_000.0) },
        ..RATE
    },
    Scenario {
        name: "connections-256",
        what: "the same over 256 connections",
        generator: Generator::Rate { connections: 256, rate: Rate::Fixed(4_000.0) },
        ..RATE
    },
    Scenario {
        name: "connections-1024",
        what: "the same over 1,024 connections",
        generator: Generator::Rate { connections: 1_024, rate: Rate::Fixed(4_000.0) },
        ..RATE
    },
    Scenario {
        name: "connections-4000",
        what: "the same over 4,000 connections",
        generator: Generator::Rate { connections: 4_000, rate: Rate::Fixed(4_000.0) },
        ..RATE
    },
    Scenario {
        name: "workers-uring",
        what: "ringgate with two workers on io_uring: HTTP/2, 8 connections of 64 streams",
        workers: Workers { count: 2, driver: Driver::Uring, balance: true },
        ..WORKERS
    },
    Scenario {
        name: "workers-uring-kept",
        what: "the same, without handing fresh connections over",
        workers: Workers { count: 2, driver: Driver::Uring, balance: false },
        ..WORKERS
    },
    Scenario {
        name: "workers-epoll",
        what: "ringgate with two workers on epoll",
        workers: Workers { count: 2, driver: Driver::Epoll, balance: true },
        ..WORKERS
    },
    Scenario {
        name: "workers-epoll-kept",
        what: "the same, without handing fresh connections over",
        workers: Workers { count: 2, driver: Driver::Epoll, balance: false },
        ..WORKERS
    },
];

/// The name for those of [`TARGETS`].
const GROUP: &str = "targets";
/// What `targets` stands for: all that a target is about, and whom it is held against.
const TARGETS: &[(&str, &[Kind])] = &[
    ("small-h1", &[Kind::Haproxy, Kind::Nginx, Kind::Envoy, Kind::Floor]),
    ("small-h2", GATEWAYS),
    ("full-ecdsa", GATEWAYS),
    ("resumed", GATEWAYS),
    ("bulk-16k", GATEWAYS),
    ("bulk-1m", GATEWAYS),
    ("idle-h1", GATEWAYS),
    ("latency", GATEWAYS),
    ("hosts-0", &[]),
    ("hosts-10", &[]),
    ("hosts-10000", &[]),
];

/// The scenarios that `names`, each one of [`names()`], stand for; all if there are none.
pub(crate) fn named(names: &[String]) -> Vec<Scenario> {
    if names.is_empty() {
        return ALL.to_vec();
    }
    let mut found: Vec<Scenario> = Vec::new();
    for name in names {
        let wanted =
            if name == GROUP { targets() } else { by_name(name).into_iter().copied().collect() };
        for scenario in wanted {
            if found.iter().all(|other| other.name != scenario.name) {
                found.push(scenario);
            }
        }
    }
    found
}

/// What is needed to judge the targets, and no more.
fn targets() -> Vec<Scenario> {
    let wanted = |scenario: &Scenario| {
        let (_, peers) = TARGETS.iter().find(|(name, _)| *name == scenario.name)?;
        Some(Scenario { peers, ..*scenario })
    };
    ALL.iter().filter_map(wanted).collect()
}

/// `None` if there is no such scenario.
pub(crate) fn by_name(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}

/// What can be asked for on the command line.
pub(crate) fn names() -> impl Iterator<Item = PossibleValue> {
    let group = PossibleValue::new(GROUP).help("all that decide a target, and no one else");
    let each = |scenario: &Scenario| PossibleValue::new(scenario.name).help(scenario.what);
    iter::once(group).chain(ALL.iter().map(each))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for (index, scenario) in ALL.iter().enumerate() {
            assert!(ALL[index + 1..].iter().all(|other| other.name != scenario.name));
        }
        let names = ["small-h2".to_owned(), "small-h1".to_owned()];
        let found = named(&[&names[..], &names[..]].concat());
        assert_eq!(found.iter().map(|s| s.name).collect::<Vec<_>>(), names);
        assert_eq!(named(&["targets".to_owned()]).len(), TARGETS.len());
        assert_eq!(super::names().count(), 1 + ALL.len());
    }

    #[test]
    fn large_bodies_are_counted_in_bytes() {
        let large = |name| by_name(name).unwrap().large_body();
        assert_eq!(large("bulk-100m"), Some(100 << 20));
        assert_eq!(large("upload-1m"), Some(1 << 20));
        assert_eq!(large("bulk-16k"), None);
        assert_eq!(large("hosts-10"), None);
    }
}
