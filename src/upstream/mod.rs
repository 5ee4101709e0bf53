//! Connections to endpoints: pools, choice of endpoint, HTTP/1.1 and HTTP/2 towards them.

#![forbid(unsafe_code)]

pub(crate) mod adapt;
