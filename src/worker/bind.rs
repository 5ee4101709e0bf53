//! Binds the sockets of a listener, one for each worker, on the control thread.
//!
//! The kernel spreads connections over sockets that share an address (`SO_REUSEPORT`). That option
//! also lets two processes share it silently, so the address is bound once without it first: a port
//! in use is an error that names it. Beside a listener of our own that is about to close, that
//! would fail because of ours; there the error comes only if the other does not share, or belongs
//! to another user.

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
    if address.port() != 0 {
        socket(address)?.bind(&address.into())?;
    }
    bind_beside_ours(address, workers)
}

/// The same where another listener of ours has a part of the address, or all of it and more.
///
/// # Errors
/// As for [`bind`], as far as it can be told from a listener of ours.
pub(super) fn bind_beside_ours(
    address: SocketAddr,
    workers: usize,
) -> io::Result<Vec<TcpListener>> {
    let mut address = address;
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

    #[test]
    fn a_part_of_our_address_and_more_of_it_can_be_bound_beside_it() {
        for (ours, other) in
            [("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "::")]
        {
            let sockets = bind(SocketAddr::new(ours.parse().unwrap(), 0), 2).unwrap();
            let port = sockets[0].local_addr().unwrap().port();
            let other = SocketAddr::new(other.parse().unwrap(), port);
            let error = bind(other, 2).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{ours} is seen from {other}");
            assert_eq!(bind_beside_ours(other, 2).unwrap().len(), 2);
        }
    }

    #[test]
    fn beside_ours_a_port_that_another_holds_is_an_error_still() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = other.local_addr().unwrap().port();
        let _ours = bind(SocketAddr::from(([127, 0, 0, 2], port)), 1).unwrap();
        let error = bind_beside_ours(SocketAddr::from(([0; 4], port)), 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
