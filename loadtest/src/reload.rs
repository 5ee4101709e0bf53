//! How soon a gateway with many hosts serves a changed certificate of one of them.
//!
//! - The time begins when the new files are complete but under other names; it counts until a
//!   handshake gets the new certificate.
//! - Each gateway is told in its own way: ringgate and Envoy watch the files, nginx gets SIGHUP,
//!   HAProxy gets the certificate over its control socket, which is cheaper than a reload.

use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::generate;
use crate::hosts::{self, Files, Pem};
use crate::peer::{Gateway, Kind, Site};

/// After it, the gateway is taken not to serve the certificate at all.
const PATIENCE: Duration = Duration::from_secs(60);
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(1);

/// Changes the certificate of a host that nobody else asks for.
///
/// # Errors
/// A file cannot be written, or the new certificate is not served in time.
pub(crate) fn measure(gateway: &Gateway, site: &Site<'_>) -> io::Result<Duration> {
    let (all, group) = (site.scenario.hosts, site.scenario.group);
    let host = all / 2 + 1;
    let name = hosts::name(host);
    let (files, new) = (Files::of(site.dir, all, host), hosts::certificate(host)?);
    let ready = [
        (&new.key, &files.key),
        (&new.certificate, &files.certificate),
        (&new.bundle(), &files.bundle),
    ]
    .map(|(text, path)| (beside(path, text), path));
    let start = Instant::now();
    for (new, path) in ready {
        fs::rename(new?, path)?;
    }
    tell(gateway, &files, &new)?;
    while generate::served_certificate(gateway.address, &name, group).ok().as_ref()
        != Some(&new.der)
    {
        if start.elapsed() > PATIENCE {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the new certificate of {name} is not served"),
            ));
        }
        sleep(BETWEEN_ATTEMPTS);
    }
    Ok(start.elapsed())
}

/// Writes a file that can replace `path` at once.
fn beside(path: &Path, text: &str) -> io::Result<PathBuf> {
    let new = PathBuf::from(format!("{}.new", path.display()));
    fs::write(&new, text)?;
    Ok(new)
}

fn tell(gateway: &Gateway, files: &Files, new: &Pem) -> io::Result<()> {
    match gateway.kind {
        Kind::Nginx => {
            gateway.hang_up();
            Ok(())
        }
        Kind::Haproxy => {
            let (socket, bundle) = (gateway.dir.join("haproxy.sock"), files.bundle.display());
            order(&socket, &format!("set ssl cert {bundle} <<\n{}\n", new.bundle()))?;
            order(&socket, &format!("commit ssl cert {bundle}\n"))
        }
        Kind::Ringgate
        | Kind::Envoy
        | Kind::Floor
        | Kind::Relay
        | Kind::HyperTokio
        | Kind::HyperTokioUring => Ok(()),
    }
}

/// One command on HAProxy's control socket; returns when it is carried out.
fn order(socket: &Path, command: &str) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(command.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let failed = !(answer.contains("Success") || answer.contains("ransaction created"));
    if failed { Err(io::Error::other(format!("HAProxy: {}", answer.trim()))) } else { Ok(()) }
}
