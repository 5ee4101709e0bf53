//! Unix sockets for backends and clients that know TCP alone: every byte passes as it is, and each
//! direction ends on its own.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use socket2::{Domain, SockAddr, Socket, Type};

/// Joins what connects here to somewhere else; it stops accepting when dropped.
pub struct Relay(Arc<Socket>);

impl Relay {
    /// A Unix socket at `path` that leads to `port` of this machine.
    pub fn to_port(path: &Path, port: u16) -> Self {
        Self::start(&SockAddr::unix(path).unwrap(), loopback(port))
    }

    /// The same with an abstract name.
    pub fn named_to_port(name: &str, port: u16) -> Self {
        Self::start(&SockAddr::unix(format!("\0{name}")).unwrap(), loopback(port))
    }

    /// A port that leads to the Unix socket at `path`.
    pub fn to_path(path: &Path) -> Self {
        Self::start(&loopback(0), SockAddr::unix(path).unwrap())
    }

    /// Where it accepts.
    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap().as_socket().expect("it accepts on a port")
    }

    fn start(at: &SockAddr, to: SockAddr) -> Self {
        let listener = Arc::new(Socket::new(at.domain(), Type::STREAM, None).unwrap());
        listener.bind(at).unwrap();
        listener.listen(64).unwrap();
        thread::spawn({
            let listener = Arc::clone(&listener);
            move || {
                while let Ok((near, _)) = listener.accept() {
                    // Without anybody there the client sees its end.
                    drop(join(near, to.domain(), &to));
                }
            }
        });
        Self(listener)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Wakes the accepting thread.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

fn loopback(port: u16) -> SockAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()
}

fn join(near: Socket, domain: Domain, to: &SockAddr) -> io::Result<()> {
    let far = Socket::new(domain, Type::STREAM, None)?;
    far.connect(to)?;
    let (near, far) = (Arc::new(near), Arc::new(far));
    for (from, to) in [(Arc::clone(&near), Arc::clone(&far)), (far, near)] {
        thread::spawn(move || {
            let ended = io::copy(&mut &*from, &mut &*to);
            // Whatever ended it, nothing more comes; a reset is passed on as one.
            let how = if ended.is_ok() { Shutdown::Write } else { Shutdown::Both };
            let _ = to.shutdown(how);
        });
    }
    Ok(())
}
