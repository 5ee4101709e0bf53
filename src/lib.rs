//! ringgate, a TLS-terminating ingress gateway on io_uring.
//!
//! One process. A control thread turns resources into immutable snapshots; one worker per core, each
//! on its own io_uring, serves from the newest snapshot and shares nothing that it writes.

pub mod io;
pub mod snapshot;

#[cfg(test)]
mod tidy;
