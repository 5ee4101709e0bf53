//! All that makes a rustls configuration: provider, keys, certificates, which clients and backends
//! are taken, ticket keys.
//!
//! - Runs on the control thread only: a snapshot holds finished configurations, and workers never
//!   load a key. The exceptions take no lock: checking a peer's certificate, sealing and opening
//!   tickets, sessions with backends, and the keys of records.
//! - Takes certificates as users have them: X.509 v1, without alternative names, leaf alone, keys
//!   in PKCS#1, PKCS#8 or SEC1, text between the PEM blocks.
//! - Errors are sentences for the operator, with the cure, and never hold key bytes.
//!
//! Deliberately not here: files, host names (which certificate a client sees is chosen by the
//! Gateway's hosts, never by the names in it), validity of a server's certificate against the clock
//! (an expired one is still served).

#![forbid(unsafe_code)]

mod backend;
mod certificate;
mod client;
mod der;
mod digest;
mod forwarded;
mod identity_error;
#[cfg(test)]
mod meeting;
mod parameters;
mod pem;
mod provider;
mod record_key;
mod server;
mod signed;
mod staple;
mod ticket;
mod trust;

pub(crate) use backend::{BackendRequest, BackendTrust, MeshPeer, backend_config};
pub(crate) use certificate::{Description, describe, describe_all};
pub(crate) use client::{CheckedTickets, ClientRequest, ClientVerifier, Pins};
pub(crate) use digest::Digest;
pub(crate) use forwarded::forwarded;
pub(crate) use identity_error::IdentityError;
pub(crate) use parameters::Parameters;
pub(crate) use provider::{Choice, Provider};
pub(crate) use record_key::{NONCE_BYTES, Nonce, RecordKey, TAG_BYTES};
pub(crate) use server::{CertifiedPair, PairPem, ServerPolicy, Template, Version, load};
#[cfg(test)]
pub(crate) use server::{ServerRequest, server_config};
#[cfg(test)]
pub(crate) use ticket::TicketKeys;
pub(crate) use ticket::TicketSecrets;
pub(crate) use trust::TrustError;
