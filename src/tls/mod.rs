//! TLS on a byte stream: ClientHello, choice of server, handshake, records.
//!
//! - [`greet`] reads the ClientHello, by which the caller chooses a server: that shakes hands, or
//!   every byte is passed on to somebody who will. [`connect()`] is the other side of a handshake.
//! - [`TlsStream`] is the byte stream inside, as lent and bounded as the one below, at either side.
//! - Builds no configuration, reads no clock, has no timeout: the caller bounds the handshake.
//! - rustls shakes hands and derives keys; the records behind that are sealed and opened here, in
//!   place, because its own record layer copies each of them two or three times and keeps an idle
//!   connection's buffers.
//!
//! Deliberately not here: names and certificates (`crypto`, `snapshot`), anything of HTTP.

#![forbid(unsafe_code)]

mod connect;
mod handshake;
mod hello;
mod intake;
mod record;
mod session;
mod stream;

#[cfg(test)]
mod tests;

pub(crate) use connect::connect;
pub(crate) use hello::{AcceptError, Hello, Unaccepted, greet};
#[cfg(test)]
pub(crate) use intake::HandshakeError;
pub(crate) use stream::TlsStream;
#[cfg(test)]
pub(crate) use tests::accept;

/// Does for the calling thread what its first handshake would wait for: aws-lc, of which every
/// provider has something, gathers randomness of its own, which takes some 20 ms.
pub(crate) fn warm_up() {
    let mut one = [0];
    // If there is none, the handshake will say so.
    let _: Result<(), aws_lc_rs::error::Unspecified> = aws_lc_rs::rand::fill(&mut one);
}
