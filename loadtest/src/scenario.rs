//! The scenarios: what is sent, by which generator, what one operation is, which ratio is wanted.

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
    /// Our own: connections that do nothing.
    Idle { connections: usize },
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
}

impl Figure {
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Cpu => "CPU us/operation",
            Self::Memory => "KiB/connection",
            Self::Tail => "p99 in us",
        }
    }
}

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
    pub key: Key,
    pub group: Group,
    /// Hosts beside the one that is asked for, each with a certificate and ten routes.
    pub hosts: usize,
    /// Figure of the peer by ringgate's that is wanted at least.
    pub targets: &'static [(Kind, f64)],
}

const BASE: Scenario = Scenario {
    name: "",
    what: "",
    generator: Generator::Own { connections: 64 },
    figure: Figure::Cpu,
    path: "/62",
    key: Key::Ecdsa,
    group: Group::X25519,
    hosts: 0,
    targets: &[],
};

const SMALL_H1: &[(Kind, f64)] = &[(Kind::Haproxy, 2.0), (Kind::Nginx, 2.2), (Kind::Envoy, 5.5)];
const SMALL_H2: &[(Kind, f64)] = &[(Kind::Haproxy, 1.4), (Kind::Nginx, 2.4), (Kind::Envoy, 5.0)];
const FULL: &[(Kind, f64)] = &[(Kind::Haproxy, 2.0), (Kind::Nginx, 2.0), (Kind::Envoy, 2.0)];
const RESUMED: &[(Kind, f64)] = &[(Kind::Haproxy, 2.0), (Kind::Nginx, 1.8), (Kind::Envoy, 2.0)];
const BULK_16K: &[(Kind, f64)] = &[(Kind::Haproxy, 2.0), (Kind::Nginx, 2.1), (Kind::Envoy, 3.5)];
const BULK_1M: &[(Kind, f64)] = &[(Kind::Haproxy, 1.5), (Kind::Nginx, 1.4), (Kind::Envoy, 1.4)];
/// At most 0.9 times the leanest peer.
const IDLE: &[(Kind, f64)] =
    &[(Kind::Haproxy, 1.0 / 0.9), (Kind::Nginx, 1.0 / 0.9), (Kind::Envoy, 1.0 / 0.9)];
/// At most 1.1 times the best peer's.
const TAIL: &[(Kind, f64)] =
    &[(Kind::Haproxy, 1.0 / 1.1), (Kind::Nginx, 1.0 / 1.1), (Kind::Envoy, 1.0 / 1.1)];

/// All of them, the most telling first.
pub(crate) const ALL: &[Scenario] = &[
    Scenario {
        name: "small-h1",
        what: "HTTP/1.1, 64 connections, 62-byte bodies",
        generator: Generator::Wrk { connections: 64 },
        targets: SMALL_H1,
        ..BASE
    },
    Scenario {
        name: "small-h2",
        what: "HTTP/2, 16 connections of 32 streams, 62-byte bodies",
        generator: Generator::H2load { clients: 16, streams: 32 },
        targets: SMALL_H2,
        ..BASE
    },
    Scenario {
        name: "full-ecdsa",
        what: "full handshake and one request, ECDSA P-256, X25519",
        generator: Generator::Handshake { connections: 32, resume: false },
        targets: FULL,
        ..BASE
    },
    Scenario {
        name: "resumed",
        what: "handshake resumed by a ticket and one request, X25519",
        generator: Generator::Handshake { connections: 32, resume: true },
        targets: RESUMED,
        ..BASE
    },
    Scenario {
        name: "bulk-16k",
        what: "HTTP/1.1, 32 connections, 16 KB down",
        generator: Generator::Own { connections: 32 },
        path: "/16384",
        targets: BULK_16K,
        ..BASE
    },
    Scenario {
        name: "bulk-1m",
        what: "HTTP/1.1, 8 connections, 1 MB down",
        generator: Generator::Own { connections: 8 },
        path: "/1048576",
        targets: BULK_1M,
        ..BASE
    },
    Scenario {
        name: "idle-h1",
        what: "4,000 idle HTTP/1.1 connections",
        generator: Generator::Idle { connections: 4_000 },
        figure: Figure::Memory,
        targets: IDLE,
        ..BASE
    },
    Scenario {
        name: "small-h1-1k",
        what: "HTTP/1.1, 64 connections, 1 KB bodies",
        generator: Generator::Wrk { connections: 64 },
        path: "/1024",
        targets: SMALL_H1,
        ..BASE
    },
    Scenario {
        name: "small-h2-1x100",
        what: "HTTP/2, one connection of 100 streams, 62-byte bodies",
        generator: Generator::H2load { clients: 1, streams: 100 },
        targets: SMALL_H2,
        ..BASE
    },
    Scenario {
        name: "latency",
        what: "HTTP/1.1, 64 connections, open loop at 60 % of what the slowest gateway can do",
        generator: Generator::Rate { connections: 64, rate: Rate::OfSlowest(0.6) },
        figure: Figure::Tail,
        targets: TAIL,
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
        name: "connections-16",
        what: "HTTP/1.1, 16 connections, 4,000 requests a second, open loop",
        generator: Generator::Rate { connections: 16, rate: Rate::Fixed(4_000.0) },
        figure: Figure::Tail,
        ..BASE
    },
    Scenario {
        name: "connections-256",
        what: "HTTP/1.1, 256 connections, 4,000 requests a second, open loop",
        generator: Generator::Rate { connections: 256, rate: Rate::Fixed(4_000.0) },
        figure: Figure::Tail,
        ..BASE
    },
    Scenario {
        name: "connections-1024",
        what: "HTTP/1.1, 1,024 connections, 4,000 requests a second, open loop",
        generator: Generator::Rate { connections: 1_024, rate: Rate::Fixed(4_000.0) },
        figure: Figure::Tail,
        ..BASE
    },
    Scenario {
        name: "connections-4000",
        what: "HTTP/1.1, 4,000 connections, 4,000 requests a second, open loop",
        generator: Generator::Rate { connections: 4_000, rate: Rate::Fixed(4_000.0) },
        figure: Figure::Tail,
        ..BASE
    },
    Scenario {
        name: "hosts-10",
        what: "10 hosts with a certificate and ten routes each; small HTTP/1.1 requests",
        hosts: 10,
        ..BASE
    },
    Scenario { name: "hosts-1000", what: "the same with 1,000 hosts", hosts: 1_000, ..BASE },
    Scenario { name: "hosts-10000", what: "the same with 10,000 hosts", hosts: 10_000, ..BASE },
];

/// # Errors
/// A name is not known; the error lists those that are.
pub(crate) fn named(names: &[String]) -> Result<Vec<Scenario>, String> {
    if names.is_empty() {
        return Ok(ALL.to_vec());
    }
    names.iter().map(|name| by_name(name)).collect()
}

fn by_name(name: &str) -> Result<Scenario, String> {
    ALL.iter().find(|scenario| scenario.name == name).copied().ok_or_else(|| {
        let known: Vec<_> = ALL.iter().map(|scenario| scenario.name).collect();
        format!("there is no scenario `{name}`; there are {}", known.join(", "))
    })
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
        let found = named(&names).unwrap();
        assert_eq!(found.iter().map(|s| s.name).collect::<Vec<_>>(), names);
        assert!(named(&["small".to_owned()]).unwrap_err().contains("small-h1"));
    }
}
