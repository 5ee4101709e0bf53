//! ringgate, a TLS-terminating ingress gateway on io_uring.
//!
//! One process. A control thread turns resources into immutable snapshots; one worker per core,
//! each on its own io_uring, serves from the newest snapshot and shares nothing that it writes.
//!
//! ```text
//!   files ──> config ──> Snapshot ──arc-swap──> worker ─ worker ─ worker      one thread per core
//!             (control thread)                    │ runtime (io_uring or epoll)
//!                                                 │
//!   client ──TLS──> tls ──> http ──> upstream ──> endpoint
//!                     └───> tcp ────────┘
//! ```
//!
//! # Life of a request
//!
//! 1. `worker` accepts a connection, hands it to another worker if it has far more to do than the
//!    mean, and spawns a task for it. `tls` reads the ClientHello, the SNI selects a server of the
//!    newest snapshot, the handshake is done with its configuration. What is not HTTP, or has its
//!    TLS terminated by the endpoint, `tcp` joins to an endpoint, and that is all.
//! 2. ALPN says which protocol hyper speaks with the client. For each request `http` takes the
//!    newest snapshot, brings the path into its normal form, finds the virtual host and walks its
//!    trie.
//! 3. A redirect or a direct response is answered at once. Otherwise `upstream` picks an endpoint
//!    and a pooled connection, writes the head into that connection's send buffer and reads the
//!    response's head where it lies in the ring's buffer.
//! 4. Bodies stream both ways, each side waiting for the other. When the last byte has left, the
//!    request is counted and logged; the connection goes back to its pool.
//!
//! # Words
//!
//! *downstream*: towards the client; *upstream*: towards the service; *listener*: an address and
//! port, or a Unix socket; *identity*: certificate and key; *route*, *cluster*, *endpoint*: as in
//! Envoy; *worker*: a thread with its own runtime; *snapshot*: one generation of the configuration;
//! *rejection*: what was wrong with a resource; *drain*: letting open requests finish.
//!
//! # What is deliberately absent
//!
//! - `config` and the data path never import each other: what one has for the other is in
//!   [`snapshot`].
//! - A worker takes no lock, never blocks and never touches a file. Log lines leave it in batches,
//!   names are resolved on the control thread.
//! - `http`, `tcp`, `tls` and `upstream` see byte streams and a clock, never a ring: they run in tests
//!   over in-memory pipes.
//! - `unsafe` exists in [`runtime`] alone.
//! - No limit is missing and none is hidden: all are in [`snapshot::Limits`] or [`settings`].
//!
//! The modules stand in the order in which data flows; each may import only what stands below it,
//! which `tidy.rs` checks.

pub mod config;
mod crypto;

pub mod snapshot;

pub mod worker;
mod http;
mod tcp;
mod upstream;
mod tls;

pub mod admin;
pub mod drain;
pub mod telemetry;

#[allow(unsafe_code, reason = "the only module that shares memory with the kernel")]
pub mod runtime;
pub mod io;

pub mod demo;
pub mod tune;
pub mod settings;
pub mod address;

#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod fuzz;

#[cfg(test)]
mod tidy;
