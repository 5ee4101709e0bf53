//! All that makes a rustls configuration: provider, keys, certificates, ticket keys.

#![forbid(unsafe_code)]
