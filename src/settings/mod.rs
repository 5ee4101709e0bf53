//! The settings file: what the operator sets, and every default with its reason.
//!
//! - Every key has a default, so an empty file is a valid one.
//! - A key that does not exist is an error, and so is one that stands twice: a typo never becomes a
//!   default.
//! - All mistakes of a file are reported at once, each with its line and key.
//!
//! The file as written is a tree of keys and lines ([`written`]); [`Settings`] is what the program
//! uses, and having one tells you that every value in it can be used.
//!
//! Deliberately not here: the resources (`config`), and the defaults of [`Limits`], which live with
//! the type that the data layers read.

#![forbid(unsafe_code)]

mod read;
#[cfg(test)]
mod tests;
pub mod threads;
mod value;
mod written;
pub(crate) mod yaml;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The environment variable that says where the gateway is, as `gateway.locality` does: what runs
/// in many places has one settings file.
const LOCALITY: &str = "RINGGATE_LOCALITY";

/// Far above any real file; what is larger is not a settings file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Everything that the operator sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// The threads that serve.
    pub workers: Workers,
    /// Where listeners are bound.
    pub listen: Listen,
    /// Who this gateway is among the resources.
    pub gateway: Gateway,
    /// Where the resources come from.
    pub source: Source,
    /// How paths in resources are read.
    pub files: Files,
    /// Who is asked for the addresses of names.
    pub dns: Dns,
    /// The TLS implementation.
    pub tls: Tls,
    /// HTTP behaviour that no resource sets.
    pub http: Http,
    /// Limits and timeouts of connections and requests.
    pub limits: Limits,
    /// The administration server.
    pub admin: Admin,
    /// The server of the readiness probe.
    pub status: Status,
    /// The server of the metrics.
    pub metrics: Metrics,
    /// The access log.
    pub access_log: AccessLog,
}

/// `workers`: the threads that serve. Only a restart changes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workers {
    /// How many; `None` means as many as the machine has room for, see [`threads::plan`].
    pub count: Option<usize>,
    /// Whether each stays on one CPU; `None` means if that helps, see [`threads::plan`].
    pub pin: Option<bool>,
    /// What they wait with.
    pub backend: Backend,
    /// How fresh connections are spread over them.
    pub balance: Balancing,
}

/// `workers.balance`: how fresh connections are spread over the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balancing {
    /// By the kernel; a worker far above the mean hands them to others.
    Auto,
    /// By the kernel alone.
    Off,
}

/// `workers.backend`: what a worker waits with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// io_uring, or epoll where the kernel denies it.
    Auto,
    /// epoll.
    Epoll,
    /// io_uring; where the kernel denies it, the gateway does not start.
    IoUring,
}

/// `listen`: where listeners are bound, which only a restart changes, and who speaks first there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// The address of every listener.
    pub address: IpAddr,
    /// From a Gateway's port to the port to bind, as a Service maps `port` to `targetPort`. Ports
    /// that are not in it are bound as they are; 0 binds a free one.
    pub ports: BTreeMap<u16, u16>,
    /// Peers whose connections begin with a header of the PROXY protocol. Changes on SIGHUP.
    pub proxy_protocol: Vec<Network>,
}

/// A range of IP addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// The first bits of it count.
    pub address: IpAddr,
    /// How many: at most as many as `address` has.
    pub prefix: u8,
}

/// `gateway`: who this gateway is among the resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Its namespace: where `credentialName` is looked up.
    pub namespace: String,
    /// Its labels: what the `selector` of a Gateway matches.
    pub labels: BTreeMap<String, String>,
    /// Where it is: `region/zone/subzone`. Empty if that is not known, as a part may be.
    pub locality: String,
}

/// `source`: where the resources come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Every YAML file below it is read, and watched.
    pub directory: PathBuf,
}

/// `files`: how paths in resources are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Prefix of every path that a Gateway names.
    pub root: PathBuf,
}

/// `dns`: who is asked for the addresses of names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Instead of those of `/etc/resolv.conf`, unless it is empty.
    pub servers: Vec<SocketAddr>,
}

/// `tls`: the TLS implementation. Only a restart changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Who signs, seals and hashes.
    pub provider: Provider,
}

/// `tls.provider`: who signs, seals and hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// Each for what it is faster at.
    Auto,
    /// aws-lc-rs.
    AwsLcRs,
    /// ring.
    Ring,
}

/// `http`: HTTP behaviour that no resource sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// The answer to a request for a host that its connection does not serve.
    pub misdirected: Misdirected,
    /// How many proxies in front of the gateway append to `x-forwarded-for` and are believed.
    pub trusted_proxies: u32,
}

/// `http.misdirected`: the answer to a request for a host that its connection does not serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misdirected {
    /// 421 Misdirected Request: the client tries again on a connection of its own.
    MisdirectedRequest,
    /// 404 Not Found, as Istio answers.
    NotFound,
}

/// `limits`: limits and timeouts of connections and requests; `None` keeps the default, which
/// stands with its reason at `snapshot::Limits`. There each field is explained, too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of snapshot::Limits")]
pub struct Limits {
    pub connections_max: Option<usize>,
    pub handshakes_max: Option<usize>,
    pub handshake_timeout: Option<Duration>,
    pub head_timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    pub stream_idle_timeout: Option<Duration>,
    pub tcp_idle_timeout: Option<Duration>,
    pub head_bytes_max: Option<usize>,
    pub header_fields_max: Option<usize>,
    pub h2_streams_max: Option<u32>,
    pub h2_stream_window_bytes: Option<u32>,
    pub h2_connection_window_bytes: Option<u32>,
    pub upstream_idle_max: Option<usize>,
    pub upstream_idle_timeout: Option<Duration>,
    pub retry_body_bytes_max: Option<usize>,
    pub mirrors_max: Option<usize>,
    pub linger_timeout: Option<Duration>,
    pub drain_timeout: Option<Duration>,
}

/// `admin`: the administration server. Only a restart changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where it listens.
    pub address: SocketAddr,
}

/// `status`: the server of the readiness probe. Only a restart changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Where it listens.
    pub address: SocketAddr,
}

/// `metrics`: the server of the metrics. Only a restart changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// Where it listens.
    pub address: SocketAddr,
}

/// `access_log`: one line for each request. Only a restart changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLog {
    /// The file that lines are appended to; `None` writes no log.
    pub path: Option<PathBuf>,
    /// What a line looks like.
    pub format: LogFormat,
}

/// `access_log.format`: what a line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Envoy's default text format.
    Text,
    /// A JSON object with Istio's keys.
    Json,
}

impl Default for Workers {
    fn default() -> Self {
        // The machine and its container know better than a number that was written once.
        // And who has several workers wants them all to work.
        Self { count: None, pin: None, backend: Backend::Auto, balance: Balancing::Auto }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            // A gateway is there to be reached.
            address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            // The targetPorts of Istio's Service: no privilege is needed to bind them.
            ports: BTreeMap::from([(80, 8080), (443, 8443)]),
            // Whoever may send one says who the client is: nobody, until the operator says so.
            proxy_protocol: Vec::new(),
        }
    }
}

impl Default for Gateway {
    fn default() -> Self {
        // Istio's own ingress gateway, which the selectors of existing Gateways name.
        let label = ("istio".to_owned(), "ingressgateway".to_owned());
        Self {
            namespace: "istio-system".to_owned(),
            labels: BTreeMap::from([label]),
            // Only who installs it knows.
            locality: String::new(),
        }
    }
}

impl Default for Source {
    fn default() -> Self {
        // Where a package or a ConfigMap puts the configuration of a daemon.
        Self { directory: PathBuf::from("/etc/ringgate") }
    }
}

impl Default for Files {
    fn default() -> Self {
        // Paths mean what they say.
        Self { root: PathBuf::from("/") }
    }
}

impl Default for Tls {
    fn default() -> Self {
        // Which one is faster is measured, not a matter of taste.
        Self { provider: Provider::Auto }
    }
}

impl Default for Http {
    fn default() -> Self {
        // What RFC 9110 says of such a request, and: no client is believed about who it is.
        Self { misdirected: Misdirected::MisdirectedRequest, trusted_proxies: 0 }
    }
}

impl Default for Admin {
    fn default() -> Self {
        // Istio's port. Whoever reaches it sees the whole configuration: this host alone.
        Self { address: SocketAddr::from((Ipv4Addr::LOCALHOST, 15_000)) }
    }
}

impl Default for Status {
    fn default() -> Self {
        // Istio's port, on every address: the kubelet and load balancers ask from outside.
        Self { address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 15_021)) }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        // Istio's port, on every address: Prometheus asks from outside.
        Self { address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 15_090)) }
    }
}

impl Default for AccessLog {
    fn default() -> Self {
        // Where a container's log is collected, in the format that log pipelines know from Istio.
        Self { path: Some(PathBuf::from("/dev/stdout")), format: LogFormat::Text }
    }
}

impl Settings {
    /// The settings in the file at `path`; of what it does not say, the environment says where the
    /// gateway is.
    ///
    /// # Errors
    /// The file cannot be read, or something in it is wrong: every mistake that was found.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let wrong = |what| SettingsError::of_file(path, what);
        let mut settings = Self::parse(path, &read(path).map_err(wrong)?)?;
        if settings.gateway.locality.is_empty() {
            let told = std::env::var(LOCALITY).unwrap_or_default();
            settings.gateway.locality = value::locality_told(&told).map_err(|what| {
                wrong(format!("gateway.locality: the environment variable {LOCALITY} {what}"))
            })?;
        }
        Ok(settings)
    }

    /// The settings in `bytes`, which `path` names in errors.
    ///
    /// # Errors
    /// Every mistake that was found.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, SettingsError> {
        let mut problems = Vec::new();
        let settings = written::document(bytes, &mut problems, read::settings);
        problems.sort_by_key(|problem| problem.line);
        match settings {
            Some(settings) if problems.is_empty() => Ok(settings),
            _ => Err(SettingsError { path: path.to_owned(), problems }),
        }
    }

    /// The keys whose values differ in `new`, and which only a restart can change.
    #[must_use]
    pub fn changed_needs_restart(&self, new: &Self) -> Vec<&'static str> {
        let changed = [
            ("workers.count", self.workers.count != new.workers.count),
            ("workers.pin", self.workers.pin != new.workers.pin),
            ("workers.backend", self.workers.backend != new.workers.backend),
            ("workers.balance", self.workers.balance != new.workers.balance),
            ("listen.address", self.listen.address != new.listen.address),
            ("listen.ports", self.listen.ports != new.listen.ports),
            ("tls.provider", self.tls.provider != new.tls.provider),
            ("admin.address", self.admin.address != new.admin.address),
            ("status.address", self.status.address != new.status.address),
            ("metrics.address", self.metrics.address != new.metrics.address),
            ("access_log.path", self.access_log.path != new.access_log.path),
            ("access_log.format", self.access_log.format != new.access_log.format),
        ];
        changed.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }

    /// What a running gateway uses after a reload: `new`, but for the keys of
    /// [`changed_needs_restart`](Self::changed_needs_restart).
    #[must_use]
    pub fn reloaded(&self, new: &Self) -> Self {
        Self {
            workers: self.workers.clone(),
            listen: Listen {
                proxy_protocol: new.listen.proxy_protocol.clone(),
                ..self.listen.clone()
            },
            tls: self.tls.clone(),
            admin: self.admin.clone(),
            status: self.status.clone(),
            metrics: self.metrics.clone(),
            access_log: self.access_log.clone(),
            ..new.clone()
        }
    }
}

/// Why there are no settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsError {
    /// The file as the user named it.
    pub path: PathBuf,
    /// Sorted by line; never empty.
    pub problems: Vec<Problem>,
}

/// One mistake in a settings file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// From 1; 0 when the file as a whole is meant.
    pub line: u64,
    /// The key, `workers.count`; empty when the file as a whole is meant.
    pub key: String,
    /// What is wrong and what would be right.
    pub what: String,
}

impl SettingsError {
    fn of_file(path: &Path, what: String) -> Self {
        let problem = Problem { line: 0, key: String::new(), what };
        Self { path: path.to_owned(), problems: vec![problem] }
    }
}

impl fmt::Display for SettingsError {
    /// `file:line: key: what`, one line for each problem.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            write!(f, "{end}{}:", self.path.display())?;
            if problem.line > 0 {
                write!(f, "{}:", problem.line)?;
            }
            if !problem.key.is_empty() {
                write!(f, " {}:", problem.key)?;
            }
            write!(f, " {}", problem.what)?;
        }
        Ok(())
    }
}

impl std::error::Error for SettingsError {}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    // A directory, or a FIFO that would be waited for.
    if std::fs::metadata(path).is_ok_and(|found| found.is_dir() || found.file_type().is_fifo()) {
        return Err("is no file; name the settings file itself".to_owned());
    }
    let file = std::fs::File::open(path).map_err(|error| cannot_open(&error))?;
    let read = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is larger than {FILE_BYTES_MAX} bytes, so no settings file"));
    }
    Ok(bytes)
}

fn cannot_open(error: &std::io::Error) -> String {
    let cures = [
        (ErrorKind::NotFound, "make it, `{}` is enough to begin with, or change `--settings`"),
        (ErrorKind::PermissionDenied, "let the user that ringgate runs as read it"),
    ];
    let cure = cures.iter().find(|(kind, _)| *kind == error.kind());
    let cure = cure.map_or_else(String::new, |(_, cure)| format!("; {cure}"));
    format!("cannot be opened: {error}{cure}")
}
