//! Binds the sockets of a listener, one for each worker, on the control thread.
//!
//! The kernel spreads connections over sockets that share an address (`SO_REUSEPORT`). That option
//! also lets two processes share it silently, so the address is bound once without it first: a port
//! in use is an error that names it.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait for one worker to accept them; the kernel caps it by `somaxconn`.
const BACKLOG: i32 = 4096;

/// One listening socket for each of `workers`, all on the same address; port 0 picks a free one.
///
/// # Errors
/// The address is in use, is not ours, or needs a privilege.
pub(super) fn bind(address: SocketAddr, workers: usize) -> io::Result<Vec<TcpListener>> {
    let mut address = address;
    if address.port() != 0 {
        socket(address)?.bind(&address.into())?;
    }
    let mut sockets = Vec::with_capacity(workers);
    for _ in 0..workers {
        let listener = listen(address)?;
        address = listener.local_addr()?;
        sockets.push(listener);
    }
    Ok(sockets)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of a process that just ended must not keep its successor from starting.
    socket.set_reuse_address(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_gets_a_socket_on_the_same_port() {
        let sockets = bind("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let ports: Vec<u16> = sockets.iter().map(|s| s.local_addr().unwrap().port()).collect();
        assert_eq!(ports, [ports[0]; 3]);
        assert_ne!(ports[0], 0);
    }

    #[test]
    fn a_port_in_use_is_an_error_even_when_it_is_shared() {
        let sockets = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let error = bind(sockets[0].local_addr().unwrap(), 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
