//! The relay: bytes to and fro, without TLS and HTTP; one connection to the backend for each client.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;

use super::ring::{self, Key, Service, Sockets};

/// Serves until it fails.
///
/// # Errors
/// As [`ring::serve`].
pub(super) fn serve(address: SocketAddr, backend: SocketAddr) -> io::Result<()> {
    ring::serve(address, &mut Relay { backend, others: HashMap::new() })
}

struct Relay {
    backend: SocketAddr,
    /// Each socket's counterpart.
    others: HashMap<Key, Key>,
}

impl Service for Relay {
    fn accepted(&mut self, sockets: &mut Sockets, socket: Key) {
        match sockets.connect(self.backend) {
            Ok(upstream) => {
                self.others.insert(socket, upstream);
                self.others.insert(upstream, socket);
            }
            Err(_) => sockets.close(socket),
        }
    }

    fn received(&mut self, sockets: &mut Sockets, socket: Key, bytes: &[u8]) {
        if let Some(&other) = self.others.get(&socket) {
            sockets.output(other).extend_from_slice(bytes);
        }
    }

    fn closed(&mut self, sockets: &mut Sockets, socket: Key) {
        if let Some(other) = self.others.remove(&socket) {
            self.others.remove(&other);
            sockets.close(other);
        }
    }
}
