//! What is known of a request once it is over: the one value that log and series are made of.

use std::ops::BitOr;
use std::time::{Duration, SystemTime};

use crate::address::Address;

/// A finished request, or a connection that ended before its first. Borrows everything.
///
/// An empty text is a value that there was not. Text may hold any byte that the client sent: the
/// log escapes it.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// When its first byte was read.
    pub start: SystemTime,
    /// From `start` to the last byte of the response.
    pub duration: Duration,
    /// As the client sent it; empty for a connection without a request.
    pub method: &'a str,
    /// With its query, as the client sent it.
    pub path: &'a str,
    /// `HTTP/1.1` or `HTTP/2`.
    pub protocol: &'static str,
    /// Of a request that was gRPC by its content type.
    pub grpc: Option<Grpc>,
    /// Of the response; 0 when there was none.
    pub status: u16,
    /// What went wrong.
    pub flags: Flags,
    /// Why the response is what it is: `via_upstream`, `route_not_found`.
    pub details: &'a str,
    /// Why the downstream connection was ended, if the gateway ended it.
    pub termination_details: &'a str,
    /// What the connection to the upstream failed of.
    pub upstream_failure: &'a str,
    /// Bytes of the request's body.
    pub bytes_received: u64,
    /// Bytes of the response's body.
    pub bytes_sent: u64,
    /// From the end of the request to the first byte of the upstream's response.
    pub upstream_time: Option<Duration>,
    /// As it is sent upstream.
    pub forwarded_for: &'a [u8],
    /// As the client sent it.
    pub user_agent: &'a [u8],
    /// The one that the gateway gave.
    pub request_id: &'a [u8],
    /// Host header or `:authority`.
    pub authority: &'a str,
    /// The endpoint that was tried last.
    pub upstream_host: Option<Address>,
    /// `outbound|8000||httpbin.default.svc.cluster.local`.
    pub upstream_cluster: &'a str,
    /// The host that the cluster stands for, `httpbin.default.svc.cluster.local`.
    pub upstream_service: &'a str,
    /// Our end of the connection to the endpoint.
    pub upstream_local: Option<Address>,
    /// Our end of the client's connection.
    pub downstream_local: Option<Address>,
    /// The client.
    pub downstream_remote: Option<Address>,
    /// The SNI.
    pub server_name: &'a str,
    /// The rule's name in the VirtualService.
    pub route_name: &'a str,
}

impl Record<'_> {
    /// One that began at `start`, of which nothing else is known. Fill it with struct update
    /// syntax.
    #[must_use]
    pub const fn new(start: SystemTime) -> Self {
        Self {
            start,
            duration: Duration::ZERO,
            method: "",
            path: "",
            protocol: "",
            grpc: None,
            status: 0,
            flags: Flags::NONE,
            details: "",
            termination_details: "",
            upstream_failure: "",
            bytes_received: 0,
            bytes_sent: 0,
            upstream_time: None,
            forwarded_for: b"",
            user_agent: b"",
            request_id: b"",
            authority: "",
            upstream_host: None,
            upstream_cluster: "",
            upstream_service: "",
            upstream_local: None,
            downstream_local: None,
            downstream_remote: None,
            server_name: "",
            route_name: "",
        }
    }
}

/// What is known of a gRPC call beside what is known of every request.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Grpc {
    /// `grpc-status`, 0 to 16; `None` when there was none or another.
    pub status: Option<u8>,
    /// Messages of the client that have begun.
    pub request_messages: u64,
    /// The same of the answer.
    pub response_messages: u64,
}

/// Envoy's response flags: a set, empty when nothing went wrong.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flags(u16);

impl Flags {
    /// Nothing went wrong.
    pub const NONE: Self = Self(0);
    /// `UH`: no healthy endpoint.
    pub const NO_HEALTHY_UPSTREAM: Self = Self(1);
    /// `UF`: connecting to the endpoint failed.
    pub const UPSTREAM_CONNECT_FAILURE: Self = Self(1 << 1);
    /// `NR`: no route, or no server for the connection.
    pub const NO_ROUTE: Self = Self(1 << 2);
    /// `NC`: the route's cluster does not exist.
    pub const NO_CLUSTER: Self = Self(1 << 3);
    /// `UC`: the upstream ended the connection before the response was complete.
    pub const UPSTREAM_TERMINATION: Self = Self(1 << 4);
    /// `UT`: the upstream took too long.
    pub const UPSTREAM_TIMEOUT: Self = Self(1 << 5);
    /// `UPE`: the upstream's response was not HTTP.
    pub const UPSTREAM_PROTOCOL_ERROR: Self = Self(1 << 6);
    /// `DC`: the client went away.
    pub const DOWNSTREAM_TERMINATION: Self = Self(1 << 7);
    /// `LR`: the gateway ended it.
    pub const LOCAL_RESET: Self = Self(1 << 8);
    /// `DPE`: the client's request was not HTTP.
    pub const DOWNSTREAM_PROTOCOL_ERROR: Self = Self(1 << 9);
    /// `URX`: it was worth another attempt, and there was none left.
    pub const UPSTREAM_RETRY_LIMIT: Self = Self(1 << 10);
    /// `DI`: it was delayed on purpose.
    pub const DELAY_INJECTED: Self = Self(1 << 11);
    /// `FI`: it was aborted on purpose.
    pub const FAULT_INJECTED: Self = Self(1 << 12);
    /// `UO`: the cluster has as much under way as it may have.
    pub const UPSTREAM_OVERFLOW: Self = Self(1 << 13);
    /// `SI`: nothing of the request came for too long.
    pub const STREAM_IDLE_TIMEOUT: Self = Self(1 << 14);

    const NAMES: [(Self, &'static str); 15] = [
        (Self::NO_HEALTHY_UPSTREAM, "UH"),
        (Self::UPSTREAM_CONNECT_FAILURE, "UF"),
        (Self::UPSTREAM_OVERFLOW, "UO"),
        (Self::NO_ROUTE, "NR"),
        (Self::NO_CLUSTER, "NC"),
        (Self::UPSTREAM_TERMINATION, "UC"),
        (Self::UPSTREAM_TIMEOUT, "UT"),
        (Self::UPSTREAM_PROTOCOL_ERROR, "UPE"),
        (Self::DOWNSTREAM_TERMINATION, "DC"),
        (Self::LOCAL_RESET, "LR"),
        (Self::DOWNSTREAM_PROTOCOL_ERROR, "DPE"),
        (Self::UPSTREAM_RETRY_LIMIT, "URX"),
        (Self::DELAY_INJECTED, "DI"),
        (Self::FAULT_INJECTED, "FI"),
        (Self::STREAM_IDLE_TIMEOUT, "SI"),
    ];

    /// Whether all of `flags` are in it.
    #[must_use]
    pub fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Appends `UF,LR`, or `-` for the empty set.
    pub(super) fn write(self, out: &mut Vec<u8>) {
        if self == Self::NONE {
            return out.push(b'-');
        }
        let mut separator: &[u8] = b"";
        for (_, name) in Self::NAMES.iter().filter(|(flag, _)| self.contains(*flag)) {
            out.extend_from_slice(separator);
            out.extend_from_slice(name.as_bytes());
            separator = b",";
        }
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl std::fmt::Display for Flags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = Vec::new();
        self.write(&mut text);
        f.write_str(&String::from_utf8_lossy(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_read_as_in_envoy() {
        assert_eq!(Flags::NONE.to_string(), "-");
        assert_eq!(Flags::NO_ROUTE.to_string(), "NR");
        let both = Flags::LOCAL_RESET | Flags::UPSTREAM_CONNECT_FAILURE;
        assert_eq!(both.to_string(), "UF,LR");
        assert!(both.contains(Flags::LOCAL_RESET) && !both.contains(Flags::NO_ROUTE));
    }
}
