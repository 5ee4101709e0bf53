//! Binds the sockets of a listener on the control thread: one for each worker, but a Unix socket,
//! of which the kernel has one for each path.
//!
//! The kernel spreads connections over sockets that share an address (`SO_REUSEPORT`). That option
//! also lets two processes share it silently, so the address is bound once without it first: a port
//! in use is an error that names it. Beside a listener of our own that is about to close, that
//! would fail because of ours; there the error comes only if the other does not share, or belongs
//! to another user.
//!
//! Whoever ends without removing the file of its Unix socket leaves a stale one behind, on which
//! nobody can listen again. So a file is removed where it is a socket and connects to it are
//! refused, and no other is. Its permissions are left to the umask, as by Envoy.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::address::PipePath;

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

/// The file of a Unix socket that was bound here. It is removed when this is dropped, unless
/// another has taken its place.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PipePath,
    /// Device and number.
    id: (u64, u64),
}

/// The one listening socket at `path`, and its file if that is no abstract name.
///
/// # Errors
/// There is a file that is no socket, somebody listens on it, the directory is missing, or nobody
/// may write to it.
pub(super) fn bind_pipe(path: PipePath) -> io::Result<(OwnedFd, Option<SocketFile>)> {
    let name = match path.abstract_name() {
        Some(name) => SockAddr::unix(format!("\0{name}"))?,
        None => SockAddr::unix(path.as_str())?,
    };
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    if let Err(error) = socket.bind(&name) {
        if error.kind() != io::ErrorKind::AddrInUse || !is_stale(path, &name)? {
            return Err(error);
        }
        fs::remove_file(path.as_str())?;
        socket.bind(&name)?;
    }
    let file = SocketFile::of(path);
    socket.listen(BACKLOG)?;
    Ok((socket.into(), file))
}

/// Whether the file at `path` is a socket on which nobody listens; it is an error if it is none.
fn is_stale(path: PipePath, name: &SockAddr) -> io::Result<bool> {
    if path.abstract_name().is_some() {
        return Ok(false);
    }
    if !fs::symlink_metadata(path.as_str())?.file_type().is_socket() {
        let what = "there is a file that is no socket";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
    }
    // It must not wait where the queue of who listens is full.
    let client = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    Ok(client.connect(name).is_err_and(refused))
}

impl SocketFile {
    fn of(path: PipePath) -> Option<Self> {
        if path.abstract_name().is_some() {
            return None;
        }
        Some(Self { path, id: file_id(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if file_id(self.path) == Some(self.id) {
            // What cannot be removed is taken for stale by whoever comes next.
            let _: io::Result<()> = fs::remove_file(self.path.as_str());
        }
    }
}

fn file_id(path: PipePath) -> Option<(u64, u64)> {
    let metadata = fs::symlink_metadata(path.as_str()).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn every_worker_gets_a_socket_on_the_same_port() {
        let sockets = bind("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let ports: Vec<u16> = sockets.iter().map(|s| s.local_addr().unwrap().port()).collect();
        assert_eq!(ports, [ports[0]; 3]);
        assert_ne!(ports[0], 0);
    }

    fn pipe(dir: &tempfile::TempDir) -> PipePath {
        PipePath::new(dir.path().join("a.sock").to_str().unwrap()).unwrap()
    }

    #[test]
    fn a_socket_is_bound_where_nobody_listens_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = pipe(&dir);
        let (socket, file) = bind_pipe(path).unwrap();
        UnixStream::connect(path.as_str()).unwrap();
        assert_eq!(bind_pipe(path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(file);
        assert!(!fs::exists(path.as_str()).unwrap());
        drop(socket);
        // As a process that was killed leaves it.
        drop(UnixListener::bind(path.as_str()).unwrap());
        let (_socket, file) = bind_pipe(path).unwrap();
        UnixStream::connect(path.as_str()).unwrap();
        // Somebody else's takes its place.
        fs::remove_file(path.as_str()).unwrap();
        let _other = UnixListener::bind(path.as_str()).unwrap();
        drop(file);
        UnixStream::connect(path.as_str()).unwrap();
    }

    #[test]
    fn a_full_queue_is_no_stale_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = pipe(&dir);
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&SockAddr::unix(path.as_str()).unwrap()).unwrap();
        listener.listen(0).unwrap();
        let _queued = UnixStream::connect(path.as_str()).unwrap();
        assert_eq!(bind_pipe(path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn only_sockets_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = pipe(&dir);
        let kind = || bind_pipe(path).unwrap_err().kind();
        fs::write(path.as_str(), "precious").unwrap();
        assert_eq!(kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(path.as_str()).unwrap(), b"precious");
        fs::remove_file(path.as_str()).unwrap();
        // Not even where it leads to a stale one.
        drop(UnixListener::bind(dir.path().join("stale")).unwrap());
        std::os::unix::fs::symlink("stale", path.as_str()).unwrap();
        assert_eq!(kind(), io::ErrorKind::AlreadyExists);
        fs::remove_file(path.as_str()).unwrap();
        dir.close().unwrap();
        assert_eq!(kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn an_abstract_name_is_no_file() {
        let path = format!("@ringgate-test-{}-bind", std::process::id());
        let path = PipePath::new(&path).unwrap();
        let (_socket, file) = bind_pipe(path).unwrap();
        assert!(file.is_none());
        assert_eq!(bind_pipe(path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
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
