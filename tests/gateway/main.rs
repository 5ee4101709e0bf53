//! The gateway as its users meet it: the real binary, real sockets, real certificates.
//!
//! One test binary for all topics, so that it is linked once. `self_check` tests the harness
//! itself, without a gateway.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests are not workers: they may panic, sleep and share"
)]
#![allow(unreachable_pub, missing_docs, reason = "the harness is a module here, not a crate")]

#[path = "../harness/mod.rs"]
mod harness;

mod admin;
mod backend_tls;
mod balance;
mod balancers;
mod check;
mod delegate;
mod demo;
mod destination_rule;
mod dns;
mod drain;
mod envoy;
mod fields;
mod grafana;
mod headers;
mod http1;
mod http2;
mod kubernetes;
mod locality;
mod matches;
mod mutual;
mod outliers;
mod page;
mod passthrough;
mod pool_limits;
mod problems;
mod proxy_protocol;
mod readme;
mod reload;
mod retries;
mod routing;
mod samples;
mod secrets;
mod self_check;
mod service_entry;
mod servers;
mod steps;
mod syscalls;
mod tasks;
mod tcp;
mod tls;
mod treatment;
mod tune;
mod unix;
