//! How soon a gateway with many hosts serves a changed certificate of one of them.
//!
//! - The time begins when the new files are complete but under other names; it counts until a
//!   handshake gets the new certificate.
//! - Each gateway is told in its own way: ringgate watches the files, Envoy the file of its listener,
//!   which has to name other ones, nginx gets SIGHUP, HAProxy gets the certificate over its control
//!   socket, which is cheaper than a reload.

use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::generate;
use crate::hosts::{self, Files, Pem};
use crate::peer::{Gateway, Kind, LISTENERS, Site};

/// After it, the gateway is taken not to serve the certificate at all.
const PATIENCE: Duration = Duration::from_secs(180);
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
    let mut ready = vec![
        (beside(&files.key, &new.key)?, files.key.clone()),
        (beside(&files.certificate, &new.certificate)?, files.certificate.clone()),
        (beside(&files.bundle, &new.bundle())?, files.bundle.clone()),
    ];
    if gateway.kind == Kind::Envoy {
        let listeners = gateway.dir.join(LISTENERS);
        let text = renamed(&fs::read_to_string(&listeners)?, &files, &new)?;
        ready.push((beside(&listeners, &text)?, listeners));
    }
    let start = Instant::now();
    for (new, path) in ready {
        fs::rename(new, path)?;
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

/// Envoy's listener with another name for the files: only a changed text makes it read them.
fn renamed(listeners: &str, files: &Files, new: &Pem) -> io::Result<String> {
    let mut text = listeners.to_owned();
    for (path, content) in [(&files.certificate, &new.certificate), (&files.key, &new.key)] {
        let changed = PathBuf::from(format!("{}.changed", path.display()));
        fs::write(&changed, content)?;
        let quoted = |path: &Path| format!("\"{}\"", path.display());
        text = text.replace(&quoted(path), &quoted(&changed));
    }
    Ok(text)
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
