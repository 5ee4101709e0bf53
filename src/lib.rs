//! ringgate, a TLS-terminating ingress gateway on io_uring.
//!
//! One process. A control thread turns resources into immutable snapshots; one worker per core, each
//! on its own io_uring, serves from the newest snapshot and shares nothing that it writes.

pub mod config;
mod crypto;

pub mod snapshot;

mod http;
mod tls;
mod upstream;
pub mod worker;

pub mod admin;
pub mod drain;
pub mod telemetry;

pub mod io;
#[allow(unsafe_code, reason = "the only module that shares memory with the kernel")]
pub mod runtime;

pub mod demo;
pub mod settings;

#[cfg(test)]
mod tidy;
