//! All that makes a rustls configuration: provider, keys, certificates, ticket keys.
//!
//! - Runs on the control thread only: a snapshot holds finished configurations, and workers never
//!   load a key. The exceptions take no lock: sealing and opening tickets, and the keys of records.
//! - Takes certificates as users have them: X.509 v1, without alternative names, leaf alone, keys
//!   in PKCS#1, PKCS#8 or SEC1, text between the PEM blocks.
//! - Errors are sentences for the operator, with the cure, and never hold key bytes.
//!
//! Deliberately not here: files, host names (which certificate a client sees is chosen by the
//! Gateway's hosts, never by the names in it), validity against the clock (an expired certificate
//! is still served).

#![forbid(unsafe_code)]

mod certificate;
mod identity_error;
mod pem;
mod provider;
mod record_key;
mod server;
mod ticket;

pub(crate) use certificate::describe;
pub(crate) use identity_error::IdentityError;
pub(crate) use provider::{Choice, Provider};
pub(crate) use record_key::{NONCE_BYTES, Nonce, RecordKey, TAG_BYTES};
pub(crate) use server::{ServerRequest, Version, server_config};
pub(crate) use ticket::TicketKeys;
