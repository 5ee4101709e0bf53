//! TLS on a byte stream: ClientHello, choice of server, handshake, record pump.

#![forbid(unsafe_code)]
