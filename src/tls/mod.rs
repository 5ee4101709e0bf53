//! TLS on a byte stream: ClientHello, choice of server, handshake, record pump.
//!
//! - [`accept`] reads the ClientHello, lets the caller choose a server by it, and shakes hands;
//!   [`TlsStream`] is the byte stream inside, as lent and bounded as the one below.
//! - Builds no configuration, reads no clock, has no timeout: the caller bounds the handshake.
//! - `engine` alone knows rustls's buffered interface.
//!
//! Deliberately not here: names and certificates (`crypto`, `snapshot`), anything of HTTP.

#![forbid(unsafe_code)]

mod engine;
mod hello;
mod record;
mod stream;

#[cfg(test)]
mod tests;

pub(crate) use hello::{AcceptError, Hello, accept};
pub(crate) use stream::TlsStream;
